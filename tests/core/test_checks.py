"""The wording of host-side checks, which all packages share."""

import re
import warnings

import pytest

from anomnorm_core import InsufficientDataError, InvalidScoreError, InvalidScoreWarning, NotFittedError, ResolutionError
from anomnorm_core.checks import report_invalid, require_count, require_resolution
from anomnorm_core.options import OnInvalid

LEVELS = pytest.mark.parametrize("level", ["image", "pixel"])


@pytest.mark.clause("N8", "S7")
@pytest.mark.parametrize(("count", "minimum"), [(1, 1), (2, 2), (2, 1), (2**40, 2), (0, 0)])
def test_enough_values_pass_whatever_was_left_out(count: int, minimum: int) -> None:
    for invalid in (0, 1, 2**40):
        require_count("image", count, invalid, minimum=minimum)


@pytest.mark.clause("N8")
@LEVELS
def test_no_value_at_all_says_what_to_run(level: str) -> None:
    with pytest.raises(NotFittedError) as caught:
        require_count(level, 0, 0, minimum=1)
    message = str(caught.value)
    assert message.startswith(f"the {level}-level statistics have seen no value.")
    for remedy in ("trainer.validate", "on_validation_*", "checkpoint", "update()"):
        assert remedy in message
    assert not isinstance(caught.value, InsufficientDataError)


@pytest.mark.clause("S6")
@LEVELS
def test_only_invalid_values_are_counted_in_the_error(level: str) -> None:
    for minimum in (1, 2):
        with pytest.raises(NotFittedError, match=f"^all 17 {level}-level values were invalid") as caught:
            require_count(level, 0, 17, minimum=minimum)
        assert "Check the detector's raw scores" in str(caught.value)


@pytest.mark.clause("S7")
@LEVELS
def test_too_few_values_for_a_deviation_say_how_many_are_needed(level: str) -> None:
    with pytest.raises(InsufficientDataError, match=f"^the {level}-level .* 1 valid value and need at least 2"):
        require_count(level, 1, 5, minimum=2)
    assert issubclass(InsufficientDataError, NotFittedError)


@pytest.mark.clause("S6")
@pytest.mark.parametrize("on_invalid", list(OnInvalid))
def test_nothing_left_out_is_reported_by_silence(on_invalid: OnInvalid) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report_invalid({"image": (5, 0), "pixel": (0, 0)}, on_invalid)
        report_invalid({}, on_invalid)


@pytest.mark.clause("S6")
@LEVELS
def test_invalid_values_warn_once_with_both_counts(level: str) -> None:
    with pytest.warns(InvalidScoreWarning) as caught:
        report_invalid({level: (7, 3)}, OnInvalid.WARN)
    (warning,) = caught
    assert warning.category is InvalidScoreWarning
    assert str(warning.message).startswith(f"3 of 10 {level}-level values are NaN or infinite, or not positive")
    assert str(warning.message).endswith(
        "they were left out of the statistics. If there are many, look at the detector's raw scores."
    )


@pytest.mark.clause("S6")
@pytest.mark.parametrize("on_invalid", list(OnInvalid))
def test_all_levels_share_one_message_and_clean_ones_stay_out_of_it(on_invalid: OnInvalid) -> None:
    counts = {"image": (7, 3), "pixel": (0, 4), "other": (9, 0)}
    expected = "^3 of 10 image-level values and 4 of 4 pixel-level values are NaN"
    if on_invalid is OnInvalid.RAISE:
        with pytest.raises(InvalidScoreError, match=expected):
            report_invalid(counts, on_invalid)
    else:
        with pytest.warns(InvalidScoreWarning, match=expected) as caught:
            report_invalid(counts, on_invalid)
        assert len(caught) == 1


@pytest.mark.clause("S6")
def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(InvalidScoreWarning) as caught:
        report_invalid({"image": (7, 3)}, OnInvalid.WARN)
    assert caught[0].filename == __file__


@pytest.mark.clause("S6")
@LEVELS
def test_invalid_values_raise_with_level_and_count_under_raise(level: str) -> None:
    with pytest.raises(InvalidScoreError, match=re.escape(f"1 of {2**40} {level}-level values")) as caught:
        report_invalid({level: (2**40 - 1, 1)}, OnInvalid.RAISE)
    assert 'on_invalid="raise"' in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.clause("S8")
@pytest.mark.parametrize(
    ("found", "fitted"),
    [((4, 1, 8, 6), (8, 6)), ((4, 8, 6), (8, 6)), ((8, 6), (8, 6)), ((4, 1, 8, 6), ()), ((4,), ()), ((), ())],
)
def test_maps_of_the_fitted_resolution_and_scalar_statistics_pass(
    found: tuple[int, ...], fitted: tuple[int, ...]
) -> None:
    require_resolution(found, fitted)


@pytest.mark.clause("S8")
@pytest.mark.parametrize(
    ("found", "fitted"),
    [((4, 1, 6, 8), (8, 6)), ((4, 8, 6), (1, 6)), ((4, 8, 6), (8, 1)), ((8,), (8, 8)), ((), (1, 1))],
)
def test_maps_of_another_resolution_are_refused_naming_both_shapes(
    found: tuple[int, ...], fitted: tuple[int, ...]
) -> None:
    with pytest.raises(ResolutionError) as caught:
        require_resolution(found, fitted)
    message = str(caught.value)
    assert f"have shape {found}" in message
    assert f"(H, W) = {fitted}" in message
    assert "resize the maps or fit again" in message
