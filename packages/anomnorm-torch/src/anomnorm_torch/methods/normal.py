"""Normal CDF normalization: the CDF without its logarithm, for scores of any sign (clause N3b).

The scores of normal data themselves are taken as normally distributed: log-likelihoods, those of flows,
``-score_samples``.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core import normal as core
from anomnorm_core.checks import CAUSES
from anomnorm_core.method import Kernels
from anomnorm_torch._kernels import Specialized, evaluated, limited, scored, specializes
from anomnorm_torch._normal import ndtr
from anomnorm_torch._tensors import arithmetic, causes, is_differentiated, samples, selection, wide
from anomnorm_torch._tiles import filled, finite_range, is_readable
from anomnorm_torch.methods import cdf
from anomnorm_torch.methods.min_max import side

__all__ = ["RawScoreDistribution", "denormalize", "init", "mean_std", "merge", "normalize", "standardize", "update"]

METHOD = core.METHOD


class RawScoreDistribution(NamedTuple):
    """Moments of the scores of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    See `anomnorm_core.normal.RawScoreDistribution`.
    """

    #: shape int64: images with a valid value here
    count: Tensor  # type: ignore[assignment]
    mean: Tensor  #: shape float64: mean of the scores
    m2: Tensor  #: shape float64: sum of squared deviations from the mean
    zeros: Tensor  #: shape int64: none, because a zero is a score like any other
    invalid: Tensor  #: (3,) int64: values left out, of all pixels, which are negative (here none are), NaN, infinite


def init(shape: tuple[int, ...] = (), *, device: torch.device | str = "cpu") -> RawScoreDistribution:
    """Empty statistics on ``device`` for image scores (``shape=()``) or maps (``shape=(H, W)``).

    Accumulators are float64, or float32 where the device has none.
    """
    return RawScoreDistribution(*cdf.init(shape, device=device))


def update(record: RawScoreDistribution, scores: Tensor, *, where: Tensor | None = None) -> RawScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real tensor of shape (B,) or (B, 1) or, for maps, (B, H, W), (B, 1, H, W) or (B, H, W, 1). NaN and
            infinities are left out and counted, each kind apart (clause S6).
        where: boolean tensor of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics on the device of ``record``, which is not changed. Only on a CPU values are read, so no device
        is waited for.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: as for `cdf.update`.
    """
    x = samples(arithmetic(scores).detach(), tuple(record.mean.shape))
    if x.shape[0] == 0:
        return record
    taken = selection(where, x)
    if taken is None and finite_range(x) is not None:
        count, mean, m2 = cdf.moments_of_all(x, lambda values: values)
        invalid = torch.zeros(len(CAUSES), dtype=torch.int64, device=x.device)
    else:
        valid = x.isfinite() if taken is None else x.isfinite().logical_and_(taken)
        values = torch.where(valid, x, 0.0).to(wide(x.device))
        count, mean, m2 = cdf.moments_of_some(values, valid)
        invalid = causes(x, taken, count)
    return merge(record, RawScoreDistribution(count, mean, m2, torch.zeros_like(count), invalid))


def merge(a: RawScoreDistribution, b: RawScoreDistribution) -> RawScoreDistribution:
    """Statistics of the union of the data behind ``a`` and ``b``, which must have one shape, on the device of ``a``."""
    return RawScoreDistribution(*cdf.merge(cdf.ScoreDistribution(*a), cdf.ScoreDistribution(*b)))


def mean_std(record: RawScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Tensor, Tensor]:
    """The finalizer: mean and standard deviation of the scores. Waits for the device: call it once per stage.

    See `anomnorm_core.normal.mean_std`.

    Args:
        record, ddof, level: as for `cdf.mean_std`.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7).
    """
    return cdf.mean_std(cdf.ScoreDistribution(*record), ddof=ddof, level=level)


def standardize(
    scores: Tensor, mean: Tensor | float, std: Tensor | float, center_at: Tensor | float | None = None
) -> Tensor:
    """Raw scores as z-scores: ``z = (scores - center) / std``.

    See `anomnorm_core.normal.standardize`.

    Args:
        scores: real tensor of any shape and sign.
        mean, std: moments of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``. All three are numbers or tensors that broadcast against
            ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Tensor of the shape and device of ``scores``, float64 for float64 and float32 for other floating dtypes.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).
    """
    return evaluated(_z, scores, 0.0, (mean, std, mean if center_at is None else center_at))


def normalize(
    scores: Tensor,
    threshold: Tensor | float,
    mean: Tensor | float,
    std: Tensor | float,
    center_at: Tensor | float | None = None,
) -> Tensor:
    """Map raw scores to [0, 1] with 0.5 at the threshold: ``u = Phi((scores - threshold) / std)``.

    See `anomnorm_core.normal.normalize`. The result is differentiable, with the derivative of the formula also at the
    threshold itself.

    Args:
        scores: real tensor of any shape and sign.
        threshold: decision threshold in raw units.
        mean, std, center_at: as for `standardize`.
    """
    return scored(KERNELS, scores, threshold, (mean, std, mean if center_at is None else center_at))[0]


def denormalize(
    unit: Tensor,
    threshold: Tensor | float,
    mean: Tensor | float,
    std: Tensor | float,
    center_at: Tensor | float | None = None,
) -> Tensor:
    """The raw score of a normalized score: ``x = threshold + std Phi^-1(unit)``.

    See `anomnorm_core.normal.denormalize`.

    Args:
        unit: real tensor of any shape.
        threshold, mean, std, center_at: as for `normalize`.
    """
    return evaluated(_inverse, unit, threshold, (mean, std, mean if center_at is None else center_at))


def _scaled(x: Tensor, at: Tensor, std: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """``x - at`` and ``std``, both in a scale in which they stay finite; ``largest`` is what may be too large."""
    info = torch.finfo(x.dtype)
    # Scaling by one is exact; up to here, no difference from a finite score is rounded to an infinite number.
    scale = torch.where(largest < info.max * info.eps / 4, 1.0, 0.25).to(x.dtype)
    return x * scale - at * scale, std * scale


def _z(x: Tensor, _t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> Tensor:
    if is_readable(x, mean, std, center) and not is_differentiated(x, mean, std, center):
        factor = cdf.reciprocal(mean, std, center, core.LEAST_STD)
        if factor is not None:
            return filled(_standardize, x, (center.to(factor.dtype), factor))
    return limited(_distance, x, center, mean, std, limits=(-math.inf, math.inf))


def _standardize(x: Tensor, center: Tensor, factor: Tensor, z: Tensor) -> None:
    z.copy_(x.to(center.dtype, copy=True).sub_(center).mul_(factor))


def _distance(x: Tensor, center: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    flat, floor = cdf.constant(mean, std, center, core.LEAST_STD)
    distance, width = _scaled(x, center, std, torch.maximum(center.abs(), std))
    step = torch.where((x - center).abs() <= floor, 0.0, torch.sign(distance.detach()) * math.inf)
    return torch.where(flat, step, distance / torch.where(flat, 1.0, width)) + mean * 0.0


def _unit(x: Tensor, t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> Tensor:
    flat, _ = cdf.constant(mean, std, center, core.LEAST_STD)
    distance, width = _scaled(x, t, std, std)
    if is_differentiated(distance, width):
        # An infinite quotient has no slope, and the result is 0 or 1 long before.
        distance = distance.clamp(-64.0 * width, 64.0 * width)
    return ndtr(torch.where(flat, side(x, t), distance / torch.where(flat, 1.0, width)) + mean * 0.0)


def _inverse(u: Tensor, t: Tensor, mean: Tensor, std: Tensor, _center: Tensor) -> Tensor:
    precise = wide(u.device)
    # Without a deviation every score is the threshold.
    distance = torch.where(std == 0, 0.0, std.to(precise) * torch.special.ndtri(u.to(precise)))
    x = t.to(precise) + distance + mean * 0.0
    return torch.where((u >= 0) & (u <= 1), x, math.nan).to(u.dtype)


@specializes(_unit)
def specialize(_t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> Specialized | None:
    """The formula in few operations, where no population is constant and no deviation near the largest numbers."""
    factor = cdf.reciprocal(mean, std, center, core.LEAST_STD)
    if factor is None or not std.numel() or float(std.amax()) > _WIDE:
        return None
    return _erfc, ((factor * -(0.5**0.5)).to(std.dtype),)


_WIDE = 2.0**100  # a difference that is infinite then is so many deviations that the result is 0 or 1


def _erfc(x: Tensor, t: Tensor, factor: Tensor, *, out: Tensor) -> None:
    torch.sub(x, t, out=out)
    # Below the threshold at most the number under 1/2: erfc of a small number is 1.
    most = out.sign().add_(1.0).clamp_(min=0.5 - torch.finfo(x.dtype).eps / 4)
    torch.minimum(out.mul_(factor).erfc_().mul_(0.5), most, out=out)


KERNELS = Kernels(METHOD, init, update, merge, mean_std, unit=_unit, inverse=_inverse, extras={"z": _z})
