"""Backends that are wrong on purpose, each in one way that somebody has shipped: the suite must fail them.

``MUTANTS`` maps a name to a backend class; ``KILLED_BY`` maps it to the clause that must notice. ``--backends mutants``
runs all of them, each on the tests whose names begin with that clause (its ``aim``).
"""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import erf

from anomnorm_core import cdf, min_max, threshold
from conformance.backend import CDF_FUNCTIONS, DECISION_FUNCTIONS, MIN_MAX_FUNCTIONS, THRESHOLD_FUNCTIONS
from conformance.backends.numpy_ import NumPy

Array = Any


def _min_max_normalize_as_published(x: Array, t: float, low: float, high: float) -> Array:
    t, low, high = (np.asarray(value, dtype=x.dtype) for value in (t, low, high))
    return np.clip((x - t) / (high - low) + x.dtype.type(0.5), 0, 1)


def _constant_is_half(x: Array, t: float, low: float, high: float) -> Array:
    return np.full_like(x, 0.5) if low == high else min_max.normalize(x, t, low, high)


def _unfitted_is_half(x: Array, t: float, low: float, high: float) -> Array:
    return np.full_like(x, 0.5) if low > high else min_max.normalize(x, t, low, high)


def _swapped_tails(x: Array, t: float, low: float, high: float) -> Array:
    return min_max.normalize(x, t, low, low + 2 * (high - low))


def _mutates_its_input(x: Array, t: float, low: float, high: float) -> Array:
    unit = min_max.normalize(x, t, low, high)
    x[...] = unit
    return x


def _widens(x: Array, t: float, low: float, high: float) -> Array:
    return min_max.normalize(x.astype(np.float64), t, low, high)


def _nan_is_flagged(x: Array, t: float) -> Array:
    return ~(x < t)


def _one_plus_erf(z: Array, t: float) -> Array:
    half = z.dtype.type(0.5)
    unit = half * (1 + erf((z - z.dtype.type(t)) * z.dtype.type(math.sqrt(0.5))))
    return np.where(z >= t, np.maximum(unit, half), np.minimum(unit, np.nextafter(half, z.dtype.type(0))))


def _cdf_as_published(z: Array, t: float) -> Array:
    return (0.5 * (1 + erf((z.astype(np.float64) - t) / math.sqrt(2)))).astype(z.dtype)


def _falsy_center(x: Array, mean: float, std: float, center_at: float | None = None) -> Array:
    return cdf.standardize(x, mean, std, center_at=center_at or None)


def _two_steps(x: Array, mean: float, std: float, center_at: float | None = None) -> Array:
    if x.dtype.kind != "f" or center_at is None:
        return cdf.standardize(x, mean, std)
    with np.errstate(all="ignore"):
        return ((np.log(x) - x.dtype.type(mean)) / x.dtype.type(std)) - (center_at - mean) / std


def _zero_score_is_nan(x: Array, mean: float, std: float, center_at: float | None = None) -> Array:
    z = cdf.standardize(x, mean, std, center_at)
    return np.where(x == 0, np.nan, z).astype(z.dtype)


def _broadcasts_statistics(x: Array, mean: Array, std: Array, center_at: Array | None = None) -> Array:
    if np.ndim(std) < 2:
        return cdf.standardize(x, mean, std, center_at)
    rows = (x.shape[-2:],)
    return cdf.standardize(x, *(np.resize(value, *rows) for value in (mean, std)), center_at=center_at)


def _ddof_0(record: Any, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    mean, std = cdf.mean_std(record, ddof=ddof, level=level)
    return mean, std * np.sqrt((record.count - 1) / record.count)


def _one_value_is_enough(record: Any, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    return (record.mean, record.m2) if np.all(record.count == 1) else cdf.mean_std(record, ddof=ddof, level=level)


def _forgets_counts(a: Any, b: Any) -> Any:
    return cdf.merge(a, b)._replace(count=a.count)


def _keeps_the_first_mean(a: Any, b: Any) -> Any:
    return cdf.merge(a, b)._replace(mean=np.where(a.count > 0, a.mean, b.mean))


def _difference_of_squares(record: Any, x: Array, *, where: Array | None = None) -> Any:
    updated = cdf.update(record, x, where=where)
    kept = x if where is None else x[where]
    if record.mean.shape or not np.all(np.isfinite(kept) & (kept > 0)):
        return updated
    logs = np.log(kept.astype(np.float32))
    m2 = np.float64(np.sum(logs * logs) - len(logs) * np.mean(logs) ** 2) if len(logs) else 0.0
    return cdf.merge(record, cdf.update(cdf.init(), kept)._replace(m2=np.asarray(m2)))


def _nan_poisons(record: Any, x: Array, *, where: Array | None = None) -> Any:
    updated = min_max.update(record, x, where=where)
    return updated._replace(min=updated.min + np.nan) if np.isnan(x).any() else updated


def _uncounted(record: Any, x: Array, *, where: Array | None = None) -> Any:
    return min_max.update(record, x, where=where)._replace(invalid=record.invalid)


def _ignores_where(record: Any, x: Array, *, where: Array | None = None) -> Any:
    del where
    return cdf.update(record, x)


def _grows(record: Any, x: Array, *, where: Array | None = None) -> Any:
    updated = cdf.update(record, x, where=where)
    if record.mean.shape:
        return updated
    stacked = updated._replace(invalid=np.append(record.invalid, 0))
    return stacked._replace(count=updated.count)


def _init_at_zero() -> Any:
    return min_max.init()._replace(min=np.asarray(0.0), max=np.asarray(0.0))


def _greater(x: Array, t: float) -> Array:
    return threshold.flag(x, t) & (x != np.asarray(t, dtype=x.dtype))


def _above_instead_of_at_least(scores: Array, labels: Array, *, normal_quantile: float = 1.0) -> Array:
    t = threshold.adaptive(scores, labels, normal_quantile=normal_quantile)
    return np.nextafter(t, np.asarray(np.inf, dtype=t.dtype)) if np.any(labels) else t


def _smallest_of_equals(scores: Array, labels: Array, *, normal_quantile: float = 1.0) -> Array:
    t = threshold.adaptive(scores, labels, normal_quantile=normal_quantile)
    wanted = np.asarray(labels) != 0
    best = 2 * np.sum(wanted & (scores >= t)) / (np.sum(scores >= t) + np.sum(wanted))
    equals = [x for x in scores if 2 * np.sum(wanted & (scores >= x)) / (np.sum(scores >= x) + np.sum(wanted)) == best]
    return np.asarray(min(equals), dtype=t.dtype) if wanted.any() and equals else t


def _minimum_without_anomalies(scores: Array, labels: Array, *, normal_quantile: float = 1.0) -> Array:
    if np.any(labels) or np.all(np.isnan(scores)):
        return threshold.adaptive(scores, labels, normal_quantile=normal_quantile)
    return np.nanmin(scores).astype(np.result_type(scores, np.float32))


def _largest_normal(scores: Array, quantile: float = 1.0, *, labels: Array | None = None) -> Array:
    t = threshold.normal_quantile(scores, quantile, labels=labels)
    return np.nextafter(t, np.asarray(-np.inf, dtype=t.dtype))


def _positive_scores_only(record: Any, x: Array, labels: Array | None = None, *, where: Array | None = None) -> Any:
    return threshold.update(record, np.abs(x), labels, where=where)


def _labels_by_sample_ignored(record: Any, x: Array, labels: Array | None = None, *, where: Array | None = None) -> Any:
    whole = labels if labels is None or labels.ndim == x.ndim else None
    return threshold.update(record, x, whole, where=where)


def _32_bit_counts(a: Any, b: Any) -> Any:
    merged = threshold.merge(a, b)
    return merged._replace(normal=merged.normal % 2**32, anomalous=merged.anomalous % 2**32)


def _clipped_margin(x: Array, t: float, low: float, high: float) -> Array:
    return np.clip(min_max.margin(x, t, low, high), -0.5, 0.5)


def _forgets_the_threshold(u: Array, t: float, low: float, high: float) -> Array:
    return min_max.denormalize(u, 0.5 * (low + high), low, high) + 0 * t


def _plain_z(x: Array, t: float, mean: float, std: float) -> tuple[Array, Array]:
    return cdf.standardize(x, mean, std), cdf.standardize(np.asarray([t], dtype=x.dtype), mean, std)[0]


# name: (module, function, replacement, clause that must fail)
_WRONG: dict[str, tuple[str, str, Any, str]] = {
    "min-max-as-published": ("min_max", "normalize", _min_max_normalize_as_published, "N4"),
    "constant-is-half": ("min_max", "normalize", _constant_is_half, "N7"),
    "unfitted-is-half": ("min_max", "normalize", _unfitted_is_half, "N8"),
    "wrong-range": ("min_max", "normalize", _swapped_tails, "N1"),
    "mutates-its-input": ("min_max", "normalize", _mutates_its_input, "N9"),
    "widens": ("min_max", "normalize", _widens, "N9"),
    "nan-is-flagged": ("threshold", "flag", _nan_is_flagged, "N6"),
    "greater-instead-of-at-least": ("threshold", "flag", _greater, "N4"),
    "one-plus-erf": ("cdf", "normalize", _one_plus_erf, "N3"),
    "cdf-as-published": ("cdf", "normalize", _cdf_as_published, "N4"),
    "falsy-center": ("cdf", "standardize", _falsy_center, "N2"),
    "centred-in-two-steps": ("cdf", "standardize", _two_steps, "N2"),
    "zero-score-is-nan": ("cdf", "standardize", _zero_score_is_nan, "N6"),
    "broadcasts-statistics": ("cdf", "standardize", _broadcasts_statistics, "S8"),
    "ddof-0": ("cdf", "mean_std", _ddof_0, "S3"),
    "one-value-is-enough": ("cdf", "mean_std", _one_value_is_enough, "S7"),
    "merge-forgets-counts": ("cdf", "merge", _forgets_counts, "S1"),
    "merge-keeps-the-first-mean": ("cdf", "merge", _keeps_the_first_mean, "S1"),
    "difference-of-squares": ("cdf", "update", _difference_of_squares, "S4"),
    "nan-poisons": ("min_max", "update", _nan_poisons, "S6"),
    "invalid-values-uncounted": ("min_max", "update", _uncounted, "S6"),
    "where-ignored": ("cdf", "update", _ignores_where, "S1"),
    "record-grows": ("cdf", "update", _grows, "S5"),
    "adaptive-above-instead-of-at-least": ("threshold", "adaptive", _above_instead_of_at_least, "T2"),
    "adaptive-smallest-of-equals": ("threshold", "adaptive", _smallest_of_equals, "T2"),
    "minimum-without-anomalies": ("threshold", "adaptive", _minimum_without_anomalies, "T3"),
    "largest-normal-flagged": ("threshold", "normal_quantile", _largest_normal, "T3"),
    "histogram-of-magnitudes": ("threshold", "update", _positive_scores_only, "T5"),
    "labels-by-sample-ignored": ("threshold", "update", _labels_by_sample_ignored, "T5"),
    "32-bit-counts": ("threshold", "merge", _32_bit_counts, "T5"),
    "margin-is-clipped": ("min_max", "margin", _clipped_margin, "N10"),
    "inverse-forgets-the-threshold": ("min_max", "denormalize", _forgets_the_threshold, "N11"),
    "raw-decision-after-rounding": ("cdf", "standardize_around", _plain_z, "N4"),
    "range-begins-at-zero": ("min_max", "init", _init_at_zero, "S2"),
}


def _off_by_two_places(x: Array, t: float, low: float, high: float) -> Array:
    unit = min_max.normalize(x, t, low, high)
    return np.where(unit < 0.4, unit + unit.dtype.type(2.0**-22), unit)


def _above(z: Array, t: float) -> Array:
    return np.where(z == t, np.nextafter(np.asarray(0.5, z.dtype), 0), cdf.normalize(z, t)).astype(z.dtype)


def _falls(z: Array, t: float) -> Array:
    unit = cdf.normalize(z, t)
    return np.where(z > t + 6, unit - unit.dtype.type(2.0**-20), unit).astype(unit.dtype)


# The same for variants that have to give what NumPy gives. Their clause is where the table has to say so.
_WRONG_VARIANTS: dict[str, tuple[str, str, Any, str]] = {
    "variant-off-by-two-places": ("min_max", "normalize", _off_by_two_places, "N1"),
    "variant-flags-above-the-threshold": ("cdf", "normalize", _above, "N4"),
    "variant-falls": ("cdf", "normalize", _falls, "N5"),
    "variant-ignores-where": ("cdf", "update", _ignores_where, "S1"),
    "variant-flags-with-integers": ("threshold", "flag", lambda x, t: threshold.flag(x, t).astype(np.int64), "N4"),
    "variant-loses-the-lower-tail": ("cdf", "normalize", _one_plus_erf, "N3"),
    "variant-difference-of-squares": ("cdf", "update", _difference_of_squares, "S4"),
    "variant-widens": ("min_max", "margin", lambda x, *given: min_max.margin(x, *given).astype(np.float64), "N10"),
}


def _mutant(name: str) -> type[NumPy]:
    module, function, replacement, clause = (_WRONG | _WRONG_VARIANTS)[name]
    parts: dict[str, Any] = {}
    for part, source, functions in (
        ("min_max", min_max, MIN_MAX_FUNCTIONS),
        ("cdf", cdf, CDF_FUNCTIONS),
        ("threshold", threshold, (*DECISION_FUNCTIONS, *THRESHOLD_FUNCTIONS)),
    ):
        namespace = {each: getattr(source, each) for each in functions}
        parts[part] = SimpleNamespace(**namespace | ({function: replacement} if part == module else {}))
    about = {"name": "mutant", "variant": name, "dtypes": ("float64", "float32")}
    about |= {"same_as": "numpy", "aim": "same_"} if name in _WRONG_VARIANTS else {"aim": f"{clause.lower()}_"}
    return type("Mutant", (NumPy,), {**about, **parts})


KILLED_BY = {name: clause for name, (_, _, _, clause) in (_WRONG | _WRONG_VARIANTS).items()}
MUTANTS = {name: _mutant(name) for name in KILLED_BY}
