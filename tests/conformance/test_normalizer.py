"""The fitted normalizer: from raw scores to labels, thresholds in all units, extras, what it takes and refuses."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from anomnorm_core import InsufficientDataError, NotFittedError, OptionError, OutputError, ResolutionError
from conformance import oracle
from conformance.assertions import assert_close, assert_sides, neighbours, random_values
from conformance.backend import Backend

pytestmark = pytest.mark.needs("normalizer")

# One image-level and one pixel-level set of statistics; all are numbers of float32.
RANGE, PIXEL_RANGE = (0.25, 4.0), (-1.0, 6.5)
MOMENTS = (0.125, 0.375)
PIXEL_MEAN = np.linspace(-0.5, 0.5, 6, dtype=np.float32).astype(np.float64).reshape(2, 3)
PIXEL_STD = np.linspace(0.25, 0.75, 6, dtype=np.float32).astype(np.float64).reshape(2, 3)
IMAGE_THRESHOLD, PIXEL_THRESHOLD = 1.75, 2.25  # raw, or in sigmas

_KEPT: dict[tuple[str, str, str], Any] = {}


def fitted(backend: Backend, dtype: str, kind: str) -> Any:
    """A normalizer; the same one for all tests of a backend and dtype, because exporting takes a while."""
    key = (backend.id, dtype, kind)
    if key not in _KEPT:
        own = None if kind.endswith("follows") else PIXEL_THRESHOLD
        method = kind.removesuffix("-follows").removesuffix("-pixel")
        sigmas = has_sigmas(kind)
        _KEPT[key] = backend.normalizer.of(
            method,
            MOMENTS if sigmas else RANGE,
            (PIXEL_MEAN, PIXEL_STD) if sigmas else PIXEL_RANGE,
            threshold=IMAGE_THRESHOLD,
            pixel_threshold=own,
            options={"center": "pixel" if kind == "cdf-pixel" else "image"} if sigmas else {},
        )
    return _KEPT[key]


KINDS = pytest.mark.parametrize("kind", ["min-max", "two-slope", "cdf", "cdf-pixel", "normal"])


def has_sigmas(kind: str) -> bool:
    return kind.startswith(("cdf", "normal"))


def moments(kind: str, pixel: int | None) -> tuple[float, float, float]:
    """Mean, deviation and centre of an image score or of the pixel of that number."""
    if pixel is None:
        return (*MOMENTS, MOMENTS[0])
    mean, std = (float(values.ravel()[pixel % 6]) for values in (PIXEL_MEAN, PIXEL_STD))
    return mean, std, mean if kind == "cdf-pixel" else MOMENTS[0]


def raw(kind: str, threshold: float, pixel: int | None = None) -> float:
    """Where a threshold is among raw scores."""
    place = oracle.raw_threshold_of_raw_scores if kind.startswith("normal") else oracle.raw_threshold
    return place(threshold, *moments(kind, pixel)) if has_sigmas(kind) else threshold


def expected(kind: str, x: float, threshold: float, pixel: int | None = None) -> float:
    """The exact normalized score by a raw threshold."""
    if has_sigmas(kind):
        formula = oracle.normal if kind.startswith("normal") else oracle.cdf
        return formula(x, threshold, moments(kind, pixel)[1])
    formula = oracle.two_slope if kind.startswith("two-slope") else oracle.min_max
    return formula(x, threshold, *(RANGE if pixel is None else PIXEL_RANGE))


def sample(dtype: str) -> tuple[list[float], np.ndarray]:
    rng = np.random.default_rng(6)
    scores = [*random_values(dtype, np.exp(rng.normal(0.1, 0.8, size=11))), 0.0, -1.0, math.inf, -math.inf, math.nan]
    maps = np.reshape(random_values(dtype, np.exp(rng.normal(0.2, 0.7, size=16 * 6))), (16, 1, 2, 3))
    maps[3, 0, 1] = math.nan, 0.0, math.inf
    return scores, maps


def sample_arrays(backend: Backend, dtype: str) -> tuple[Any, Any]:
    scores, maps = sample(dtype)
    return backend.asarray(scores, dtype), backend.asarray(maps, dtype)


def read(backend: Backend, result: dict[str, Any], *names: str) -> list[list[Any]]:
    return [backend.to_numpy(result[name]).ravel().tolist() for name in names]


@pytest.mark.clause("N3", "N3b", "N1", "N1b", "N4", "N6", "N9", "N13")
@KINDS
def test_n3_scores_and_maps_to_normalized_scores_and_decisions(backend: Backend, dtype: str, kind: str) -> None:
    scores, maps = sample(dtype)
    arrays = sample_arrays(backend, dtype)
    normalizer = fitted(backend, dtype, kind)
    result = backend.score(normalizer, *arrays)
    assert set(result) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
    kept, pixels = oracle.arithmetic(dtype), maps.ravel().tolist()
    thresholds = [raw(kind, IMAGE_THRESHOLD)] * 16, [raw(kind, PIXEL_THRESHOLD, i) for i in range(96)]
    # The logarithm of a threshold is rounded to half an ulp; the density of the normal distribution is 0.4 at most.
    tolerance = oracle.unit_bound(dtype) + (0.4 * oracle.ulp(1.0, kept) / 0.25 if has_sigmas(kind) else 0.0)
    for level, unit, flagged, values, at in (
        ("image", "pred_scores", "pred_labels", scores, thresholds[0]),
        ("pixel", "anomaly_maps", "pred_masks", pixels, thresholds[1]),
    ):
        placed = np.broadcast_to(normalizer.thresholds[level].raw, (2, 3) if level == "pixel" else ()).ravel()
        assert placed.tolist() == pytest.approx(at[: placed.size], rel=oracle.ulp(1.0, kept))
        numbers = None if level == "image" else 0
        exact = [
            expected(kind, x, t, None if numbers is None else i)
            for i, (x, t) in enumerate(zip(values, at, strict=True))
        ]
        units, flags = read(backend, result, unit, flagged)
        assert_close(backend, units, exact, tolerance, values)
        own = [oracle.rounded(float(placed[i % placed.size]), kept) for i in range(len(values))]
        assert flags == [x >= t for x, t in zip(values, own, strict=True)]
        assert flags == [u >= 0.5 for u in units]
        given = backend.describe(arrays[level == "pixel"])
        assert backend.describe(result[unit]) == given._replace(dtype=kept)
        assert backend.describe(result[flagged]) == given._replace(dtype="bool")


@pytest.mark.clause("N4", "T4")
@KINDS
@pytest.mark.dtypes(("float64", "float32"))
def test_n4_in_the_neighbourhood_of_any_threshold(backend: Backend, dtype: str, kind: str) -> None:
    # One exported program serves all thresholds: they are inputs.
    normalizer = fitted(backend, dtype, kind)
    for threshold in (0.1, 1.0, math.pi, 41.5):
        t = oracle.rounded(threshold, oracle.arithmetic(dtype))
        values = neighbours(t, dtype, 60)
        arrays = backend.asarray(values, dtype), backend.asarray(np.repeat(values, 6).reshape(-1, 1, 2, 3), dtype)
        (given,) = (backend.asarray(np.float64(t), oracle.arithmetic(dtype)),)
        result = backend.score(normalizer, *arrays, threshold=given, pixel_threshold=given)
        assert_sides(backend, values, *read(backend, result, "pred_scores", "pred_labels"), t)
        pixels = np.repeat(values, 6).tolist()
        assert_sides(backend, pixels, *read(backend, result, "anomaly_maps", "pred_masks"), t)


@pytest.mark.clause("T4", "N4")
def test_t4_a_raw_threshold_for_each_pixel(backend: Backend) -> None:
    dtype = kept = backend.usual_dtype
    thresholds = np.reshape(random_values(kept, np.linspace(0.4, 3.7, 6)), (2, 3))
    _, maps = sample_arrays(backend, dtype)
    values = backend.to_numpy(maps)
    for kind in ("cdf", "cdf-pixel", "normal"):
        normalizer = fitted(backend, dtype, kind)
        called = backend.score(normalizer, None, maps, pixel_threshold=backend.asarray(thresholds, kept))
        moved = normalizer.with_threshold(pixel_threshold=thresholds, units="raw")(None, maps)
        for result in (called, moved):
            with np.errstate(invalid="ignore"):
                assert np.array_equal(backend.to_numpy(result["pred_masks"]), values >= thresholds)
        assert normalizer.thresholds["pixel"].sigmas == PIXEL_THRESHOLD
    with pytest.raises(OptionError, match=r"shape \(3, 2\)"):
        normalizer.with_threshold(pixel_threshold=thresholds.T, units="raw")


@pytest.mark.clause("T4", "T6", "T1")
@pytest.mark.parametrize("kind", ["min-max", "two-slope-follows", "cdf", "cdf-follows", "normal-follows"])
def test_t4_thresholds_of_a_call_and_who_follows_whom(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    arrays = sample_arrays(backend, dtype)
    values = [backend.to_numpy(array) for array in arrays]
    normalizer = fitted(backend, dtype, kind)
    follows, sigmas = kind.endswith("follows"), has_sigmas(kind)
    own = IMAGE_THRESHOLD if follows else PIXEL_THRESHOLD

    def check(result: dict[str, Any], image: float, pixel: Any) -> None:
        with np.errstate(invalid="ignore"):
            assert np.array_equal(backend.to_numpy(result["pred_labels"]), values[0] >= image)
            assert np.array_equal(backend.to_numpy(result["pred_masks"]), values[1] >= np.asarray(pixel))

    def placed(threshold: float) -> np.ndarray:
        return np.reshape([oracle.rounded(raw(kind, threshold, i), oracle.arithmetic(dtype)) for i in range(6)], (2, 3))

    at = raw(kind, IMAGE_THRESHOLD)
    # Of a call: a raw score. A pixel threshold that follows the images' raw one follows it; sigmas do not hear of it.
    with_call = 0.5 if follows and not sigmas else placed(own)
    for threshold, pixel_threshold, image_t, pixel_t in (
        (None, None, at, placed(own)),
        (0.5, None, 0.5, with_call),
        (0.5, 3.0, 0.5, 3.0),
        (None, 3.0, at, 3.0),
    ):
        given = {"threshold": threshold, "pixel_threshold": pixel_threshold}
        inputs = {
            name: backend.asarray(np.float64(t), oracle.arithmetic(dtype)) for name, t in given.items() if t is not None
        }
        check(backend.score(normalizer, *arrays, **inputs), image_t, pixel_t)
    # For good: in the method's units, and the pixels go on following.
    moved = normalizer.with_threshold(0.25)
    check(moved(*arrays), raw(kind, 0.25), placed(0.25 if follows else own))
    again = moved.with_threshold(pixel_threshold=2.5).with_threshold(1.25)
    check(again(*arrays), raw(kind, 1.25), placed(2.5))
    check(normalizer(*arrays), at, placed(own))
    assert [str(t.origin) for t in normalizer.thresholds.values()] == ["option", "image" if follows else "option"]
    assert [str(t.origin) for t in moved.thresholds.values()] == ["manual", "image" if follows else "option"]
    assert [str(t.origin) for t in again.thresholds.values()] == ["manual"] * 2
    free = again.without_manual_threshold()
    assert [str(t.origin) for t in free.thresholds.values()] == ["unknown"] * 2
    check(free(*arrays), raw(kind, 1.25), placed(2.5))


@pytest.mark.clause("T4")
@KINDS
def test_t4_normalized_units(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    arrays = sample_arrays(backend, dtype)
    normalizer = fitted(backend, dtype, kind)
    before = normalizer(*arrays)
    for unit in (0.2, 0.5, 0.7):
        moved = normalizer.with_threshold(unit, unit, units="normalized")
        after = moved(*arrays)
        for name, flagged in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
            units = backend.to_numpy(before[name])
            clear = ~(np.abs(units - unit) < 1e-5)
            assert np.array_equal(backend.to_numpy(after[flagged])[clear], (units >= unit)[clear])
        there = normalizer.raw_threshold(unit, "normalized")
        assert float(there) == pytest.approx(float(moved.thresholds["image"].raw), rel=1e-6)
    for wrong in (0.0, 1.0, 1.2, -3.0):
        with pytest.raises(OptionError, match="between 0 and 1"):
            normalizer.with_threshold(wrong, units="normalized")


@pytest.mark.clause("T4", "N3")
@KINDS
def test_t4_units_of_thresholds(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    normalizer = fitted(backend, dtype, kind)
    scores = backend.asarray([2.9, 3.0, 3.1], dtype)
    result = normalizer.with_threshold(3.0, units="raw")(scores)
    assert read(backend, result, "pred_labels") == [[False, True, True]]
    assert read(backend, result, "pred_scores")[0][1] == 0.5
    for level, pixels in (("image", [None]), ("pixel", range(6))):
        assert normalizer.raw_threshold(1.5, "raw", level).ravel().tolist() == [1.5] * len(
            pixels if has_sigmas(kind) else [None]
        )
        if has_sigmas(kind):
            for units in ("sigmas", None):
                found = normalizer.raw_threshold(2.5, units, level).ravel().tolist()
                assert found == pytest.approx([raw(kind, 2.5, pixel) for pixel in pixels], rel=1e-6)
    if has_sigmas(kind):
        z_score = oracle.raw_z_score if kind == "normal" else oracle.z_score
        sigmas = normalizer.with_threshold(3.0, units="raw").thresholds["image"].sigmas
        assert sigmas == pytest.approx(float(z_score(3.0, MOMENTS[0], MOMENTS[1])), rel=1e-6)
        far = normalizer.with_threshold(pixel_threshold=1e38).thresholds["pixel"].raw  # of pixels it is clipped
        assert np.all(np.isfinite(far))
    if kind == "normal":
        for t in (-1.0, 0.0):
            assert normalizer.with_threshold(t, units="raw").thresholds["image"].raw == t
    elif has_sigmas(kind):
        for wrong in (-1.0, 0.0, 2.0**-130):
            with pytest.raises(OptionError, match="not a positive normal number"):
                normalizer.with_threshold(wrong, units="raw")
        with pytest.raises(OptionError, match="raw score inf"):
            normalizer.with_threshold(3e38)
    else:
        with pytest.raises(OptionError, match="has none; give the threshold in raw units"):
            normalizer.with_threshold(1.0, units="sigmas")
    for wrong in (math.nan, math.inf, "3"):
        with pytest.raises(OptionError, match="threshold"):
            normalizer.with_threshold(wrong)
    with pytest.raises(OptionError, match="give at least one"):
        normalizer.with_threshold()
    with pytest.raises(OptionError, match="units='sigma'"):
        normalizer.with_threshold(2.0, units="sigma")


@pytest.mark.clause("N7", "N3")
@pytest.mark.filterwarnings("ignore:all .* image scores that were fitted are equal")
def test_n7_a_constant_normal_population_is_not_flagged_at_positive_sigmas(backend: Backend) -> None:
    dtype = backend.usual_dtype
    for constant in (1.0, 2.0, 20.0, 1e-4, 3.3e5, 0.7, 1e-12, 1e12):
        x = oracle.rounded(constant, "float32")
        scores = backend.asarray([x] * 4, dtype)
        maps = np.full((4, 1, 2, 3), x)
        maps[:, 0, 0, 0] *= (0.5, 1.0, 2.0, 1.0)  # one pixel has a deviation
        array = backend.asarray(maps, dtype)
        image = backend.cdf.update(backend.cdf.init(), scores)
        pixel = backend.cdf.update(backend.cdf.init((2, 3)), array)
        for center in ("image", "pixel"):
            make = {"center": center, "pixel_threshold": None}
            for sigmas, wanted, flagged in ((3.0, 0.0, False), (0.01, 0.0, False), (-2.0, 1.0, True)):
                result = backend.normalizer.cdf(image, pixel, threshold=sigmas, **make)(scores, array)
                assert read(backend, result, "pred_labels", "pred_scores") == [[flagged] * 4, [wanted] * 4], constant
                masks, units = (backend.to_numpy(result[name]) for name in ("pred_masks", "anomaly_maps"))
                assert np.all(masks[..., 1, :] == flagged)
                assert np.all(units[..., 1, :] == wanted)
            step = 2.0**-20
            for sigmas, share in ((2.0, 1 + step), (-2.0, 1 - step)):
                t = float(backend.normalizer.cdf(image, threshold=sigmas).thresholds["image"].raw)
                assert abs(t / x - share) <= step
    # Without the logarithm, of any sign.
    for constant in (0.0, -20.0, 0.7, -3e5):
        x = oracle.rounded(constant, "float32")
        scores = backend.asarray([x] * 4, dtype)
        record = backend.normal.update(backend.normal.init(), scores)
        for sigmas, wanted, flagged in ((3.0, 0.0, False), (0.01, 0.0, False), (-2.0, 1.0, True)):
            normalizer = backend.normalizer.cdf(record, threshold=sigmas, transform="identity")
            assert read(backend, normalizer(scores), "pred_labels", "pred_scores") == [[flagged] * 4, [wanted] * 4]
            at = float(normalizer.thresholds["image"].raw)
            assert at == oracle.raw_threshold_of_raw_scores(sigmas, x, 0.0, x)
    # Where the mean is exact, these are the numbers of the clause.
    for mean in (0.0, 1.5, -3.0):
        normalizer = backend.normalizer.cdf((mean, 0.0), threshold=1.0)
        for sigmas in (2.0, -0.5):
            found = float(normalizer.with_threshold(sigmas).thresholds["image"].raw)
            assert found == oracle.raw_threshold(sigmas, mean, 0.0, mean)
        at = float(normalizer.with_threshold(0.0).thresholds["image"].raw)
        assert at == pytest.approx(math.exp(mean), rel=oracle.ulp(1.0, dtype))


@pytest.mark.clause("N7")
@pytest.mark.filterwarnings("ignore:all .* image scores that were fitted are equal")
def test_n7_constant_populations_have_steps(backend: Backend) -> None:
    dtype = backend.usual_dtype
    scores, maps = backend.asarray([1.0, 2.0, 3.0], dtype), backend.asarray(np.full((3, 2, 2), 2.0), dtype)
    two = np.full((2, 2), oracle.rounded(math.log(2.0), "float32"))
    for normalizer in (
        backend.normalizer.min_max((2.0, 2.0), (2.0, 2.0), threshold=2.0),
        backend.normalizer.of("two-slope", (2.0, 2.0), (2.0, 2.0), threshold=2.0),
        backend.normalizer.cdf((two[0, 0], 0.0), (two, 0 * two), threshold=2.0, units="raw", center="pixel"),
        backend.normalizer.of("normal", (2.0, 0.0), (0 * two + 2, 0 * two), threshold=2.0, units="raw"),
    ):
        result = normalizer.with_threshold(2.0, 2.0, units="raw")(scores, maps)
        found = read(backend, result, "pred_scores", "pred_labels", "anomaly_maps")
        assert found == [[0.0, 0.5, 1.0], [False, True, True], [0.5] * 12]


@pytest.mark.clause("N10", "N9")
@KINDS
def test_n10_extras(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    scores, maps = sample(dtype)
    arrays = sample_arrays(backend, dtype)
    name = "z" if has_sigmas(kind) else "margin"
    result = backend.score(fitted(backend, dtype, kind), *arrays, extras=(name,))
    keys = {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
    assert set(result) == keys | {f"pred_scores_{name}", f"anomaly_maps_{name}"}
    kept = oracle.arithmetic(dtype)
    for field, array, values, t, limits in (
        ("pred_scores", arrays[0], scores, IMAGE_THRESHOLD, RANGE),
        ("anomaly_maps", arrays[1], maps.ravel().tolist(), PIXEL_THRESHOLD, PIXEL_RANGE),
    ):
        if name == "margin":
            exact = [(x - t) / (limits[1] - limits[0]) for x in values]
            tolerance = [4 * oracle.ulp(v if math.isfinite(v) else 1.0, kept) for v in exact]
        else:
            statistics = [moments(kind, None if field == "pred_scores" else i) for i in range(len(values))]
            z_score = oracle.raw_z_score if kind == "normal" else oracle.z_score
            exact = [float(z_score(x, c, std)) for x, (_, std, c) in zip(values, statistics, strict=True)]
            tolerance = [oracle.z_bound(v if math.isfinite(v) else 1.0, 0.25, dtype, 4.0) for v in exact]
        found = result[f"{field}_{name}"]
        assert backend.describe(found) == backend.describe(array)._replace(dtype=kept)
        assert_close(backend, found, exact, tolerance, values)


@pytest.mark.clause("N10")
def test_n10_raw_values_are_not_copied(backend: Backend) -> None:
    if backend.score.__func__ is not Backend.score:
        pytest.skip("a compiled or exported program returns arrays of its own")
    dtype = backend.usual_dtype
    scores, maps = backend.asarray([1.0, 2.0], dtype), backend.asarray(np.ones((2, 2, 3)), dtype)
    for kind in ("min-max", "cdf"):
        result = fitted(backend, dtype, kind)(scores, maps, extras=["raw", "raw"])
        assert result["pred_scores_raw"] is scores
        assert result["anomaly_maps_raw"] is maps
        assert len(result) == 6


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of pairs of a normal and an anomaly in the right order, ties counting half."""
    normal, anomalous = scores[~labels], scores[labels]
    return float(np.mean((anomalous[:, None] > normal) + 0.5 * (anomalous[:, None] == normal)))


@pytest.mark.clause("N10")
@pytest.mark.parametrize(
    ("kind", "name"), [("min-max", "margin"), ("two-slope", "margin"), ("cdf", "z"), ("normal", "z")]
)
def test_n10_auroc_of_extras_is_that_of_the_raw_scores(backend: Backend, kind: str, name: str) -> None:
    dtype = backend.usual_dtype
    # Many scores so far out that the normalized score is exactly 1.
    rng = np.random.default_rng(7)
    labels = rng.random(400) < 0.5
    scores = np.array(random_values(dtype, np.exp(rng.normal(2.5 + 2.0 * labels, 2.0))))
    result = backend.score(fitted(backend, dtype, kind), backend.asarray(scores, dtype), extras=(name,))
    unit = backend.to_numpy(result["pred_scores"])
    assert np.sum(unit == 1.0) > 50
    assert _auroc(unit, labels) != _auroc(scores, labels)
    assert _auroc(backend.to_numpy(result[f"pred_scores_{name}"]), labels) == _auroc(scores, labels)


@pytest.mark.clause("N10")
@pytest.mark.parametrize(("kind", "name"), [("min-max", "margin"), ("cdf", "z")])
def test_n10_extras_can_be_had_finite(backend: Backend, kind: str, name: str) -> None:
    if backend.score.__func__ is not Backend.score:
        pytest.skip("an option of the call, which an exported program has not")
    dtype = backend.usual_dtype
    given = backend.asarray([math.inf, 0.0, -math.inf, 1.5, math.nan], dtype)
    normalizer = fitted(backend, dtype, kind)
    found = [
        backend.to_numpy(normalizer(given, extras=(name,), finite=finite)[f"pred_scores_{name}"])
        for finite in (False, True)
    ]
    largest = oracle.largest(oracle.arithmetic(dtype))
    np.testing.assert_array_equal(found[1], np.clip(found[0], -largest, largest))
    assert np.isinf(found[0]).sum() == (3 if name == "z" else 2)
    assert np.isnan(found[1][4])


@pytest.mark.clause("L5", "N6")
@pytest.mark.parametrize("kind", ["two-slope", "cdf"])
def test_l5_missing_scores_are_the_maximum_of_the_defined_pixels(backend: Backend, kind: str) -> None:
    if backend.score.__func__ is not Backend.score:
        pytest.skip("a batch of its own would be compiled for it")
    dtype = backend.usual_dtype
    maps = np.ones((3, 2, 3))
    maps[0, 0, 0], maps[0, 1, 2], maps[1] = math.nan, 3.0, math.nan
    normalizer = fitted(backend, dtype, kind)
    found = normalizer(None, backend.asarray(maps, dtype))
    expected = normalizer(backend.asarray([3.0, math.nan, 1.0], dtype))
    for name in ("pred_scores", "pred_labels"):
        np.testing.assert_array_equal(backend.to_numpy(found[name]), backend.to_numpy(expected[name]))


@pytest.mark.clause("L5")
@pytest.mark.parametrize("kind", ["two-slope", "cdf"])
def test_l5_either_may_be_missing(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    scores, maps = sample(dtype)
    normalizer = fitted(backend, dtype, kind)
    alone = backend.score(normalizer, backend.asarray(scores, dtype))
    assert set(alone) == {"pred_scores", "pred_labels"}
    column = backend.score(normalizer, backend.asarray(np.reshape(scores, (16, 1)), dtype))
    for name in alone:
        assert backend.describe(column[name]).shape == (16, 1)
        assert np.array_equal(*(backend.to_numpy(r[name]).ravel() for r in (alone, column)), equal_nan=True)
    maps[3] = 1.0
    both = backend.score(normalizer, None, backend.asarray(maps, dtype))
    largest = backend.score(normalizer, backend.asarray(maps.reshape(16, -1).max(axis=1), dtype))
    assert read(backend, both, "pred_scores") == read(backend, largest, "pred_scores")
    assert backend.describe(both["anomaly_maps"]).shape == (16, 1, 2, 3)
    three = backend.score(normalizer, None, backend.asarray(maps[:, 0], dtype))
    assert backend.describe(three["pred_masks"]).shape == (16, 2, 3)


@pytest.mark.clause("L5")
@pytest.mark.parametrize("kind", ["two-slope", "cdf-pixel"])
def test_l5_padding_is_never_flagged(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    _, maps = sample(dtype)
    arrays = backend.asarray(np.full(16, 100.0), dtype), backend.asarray(maps + 50.0, dtype)
    valid = np.arange(16) % 3 > 0
    normalizer = fitted(backend, dtype, kind)
    usual, padded = normalizer(*arrays), normalizer(*arrays, valid=backend.asarray(valid, "bool"))
    for name in ("pred_scores", "anomaly_maps"):
        assert np.array_equal(*(backend.to_numpy(result[name]) for result in (usual, padded)), equal_nan=True)
    assert read(backend, padded, "pred_labels") == [valid.tolist()]
    masks = backend.to_numpy(padded["pred_masks"])
    assert not masks[~valid].any()
    assert np.array_equal(masks[valid], backend.to_numpy(usual["pred_masks"])[valid])


@pytest.mark.clause("L5", "N8", "S8", "T4")
def test_l5_wrong_inputs_are_refused(backend: Backend) -> None:
    dtype = backend.usual_dtype
    scores, maps = backend.asarray([1.0, 2.0], dtype), backend.asarray(np.ones((2, 2, 3)), dtype)
    one_each = backend.asarray([1.0, 2.0], oracle.arithmetic(dtype))
    for kind in ("min-max", "two-slope", "cdf"):
        normalizer = fitted(backend, dtype, kind)
        with pytest.raises(OutputError, match="got neither"):
            normalizer()
        with pytest.raises(OutputError, match="got neither"):
            normalizer.denormalize()
        with pytest.raises(OutputError, match=r"give outputs.get..pred_scores"):
            normalizer({"pred_scores": scores})
        with pytest.raises(OutputError, match=r"shape \(2, 2, 3\)"):
            normalizer(maps)
        with pytest.raises(OutputError, match="2 image scores but 3"):
            normalizer(scores, backend.asarray(np.ones((3, 2, 3)), dtype))
        with pytest.raises(OutputError, match="2 image scores but 3"):
            normalizer.denormalize(scores, backend.asarray(np.ones((3, 2, 3)), dtype))
        with pytest.raises(OutputError, match="no pixel"):
            normalizer(anomaly_maps=backend.asarray(np.ones((2, 1, 2, 0)), dtype))
        with pytest.raises(OptionError, match=r"threshold has shape \(2,\)"):
            normalizer(scores, maps, threshold=one_each)  # would fall on the columns of the maps
        with pytest.raises(OptionError, match="has no 'q'"):
            normalizer(scores, extras=["q"])
    with pytest.raises(ResolutionError, match=r"3, 2.*\(2, 3\)"):
        fitted(backend, dtype, "cdf")(scores, backend.asarray(np.ones((2, 3, 2)), dtype))
    with pytest.raises(OptionError, match="no 'z'"):
        fitted(backend, dtype, "min-max")(scores, extras="z")
    images_only = backend.normalizer.min_max(RANGE, threshold=1.0)
    with pytest.raises(NotFittedError, match="pixel-level statistics have seen no value"):
        images_only(scores, maps)
    with pytest.raises(OptionError, match=r"pixel_threshold=.* is given, but no statistics of maps"):
        backend.normalizer.min_max(RANGE, threshold=1.0, pixel_threshold=2.0)


@pytest.mark.clause("N8", "S7")
def test_n8_a_normalizer_needs_fitted_statistics(backend: Backend) -> None:
    make = backend.normalizer
    if "kernels" in backend.parts:  # about records, which an exported program does not have
        with pytest.raises(NotFittedError, match="image-level statistics have seen no value"):
            make.min_max(backend.min_max.init(), threshold=1.0)
        one = backend.cdf.update(backend.cdf.init(), backend.asarray([1.0], backend.usual_dtype))
        with pytest.raises(InsufficientDataError, match="at least 2"):
            make.cdf(one, threshold=1.0)
        for kind, make_of in (("min-max", make.min_max), ("normal", partial(make.cdf, transform="identity"))):
            with pytest.raises(OptionError, match=f"ScoreDistribution is no record of {kind} normalization"):
                make_of(one, threshold=1.0)
        two = backend.normal.update(backend.normal.init(), backend.asarray([1.0, -2.0], backend.usual_dtype))
        with pytest.raises(OptionError, match="RawScoreDistribution is no record of cdf normalization"):
            make.cdf(two, threshold=1.0)
        assert make.cdf(two, threshold=1.0, transform="identity").to_fit().method.name == "normal"
    with pytest.raises(NotFittedError, match="image_min is not finite"):
        make.min_max((math.inf, -math.inf), threshold=1.0)
    for wrong in ((0.0, -1.0), (0.0, 1.0, 2.0), "ab", 3.0):
        with pytest.raises(OptionError, match=r"std is negative|parameters|statistics are a record"):
            make.cdf(wrong, threshold=1.0)
    with pytest.raises(OptionError, match=r"pixel_mean has shape \(\)"):
        make.cdf((0.0, 1.0), (0.0, 1.0), threshold=1.0)
    with pytest.raises(OptionError, match="threshold is missing"):
        make.cdf((0.0, 1.0), threshold=None)
    with pytest.raises(OptionError, match=r"method='magic' is unknown; there are 'min-max', 'two-slope', 'cdf'"):
        make.of("magic", (0.0, 1.0), threshold=1.0)
    for option, value in (("center", "nowhere"), ("transform", "sqrt")):
        with pytest.raises(OptionError, match=f"{option}='{value}' is not an option"):
            make.cdf((0.0, 1.0), threshold=1.0, **{option: value})
    fit = make.min_max(RANGE, threshold=1.0).to_fit()
    assert make.from_fit(fit).thresholds["image"].raw == 1.0
    with pytest.raises(NotFittedError, match="no image-level threshold"):
        make.from_fit(replace(fit, image=replace(fit.image, threshold=None)))
    with pytest.raises(NotFittedError, match="nothing has been fitted yet"):
        make.from_fit(replace(fit, image=None))


@pytest.mark.clause("N11", "N4")
@KINDS
def test_n11_denormalize(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    normalizer = fitted(backend, dtype, kind)
    units = [0.0, 0.03, 0.4, 0.5, 0.6, 0.97]
    maps = np.reshape(units, (1, 1, 2, 3))
    given = backend.asarray(units, dtype), backend.asarray(maps, dtype)
    values = normalizer.denormalize(given[0]) | normalizer.denormalize(anomaly_maps=given[1])
    assert set(values) == {"pred_scores", "anomaly_maps"}
    back = normalizer(values["pred_scores"])
    assert read(backend, back, "pred_scores")[0] == pytest.approx(units, abs=1e-5)
    back = normalizer(anomaly_maps=values["anomaly_maps"])
    assert read(backend, back, "anomaly_maps")[0] == pytest.approx(units, abs=1e-5)
    both = normalizer.denormalize(given[0][:1], given[1])
    assert read(backend, both, "anomaly_maps") == read(backend, values, "anomaly_maps")
