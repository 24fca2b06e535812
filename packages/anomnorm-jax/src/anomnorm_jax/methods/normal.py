"""Normal CDF normalization: the CDF without its logarithm, for scores of any sign (clause N3b).

The scores of normal data themselves are taken as normally distributed: log-likelihoods, those of flows,
``-score_samples``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.method import Kernels
from anomnorm_core.methods.normal import LEAST_STD, METHOD
from anomnorm_jax._arrays import evaluated, normalized
from anomnorm_jax._sharding import automatic
from anomnorm_jax.methods import cdf

__all__ = ["RawScoreDistribution", "denormalize", "init", "mean_std", "merge", "normalize", "standardize", "update"]


class RawScoreDistribution(NamedTuple):
    """Moments of the scores of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    Squares of deviations are summed in float32 where JAX has no float64: a deviation below 2^-60 may count as none, and
    one above 2^60 may not be finite, which a fit refuses. See `cdf.ScoreDistribution` for the tails, and
    `anomnorm_core.normal.RawScoreDistribution`.
    """

    #: shape uint32: images with a valid value here
    count: Array  # type: ignore[assignment]
    mean: Array  #: shape float32, or float64 where JAX has it: mean of the scores
    m2: Array  #: shape like mean: sum of squared deviations from the mean
    zeros: Array  #: shape uint32: none, because a zero is a score like any other
    invalid: Array  #: (2, 3) uint32: left out, of all pixels: negative (none here), NaN, infinite (see ``_counter``)
    mean_tail: Array  #: shape like mean: the true mean is mean + mean_tail
    m2_tail: Array  #: shape like mean: the true sum is m2 + m2_tail


_RAW = cdf.Scale(jnp.isfinite, lambda mean: mean, lambda x: (x, jnp.zeros_like(x)), jnp.subtract, zeros=False)


def init(shape: tuple[int, ...] = ()) -> RawScoreDistribution:
    """Empty statistics for image scores (``shape=()``) or maps (``shape=(H, W)``), in JAX's default float."""
    return RawScoreDistribution(*cdf.init(shape))


@jax.jit
@automatic
def update(record: RawScoreDistribution, scores: ArrayLike, *, where: ArrayLike | None = None) -> RawScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real array of shape (B,) or (B, 1) or, for maps, (B, H, W), (B, 1, H, W) or (B, H, W, 1), of less than
            2^32 elements. NaN and infinities are left out and counted, each kind apart (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: as for `cdf.update`.
    """
    return RawScoreDistribution(*cdf.updated(_RAW, cdf.ScoreDistribution(*record), scores, where))


def merge(a: RawScoreDistribution, b: RawScoreDistribution) -> RawScoreDistribution:
    """Statistics of the union of the data behind ``a`` and ``b``, which must have one shape."""
    return RawScoreDistribution(*cdf.merge(cdf.ScoreDistribution(*a), cdf.ScoreDistribution(*b)))


def mean_std(record: RawScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: mean and standard deviation of the scores. Outside a trace it checks the counts.

    See `anomnorm_core.normal.mean_std`.

    Args:
        record, ddof, level: as for `cdf.mean_std`.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7). Under a trace there is no value to check;
            there both results are NaN.
    """
    return cdf.mean_std(cdf.ScoreDistribution(*record), ddof=ddof, level=level)


@jax.jit
def standardize(scores: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None) -> Array:
    """Raw scores as z-scores: ``z = (scores - mean) / std``.

    With ``center_at``, ``z = (scores - center_at) / std`` (clause N3b). See `anomnorm_core.normal.standardize`.

    Args:
        scores: real array of any shape and sign. float64 is kept, other floating dtypes give float32, and integers
            JAX's default float.
        mean, std: moments of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``.

    Returns:
        Array of the shape and sharding of ``scores``.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).
    """
    return evaluated(_z, scores, 0.0, (mean, std, mean if center_at is None else center_at))


@jax.jit
def normalize(
    scores: ArrayLike, threshold: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None
) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the raw threshold: ``u = Phi((scores - threshold) / std)`` (clause N3b).

    See `anomnorm_core.normal.normalize`.

    Args:
        scores: real array of any shape, of the dtypes of `standardize`.
        threshold: in raw units.
        mean, std, center_at: as for `standardize`.

    Returns:
        Array of the shape and sharding of ``scores``.

    Raises:
        ResolutionError: as for `standardize`.
    """
    return normalized(KERNELS, scores, threshold, (mean, std, mean if center_at is None else center_at))


@jax.jit
def denormalize(
    unit: ArrayLike, threshold: ArrayLike, mean: ArrayLike, std: ArrayLike, center_at: ArrayLike | None = None
) -> Array:
    """The raw score of a normalized score: ``x = threshold + std Phi^-1(unit)`` (clause N11).

    See `anomnorm_core.normal.denormalize`.

    Args:
        unit: real array of any shape, of the dtypes of `standardize`.
        threshold, mean, std, center_at: as for `normalize`.

    Returns:
        Array of the shape and sharding of ``unit``.

    Raises:
        ResolutionError: as for `standardize`.
    """
    return evaluated(_inverse, unit, threshold, (mean, std, mean if center_at is None else center_at))


def _scaled(x: Array, at: Array, std: Array, largest: Array) -> tuple[Array, Array]:
    """``x - at`` and ``std``, both in a scale in which they stay finite; ``largest`` is what may be too large.

    XLA multiplies by the reciprocal of a divisor, which above 2^126 is subnormal, hence zero on CPU.
    """
    info = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    # Scaling by one is exact; up to here, no difference from a finite score is rounded to an infinite number.
    scale = jnp.where(largest < float(info.max) * float(info.eps) / 4, 1.0, 0.0625).astype(x.dtype)
    return x * scale - at * scale, std * scale


def _z(x: Array, _t: Array, mean: Array, std: Array, center: Array) -> Array:
    flat, floor = cdf.constant(mean, std, center, LEAST_STD)
    finite = jnp.isfinite(x)
    distance, width = _scaled(jnp.where(finite, x, center), center, std, jnp.maximum(jnp.abs(center), std))
    z = distance / jnp.where(flat, 1.0, width)
    step = jnp.where(jnp.abs(x - center) <= floor, 0.0, jnp.where(x > center, jnp.inf, -jnp.inf))
    z = jnp.where(finite, jnp.where(flat, step, z), x)
    # Moments that were never fitted must show also where the center makes the mean cancel.
    return jnp.where(jnp.isnan(mean) | jnp.isnan(std), jnp.nan, z)


def _unit(x: Array, t: Array, mean: Array, std: Array, center: Array) -> Array:
    flat, _ = cdf.constant(mean, std, center, LEAST_STD)
    finite = jnp.isfinite(x)
    distance, width = _scaled(jnp.where(finite, x, t), t, std, std)
    # A quotient that is infinite has no slope, and the result is 0 or 1 long before.
    u = cdf.phi(jnp.clip(distance, -64.0 * width, 64.0 * width), jnp.where(flat, 1.0, width))
    limit = jnp.where(x < t, 0.0, jnp.where(x > t, 1.0, 0.5))
    u = jnp.where(flat | ~finite, jnp.where(jnp.isnan(x), x, limit), u)
    return jnp.where(jnp.isnan(mean) | jnp.isnan(std) | jnp.isnan(t), jnp.nan, u)


def _inverse(u: Array, t: Array, mean: Array, std: Array, _center: Array) -> Array:
    # Without a deviation every score is the threshold.
    x = t + jnp.where(std == 0, 0.0, std * jax.scipy.special.ndtri(u))
    return jnp.where((u >= 0) & (u <= 1) & ~jnp.isnan(mean), x, jnp.nan)


KERNELS = Kernels(METHOD, init, update, merge, mean_std, unit=_unit, inverse=_inverse, extras={"z": _z})
