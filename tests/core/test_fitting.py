"""Scores in parts: records of them, merged in any order, and the normalizer that comes of it."""

import math
from functools import reduce
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from expected import best_threshold, moments

from anomnorm_core import (
    FitWarning,
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    Normalizer,
    NotFittedError,
    OptionError,
    ResolutionError,
    fitting,
)

RNG = np.random.default_rng(0)
METHODS = ("cdf", "normal", "min-max", "two-slope")


def samples(count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels of which some are anomalous and some ignored."""
    labels = RNG.choice([0, 0, 0, 0, 1, -1], size=count)
    return RNG.lognormal(2.0 * (labels == 1), 0.5), labels


def in_any_order(parts: list[fitting.Record]) -> fitting.Record:
    """Merged as a random tree."""
    while len(parts) > 1:
        a, b = (parts.pop(int(RNG.integers(len(parts)))) for _ in range(2))
        parts.append(fitting.merge(a, b))
    return parts[0]


@pytest.mark.clause("S1", "L8")
@pytest.mark.filterwarnings("ignore:of .* normal validation samples:anomnorm_core.FitWarning")  # not normal at all
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", ["adaptive", "false_alarm_rate", 2.0])
def test_parts_in_any_order_give_the_file_of_the_whole(method: str, threshold: str | float, tmp_path: Path) -> None:
    scores, labels = samples()
    ends = [0, 0, *sorted(RNG.integers(1, 600, size=8).tolist()), 600]  # the first part is empty
    parts = [fitting.record(scores[start:end], labels[start:end], method=method) for start, end in pairwise(ends)]
    whole = fitting.record(scores, labels, method=method)
    fitting.normalizer(whole, threshold=threshold).save(tmp_path / "whole")
    for _ in range(5):
        record = in_any_order([*parts, fitting.Record(method)])
        fitting.normalizer(record, threshold=threshold).save(tmp_path / "parts")
        assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.clause("S3", "T2", "T7")
def test_what_is_fitted_is_of_the_normals_and_the_threshold_of_the_rule() -> None:
    scores, labels = samples()
    record = fitting.record(scores[:, None], labels)
    normals = np.sort(scores[labels == 0])
    mean, std = moments(normals)
    fit = fitting.normalizer(record, threshold="false_alarm_rate", false_alarm_rate=0.02).to_fit()
    np.testing.assert_allclose(fit.image.parameters, (mean, std), rtol=1e-12)  # type: ignore[union-attr]
    assert fit.image.valid == normals.size  # type: ignore[union-attr]
    ranked = normals[math.ceil((normals.size + 1) * 0.98) - 1]
    assert fit.threshold("image").raw == np.nextafter(ranked, np.inf)
    assert fit.threshold("image").guaranteed
    known = labels >= 0
    best = best_threshold(scores[known], labels[known] == 1)
    assert fitting.normalizer(record).thresholds["image"].raw == best
    assert fitting.normalizer(record, threshold=2.0).thresholds["image"].raw == pytest.approx(math.exp(mean + 2 * std))
    assert fitting.normalizer(record, threshold=2.0, units="raw").thresholds["image"].raw == 2.0


@pytest.mark.clause("S2", "T4")
@pytest.mark.parametrize("method", ["min-max", "two-slope"])
def test_a_range_is_of_all_samples(method: str) -> None:
    scores, labels = samples()
    fit = fitting.normalizer(fitting.record(scores, labels, method=method), threshold=2.0).to_fit()
    assert fit.image is not None
    assert [float(value) for value in fit.image.parameters] == [scores.min(), scores.max()]
    assert fit.threshold("image").raw == 2.0


@pytest.mark.clause("S1", "S3", "S4", "L8")
@pytest.mark.filterwarnings("ignore:of .* values 1 is zero:anomnorm_core.InvalidScoreWarning")
def test_maps_merge_with_exact_counts_and_moments_within_rounding() -> None:
    maps = RNG.lognormal(size=(60, 4, 6))
    labels = RNG.integers(0, 2, size=60)
    maps[np.flatnonzero(labels == 0)[3], 0, 0] = 0.0
    parts = [fitting.record(None, labels[i : i + 7], maps[i : i + 7, None]) for i in range(0, 60, 7)]
    row, tree = reduce(fitting.merge, parts), in_any_order(list(parts))
    for a, b in ((row.pixel.count, tree.pixel.count), (row.pixel.zeros, tree.pixel.zeros)):
        np.testing.assert_array_equal(a, b)
    fits = [fitting.normalizer(record, threshold=2.0).to_fit() for record in (row, tree)]
    with np.errstate(divide="ignore"):
        logs = np.log(maps[labels == 0])
    logs[np.isinf(logs)] = np.nan
    for fit in fits:
        assert fit.pixel is not None
        mean, std = moments(np.exp(logs))
        np.testing.assert_allclose(fit.pixel.parameters[0], mean, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(fit.pixel.parameters[1], std, rtol=1e-6)
    # Image scores are the largest pixels; what is fitted of them is the same to the bit.
    assert fits[0].image is not None
    assert fits[1].image is not None
    assert fits[0].image.parameters == fits[1].image.parameters
    np.testing.assert_allclose(fits[0].image.parameters, moments(maps[labels == 0].max(axis=(1, 2))), rtol=1e-12)


@pytest.mark.clause("T4", "T6")
def test_pixel_thresholds_are_numbers_or_follow_the_images() -> None:
    maps = RNG.lognormal(size=(60, 4, 6))
    record = fitting.record(maps.max(axis=(1, 2)), None, maps)
    rule = {"threshold": "false_alarm_rate", "false_alarm_rate": 0.05}
    following = fitting.normalizer(record, **rule).thresholds  # type: ignore[arg-type]
    assert following["pixel"].origin == "image"
    assert following["pixel"].sigmas == following["image"].sigmas
    given = fitting.normalizer(record, **rule, pixel_threshold=4.0, options={"center": "pixel"})  # type: ignore[arg-type]
    assert given.thresholds["pixel"].sigmas == 4.0
    assert given.to_fit().options["center"] == "pixel"
    with pytest.raises(OptionError, match=r"pixel_threshold.*second pass"):
        fitting.normalizer(record, pixel_threshold="adaptive")
    shared = fitting.record(maps.max(axis=(1, 2)), None, maps, method="min-max")
    image, pixel = (
        fitting.normalizer(shared, threshold=1.0, options={"shared_range": True}).to_fit().level(level).parameters
        for level in ("image", "pixel")
    )
    assert image == pixel == (maps.min(), maps.max())


@pytest.mark.clause("S9")
def test_scores_that_are_not_distributed_as_supposed_are_said_to_be_so() -> None:
    record = fitting.record(RNG.normal(size=400) ** 2 + 1.0, method="normal")
    with pytest.warns(FitWarning, match='transform="log"'):
        fitting.normalizer(record, threshold=2.0)


@pytest.mark.clause("S6", "S7", "S8", "N8")
def test_what_cannot_be_fitted_or_merged_is_an_error() -> None:
    with pytest.raises(OptionError, match="'cdf' and 'normal'"):
        fitting.merge(fitting.record([1.0]), fitting.record([1.0], method="normal"))
    with pytest.raises(ResolutionError):
        fitting.merge(fitting.record(None, None, np.ones((1, 2, 3))), fitting.record(None, None, np.ones((1, 3, 3))))
    with pytest.raises(ValueError, match=r"labels of shape \(3,\)"):
        fitting.record([1.0, 2.0], [0, 1, 0])
    with pytest.raises(NotFittedError, match="no value"):
        fitting.normalizer(fitting.Record("cdf"), threshold=2.0)
    with pytest.raises(InsufficientDataError):
        fitting.normalizer(fitting.record([1.0]), threshold=2.0)
    with pytest.raises(InvalidScoreError, match="on_invalid"):
        fitting.normalizer(fitting.record([1.0, 2.0, 0.0]), threshold=2.0, on_invalid="raise")
    with pytest.raises(OptionError, match='units="normalized"'):
        fitting.normalizer(fitting.record([1.0, 2.0]), threshold=0.7, units="normalized")
    with pytest.raises(OptionError, match='threshold="false_alarm_rate" too'):
        fitting.normalizer(fitting.record([1.0, 2.0]), threshold=2.0, false_alarm_rate=0.2)
    with pytest.warns(InvalidScoreWarning, match="1 is zero"):
        normalizer = fitting.normalizer(fitting.record(np.append(np.linspace(1, 2, 50), 0.0)), threshold=2.0)
    assert isinstance(normalizer, Normalizer)


@pytest.mark.parametrize("method", ["cdf", "normal"])
def test_labels_of_which_none_is_normal_are_said_to_be_so(method: str) -> None:
    labels = np.array([1, 1, -1])  # scikit-learn's: 1 is normal there
    with pytest.raises(NotFittedError, match=r"of 3 samples none is normal: .*Label normal samples 0"):
        fitting.normalizer(fitting.record([1.0, 2.0, 3.0], labels, method=method), threshold=2.0)


@pytest.mark.parametrize("dtype", [str, object])
def test_labels_in_words_are_an_error_that_says_what_to_do(dtype: type) -> None:
    with pytest.raises(TypeError, match=r"labels must be numbers or booleans, found dtype .*labels != 'good'"):
        fitting.record([1.0, 2.0], np.array(["good", "scratch"], dtype=dtype))
