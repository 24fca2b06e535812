"""The fitted normalizer, also exported: clauses N3, N4, N6, N7 and N10 from raw scores, T4, T6, L5, N8, S8."""

import math
from typing import Any

import numpy as np
import pytest

from anomnorm_core import InsufficientDataError, NotFittedError, OptionError, OutputError, ResolutionError
from conformance import oracle
from conformance.assertions import assert_close, random_values, unit_tolerance
from conformance.backend import Backend

pytestmark = pytest.mark.needs("normalizer")

# One image-level and one pixel-level set of statistics; all are numbers of float32.
RANGE, PIXEL_RANGE = (0.25, 4.0), (-1.0, 6.5)
MOMENTS = (0.125, 0.375)
PIXEL_MEAN = np.linspace(-0.5, 0.5, 6, dtype=np.float32).astype(np.float64).reshape(2, 3)
PIXEL_STD = np.linspace(0.25, 0.75, 6, dtype=np.float32).astype(np.float64).reshape(2, 3)
IMAGE_THRESHOLD, PIXEL_THRESHOLD = 1.75, 2.25

_KEPT: dict[tuple[str, str, str], Any] = {}


def fitted(backend: Backend, dtype: str, kind: str) -> Any:
    """A normalizer; the same one for all tests of a backend and dtype, because exporting takes a while."""
    key = (backend.id, dtype, kind)
    if key not in _KEPT:
        own = None if kind.endswith("follows") else PIXEL_THRESHOLD
        if kind.startswith("min-max"):
            made = backend.normalizer.min_max(RANGE, PIXEL_RANGE, threshold=IMAGE_THRESHOLD, pixel_threshold=own)
        else:
            made = backend.normalizer.cdf(
                MOMENTS,
                (PIXEL_MEAN, PIXEL_STD),
                threshold=IMAGE_THRESHOLD,
                pixel_threshold=own,
                units="raw" if kind == "cdf-raw" else "decision",
                center="pixel" if kind == "cdf-pixel" else "image",
            )
        _KEPT[key] = made
    return _KEPT[key]


KINDS = pytest.mark.parametrize("kind", ["min-max", "cdf", "cdf-raw", "cdf-pixel"])


def z_of(kind: str, x: float, pixel: int | None) -> float:
    """The exact value in decision space."""
    if kind.startswith("min-max"):
        return x
    mean, std = MOMENTS
    if pixel is not None:
        std = float(PIXEL_STD.ravel()[pixel % 6])
        mean = float(PIXEL_MEAN.ravel()[pixel % 6]) if kind == "cdf-pixel" else mean
    return float(oracle.z_score(x, mean, std))


def expected(kind: str, x: float, threshold: float, pixel: int | None = None) -> float:
    if kind.startswith("min-max"):
        return oracle.min_max(x, threshold, *(RANGE if pixel is None else PIXEL_RANGE))
    z = z_of(kind, x, pixel)
    return math.nan if math.isnan(z) else oracle.cdf(z, threshold)


def tolerance(backend: Backend, dtype: str, z: float) -> float:
    # N13 of the unit score, and an ulp of the z-score before it (N2), where the density is 0.4 at most.
    size = abs(z) if math.isfinite(z) else 1.0
    return unit_tolerance(dtype) + 0.4 * 2 * oracle.ulp(size, dtype) + backend.tail_error


def sample(dtype: str) -> tuple[list[float], np.ndarray]:
    rng = np.random.default_rng(6)
    scores = [*random_values(dtype, np.exp(rng.normal(0.1, 0.8, size=11))), 0.0, -1.0, math.inf, -math.inf, math.nan]
    maps = np.reshape(random_values(dtype, np.exp(rng.normal(0.2, 0.7, size=16 * 6))), (16, 1, 2, 3))
    maps[3, 0, 1] = math.nan, 0.0, math.inf
    return scores, maps


@pytest.mark.clause("N3", "N4", "N6")
@KINDS
def test_n3_scores_and_maps_to_unit_scores_and_decisions(backend: Backend, dtype: str, kind: str) -> None:
    scores, maps = sample(dtype)
    arrays = backend.asarray(scores, dtype), backend.asarray(maps, dtype)
    result = backend.score(fitted(backend, dtype, kind), *arrays)
    assert set(result) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
    t = z_of("cdf", IMAGE_THRESHOLD, None) if kind == "cdf-raw" else IMAGE_THRESHOLD
    assert_close(
        backend,
        result["pred_scores"],
        [expected(kind, x, t) for x in scores],
        [tolerance(backend, dtype, z_of(kind, x, None)) for x in scores],
        scores,
    )
    pixels = maps.ravel().tolist()
    assert_close(
        backend,
        result["anomaly_maps"],
        [expected(kind, x, PIXEL_THRESHOLD, i) for i, x in enumerate(pixels)],
        [tolerance(backend, dtype, z_of(kind, x, i)) for i, x in enumerate(pixels)],
        pixels,
    )
    for unit, flagged, given in (("pred_scores", "pred_labels", arrays[0]), ("anomaly_maps", "pred_masks", arrays[1])):
        assert backend.describe(result[unit]) == backend.describe(given)
        assert backend.describe(result[flagged]) == backend.describe(given)._replace(dtype="bool")
        units = backend.to_numpy(result[unit])
        assert np.array_equal(units >= 0.5, backend.to_numpy(result[flagged]))
    flags = backend.to_numpy(result["pred_labels"]).tolist()
    limit = IMAGE_THRESHOLD if kind in ("min-max", "cdf-raw") else float(np.exp(MOMENTS[0] + MOMENTS[1] * t))
    assert flags == [x >= limit for x in scores]


@pytest.mark.clause("N4", "T4")
@KINDS
@pytest.mark.parametrize("threshold", [0.1, 1.0, 1.75, math.pi, -0.7])
def test_n4_in_the_neighbourhood_of_a_threshold_given_with_the_call(
    backend: Backend, dtype: str, kind: str, threshold: float
) -> None:
    # One exported program serves all thresholds: they are inputs.
    t = oracle.rounded(threshold, oracle.arithmetic(dtype))
    center = t if kind == "min-max" else math.exp(MOMENTS[0] + MOMENTS[1] * t)
    values = [oracle.rounded(center, dtype)]
    for _ in range(60):
        values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
    maps = np.repeat(np.reshape(values, (-1, 1, 1, 1)), 6, axis=1).reshape(-1, 1, 2, 3)
    result = backend.score(
        fitted(backend, dtype, kind),
        backend.asarray(values, dtype),
        backend.asarray(maps, dtype),
        threshold=backend.asarray(t, oracle.arithmetic(dtype)),
        pixel_threshold=backend.asarray(t, oracle.arithmetic(dtype)),
    )
    for unit, flagged in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
        units, flags = backend.to_numpy(result[unit]), backend.to_numpy(result[flagged])
        assert np.array_equal(units >= 0.5, flags)
    if kind == "min-max":
        assert backend.to_numpy(result["pred_labels"]).tolist() == [x >= t for x in values]
        units = backend.to_numpy(result["pred_scores"]).tolist()
        assert all(unit == 0.5 for x, unit in zip(values, units, strict=True) if x == t)


@pytest.mark.clause("N4", "P2")
def test_n4_a_raw_threshold_decides_on_raw_scores(backend: Backend, dtype: str) -> None:
    values = [oracle.rounded(IMAGE_THRESHOLD, dtype)]
    for _ in range(100):
        values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
    maps = backend.asarray(np.ones((len(values), 1, 2, 3)), dtype)
    result = backend.score(fitted(backend, dtype, "cdf-raw"), backend.asarray(values, dtype), maps)
    units = backend.to_numpy(result["pred_scores"]).tolist()
    assert backend.to_numpy(result["pred_labels"]).tolist() == [x >= IMAGE_THRESHOLD for x in values]
    assert [unit >= 0.5 for unit in units] == [x >= IMAGE_THRESHOLD for x in values]
    assert units[100] == 0.5


@pytest.mark.clause("T4", "T6")
@pytest.mark.parametrize("kind", ["min-max", "min-max-follows", "cdf", "cdf-follows"])
def test_t4_thresholds_of_a_call_and_who_follows_whom(backend: Backend, dtype: str, kind: str) -> None:
    scores, maps = sample(dtype)
    arrays = backend.asarray(scores, dtype), backend.asarray(maps, dtype)
    normalizer = fitted(backend, dtype, kind)
    own = IMAGE_THRESHOLD if kind.endswith("follows") else PIXEL_THRESHOLD
    cases: list[tuple[float | None, float | None, float, float]] = [
        (None, None, IMAGE_THRESHOLD, own),
        (0.5, None, 0.5, 0.5 if kind.endswith("follows") else own),
        (0.5, 3.0, 0.5, 3.0),
        (None, 3.0, IMAGE_THRESHOLD, 3.0),
    ]
    for threshold, pixel_threshold, image_t, pixel_t in cases:
        given = {"threshold": threshold, "pixel_threshold": pixel_threshold}
        inputs = {name: backend.asarray(t, oracle.arithmetic(dtype)) for name, t in given.items() if t is not None}
        result = backend.score(normalizer, *arrays, **inputs)
        with_own = backend.normalizer.with_threshold(normalizer, threshold, pixel_threshold)
        same = with_own(*arrays)
        image = [z_of(kind, x, None) for x in scores]
        pixels = [z_of(kind, x, i) for i, x in enumerate(maps.ravel().tolist())]
        for exact, wanted_t, flagged in ((image, image_t, "pred_labels"), (pixels, pixel_t, "pred_masks")):
            flags = backend.to_numpy(result[flagged]).ravel().tolist()
            clear = [abs(z - wanted_t) > 1e-3 for z in exact]  # half types round z
            found = [flag for flag, far in zip(flags, clear, strict=True) if far]
            assert found == [z >= wanted_t for z, far in zip(exact, clear, strict=True) if far]
            assert np.array_equal(backend.to_numpy(same[flagged]), backend.to_numpy(result[flagged]))


@pytest.mark.clause("T4")
@pytest.mark.parametrize("kind", ["min-max", "cdf", "cdf-raw"])
@pytest.mark.parametrize("unit", [0.2, 0.5, 0.7])
def test_t4_a_threshold_on_the_unit_scale(backend: Backend, kind: str, unit: float) -> None:
    dtype = backend.usual_dtype
    scores, maps = sample(dtype)
    arrays = backend.asarray(scores, dtype), backend.asarray(maps, dtype)
    normalizer = fitted(backend, dtype, kind)
    before = normalizer(*arrays)
    moved = normalizer.with_threshold(unit, unit, units="unit")
    after = moved(*arrays)
    for name, flagged in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
        units = backend.to_numpy(before[name])
        clear = ~(np.abs(units - unit) < 1e-5)
        assert np.array_equal(backend.to_numpy(after[flagged])[clear], (units >= unit)[clear])
    # What it was called before it is called again, and the old normalizer is as it was.
    assert np.array_equal(backend.to_numpy(normalizer(*arrays)["pred_labels"]), backend.to_numpy(before["pred_labels"]))
    for wrong in (0.0, 1.0, 1.2, -3.0):
        with pytest.raises(OptionError, match="between 0 and 1"):
            normalizer.with_threshold(wrong, units="unit")


@pytest.mark.clause("T4")
def test_t4_raw_units(backend: Backend) -> None:
    dtype = backend.usual_dtype
    scores = backend.asarray([2.9, 3.0, 3.1], dtype)
    for kind in ("min-max", "cdf", "cdf-raw"):
        moved = fitted(backend, dtype, kind).with_threshold(3.0, units="raw")
        result = moved(scores)
        assert backend.to_numpy(result["pred_labels"]).tolist() == [False, True, True]
        assert backend.to_numpy(result["pred_scores"])[1] == 0.5
    cdf = fitted(backend, dtype, "cdf")
    with pytest.raises(OptionError, match="every pixel has its own"):
        cdf.with_threshold(pixel_threshold=3.0, units="raw")
    with pytest.raises(OptionError, match="no logarithm"):
        cdf.with_threshold(-1.0, units="raw")
    for wrong in (math.nan, math.inf, "3"):
        with pytest.raises(OptionError, match="threshold"):
            cdf.with_threshold(wrong)
    with pytest.raises(OptionError, match="units='sigma'"):
        cdf.with_threshold(2.0, units="sigma")


@pytest.mark.clause("N10", "L5")
@KINDS
def test_n10_extras(backend: Backend, dtype: str, kind: str) -> None:
    scores, maps = sample(dtype)
    arrays = backend.asarray(scores, dtype), backend.asarray(maps, dtype)
    name = "margin" if kind == "min-max" else "z"
    result = backend.score(fitted(backend, dtype, kind), *arrays, extras=(name,))
    keys = {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
    assert set(result) == keys | {f"pred_scores_{name}", f"anomaly_maps_{name}"}
    low, high = RANGE
    margin = [(x - IMAGE_THRESHOLD) / (high - low) for x in scores]
    image = margin if kind == "min-max" else [z_of(kind, x, None) for x in scores]
    low, high = PIXEL_RANGE
    pixels = maps.ravel().tolist()
    margin = [(x - PIXEL_THRESHOLD) / (high - low) for x in pixels]
    pixel = margin if kind == "min-max" else [z_of(kind, x, i) for i, x in enumerate(pixels)]
    for field, array, inputs, exact in (
        ("pred_scores", arrays[0], scores, image),
        ("anomaly_maps", arrays[1], pixels, pixel),
    ):
        found = result[f"{field}_{name}"]
        assert backend.describe(found) == backend.describe(array)
        sizes = [max(abs(value), 1.0) if math.isfinite(value) else 1.0 for value in exact]
        tolerances = [6 * oracle.ulp(size, dtype) for size in sizes]
        assert_close(backend, found, [oracle.rounded(value, dtype) for value in exact], tolerances, inputs)


@pytest.mark.clause("N10")
def test_n10_raw_values_are_not_copied(backend: Backend) -> None:
    if backend.score.__func__ is not Backend.score:
        pytest.skip("a compiled or exported program returns arrays of its own")
    dtype = backend.usual_dtype
    scores, maps = backend.asarray([1.0, 2.0], dtype), backend.asarray(np.ones((2, 2, 3)), dtype)
    for kind in ("min-max", "cdf"):
        result = fitted(backend, dtype, kind)(scores, maps, extras=["raw"])
        assert result["pred_scores_raw"] is scores
        assert result["anomaly_maps_raw"] is maps


@pytest.mark.clause("L5")
@pytest.mark.parametrize("kind", ["min-max", "cdf"])
def test_l5_either_may_be_missing(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    scores, maps = sample(dtype)
    normalizer = fitted(backend, dtype, kind)
    alone = backend.score(normalizer, backend.asarray(scores, dtype))
    assert set(alone) == {"pred_scores", "pred_labels"}
    maps[3] = 1.0
    both = backend.score(normalizer, None, backend.asarray(maps, dtype))
    largest = backend.score(normalizer, backend.asarray(maps.reshape(16, -1).max(axis=1), dtype))
    assert np.array_equal(backend.to_numpy(both["pred_scores"]), backend.to_numpy(largest["pred_scores"]))
    assert backend.describe(both["anomaly_maps"]).shape == (16, 1, 2, 3)
    three = backend.score(normalizer, None, backend.asarray(maps[:, 0], dtype))
    assert backend.describe(three["pred_masks"]).shape == (16, 2, 3)


@pytest.mark.clause("L5", "N8", "S8")
def test_l5_wrong_inputs_are_refused(backend: Backend) -> None:
    dtype = backend.usual_dtype
    scores, maps = backend.asarray([1.0, 2.0], dtype), backend.asarray(np.ones((2, 2, 3)), dtype)
    for kind in ("min-max", "cdf"):
        normalizer = fitted(backend, dtype, kind)
        with pytest.raises(OutputError, match="got neither"):
            normalizer()
        with pytest.raises(OutputError, match=r"give outputs.get..pred_scores"):
            normalizer({"pred_scores": scores})
        with pytest.raises(OutputError, match=r"shape \(2, 2, 3\)"):
            normalizer(maps)
        with pytest.raises(OutputError, match="2 image scores but 3"):
            normalizer(scores, backend.asarray(np.ones((3, 2, 3)), dtype))
        with pytest.raises(OutputError, match="no pixel"):
            normalizer(scores, backend.asarray(np.ones((2, 0, 3)), dtype))
        with pytest.raises(OutputError, match="no pixel"):
            normalizer(anomaly_maps=backend.asarray(np.ones((2, 1, 2, 0)), dtype))
    with pytest.raises(ResolutionError, match=r"3, 2.*\(2, 3\)"):
        fitted(backend, dtype, "cdf")(scores, backend.asarray(np.ones((2, 3, 2)), dtype))
    with pytest.raises(OptionError, match="no 'z'"):
        fitted(backend, dtype, "min-max")(scores, extras=["z"])
    with pytest.raises(OptionError, match="extras='q'"):
        fitted(backend, dtype, "cdf")(scores, extras=["q"])
    with pytest.raises(OptionError, match="no z-scores"):
        fitted(backend, dtype, "min-max").standardize(scores)
    for normalizer in (fitted(backend, dtype, "min-max"), fitted(backend, dtype, "cdf")):
        one_each = backend.asarray([1.0, 2.0], oracle.arithmetic(dtype))
        with pytest.raises(OptionError, match=r"threshold has shape \(2,\)"):
            normalizer(scores, maps, threshold=one_each)  # would fall on the columns of the maps
        with pytest.raises(OutputError, match="2 image scores but 3"):
            normalizer.denormalize(scores, backend.asarray(np.ones((3, 2, 3)), dtype))
    images_only = backend.normalizer.min_max(RANGE, threshold=1.0)
    with pytest.raises(NotFittedError, match="pixel-level statistics have seen no value"):
        images_only(scores, maps)


@pytest.mark.clause("N8", "S7")
def test_n8_a_normalizer_needs_fitted_statistics(backend: Backend) -> None:
    if "kernels" not in backend.parts:
        pytest.skip("about records, which an exported program does not have")
    make = backend.normalizer
    with pytest.raises(NotFittedError, match="image-level statistics have seen no value"):
        make.min_max(backend.min_max.init(), threshold=1.0)
    one = backend.cdf.update(backend.cdf.init(), backend.asarray([1.0], backend.usual_dtype))
    with pytest.raises(InsufficientDataError, match="at least 2"):
        make.cdf(one, threshold=1.0)
    with pytest.raises(OptionError, match="other method"):
        make.min_max(one, threshold=1.0)
    with pytest.raises(NotFittedError, match="image_min is not finite"):
        make.min_max((math.inf, -math.inf), threshold=1.0)
    with pytest.raises(OptionError, match="image_std is negative"):
        make.cdf((0.0, -1.0), threshold=1.0)
    with pytest.raises(OptionError, match=r"pixel_mean has shape \(\)"):
        make.cdf((0.0, 1.0), (0.0, 1.0), threshold=1.0)
    with pytest.raises(OptionError, match="threshold=None"):
        make.cdf((0.0, 1.0), threshold=None)


@pytest.mark.clause("N11", "N4")
@KINDS
def test_n11_denormalize(backend: Backend, kind: str) -> None:
    dtype = backend.usual_dtype
    normalizer = fitted(backend, dtype, kind)
    units = [0.0, 0.03, 0.4, 0.5, 0.6, 0.97]
    maps = np.reshape(units, (1, 1, 2, 3))
    raw = normalizer.denormalize(backend.asarray(units, dtype))
    assert set(raw) == {"pred_scores"}
    raw |= normalizer.denormalize(anomaly_maps=backend.asarray(maps, dtype))
    both = normalizer.denormalize(backend.asarray(units[:1], dtype), backend.asarray(maps, dtype))
    assert set(both) == set(raw) == {"pred_scores", "anomaly_maps"}
    back = normalizer(raw["pred_scores"], backend.asarray(np.repeat(maps, 6, axis=0), dtype))
    assert backend.to_numpy(back["pred_scores"]).tolist() == pytest.approx(units, abs=1e-5)
    pixels = normalizer(backend.asarray([1.0], dtype), raw["anomaly_maps"])
    assert backend.to_numpy(pixels["anomaly_maps"]).ravel().tolist() == pytest.approx(units, abs=1e-5)
    only = normalizer.denormalize(anomaly_maps=backend.asarray(maps, dtype))
    assert set(only) == {"anomaly_maps"}
    with pytest.raises(OutputError):
        normalizer.denormalize()


@pytest.mark.clause("N3", "L4")
@pytest.mark.parametrize("kind", ["cdf", "cdf-raw", "cdf-pixel"])
def test_n3_in_two_steps_as_in_one(backend: Backend, dtype: str, kind: str) -> None:
    scores, maps = sample(dtype)
    arrays = backend.asarray(scores, dtype), backend.asarray(maps, dtype)
    normalizer = fitted(backend, dtype, kind)
    one = normalizer(*arrays, extras=["z"])
    z = normalizer.standardize(*arrays)
    two = normalizer.normalize_standardized(z["pred_scores"], z["anomaly_maps"], extras=["z"])
    assert set(one) == set(two)
    for name, value in one.items():
        assert np.array_equal(backend.to_numpy(value), backend.to_numpy(two[name]), equal_nan=True), name
    assert np.array_equal(backend.to_numpy(z["pred_scores"]), backend.to_numpy(one["pred_scores_z"]), equal_nan=True)


def _auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of pairs of a normal and an anomaly in the right order, ties counting half."""
    normal, anomalous = scores[~labels], scores[labels]
    return float(np.mean((anomalous[:, None] > normal) + 0.5 * (anomalous[:, None] == normal)))


@pytest.mark.clause("N10")
@pytest.mark.dtypes(("float64", "float32"))
@pytest.mark.parametrize(("kind", "names"), [("min-max", ("margin",)), ("cdf", ("z",))])
def test_n10_auroc_of_extras_is_that_of_the_raw_scores(
    backend: Backend, dtype: str, kind: str, names: tuple[str, ...]
) -> None:
    # Many scores so far out that the unit score is exactly 1.
    rng = np.random.default_rng(7)
    labels = rng.random(400) < 0.5
    raw = np.array(random_values(dtype, np.exp(rng.normal(2.5 + 2.0 * labels, 2.0))))
    result = backend.score(fitted(backend, dtype, kind), backend.asarray(raw, dtype), extras=names)
    unit = backend.to_numpy(result["pred_scores"])
    assert np.sum(unit == 1.0) > 50
    assert _auroc(unit, labels) != _auroc(raw, labels)
    for name in names:
        extra = backend.to_numpy(result[f"pred_scores_{name}"])
        assert _auroc(extra, labels) == _auroc(raw, labels), name


@pytest.mark.clause("N7")
def test_n7_constant_populations(backend: Backend) -> None:
    dtype = backend.usual_dtype
    scores = backend.asarray([1.0, 2.0, 3.0], dtype)
    maps = backend.asarray(np.full((3, 2, 2), 2.0), dtype)
    two = np.full((2, 2), oracle.rounded(math.log(2.0), "float32"))
    for normalizer in (
        backend.normalizer.min_max((2.0, 2.0), (2.0, 2.0), threshold=2.0),
        backend.normalizer.cdf((two[0, 0], 0.0), (two, 0 * two), threshold=0.0),
        backend.normalizer.cdf((two[0, 0], 0.0), (two, 0 * two), threshold=2.0, units="raw", center="pixel"),
    ):
        result = backend.score(normalizer, scores, maps)
        assert backend.to_numpy(result["pred_scores"]).tolist() == [0.0, 0.5, 1.0]
        assert backend.to_numpy(result["pred_labels"]).tolist() == [False, True, True]
        assert set(backend.to_numpy(result["anomaly_maps"]).ravel().tolist()) == {0.5}
