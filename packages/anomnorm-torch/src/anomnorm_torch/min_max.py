"""Min-max normalization around a threshold (clauses N1, S1, S2)."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core.checks import require_count
from anomnorm_torch._blocks import finite_range, in_pieces, numbers
from anomnorm_torch._tensors import arithmetic, arithmetic_like, parameter, round_below, selection, wide


class MinMaxStatistics(NamedTuple):
    """Smallest and largest valid score of one level, and how many scores that was.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    min: Tensor  # () float64; +inf before the first value
    max: Tensor  # () float64; -inf before the first value
    count: Tensor  # type: ignore[assignment]  # () int64: valid values seen
    invalid: Tensor  # () int64: NaN and infinite values left out


def init(*, device: torch.device | str = "cpu") -> MinMaxStatistics:
    """Empty statistics on ``device`` (float32 where the device has no float64)."""
    dtype = wide(torch.device(device))
    return MinMaxStatistics(
        min=torch.full((), math.inf, dtype=dtype, device=device),
        max=torch.full((), -math.inf, dtype=dtype, device=device),
        count=torch.zeros((), dtype=torch.int64, device=device),
        invalid=torch.zeros((), dtype=torch.int64, device=device),
    )


def update(record: MinMaxStatistics, scores: Tensor, *, where: Tensor | None = None) -> MinMaxStatistics:
    """Add a batch of raw scores or maps.

    Args:
        record: statistics so far.
        scores: real tensor of shape (B, ...); every element counts. NaN and infinities are left out and counted
            (clause S6).
        where: boolean tensor of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        New statistics on the device of ``record``, which is not changed. Only on a CPU values are read, so no device
        is waited for.
    """
    x = arithmetic(scores)[0].detach()
    if x.numel() == 0:
        return record
    known = finite_range(x) if where is None else None
    if known is not None:
        return _with(record, *known, x.numel())
    taken = selection(where, x)
    valid = x.isfinite() if taken is None else x.isfinite().logical_and_(taken)
    count = valid.sum()
    batch = MinMaxStatistics(
        min=torch.where(valid, x, math.inf).amin().to(record.min.dtype),
        max=torch.where(valid, x, -math.inf).amax().to(record.max.dtype),
        count=count,
        invalid=(x.numel() if taken is None else taken.sum()) - count,
    )
    return merge(record, batch)


def _with(record: MinMaxStatistics, low: float, high: float, count: int) -> MinMaxStatistics:
    """``record`` after ``count`` valid values in a known range."""
    return MinMaxStatistics(
        min=record.min.clamp(max=low),
        max=record.max.clamp(min=high),
        count=record.count + count,
        invalid=record.invalid,
    )


def merge(a: MinMaxStatistics, b: MinMaxStatistics) -> MinMaxStatistics:
    """Statistics of the union of the data behind ``a`` and ``b``, on the device of ``a``."""
    b = MinMaxStatistics(*(field.to(a.min.device) for field in b))
    return MinMaxStatistics(
        min=torch.minimum(a.min, b.min),
        max=torch.maximum(a.max, b.max),
        count=a.count + b.count,
        invalid=a.invalid + b.invalid,
    )


def bounds(record: MinMaxStatistics, *, level: str = "image") -> tuple[Tensor, Tensor]:
    """The finalizer: ``(min, max)``. Reads the counts, so it waits for the device: call it once per stage.

    Args:
        record: statistics of at least one valid value.
        level: ``"image"`` or ``"pixel"``, for the error message.

    Raises:
        NotFittedError: no value was seen, or only invalid ones (clauses N8, S6).
    """
    require_count(level, int(record.count), int(record.invalid), minimum=1)
    return record.min, record.max


def normalize(scores: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """Map raw scores to [0, 1] with 0.5 at the threshold.

    ``u = clip((scores - threshold) / (max - min) + 1/2, 0, 1)`` (clause N1), and ``u >= 0.5`` exactly where
    ``scores >= threshold`` (clause N4): below the threshold ``u`` is at most the largest number under 0.5.

    Args:
        scores: real tensor of any shape. Floating dtypes are kept; integers give the default float.
        threshold: decision threshold in raw units.
        min, max: range of the fitted scores (the finalizer `bounds`). These three are numbers or tensors that
            broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Tensor of the shape and device of ``scores``. NaN stays NaN, infinities give 0 and 1 (clause N6). Where
        ``max == min`` the result is 0, 0.5 or 1 for scores below, at or above the threshold (clause N7). Unfitted
        statistics (``min > max``) give NaN: raising on a value would wait for the device; `bounds` raises (clause N8).

    Source: anomalib 0.3, ``MinMaxNormalizationCallback``.
    """
    like, result = arithmetic_like(scores)
    t, low, high = parameter(threshold, like), parameter(min, like), parameter(max, like)
    info = torch.finfo(like.dtype)
    known = numbers(low, high)
    if known is not None and not known[1] - known[0] <= 0 and known[1] - known[0] <= info.max:
        span = low.new_full((), known[1] - known[0])
        return in_pieces(partial(_normalize, result), scores, t, span, dtype=result, work=like.dtype)
    scale, span = _span(low, high)
    # The step of clause N7: any difference saturates, also a subnormal one, and no difference stays 0, also where a
    # divisor that is subnormal would be taken for 0.
    scale = torch.where(span == 0, 2 / info.eps, scale)
    span = torch.where(span > 0, span, torch.where(span == 0, torch.full_like(span, info.smallest_normal), math.nan))
    return in_pieces(partial(_normalize, result), scores, t, span, scale, dtype=result, work=like.dtype)


def _normalize(
    result: torch.dtype,
    scores: Tensor,
    t: Tensor,
    span: Tensor,
    scale: Tensor | None = None,
    *,
    out: Tensor | None = None,
    work: Tensor | None = None,
) -> Tensor:
    x, _ = arithmetic(scores)
    # The difference has the sign of the comparison. Where it overflows, the result saturates anyway.
    distance = torch.sub(x, t, out=out)
    below = torch.sign(distance, out=work).clamp_(max=0.0)
    if scale is not None:
        distance = torch.mul(distance, scale, out=out)
    # Just enough that the sum with 1/2 is less than that below the threshold, where it can afford the error.
    push = torch.finfo(distance.dtype).eps * (1 + 2.0**-10) / 8
    u = torch.div(distance, span, out=out).add_(below, alpha=push).add_(0.5).clamp_(0.0, 1.0)
    return round_below(u, result)


def margin(scores: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """The distance from the threshold as a share of the range: the unit score without its clip (clause N10).

    ``(scores - threshold) / (max - min)``: 0 at the threshold, and in the order of the scores however far they are out.

    Args:
        scores, threshold, min, max: as for `normalize`.

    Returns:
        Tensor of the shape and device of ``scores``, negative below the threshold. NaN stays NaN, infinities stay.
        Where ``max == min`` the result is -inf, 0 or +inf (clause N7); unfitted statistics give NaN.
    """
    x, result = arithmetic(scores)
    t, low, high = parameter(threshold, x), parameter(min, x), parameter(max, x)
    scale, span = _span(low, high)
    # A range from 0.0 to -0.0 is the number -0.0, which would turn the signs round.
    distance = torch.addcmul(-t * scale, x, scale) / torch.where(span >= 0, span.abs(), math.nan)
    # Zero by zero, where the range is none and the score is the threshold.
    return distance.masked_fill((x == t) & (span >= 0), 0.0).to(result)


def denormalize(unit: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """The raw score of a unit score: ``x = (unit - 1/2) (max - min) + threshold`` (clause N11).

    Args:
        unit: real tensor of any shape. Floating dtypes are kept; integers give the default float.
        threshold, min, max: as for `normalize`.

    Returns:
        Tensor of the shape and device of ``unit``. 0 and 1 stand for everything from there on, and give its nearest
        end. NaN and numbers outside [0, 1], which are no unit scores, give NaN.
    """
    u, result = arithmetic(unit)
    t, low, high = parameter(threshold, u), parameter(min, u), parameter(max, u)
    scale, span = _span(low, high)
    # In float64 the threshold comes back as it was; float32 would round the sum twice.
    wide_span, wide_t = (value.to(wide(u.device)) for value in (span, t * scale))
    x = ((u.to(wide_span.dtype) - 0.5) * wide_span + wide_t) / scale
    return torch.where((u >= 0) & (u <= 1) & (span >= 0), x, math.nan).to(result)


def _span(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    # Halving keeps a span finite that would overflow; scaling by one is exact.
    scale = torch.where((high - low).isinf(), 0.5, 1.0).to(low.dtype)
    return scale, high * scale - low * scale
