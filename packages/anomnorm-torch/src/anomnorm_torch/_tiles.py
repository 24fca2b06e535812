"""Large tensors on a CPU, tile by tile.

Eager PyTorch runs one operation after the other over the whole tensor, so that between any two of them it goes to
memory and back, which takes longer than the arithmetic. Tiles that fit the cache stay there from the first operation
to the last, and intermediate results take the memory of a tile.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.torch_version import TorchVersion

# Elements for each thread: some tensors of this size, of float32 or float64, fit into a core's cache of a megabyte or
# two. PyTorch spends a microsecond on each operation whatever its size, which rules out much smaller tiles.
TILE = 2**16


def is_readable(*tensors: Tensor) -> bool:
    """Whether values can be read without waiting: on the CPU, and not while a program is traced or exported."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    # What `torch.func` wraps and dual numbers have no values of their own, or more; nor have subclasses (fake tensors).
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    for tensor in tensors:  # noqa: SIM110  # a generator would be a call for each
        if tensor.device.type != "cpu" or type(tensor) not in _PLAIN:
            return False
    return True


_PLAIN = (Tensor, nn.Parameter)
# Before, PyTorch's tracer takes `is_exporting` to be true in every program that it compiles (its issue 176347).
TELLS_EXPORTS = TorchVersion(torch.__version__) >= "2.13"


def is_compiled() -> bool:
    """Whether ``torch.compile`` traces this, which unlike an export may use any operation.

    Without `TELLS_EXPORTS` also in exports with ``strict=True``.
    """
    return torch.compiler.is_dynamo_compiling() and not (TELLS_EXPORTS and torch.compiler.is_exporting())


def finite_range(x: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value of ``x``, if they are `is_readable` and all values are finite; None otherwise."""
    if not is_readable(x) or x.numel() == 0:  # the number of values can be unknown, too
        return None
    low, high = (float(value) for value in torch.aminmax(x))
    return (low, high) if high - low < float("inf") else None


def tiled(
    function: Callable[..., None], x: Tensor, parameters: tuple[Tensor, ...], results: tuple[Tensor, ...]
) -> None:
    """``function(tile of x, *tiles of parameters, *tiles of results)`` for all tiles.

    Args:
        function: writes into the results.
        x: contiguous tensor of any shape, that the parameters broadcast against without changing it.
        parameters: `fits_tiles` said yes to them.
        results: contiguous tensors of the shape of ``x``.
    """
    # As a matrix, whose rows share the parameters.
    axes = max((_axes(parameter) for parameter in parameters), default=0)
    shared = x.shape[x.ndim - axes :]
    width = shared.numel() if axes else x.numel()
    matrices = [tensor.view(-1, width) for tensor in (x, *results)]
    flat = [p.reshape(()) if p.numel() == 1 else _last(p, axes).expand(shared).reshape(-1) for p in parameters]
    for tile in tiles(matrices[0].shape[0], width, _size()):
        pieces = [matrix[tile] for matrix in matrices]
        function(pieces[0], *(p[tile[1]] if p.ndim else p for p in flat), *pieces[1:])


def filled(function: Callable[..., None], x: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """What ``function(x, *parameters, result)`` writes, of the shape of ``x``; tile by tile, where they fit.

    All of them are `is_readable`, and no derivative is needed.
    """
    for parameter in parameters:
        if parameter.ndim:
            x = x.expand(torch.broadcast_shapes(x.shape, parameter.shape))  # type: ignore[no-untyped-call]
    result = x.new_empty(x.shape)
    if fits_tiles(x, parameters):
        tiled(function, x, parameters, (result,))
    else:
        function(x, *parameters, result)
    return result


def fits_tiles(x: Tensor, parameters: tuple[Tensor, ...]) -> bool:
    """Whether ``x``, which `is_readable` and needs no derivative, is large enough and lies well enough in memory."""
    if x.numel() <= TILE * torch.get_num_threads() or not x.is_contiguous():
        return False
    shape: torch.Size = torch.broadcast_shapes(x.shape, *(each.shape for each in parameters))  # type: ignore[no-untyped-call]
    return shape == x.shape


def batch_tiles(x: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """``x`` and tensors of its shape, or None for one that is not there, cut alike."""
    everything: tuple[Any, ...] = (x, *others)
    if not is_readable(x) or x.numel() <= _size():
        yield everything
        return
    matrices = [None if tensor is None else tensor.reshape(x.shape[0], -1) for tensor in everything]
    for tile in tiles(x.shape[0], x[0].numel(), _size()):
        yield tuple(None if matrix is None else matrix[tile] for matrix in matrices)


def columns(x: Tensor) -> Iterator[slice]:
    """Slices of the second axis of a matrix, such that all rows of one make a tile."""
    if not is_readable(x):
        yield slice(None)
        return
    for _, column in tiles(1, x.shape[1], max(_size() // x.shape[0], 1024)):
        yield column


def _size() -> int:
    return TILE * torch.get_num_threads()


def tiles(rows: int, width: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Index pairs that cut a matrix into tiles of up to ``size`` elements: parts of a row, or several rows."""
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
