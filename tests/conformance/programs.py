"""Programs that run everything on one corpus, for variants that have to give what another one gives.

Compiling takes a hundred times as long as computing. So a variant (compiled, exported, ...) that is made from the same
source as a reference (eager) is compiled once for each dtype, as a program of all functions, and its results are
compared with those of the reference, which every other test compares with the oracle.

A program is a function of what stays (empty records, fitted normalizers) and of inputs by name, all of them arrays, the
parameters of shape (), so that other parameters compile nothing anew. Its results have names too.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from conformance import oracle
from conformance.assertions import neighbours, random_values
from conformance.backend import Backend
from conformance.test_normalizer import sample

SIZE = 256  # of a batch of scores
MAPS = (4, 1, 3, 5)
Inputs = dict[str, Any]
Results = dict[str, Any]
Program = Callable[[Any, Inputs], Results]

# Which clauses the results are about whose names begin with this.
CLAUSES: dict[str, tuple[str, ...]] = {
    "flag": ("N4", "N6"),
    "min_max.normalize": ("N1", "N4", "N5", "N6", "N7", "N8", "N12", "N13"),
    "min_max.margin": ("N10", "N12"),
    "min_max.denormalize": ("N11",),
    "two_slope": ("N1b", "N4", "N5", "N6", "N7", "N8", "N11", "N12", "N13"),
    "cdf.standardize": ("N2", "N6", "N7", "N8", "N12", "N13"),
    "cdf.normalize": ("N3", "N4", "N5", "N6", "N7", "N8", "N12", "N13"),
    "cdf.sigmas": ("N4b",),
    "cdf.denormalize": ("N11",),
    "normal.standardize": ("N3b", "N6", "N7", "N8", "N12", "N13"),
    "normal.normalize": ("N3b", "N4", "N5", "N6", "N7", "N8", "N12", "N13"),
    "normal.denormalize": ("N11",),
    "min_max.update": ("S1", "S2", "S6"),
    "cdf.update": ("S1", "S3", "S4", "S6"),
    "normal.update": ("S1", "S3", "S4", "S6"),
    "threshold.update": ("S1", "T5"),
    "normalizer": ("N1", "N1b", "N2", "N3", "N3b", "N4", "N6", "N10", "N12", "N13", "T4", "T6", "P4"),
}


class Case(NamedTuple):
    """One set of parameters, rounded to the dtype in which they are kept."""

    name: str
    threshold: float  # raw, for min-max
    low: float
    high: float
    mean: float
    std: float
    center: float
    sigmas: float


_NAN, _INF = math.nan, math.inf
CASES = (
    Case("usual", 0.5, -7.0, 50.0, 0.0, 1.0, 0.25, 0.0),
    Case("thresholds of no binary type", 0.1, 0.0, 1e-3, 1.5, 0.3, 0.0, 0.1),
    Case("negative", -3.0, -7.0, 50.0, -4.0, 0.02, 1.25, -1.5),
    Case("narrow", 1000.0, 999.0, 1001.5, 0.35, 3.5e-4, 0.35, 3.0),
    Case("constant", 20.0, 20.0, 20.0, math.log(20.0), 0.0, math.log(20.0), 0.0),
    Case("wide", 0.0, -3e38, 3.2e38, 5.0, 80.0, -2.0, 0.3),
    Case("unfitted", 0.5, _INF, -_INF, _NAN, _NAN, 0.0, math.pi),
    Case("backwards", 0.5, 0.75, 0.25, 0.125, _NAN, 64.0, -9.0),
)


def corpus(case: Case, dtype: str) -> Inputs:
    """Scores near the thresholds, near where they are flagged, far out, and those that are no numbers."""
    rng = np.random.default_rng(17)
    kept = oracle.arithmetic(dtype)
    rounded = {name: oracle.rounded(value, kept) for name, value in case._asdict().items() if name != "name"}
    odd = [_NAN, _INF, -_INF, 0.0, -0.0, -1.0, oracle.largest(dtype), -oracle.largest(dtype)]
    odd += [oracle.smallest_normal(dtype), 1.0, oracle.next_up(1.0, dtype)]
    mean, std = (value if math.isfinite(value) else 1.0 for value in (case.mean, case.std))
    low, high = (value if math.isfinite(value) else 1.0 for value in (case.low, case.high))
    binades = [case.threshold + sign * 2.0**-e for e in range(0, 60, 2) for sign in (-1, 1)]
    x = [*odd, *around(case.threshold, dtype), *neighbours(low, dtype, 2), *neighbours(high, dtype, 2)]
    x += random_values(dtype, np.array([*binades, *rng.uniform(min(low, high), max(low, high), 50)]))
    raw = oracle.rounded(float(np.exp(np.clip(mean + std * case.sigmas, -80, 80))), kept)
    near = np.exp(np.clip(rng.normal(mean, 2 * min(std, 8.0), SIZE), -80, 80))
    far = [raw * (1 + sign * 2.0**-e) for e in range(1, 24) for sign in (-1, 1)] + [
        raw * 2.0**e for e in range(-40, 40, 5)
    ]
    positive = [*odd, *around(raw, dtype), *random_values(dtype, np.append(far, near))]
    z = [*odd, *around(case.sigmas, dtype)]
    z += random_values(dtype, np.array([*np.linspace(-40, 40, 60), *rng.normal(case.sigmas, 3, SIZE)]))
    unit = random_values(dtype, np.array([0.0, 0.5, 1.0, -0.25, 1.5, _NAN, _INF, *np.linspace(0.001, 0.999, SIZE - 7)]))
    maps = np.exp(rng.normal(min(abs(mean), 2.0), 0.7, MAPS))
    maps.flat[:5] = 0.0, _NAN, _INF, -1.0, 2.0
    shape = MAPS[-2:]
    scores = {
        "x": np.array((x + random_values(dtype, near))[:SIZE]),
        "positive": np.array(positive[:SIZE]),
        "z": np.array(z[:SIZE]),
        "unit": np.array(unit),
        "maps": np.reshape(random_values(dtype, maps.ravel()), MAPS),
        # The deviation is a thousandth of the mean: what a naive accumulator loses first (clause S4).
        "steady": np.array(random_values(dtype, np.exp(rng.normal(5.0, 5e-3, SIZE)))),
    }
    parameters: Inputs = {name: np.float64(value) for name, value in rounded.items()} | {
        "raw": np.float64(raw),
        "pixel_mean": np.reshape(random_values(kept, rng.normal(0.5, 0.2, 15)), shape),
        "pixel_std": np.reshape(random_values(kept, rng.uniform(0.2, 0.6, 15)), shape),
        "pixel_raw": np.reshape(random_values(kept, rng.uniform(1.0, 3.0, 15)), shape),
    }
    selections: Inputs = {
        "where": rng.random(SIZE) < 0.7,
        "labels": rng.random(SIZE) < 0.3,
        "map_where": np.array([True, False, True, True]),
        "masks": rng.random(MAPS) < 0.3,
        "marks": rng.choice([-1.0, 0.0, 1.0, 2.0, math.nan], SIZE),
    }
    return scores | parameters | selections


def around(value: float, dtype: str) -> list[float]:
    """A number of the kind that parameters are, and its neighbours."""
    return neighbours(oracle.rounded(value, oracle.arithmetic(dtype)), dtype, 12)


_SCORES = ("x", "positive", "z", "unit", "maps", "steady", "pred_scores", "anomaly_maps")


def as_arrays(backend: Backend, inputs: Inputs, dtype: str) -> Inputs:
    """The inputs in the backend's arrays: scores in ``dtype``, parameters in that in which they are kept."""

    def converted(name: str, value: Any) -> Any:
        if np.asarray(value).dtype == bool:
            return backend.asarray(value, "bool")
        return backend.asarray(value, dtype if name in _SCORES else oracle.arithmetic(dtype))

    return {name: converted(name, value) for name, value in inputs.items()}


def empty_records(backend: Backend) -> dict[str, Any]:
    """What the program of all kernels starts from."""
    records = {"range": backend.min_max.init(), "moments": backend.cdf.init(), "maps": backend.cdf.init(MAPS[-2:])}
    records["raw maps"] = backend.normal.init(MAPS[-2:])
    return records | ({"histogram": backend.threshold.init()} if "histogram" in backend.parts else {})


def kernels(backend: Backend) -> Program:
    """Every function of the parts "kernels" and "histogram" that works on batches."""
    min_max, two_slope, threshold = backend.min_max, backend.two_slope, backend.threshold
    cdf, normal = backend.cdf, backend.normal

    def program(empty: dict[str, Any], given: Inputs) -> Results:
        x, positive, z, unit, maps = (given[name] for name in ("x", "positive", "z", "unit", "maps"))
        t, limits, raw, center = given["threshold"], (given["low"], given["high"]), given["raw"], given["center"]
        moments, pixels = (given["mean"], given["std"]), (given["pixel_mean"], given["pixel_std"])
        results = {
            "flag": threshold.flag(x, t),
            "flag raw": threshold.flag(positive, raw),
            "flag z": threshold.flag(z, given["sigmas"]),
            "min_max.normalize": min_max.normalize(x, t, *limits),
            "min_max.normalize maps": min_max.normalize(maps, t, *limits),
            "min_max.margin": min_max.margin(x, t, *limits),
            "min_max.denormalize": min_max.denormalize(unit, t, *limits),
            "two_slope.normalize": two_slope.normalize(x, t, *limits),
            "two_slope.denormalize": two_slope.denormalize(unit, t, *limits),
            "cdf.standardize": cdf.standardize(positive, *moments),
            "cdf.standardize center": cdf.standardize(positive, *moments, center_at=center),
            "cdf.standardize maps": cdf.standardize(maps, *pixels),
            "cdf.normalize": cdf.normalize(positive, raw, *moments),
            "cdf.normalize maps": cdf.normalize(maps, given["pixel_raw"], *pixels, center_at=center),
            "cdf.sigmas": cdf.normalize_standardized(z, given["sigmas"]),
            "cdf.denormalize": cdf.denormalize(unit, raw, *moments),
            "normal.standardize": normal.standardize(x, *moments, center_at=center),
            "normal.normalize": normal.normalize(x, t, *moments),
            "normal.normalize maps": normal.normalize(maps, given["pixel_raw"], *pixels, center_at=center),
            "normal.denormalize": normal.denormalize(unit, t, *moments),
        }
        records = {
            "min_max.update": min_max.update(empty["range"], x, where=given["where"]),
            "min_max.update maps": min_max.update(empty["range"], maps, where=given["map_where"]),
            "cdf.update": cdf.update(empty["moments"], x, where=given["where"]),
            "cdf.update maps": cdf.update(empty["maps"], maps, where=given["map_where"]),
            "cdf.update steady": cdf.update(cdf.update(empty["moments"], given["steady"]), given["steady"]),
            "normal.update maps": normal.update(empty["raw maps"], maps, where=given["map_where"]),
        }
        records["min_max.update again"] = min_max.merge(records["min_max.update maps"], records["min_max.update"])
        records["cdf.update again"] = cdf.merge(cdf.update(records["cdf.update"], abs(z)), records["cdf.update"])
        if "histogram" in empty:
            first = threshold.update(empty["histogram"], x, given["labels"], where=given["where"])
            second = threshold.update(first, maps, given["masks"])
            records["threshold.update"] = threshold.merge(second, first)
            records["threshold.update ignored"] = threshold.update(empty["histogram"], x, given["marks"])
        return results | {
            f"{name}.{field}": value for name, record in records.items() for field, value in record._asdict().items()
        }

    return program


# Each kind of normalizer with its own thresholds, with those of the call, or with one that the other level follows.
CALLS = {
    "min-max": (("threshold", "pixel_threshold"), ("margin",)),
    "two-slope-follows": (("threshold",), ()),
    "cdf": ((), ("z",)),
    "cdf-pixel": (("threshold", "pixel_thresholds"), ()),
    "cdf-follows": (("threshold",), ()),
    "normal": (("threshold",), ("z",)),
}


def normalizers(fitted: Mapping[str, Any], given: Inputs) -> Results:
    """What the fitted normalizers say."""
    arrays = given["pred_scores"], given["anomaly_maps"]
    results = {}
    for kind, normalizer in fitted.items():
        thresholds, extras = CALLS[kind]
        inputs = {name.removesuffix("s"): given[name] for name in thresholds}
        found = normalizer(*arrays, **inputs, extras=extras)
        results |= {f"normalizer {kind}/{field}": value for field, value in found.items()}
    return results


def normalizer_inputs(backend: Backend, dtype: str) -> Iterator[Inputs]:
    """Batches of two sizes, the second around several thresholds, image scores and pixels alike."""
    scores, maps = sample(dtype)
    for t in (1.75, 0.1, 0.7):
        values = neighbours(oracle.rounded(t, oracle.arithmetic(dtype)), dtype, 40)
        near = np.repeat(np.reshape(values, (-1, 1, 1, 1)), 6, axis=1).reshape(-1, 1, 2, 3)
        for given_scores, given_maps in ((scores, maps), (values, near)):
            inputs = {"pred_scores": np.array(given_scores), "anomaly_maps": given_maps}
            limits = {name: np.float64(t) for name in ("threshold", "pixel_threshold")}
            limits["pixel_thresholds"] = t * np.array([[1.0, 1.0, 0.5], [1.0, 2.0, 1.0]])
            yield as_arrays(backend, inputs | limits, dtype)


def tolerances(name: str, case: Case | None, expected: np.ndarray, dtype: str) -> Any:
    """How far a variant's results may be from its reference's: the bounds of both (clauses N12, N13).

    Args:
        name: of the results.
        case: of the parameters, for the kernels.
        expected: the reference's results.
        dtype: of the scores.
    """
    kept = oracle.arithmetic(dtype)
    size = np.maximum(np.abs(np.nan_to_num(expected, posinf=0.0, neginf=0.0)), oracle.smallest_normal(kept))
    ulps = np.ldexp(1.0, np.frexp(size)[1] - 1) * oracle.ulp(1.0, kept)
    if name.startswith("normal.standardize") or ("normal/" in name and "_z" in name):
        return 2 * (4 * ulps + oracle.smallest_normal(kept) / (case.std if case is not None and case.std > 0 else 0.2))
    if "_z" in name or "standardize" in name:
        std = case.std if case is not None and "maps" not in name and case.std > 0 else 0.2
        logs = 4 * oracle.ulp(100.0, "float64") / std if dtype == "float64" else 2.0**-30 / std
        return 2 * (4 * ulps + logs)
    if "margin" in name:
        return 4 * ulps
    if case is not None and name in ("min_max.denormalize", "two_slope.denormalize"):
        return (
            8
            * oracle.ulp(1.0, kept)
            * np.nanmax(np.abs(np.nan_to_num([case.threshold, case.high - case.low], posinf=0.0)))
        )
    if case is not None and name == "normal.denormalize":
        largest = np.nan_to_num(abs(case.threshold)) + 8 * np.nan_to_num(case.std)
        return 64 * oracle.ulp(1.0, kept) * largest
    if case is not None and name == "cdf.denormalize":
        return size * (64 * np.nan_to_num(case.std) + 64) * oracle.ulp(1.0, kept)
    return oracle.unit_bound(dtype)
