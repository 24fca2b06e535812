"""Two-slope min-max normalization: each side of the threshold has its own scale (clause N1b)."""

import math
from functools import partial

import torch
from torch import Tensor

from anomnorm_core import two_slope as core
from anomnorm_core.method import Kernels
from anomnorm_torch._kernels import Specialized, evaluated, in_parts, repaired, scored, specializes
from anomnorm_torch.methods.min_max import (
    bounds,
    distance,
    from_slope,
    init,
    loses,
    lost_below,
    margin,
    merge,
    side,
    slope,
    unit_scale,
    update,
)

__all__ = ["bounds", "denormalize", "init", "margin", "merge", "normalize", "update"]

METHOD = core.METHOD


def normalize(scores: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """Map raw scores to [0, 1] with 0.5 at the threshold, ``min`` at 0 and ``max`` at 1.

    See `anomnorm_core.two_slope.normalize`.

    Args:
        scores, threshold, min, max: as for `min_max.normalize`.
    """
    return scored(KERNELS, scores, threshold, (min, max))[0]


def denormalize(unit: Tensor, threshold: Tensor | float, min: Tensor | float, max: Tensor | float) -> Tensor:
    """The raw score of a normalized score, the inverse of `normalize`. See `anomnorm_core.two_slope.denormalize`.

    Args:
        unit: real tensor of any shape.
        threshold, min, max: as for `normalize`.
    """
    return evaluated(_inverse, unit, threshold, (min, max))


def _slopes(t: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    scale, below, above = _widths(t, low, high)
    # One for both sides: where one is much wider, differences on the other have digits enough, or are a step.
    of_differences = unit_scale(t, torch.maximum(below, above))
    slopes = (slope(width, scale, of_differences) for width in (below, above))
    # In one tensor, so that a compiler computes them once and not for each score.
    found = torch.stack([of_differences, *(torch.where(high >= low, each, math.nan) for each in slopes)])
    return found.select(0, 0), found.select(0, 1), found.select(0, 2)


def _from_slopes(x: Tensor, t: Tensor, scale: Tensor, below: Tensor, above: Tensor) -> Tensor:
    return from_slope(x, t, scale, torch.where(x < t, below, above))


@in_parts(_slopes, _from_slopes)
def _unit(x: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    scale, below, above = _widths(t, low, high)
    width = torch.where(x < t, below, above)
    flat = width == 0
    ratio = torch.where(flat, side(x, t), (x * scale - t * scale) / torch.where(flat, 1.0, width))
    return torch.where(high >= low, (ratio + 0.5).clamp(0.0, 1.0), math.nan)


def _inverse(u: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    scale, below, above = _widths(t, low, high)
    x = ((u - 0.5) * torch.where(u < 0.5, below, above) + t * scale) / scale
    return torch.where((u >= 0) & (u <= 1) & (high >= low), x, math.nan)


def _widths(t: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The widths that are mapped to all of [0, 1], by the slope below and by the one above, times a scale."""
    # Quarters stay finite where a difference or its double would overflow; scaling by one is exact.
    largest = torch.maximum(torch.maximum(low.abs(), high.abs()), t.abs())
    scale = torch.where(largest > torch.finfo(t.dtype).max / 8, 0.25, 1.0).to(t.dtype)
    low, high, t = low * scale, high * scale, t * scale
    span, below, above = _two_sum(high, -low), _two_sum(t, -low), _two_sum(high, -t)
    lower = torch.where((span[0] > 0) & _is_long(below, span), 2 * below[0], span[0])
    upper = torch.where((span[0] > 0) & _is_long(above, span), 2 * above[0], span[0])
    return scale, lower, upper


def _is_long(side: tuple[Tensor, Tensor], span: tuple[Tensor, Tensor]) -> Tensor:
    """Whether ``PARTS side >= span``, of heads and tails, so that rounding does not decide it."""
    # In sixteenths, none of which overflows: of one side it is 5/4, whose rounding is kept.
    part, lost = _two_sum(side[0], (core.PARTS / 16 - 1) * side[0])
    difference, more = _two_sum(part, -span[0] / 16)
    return difference + ((lost + more) + (core.PARTS / 16 * side[1] - span[1] / 16)) >= 0


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` exactly, as head and tail (Knuth)."""
    head = a + b
    part = head - a
    return head, (a - (head - part)) + (b - part)


@specializes(_unit)
def specialize(t: Tensor, low: Tensor, high: Tensor) -> Specialized | None:
    """The formula in few operations, for ranges far from the largest and the smallest numbers."""
    if t.ndim or low.ndim or high.ndim:
        return None
    info = torch.finfo(t.dtype)
    least, at, most = float(low), float(t), float(high)
    span, largest = most - least, max(abs(at), abs(least), abs(most))
    below = 2 * (at - least) if core.PARTS * (at - least) >= span > 0 else span
    above = 2 * (most - at) if core.PARTS * (most - at) >= span > 0 else span
    if not (min(below, above) >= 16 * info.smallest_normal and largest <= info.max / 16):  # also where it is NaN
        return None
    return partial(_clip, 1.0 / below, 1.0 / above, lost_below(t, below)), (t.new_full((), 0.5),)


def _clip(lower: float, upper: float, lost: int, x: Tensor, t: Tensor, half: Tensor, *, out: Tensor) -> None:
    torch.sub(x, t, out=out)
    is_lost = loses(out, lost)
    above = out.clamp(min=0.0)
    torch.add(half, out.clamp_(max=0.0), alpha=lower, out=out).add_(above, alpha=upper).clamp_(0.0, 1.0)
    if is_lost:
        out.copy_(repaired(out, x >= t))


KERNELS = Kernels(
    METHOD,
    init,
    update,
    merge,
    bounds,
    unit=_unit,
    inverse=_inverse,
    extras={"margin": distance},
)
