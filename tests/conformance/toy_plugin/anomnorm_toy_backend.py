"""anomnorm in plain Python: floats in tuples and the ``math`` module."""

import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from conformance.backend import Backend, Description

from anomnorm_core.checks import Counts, require_count, require_resolution, require_same_shape
from anomnorm_core.errors import ResolutionError

_BELOW_HALF = math.nextafter(0.5, 0.0)


class Toy(NamedTuple):
    """An array: its values in C order, its shape, its dtype."""

    values: tuple[Any, ...]
    shape: tuple[int, ...] = ()
    dtype: str = "float64"


def _number(value: Any) -> Toy:
    return value if isinstance(value, Toy) else Toy((float(value),))


def _map(function: Callable[..., Any], first: Toy, *others: Any, dtype: str = "float64") -> Toy:
    # The others have a trailing part of the first one's shape.
    arrays = [_number(other).values for other in others]
    values = (function(float(x), *(array[i % len(array)] for array in arrays)) for i, x in enumerate(first.values))
    return Toy(tuple(values), first.shape, dtype)


def _flag(scores: Toy, threshold: Any) -> Toy:
    return _map(lambda x, t: x >= t, scores, threshold, dtype="bool")


class Range(NamedTuple):
    min: Toy
    max: Toy
    count: Toy
    invalid: Toy  # how many are negative (here none), NaN, infinite


def _range(
    low: float = math.inf, high: float = -math.inf, count: int = 0, invalid: tuple[int, ...] = (0, 0, 0)
) -> Range:
    return Range(_number(low), _number(high), Toy((count,), dtype="int64"), Toy(invalid, (3,), "int64"))


def _taken(scores: Toy, where: Toy | None) -> Iterable[tuple[int, float]]:
    size = math.prod(scores.shape[1:])
    for i, x in enumerate(scores.values):
        if where is None or where.values[i // size]:
            yield i, float(x)


def _range_update(record: Range, scores: Toy, *, where: Toy | None = None) -> Range:
    taken = [x for _, x in _taken(scores, where)]
    valid = [x for x in taken if math.isfinite(x)]
    invalid = (0, sum(map(math.isnan, taken)), sum(map(math.isinf, taken)))
    batch = _range(min(valid, default=math.inf), max(valid, default=-math.inf), len(valid), invalid)
    return _range_merge(record, batch)


def _range_merge(a: Range, b: Range) -> Range:
    low, high, count = ((x.values[0], y.values[0]) for x, y in zip(a[:3], b[:3], strict=True))
    return _range(min(low), max(high), sum(count), _sums(a.invalid, b.invalid))


def _sums(a: Toy, b: Toy) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a.values, b.values, strict=True))


def _bounds(record: Range, *, level: str = "image") -> tuple[Toy, Toy]:
    require_count(level, Counts(record.count.values[0], 0, *record.invalid.values), minimum=1)
    return record.min, record.max


def _repaired(unit: float, x: float, t: float) -> float:
    """Clause N4: on the right side of 1/2."""
    return max(unit, 0.5) if x >= t else min(unit, _BELOW_HALF)


def _ramp(x: float, t: float, quarter: float) -> float:
    """From 0 to 1, 1/2 at the threshold; ``quarter`` of the width, because all of it may overflow."""
    if quarter == 0 or math.isinf(x):
        return 0.5 if x == t else float(x > t)
    return _repaired(min(max((x / 4 - t / 4) / quarter + 0.5, 0.0), 1.0), x, t)


def _widths(t: float, low: float, high: float) -> tuple[float, float]:
    """A quarter of what is mapped to [0, 1] by the slope below the threshold and by that above it."""
    span = high / 4 - low / 4
    sides = (t / 4 - low / 4, high / 4 - t / 4)
    below, above = (2 * side if span > 0 and 20 * side >= span else span for side in sides)
    return below, above


def _unit_min_max(x: float, t: float, low: float, high: float) -> float:
    return math.nan if math.isnan(x) or low > high else _ramp(x, t, high / 4 - low / 4)


def _unit_two_slope(x: float, t: float, low: float, high: float) -> float:
    return math.nan if math.isnan(x) or low > high else _ramp(x, t, _widths(t, low, high)[x >= t])


class Moments(NamedTuple):
    count: Toy
    mean: Toy
    m2: Toy
    zeros: Toy  # at each pixel
    invalid: Toy  # how many of all pixels are negative, NaN, infinite


def _moments(shape: tuple[int, ...] = ()) -> Moments:
    size = math.prod(shape)
    number, moment = Toy((0,) * size, shape, "int64"), Toy((0.0,) * size, shape)
    return Moments(number, moment, moment, number, Toy((0, 0, 0), (3,), "int64"))


def _place(x: float, log: bool) -> float | None:
    """Where a score is among those that the moments are of; None where it is not among them."""
    if not math.isfinite(x):
        return None
    return x if not log else math.log(x) if x > 0 else None


def _moments_update(record: Moments, scores: Toy, *, where: Toy | None = None, log: bool = True) -> Moments:
    shape = record.mean.shape
    if scores.shape[1:] not in (shape, (1, *shape), (*shape, 1)):
        raise ResolutionError(f"the statistics have shape {shape}, found scores of shape {scores.shape}")
    entries = [list(entry) for entry in zip(*(field.values for field in record[:4]), strict=True)]
    invalid = list(record.invalid.values)
    for i, x in _taken(scores, where):
        entry = entries[i % len(entries)]
        place = _place(x, log)
        if place is not None:
            entry[0] += 1
            delta = place - entry[1]
            entry[1] += delta / entry[0]
            entry[2] += delta * (place - entry[1])
        elif x == 0:
            entry[3] += 1
        else:
            invalid[1 if math.isnan(x) else 2 if math.isinf(x) else 0] += 1
    return _record(entries, shape, invalid)


def _record(entries: list[Any], shape: tuple[int, ...], invalid: Iterable[int]) -> Moments:
    dtypes = ("int64", "float64", "float64", "int64")
    columns = zip(*entries, strict=True)
    fields = (Toy(tuple(column), shape, dtype) for column, dtype in zip(columns, dtypes, strict=True))
    return Moments(*fields, Toy(tuple(invalid), (3,), "int64"))


def _moments_merge(a: Moments, b: Moments) -> Moments:
    require_same_shape(a.mean.shape, b.mean.shape)
    entries = []
    for (n, mean, m2, zeros), (other_n, other_mean, other_m2, other_zeros) in zip(
        *(zip(*(field.values for field in record[:4]), strict=True) for record in (a, b)), strict=True
    ):
        share, delta = other_n / max(n + other_n, 1), other_mean - mean
        entries.append((n + other_n, mean + delta * share, m2 + other_m2 + delta**2 * share * n, zeros + other_zeros))
    return _record(entries, a.mean.shape, _sums(a.invalid, b.invalid))


def _mean_std(record: Moments, *, ddof: int = 1, level: str = "image") -> tuple[Toy, Toy]:
    counts = Counts(sum(record.count.values), sum(record.zeros.values), *record.invalid.values)
    require_count(level, counts, minimum=ddof + 1, most=max(record.count.values))
    entries = list(zip(record.count.values, record.mean.values, record.m2.values, strict=True))
    known = [entry for entry in entries if entry[0] > ddof]
    pooled_mean = sum(n * mean for n, mean, _ in known) / sum(n for n, _, _ in known)
    pooled_std = math.sqrt(sum(m2 for _, _, m2 in known) / sum(n - ddof for n, _, _ in known))
    means = [mean if n > ddof else pooled_mean for n, mean, _ in entries]
    stds = [math.sqrt(m2 / (n - ddof)) if n > ddof else pooled_std for n, _, m2 in entries]
    if level == "pixel":
        floors = (2.0**-21 * max(abs(mean), pooled_std) for mean in means)
        varies = [n > ddof and std > floor for (n, _, _), std, floor in zip(entries, stds, floors, strict=True)]
        stds = _shrunk(stds, [n - ddof if each else 0 for (n, _, _), each in zip(entries, varies, strict=True)])
    return Toy(tuple(means), record.mean.shape), Toy(tuple(stds), record.mean.shape)


def _shrunk(stds: list[float], freedom: list[int]) -> list[float]:
    """Deviations shrunk toward what is typical of them, but those without degrees of freedom."""
    total = max(sum(freedom), 1)
    chi = [_log_chi_squared(max(d, 1)) for d in freedom]
    own = [2 * math.log(std) - bias if d else 0.0 for std, d, (bias, _) in zip(stds, freedom, chi, strict=True)]
    typical = sum(d * value for d, value in zip(freedom, own, strict=True)) / total
    spread = sum(d * ((value - typical) ** 2 - noise) for d, value, (_, noise) in zip(freedom, own, chi, strict=True))
    kept = [max(spread / total, 0.0) / (max(spread / total, 0.0) + noise) for _, noise in chi]
    shrunk = (math.exp((typical + share * (value - typical)) / 2) for share, value in zip(kept, own, strict=True))
    return [new if d else std for std, d, new in zip(stds, freedom, shrunk, strict=True)]


def _log_chi_squared(d: int) -> tuple[float, float]:
    """Mean and variance of the logarithm of a chi-squared number over its degrees of freedom."""
    steps = range(2 - d % 2, d, 2)
    mean = -0.5772156649015329 - (2 * math.log(2) if d % 2 else 0.0) + sum(2 / i for i in steps)
    return mean - math.log(d / 2), math.pi**2 / (2 if d % 2 else 6) - sum(4 / i**2 for i in steps)


def _floor(mean: float, center: float, log: bool) -> float:
    """A deviation up to which it is rounding (clause N7)."""
    return max(2.0**-21 * max(abs(mean), abs(center)), 2.0**-24 if log else 2.0**-126)


def _z(x: float, mean: float, std: float, center: float, log: bool = True) -> float:
    if math.isnan(x) or math.isnan(mean) or math.isnan(std):
        return math.nan
    if math.isinf(x):
        return x
    place = _place(x, log)
    distance = -math.inf if place is None else place - center
    floor = _floor(mean, center, log)
    if std > floor:
        return distance / std
    return 0.0 if abs(distance) <= floor else math.copysign(math.inf, distance)


def _standardize(scores: Toy, mean: Any, std: Any, center_at: Any = None, *, log: bool = True) -> Toy:
    statistics = (value for value in (mean, std, center_at) if value is not None)
    require_resolution(scores.shape, *(_number(value).shape for value in statistics))
    return _map(partial(_z, log=log), scores, mean, std, mean if center_at is None else center_at)


def _unit_sigmas(z: float, t: float) -> float:
    return _repaired(math.erfc((t - z) / math.sqrt(2)) / 2, z, t) if z == z else math.nan


def _unit_cdf(x: float, t: float, mean: float, std: float, center: float) -> float:
    if math.isnan(x) or math.isnan(mean) or math.isnan(std):
        return math.nan
    if x <= 0 or math.isinf(x) or x == t or std <= _floor(mean, center, log=True):
        return 0.5 if x == t else float(x > t)
    ratio, quotient = (x - t) / t, x / t
    normal = sys.float_info.min <= quotient < math.inf
    far = math.log(quotient) if normal else math.log(x) - math.log(t)
    distance = math.log1p(ratio) if abs(ratio) < 0.5 else far
    return _repaired(math.erfc(-distance / std / math.sqrt(2)) / 2, x, t)


def _unit_normal(x: float, t: float, mean: float, std: float, center: float) -> float:
    if math.isnan(x) or math.isnan(mean) or math.isnan(std):
        return math.nan
    if math.isinf(x) or x == t or std <= _floor(mean, center, log=False):
        return 0.5 if x == t else float(x > t)
    return _repaired(math.erfc((t - x) / std / math.sqrt(2)) / 2, x, t)


def _normalized(unit: Callable[..., float], scores: Toy, t: Any, mean: Any, std: Any, center_at: Any = None) -> Toy:
    center = mean if center_at is None else center_at
    require_resolution(scores.shape, *(_number(value).shape for value in (t, mean, std, center)))
    return _map(unit, scores, t, mean, std, center)


def _margin(x: float, t: float, low: float, high: float) -> float:
    if math.isnan(x) or low > high:
        return math.nan
    if x == t:
        return 0.0
    if low == high:
        return math.copysign(math.inf, x - t)
    return (x / 4 - t / 4) / (high / 4 - low / 4)


def _raw_min_max(u: float, t: float, low: float, high: float) -> float:
    return 4 * ((u - 0.5) * (high / 4 - low / 4) + t / 4) if 0 <= u <= 1 and low <= high else math.nan


def _raw_two_slope(u: float, t: float, low: float, high: float) -> float:
    return 4 * ((u - 0.5) * _widths(t, low, high)[u >= 0.5] + t / 4) if 0 <= u <= 1 and low <= high else math.nan


def _raw_cdf(u: float, t: float, mean: float, std: float) -> float:
    if not (0 <= u <= 1) or math.isnan(mean) or math.isnan(std):
        return math.nan
    if u in (0, 1):
        return (0.0, math.inf)[int(u)] if std else t
    return t * math.exp(std * NormalDist().inv_cdf(u))


def _raw_normal(u: float, t: float, mean: float, std: float) -> float:
    if not (0 <= u <= 1) or math.isnan(mean) or math.isnan(std):
        return math.nan
    if u in (0, 1):
        return (-math.inf, math.inf)[int(u)] if std else t
    return t + std * NormalDist().inv_cdf(u)


def _denormalized(raw: Callable[..., float], unit: Toy, t: Any, mean: Any, std: Any, center_at: Any = None) -> Toy:
    statistics = (value for value in (t, mean, std, center_at) if value is not None)
    require_resolution(unit.shape, *(_number(value).shape for value in statistics))
    return _map(raw, unit, t, mean, std)


_RANGES: dict[str, Any] = {
    "init": _range,
    "update": _range_update,
    "merge": _range_merge,
    "bounds": _bounds,
    "margin": lambda scores, t, low, high: _map(_margin, scores, t, low, high),
}


class ToyBackend(Backend):
    """The plug-in."""

    name = "toy"
    dtypes = ("float64",)
    min_max = SimpleNamespace(
        **_RANGES,
        normalize=lambda scores, t, low, high: _map(_unit_min_max, scores, t, low, high),
        denormalize=lambda unit, t, low, high: _map(_raw_min_max, unit, t, low, high),
    )
    two_slope = SimpleNamespace(
        **_RANGES,
        normalize=lambda scores, t, low, high: _map(_unit_two_slope, scores, t, low, high),
        denormalize=lambda unit, t, low, high: _map(_raw_two_slope, unit, t, low, high),
    )
    cdf = SimpleNamespace(
        init=_moments,
        update=_moments_update,
        merge=_moments_merge,
        mean_std=_mean_std,
        standardize=_standardize,
        normalize=partial(_normalized, _unit_cdf),
        normalize_standardized=lambda z, t: _map(_unit_sigmas, z, t),
        denormalize=partial(_denormalized, _raw_cdf),
    )
    normal = SimpleNamespace(
        init=_moments,
        update=partial(_moments_update, log=False),
        merge=_moments_merge,
        mean_std=_mean_std,
        standardize=partial(_standardize, log=False),
        normalize=partial(_normalized, _unit_normal),
        denormalize=partial(_denormalized, _raw_normal),
    )
    threshold = SimpleNamespace(flag=_flag)

    def asarray(self, values: Any, dtype: str) -> Toy:
        array = np.array(values, dtype=dtype if dtype in ("bool", "int32") else "float64")
        return Toy(tuple(array.ravel().tolist()), array.shape, dtype)

    def to_numpy(self, array: Toy) -> np.ndarray:
        return np.reshape(np.array(array.values, dtype=array.dtype), array.shape)

    def describe(self, array: Toy) -> Description:
        return Description(array.dtype, array.shape, "cpu")

    def default_dtype(self) -> str:
        return "float64"


BACKENDS = (ToyBackend,)
