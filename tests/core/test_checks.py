"""The wording of host-side checks, which all packages share."""

import re
import warnings

import pytest

from anomnorm_core import InsufficientDataError, InvalidScoreError, InvalidScoreWarning, NotFittedError, ResolutionError
from anomnorm_core.checks import Counts, report_invalid, require_count, require_resolution
from anomnorm_core.methods import METHODS
from anomnorm_core.options import OnInvalid, Source

CDF, MIN_MAX = METHODS["cdf"].method, METHODS["min-max"].method

LEVELS = pytest.mark.parametrize("level", ["image", "pixel"])


@pytest.mark.clause("N8", "S7")
@pytest.mark.parametrize(("count", "minimum"), [(1, 1), (2, 2), (2, 1), (2**40, 2), (0, 0)])
def test_enough_values_pass_whatever_was_left_out(count: int, minimum: int) -> None:
    for nan in (0, 1, 2**40):
        require_count("image", Counts(count, nan=nan), minimum=minimum)


@pytest.mark.clause("N8")
@LEVELS
def test_no_value_at_all_says_what_to_run(level: str) -> None:
    with pytest.raises(NotFittedError) as caught:
        require_count(level, Counts(0), minimum=1)
    message = str(caught.value)
    assert message.startswith(f"the {level}-level statistics have seen no value.")
    for remedy in ("run a validation", "checkpoint", "update()"):
        assert remedy in message
    assert not isinstance(caught.value, InsufficientDataError)


REMEDIES = {
    "zeros": "exact zeros",
    "negative": "of any sign",
    "nan": "diverged model",
    "infinite": "overflow",
}


@pytest.mark.clause("S6")
@pytest.mark.parametrize("cause", REMEDIES)
def test_where_nothing_can_be_fitted_the_error_names_the_cause_and_its_remedy(cause: str) -> None:
    # A neighbour detector on its own training data gives zeros alone.
    word = {"zeros": "zero", "negative": "negative", "nan": "NaN", "infinite": "infinite"}[cause]
    with pytest.raises(
        NotFittedError, match=f"^none of 20 image-level values can be fitted: 20 are {word}\\. "
    ) as caught:
        require_count("image", Counts(0, **{cause: 20}), minimum=2)
    assert {name for name, remedy in REMEDIES.items() if remedy in str(caught.value)} == {cause}


@pytest.mark.clause("S7")
@LEVELS
def test_too_few_values_for_a_deviation_say_how_many_are_needed(level: str) -> None:
    with pytest.raises(InsufficientDataError, match=f"^the {level}-level .* 1 valid value and need at least 2"):
        require_count(level, Counts(64, nan=5), minimum=2, most=1)  # one for each of 64 pixels
    assert issubclass(InsufficientDataError, NotFittedError)


@pytest.mark.clause("S6")
@pytest.mark.parametrize("on_invalid", [*OnInvalid, None])
def test_nothing_left_out_is_reported_by_silence(on_invalid: OnInvalid | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not report_invalid({"image": Counts(5), "pixel": Counts(0)}, on_invalid, method=CDF)
        assert not report_invalid({}, on_invalid, method=CDF)


@pytest.mark.clause("S6")
def test_the_warning_counts_each_cause_and_says_what_follows_and_what_to_do() -> None:
    with pytest.warns(InvalidScoreWarning) as caught:
        assert report_invalid({"image": Counts(107, 60, 33)}, OnInvalid.WARN, method=CDF, source=Source.TRAIN)
    (warning,) = caught
    message = str(warning.message)
    assert message.startswith("of 200 image-level values 60 are zero and 33 negative. They were left out")
    assert "have no logarithm: all of them are normalized to 0 and never flagged" in message
    assert {name for name, remedy in REMEDIES.items() if remedy in message} == {"zeros", "negative"}
    assert 'give the CDF transform="identity", which is method "normal"' in message
    with pytest.warns(InvalidScoreWarning, match="of 10 image-level values 1 is zero, 1 NaN and 1 infinite") as caught:
        report_invalid({"image": Counts(7, 1, 0, 1, 1)}, OnInvalid.WARN, method=CDF, source=Source.VALIDATION)
    assert 'source="validation"' in message
    assert 'source="validation"' not in str(caught[0].message)  # that is where they come from already


@pytest.mark.clause("S6")
@pytest.mark.parametrize("on_invalid", list(OnInvalid))
def test_all_levels_share_one_message_and_clean_ones_stay_out_of_it(on_invalid: OnInvalid) -> None:
    counts = {"image": Counts(7, nan=3), "pixel": Counts(0, nan=4), "other": Counts(9)}
    expected = "^of 10 image-level values 3 are NaN; of 4 pixel-level values 4 are NaN"
    if on_invalid is OnInvalid.RAISE:
        with pytest.raises(InvalidScoreError, match=expected):
            report_invalid(counts, on_invalid, method=MIN_MAX)
    else:
        with pytest.warns(InvalidScoreWarning, match=expected) as caught:
            report_invalid(counts, on_invalid, method=MIN_MAX)
        assert len(caught) == 1
        assert "logarithm" not in str(caught[0].message)


@pytest.mark.clause("S6")
def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(InvalidScoreWarning) as caught:
        report_invalid({"image": Counts(7, nan=3)}, OnInvalid.WARN, method=CDF)
    assert caught[0].filename == __file__


@pytest.mark.clause("S6")
@LEVELS
def test_invalid_values_raise_with_level_and_count_under_raise(level: str) -> None:
    with pytest.raises(InvalidScoreError, match=re.escape(f"of {2**40} {level}-level values 1 is NaN")) as caught:
        report_invalid({level: Counts(2**40 - 1, nan=1)}, OnInvalid.RAISE, method=CDF)
    assert 'on_invalid="raise"' in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.clause("S6")
@pytest.mark.parametrize("on_invalid", [OnInvalid.WARN, OnInvalid.RAISE, None])
@pytest.mark.parametrize(
    ("level", "counts", "lost"),
    [
        ("image", Counts(40, 60, 51), 51),  # zeros are values that were seen
        ("image", Counts(40, 0, 7, 7, 7), 21),
        ("pixel", Counts(66, 0, 34, 1000), 34),  # NaN are pixels that are not defined
        ("pixel", Counts(66, 0, 0, 0, 34), 34),
    ],
)
def test_a_fit_that_lost_more_than_a_third_is_an_error(
    level: str, counts: Counts, lost: int, on_invalid: OnInvalid | None
) -> None:
    of = sum(counts) - (counts.nan if level == "pixel" else 0)
    with pytest.raises(InvalidScoreError, match=f"^{lost} of {of} {level}-level values cannot be fitted"):
        report_invalid({level: counts}, on_invalid, method=CDF)


@pytest.mark.clause("S6")
@pytest.mark.parametrize(
    ("level", "counts"),
    [
        ("image", Counts(40, 60, 50)),
        ("image", Counts(1, 10**6)),
        ("image", Counts(2, nan=1)),
        ("pixel", Counts(1, 0, 0, 10**6)),
    ],
)
def test_zeros_undefined_pixels_and_a_third_are_none(level: str, counts: Counts) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report_invalid({level: counts}, None, method=CDF)


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
