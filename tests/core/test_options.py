"""Options: what is accepted, and that a refusal names the argument, the value and the fix."""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from anomnorm_core import AnomnormError, Center, OnInvalid, OptionError, Origin, Source, ThresholdRule, Units
from anomnorm_core.options import may_exceed, parse_quantile, parse_threshold, parse_threshold_option

_ENUMS: dict[Any, set[str]] = {
    OnInvalid: {"warn", "raise"},
    Center: {"image", "pixel"},
    Source: {"train", "validation", "auto"},
    ThresholdRule: {"adaptive", "normal_quantile", "image"},
    Units: {"raw", "sigmas", "normalized"},
    Origin: {"manual", "option", "module", "adaptive", "normal_quantile", "image", "unknown"},
}


@pytest.mark.parametrize(("option", "values"), _ENUMS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_an_option_accepts_its_strings_and_its_members(option: Any, values: Iterable[str]) -> None:
    assert {str(member) for member in option} == set(values)
    for value in values:
        member = option.parse(value, "argument")
        assert member == value  # members are strings: a user may compare with either
        assert option.parse(member, "argument") is member


@pytest.mark.parametrize(("option", "values"), _ENUMS.items(), ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("wrong", ["", "Warn", "IMAGE", "nothing", None, 3, 1.5, True])
def test_an_option_refuses_everything_else(option: Any, values: Iterable[str], wrong: object) -> None:
    with pytest.raises(OptionError) as caught:
        option.parse(wrong, "some_argument")
    message = str(caught.value)
    assert message.startswith(f"some_argument={wrong!r} ")
    assert all(repr(value) in message for value in values)
    assert caught.value.__suppress_context__  # the enum's own error would only confuse


def test_option_errors_can_be_caught_as_value_errors() -> None:
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, AnomnormError)


@pytest.mark.clause("T4")
@pytest.mark.parametrize("value", [0, -3, 0.7, 1e38, np.float32(0.5), np.array(2.5), Fraction(1, 4)], ids=repr)
def test_a_threshold_is_any_finite_number(value: float) -> None:
    parsed = parse_threshold(value, "threshold")
    assert type(parsed) is float
    assert parsed == value


@pytest.mark.clause("T4")
def test_no_threshold_stays_none() -> None:
    assert parse_threshold(None, "threshold") is None


@pytest.mark.clause("T4")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("inf")], ids=repr)
def test_a_threshold_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match=rf"^pixel_threshold={float(value)} is not finite; give a finite float\.$"):
        parse_threshold(value, "pixel_threshold")


@pytest.mark.clause("T4")
def test_a_threshold_of_more_digits_than_a_float_has_is_refused() -> None:
    with pytest.raises(OptionError, match="is not finite"):
        parse_threshold(10**400, "threshold")


@pytest.mark.clause("T4")
@pytest.mark.parametrize("value", [1e39, -1e300])
def test_a_threshold_that_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(OptionError, match=r"^threshold=.* is infinite in float32"):
        parse_threshold(value, "threshold")


@pytest.mark.clause("T4")
@pytest.mark.parametrize("value", ["adaptive", "", [], [0.5], {}, 1j, object], ids=repr)
def test_a_threshold_that_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(OptionError) as caught:
        parse_threshold(value, "image_threshold")  # type: ignore[arg-type]
    assert str(caught.value) == f"image_threshold={value!r} is not a number; give a finite float."


@pytest.mark.clause("T1", "T4")
def test_a_threshold_is_given_as_a_number_or_a_rule_by_name() -> None:
    assert parse_threshold_option(None, "threshold") is None
    assert parse_threshold_option(3, "threshold") == 3.0
    for name in ("adaptive", "normal_quantile"):
        assert parse_threshold_option(name, "threshold") is ThresholdRule(name)
    assert parse_threshold_option("image", "pixel_threshold") is ThresholdRule.IMAGE
    for wrong, argument in (("image", "threshold"), ("magic", "pixel_threshold"), ("3", "threshold")):
        with pytest.raises(OptionError, match=f"{argument}='{wrong}' is not an option; give a finite number or one of"):
            parse_threshold_option(wrong, argument)


@pytest.mark.clause("T3")
def test_a_quantile_is_a_share_and_rounding_is_no_sample() -> None:
    assert [parse_quantile(value, "q") for value in (0, 0.5, 1)] == [0.0, 0.5, 1.0]
    for wrong in (-0.01, 1.01, math.nan, None, "half"):
        with pytest.raises(OptionError, match="q="):
            parse_quantile(wrong, "q")  # type: ignore[arg-type]
    for share in ("0", "0.07", "0.3", "0.93", "0.99", "1"):
        for count in (1, 7, 100, 1000, 10**6):
            exact = min(math.floor((1 - Fraction(share)) * count), count - 1)
            assert may_exceed(float(share), count) == exact
