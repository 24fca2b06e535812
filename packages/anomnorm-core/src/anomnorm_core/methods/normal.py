"""Normal CDF normalization: the CDF without its logarithm, for scores of any sign (clause N3b).

The scores of normal data themselves are taken as normally distributed: log-likelihoods, those of flows,
``-score_samples``.
"""

from typing import NamedTuple

import numpy as np

from anomnorm_core._arrays import (
    Array,
    Namespace,
    array_namespace,
    causes,
    evaluated,
    moments,
    ndtr,
    ndtri,
    normalized,
    quiet,
    samples,
    selection,
    widen,
)
from anomnorm_core.method import Kernels, Method
from anomnorm_core.methods import cdf
from anomnorm_core.options import LARGEST_FLOAT32

__all__ = ["RawScoreDistribution", "denormalize", "init", "mean_std", "merge", "normalize", "standardize", "update"]

METHOD = Method(
    name="normal",
    parameters=("mean", "std"),
    per_pixel=True,
    sigmas=True,
    extras=("z",),
    options=cdf.METHOD.options,
    title="normal CDF",
)

# What a deviation is at least, also around zero, where 2^-21 of the mean is nothing: the smallest normal number of
# float32, because some devices take what is below it for zero. (The CDF's 2^-24 is the rounding of a score in its
# logarithm; here that is a share of the score.)
LEAST_STD = float(np.finfo(np.float32).tiny)


class RawScoreDistribution(NamedTuple):
    """Moments of the scores of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    The fields and laws are those of `cdf.ScoreDistribution`, which has moments of the logarithm: the types are two so
    that none is taken for the other.
    """

    count: Array  #: shape int64: images with a valid value here
    mean: Array  #: shape float64: mean of the scores
    m2: Array  #: shape float64: sum of squared deviations from the mean
    zeros: Array  #: shape int64: none, because a zero is a score like any other
    invalid: Array  #: (3,) int64: values left out, of all pixels, which are negative (here none are), NaN, infinite


def init(shape: tuple[int, ...] = (), *, xp: Namespace = np) -> RawScoreDistribution:
    """Empty statistics for image scores (``shape=()``) or maps (``shape=(H, W)``), arrays of the namespace ``xp``."""
    return RawScoreDistribution(*cdf.init(shape, xp=xp))


@quiet
def update(record: RawScoreDistribution, scores: Array, *, where: Array | None = None) -> RawScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real array of shape (B,) or (B, 1) or, for maps, (B, H, W), (B, 1, H, W) or (B, H, W, 1). NaN and
            infinities are left out and counted, each kind apart (clause S6).
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics; ``record`` is not changed.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: as for `cdf.update`.
    """
    xp = array_namespace(scores)
    x = samples(widen(scores, xp)[0], tuple(record.mean.shape), xp)
    taken = selection(where, x, xp)
    count, mean, m2 = moments(x, taken & xp.isfinite(x), xp)
    return merge(record, RawScoreDistribution(count, mean, m2, xp.zeros_like(count), causes(x, taken, count, xp)))


def merge(a: RawScoreDistribution, b: RawScoreDistribution) -> RawScoreDistribution:
    """Statistics of the union of the data behind ``a`` and ``b``, which must have one shape."""
    return RawScoreDistribution(*cdf.merge(cdf.ScoreDistribution(*a), cdf.ScoreDistribution(*b)))


def mean_std(record: RawScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Array, Array]:
    """The finalizer: mean and standard deviation of the scores.

    Args:
        record, ddof, level: as for `cdf.mean_std`, which also says what a pixel without a deviation of its own takes.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7).
    """
    return cdf.mean_std(cdf.ScoreDistribution(*record), ddof=ddof, level=level)


def standardize(
    scores: Array, mean: Array | float, std: Array | float, center_at: Array | float | None = None
) -> Array:
    """Raw scores as z-scores.

    ``z = (scores - mean) / std``; with ``center_at``, ``z = (scores - center_at) / std`` (clause N3b).

    Args:
        scores: real array of any shape and sign. float64 is kept, other floating dtypes give float32, and integers the
            library's default float.
        mean, std: moments of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``; 0.0 is a center like any other. All three are numbers of
            float32's range or arrays that broadcast against ``scores``, and are rounded to float32 unless ``scores``
            is float64.

    Returns:
        Array of the shape and device of ``scores``. NaN and infinities stay (clause N6). Where ``std`` is zero up to
        rounding (at most 2^-21 of the mean or center, or 2^-126), ``z`` is -inf, 0 or +inf below, at or above the
        center (clause N7). A NaN ``mean`` or ``std`` gives NaN.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).
    """
    return evaluated(_z, scores, 0.0, (mean, std, mean if center_at is None else center_at))


def normalize(
    scores: Array,
    threshold: Array | float,
    mean: Array | float,
    std: Array | float,
    center_at: Array | float | None = None,
) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the threshold: ``u = Phi((scores - threshold) / std)`` (clause N3b).

    With ``threshold = center + std t`` this is ``Phi(z - t)``, ``t`` in sigmas. ``u >= 0.5`` exactly where
    ``scores >= threshold`` (clause N4): below it ``u`` is at most the largest number under 0.5.

    Args:
        scores: real array of any shape, of the dtypes of `standardize`.
        threshold: decision threshold in raw units: a number or an array that broadcasts against ``scores``, rounded to
            float32 unless ``scores`` is float64. A normalizer's ``raw_threshold`` converts.
        mean, std, center_at: as for `standardize`; the threshold holds all that is needed of the mean and the center,
            which only say here whether ``std`` is rounding.

    Returns:
        Array of the shape and device of ``scores``. NaN stays NaN, infinities give 0 and 1 (clause N6). Where ``std``
        is zero up to rounding the result is 0, 0.5 or 1 for scores below, at or above the threshold (clause N7). The
        derivative is that of the formula, also at the threshold.

    Raises:
        ResolutionError: as for `standardize`.
    """
    return normalized(KERNELS, scores, threshold, (mean, std, mean if center_at is None else center_at))


def denormalize(
    unit: Array,
    threshold: Array | float,
    mean: Array | float,
    std: Array | float,
    center_at: Array | float | None = None,
) -> Array:
    """The raw score of a normalized score: ``x = threshold + std Phi^-1(unit)`` (clause N11).

    Args:
        unit: real array of any shape, of the dtypes of `standardize`.
        threshold, mean, std, center_at: as for `normalize`.

    Returns:
        Array of the shape and device of ``unit``. 0 and 1 give the limits -inf and +inf. NaN and numbers outside
        [0, 1], which are no normalized scores, give NaN.

    Raises:
        ResolutionError: as for `standardize`.
    """
    return evaluated(_inverse, unit, threshold, (mean, std, mean if center_at is None else center_at))


def _z(x: Array, _t: Array, mean: Array, std: Array, center: Array) -> Array:
    xp = array_namespace(x)
    distance = x - center
    flat, floor = cdf.constant(mean, std, center, LEAST_STD)
    z = distance / xp.where(flat, xp.zeros_like(std), std)
    # A mean that was never fitted must show also where the center makes it cancel.
    return xp.where(flat & (xp.abs(distance) <= floor), xp.zeros_like(z), z) + (mean - mean)


def _unit(x: Array, t: Array, mean: Array, std: Array, center: Array) -> Array:
    xp = array_namespace(x)
    flat, _ = cdf.constant(mean, std, center, LEAST_STD)
    distance = x - t
    z = xp.where(x == t, xp.zeros_like(distance), distance / xp.where(flat, xp.zeros_like(std), std))
    return ndtr(z, xp) + (mean - mean) + (std - std)  # NaN where either was never fitted


def _inverse(u: Array, t: Array, mean: Array, std: Array, _center: Array) -> Array:
    xp = array_namespace(u)
    # Without a deviation every score is the threshold.
    x = t + xp.where(std == 0, xp.zeros_like(u), std * ndtri(u, xp)) + (mean - mean)
    return xp.where((u >= 0) & (u <= 1), x, xp.asarray(xp.nan, dtype=u.dtype))


# What follows is computed once, on the host, in float64, for all packages.


@quiet
def raw_threshold(
    sigmas: float, mean: np.ndarray, std: np.ndarray, center: np.ndarray, *, found: bool = False
) -> np.ndarray:
    """The raw threshold of a threshold in sigmas: ``center + std sigmas``, float64 (clauses N3b, N7).

    Of a constant population no normal score may be flagged at positive sigmas: there the threshold is the first float32
    above what is still at the center, ``center + 2^-21 max(|mean|, |center|)``; at zero it is the center, and below
    zero the first one under ``center - 2^-21 max(|mean|, |center|)``. It is never subnormal: some devices take such
    numbers for zero, and the same scores lie on either side of the next one that is not.

    Args:
        sigmas: the threshold.
        mean, std, center: of the scores, float64, of shape () or (H, W).
        found: whether it was found among z-scores, which are rounded. Then the score that defines it has to be flagged:
            the result is the smallest float32 whose ``z`` is at least ``sigmas`` less the error bound of ``z``
            (clauses N4a, N13).
    """
    mean, std, center = (np.asarray(value, dtype=np.float64) for value in (mean, std, center))
    flat, floor = cdf.constant(mean, std, center, LEAST_STD)
    step = np.sign(sigmas)
    raw, at = center + std * sigmas, center
    if found:
        bound = 4 * np.spacing(np.float32(abs(sigmas)))
        raw, at = cdf.float32_at_or_above(center + std * (sigmas - bound)), cdf.float32_at_or_above(center - floor)
    raw = np.where(flat, cdf.float32_beyond(center + step * floor, step) if step else at, raw)
    return np.where(np.abs(raw) < LEAST_STD, np.where(raw > 0, LEAST_STD, 0.0), raw)


@quiet
def sigmas(raw: np.ndarray, mean: np.ndarray, std: np.ndarray, center: np.ndarray) -> np.ndarray:
    """A raw threshold in sigmas: ``(raw - center) / std``, float64, finite."""
    z = _z(*(np.asarray(value, dtype=np.float64) for value in (raw, 0.0, mean, std, center)))
    return np.asarray(np.clip(z, -LARGEST_FLOAT32, LARGEST_FLOAT32))


KERNELS = Kernels(
    METHOD,
    init,
    update,
    merge,
    mean_std,
    unit=_unit,
    inverse=_inverse,
    extras={"z": _z},
    raw_threshold=raw_threshold,
    sigmas=sigmas,
    check=cdf.check,
)
