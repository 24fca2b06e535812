"""Dtypes, parameters and masks: what every kernel of this package starts and ends with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from anomnorm_core.checks import CAUSES, batch_shape, require_mask
from anomnorm_torch._tiles import is_readable


def arithmetic(scores: Tensor) -> Tensor:
    """``scores`` in the dtype that is computed in, which is that of the result (clause N9).

    float64 stays, other floating dtypes give float32, and integers the default float. The result may alias ``scores``.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a torch.Tensor, found {type(scores).__name__}; use torch.as_tensor(scores).")
    dtype = scores.dtype
    if dtype.is_complex:
        raise TypeError(f"scores must be real numbers, found dtype {dtype}.")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return scores.to(torch.float64 if dtype == torch.float64 else torch.float32)


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether derivatives may be wanted: backward ones of these tensors, or forward ones of any."""
    if forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:  # a generator would be a call for each
            if tensor.requires_grad:
                return True
    return False


def wide(device: torch.device) -> torch.dtype:
    """The dtype of accumulators: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def parameter(value: Tensor | float, like: Tensor) -> Tensor:
    """Round a statistic or threshold to the dtype of ``like``, on its device.

    A number is filled in there; a tensor of another device is copied, which waits for it.
    """
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=like.dtype)
    if torch.compiler.is_compiling() and isinstance(value, float):
        # A number in a sum is an input of the compiled program. Filled in, it is a constant: each one compiles anew.
        return torch.zeros((), dtype=like.dtype, device=like.device) + value
    return torch.full((), value, dtype=like.dtype, device=like.device)


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``Module._apply`` may do to statistics and thresholds: move them, but not change their dtype.

    A module that is turned to bfloat16 needs no statistics in bfloat16 (clause L9).
    """

    def move(tensor: Tensor) -> Tensor:
        device = fn(torch.empty(0, device=tensor.device)).device
        # Apple's devices have no float64 at all.
        return tensor.to(device, torch.float32 if device.type == "mps" and tensor.is_floating_point() else None)

    return move


def largest_defined(maps: Tensor) -> Tensor:
    """The image scores (B,) of maps: the maximum of each one's pixels that are not NaN."""
    pixels = maps.flatten(1)
    if is_readable(pixels):
        top = pixels.amax(1)  # which is NaN where any pixel is: mostly one pass will do
        if not bool(top.isnan().any()):
            return top
    defined = pixels.isnan().logical_not()
    return torch.where(defined.any(1), torch.where(defined, pixels, -math.inf).amax(1), math.nan).to(maps.dtype)


def samples(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View ``scores`` as a batch of samples of ``shape``, dropping a channel axis of one (clause S8)."""
    return scores.reshape(batch_shape(tuple(scores.shape), shape))


def selection(where: Tensor | None, values: Tensor) -> Tensor | None:
    """Give a per-sample mask of shape (B,) the axes of ``values``."""
    if where is None:
        return None
    require_mask(tuple(where.shape), values.shape[0])
    return where.to(device=values.device, dtype=torch.bool).reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)


def causes(values: Tensor, taken: Tensor | None, known: Tensor) -> Tensor:
    """How many of the values ``taken`` are negative, NaN, infinite: (3,) int64. ``known`` are none of these."""
    rest = (values.numel() if taken is None else taken.sum()) - known.sum()
    if is_readable(rest) and not bool(rest):  # nearly always
        return torch.zeros(len(CAUSES), dtype=torch.int64)
    nan, infinite = values.isnan(), values.isinf()
    if taken is not None:
        nan, infinite = nan.logical_and_(taken), infinite.logical_and_(taken)
    found = torch.stack([nan.count_nonzero(), infinite.count_nonzero()])
    return torch.cat([(rest - found.sum())[None], found])
