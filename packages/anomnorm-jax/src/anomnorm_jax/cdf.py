"""Log-normal CDF normalization (clauses N2, N3, S3, S4).

The logarithms of the scores of normal data are taken as normally distributed; a score becomes a z-score ("so many
sigmas above normal") and then a probability around a threshold given in sigmas.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import require_count, require_mask, require_resolution, require_same_shape
from anomnorm_jax._arrays import arithmetic, below_half, less, parameter, positive, samples, selection
from anomnorm_jax._double import log_ratio, two_sum
from anomnorm_jax._sharding import automatic, varying

# A deviation smaller than this share of the mean is rounding: the population was constant (clause N7). Scores are
# mostly float32, whose logarithm carries 2^-24 of its size, and moments of it a few times that.
STD_FLOOR = 2.0**-21


class ScoreDistribution(NamedTuple):
    """Moments of ``log(score)`` of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    ``mean`` and ``m2`` carry what rounding took from them in ``mean_tail`` and ``m2_tail``: without float64 a plain
    float32 sum over 10^5 batches would lose half its digits (clause S4).

    Laws: ``init(shape)`` is the identity of ``merge``; ``merge`` is associative and commutative up to rounding;
    updating with a concatenation equals merging the parts, up to rounding.
    """

    count: Array  # type: ignore[assignment]  # shape uint32: images with a valid value here
    mean: Array  # shape float32, or float64 where JAX has it: mean of log(score)
    m2: Array  # shape like mean: sum of squared deviations from the mean
    invalid: Array  # shape uint32: images whose value here was left out
    mean_tail: Array  # shape like mean: the true mean is mean + mean_tail
    m2_tail: Array  # shape like mean: the true sum is m2 + m2_tail


def init(shape: tuple[int, ...] = ()) -> ScoreDistribution:
    """Empty statistics for image scores (``shape=()``) or maps (``shape=(H, W)``), in JAX's default float."""
    # An array for each field: a buffer that stands twice in a record could not be donated.
    return ScoreDistribution(
        count=jnp.zeros(shape, dtype=jnp.uint32),
        mean=jnp.zeros(shape, dtype=float),
        m2=jnp.zeros(shape, dtype=float),
        invalid=jnp.zeros(shape, dtype=jnp.uint32),
        mean_tail=jnp.zeros(shape, dtype=float),
        m2_tail=jnp.zeros(shape, dtype=float),
    )


@jax.jit
@automatic
def update(record: ScoreDistribution, scores: ArrayLike, *, where: ArrayLike | None = None) -> ScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real array of shape (B,) or, for maps, (B, H, W) or (B, 1, H, W). NaN, infinities and values that are
            not positive have no place in the moments of the logarithm; they are left out and counted (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: the pairwise update of Chan, Golub and LeVeque (1983), never ``E[x^2] - E[x]^2``.
    """
    x = samples(arithmetic(scores)[0], record.mean.shape)
    if x.shape[0] == 0:
        return record
    taken = jnp.ones(x.shape[:1], dtype=bool) if where is None else jnp.asarray(where, dtype=bool)
    require_mask(taken.shape, x.shape[0])
    # Distances from a point near the mean keep the digits that the logarithm itself would lose to its size: from the
    # mean so far or, in the first batch, from the first valid score.
    first = _first_valid(x, varying(taken, x), record.count > 0)
    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    # Not jnp.log, which takes subnormal numbers for zero on a CPU.
    reference = jnp.where(record.count > 0, record.mean.astype(x.dtype), _log_ratio(first, zero, one))
    taken = varying(taken, reference)
    if record.mean.ndim == 0:
        batch = _moments(x, taken, reference)
    else:
        # XLA for CPUs reduces the first axis ten times slower than it goes through the images one after the other;
        # others would wait for each of them.
        batch = jax.lax.platform_dependent(x, taken, reference, cpu=_moments_by_image, default=_moments)
    count, mean, mean_tail, m2, m2_tail = batch
    head, tail = two_sum(jnp.where(count > 0, reference, 0.0), mean)
    dtype = record.mean.dtype
    merged: ScoreDistribution = merge(
        record,
        ScoreDistribution(
            count=count,
            mean=head.astype(dtype),
            m2=m2.astype(dtype),
            invalid=jnp.sum(taken, dtype=jnp.uint32) - count,
            mean_tail=(tail + mean_tail).astype(dtype),
            m2_tail=m2_tail.astype(dtype),
        ),
    )
    return merged


def _valid(x: Array) -> Array:
    return jnp.isfinite(x) & positive(x)


def _first_valid(x: Array, taken: Array, known: Array) -> Array:
    """The first valid value along the first axis; 1 where there is none, and anything where the mean is ``known``."""

    def search(x: Array, taken: Array) -> Array:
        valid = _valid(x) & selection(taken, x)
        position = jnp.argmax(valid, axis=0)
        return jnp.where(jnp.any(valid, axis=0), jnp.take_along_axis(x, position[None], axis=0)[0], 1.0)

    # Nearly always the first image has it, and the others need not be looked at.
    here = _valid(x[0]) & taken[0]
    found: Array = jax.lax.cond(jnp.all(known | here), lambda x, _: jnp.where(here, x[0], 1.0), search, x, taken)
    return found


def _distance(x: Array, valid: Array, reference: Array) -> Array:
    """``log(x) - reference``, 0 where ``x`` has no logarithm."""
    return jnp.where(valid, _log_ratio(jnp.where(valid, x, 1.0), reference, jnp.ones((), x.dtype)), 0.0)


def _moments(x: Array, taken: Array, reference: Array) -> tuple[Array, ...]:
    """Count, and mean and m2 of the distances from ``reference`` with their tails, of the first axis of ``x``."""
    valid = _valid(x) & selection(taken, x)
    count = jnp.sum(valid, axis=0, dtype=jnp.uint32)
    distance = _distance(x, valid, reference[None])
    divisor = jnp.maximum(count, 1).astype(x.dtype)
    mean = jnp.sum(distance, axis=0) / divisor
    deviation = jnp.where(valid, distance - mean[None], 0.0)
    # A second pass over the deviations gives what rounding took from the first mean.
    residue = jnp.sum(deviation, axis=0) / divisor
    m2 = jnp.sum(deviation * deviation, axis=0) - divisor * residue * residue
    return count, mean, residue, m2, jnp.zeros_like(m2)


def _moments_by_image(x: Array, taken: Array, reference: Array) -> tuple[Array, ...]:
    """The same as `_moments`, one image after the other (Welford 1962)."""

    def add(so_far: Any, image: tuple[Array, Array]) -> tuple[Any, None]:
        count, mean, mean_tail, m2, m2_tail = so_far
        valid = _valid(image[0]) & image[1]
        distance = _distance(image[0], valid, reference)
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
        count=count, mean=mean, m2=m2, invalid=a.invalid + b.invalid, mean_tail=mean_tail, m2_tail=m2_tail
    )


def mean_std(record: ScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: mean and standard deviation of ``log(score)``. Outside a trace it checks the counts.

    ``std = sqrt(m2 / (count - ddof))``. A pixel that saw no more than ``ddof`` valid values (a border that is always
    zero, say) has no deviation of its own; it takes the pooled one of the level's other pixels, and their mean.

    Args:
        record: statistics in which at least one entry has seen more than ``ddof`` values.
        ddof: degrees of freedom taken off the count; 1 makes the variance unbiased.
        level: ``"image"`` or ``"pixel"``, for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7). Under a trace there is no value to check;
            there both results are NaN.
    """
    if not isinstance(record.count, Tracer):
        count, invalid = int(np.max(record.count)), int(np.max(record.invalid))
        require_count(level, count, invalid, minimum=ddof + 1)
    moments: tuple[Array, Array] = _mean_std(record, ddof)
    return moments


@partial(jax.jit, static_argnames="ddof")
def _mean_std(record: ScoreDistribution, ddof: int) -> tuple[Array, Array]:
    dtype = record.mean.dtype
    known = record.count > ddof
    freedom = jnp.where(known, record.count - ddof, 0).astype(dtype)
    weight = jnp.where(known, record.count, 0).astype(dtype)
    pooled_mean = jnp.sum(weight * record.mean) / jnp.sum(weight)
    pooled_variance = jnp.sum(jnp.where(known, record.m2, 0.0)) / jnp.sum(freedom)
    variance = jnp.where(known, record.m2 / jnp.maximum(freedom, 1.0), pooled_variance)
    return jnp.where(known, record.mean, pooled_mean), jnp.sqrt(variance)


@jax.jit
def standardize(scores: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None) -> Array:
    """Raw scores as z-scores of their logarithm.

    ``z = (log(scores) - mean) / std``; with ``center_at``, ``z = (log(scores) - center_at) / std`` (clause N2): the
    mean cancels, and leaving it out from the start is more accurate than moving the centre afterwards.

    Args:
        scores: real array of any shape. Floating dtypes are kept; integers give JAX's default float.
        mean, std: moments of the logarithm of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``; 0.0 is a centre like any other. All three are numbers
            or arrays that broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Array of the shape and sharding of ``scores``. NaN stays NaN; infinity stays; scores at or below zero, which
        have no logarithm, give the limit -inf (clause N6). Where ``std`` is zero up to rounding (2^-21 of the mean),
        ``z`` is -inf, 0 or +inf below, at or above the centre (clause N7). A NaN ``mean`` or ``std`` gives NaN.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).

    Source: anomalib 0.3, ``CdfNormalizationCallback``.
    """
    x, result = arithmetic(scores)
    require_resolution(x.shape, *(jnp.shape(value) for value in (mean, std, center_at) if value is not None))
    mean, std = parameter(mean, x), parameter(std, x)
    center = mean if center_at is None else parameter(center_at, x)
    floor = STD_FLOOR * jnp.maximum(jnp.abs(mean), jnp.abs(center))
    constant = std <= floor
    finite = positive(x) & (x < jnp.inf)
    safe = jnp.where(finite, x, 1.0)
    # One expression serves both cases: with a scale of one it is the distance from the centre.
    z = _log_ratio(safe, center, jnp.where(constant, 1.0, std))
    step = jnp.where(jnp.abs(z) <= floor, 0.0, jnp.where(z > 0, jnp.inf, -jnp.inf))
    z = jnp.where(constant, step, z)
    z = jnp.where(finite, z, jnp.where(jnp.isnan(x), x, jnp.where(x > 0, jnp.inf, -jnp.inf)))
    # Moments that were never fitted must show also where the centre makes the mean cancel.
    return jnp.where(jnp.isnan(mean) | jnp.isnan(std), jnp.nan, z).astype(result)


def _log_ratio(x: Array, center: Array, scale: Array) -> Array:
    # Where float64 exists it needs no help; float32 does (see `_double`).
    return (jnp.log(x) - center) / scale if x.dtype == jnp.float64 else log_ratio(x, center, scale)


@jax.jit
def standardize_around(scores: ArrayLike, threshold: ArrayLike, mean: ArrayLike, std: ArrayLike) -> tuple[Array, Array]:
    """Raw scores and a threshold known in raw units as z-scores, on the same side of it as before (clauses N4, P2).

    `standardize` rounds: a score just below the threshold can get its z-score, and two libraries can round it
    differently. What is decided on raw scores has to stay decided, so such z-scores are moved by the last place that
    keeps them apart.

    Args:
        scores, mean, std: as for `standardize`.
        threshold: in raw units; rounded to float32 unless ``scores`` is float64.

    Returns:
        ``z`` in the shape and dtype of ``scores``, and the finite z-score of the threshold in the same dtype.
        ``z >= z_threshold`` exactly where ``scores >= threshold``, with equality where those are equal.
    """
    x, result = arithmetic(scores)
    t = parameter(threshold, x)
    info = jnp.finfo(result)  # type: ignore[no-untyped-call]
    z = standardize(scores, mean, std).astype(x.dtype)
    at = jnp.asarray(threshold, dtype=x.dtype)
    z_at = jnp.clip(standardize(at, mean, std), float(info.min), float(info.max)).astype(result)
    z_t = parameter(z_at, x)
    # At least one place of the result, and nothing subnormal, which XLA takes for zero.
    smallest = max(float(info.tiny) * float(info.eps), float(jnp.finfo(x.dtype).tiny))  # type: ignore[no-untyped-call]
    step = jnp.maximum(jnp.abs(z_t) * float(info.eps), smallest)
    below, above = less(x, t), less(t, x)
    z = jnp.where(below, jnp.minimum(z, z_t - step), jnp.where(above & less(z, z_t), z_t, z))
    # A constant population has steps at the threshold (clause N7).
    constant = parameter(std, x) <= STD_FLOOR * jnp.abs(parameter(mean, x))
    z = jnp.where(constant & (below | above), jnp.where(below, -jnp.inf, jnp.inf), z)
    return jnp.where(below | above | jnp.isnan(x), z, z_t).astype(result), z_at


@jax.jit
def normalize(z: ArrayLike, threshold: ArrayLike) -> Array:
    """Map z-scores to [0, 1] with 0.5 at the threshold: ``u = Phi(z - threshold)`` (clause N3).

    ``u >= 0.5`` exactly where ``z >= threshold`` (clause N4): below the threshold ``u`` is at most the largest number
    under 0.5.

    Args:
        z: z-scores (from `standardize`) of any shape. Floating dtypes are kept; integers give the default float.
        threshold: decision threshold in sigmas; a number or an array that broadcasts against ``z``, rounded to
            float32 unless ``z`` is float64.

    Returns:
        Array of the shape and sharding of ``z``. NaN stays NaN, -inf and +inf give 0 and 1 (clause N6).

    Source: anomalib 0.3, ``CdfNormalizationCallback``.
    """
    values, result = arithmetic(z)
    t = parameter(threshold, values)
    # erfc, because (1 + erf) / 2 loses the lower tail, and XLA's erf exceeds 1 and is not monotone.
    u = 0.5 * jax.scipy.special.erfc((t - values) * 0.5**0.5)
    below = less(values, t)
    return jnp.where(below, jnp.minimum(u, below_half(result)), u).astype(result)


@jax.jit
def denormalize(
    unit: ArrayLike, threshold: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None
) -> Array:
    """The raw score of a unit score: ``x = exp(center + std (threshold + Phi^-1(unit)))`` (clause N11).

    Args:
        unit: real array of any shape. Floating dtypes are kept; integers give JAX's default float.
        threshold: in sigmas, as for `normalize`.
        mean, std, center_at: as for `standardize`; the centre is ``center_at`` or, without it, ``mean``.

    Returns:
        Array of the shape and sharding of ``unit``. 0 and 1 give the limits 0 and infinity. NaN and numbers outside
        [0, 1], which are no unit scores, give NaN.

    Raises:
        ResolutionError: as for `standardize`.
    """
    u, result = arithmetic(unit)
    require_resolution(u.shape, *(jnp.shape(value) for value in (mean, std, center_at) if value is not None))
    t, location, scale = parameter(threshold, u), parameter(mean, u), parameter(std, u)
    center = location if center_at is None else parameter(center_at, u)
    z = t + jax.scipy.special.ndtri(u)
    # Without a deviation every z-score is the centre, also an infinite one.
    x = jnp.exp(center + jnp.where(scale == 0, 0.0, scale * z)) + (location - location)
    return jnp.where((u >= 0) & (u <= 1), x, jnp.nan).astype(result)
