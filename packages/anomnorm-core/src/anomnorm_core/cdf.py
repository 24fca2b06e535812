"""Log-normal CDF normalization (clauses N2, N3, S3, S4).

The logarithms of the scores of normal data are taken as normally distributed; a score becomes a z-score ("so many
sigmas above normal") and then a probability around a threshold given in sigmas.
"""

from typing import NamedTuple

import numpy as np

from anomnorm_core._arrays import (
    Array,
    Namespace,
    array_namespace,
    below_half,
    ndtr,
    ndtri,
    parameter,
    quiet,
    samples,
    selection,
    widen,
)
from anomnorm_core.checks import require_count, require_resolution, require_same_shape

# A deviation smaller than this share of the mean is rounding: the population was constant (clause N7). Scores are
# mostly float32, whose logarithm carries 2^-24 of its size, and moments of it a few times that.
STD_FLOOR = 2.0**-21


class ScoreDistribution(NamedTuple):
    """Moments of ``log(score)`` of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    Laws: ``init(shape)`` is the identity of ``merge``; ``merge`` is associative and commutative up to rounding;
    updating with a concatenation equals merging the parts, up to rounding.
    """

    count: Array  # shape int64: images with a valid value here
    mean: Array  # shape float64: mean of log(score)
    m2: Array  # shape float64: sum of squared deviations from the mean
    invalid: Array  # shape int64: images whose value here was left out


def init(shape: tuple[int, ...] = (), *, xp: Namespace = np) -> ScoreDistribution:
    """Empty statistics for image scores (``shape=()``) or maps (``shape=(H, W)``), arrays of the namespace ``xp``."""
    return ScoreDistribution(
        count=xp.zeros(shape, dtype=xp.int64),
        mean=xp.zeros(shape, dtype=xp.float64),
        m2=xp.zeros(shape, dtype=xp.float64),
        invalid=xp.zeros(shape, dtype=xp.int64),
    )


def update(record: ScoreDistribution, scores: Array, *, where: Array | None = None) -> ScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real array of shape (B,) or, for maps, (B, H, W) or (B, 1, H, W). NaN, infinities and values that are
            not positive have no place in the moments of the logarithm; they are left out and counted (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics; ``record`` is not changed.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: the pairwise update of Chan, Golub and LeVeque (1983), never ``E[x^2] - E[x]^2``.
    """
    updated: ScoreDistribution = _update(record, scores, where, xp=array_namespace(scores))
    return updated


@quiet
def _update(record: ScoreDistribution, scores: Array, where: Array | None, *, xp: Namespace) -> ScoreDistribution:
    x = samples(widen(scores, xp)[0], tuple(record.mean.shape), xp)
    taken = selection(where, x, xp)
    valid = taken & xp.isfinite(x) & (x > 0)
    count = xp.sum(xp.astype(valid, xp.int64), axis=0)
    log_x = xp.where(valid, xp.log(xp.where(valid, x, xp.ones_like(x))), xp.zeros_like(x))
    divisor = xp.astype(xp.where(count > 0, count, xp.ones_like(count)), xp.float64)
    mean = xp.sum(log_x, axis=0) / divisor
    deviation = xp.where(valid, log_x - mean, xp.zeros_like(x))
    # A second pass over the deviations removes the rounding error of the first mean.
    residue = xp.sum(deviation, axis=0) / divisor
    batch = ScoreDistribution(
        count=count,
        mean=mean + residue,
        m2=xp.sum(deviation * deviation, axis=0) - divisor * residue * residue,
        invalid=xp.sum(xp.astype(taken & ~valid, xp.int64), axis=0),
    )
    return merge(record, batch)


def merge(a: ScoreDistribution, b: ScoreDistribution) -> ScoreDistribution:
    """Statistics of the union of the data behind ``a`` and ``b``, which must have one shape."""
    require_same_shape(a.mean.shape, b.mean.shape)
    xp = array_namespace(a.mean, b.mean)
    count = a.count + b.count
    share = xp.astype(b.count, xp.float64) / xp.astype(xp.where(count > 0, count, xp.ones_like(count)), xp.float64)
    delta = b.mean - a.mean
    return ScoreDistribution(
        count=count,
        mean=a.mean + delta * share,
        m2=a.m2 + b.m2 + delta * delta * share * xp.astype(a.count, xp.float64),
        invalid=a.invalid + b.invalid,
    )


def mean_std(record: ScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: mean and standard deviation of ``log(score)``.

    ``std = sqrt(m2 / (count - ddof))``. A pixel that saw no more than ``ddof`` valid values (a border that is always
    zero, say) has no deviation of its own; it takes the pooled one of the level's other pixels, and their mean.

    Args:
        record: statistics in which at least one entry has seen more than ``ddof`` values.
        ddof: degrees of freedom taken off the count; 1 makes the variance unbiased.
        level: ``"image"`` or ``"pixel"``, for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7).
    """
    xp = array_namespace(record.mean)
    require_count(level, int(xp.max(record.count)), int(xp.max(record.invalid)), minimum=ddof + 1)
    known = record.count > ddof
    freedom = xp.astype(xp.where(known, record.count - ddof, xp.zeros_like(record.count)), xp.float64)
    weight = xp.astype(xp.where(known, record.count, xp.zeros_like(record.count)), xp.float64)
    pooled_mean = xp.sum(weight * record.mean) / xp.sum(weight)
    pooled_variance = xp.sum(xp.where(known, record.m2, xp.zeros_like(record.m2))) / xp.sum(freedom)
    variance = xp.where(known, record.m2 / xp.where(known, freedom, xp.ones_like(freedom)), pooled_variance)
    return xp.where(known, record.mean, pooled_mean), xp.sqrt(variance)


def standardize(
    scores: Array, mean: Array | float, std: Array | float, center_at: Array | float | None = None
) -> Array:
    """Raw scores as z-scores of their logarithm.

    ``z = (log(scores) - mean) / std``; with ``center_at``, ``z = (log(scores) - center_at) / std`` (clause N2): the
    mean cancels, and leaving it out from the start is more accurate than moving the centre afterwards.

    Args:
        scores: real array of any shape. Floating dtypes are kept; integers give the library's default float.
        mean, std: moments of the logarithm of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``; 0.0 is a centre like any other. All three are numbers
            or arrays that broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Array of the shape and device of ``scores``. NaN stays NaN; infinity stays; scores at or below zero, which
        have no logarithm, give the limit -inf (clause N6). Where ``std`` is zero up to rounding (2^-21 of the mean),
        ``z`` is -inf, 0 or +inf below, at or above the centre (clause N7). A NaN ``mean`` or ``std`` gives NaN.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).

    Source: anomalib 0.3, ``CdfNormalizationCallback``.
    """
    return _standardize(scores, mean, std, center_at, xp=array_namespace(scores))


@quiet
def _standardize(
    scores: Array, mean: Array | float, std: Array | float, center_at: Array | float | None, *, xp: Namespace
) -> Array:
    x, dtype, result = widen(scores, xp)
    require_resolution(x.shape, *(getattr(value, "shape", ()) for value in (mean, std, center_at)))
    mean, std = parameter(mean, x, dtype, xp), parameter(std, x, dtype, xp)
    center = mean if center_at is None else parameter(center_at, x, dtype, xp)
    log_x = xp.log(xp.where(x > 0, x, xp.ones_like(x)))
    log_x = xp.where(x <= 0, xp.asarray(-xp.inf, dtype=x.dtype), xp.where(xp.isnan(x), x, log_x))
    distance = log_x - center
    floor = STD_FLOOR * xp.maximum(xp.abs(mean), xp.abs(center))
    constant = std <= floor
    at_center = constant & (xp.abs(distance) <= floor)
    z = distance / xp.where(constant, xp.zeros_like(std), std)
    # A mean that was never fitted must show also where the centre makes it cancel.
    z = xp.where(at_center, xp.zeros_like(z), z) + (mean - mean)
    return xp.astype(z, result)


def standardize_around(
    scores: Array, threshold: Array | float, mean: Array | float, std: Array | float
) -> tuple[Array, Array]:
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
    return _standardize_around(scores, threshold, mean, std, xp=array_namespace(scores))


@quiet
def _standardize_around(
    scores: Array, threshold: Array | float, mean: Array | float, std: Array | float, *, xp: Namespace
) -> tuple[Array, Array]:
    x, dtype, result = widen(scores, xp)
    t = parameter(threshold, x, dtype, xp)
    z = xp.astype(_standardize(scores, mean, std, None, xp=xp), xp.float64)
    z_t = xp.astype(_standardize(xp.astype(t, dtype), mean, std, None, xp=xp), xp.float64)
    info = xp.finfo(result)
    z_t = xp.astype(xp.astype(xp.clip(z_t, float(info.min), float(info.max)), result), xp.float64)
    # At least one place of the result, and nothing subnormal, which some devices take for zero.
    smallest = max(float(info.smallest_normal) * float(info.eps), float(xp.finfo(dtype).smallest_normal))
    step = xp.maximum(xp.abs(z_t) * float(info.eps), smallest * xp.ones_like(z_t))
    z = xp.where(x < t, xp.minimum(z, z_t - step), xp.where(x > t, xp.maximum(z, z_t), z))
    # A constant population has steps at the threshold (clause N7).
    location, scale = parameter(mean, x, dtype, xp), parameter(std, x, dtype, xp)
    side = xp.where(x < t, -xp.inf * xp.ones_like(x), xp.where(x > t, xp.inf * xp.ones_like(x), z))
    z = xp.where(scale <= STD_FLOOR * xp.abs(location), side, z)
    return xp.astype(xp.where(x == t, z_t, z), result), xp.astype(z_t, result)


def normalize(z: Array, threshold: Array | float) -> Array:
    """Map z-scores to [0, 1] with 0.5 at the threshold: ``u = Phi(z - threshold)`` (clause N3).

    ``u >= 0.5`` exactly where ``z >= threshold`` (clause N4): below the threshold ``u`` is at most the largest number
    under 0.5.

    Args:
        z: z-scores (from `standardize`) of any shape. Floating dtypes are kept; integers give the default float.
        threshold: decision threshold in sigmas; a number or an array that broadcasts against ``z``, rounded to
            float32 unless ``z`` is float64.

    Returns:
        Array of the shape and device of ``z``. NaN stays NaN, -inf and +inf give 0 and 1 (clause N6).

    Source: anomalib 0.3, ``CdfNormalizationCallback``.
    """
    return _normalize(z, threshold, xp=array_namespace(z))


@quiet
def _normalize(z: Array, threshold: Array | float, *, xp: Namespace) -> Array:
    values, dtype, result = widen(z, xp)
    t = parameter(threshold, values, dtype, xp)
    u = ndtr(values - t, xp)
    u = xp.where(values < t, xp.minimum(u, xp.asarray(below_half(result, xp), dtype=u.dtype)), u)
    return xp.astype(u, result)


def denormalize(
    unit: Array,
    threshold: Array | float,
    mean: Array | float,
    std: Array | float,
    center_at: Array | float | None = None,
) -> Array:
    """The raw score of a unit score: ``x = exp(center + std (threshold + Phi^-1(unit)))`` (clause N11).

    Args:
        unit: real array of any shape. Floating dtypes are kept; integers give the library's default float.
        threshold: in sigmas, as for `normalize`.
        mean, std, center_at: as for `standardize`; the centre is ``center_at`` or, without it, ``mean``.

    Returns:
        Array of the shape and device of ``unit``. 0 and 1 give the limits 0 and infinity. NaN and numbers outside
        [0, 1], which are no unit scores, give NaN.

    Raises:
        ResolutionError: as for `standardize`.
    """
    return _denormalize(unit, threshold, mean, std, center_at, xp=array_namespace(unit))


@quiet
def _denormalize(
    unit: Array,
    threshold: Array | float,
    mean: Array | float,
    std: Array | float,
    center_at: Array | float | None,
    *,
    xp: Namespace,
) -> Array:
    u, dtype, result = widen(unit, xp)
    require_resolution(u.shape, *(getattr(value, "shape", ()) for value in (mean, std, center_at)))
    t, mean, std = (parameter(value, u, dtype, xp) for value in (threshold, mean, std))
    center = mean if center_at is None else parameter(center_at, u, dtype, xp)
    z = t + ndtri(u, xp)
    # Without a deviation every z-score is the centre, also an infinite one.
    x = xp.exp(center + xp.where(std == 0, xp.zeros_like(z), std * z))
    return xp.astype(xp.where((u >= 0) & (u <= 1), x + (mean - mean), xp.asarray(xp.nan, dtype=u.dtype)), result)
