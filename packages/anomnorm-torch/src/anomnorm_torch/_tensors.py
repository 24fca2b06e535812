"""Dtypes, parameters and masks: what every kernel of this package starts and ends with."""

from collections.abc import Callable

import torch
from torch import Tensor

from anomnorm_core.checks import batch_shape, require_mask


def arithmetic(scores: Tensor) -> tuple[Tensor, torch.dtype]:
    """Return ``scores`` in the dtype that is computed in, and the dtype of the result (clause N9).

    Half types are computed in float32; integers take the default float. The result may alias ``scores``.
    """
    like, result = arithmetic_like(scores)
    return scores.to(like.dtype), result


def arithmetic_like(scores: Tensor) -> tuple[Tensor, torch.dtype]:
    """An empty tensor in the dtype and on the device that `arithmetic` computes in, and the dtype of the result."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a torch.Tensor, found {type(scores).__name__}; use torch.as_tensor(scores).")
    if scores.dtype.is_complex:
        raise TypeError(f"scores must be real numbers, found dtype {scores.dtype}.")
    result = scores.dtype if scores.dtype.is_floating_point else torch.get_default_dtype()
    return scores.new_empty(0, dtype=torch.float64 if result == torch.float64 else torch.float32), result


def wide(device: torch.device) -> torch.dtype:
    """The dtype of accumulators and logarithms: float64 wherever the device has it."""
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


def below_half(dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` below 0.5."""
    return 0.5 - torch.finfo(dtype).eps / 4


def round_below(unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Lower, in place, the unit scores below 1/2 that ``dtype`` would round up to it (clause N4)."""
    if unit.dtype == dtype:
        return unit
    limit = below_half(dtype)
    return unit.masked_fill_((unit < 0.5).logical_and_(unit > limit), limit)


def samples(scores: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View ``scores`` as a batch of samples of ``shape``, dropping a channel axis of one (clause S8)."""
    return scores.reshape(batch_shape(tuple(scores.shape), shape))


def selection(where: Tensor | None, values: Tensor) -> Tensor | None:
    """Give a per-sample mask of shape (B,) the axes of ``values``."""
    if where is None:
        return None
    require_mask(tuple(where.shape), values.shape[0])
    return where.to(device=values.device, dtype=torch.bool).reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
