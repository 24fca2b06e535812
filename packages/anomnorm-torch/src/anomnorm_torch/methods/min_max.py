"""Min-max normalization around a threshold (clauses N1, S1, S2)."""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core import min_max as core
from anomnorm_core.checks import CAUSES, counts_of, require_count
from anomnorm_core.method import Kernels
from anomnorm_torch._kernels import Specialized, evaluated, in_parts, limited, repaired, scored, specializes
from anomnorm_torch._tensors import arithmetic, causes, selection, wide
from anomnorm_torch._tiles import finite_range

__all__ = ["MinMaxStatistics", "bounds", "denormalize", "init", "margin", "merge", "normalize", "update"]

METHOD = core.METHOD


class MinMaxStatistics(NamedTuple):
    """Smallest and largest valid score of one level, and how many scores that was.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    min: Tensor  #: () float64; +inf before the first value
    max: Tensor  #: () float64; -inf before the first value
    #: () int64: valid values seen
    count: Tensor  # type: ignore[assignment]
    invalid: Tensor  #: (3,) int64: values left out, which are negative (here none are), NaN, infinite


def init(shape: tuple[int, ...] = (), *, device: torch.device | str = "cpu") -> MinMaxStatistics:  # noqa: ARG001
    """Empty statistics on ``device`` (float32 where it has no float64), whatever the ``shape`` of the maps."""
    dtype = wide(torch.device(device))
    return MinMaxStatistics(
        min=torch.full((), math.inf, dtype=dtype, device=device),
        max=torch.full((), -math.inf, dtype=dtype, device=device),
        count=torch.zeros((), dtype=torch.int64, device=device),
        invalid=torch.zeros(len(CAUSES), dtype=torch.int64, device=device),
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
    x = arithmetic(scores).detach()
    if x.numel() == 0:
        return record
    known = finite_range(x) if where is None else None
    if known is not None:
        return _with(record, *known, x.numel())
    taken = selection(where, x)
    valid = x.isfinite() if taken is None else x.isfinite().logical_and_(taken)
    count = valid.count_nonzero()  # on a CPU four times as fast as a sum
    batch = MinMaxStatistics(
        min=torch.where(valid, x, math.inf).amin().to(record.min.dtype),
        max=torch.where(valid, x, -math.inf).amax().to(record.max.dtype),
        count=count,
        invalid=causes(x, taken, count),
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
    require_count(level, counts_of(record), minimum=1)
    return record.min, record.max


def normalize(scores: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """Map raw scores to [0, 1] with 0.5 at the threshold: ``u = clip((x - threshold) / (max - min) + 1/2, 0, 1)``.

    See `anomnorm_core.min_max.normalize`. The result is differentiable, and its derivative ``1 / (max - min)`` also at
    the threshold itself.

    Args:
        scores: real tensor of any shape.
        threshold: decision threshold in raw units.
        min, max: range of the fitted scores (the finalizer `bounds`). These three are numbers or tensors that
            broadcast against ``scores``, and are rounded to float32 unless ``scores`` is float64.

    Returns:
        Tensor of the shape and device of ``scores``, float64 for float64 and float32 for other floating dtypes.
    """
    return scored(KERNELS, scores, threshold, (min, max))[0]


def margin(scores: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """The distance from the threshold as a share of the range: ``(scores - threshold) / (max - min)``, not clipped.

    See `anomnorm_core.min_max.margin`.

    Args:
        scores, threshold, min, max: as for `normalize`.
    """
    return evaluated(distance, scores, threshold, (min, max))


def denormalize(unit: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """The raw score of a normalized score: ``x = (unit - 1/2) (max - min) + threshold``.

    See `anomnorm_core.min_max.denormalize`.

    Args:
        unit: real tensor of any shape.
        threshold, min, max: as for `normalize`.
    """
    return evaluated(inverse, unit, threshold, (min, max))


def distance(x: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """See `margin`."""
    return limited(_distance, x, t, low, high, limits=(-math.inf, math.inf))


def _distance(x: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    scale, span = _span(low, high)
    flat = span == 0
    ratio = torch.where(flat, side(x, t), (x * scale - t * scale) / torch.where(flat, 1.0, span))
    return torch.where(span >= 0, ratio, math.nan)


def side(x: Tensor, t: Tensor) -> Tensor:
    """-inf, 0 or +inf below, at or above the threshold, and NaN of NaN; its derivative is 0."""
    return torch.where(x == t, 0.0, torch.sign((x - t).detach()) * math.inf)


def unit_scale(t: Tensor, width: Tensor) -> Tensor:
    """A power of two such that neither scaled differences from ``t`` nor their `slope` are too large or too small.

    A difference of small numbers may have no digits left; that of large ones, and what is divided by, may be infinite.
    """
    return torch.where((width < 1.0) & (t.abs() < _LARGE / 2), _LARGE, 1.0 / _LARGE).to(t.dtype)


_LARGE = 2.0**64


def slope(width: Tensor, scale: Tensor, of_differences: Tensor) -> Tensor:
    """``scale / width``, by the scale of the differences that it is multiplied by.

    Of a width of zero it is a number so large that the step is one. NaN of a negative one.
    """
    value = (scale / of_differences / width.abs()).clamp(max=torch.finfo(width.dtype).max)
    return torch.where(width >= 0, value, math.nan)


def _slope(t: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    scale, span = _span(low, high)
    of_differences = unit_scale(t, span)
    return of_differences, slope(span, scale, of_differences)


def from_slope(x: Tensor, t: Tensor, scale: Tensor, slope: Tensor) -> Tensor:
    """``clip((x - t) scale slope + 1/2, 0, 1)``, and less than 1/2 below ``t``."""
    u = ((x * scale - t * scale) * slope + 0.5).clamp(0.0, 1.0)
    below = 0.5 - torch.finfo(u.dtype).eps / 4
    return torch.where((x < t) & (u > below), below, u)


@in_parts(_slope, from_slope)
def unit(x: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """See `normalize`."""
    return (_distance(x, t, low, high) + 0.5).clamp(0.0, 1.0)


def inverse(u: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """See `denormalize`."""
    scale, span = _span(low, high)
    # In float64 the threshold comes back as it was; float32 would round the sum twice.
    wide_span, wide_t = (value.to(wide(u.device)) for value in (span, t * scale))
    x = ((u.to(wide_span.dtype) - 0.5) * wide_span + wide_t) / scale
    return torch.where((u >= 0) & (u <= 1) & (span >= 0), x, math.nan).to(u.dtype)


def _span(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    # Halving keeps a span finite that would overflow; scaling by one is exact.
    scale = torch.where((high - low).isinf(), 0.5, 1.0).to(low.dtype)
    return scale, high * scale - low * scale


@specializes(unit)
def specialize(t: Tensor, low: Tensor, high: Tensor) -> Specialized | None:
    """The formula in few operations, for ranges far from the largest and the smallest numbers."""
    if t.ndim or low.ndim or high.ndim:
        return None
    span = float(high) - float(low)
    info = torch.finfo(t.dtype)
    if not (span == 0 or 16 * info.smallest_normal <= span <= info.max / 16):  # also where it is NaN
        return None
    if span == 0:
        return _step, ()
    return partial(_clip, 1.0 / span, lost_below(t, span)), (t.new_full((), 0.5),)


def _clip(scale: float, lost: int, x: Tensor, t: Tensor, half: Tensor, *, out: Tensor) -> None:
    torch.sub(x, t, out=out)
    is_lost = loses(out, lost)
    torch.add(half, out, alpha=scale, out=out).clamp_(0.0, 1.0)
    if is_lost:
        out.copy_(repaired(out, x >= t))


# The bits of a negative number, as a signed integer, grow with its size, and are below those of all others: the
# smallest integer of a tensor is the number just below zero.
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def lost_below(t: Tensor, width: float) -> int:
    """For `loses`: the bits of a difference that divided by ``width`` surely changes a sum with 1/2."""
    return int(t.new_full((), -width * torch.finfo(t.dtype).eps / 4).view(_BITS[t.dtype]))


def loses(difference: Tensor, lost: int) -> bool:
    """Whether some number below zero is so near to it that its sum with 1/2 may be 1/2. Reads values."""
    bits = difference.view(_BITS[difference.dtype])
    return bits.numel() > 0 and int(bits.amin()) < lost


def _step(x: Tensor, t: Tensor, *, out: Tensor) -> None:
    largest = torch.finfo(x.dtype).max
    torch.sub(x, t, out=out).mul_(largest).mul_(largest).add_(0.5).clamp_(0.0, 1.0)


KERNELS = Kernels(METHOD, init, update, merge, bounds, unit=unit, inverse=inverse, extras={"margin": distance})
