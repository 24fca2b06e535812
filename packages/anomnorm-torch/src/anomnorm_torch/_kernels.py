"""From a method's kernels to normalized scores and decisions: the same for every method (clauses N4, N9).

Values are computed by ``unit``, which may round to the other side of 1/2; `scored` repairs that. For tensors on a CPU
there may be a way to specialize a ``unit`` for numbers that can be read, see `specializes`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from anomnorm_core.checks import require_resolution
from anomnorm_core.method import Kernels
from anomnorm_torch._tensors import arithmetic, is_differentiated, parameter
from anomnorm_torch._tiles import TELLS_EXPORTS, fits_tiles, is_compiled, is_readable, tiled

Number = Tensor | float
Unit = TypeVar("Unit", bound=Callable[..., Tensor])
Specialized = tuple[Callable[..., None], tuple[Tensor, ...]]
Specialize = Callable[..., Specialized | None]

# By the unit that is meant, and not in `Kernels`, where it would outlive an exchange of the unit.
_SPECIALIZE: dict[Callable[..., Tensor], Specialize] = {}


# Of a unit: the part of it that no score enters into, and the rest.
_PARTS: dict[Callable[..., Tensor], tuple[Callable[..., tuple[Tensor, ...]], Callable[..., Tensor]]] = {}


def in_parts(coefficients: Callable[..., tuple[Tensor, ...]], rest: Callable[..., Tensor]) -> Callable[[Unit], Unit]:
    """Says that the decorated unit, but for derivatives, is ``rest(x, T, *coefficients(T, *arguments))``.

    A normalizer keeps the coefficients, which are of one shape: in a compiled program they would be computed again for
    every pixel of every image. In compiled and exported programs of float32, ``rest`` is on the right side of 1/2 by
    itself.
    """

    def register(unit: Unit) -> Unit:
        _PARTS[unit] = coefficients, rest
        return unit

    return register


def coefficients_of(kernels: Kernels, t: Tensor, *arguments: Tensor) -> Tensor | None:
    """What `scored` takes as ``known``, as one tensor; None: the unit is one part."""
    parts = _PARTS.get(kernels.unit)
    return None if parts is None else torch.stack(parts[0](t, *arguments))


def specializes(unit: Callable[..., Tensor]) -> Callable[[Specialize], Specialize]:
    """Says that the decorated function makes a faster ``unit`` for given numbers.

    ``specialize(T, *arguments)`` gives a function ``(x, T, *coefficients, out)`` and its coefficients, which is right
    on both sides of the threshold by itself and works in place; or None.
    """

    def register(specialize: Specialize) -> Specialize:
        _SPECIALIZE[unit] = specialize
        return specialize

    return register


def specialized(kernels: Kernels, t: Tensor, *arguments: Tensor) -> Specialized:
    """A function that writes normalized scores, and its coefficients; its values are read."""
    specialize = _SPECIALIZE.get(kernels.unit)
    found = None if specialize is None else specialize(t, *arguments)
    return (partial(_repairing, kernels), arguments) if found is None else found


def scored(
    kernels: Kernels,
    scores: Tensor,
    threshold: Number,
    arguments: tuple[Number, ...],
    known: Tensor | None = None,
    kept: dict[torch.dtype, Specialized] | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalized scores and whether they are flagged, both of the shape of ``scores``. Waits for no device.

    Args:
        kernels, scores, threshold, arguments: of the method.
        known: the `coefficients_of` the threshold and the arguments, in the dtype of the result, if they were computed
            before.
        kept: what was `specialized` for the threshold and the arguments, by dtype; what is missing is put there.
    """
    x = arithmetic(scores)
    t, *others = parameters = _rounded(x, threshold, arguments)
    differentiated = is_differentiated(x, *parameters)
    if differentiated or not is_readable(x, *parameters):
        flagged, is_compiling = flag(x, t), torch.compiler.is_compiling()
        parts = _PARTS.get(kernels.unit)
        if parts is None or differentiated or x.dtype != torch.float32:
            u = limited(kernels.unit, x, *parameters, limits=(0.0, 1.0), positive=kernels.method.positive)
        else:
            if known is None or known.device != x.device:
                found = parts[0](*parameters)
            else:
                found = tuple(known.select(0, i) for i in range(len(known)))
            u = parts[1](x, t, *found)
            if is_compiling:
                return u, flagged
        # A compiled kernel compares for itself.
        return repaired(u, x >= t if is_compiling else flagged), flagged
    # From here on values can be read, and memory written to.
    special = None if kept is None else kept.get(x.dtype)
    if special is None:
        special = specialized(kernels, t, *others)
        if kept is not None:
            kept[x.dtype] = special
    function, coefficients = special
    for each in parameters:
        if each.ndim and each.shape != x.shape[x.ndim - each.ndim :]:
            x = x.expand(torch.broadcast_shapes(x.shape, each.shape))  # type: ignore[no-untyped-call]
    u, flagged = x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.bool)

    def tile(x: Tensor, t: Tensor, *rest: Tensor) -> None:
        torch.ge(x, t, out=rest[-1])
        function(x, t, *rest[:-2], out=rest[-2])

    if fits_tiles(x, (t, *coefficients)):
        tiled(tile, x, (t, *coefficients), (u, flagged))
    else:
        tile(x, t, *coefficients, u, flagged)
    return u, flagged


def evaluated(
    function: Callable[..., Tensor], values: Tensor, threshold: Number, arguments: tuple[Number, ...]
) -> Tensor:
    """``function(values, threshold, *arguments)`` with parameters rounded as the dtype of the values has it."""
    x = arithmetic(values)
    return function(x, *_rounded(x, threshold, arguments))


def _takes_operators(x: Tensor) -> bool:
    if x.device.type != "cpu" or not TELLS_EXPORTS or not is_compiled():
        return False
    return not torch._C._are_functorch_transforms_active()  # which do not know them


def flag(x: Tensor, t: Tensor) -> Tensor:
    """``x >= t`` (clause N4)."""
    if _takes_operators(x):
        result: Tensor = torch.ops.anomnorm.flag(x, t)
        return result
    return x >= t


# PyTorch's compiler for CPUs stores booleans one by one (2.13: 15 ms where an eager comparison takes 0.7), and slows
# down everything in the same kernel with it. An operator of our own stays beside the compiled kernel.
@torch.library.custom_op("anomnorm::flag", mutates_args=())
def _flag(x: Tensor, t: Tensor) -> Tensor:
    return x >= t


@_flag.register_fake
def _(x: Tensor, t: Tensor) -> Tensor:
    return x >= t


def apart(x: Tensor) -> Tensor:
    """``x``, so that a compiler for CPUs makes one loop before it and another one after it.

    A loop with a logarithm and an exponential takes longer than one of each (2.13, 2 million numbers: 7.4 ms instead
    of 4.5): what is needed after a call goes to memory and back, and each number waits for the one before.
    """
    if _takes_operators(x):
        torch.ops.anomnorm.apart(x)
    return x


# It does nothing, and says that it writes into its argument. Compilers leave such operators where they are.
torch.library.define("anomnorm::apart", "(Tensor(a!) x) -> ()")
torch.library.impl("anomnorm::apart", "CompositeExplicitAutograd", lambda _: None)
torch.library.register_fake("anomnorm::apart", lambda _: None)


def repaired(u: Tensor, flagged: Tensor) -> Tensor:
    """``u`` on the right side of 1/2, with the derivative that it had."""
    below = 0.5 - torch.finfo(u.dtype).eps / 4
    right = torch.where(flagged, u.clamp(min=0.5), u.clamp(max=below))
    # Where a clamp steps in, its own derivative would be 0.
    return right.detach() + (u - u.detach()) if is_differentiated(u) else right


def limited(
    function: Callable[..., Tensor],
    x: Tensor,
    inside: Tensor,
    *others: Tensor,
    limits: tuple[float, float],
    positive: bool = False,
) -> Tensor:
    """``function(x, inside, *others)``, with the derivative 0 at its limits, where formulas have NaN.

    Args:
        inside: a number, or some that broadcast against ``x``, of which ``function`` has a finite value.
        limits: for ``x`` at minus and plus infinity.
        positive: whether a logarithm is taken: what has none is at the lower limit too.
    """
    if not is_differentiated(x, inside, *others):
        return function(x, inside, *others)
    usual = x.isfinite() & (x > 0) if positive else x.isfinite()
    value = function(torch.where(usual, x, inside.detach()), inside, *others)
    limit = torch.where(x.isnan(), math.nan, torch.where(x > 0, limits[1], limits[0])).to(value.dtype)
    return torch.where(usual, value, value.detach() * 0.0 + limit)


def _repairing(kernels: Kernels, x: Tensor, t: Tensor, *others: Tensor, out: Tensor) -> None:
    out.copy_(repaired(kernels.unit(x, t, *others), x >= t))


def _rounded(x: Tensor, threshold: Number, arguments: tuple[Number, ...]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (threshold, *arguments):
        if isinstance(value, Tensor):
            if value.ndim >= 2 and value.shape[-2:] != x.shape[-2:]:
                require_resolution(tuple(x.shape), tuple(value.shape))
            if value.dtype == x.dtype and value.device == x.device:
                found.append(value)
                continue
        found.append(parameter(value, x))
    return found
