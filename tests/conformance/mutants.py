"""Backends that are wrong on purpose, each in one way that somebody has shipped: the suite must fail them.

``MUTANTS`` maps a name to a backend class; ``KILLED_BY`` maps it to the clause that must notice. ``--backends mutants``
runs all of them, each on the tests whose names begin with that clause (its ``aim``).
"""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import erf, ndtr
from scipy.stats import skew
from scipy.stats import t as t_distribution

from anomnorm_core import Fit, Normalizer, cdf, min_max, normal, threshold, two_slope
from conformance.backend import (
    CDF_FUNCTIONS,
    DECISION_FUNCTIONS,
    HISTOGRAM_FUNCTIONS,
    MIN_MAX_FUNCTIONS,
    NORMAL_FUNCTIONS,
    SEARCH_FUNCTIONS,
)
from conformance.backends.numpy_ import NumPy

Array = Any


def _min_max_normalize_as_published(x: Array, t: float, low: float, high: float) -> Array:
    t, low, high = (np.asarray(value, dtype=x.dtype) for value in (t, low, high))
    with np.errstate(all="ignore"):
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


def _keeps_half_types(x: Array, t: float, mean: float, std: float, center_at: float | None = None) -> Array:
    return cdf.normalize(x, t, mean, std, center_at).astype(x.dtype)


def _short_sides_count(x: Array, t: float, low: float, high: float) -> Array:
    side = np.where(x < t, t - np.asarray(low), np.asarray(high) - t)
    with np.errstate(all="ignore"):
        unit = np.clip((x - t) / (2 * side) + 0.5, 0, 1).astype(x.dtype)
    return np.where((side > 0) & (low < high), unit, two_slope.normalize(x, t, low, high))


def _nan_is_flagged(x: Array, t: float) -> Array:
    return ~(x < t)


def _sides(u: Array, flagged: Array) -> Array:
    half = u.dtype.type(0.5)
    return np.where(flagged, np.maximum(u, half), np.minimum(u, np.nextafter(half, u.dtype.type(0))))


def _decides_on_z(x: Array, t: float, mean: float, std: float, center_at: float | None = None) -> Array:
    z, z_t = (cdf.standardize(np.asarray(value, dtype=x.dtype), mean, std, center_at) for value in (x, t))
    with np.errstate(invalid="ignore"):
        return _sides(ndtr(z - z_t), z >= z_t)


def _always_log1p(x: Array, t: float, mean: float, std: float, center_at: float | None = None) -> Array:
    return _plain_cdf(lambda x, t: np.log1p((x - t) / t), x, t, mean, std, center_at)


def _never_log1p(x: Array, t: float, mean: float, std: float, center_at: float | None = None) -> Array:
    return _plain_cdf(lambda x, t: np.log(x) - np.log(t), x, t, mean, std, center_at)


def _plain_cdf(distance: Any, x: Array, t: float, mean: float, std: float, center_at: float | None) -> Array:
    known = (x > 0) & np.isfinite(x) & (np.asarray(std) > 1e-4)
    at, deviation = (np.asarray(value, dtype=x.dtype) for value in (t, std))
    with np.errstate(all="ignore"):
        u = _sides(ndtr(distance(np.where(known, x, at), at) / deviation), x >= at)
    return np.where(known, u, cdf.normalize(x, t, mean, std, center_at)).astype(cdf.normalize(x, 1.0, 0.0, 1.0).dtype)


def _jumps_down_at_the_switch(x: Array, t: float, mean: float, std: float, center_at: float | None = None) -> Array:
    u = cdf.normalize(x, t, mean, std, center_at)
    return np.where((x > 1.5 * np.asarray(t)) & (u < 0.9), u * (1 - 2.0**-21), u).astype(u.dtype)


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


def _scaled_apart(x: Array, t: float, mean: float, std: float, center_at: float | None = None) -> Array:
    if x.dtype != np.float32 or not np.all(np.asarray(std) > 0):
        return normal.normalize(x, t, mean, std, center_at)
    at, deviation = (np.asarray(value, dtype=x.dtype) for value in (t, std))
    with np.errstate(all="ignore"):
        return _sides(ndtr(x / deviation - at / deviation), x >= at)


def _constant_like_a_logarithm(x: Array, mean: float, std: float, center_at: float | None = None) -> Array:
    wide = np.asarray(std) > 2.0**-24
    return normal.standardize(x, mean, np.where(wide, std, 0.0).astype(np.asarray(std).dtype), center_at)


def _leaves_zeros_out(record: Any, x: Array, *, where: Array | None = None) -> Any:
    return normal.update(record, np.where(x == 0, np.nan, x).astype(x.dtype), where=where)


def _ddof_0(record: Any, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    mean, std = cdf.mean_std(record, ddof=ddof, level=level)
    return mean, std * np.sqrt((record.count - 1) / record.count)


def _not_shrunk(record: Any, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    cdf.mean_std(record, ddof=ddof, level=level)  # its errors
    return cdf.mean_std(record, ddof=ddof)


def _constant_pixels_vary(record: Any, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    mean, std = cdf.mean_std(record, ddof=ddof, level=level)
    return mean, np.where(std < 1e-6, np.max(std), std) if level == "pixel" else std


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


def _zeros_are_negative(record: Any, x: Array, *, where: Array | None = None) -> Any:
    updated = cdf.update(record, x, where=where)
    zeros = np.sum(updated.zeros - record.zeros)
    return updated._replace(zeros=record.zeros, invalid=updated.invalid + np.array([zeros, 0, 0]))


def _infinities_are_nan(update: Any) -> Any:
    def wrong(record: Any, x: Array, *, where: Array | None = None) -> Any:
        updated = update(record, x, where=where)
        negative, nan, infinite = updated.invalid
        return updated._replace(invalid=np.array([negative, nan + infinite, 0]))

    return wrong


def _ignores_where(record: Any, x: Array, *, where: Array | None = None) -> Any:
    del where
    return cdf.update(record, x)


def _grows(record: Any, x: Array, *, where: Array | None = None) -> Any:
    updated = cdf.update(record, x, where=where)
    if record.mean.shape:
        return updated
    stacked = updated._replace(zeros=np.append(record.zeros, 0))
    return stacked._replace(count=updated.count)


def _init_at_zero(*shape: Any) -> Any:
    return min_max.init(*shape)._replace(min=np.asarray(0.0), max=np.asarray(0.0))


def _greater(x: Array, t: float) -> Array:
    return threshold.flag(x, t) & (x != np.asarray(t, dtype=x.dtype))


def _positive_scores_only(record: Any, x: Array, labels: Array | None = None, *, where: Array | None = None) -> Any:
    return threshold.update(record, np.abs(x), labels, where=where)


def _labels_by_sample_ignored(record: Any, x: Array, labels: Array | None = None, *, where: Array | None = None) -> Any:
    whole = labels if labels is None or labels.ndim == x.ndim else None
    return threshold.update(record, x, whole, where=where)


def _every_label_counts(record: Any, x: Array, labels: Array | None = None, *, where: Array | None = None) -> Any:
    return threshold.update(record, x, None if labels is None else labels != 0, where=where)


def _ignored_is_normal(record: Any, x: Array, labels: Array | None = None, *, where: Array | None = None) -> Any:
    return threshold.update(record, x, None if labels is None else labels > 0, where=where)


def _32_bit_counts(a: Any, b: Any) -> Any:
    merged = threshold.merge(a, b)
    return merged._replace(normal=merged.normal % 2**32, anomalous=merged.anomalous % 2**32)


def _empirical(x: Array, rate: float, **options: Any) -> Any:
    """Without the one more sample: the share of these that reach it is right, and that of new ones is not."""
    quantile = threshold.normal_quantile(np.where(np.isnan(x), -np.inf, x).astype(x.dtype), 1 - rate)
    return quantile if rate * (x.size + 1) >= 1 else threshold.false_alarm_rate(x, rate, **options)


def _without_zeros(x: Array, rate: float, **options: Any) -> Any:
    kept = x[~(x <= 0)] if options.get("transform") == "log" else x
    return threshold.false_alarm_rate(kept, rate, **options)


def _without_infinities(x: Array, rate: float, **options: Any) -> Any:
    return threshold.false_alarm_rate(x[~np.isposinf(x)], rate, **options)


def _mirrored_skewness(x: Array, rate: float, **options: Any) -> Any:
    found = threshold.false_alarm_rate(x, rate, **options)
    mirrored = threshold.false_alarm_rate(2 * x.mean() - x, rate, **options)
    return mirrored if options.get("transform") == "identity" and not found.guaranteed else found


def _falls_with_the_rate(x: Array, rate: float, **options: Any) -> Any:
    found = threshold.false_alarm_rate(x, rate, **options)
    if found.guaranteed or options.get("transform") != "identity":
        return found
    n, g = x.size, float(skew(x)) * x.size / (x.size + 20)
    at = float(t_distribution.isf(rate, n - 1))
    z = at + g * (at * at - 1) / 6  # without the largest normal, and where the curve turns back
    return found._replace(threshold=np.asarray(x.mean() + x.std(ddof=1) * math.sqrt(1 + 1 / n) * z))


def _clipped_margin(x: Array, t: float, low: float, high: float) -> Array:
    return np.clip(min_max.margin(x, t, low, high), -0.5, 0.5)


def _forgets_the_threshold(u: Array, t: float, low: float, high: float) -> Array:
    return min_max.denormalize(u, 0.5 * (low + high), low, high) + 0 * t


def _off_beside_the_batch(x: Array, t: float, low: float, high: float) -> Array:
    unit = min_max.normalize(x, t, low, high)
    return unit + unit.dtype.type(2.0**-22) if unit.size == 1 else unit


class _EveryConstantPopulationIsFlagged(Normalizer):
    def __init__(self, fit: Fit) -> None:
        for level in ("image", "pixel"):
            fitted = getattr(fit, level)
            if fit.method.sigmas and fitted is not None:
                _, std, center = fit.arguments(level)
                raw = np.where(std <= 1e-6, np.exp(center), fitted.threshold.raw)
                fit = replace(fit, **{level: replace(fitted, threshold=replace(fitted.threshold, raw=raw))})
        super().__init__(fit)


class _ThresholdOfAnotherLevel(Normalizer):
    def __call__(self, pred_scores: Any = None, anomaly_maps: Any = None, **given: Any) -> Any:
        if given.get("pixel_threshold") is None and not self.to_fit().method.sigmas:
            given["pixel_threshold"] = given.get("threshold") or self.thresholds["image"].raw
        return super().__call__(pred_scores, anomaly_maps, **given)


class _CentreForgotten(Normalizer):
    def __init__(self, fit: Fit) -> None:
        if fit.method.sigmas and fit.image is not None and fit.image.threshold is not None:
            _, std, _ = fit.arguments("image")
            threshold = replace(fit.image.threshold, raw=np.exp(std * (fit.image.threshold.sigmas or 0.0)))
            fit = replace(fit, image=replace(fit.image, threshold=threshold))
        super().__init__(fit)


class _PaddingIsFlagged(Normalizer):
    def __call__(self, *args: Any, valid: Any = None, **given: Any) -> Any:
        return super().__call__(*args, **given)


class _ForgetsWhoFollows(Normalizer):
    def with_threshold(self, *args: Any, **given: Any) -> Any:
        fit = super().with_threshold(*args, **given).to_fit()
        return self.from_fit(replace(fit, pixel=self.to_fit().pixel) if len(args) < 2 else fit)


# name: (module, function, replacement, clause that must fail)
_WRONG: dict[str, tuple[str, str, Any, str]] = {
    "min-max-as-published": ("min_max", "normalize", _min_max_normalize_as_published, "N4"),
    "constant-is-half": ("min_max", "normalize", _constant_is_half, "N7"),
    "unfitted-is-half": ("min_max", "normalize", _unfitted_is_half, "N8"),
    "wrong-range": ("min_max", "normalize", _swapped_tails, "N1"),
    "short-sides-count": ("two_slope", "normalize", _short_sides_count, "N1b"),
    "one-slope": ("two_slope", "normalize", min_max.normalize, "N1b"),
    "mutates-its-input": ("min_max", "normalize", _mutates_its_input, "N9"),
    "widens": ("min_max", "normalize", _widens, "N9"),
    "nan-is-flagged": ("threshold", "flag", _nan_is_flagged, "N6"),
    "greater-instead-of-at-least": ("threshold", "flag", _greater, "N4"),
    "keeps-half-types": ("cdf", "normalize", _keeps_half_types, "N9"),
    "decides-on-z": ("cdf", "normalize", _decides_on_z, "N4"),
    "no-switch-of-the-logarithm": ("cdf", "normalize", _always_log1p, "N3"),
    "logarithms-apart": ("cdf", "normalize", _never_log1p, "N3"),
    "falls-at-the-switch": ("cdf", "normalize", _jumps_down_at_the_switch, "N5"),
    "cdf-as-published": ("cdf", "normalize_standardized", _cdf_as_published, "N4b"),
    "every-constant-population-flagged": ("normalizer", "", _EveryConstantPopulationIsFlagged, "N7"),
    "threshold-of-another-level": ("normalizer", "", _ThresholdOfAnotherLevel, "T4"),
    "centre-forgotten": ("normalizer", "", _CentreForgotten, "N3"),
    "padding-is-flagged": ("normalizer", "", _PaddingIsFlagged, "L5"),
    "forgets-who-follows": ("normalizer", "", _ForgetsWhoFollows, "T4"),
    "value-of-its-batch": ("min_max", "normalize", _off_beside_the_batch, "N12"),
    "falsy-center": ("cdf", "standardize", _falsy_center, "N2"),
    "centred-in-two-steps": ("cdf", "standardize", _two_steps, "N2"),
    "zero-score-is-nan": ("cdf", "standardize", _zero_score_is_nan, "N6"),
    "broadcasts-statistics": ("cdf", "standardize", _broadcasts_statistics, "S8"),
    "scaled-before-the-difference": ("normal", "normalize", _scaled_apart, "N3b"),
    "constant-like-a-logarithm": ("normal", "standardize", _constant_like_a_logarithm, "N3b"),
    "zeros-of-scores-left-out": ("normal", "update", _leaves_zeros_out, "S6"),
    "ddof-0": ("cdf", "mean_std", _ddof_0, "S3"),
    "pixels-not-shrunk": ("cdf", "mean_std", _not_shrunk, "S3"),
    "constant-pixels-vary": ("cdf", "mean_std", _constant_pixels_vary, "S3"),
    "one-value-is-enough": ("cdf", "mean_std", _one_value_is_enough, "S7"),
    "merge-forgets-counts": ("cdf", "merge", _forgets_counts, "S1"),
    "merge-keeps-the-first-mean": ("cdf", "merge", _keeps_the_first_mean, "S1"),
    "difference-of-squares": ("cdf", "update", _difference_of_squares, "S4"),
    "nan-poisons": ("min_max", "update", _nan_poisons, "S6"),
    "invalid-values-uncounted": ("min_max", "update", _uncounted, "S6"),
    "zeros-counted-as-negative": ("cdf", "update", _zeros_are_negative, "S6"),
    "infinities-counted-as-nan": ("cdf", "update", _infinities_are_nan(cdf.update), "S6"),
    "infinite-ends-counted-as-nan": ("min_max", "update", _infinities_are_nan(min_max.update), "S6"),
    "where-ignored": ("cdf", "update", _ignores_where, "S1"),
    "record-grows": ("cdf", "update", _grows, "S5"),
    "histogram-of-magnitudes": ("threshold", "update", _positive_scores_only, "T5"),
    "labels-by-sample-ignored": ("threshold", "update", _labels_by_sample_ignored, "T5"),
    "every-label-counts": ("threshold", "update", _every_label_counts, "T5"),
    "ignored-is-normal": ("threshold", "update", _ignored_is_normal, "T5"),
    "32-bit-counts": ("threshold", "merge", _32_bit_counts, "T5"),
    "rate-of-these-samples": ("threshold", "false_alarm_rate", _empirical, "T7"),
    "rate-without-zeros": ("threshold", "false_alarm_rate", _without_zeros, "T7"),
    "rate-without-infinities": ("threshold", "false_alarm_rate", _without_infinities, "T7"),
    "skewness-of-the-other-side": ("threshold", "false_alarm_rate", _mirrored_skewness, "T7"),
    "threshold-falls-with-the-rate": ("threshold", "false_alarm_rate", _falls_with_the_rate, "T7"),
    "margin-is-clipped": ("min_max", "margin", _clipped_margin, "N10"),
    "inverse-forgets-the-threshold": ("min_max", "denormalize", _forgets_the_threshold, "N11"),
    "range-begins-at-zero": ("min_max", "init", _init_at_zero, "S2"),
}


def _off_by_two_places(x: Array, t: float, low: float, high: float) -> Array:
    unit = min_max.normalize(x, t, low, high)
    return np.where(unit < 0.4, unit + unit.dtype.type(2.0**-22), unit)


def _above(x: Array, t: float, *given: Any, **more: Any) -> Array:
    unit = cdf.normalize(x, t, *given, **more)
    return np.where(x == t, np.nextafter(unit.dtype.type(0.5), 0), unit).astype(unit.dtype)


def _falls(x: Array, t: float, *given: Any, **more: Any) -> Array:
    unit = cdf.normalize(x, t, *given, **more)
    return np.where((unit > 0.9) & (x > 4 * np.asarray(t)), unit - unit.dtype.type(2.0**-20), unit).astype(unit.dtype)


# The same for variants that have to give what NumPy gives. Their clause is where the table has to say so.
_WRONG_VARIANTS: dict[str, tuple[str, str, Any, str]] = {
    "variant-off-by-two-places": ("min_max", "normalize", _off_by_two_places, "N1"),
    "variant-flags-above-the-threshold": ("cdf", "normalize", _above, "N4"),
    "variant-falls": ("cdf", "normalize", _falls, "N5"),
    "variant-ignores-where": ("cdf", "update", _ignores_where, "S1"),
    "variant-flags-with-integers": ("threshold", "flag", lambda x, t: threshold.flag(x, t).astype(np.int64), "N4"),
    "variant-never-log1p": ("cdf", "normalize", _never_log1p, "N3"),
    "variant-difference-of-squares": ("cdf", "update", _difference_of_squares, "S4"),
    "variant-widens": ("min_max", "margin", lambda x, *given: min_max.margin(x, *given).astype(np.float64), "N10"),
}


def _mutant(name: str) -> type[NumPy]:
    module, function, replacement, clause = (_WRONG | _WRONG_VARIANTS)[name]
    parts: dict[str, Any] = {"normalizer": replacement} if module == "normalizer" else {}
    for part, source, functions in (
        ("min_max", min_max, MIN_MAX_FUNCTIONS),
        ("two_slope", two_slope, MIN_MAX_FUNCTIONS),
        ("cdf", cdf, CDF_FUNCTIONS),
        ("normal", normal, NORMAL_FUNCTIONS),
        ("threshold", threshold, (*DECISION_FUNCTIONS, *HISTOGRAM_FUNCTIONS, *SEARCH_FUNCTIONS)),
    ):
        namespace = {each: getattr(source, each) for each in functions}
        parts[part] = SimpleNamespace(**namespace | ({function: replacement} if part == module else {}))
    about = {"name": "mutant", "variant": name, "dtypes": ("float64", "float32", "float16")[: 2 + (clause == "N9")]}
    about |= {"same_as": "numpy", "aim": "same_"} if name in _WRONG_VARIANTS else {"aim": f"{clause.lower()}_"}
    return type("Mutant", (NumPy,), {**about, **parts})


KILLED_BY = {name: clause for name, (_, _, _, clause) in (_WRONG | _WRONG_VARIANTS).items()}
MUTANTS = {name: _mutant(name) for name in KILLED_BY}
