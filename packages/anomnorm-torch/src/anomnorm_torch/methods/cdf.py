"""Log-normal CDF normalization (clauses N2, N3, S3, S4).

The logarithms of the scores of normal data are taken as normally distributed; a score becomes a z-score ("so many
sigmas above normal") and, around a raw threshold, a probability.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core import cdf as core
from anomnorm_core.checks import CAUSES, counts_of, require_count, require_same_shape
from anomnorm_core.method import Kernels
from anomnorm_torch._kernels import Specialized, apart, evaluated, in_parts, limited, scored, specializes
from anomnorm_torch._normal import log_ratio, ndtr
from anomnorm_torch._tensors import arithmetic, causes, is_differentiated, samples, selection, wide
from anomnorm_torch._tiles import columns, filled, finite_range, is_readable

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

METHOD = core.METHOD


class ScoreDistribution(NamedTuple):
    """Moments of ``log(score)`` of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    Laws: ``init(shape)`` is the identity of ``merge``; ``merge`` is associative and commutative up to rounding;
    updating with a concatenation equals merging the parts, up to rounding.
    """

    #: shape int64: images with a valid value here
    count: Tensor  # type: ignore[assignment]
    mean: Tensor  #: shape float64: mean of log(score)
    m2: Tensor  #: shape float64: sum of squared deviations from the mean
    zeros: Tensor  #: shape int64: images with exactly zero here, left out
    invalid: Tensor  #: (3,) int64: values left out, of all pixels, which are negative, NaN, infinite


def init(shape: tuple[int, ...] = (), *, device: torch.device | str = "cpu") -> ScoreDistribution:
    """Empty statistics on ``device`` for image scores (``shape=()``) or maps (``shape=(H, W)``).

    Accumulators are float64, or float32 where the device has none.
    """
    dtype = wide(torch.device(device))
    return ScoreDistribution(
        count=torch.zeros(shape, dtype=torch.int64, device=device),
        mean=torch.zeros(shape, dtype=dtype, device=device),
        m2=torch.zeros(shape, dtype=dtype, device=device),
        zeros=torch.zeros(shape, dtype=torch.int64, device=device),
        invalid=torch.zeros(len(CAUSES), dtype=torch.int64, device=device),
    )


def update(record: ScoreDistribution, scores: Tensor, *, where: Tensor | None = None) -> ScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real tensor of shape (B,) or (B, 1) or, for maps, (B, H, W), (B, 1, H, W) or (B, H, W, 1). NaN,
            infinities and values that are not positive have no place in the moments of the logarithm; they are left out
            and counted, each kind apart (clause S6).
        where: boolean tensor of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics on the device of ``record``, which is not changed. Only on a CPU values are read, so no device
        is waited for.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: the pairwise update of Chan, Golub and LeVeque (1983), never ``E[x^2] - E[x]^2``.
    """
    x = samples(arithmetic(scores).detach(), tuple(record.mean.shape))
    if x.shape[0] == 0:
        return record
    taken = selection(where, x)
    known = finite_range(x) if taken is None else None
    if known is not None and known[0] > 0:
        count, mean, m2 = moments_of_all(x, Tensor.log_)
        nothing = torch.zeros(len(CAUSES), dtype=torch.int64, device=x.device)
        return merge(record, ScoreDistribution(count, mean, m2, torch.zeros_like(count), nothing))
    log_x = x.to(wide(x.device), copy=True)
    valid, zero = (log_x > 0).logical_and_(log_x < math.inf), log_x == 0
    if taken is not None:
        valid.logical_and_(taken)
        zero.logical_and_(taken)
    zeros = zero.sum(dim=0)
    count, mean, m2 = moments_of_some(log_x.masked_fill_(valid.logical_not(), 1.0).log_(), valid)
    return merge(record, ScoreDistribution(count, mean, m2, zeros, causes(x, taken, count + zeros)))


def moments_of_all(x: Tensor, transform: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations along the first axis, of finite values.

    Without masks, and a piece of the pixels at a time.

    Args:
        x: raw scores.
        transform: works in place; its results are what the moments are of.
    """
    rows = x.reshape(x.shape[0], -1)
    dtype = wide(x.device)
    mean, m2 = torch.empty((2, rows.shape[1]), dtype=dtype, device=x.device)
    memory = None
    for column in columns(rows):
        piece = rows[:, column]
        if memory is None:
            memory = torch.empty_like(piece, dtype=dtype, memory_format=torch.contiguous_format)
        values = transform(memory[:, : piece.shape[1]].copy_(piece))
        mean[column] = values.sum(dim=0).div_(x.shape[0])
        deviation = values.sub_(mean[column])
        if dtype == torch.float32:
            # A second pass over the deviations removes the rounding error of the first mean.
            residue = deviation.sum(dim=0).div_(x.shape[0])
            mean[column] += residue
            deviation.sub_(residue)
        m2[column] = deviation.square_().sum(dim=0)
    shape = x.shape[1:]
    count = torch.full(shape, x.shape[0], dtype=torch.int64, device=x.device)
    return count, mean.view(shape), m2.view(shape)


def moments_of_some(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the ``valid`` ones among ``values``, which are finite and changed in place, the others being 0."""
    count = valid.sum(dim=0)
    divisor = count.clamp(min=1)
    mean = values.sum(dim=0) / divisor
    deviation = values.sub_(mean).masked_fill_(valid.logical_not(), 0.0)
    residue = deviation.sum(dim=0) / divisor
    return count, mean + residue, deviation.square_().sum(dim=0) - divisor * residue.square()


def merge(a: ScoreDistribution, b: ScoreDistribution) -> ScoreDistribution:
    """Statistics of the union of the data behind ``a`` and ``b``, which must have one shape, on the device of ``a``."""
    require_same_shape(tuple(a.mean.shape), tuple(b.mean.shape))
    b = ScoreDistribution(*(field.to(a.mean.device) for field in b))
    count = a.count + b.count
    share = b.count.to(a.mean.dtype) / count.clamp(min=1)
    delta = b.mean.to(a.mean.dtype) - a.mean
    return ScoreDistribution(
        count=count,
        mean=a.mean + delta * share,
        m2=a.m2 + b.m2 + delta * delta * share * a.count,
        zeros=a.zeros + b.zeros,
        invalid=a.invalid + b.invalid,
    )


def mean_std(record: ScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Tensor, Tensor]:
    """The finalizer: mean and standard deviation of ``log(score)``. Waits for the device: call it once per stage.

    See `anomnorm_core.cdf.mean_std` for the formulas: with ``level="pixel"`` deviations are shrunk toward what is
    typical of the map.

    Args:
        record: statistics in which at least one entry has seen more than ``ddof`` values.
        ddof: degrees of freedom taken off the count; 1 makes the variance unbiased.
        level: ``"image"`` or ``"pixel"``, also for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
        InsufficientDataError: too few values for a deviation (clause S7).
    """
    require_count(level, counts_of(record), minimum=ddof + 1, most=int(record.count.max()))
    known = record.count > ddof
    freedom = (record.count - ddof).clamp(min=0)
    weight = torch.where(known, record.count, 0)
    pooled_mean = (weight * record.mean).sum() / weight.sum()
    pooled_variance = torch.where(known, record.m2, 0.0).sum() / freedom.sum()
    variance = torch.where(known, record.m2 / freedom.clamp(min=1), pooled_variance)
    mean = torch.where(known, record.mean, pooled_mean)
    if level == "pixel":
        floor = core.STD_FLOOR * torch.maximum(mean.abs(), pooled_variance.sqrt())
        variance = _shrunk(variance, torch.where(variance > floor.square(), freedom, 0))
    return mean, variance.sqrt()


def _shrunk(variance: Tensor, freedom: Tensor) -> Tensor:
    """Variances shrunk toward what is typical of them, but those without degrees of freedom."""
    varies, freedom = freedom > 0, freedom.to(variance.dtype)
    half = freedom.clamp(min=1.0) / 2
    own = torch.where(varies, variance, 1.0).log() - torch.special.digamma(half) + half.log()
    noise = torch.special.polygamma(1, half)
    share = freedom / freedom.sum().clamp(min=1.0)
    typical = (share * own).sum()
    spread = (share * ((own - typical).square() - noise)).sum().clamp(min=0.0)
    return torch.where(varies, (typical + spread / (spread + noise) * (own - typical)).exp(), variance)


def standardize(
    scores: Tensor, mean: Tensor | float, std: Tensor | float, center_at: Tensor | float | None = None
) -> Tensor:
    """Raw scores as z-scores of their logarithm: ``z = (log(scores) - center) / std``.

    See `anomnorm_core.cdf.standardize`.

    Args:
        scores: real tensor of any shape.
        mean, std: moments of the logarithm of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``. All three are numbers or tensors that broadcast against
            ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Tensor of the shape and device of ``scores``, float64 for float64 and float32 for other floating dtypes.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).
    """
    return evaluated(_z, scores, 1.0, (mean, std, mean if center_at is None else center_at))


def normalize(
    scores: Tensor,
    threshold: Tensor | float,
    mean: Tensor | float,
    std: Tensor | float,
    center_at: Tensor | float | None = None,
) -> Tensor:
    """Map raw scores to [0, 1] with 0.5 at the threshold: ``u = Phi(log(scores / threshold) / std)``.

    See `anomnorm_core.cdf.normalize`. The result is differentiable, with the derivative of the formula also at the
    threshold itself.

    Args:
        scores: real tensor of any shape.
        threshold: decision threshold in raw units, above zero.
        mean, std, center_at: as for `standardize`.
    """
    return scored(KERNELS, scores, threshold, (mean, std, mean if center_at is None else center_at))[0]


def normalize_standardized(z: Tensor, threshold: Tensor | float) -> Tensor:
    """Map z-scores to [0, 1] with 0.5 at the threshold in sigmas: ``u = Phi(z - threshold)``.

    See `anomnorm_core.cdf.normalize_standardized`.

    Args:
        z: z-scores (from `standardize`) of any shape.
        threshold: in sigmas.
    """
    return scored(_STANDARDIZED, z, threshold, ())[0]


def denormalize(
    unit: Tensor,
    threshold: Tensor | float,
    mean: Tensor | float,
    std: Tensor | float,
    center_at: Tensor | float | None = None,
) -> Tensor:
    """The raw score of a normalized score: ``x = threshold exp(std Phi^-1(unit))``.

    See `anomnorm_core.cdf.denormalize`.

    Args:
        unit: real tensor of any shape.
        threshold, mean, std, center_at: as for `normalize`.
    """
    return evaluated(_inverse, unit, threshold, (mean, std, mean if center_at is None else center_at))


def constant(mean: Tensor, std: Tensor, center: Tensor, least: float = core.LEAST_STD) -> tuple[Tensor, Tensor]:
    """Where a deviation is zero up to rounding, and how far from the center a score is still at it (clause N7).

    ``least`` is what is rounding whatever the mean and the center are.
    """
    floor = (core.STD_FLOOR * torch.maximum(mean.abs(), center.abs())).clamp(min=least)
    return std <= floor, floor


def _factor(mean: Tensor, std: Tensor, center: Tensor) -> Tensor:
    """``1 / std``, or a number so large that the step of a constant population is one (N7); NaN of an unfitted mean."""
    flat, _ = constant(mean, std, center)
    return torch.where(flat, _STEEP, 1.0 / torch.where(flat, 1.0, std)) + mean * 0.0


_STEEP = 2.0**60


def _z(x: Tensor, _t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> Tensor:
    precise = wide(x.device)
    exact = center.to(precise)
    if is_readable(x, mean, std, center) and not is_differentiated(x, mean, std, center):
        factor = reciprocal(mean, std, center)
        if factor is not None:
            return filled(_standardize, x, (exact, factor))
    # `log_ratio` needs a number: that nearest to exp(center), and what is missing to the center itself.
    at = exact.exp().clamp(min=torch.finfo(x.dtype).smallest_normal, max=torch.finfo(x.dtype).max).to(x.dtype)
    rest = (at.to(precise).log() - exact).to(x.dtype)
    flat, floor = constant(mean, std, center)
    return limited(_distance, x, at, rest, mean, std, flat, floor, limits=(-math.inf, math.inf), positive=True)


def reciprocal(mean: Tensor, std: Tensor, center: Tensor, least: float = core.LEAST_STD) -> Tensor | None:
    """``1 / std`` in double precision, where no population is `constant`; reads values."""
    precise = wide(std.device)
    if mean.ndim == std.ndim == center.ndim == 0:  # Python is faster there
        location, scale, at = float(mean), float(std), float(center)
        flat = scale <= max(core.STD_FLOOR * max(abs(location), abs(at)), least)
        return None if flat else std.new_full((), 1.0 / scale + location * 0.0, dtype=precise)
    if bool(constant(mean, std, center, least)[0].any()):
        return None
    return 1.0 / std.to(precise) + mean * 0.0


def _distance(x: Tensor, at: Tensor, rest: Tensor, mean: Tensor, std: Tensor, flat: Tensor, floor: Tensor) -> Tensor:
    distance = log_ratio(x, at) + rest
    step = torch.where(distance.abs() <= floor, 0.0, torch.sign(distance.detach()) * math.inf)
    return torch.where(flat, step, distance / torch.where(flat, 1.0, std)) + mean * 0.0


def _standardize(x: Tensor, center: Tensor, factor: Tensor, z: Tensor) -> None:
    z.copy_(x.to(center.dtype, copy=True).clamp_(min=0.0).log_().sub_(center).mul_(factor))


def _factor_at(t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> tuple[Tensor]:
    # A threshold that is no number in float32 any more is below all scores.
    return (torch.where(t < torch.finfo(t.dtype).smallest_normal, _STEEP, _factor(mean, std, center)),)


def _of_factor(x: Tensor, t: Tensor, factor: Tensor) -> Tensor:
    return ndtr(apart(log_ratio(x, t)) * factor)


@in_parts(_factor_at, _of_factor)
def _unit(x: Tensor, t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> Tensor:
    distance = log_ratio(x, t)
    if is_differentiated(distance):  # a step has the derivative 0
        distance = torch.where(constant(mean, std, center)[0], distance.detach(), distance)
    return ndtr(distance * _factor_at(t, mean, std, center)[0])


def _inverse(u: Tensor, t: Tensor, mean: Tensor, std: Tensor, _center: Tensor) -> Tensor:
    precise = wide(u.device)
    # Without a deviation every score is the threshold, also an infinite one.
    exponent = torch.where(std == 0, 0.0, std.to(precise) * torch.special.ndtri(u.to(precise)))
    x = t.to(precise) * exponent.exp() + mean * 0.0
    return torch.where((u >= 0) & (u <= 1), x, math.nan).to(u.dtype)


@specializes(_unit)
def specialize(_t: Tensor, mean: Tensor, std: Tensor, center: Tensor) -> Specialized | None:
    """The formula in few operations, as far as the deviations allow."""
    widest = float(std.amax()) if std.numel() else 0.0
    exact_factor = reciprocal(mean, std, center)
    factor = (_factor(mean, std, center) if exact_factor is None else exact_factor.to(std.dtype)) * -(0.5**0.5)
    if widest <= _NO_PUSH:
        return _near, (factor,)
    if widest <= _NO_SWITCH:
        return _near_pushed, (factor,)
    return (_anywhere, (factor,)) if math.isfinite(widest) else None


# Up to this deviation, the nearest number below the threshold is 2^-24 / sigma = 2^-23.5 sigmas away: enough for erfc
# to be less than 1. Up to the other, log1p is accurate enough far from the threshold, where its error of 2^-24 t / x
# meets the density: exp(std^2 / 2) / (sqrt(2 pi) std) times 2^-24 at most, 0.82 x 2^-24 (clause N3).
_NO_PUSH = 0.7
_NO_SWITCH = 1.5


def _near(x: Tensor, t: Tensor, factor: Tensor, *, out: Tensor) -> None:
    torch.sub(x, t, out=out).div_(t).clamp_(min=-1.0).log1p_().mul_(factor).erfc_().mul_(0.5)


def _near_pushed(x: Tensor, t: Tensor, factor: Tensor, *, out: Tensor) -> None:
    torch.sub(x, t, out=out)
    side = out.sign()
    out.div_(t).clamp_(min=-1.0).log1p_().mul_(factor)
    _erfc(out, side)


def _anywhere(x: Tensor, t: Tensor, factor: Tensor, *, out: Tensor) -> None:
    precise = wide(x.device)
    torch.sub(x, t, out=out)
    side = out.sign()
    out.copy_(x.to(precise, copy=True).clamp_(min=0.0).div_(t).log_().mul_(factor))
    _erfc(out, side)


def _erfc(y: Tensor, side: Tensor) -> None:
    # Just enough that erfc is less than 1 below the threshold.
    y.add_(side, alpha=-torch.finfo(y.dtype).eps / 2).erfc_().mul_(0.5)


def _standardized(z: Tensor, t: Tensor) -> Tensor:
    return ndtr(z - t)


@specializes(_standardized)
def specialize_standardized(_t: Tensor) -> Specialized:
    """The formula in few operations."""
    return _of_difference, ()


def _of_difference(z: Tensor, t: Tensor, *, out: Tensor) -> None:
    torch.sub(z, t, out=out)
    side = out.sign()
    _erfc(out.mul_(-(0.5**0.5)), side)


KERNELS = Kernels(METHOD, init, update, merge, mean_std, unit=_unit, inverse=_inverse, extras={"z": _z})
_STANDARDIZED = Kernels(
    replace(METHOD, positive=False), init, update, merge, mean_std, unit=_standardized, inverse=_inverse
)
