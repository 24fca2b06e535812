"""Min-max normalization around a threshold (clauses N1, S1, S2)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import CAUSES, require_count
from anomnorm_core.method import Kernels
from anomnorm_core.methods.min_max import METHOD
from anomnorm_jax import _counter
from anomnorm_jax._arrays import arithmetic, evaluated, normalized, selection
from anomnorm_jax._sharding import automatic, varying

__all__ = ["MinMaxStatistics", "bounds", "denormalize", "init", "margin", "merge", "normalize", "update"]


class MinMaxStatistics(NamedTuple):
    """Smallest and largest valid score of one level, and how many scores that was.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    # Finite from the start, so that a run can be carried under jax_debug_infs.
    min: Array  #: () float32, or float64 where JAX has it; the largest number before the first value
    max: Array  #: () like min; the smallest number before the first value
    #: (2,) uint32: valid values seen, upper and lower half of a 64-bit count (see ``_counter``)
    count: Array  # type: ignore[assignment]
    invalid: Array  #: (2, 3) uint32: values left out, which are negative (here none are), NaN, infinite


def init(shape: tuple[int, ...] = ()) -> MinMaxStatistics:  # noqa: ARG001
    """Empty statistics, in JAX's default float; one range for all pixels, whatever the ``shape`` of the maps."""
    largest = float(jnp.finfo(jnp.zeros(()).dtype).max)  # type: ignore[no-untyped-call]
    return MinMaxStatistics(
        min=jnp.asarray(largest, dtype=float),
        max=jnp.asarray(-largest, dtype=float),
        count=_counter.zero(),
        invalid=_counter.zero((len(CAUSES),)),
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
    x = arithmetic(scores)
    if x.size == 0:
        return record
    taken = varying(jnp.asarray(x.size, dtype=jnp.uint32), x)
    if where is None:
        # A branch costs a GPU more than the masks.
        low, high, count, nan = jax.lax.platform_dependent(x, taken, cpu=_range, default=_range_of_valid)
    else:
        taken = jnp.sum(jnp.asarray(where, dtype=bool), dtype=jnp.uint32) * jnp.uint32(math.prod(x.shape[1:]))
        low, high, count, nan = _range_of_valid(x, taken, selection(where, x))
    dtype = record.min.dtype
    batch = MinMaxStatistics(
        min=low.astype(dtype),
        max=high.astype(dtype),
        count=_counter.widened(count),
        invalid=_counter.widened(jnp.stack([jnp.zeros_like(nan), nan, taken - count - nan])),
    )
    merged: MinMaxStatistics = merge(record, batch)
    return merged


def _range(x: Array, taken: Array) -> tuple[Array, Array, Array, Array]:
    """Smallest and largest valid value, and how many are valid or NaN; quickly, where all are valid."""
    # XLA's minimum does not show reliably whether there is a NaN. Zero times anything else than a number does, and a
    # sum is three times as fast as a count.
    every = jnp.sum(x * 0.0) == 0.0
    found: tuple[Array, Array, Array, Array] = jax.lax.cond(
        every, lambda x, taken: (jnp.min(x), jnp.max(x), taken, jnp.zeros_like(taken)), _range_of_valid, x, taken
    )
    return found


def _range_of_valid(x: Array, taken: Array, where: Array | None = None) -> tuple[Array, Array, Array, Array]:
    """The same, for what is in ``where``."""
    # XLA turns this comparison and one count into a fast loop; isfinite and a count of the others made it seven times
    # slower on a CPU.
    valid = jnp.abs(x) < jnp.inf
    if where is not None:
        valid = valid & where
    low, high = jnp.min(jnp.where(valid, x, jnp.inf)), jnp.max(jnp.where(valid, x, -jnp.inf))
    count = jnp.sum(valid, dtype=jnp.uint32)

    def count_nan(x: Array, where: Array | None) -> Array:
        return jnp.sum(jnp.isnan(x) if where is None else jnp.isnan(x) & where, dtype=jnp.uint32)

    def count_nan_if_any(x: Array, where: Array | None) -> Array:
        nothing = jnp.zeros_like(count)
        counted: Array = jax.lax.cond(count == taken, lambda *_: nothing, count_nan, x, where)
        return counted

    return low, high, count, jax.lax.platform_dependent(x, where, cpu=count_nan_if_any, default=count_nan)


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
        require_count(level, _counter.counts_of(record), minimum=1)
    return record.min, record.max


@jax.jit
def normalize(scores: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the threshold: ``u = clip((scores - threshold) / (max - min) + 1/2, 0, 1)``.

    See `anomnorm_core.min_max.normalize`.

    Args:
        scores: real array of any shape. float64 is kept, other floating dtypes give float32, and integers JAX's
            default float.
        threshold: decision threshold in raw units.
        min, max: range of the fitted scores (the finalizer `bounds`). A range below the smallest normal number counts
            as none, because XLA on CPU has no subnormal numbers.

    Returns:
        Array of the shape and sharding of ``scores``. Unfitted statistics (``min > max``) give NaN: traced code cannot
        raise on a value; `bounds` raises (clause N8).
    """
    return normalized(KERNELS, scores, threshold, (min, max))


@jax.jit
def margin(scores: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """The distance from the threshold as a share of the range, unclipped. See `anomnorm_core.min_max.margin`."""
    return evaluated(distance, scores, threshold, (min, max))


@jax.jit
def denormalize(unit: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """The raw score of a normalized score. See `anomnorm_core.min_max.denormalize`."""
    return evaluated(_inverse, unit, threshold, (min, max))


def distance(x: Array, t: Array, low: Array, high: Array) -> Array:
    """See `margin`."""
    scale = safe_scale(low, high)
    span = high * scale - low * scale
    return jnp.where(span >= 0, stepped(x, t, scale, span), jnp.nan)


def stepped(x: Array, t: Array, scale: Array, width: Array) -> Array:
    """``(x - t) scale / width``: the limits -inf, 0 and +inf where the width is zero (clause N7)."""
    constant = width == 0
    ratio = (x * scale - t * scale) / jnp.where(constant, 1.0, width)
    step = jnp.where(x < t, -jnp.inf, jnp.where(x > t, jnp.inf, 0.0))
    return jnp.where(constant & ~jnp.isnan(ratio), step, ratio)


def _unit(x: Array, t: Array, low: Array, high: Array) -> Array:
    return jnp.clip(distance(x, t, low, high) + 0.5, 0.0, 1.0)


def _inverse(u: Array, t: Array, low: Array, high: Array) -> Array:
    scale = safe_scale(low, high)
    span = high * scale - low * scale
    x = ((u - 0.5) * span + t * scale) / scale
    return jnp.where((u >= 0) & (u <= 1) & (span >= 0), x, jnp.nan)


def safe_scale(*values: Array) -> Array:
    """1, or the power of two with which neither differences of ``values`` nor twice those overflow.

    It begins before that: XLA multiplies by the reciprocal of a scalar divisor, and the reciprocal of a number above
    2^126 is subnormal, hence zero on CPU.
    """
    largest = float(jnp.finfo(values[0].dtype).max)  # type: ignore[no-untyped-call]
    large = jnp.zeros((), dtype=bool)
    for value in values:
        large = large | (jnp.abs(value) > largest / 16)
    return jnp.where(large, 0.0625, 1.0).astype(values[0].dtype)


KERNELS = Kernels(METHOD, init, update, merge, bounds, unit=_unit, inverse=_inverse, extras={"margin": distance})
