"""Log-normal CDF normalization (clauses N2, N3, S3, S4).

The logarithms of the scores of normal data are taken as normally distributed; a score becomes a z-score ("so many
sigmas above normal") and, around a raw threshold, a probability.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import CAUSES, require_count, require_mask, require_same_shape
from anomnorm_core.method import Kernels
from anomnorm_core.methods.cdf import LEAST_STD, METHOD, STD_FLOOR
from anomnorm_jax import _counter
from anomnorm_jax._arrays import arithmetic, evaluated, exact, normalized, samples, selection
from anomnorm_jax._double import log_distance, two_sum
from anomnorm_jax._normal import half_erfc, has_logarithm, log_ratio
from anomnorm_jax._sharding import automatic, varying

__all__ = [
    "ScoreDistribution",
    "denormalize",
    "init",
    "mean_std",
    "merge",
    "normalize",
    "normalize_standardized",
    "standardize",
    "update",
]


class ScoreDistribution(NamedTuple):
    """Moments of ``log(score)`` of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    ``mean`` and ``m2`` carry what rounding took from them in ``mean_tail`` and ``m2_tail``: without float64 a plain
    float32 sum over 10^5 batches would lose half its digits (clause S4).

    Laws: ``init(shape)`` is the identity of ``merge``; ``merge`` is associative and commutative up to rounding;
    updating with a concatenation equals merging the parts, up to rounding.
    """

    #: shape uint32: images with a valid value here
    count: Array  # type: ignore[assignment]
    mean: Array  #: shape float32, or float64 where JAX has it: mean of log(score)
    m2: Array  #: shape like mean: sum of squared deviations from the mean
    zeros: Array  #: shape uint32: images with zero here, left out; the smallest subnormal numbers are zero too
    invalid: Array  #: (2, 3) uint32: left out, of all pixels: negative, NaN, infinite (see ``_counter``)
    mean_tail: Array  #: shape like mean: the true mean is mean + mean_tail
    m2_tail: Array  #: shape like mean: the true sum is m2 + m2_tail


def init(shape: tuple[int, ...] = ()) -> ScoreDistribution:
    """Empty statistics for image scores (``shape=()``) or maps (``shape=(H, W)``), in JAX's default float."""
    # An array for each field: a buffer that stands twice in a record could not be donated.
    return ScoreDistribution(
        count=jnp.zeros(shape, dtype=jnp.uint32),
        mean=jnp.zeros(shape, dtype=float),
        m2=jnp.zeros(shape, dtype=float),
        zeros=jnp.zeros(shape, dtype=jnp.uint32),
        invalid=_counter.zero((len(CAUSES),)),
        mean_tail=jnp.zeros(shape, dtype=float),
        m2_tail=jnp.zeros(shape, dtype=float),
    )


@jax.jit
@automatic
def update(record: ScoreDistribution, scores: ArrayLike, *, where: ArrayLike | None = None) -> ScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real array of shape (B,) or (B, 1) or, for maps, (B, H, W), (B, 1, H, W) or (B, H, W, 1), of less than
            2^32 elements. NaN, infinities and values that are not positive have no place in the moments of the
            logarithm; they are left out and counted, each kind apart (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: the pairwise update of Chan, Golub and LeVeque (1983), never ``E[x^2] - E[x]^2``.
    """
    return updated(LOG, record, scores, where)


class Scale(NamedTuple):
    """What the moments of a record are of: functions of raw scores. Distances on it keep the digits of scores."""

    valid: Callable[[Array], Array]  # which scores are on it
    near: Callable[[Array], Array]  # a score near a mean
    place: Callable[[Array], tuple[Array, Array]]  # where a score is, as head and tail
    distance: Callable[[Array, Array], Array]  # from a second score to the first
    zeros: bool  # whether zero has no place on it, and is counted


def updated(scale: Scale, record: ScoreDistribution, scores: ArrayLike, where: ArrayLike | None) -> ScoreDistribution:
    """The record with the moments on ``scale`` of a batch of raw scores. See `update`."""
    x = samples(arithmetic(scores), record.mean.shape).astype(record.mean.dtype)
    if x.shape[0] == 0:
        return record
    taken = jnp.ones(x.shape[:1], dtype=bool) if where is None else jnp.asarray(where, dtype=bool)
    require_mask(taken.shape, x.shape[0])
    # Distances from a score near the mean keep the digits that the logarithm itself would lose to its size: from the
    # mean so far or, in the first batch, from the first valid score.
    first = _first_valid(scale, x, varying(taken, x), record.count > 0)
    reference = jnp.where(record.count > 0, scale.near(record.mean), first)
    taken = varying(taken, reference)
    if record.mean.ndim == 0:
        batch = _moments(scale, x, taken, reference)
    else:
        # XLA for CPUs reduces the first axis ten times slower than it goes through the images one after the other;
        # others would wait for each of them.
        by_image, at_once = partial(_moments_by_image, scale), partial(_moments, scale)
        batch = jax.lax.platform_dependent(x, taken, reference, cpu=by_image, default=at_once)
    count, mean, mean_tail, m2, m2_tail = batch
    if_any, always = partial(_left_out_if_any, scale), partial(_left_out, scale)
    zeros, causes = jax.lax.platform_dependent(x, taken, count, cpu=if_any, default=always)
    at, at_tail = scale.place(reference)
    head, tail = two_sum(jnp.where(count > 0, at, 0.0), mean)
    merged: ScoreDistribution = merge(
        record,
        ScoreDistribution(
            count=count,
            mean=head,
            m2=m2,
            zeros=zeros,
            invalid=_counter.widened(causes),
            mean_tail=tail + (mean_tail + jnp.where(count > 0, at_tail, 0.0)),
            m2_tail=m2_tail,
        ),
    )
    return merged


def _near_logarithm(mean: Array) -> Array:
    info = jnp.finfo(mean.dtype)  # type: ignore[no-untyped-call]
    return jnp.clip(jnp.exp(mean), float(info.tiny), float(info.max))


LOG = Scale(has_logarithm, _near_logarithm, lambda x: log_distance(x, jnp.zeros_like(x)), log_ratio, zeros=True)


def _first_valid(scale: Scale, x: Array, taken: Array, known: Array) -> Array:
    """The first valid value along the first axis; 1 where there is none, and anything where the mean is ``known``."""

    def search(x: Array, taken: Array) -> Array:
        valid = scale.valid(x) & selection(taken, x)
        position = jnp.argmax(valid, axis=0)
        return jnp.where(jnp.any(valid, axis=0), jnp.take_along_axis(x, position[None], axis=0)[0], 1.0)

    # Nearly always the first image has it, and the others need not be looked at.
    here = scale.valid(x[0]) & taken[0]
    found: Array = jax.lax.cond(jnp.all(known | here), lambda x, _: jnp.where(here, x[0], 1.0), search, x, taken)
    return found


def _left_out(scale: Scale, x: Array, taken: Array, count: Array) -> tuple[Array, Array]:
    """How many values are zero at each pixel, and how many of all pixels negative, NaN, infinite: (3,).

    ``count`` is how many are none of these.
    """
    mask = selection(taken, x)
    zeros = jnp.sum(_is_zero(x) & mask, axis=0, dtype=jnp.uint32) if scale.zeros else jnp.zeros_like(count)
    return zeros, _causes(x, mask, count + zeros)


def _left_out_if_any(scale: Scale, x: Array, taken: Array, count: Array) -> tuple[Array, Array]:
    """The same, quickly where none is left out, and one image after the other (see `update`)."""

    def counted(x: Array, taken: Array, count: Array) -> tuple[Array, Array]:
        if not scale.zeros:
            return _left_out(scale, x, taken, count)

        def add(so_far: Array, image: tuple[Array, Array]) -> tuple[Array, None]:
            return so_far + (_is_zero(image[0]) & image[1]).astype(jnp.uint32), None

        zeros: Array = jax.lax.scan(add, jnp.zeros_like(count), (x, taken))[0]
        return zeros, _causes(x, selection(taken, x), count + zeros)

    def nothing(_x: Array, _taken: Array, count: Array) -> tuple[Array, Array]:
        zeros = jnp.zeros_like(count)
        return zeros, jnp.zeros((len(CAUSES),), dtype=jnp.uint32) + jnp.sum(zeros, dtype=jnp.uint32)

    every = jnp.all(count == jnp.sum(taken, dtype=jnp.uint32))
    found: tuple[Array, Array] = jax.lax.cond(every, nothing, counted, x, taken, count)
    return found


def _causes(x: Array, mask: Array, known: Array) -> Array:
    """How many values of ``mask`` are negative, NaN, infinite; ``known`` are none of these."""
    every, nan, infinite = (
        jnp.sum(which, dtype=jnp.uint32) for which in (mask, jnp.isnan(x) & mask, (jnp.abs(x) == jnp.inf) & mask)
    )
    return jnp.stack([every - jnp.sum(known, dtype=jnp.uint32) - nan - infinite, nan, infinite])


def _is_zero(x: Array) -> Array:
    zero: Array = jnp.abs(x) < float(jnp.finfo(x.dtype).tiny)  # type: ignore[no-untyped-call]
    return zero


def _distance(scale: Scale, x: Array, valid: Array, reference: Array) -> Array:
    """From ``reference`` to ``x`` on the scale, 0 where ``x`` is not on it."""
    return jnp.where(valid, scale.distance(jnp.where(valid, x, 1.0), reference), 0.0)


def _moments(scale: Scale, x: Array, taken: Array, reference: Array) -> tuple[Array, ...]:
    """Count, and mean and m2 of the distances from ``reference`` with their tails, of the first axis of ``x``."""
    valid = scale.valid(x) & selection(taken, x)
    count = jnp.sum(valid, axis=0, dtype=jnp.uint32)
    distance = _distance(scale, x, valid, reference[None])
    divisor = jnp.maximum(count, 1).astype(x.dtype)
    mean = jnp.sum(distance, axis=0) / divisor
    deviation = jnp.where(valid, distance - mean[None], 0.0)
    # A second pass over the deviations gives what rounding took from the first mean.
    residue = jnp.sum(deviation, axis=0) / divisor
    m2 = jnp.sum(deviation * deviation, axis=0) - divisor * residue * residue
    return count, mean, residue, m2, jnp.zeros_like(m2)


def _moments_by_image(scale: Scale, x: Array, taken: Array, reference: Array) -> tuple[Array, ...]:
    """The same as `_moments`, one image after the other (Welford 1962)."""

    def add(so_far: Any, image: tuple[Array, Array]) -> tuple[Any, None]:
        count, mean, mean_tail, m2, m2_tail = so_far
        valid = scale.valid(image[0]) & image[1]
        distance = _distance(scale, image[0], valid, reference)
        count = count + valid.astype(jnp.uint32)
        before = (distance - mean) - mean_tail
        share = before / jnp.maximum(count, 1).astype(x.dtype)
        mean, lost = two_sum(mean, jnp.where(valid, share, 0.0))
        mean_tail = mean_tail + lost
        after = (distance - mean) - mean_tail
        m2, lost = two_sum(m2, jnp.where(valid, before * after, 0.0))
        return (count, mean, mean_tail, m2, m2_tail + lost), None

    zero = jnp.zeros_like(reference)
    empty = (zero.astype(jnp.uint32), zero, zero, zero, zero)
    size: object = x.shape[0]  # a symbol where a program is exported for batches of any size
    images = 4 if isinstance(size, int) else 1
    moments: tuple[Array, ...] = jax.lax.scan(add, empty, (x, taken), unroll=images)[0]
    return moments


@jax.jit
def merge(a: ScoreDistribution, b: ScoreDistribution) -> ScoreDistribution:
    """Statistics of the union of the data behind ``a`` and ``b``, which must have one shape."""
    require_same_shape(a.mean.shape, b.mean.shape)
    count = a.count + b.count
    dtype = a.mean.dtype
    share = b.count.astype(dtype) / jnp.maximum(count, 1).astype(dtype)
    delta = (b.mean - a.mean) + (b.mean_tail - a.mean_tail)
    mean, mean_tail = two_sum(a.mean, delta * share)
    # The first batch is taken over as it is: delta * 1 would round its tail away.
    first = a.count == 0
    mean, mean_tail = two_sum(jnp.where(first, b.mean, mean), jnp.where(first, b.mean_tail, a.mean_tail + mean_tail))
    m2, m2_tail = two_sum(a.m2, b.m2)
    between = delta * delta * share * a.count.astype(dtype)
    m2, m2_tail = two_sum(m2, between + (m2_tail + (a.m2_tail + b.m2_tail)))
    return ScoreDistribution(
        count=count,
        mean=mean,
        m2=m2,
        zeros=a.zeros + b.zeros,
        invalid=_counter.add(a.invalid, b.invalid),
        mean_tail=mean_tail,
        m2_tail=m2_tail,
    )


def mean_std(record: ScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: mean and standard deviation of ``log(score)``. Outside a trace it checks the counts.

    See `anomnorm_core.cdf.mean_std` for the formulas: with ``level="pixel"`` deviations are shrunk toward what is
    typical of the map.

    Args:
        record: statistics in which at least one entry has seen more than ``ddof`` values.
        ddof: degrees of freedom taken off the count; 1 makes the variance unbiased.
        level: ``"image"`` or ``"pixel"``, also for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7). Under a trace there is no value to check;
            there both results are NaN.
    """
    if not isinstance(record.count, Tracer):
        require_count(level, _counter.counts_of(record), minimum=ddof + 1, most=int(np.max(record.count)))
    moments: tuple[Array, Array] = _mean_std(record, ddof, level == "pixel")
    return moments


@partial(jax.jit, static_argnames=("ddof", "shrink"))
def _mean_std(record: ScoreDistribution, ddof: int, shrink: bool) -> tuple[Array, Array]:
    dtype = record.mean.dtype
    known = record.count > ddof
    freedom = jnp.where(known, record.count - ddof, 0).astype(dtype)
    weight = jnp.where(known, record.count, 0).astype(dtype)
    pooled_mean = jnp.sum(weight * record.mean) / jnp.sum(weight)
    pooled_variance = jnp.sum(jnp.where(known, record.m2, 0.0)) / jnp.sum(freedom)
    variance = jnp.where(known, record.m2 / jnp.maximum(freedom, 1.0), pooled_variance)
    mean = jnp.where(known, record.mean, pooled_mean)
    if shrink:
        floor = STD_FLOOR * jnp.maximum(jnp.abs(mean), jnp.sqrt(pooled_variance))
        variance = _shrunk(variance, jnp.where(variance > floor * floor, freedom, 0.0))
    return mean, jnp.sqrt(variance)


def _shrunk(variance: Array, freedom: Array) -> Array:
    """Variances shrunk toward what is typical of them, but those without degrees of freedom."""
    varies = freedom > 0
    half = jnp.maximum(freedom, 1.0) / 2.0
    own = jnp.log(jnp.where(varies, variance, 1.0)) - jax.scipy.special.digamma(half) + jnp.log(half)
    noise = _trigamma(half)
    share = freedom / jnp.maximum(jnp.sum(freedom), 1.0)
    typical = jnp.sum(share * own)
    spread = jnp.maximum(jnp.sum(share * (jnp.square(own - typical) - noise)), 0.0)
    return jnp.where(varies, jnp.exp(typical + spread / (spread + noise) * (own - typical)), variance)


def _trigamma(x: Array) -> Array:
    """The derivative of the digamma function, of numbers from 1/2 on, within 5e-10 of its size in float64.

    JAX's polygamma would take half as long as all else in a validation batch, in which the finalizer is traced.

    Source: Abramowitz and Stegun (1972), 6.4.6 and 6.4.12.
    """
    before = jnp.zeros_like(x)
    for i in range(6):
        before = before + 1.0 / jnp.square(x + i)
    y = 1.0 / (x + 6.0)
    square = y * y
    return before + y * (1.0 + y * (0.5 + y * (1.0 / 6.0 - square * (1.0 / 30.0 - square * (1.0 / 42.0)))))


@jax.jit
def standardize(scores: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None) -> Array:
    """Raw scores as z-scores of their logarithm: ``z = (log(scores) - mean) / std``.

    With ``center_at``, ``z = (log(scores) - center_at) / std`` (clause N2). See `anomnorm_core.cdf.standardize`.

    Args:
        scores: real array of any shape. float64 is kept, other floating dtypes give float32, and integers JAX's
            default float.
        mean, std: moments of the logarithm of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``.

    Returns:
        Array of the shape and sharding of ``scores``.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).
    """
    return evaluated(_z, scores, 1.0, (mean, std, mean if center_at is None else center_at))


@jax.jit
def normalize(
    scores: ArrayLike, threshold: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None
) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the raw threshold: ``u = Phi(log(scores / threshold) / std)`` (clause N3).

    See `anomnorm_core.cdf.normalize`.

    Args:
        scores: real array of any shape, of the dtypes of `standardize`.
        threshold: in raw units, above zero.
        mean, std, center_at: as for `standardize`.

    Returns:
        Array of the shape and sharding of ``scores``.

    Raises:
        ResolutionError: as for `standardize`.
    """
    return normalized(KERNELS, scores, threshold, (mean, std, mean if center_at is None else center_at))


@jax.jit
def normalize_standardized(z: ArrayLike, threshold: ArrayLike) -> Array:
    """Map z-scores to [0, 1] with 0.5 at the threshold in sigmas: ``u = Phi(z - threshold)``.

    See `anomnorm_core.cdf.normalize_standardized`.
    """
    return normalized(_STANDARDIZED, z, threshold, ())


@jax.jit
def denormalize(
    unit: ArrayLike, threshold: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None
) -> Array:
    """The raw score of a normalized score: ``x = threshold exp(std Phi^-1(unit))`` (clause N11).

    See `anomnorm_core.cdf.denormalize`.
    """
    return evaluated(_inverse, unit, threshold, (mean, std, mean if center_at is None else center_at))


def _z(x: Array, _t: Array, mean: Array, std: Array, center: Array) -> Array:
    flat, floor = constant(mean, std, center)
    finite = has_logarithm(x)
    at, offset = _center(center)
    distance = log_ratio(jnp.where(finite, x, 1.0), at) + offset
    z = distance / jnp.where(flat, 1.0, std)
    step = jnp.where(jnp.abs(distance) <= floor, 0.0, jnp.where(distance > 0, jnp.inf, -jnp.inf))
    z = jnp.where(flat, step, z)
    z = jnp.where(finite, z, jnp.where(jnp.isnan(x), x, jnp.where(x > 0, jnp.inf, -jnp.inf)))
    # Moments that were never fitted must show also where the center makes the mean cancel.
    return jnp.where(jnp.isnan(mean) | jnp.isnan(std), jnp.nan, z)


@exact
def _unit(x: Array, t: Array, mean: Array, std: Array, center: Array) -> Array:
    flat, _ = constant(mean, std, center)
    # A threshold that is no number in float32 any more is below all scores.
    steep = flat | (t < float(jnp.finfo(t.dtype).tiny))  # type: ignore[no-untyped-call]
    # No product with a distance may underflow, or scores below the threshold would be at 1/2.
    slope = jnp.where(steep, _STEEP, jnp.maximum(1.0 / jnp.where(flat, 1.0, std), 1.0 / _STEEP))
    slope = slope * -(0.5**0.5) + 0.0 * (mean + t)
    distance = log_ratio(x, t)
    # A step has the derivative 0. What no score enters into is computed apart, and not again for each image.
    return half_erfc(jnp.where(flat, lax.stop_gradient(distance), distance) * lax.optimization_barrier(slope))  # type: ignore[no-untyped-call]


# So large that the step of a constant population is one (clause N7).
_STEEP = 2.0**60


def _inverse(u: Array, t: Array, mean: Array, std: Array, _center: Array) -> Array:
    # Without a deviation every score is the threshold, also an infinite one.
    x = t * jnp.exp(jnp.where(std == 0, 0.0, std * jax.scipy.special.ndtri(u)))
    return jnp.where((u >= 0) & (u <= 1) & ~jnp.isnan(mean), x, jnp.nan)


def constant(mean: Array, std: Array, center: Array, least: float = LEAST_STD) -> tuple[Array, Array]:
    """See `anomnorm_core.methods.cdf.constant`."""
    floor = jnp.maximum(STD_FLOOR * jnp.maximum(jnp.abs(mean), jnp.abs(center)), least)
    return std <= floor, floor


@jax.custom_jvp
def _center(center: Array) -> tuple[Array, Array]:
    """A normal number near ``exp(center)``, and the rest ``log(number) - center``."""
    info = jnp.finfo(center.dtype)  # type: ignore[no-untyped-call]
    low, high = math.log(float(info.tiny)) + 1e-3, math.log(float(info.max)) - 1e-3
    at = jnp.exp(jnp.clip(center, low, high))
    head, tail = log_distance(at, center)
    return at, head + tail


@_center.defjvp
def _center_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # As if the number were fixed: the bit operations inside have no derivative.
    return _center(*primals), (jnp.zeros_like(tangents[0]), -tangents[0])


def phi(distance: Array, std: Array) -> Array:
    """``Phi(distance / std)``, with one factor for all scores: each operation costs digits."""
    return half_erfc(distance * (-(0.5**0.5) / std))


KERNELS = Kernels(METHOD, init, update, merge, mean_std, unit=_unit, inverse=_inverse, extras={"z": _z})
_STANDARDIZED = replace(KERNELS, unit=lambda z, t: phi(z - t, jnp.ones_like(t)))
