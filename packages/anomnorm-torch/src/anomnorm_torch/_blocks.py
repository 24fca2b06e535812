"""Large tensors on a CPU, piece by piece.

Eager PyTorch runs one operation after the other over the whole tensor, so that between any two of them it goes to
memory and back, which takes longer than the arithmetic. Pieces that fit the cache stay there from the first operation
to the last, and intermediate results take the memory of a piece.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

# Elements for each thread: some tensors of this size, of float32 or float64, fit into a core's cache of a megabyte or
# two. PyTorch spends a microsecond on each operation whatever its size, which rules out much smaller pieces.
PIECE = 2**17


def at_hand(*tensors: Tensor) -> bool:
    """Whether values can be read without waiting: on the CPU, and not while a program is traced or exported."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return all(tensor.device.type == "cpu" and _is_plain(tensor) for tensor in tensors)


def numbers(*tensors: Tensor) -> list[float] | None:
    """The tensors as numbers if each is one that is `at_hand`: Python is faster there than operations on tensors."""
    if any(tensor.ndim or (tensor.requires_grad and torch.is_grad_enabled()) for tensor in tensors):
        return None
    return [float(tensor) for tensor in tensors] if at_hand(*tensors) else None


def finite_range(x: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value of ``x``, if they are `at_hand` and all values are finite; None otherwise."""
    if not at_hand(x) or x.numel() == 0:  # the number of values can be unknown, too
        return None
    low, high = (float(value) for value in torch.aminmax(x))
    return (low, high) if high - low < float("inf") else None


def in_pieces(
    kernel: Callable[..., Tensor], x: Tensor, *parameters: Tensor, dtype: torch.dtype, work: torch.dtype
) -> Tensor:
    """``kernel(x, *parameters)`` in ``dtype``, in pieces where that is faster.

    Args:
        kernel: elementwise; returns a tensor of any dtype that shares no memory with its arguments. It takes two
            more: ``work``, of the shape of its first argument, to use as it likes; and ``out``, to return, where ``x``
            has the dtype of the result and is computed in it, as half types are not. Both are None where nothing is
            cut: operations with ``out=None`` are also differentiable, and make new axes where they must.
        x: tensor of any shape.
        parameters: tensors that broadcast against ``x``.
        dtype: of the result.
        work: dtype of the memory for intermediate results.
    """
    if not _can_be_cut(x, parameters):
        return kernel(x, *parameters).to(dtype)
    # As a matrix, whose rows share the parameters.
    axes = max((_axes(parameter) for parameter in parameters), default=0)
    shared = x.shape[x.ndim - axes :]
    rows = x.view(-1, shared.numel()) if axes else x.view(1, -1)
    flat = [p.reshape(()) if p.numel() == 1 else _last(p, axes).expand(shared).reshape(-1) for p in parameters]
    result = torch.empty(rows.shape, dtype=dtype, device=x.device)
    memory = torch.empty(_size(), dtype=work, device=x.device)
    for tile in _tiles(rows.shape[0], rows.shape[1], _size()):
        piece, target = rows[tile], result[tile]
        own = memory[: piece.numel()].view(piece.shape)
        out = target if x.dtype == dtype and dtype.itemsize >= 4 else None
        values = kernel(piece, *(p[tile[1]] if p.ndim else p for p in flat), work=own, out=out)
        if values is not target:
            target.copy_(values)
    return result.view(x.shape)


def pieces(x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """``x`` and tensors of its shape, or None for one that is not there, cut alike."""
    everything: tuple[Any, ...] = (x, *others)
    if not at_hand(x) or x.numel() <= _size():
        yield everything
        return
    matrices = [None if tensor is None else tensor.reshape(x.shape[0], -1) for tensor in everything]
    for tile in _tiles(x.shape[0], x[0].numel(), _size()):
        yield tuple(None if matrix is None else matrix[tile] for matrix in matrices)


def columns(x: Tensor) -> Iterator[slice]:
    """Slices of the second axis of a matrix, such that all rows of one make a piece."""
    if not at_hand(x):
        yield slice(None)
        return
    for _, column in _tiles(1, x.shape[1], max(_size() // x.shape[0], 1024)):
        yield column


def _can_be_cut(x: Tensor, parameters: tuple[Tensor, ...]) -> bool:
    # A traced program must not ask how many values there are: it would hold for that number alone.
    if torch.compiler.is_compiling() or x.numel() <= _size() or not x.is_contiguous():
        return False
    everything = (x, *parameters)
    if not at_hand(*everything) or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in everything)):
        return False
    shape: torch.Size = torch.broadcast_shapes(*(tensor.shape for tensor in everything))  # type: ignore[no-untyped-call]
    return shape == x.shape


def _size() -> int:
    return PIECE * torch.get_num_threads()


def _tiles(rows: int, width: int, size: int) -> Iterator[tuple[slice, slice]]:
    if width > size:
        for row in range(rows):
            for start in range(0, width, size):
                yield slice(row, row + 1), slice(start, start + size)
    else:
        step = size // max(width, 1)
        for start in range(0, rows, step):
            yield slice(start, start + step), slice(None)


def _axes(parameter: Tensor) -> int:
    """How many axes are left without leading ones of size one."""
    return next((parameter.ndim - i for i, size in enumerate(parameter.shape) if size != 1), 0)


def _last(parameter: Tensor, axes: int) -> Tensor:
    return parameter.reshape(parameter.shape[max(parameter.ndim - axes, 0) :])


def _is_plain(tensor: Tensor) -> bool:
    # Subclasses, as fake tensors, and what `torch.func` wraps hold no values of their own; dual numbers hold more.
    if type(tensor) not in (Tensor, nn.Parameter):
        return False
    if unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        return False
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:
        return False
