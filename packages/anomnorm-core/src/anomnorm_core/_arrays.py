"""What the specification needs from an array library beyond the array API standard, in one place.

Functions below the public ones take the namespace as ``xp``: inferring it inside a traced function is expensive.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from anomnorm_core.checks import batch_shape, require_mask

# The array API standard has no protocol class to annotate with yet.
Array = Any
Namespace = Any

# Infinities and NaNs are values here (clause N6), not accidents, so NumPy need not report them.
quiet = np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore")


def widen(scores: Array, xp: Namespace) -> tuple[Array, Any, Any]:
    """Return ``scores`` as float64, the dtype that parameters are rounded to, and the dtype of the result (N9).

    The parameter dtype (float64 for float64 scores, else float32) is part of the contract: a threshold of 0.1
    applied to float32 scores means float32(0.1) on every backend, or labels would differ between them.
    """
    if xp.isdtype(scores.dtype, "real floating"):
        result = _native(scores.dtype)
    elif xp.isdtype(scores.dtype, ("integral", "bool")):
        result = xp.__array_namespace_info__().default_dtypes()["real floating"]
    else:
        raise TypeError(f"scores must be real numbers, found dtype {scores.dtype}.")
    parameter = xp.float64 if result == xp.float64 else xp.float32
    return xp.astype(scores, xp.float64), parameter, result


def _native(dtype: Any) -> Any:
    # NumPy knows numbers in the byte order of other machines, and numbers wider than the reference.
    if isinstance(dtype, np.dtype) and dtype.kind == "f":
        if dtype.itemsize > 8:
            raise TypeError(f"scores have dtype {dtype}; float64 is the widest. Use scores.astype(numpy.float64).")
        return dtype.newbyteorder("=")
    return dtype


def parameter(value: Array | float, like: Array, dtype: Any, xp: Namespace) -> Array:
    """Round a statistic or threshold to ``dtype`` and return it as float64 on the device of ``like``."""
    if hasattr(value, "dtype") and not isinstance(value, float):  # NumPy's float64 scalars are floats
        return xp.astype(xp.astype(value, dtype), xp.float64)
    return xp.astype(xp.asarray(float(value), dtype=dtype, device=device(like)), xp.float64)


def below_half(dtype: Any, xp: Namespace) -> float:
    """The largest number of ``dtype`` below 0.5."""
    return 0.5 - float(xp.finfo(dtype).eps) / 4


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


def ndtr(z: Array, xp: Namespace) -> Array:
    """Standard normal CDF of float64: ``erfc(-z / sqrt 2) / 2``, which unlike ``(1 + erf) / 2`` keeps the tail."""
    return 0.5 * _special("erfc", xp)(z * -(0.5**0.5))


def ndtri(u: Array, xp: Namespace) -> Array:
    """Inverse of the standard normal CDF of float64: -inf at 0 and +inf at 1."""
    return _special("ndtri", xp)(u)


# The array API standard has none of them. Where a library's own live; every other library goes through NumPy and SciPy.
# Imported on first use: SciPy's take 60 ms, and a framework's are loaded already when its arrays arrive here.
_SPECIAL_FUNCTIONS = {"numpy": "scipy.special", "torch": "torch.special", "jax": "jax.scipy.special"}


def _special(name: str, xp: Namespace) -> Callable[[Array], Array]:
    library = xp.__name__.removeprefix("array_api_compat.").split(".")[0]
    if library in _SPECIAL_FUNCTIONS:
        return getattr(import_module(_SPECIAL_FUNCTIONS[library]), name)  # type: ignore[no-any-return]
    function = getattr(import_module(_SPECIAL_FUNCTIONS["numpy"]), name)
    return lambda values: xp.asarray(function(np.from_dlpack(values)))


__all__ = [
    "Array",
    "Namespace",
    "array_namespace",
    "below_half",
    "ndtr",
    "ndtri",
    "parameter",
    "quiet",
    "samples",
    "selection",
    "widen",
]
