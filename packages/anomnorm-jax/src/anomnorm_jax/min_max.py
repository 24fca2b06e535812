"""Min-max normalization around a threshold (clauses N1, S1, S2)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import require_count
from anomnorm_jax import _counter
from anomnorm_jax._arrays import arithmetic, below_half, less, parameter, selection
from anomnorm_jax._sharding import automatic, varying


class MinMaxStatistics(NamedTuple):
    """Smallest and largest valid score of one level, and how many scores that was.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    min: Array  # () float32, or float64 where JAX has it; +inf before the first value
    max: Array  # () like min; -inf before the first value
    count: Array  # type: ignore[assignment]  # (2,) uint32: valid values seen, upper and lower half of a 64-bit count (see `_counter`)
    invalid: Array  # (2,) uint32: NaN and infinite values left out


def init() -> MinMaxStatistics:
    """Empty statistics, in JAX's default float."""
    return MinMaxStatistics(
        min=jnp.asarray(jnp.inf, dtype=float),
        max=jnp.asarray(-jnp.inf, dtype=float),
        count=_counter.zero(),
        invalid=_counter.zero(),
    )


@jax.jit
@automatic
def update(record: MinMaxStatistics, scores: ArrayLike, *, where: ArrayLike | None = None) -> MinMaxStatistics:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far.
        scores: real array of shape (B, ...) of less than 2^32 elements; every element counts. NaN and infinities are
            left out and counted (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics.
    """
    x, _ = arithmetic(scores)
    if x.size == 0:
        return record
    taken = varying(jnp.asarray(x.size, dtype=jnp.uint32), x)
    if where is None:
        # A branch costs a GPU more than the masks.
        low, high, count = jax.lax.platform_dependent(x, taken, cpu=_range, default=_range_of_valid)
    else:
        taken = jnp.sum(jnp.asarray(where, dtype=bool), dtype=jnp.uint32) * jnp.uint32(math.prod(x.shape[1:]))
        low, high, count = _range_of_valid(x, taken, selection(where, x))
    dtype = record.min.dtype
    batch = MinMaxStatistics(
        min=low.astype(dtype),
        max=high.astype(dtype),
        count=_counter.widened(count),
        invalid=_counter.widened(taken - count),
    )
    merged: MinMaxStatistics = merge(record, batch)
    return merged


def _range(x: Array, taken: Array) -> tuple[Array, Array, Array]:
    """Smallest and largest valid value, and how many are valid; quickly, where all are."""
    # XLA's minimum does not show reliably whether there is a NaN. Zero times anything else than a number does, and a
    # sum is three times as fast as a count.
    every = jnp.sum(x * 0.0) == 0.0
    found: tuple[Array, Array, Array] = jax.lax.cond(
        every, lambda x, taken: (jnp.min(x), jnp.max(x), taken), _range_of_valid, x, taken
    )
    return found


def _range_of_valid(x: Array, taken: Array, where: Array | None = None) -> tuple[Array, Array, Array]:  # noqa: ARG001
    """The same, for what is valid and in ``where``."""
    # XLA turns this comparison and one count into a fast loop; isfinite and a count of the others made it seven times
    # slower on a CPU.
    valid = jnp.abs(x) < jnp.inf
    if where is not None:
        valid = valid & where
    low, high = jnp.min(jnp.where(valid, x, jnp.inf)), jnp.max(jnp.where(valid, x, -jnp.inf))
    return low, high, jnp.sum(valid, dtype=jnp.uint32)


@jax.jit
def merge(a: MinMaxStatistics, b: MinMaxStatistics) -> MinMaxStatistics:
    """Statistics of the union of the data behind ``a`` and ``b``."""
    return MinMaxStatistics(
        min=jnp.minimum(a.min, b.min),
        max=jnp.maximum(a.max, b.max),
        count=_counter.add(a.count, b.count),
        invalid=_counter.add(a.invalid, b.invalid),
    )


def bounds(record: MinMaxStatistics, *, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: ``(min, max)``. Outside a trace it checks the counts, so it waits for the device.

    Args:
        record: statistics of at least one valid value.
        level: ``"image"`` or ``"pixel"``, for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6). Under a trace there is no value to
            check; what `normalize` makes of an empty range is NaN.
    """
    if not isinstance(record.count, Tracer):
        require_count(level, _counter.to_int(record.count), _counter.to_int(record.invalid), minimum=1)
    return record.min, record.max


@jax.jit
def normalize(scores: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the threshold.

    ``u = clip((scores - threshold) / (max - min) + 1/2, 0, 1)`` (clause N1), and ``u >= 0.5`` exactly where
    ``scores >= threshold`` (clause N4): below the threshold ``u`` is at most the largest number under 0.5.

    Args:
        scores: real array of any shape. Floating dtypes are kept; integers give JAX's default float.
        threshold: decision threshold in raw units.
        min, max: range of the fitted scores (the finalizer `bounds`). These three are numbers or arrays that
            broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64. A range below the
            smallest normal number counts as none, because XLA on CPU has no subnormal numbers.

    Returns:
        Array of the shape and sharding of ``scores``. NaN stays NaN, infinities give 0 and 1 (clause N6). Where
        ``max == min`` the result is 0, 0.5 or 1 for scores below, at or above the threshold (clause N7). Unfitted
        statistics (``min > max``) give NaN: traced code cannot raise on a value; `bounds` raises (clause N8).

    Source: anomalib 0.3, ``MinMaxNormalizationCallback``.
    """
    x, result = arithmetic(scores)
    t, low, high = parameter(threshold, x), parameter(min, x), parameter(max, x)
    scale, span = _span(low, high)
    constant = span == 0
    u = jnp.clip((x * scale - t * scale) / jnp.where(constant, 1.0, span) + 0.5, 0.0, 1.0)
    below, above = less(x, t), less(t, x)
    u = jnp.where(below, jnp.minimum(u, below_half(result)), u)
    step = jnp.where(below, 0.0, jnp.where(above, 1.0, 0.5))
    u = jnp.where(constant & ~jnp.isnan(x), step, u)
    return jnp.where(span >= 0, u, jnp.nan).astype(result)


@jax.jit
def margin(scores: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """The distance from the threshold as a share of the range: the unit score without its clip (clause N10).

    ``(scores - threshold) / (max - min)``: 0 at the threshold, and in the order of the scores however far they are out.

    Args:
        scores, threshold, min, max: as for `normalize`.

    Returns:
        Array of the shape and sharding of ``scores``, negative below the threshold. NaN stays NaN, infinities stay.
        Where ``max == min`` the result is -inf, 0 or +inf (clause N7); unfitted statistics give NaN.
    """
    x, result = arithmetic(scores)
    t, low, high = parameter(threshold, x), parameter(min, x), parameter(max, x)
    scale, span = _span(low, high)
    constant = span == 0
    below, above = less(x, t), less(t, x)
    distance = (x * scale - t * scale) / jnp.where(constant, 1.0, span)
    step = jnp.where(below, -jnp.inf, jnp.where(above, jnp.inf, 0.0))
    distance = jnp.where(constant & ~jnp.isnan(x), step, jnp.where(below | above | jnp.isnan(x), distance, 0.0))
    return jnp.where(span >= 0, distance, jnp.nan).astype(result)


@jax.jit
def denormalize(unit: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """The raw score of a unit score: ``x = (unit - 1/2) (max - min) + threshold`` (clause N11).

    Args:
        unit: real array of any shape. Floating dtypes are kept; integers give JAX's default float.
        threshold, min, max: as for `normalize`.

    Returns:
        Array of the shape and sharding of ``unit``. 0 and 1 stand for everything from there on, and give its nearest
        end. NaN and numbers outside [0, 1], which are no unit scores, give NaN.
    """
    u, result = arithmetic(unit)
    t, low, high = parameter(threshold, u), parameter(min, u), parameter(max, u)
    scale, span = _span(low, high)
    x = ((u - 0.5) * span + t * scale) / scale
    return jnp.where((u >= 0) & (u <= 1) & (span >= 0), x, jnp.nan).astype(result)


def _span(low: Array, high: Array) -> tuple[Array, Array]:
    # Scaling down keeps a span finite that would overflow. It begins before that: XLA multiplies by the reciprocal of
    # a scalar divisor, and the reciprocal of a number above 2^126 is subnormal, hence zero on CPU.
    largest = jnp.finfo(low.dtype).max  # type: ignore[no-untyped-call]
    scale = jnp.where(jnp.abs(high - low) > largest / 16, 0.0625, 1.0).astype(low.dtype)
    return scale, high * scale - low * scale
