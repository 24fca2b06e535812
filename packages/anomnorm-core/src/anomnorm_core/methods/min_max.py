"""Min-max normalization around a threshold (clauses N1, S1, S2)."""

from typing import NamedTuple

import numpy as np

from anomnorm_core._arrays import Array, Namespace, array_namespace, causes, evaluated, normalized, selection, widen
from anomnorm_core.checks import CAUSES, counts_of, require_count
from anomnorm_core.method import Kernels, Method

__all__ = ["MinMaxStatistics", "bounds", "denormalize", "init", "margin", "merge", "normalize", "update"]

METHOD = Method(
    name="min-max", parameters=("min", "max"), extras=("margin",), options=(("shared_range", (False, True)),)
)


class MinMaxStatistics(NamedTuple):
    """Smallest and largest valid score of one level, and how many scores that was.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    min: Array  #: () float64; +inf before the first value
    max: Array  #: () float64; -inf before the first value
    count: Array  #: () int64: valid values seen
    invalid: Array  #: (3,) int64: values left out, which are negative (here none are), NaN, infinite


def init(shape: tuple[int, ...] = (), *, xp: Namespace = np) -> MinMaxStatistics:  # noqa: ARG001
    """Empty statistics, arrays of the namespace ``xp``: one range, whatever the ``shape`` of the maps."""
    return MinMaxStatistics(
        min=xp.asarray(xp.inf, dtype=xp.float64),
        max=xp.asarray(-xp.inf, dtype=xp.float64),
        count=xp.asarray(0, dtype=xp.int64),
        invalid=xp.zeros((len(CAUSES),), dtype=xp.int64),
    )


def update(record: MinMaxStatistics, scores: Array, *, where: Array | None = None) -> MinMaxStatistics:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far.
        scores: real array of shape (B, ...); every element counts. NaN and infinities are left out and counted
            (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics; ``record`` is not changed.
    """
    xp = array_namespace(scores)
    x, _, _ = widen(scores, xp)
    if 0 in x.shape:
        return record  # the standard leaves the minimum of nothing undefined
    taken = selection(where, x, xp)
    valid = xp.isfinite(x) & taken
    count = xp.sum(xp.astype(valid, xp.int64))
    return merge(
        record,
        MinMaxStatistics(
            min=xp.min(xp.where(valid, x, xp.asarray(xp.inf, dtype=x.dtype))),
            max=xp.max(xp.where(valid, x, xp.asarray(-xp.inf, dtype=x.dtype))),
            count=count,
            invalid=causes(x, taken, count, xp),
        ),
    )


def merge(a: MinMaxStatistics, b: MinMaxStatistics) -> MinMaxStatistics:
    """Statistics of the union of the data behind ``a`` and ``b``."""
    xp = array_namespace(a.min, b.min)
    return MinMaxStatistics(
        min=xp.minimum(a.min, b.min),
        max=xp.maximum(a.max, b.max),
        count=a.count + b.count,
        invalid=a.invalid + b.invalid,
    )


def bounds(record: MinMaxStatistics, *, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: ``(min, max)``.

    Args:
        record: statistics of at least one valid value.
        level: ``"image"`` or ``"pixel"``, for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
    """
    require_count(level, counts_of(record), minimum=1)
    return record.min, record.max


def normalize(scores: Array, threshold: Array | float, min: Array | float, max: Array | float) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the threshold.

    ``u = clip((scores - threshold) / (max - min) + 1/2, 0, 1)`` (clause N1), and ``u >= 0.5`` exactly where
    ``scores >= threshold`` (clause N4): below the threshold ``u`` is at most the largest number under 0.5.

    Args:
        scores: real array of any shape. float64 is kept, other floating dtypes give float32, and integers the
            library's default float.
        threshold: decision threshold in raw units.
        min, max: range of the fitted scores (the finalizer `bounds`). These three are numbers or arrays that
            broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Array of the shape and device of ``scores``. NaN stays NaN, infinities give 0 and 1 (clause N6). Where
        ``max == min`` the result is 0, 0.5 or 1 for scores below, at or above the threshold (clause N7). Unfitted
        statistics (``min > max``) give NaN: an elementwise function cannot raise on a value without waiting for the
        device; `bounds` raises (clause N8). The derivative is ``1 / (max - min)``, also at the threshold, and 0 where
        the result is clipped.

    Source: anomalib 0.3, ``MinMaxNormalizationCallback``.
    """
    return normalized(KERNELS, scores, threshold, (min, max))


def margin(scores: Array, threshold: Array | float, min: Array | float, max: Array | float) -> Array:
    """The distance from the threshold as a share of the range: the normalized score without its clip (clause N10).

    ``(scores - threshold) / (max - min)``: 0 at the threshold, and in the order of the scores however far they are out.

    Args:
        scores, threshold, min, max: as for `normalize`.

    Returns:
        Array of the shape and device of ``scores``, negative below the threshold. NaN stays NaN, infinities stay. Where
        ``max == min`` the result is -inf, 0 or +inf (clause N7); unfitted statistics give NaN.
    """
    return evaluated(distance, scores, threshold, (min, max))


def denormalize(unit: Array, threshold: Array | float, min: Array | float, max: Array | float) -> Array:
    """The raw score of a normalized score: ``x = (unit - 1/2) (max - min) + threshold`` (clause N11).

    Args:
        unit: real array of any shape, of the dtypes of `normalize`.
        threshold, min, max: as for `normalize`.

    Returns:
        Array of the shape and device of ``unit``. 0 and 1 stand for everything from there on, and give its nearest end.
        NaN and numbers outside [0, 1], which are no normalized scores, give NaN.
    """
    return evaluated(_inverse, unit, threshold, (min, max))


def distance(x: Array, t: Array, low: Array, high: Array) -> Array:
    """See `margin`."""
    xp = array_namespace(x)
    scale, span = _span(low, high, xp)
    # A range from 0.0 to -0.0 is the number -0.0, which would turn the signs round.
    ratio = xp.where(x == t, xp.zeros_like(x), (x * scale - t * scale) / xp.abs(span))
    return xp.where(span >= 0, ratio, xp.asarray(xp.nan, dtype=x.dtype))


def _unit(x: Array, t: Array, low: Array, high: Array) -> Array:
    xp = array_namespace(x)
    return xp.clip(distance(x, t, low, high) + 0.5, 0.0, 1.0)


def _inverse(u: Array, t: Array, low: Array, high: Array) -> Array:
    xp = array_namespace(u)
    scale, span = _span(low, high, xp)
    x = ((u - 0.5) * span + t * scale) / scale
    return xp.where((u >= 0) & (u <= 1) & (span >= 0), x, xp.asarray(xp.nan, dtype=u.dtype))


def _span(low: Array, high: Array, xp: Namespace) -> tuple[Array, Array]:
    # Halving keeps a span finite that would overflow; scaling by one is exact.
    scale = xp.where(xp.isinf(high - low), 0.5 * xp.ones_like(low), xp.ones_like(low))
    return scale, high * scale - low * scale


def check(low: Array, high: Array) -> str | None:
    """What is wrong with a fitted range; None if nothing is."""
    return f"min={float(low)} is above max={float(high)}" if float(low) > float(high) else None


KERNELS = Kernels(
    METHOD, init, update, merge, bounds, unit=_unit, inverse=_inverse, extras={"margin": distance}, check=check
)
