"""What the specification needs from an array library beyond the array API standard, in one place.

Functions below the public ones take the namespace as ``xp``: inferring it inside a traced function is expensive.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace, device

from anomnorm_core.checks import batch_shape, require_mask, require_resolution
from anomnorm_core.method import Kernels

# The array API standard has no protocol class to annotate with yet. `help` and the API reference show these names.
if TYPE_CHECKING:
    Array = Any
    Namespace = Any
else:

    class Array:
        """An array of any library that follows the array API standard."""

    class Namespace:
        """The functions of such a library, ``numpy`` for example."""


# Infinities and NaNs are values here (clause N6), not accidents, so NumPy need not report them.
quiet = np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore")


def widen(scores: Array, xp: Namespace) -> tuple[Array, Any, Any]:
    """Return ``scores`` as float64, the dtype that parameters are rounded to, and the dtype of the result (N9).

    The parameter dtype (float64 for float64 scores, else float32) is part of the contract: a threshold of 0.1
    applied to float32 scores means float32(0.1) on every backend, or labels would differ between them.
    """
    if isinstance(scores, np.ma.MaskedArray):
        raise TypeError("masked arrays are not understood: fill them with NaN, scores.filled(numpy.nan).")
    if xp.isdtype(scores.dtype, "real floating"):
        _require_known(scores.dtype)
        result = xp.float64 if xp.finfo(scores.dtype).bits == 64 else xp.float32
    elif xp.isdtype(scores.dtype, ("integral", "bool")):
        result = xp.__array_namespace_info__().default_dtypes()["real floating"]
    else:
        raise TypeError(f"scores must be real numbers, found dtype {scores.dtype}.")
    parameter = xp.float64 if result == xp.float64 else xp.float32
    return xp.astype(scores, xp.float64), parameter, result


def _require_known(dtype: Any) -> None:
    if isinstance(dtype, np.dtype) and dtype.itemsize > 8:
        raise TypeError(f"scores have dtype {dtype}; float64 is the widest. Use scores.astype(numpy.float64).")


def parameter(value: Array | float, like: Array, dtype: Any, xp: Namespace) -> Array:
    """Round a statistic or threshold to ``dtype`` and return it as float64 on the device of ``like``."""
    if hasattr(value, "dtype") and not isinstance(value, float):  # NumPy's float64 scalars are floats
        return xp.astype(xp.astype(value, dtype), xp.float64)
    return xp.astype(xp.asarray(float(value), dtype=dtype, device=device(like)), xp.float64)


@quiet
def normalized(kernels: Kernels, scores: Array, threshold: Array | float, arguments: Iterable[Array | float]) -> Array:
    """The normalized scores of ``kernels``, on the right side of 1/2 (clauses N4, N9)."""
    xp = array_namespace(scores)
    x, kept, result = widen(scores, xp)
    require_resolution(x.shape, *(getattr(value, "shape", ()) for value in (threshold, *arguments)))
    t, *others = (parameter(value, x, kept, xp) for value in (threshold, *arguments))
    u = kernels.unit(x, t, *others)
    below = 0.5 - float(xp.finfo(result).eps) / 4
    half = 0.5 * xp.ones_like(u)
    return xp.astype(xp.where(x >= t, xp.maximum(u, half), xp.minimum(u, below * xp.ones_like(u))), result)


@quiet
def evaluated(
    function: Callable[..., Array], values: Array, threshold: Array | float, arguments: Iterable[Array | float]
) -> Array:
    """``function(values, threshold, *arguments)`` in float64, with parameters rounded as `normalized` does it."""
    xp = array_namespace(values)
    x, kept, result = widen(values, xp)
    require_resolution(x.shape, *(getattr(value, "shape", ()) for value in (threshold, *arguments)))
    return xp.astype(function(x, *(parameter(value, x, kept, xp) for value in (threshold, *arguments))), result)


def to_host(values: Array) -> np.ndarray:
    """Any library's array in NumPy, read off its device; numbers that NumPy has no type for are widened.

    Raises:
        TypeError: a traced array has no values; call this on the host.
    """
    if hasattr(values, "detach"):  # PyTorch
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    try:
        array = np.asarray(values)
    except Exception as error:
        if "Tracer" not in type(error).__name__:
            return np.from_dlpack(values)
        raise TypeError(
            "thresholds are searched on the host and need values; inside of jax.jit there are none. Call this outside, "
            "or end the run with a hook."
        ) from error
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)  # ml_dtypes


def samples(scores: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """View ``scores`` as a batch of samples of ``shape``, dropping a channel axis of one (clause S8)."""
    return xp.reshape(scores, batch_shape(tuple(scores.shape), shape))


def selection(where: Array | None, values: Array, xp: Namespace) -> Array:
    """A per-sample mask of shape (B,), or everything, as a mask of the shape of ``values``."""
    if where is None:
        return xp.ones_like(values, dtype=xp.bool)
    require_mask(tuple(where.shape), values.shape[0])
    mask = xp.reshape(xp.astype(where, xp.bool), (-1,) + (1,) * (values.ndim - 1))
    return xp.broadcast_to(mask, values.shape)


def causes(values: Array, taken: Array, known: Array, xp: Namespace) -> Array:
    """How many of the values ``taken`` are negative, NaN, infinite: (3,) int64. ``known`` are none of these."""
    every, nan, infinite = (
        xp.sum(xp.astype(mask, xp.int64)) for mask in (taken, taken & xp.isnan(values), taken & xp.isinf(values))
    )
    return xp.stack([every - xp.sum(known) - nan - infinite, nan, infinite])


def moments(values: Array, valid: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    """How many of the ``values`` are ``valid``, their mean and their sum of squared deviations, of the first axis."""
    count = xp.sum(xp.astype(valid, xp.int64), axis=0)
    values = xp.where(valid, values, xp.zeros_like(values))
    divisor = xp.astype(xp.where(count > 0, count, xp.ones_like(count)), xp.float64)
    mean = xp.sum(values, axis=0) / divisor
    deviation = xp.where(valid, values - mean, xp.zeros_like(values))
    # A second pass over the deviations removes the rounding error of the first mean.
    residue = xp.sum(deviation, axis=0) / divisor
    return count, mean + residue, xp.sum(deviation * deviation, axis=0) - divisor * residue * residue


def ndtr(z: Array, xp: Namespace) -> Array:
    """Standard normal CDF of float64: ``erfc(-z / sqrt 2) / 2``, which unlike ``(1 + erf) / 2`` keeps the tail."""
    return 0.5 * _special("erfc", xp)(z * -(0.5**0.5))


def ndtri(u: Array, xp: Namespace) -> Array:
    """Inverse of the standard normal CDF of float64: -inf at 0 and +inf at 1."""
    return _special("ndtri", xp)(u)


def digamma(x: Array, xp: Namespace) -> Array:
    """The derivative of the logarithm of the gamma function, of float64."""
    return _special("digamma", xp)(x)


def trigamma(x: Array, xp: Namespace) -> Array:
    """The derivative of `digamma`, of float64."""
    return _special("polygamma", xp)(1, x)


# The array API standard has none of them. Where a library's own live; every other library goes through NumPy and SciPy.
# Imported on first use: SciPy's take 60 ms, and a framework's are loaded already when its arrays arrive here.
_SPECIAL_FUNCTIONS = {"numpy": "scipy.special", "torch": "torch.special", "jax": "jax.scipy.special"}


def _special(name: str, xp: Namespace) -> Callable[..., Array]:
    library = xp.__name__.removeprefix("array_api_compat.").split(".")[0]
    if library in _SPECIAL_FUNCTIONS:
        return getattr(import_module(_SPECIAL_FUNCTIONS[library]), name)  # type: ignore[no-any-return]
    function = getattr(import_module(_SPECIAL_FUNCTIONS["numpy"]), name)
    return lambda *given: xp.asarray(function(*given[:-1], np.from_dlpack(given[-1])))


__all__ = [
    "Array",
    "Namespace",
    "array_namespace",
    "causes",
    "digamma",
    "evaluated",
    "moments",
    "ndtr",
    "ndtri",
    "normalized",
    "parameter",
    "quiet",
    "samples",
    "selection",
    "to_host",
    "trigamma",
    "widen",
]
