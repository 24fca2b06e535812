"""Log-normal CDF normalization (clauses N2, N3, S3, S4).

The logarithms of the scores of normal data are taken as normally distributed; a score becomes a z-score ("so many
sigmas above normal") and then a probability around a threshold given in sigmas.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core.checks import require_count, require_resolution, require_same_shape
from anomnorm_torch._blocks import at_hand, columns, finite_range, in_pieces, numbers
from anomnorm_torch._tensors import arithmetic, arithmetic_like, parameter, round_below, samples, selection, wide

# A deviation smaller than this share of the mean is rounding: the population was constant (clause N7). Scores are
# mostly float32, whose logarithm carries 2^-24 of its size, and moments of it a few times that.
STD_FLOOR = 2.0**-21


class ScoreDistribution(NamedTuple):
    """Moments of ``log(score)`` of one level: of the images (shape ``()``) or of every pixel (shape ``(H, W)``).

    Laws: ``init(shape)`` is the identity of ``merge``; ``merge`` is associative and commutative up to rounding;
    updating with a concatenation equals merging the parts, up to rounding.
    """

    count: Tensor  # type: ignore[assignment]  # shape int64: images with a valid value here
    mean: Tensor  # shape float64: mean of log(score)
    m2: Tensor  # shape float64: sum of squared deviations from the mean
    invalid: Tensor  # shape int64: images whose value here was left out


def init(shape: tuple[int, ...] = (), *, device: torch.device | str = "cpu") -> ScoreDistribution:
    """Empty statistics on ``device`` for image scores (``shape=()``) or maps (``shape=(H, W)``).

    Accumulators are float64, or float32 where the device has none.
    """
    dtype = wide(torch.device(device))
    return ScoreDistribution(
        count=torch.zeros(shape, dtype=torch.int64, device=device),
        mean=torch.zeros(shape, dtype=dtype, device=device),
        m2=torch.zeros(shape, dtype=dtype, device=device),
        invalid=torch.zeros(shape, dtype=torch.int64, device=device),
    )


def update(record: ScoreDistribution, scores: Tensor, *, where: Tensor | None = None) -> ScoreDistribution:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far, of shape () or (H, W).
        scores: real tensor of shape (B,) or, for maps, (B, H, W) or (B, 1, H, W). NaN, infinities and values that
            are not positive have no place in the moments of the logarithm; they are left out and counted (clause S6).
        where: boolean tensor of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics on the device of ``record``, which is not changed. Only on a CPU values are read, so no device
        is waited for.

    Raises:
        ResolutionError: the maps' height and width are not the record's (clause S8).

    Source: the pairwise update of Chan, Golub and LeVeque (1983), never ``E[x^2] - E[x]^2``.
    """
    x = samples(arithmetic(scores)[0].detach(), tuple(record.mean.shape))
    if x.shape[0] == 0:
        return record
    taken = selection(where, x)
    known = finite_range(x) if taken is None else None
    if known is not None and known[0] > 0:
        return merge(record, _of_valid(x))
    return merge(record, _of_some(x, taken))


def _of_valid(x: Tensor) -> ScoreDistribution:
    """Statistics of positive finite values, without masks and a piece of the pixels at a time."""
    rows = x.reshape(x.shape[0], -1)
    dtype = wide(x.device)
    mean, m2 = torch.empty((2, rows.shape[1]), dtype=dtype, device=x.device)
    memory = None
    for column in columns(rows):
        piece = rows[:, column]
        if memory is None:
            memory = torch.empty_like(piece, dtype=dtype, memory_format=torch.contiguous_format)
        log_x = memory[:, : piece.shape[1]].copy_(piece).log_()
        mean[column] = log_x.sum(dim=0).div_(x.shape[0])
        deviation = log_x.sub_(mean[column])
        if dtype == torch.float32:
            # A second pass over the deviations removes the rounding error of the first mean.
            residue = deviation.sum(dim=0).div_(x.shape[0])
            mean[column] += residue
            deviation.sub_(residue)
        m2[column] = deviation.square_().sum(dim=0)
    shape = x.shape[1:]
    counts = torch.full(shape, x.shape[0], dtype=torch.int64, device=x.device)
    return ScoreDistribution(counts, mean.view(shape), m2.view(shape), torch.zeros_like(counts))


def _of_some(x: Tensor, taken: Tensor | None) -> ScoreDistribution:
    """Statistics of what is valid among values of any kind."""
    log_x = x.to(wide(x.device), copy=True)
    left_out = (log_x <= 0).logical_or_(log_x.isfinite().logical_not_())
    if taken is not None:
        left_out.logical_or_(~taken)
    valid = left_out.logical_not()
    log_x.masked_fill_(left_out, 1.0).log_()
    count = valid.sum(dim=0)
    divisor = count.clamp(min=1)
    mean = log_x.sum(dim=0) / divisor
    deviation = log_x.sub_(mean).masked_fill_(left_out, 0.0)
    residue = deviation.sum(dim=0) / divisor
    return ScoreDistribution(
        count=count,
        mean=mean + residue,
        m2=deviation.square_().sum(dim=0) - divisor * residue.square(),
        invalid=(x.shape[0] if taken is None else taken.sum(dim=0)) - count,
    )


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
        invalid=a.invalid + b.invalid,
    )


def mean_std(record: ScoreDistribution, *, ddof: int = 1, level: str = "image") -> tuple[Tensor, Tensor]:
    """The finalizer: mean and standard deviation of ``log(score)``. Waits for the device: call it once per stage.

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
    require_count(level, int(record.count.max()), int(record.invalid.max()), minimum=ddof + 1)
    known = record.count > ddof
    freedom = (record.count - ddof).clamp(min=0)
    weight = torch.where(known, record.count, 0)
    pooled_mean = (weight * record.mean).sum() / weight.sum()
    pooled_variance = torch.where(known, record.m2, 0.0).sum() / freedom.sum()
    variance = torch.where(known, record.m2 / freedom.clamp(min=1), pooled_variance)
    return torch.where(known, record.mean, pooled_mean), variance.sqrt()


def standardize(
    scores: Tensor, mean: Tensor | float, std: Tensor | float, center_at: Tensor | float | None = None
) -> Tensor:
    """Raw scores as z-scores of their logarithm.

    ``z = (log(scores) - mean) / std``; with ``center_at``, ``z = (log(scores) - center_at) / std`` (clause N2): the
    mean cancels, and leaving it out from the start is more accurate than moving the centre afterwards.

    Args:
        scores: real tensor of any shape. Floating dtypes are kept; integers give the default float.
        mean, std: moments of the logarithm of normal scores (the finalizer `mean_std`).
        center_at: where ``z`` is zero instead of at ``mean``; 0.0 is a centre like any other. All three are numbers
            or tensors that broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Tensor of the shape and device of ``scores``. NaN stays NaN; infinity stays; scores at or below zero, which
        have no logarithm, give the limit -inf (clause N6). Where ``std`` is zero up to rounding (2^-21 of the mean),
        ``z`` is -inf, 0 or +inf below, at or above the centre (clause N7). A NaN ``mean`` or ``std`` gives NaN.

    Raises:
        ResolutionError: the maps' height and width are not those of ``mean`` and ``std`` (clause S8).

    Source: anomalib 0.3, ``CdfNormalizationCallback``.
    """
    _require_resolution(scores, mean, std, center_at)
    like, result = arithmetic_like(scores)
    return in_pieces(_standardize, scores, *_scaling(like, mean, std, center_at), dtype=result, work=wide(like.device))


def _scaling(
    like: Tensor, mean: Tensor | float, std: Tensor | float, center_at: Tensor | float | None = None
) -> tuple[Tensor, ...]:
    """The parameters of `_standardize`: the last one is missing where no population is constant."""
    # The logarithm and its distance from the centre cancel: in float64 the float32 result is off by half an ulp,
    # in float32 it would be off by |log x| / std of them.
    dtype = wide(like.device)
    location, scale = parameter(mean, like).to(dtype), parameter(std, like).to(dtype)
    center = location if center_at is None else parameter(center_at, like).to(dtype)
    largest = torch.finfo(scale.dtype).max
    known = numbers(location, scale, center)
    # A mean that was never fitted must show also where the centre makes it cancel: the product is 0 or NaN. (As a
    # difference from itself, PyTorch's compiler would lose the rounding to float32 of a constant.)
    if known is not None and known[1] > STD_FLOOR * max(abs(known[0]), abs(known[2])):
        return center, scale.new_full((), min(1.0 / known[1], largest) + (known[0] - known[0]))
    floor = STD_FLOOR * torch.maximum(location.abs(), center.abs())
    constant = scale <= floor
    factor = torch.where(constant, math.inf, scale.reciprocal().clamp(max=largest)) + location * 0.0
    if at_hand(constant) and not bool(constant.any()):
        return center, factor
    return center, factor, torch.where(constant, floor, -1.0)


def _standardize(
    scores: Tensor,
    center: Tensor,
    factor: Tensor,
    constant_within: Tensor | None = None,
    *,
    out: Tensor | None = None,  # noqa: ARG001  # for results of another dtype
    work: Tensor | None = None,
) -> Tensor:
    x = scores.to(center.dtype, copy=True) if work is None else work.copy_(scores)
    distance = torch.sub(x.clamp_(min=0.0).log_(), center, out=work)
    if constant_within is None:
        return torch.mul(distance, factor, out=work)
    at_center = distance.abs() <= constant_within
    return torch.mul(distance, factor, out=work).masked_fill(at_center, 0.0)


def standardize_around(
    scores: Tensor, threshold: Tensor | float, mean: Tensor | float, std: Tensor | float
) -> tuple[Tensor, Tensor]:
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

    Raises:
        ResolutionError: as for `standardize`.
    """
    x, result = arithmetic(scores)
    t = parameter(threshold, x)
    info = torch.finfo(result)
    _require_resolution(x, mean, std)
    _require_resolution(t, mean, std)  # which has no pixels
    center, factor, *within = _scaling(x, mean, std)
    z = in_pieces(_standardize, scores, center, factor, *within, dtype=result, work=center.dtype).to(x.dtype)
    z_t = _standardize(t, center, factor, *within).clamp(info.min, info.max).to(result).to(x.dtype)
    below = x < t
    if within:
        # A constant population has steps at the threshold (clause N7).
        constant = within[0] >= 0
        z = torch.where(constant & below, -math.inf, torch.where(constant & (x > t), math.inf, z))
    # At least one place of the result, and nothing subnormal, which some devices take for zero. Limits and no
    # comparison with `z`, because a compiler may leave the rounding to half types to the end.
    smallest = max(info.smallest_normal * info.eps, torch.finfo(x.dtype).smallest_normal)
    under = z_t - torch.clamp(z_t.abs() * info.eps, min=smallest)
    lowest = torch.where(below, -math.inf, z_t)
    highest = torch.where(below, under, torch.where(x == t, z_t, math.inf))
    return torch.clamp(z, lowest, highest).to(result), z_t.to(result)


def normalize(z: Tensor, threshold: Tensor | float) -> Tensor:
    """Map z-scores to [0, 1] with 0.5 at the threshold: ``u = Phi(z - threshold)`` (clause N3).

    ``u >= 0.5`` exactly where ``z >= threshold`` (clause N4): below the threshold ``u`` is at most the largest number
    under 0.5.

    Args:
        z: z-scores (from `standardize`) of any shape. Floating dtypes are kept; integers give the default float.
        threshold: decision threshold in sigmas; a number or a tensor that broadcasts against ``z``, rounded to
            float32 unless ``z`` is float64.

    Returns:
        Tensor of the shape and device of ``z``. NaN stays NaN, -inf and +inf give 0 and 1 (clause N6).

    Source: anomalib 0.3, ``CdfNormalizationCallback``.
    """
    like, result = arithmetic_like(z)
    return in_pieces(partial(_normalize, result), z, parameter(threshold, like), dtype=result, work=like.dtype)


def _normalize(
    result: torch.dtype, z: Tensor, t: Tensor, *, out: Tensor | None = None, work: Tensor | None = None
) -> Tensor:
    values, _ = arithmetic(z)
    below = torch.sub(t, values, out=out)
    side = torch.sign(below, out=work)
    # Just enough that erfc is less than 1 below the threshold.
    push = torch.finfo(below.dtype).eps / 2
    # erfc, because torch's ndtr is 1 + erf, which loses the lower tail (it is 0 below -5.55 in float32).
    u = below.mul_(0.5**0.5).add_(side, alpha=push).erfc_().mul_(0.5)
    return round_below(u, result)


def denormalize(
    unit: Tensor,
    threshold: Tensor | float,
    mean: Tensor | float,
    std: Tensor | float,
    center_at: Tensor | float | None = None,
) -> Tensor:
    """The raw score of a unit score: ``x = exp(center + std (threshold + Phi^-1(unit)))`` (clause N11).

    Args:
        unit: real tensor of any shape. Floating dtypes are kept; integers give the default float.
        threshold: in sigmas, as for `normalize`.
        mean, std, center_at: as for `standardize`; the centre is ``center_at`` or, without it, ``mean``.

    Returns:
        Tensor of the shape and device of ``unit``. 0 and 1 give the limits 0 and infinity. NaN and numbers outside
        [0, 1], which are no unit scores, give NaN.

    Raises:
        ResolutionError: as for `standardize`.
    """
    _require_resolution(unit, mean, std, center_at)
    u, result = arithmetic(unit)
    dtype = wide(u.device)
    t, location, scale = (parameter(value, u).to(dtype) for value in (threshold, mean, std))
    center = location if center_at is None else parameter(center_at, u).to(dtype)
    z = t + torch.special.ndtri(u.to(dtype))
    # Without a deviation every z-score is the centre, also an infinite one.
    x = (center + torch.where(scale == 0, 0.0, scale * z)).exp() + location * 0.0
    return torch.where((u >= 0) & (u <= 1), x, math.nan).to(result)


def _require_resolution(scores: Tensor, *statistics: Tensor | float | None) -> None:
    require_resolution(tuple(scores.shape), *(tuple(value.shape) for value in statistics if isinstance(value, Tensor)))
