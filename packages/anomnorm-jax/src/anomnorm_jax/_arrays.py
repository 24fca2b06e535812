"""Dtypes, parameters and masks: what every kernel of this package starts and ends with."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.checks import batch_shape, require_mask


def arithmetic(scores: ArrayLike) -> tuple[Array, jnp.dtype]:
    """Return ``scores`` in the dtype that is computed in, and the dtype of the result (clause N9).

    Half types are computed in float32; integers take JAX's default float.
    """
    values = jnp.asarray(scores)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(f"scores must be real numbers, found dtype {values.dtype}.")
    result = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.zeros(()).dtype
    return values.astype(jnp.float64 if result == jnp.float64 else jnp.float32), jnp.dtype(result)


def parameter(value: ArrayLike, like: Array) -> Array:
    """Round a statistic or threshold to the dtype of ``like``, with the axes to broadcast against it."""
    values = jnp.asarray(value, dtype=like.dtype)
    return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)


def to_host(x: ArrayLike) -> np.ndarray:
    """``x`` in NumPy: waits for the device, and for the other processes that hold a part of it."""
    if isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)


def below_half(dtype: jnp.dtype) -> float:
    """The largest number of ``dtype`` below 0.5."""
    return 0.5 - float(jnp.finfo(dtype).eps) / 4  # type: ignore[no-untyped-call]


def order_key(x: Array) -> Array:
    """Integers that compare as the floats ``x`` do, for every number including subnormal ones.

    XLA on CPU treats subnormal numbers as zero, also when comparing: there ``nextafter(0, -inf) >= 0`` holds, and the
    decision of clause N4 would be wrong. The bit pattern of a float is a sign and a magnitude that orders like an
    integer; both zeros get the key 0. NaN has no place in the order; mask it.
    """
    integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(x, integer)
    lowest = jnp.iinfo(integer).min  # type: ignore[no-untyped-call]
    return jnp.where(bits < 0, lowest - bits, bits)


def from_order_key(key: Array) -> Array:
    """The float32 (of an int32) or float64 (of an int64) that has this `order_key`."""
    lowest = jnp.iinfo(key.dtype).min  # type: ignore[no-untyped-call]
    bits = jnp.where(key < 0, lowest - key, key)
    return jax.lax.bitcast_convert_type(bits, jnp.float64 if key.dtype == jnp.int64 else jnp.float32)


def less(a: Array, b: Array) -> Array:
    """``a < b``, false where either is NaN, right for subnormal numbers too (see `order_key`)."""
    return (order_key(a) < order_key(b)) & ~jnp.isnan(a) & ~jnp.isnan(b)


def positive(x: Array) -> Array:
    """Where ``x`` is a number above zero that has a logarithm here, infinity included.

    A float32 counts from the smallest subnormal number on (see `_double`); a float64 from the smallest normal one,
    because XLA's own logarithm takes the others for zero.
    """
    return x >= 2.0**-1022 if x.dtype == jnp.float64 else less(jnp.zeros_like(x), x)


def samples(scores: Array, shape: tuple[int, ...]) -> Array:
    """View ``scores`` as a batch of samples of ``shape``, dropping a channel axis of one (clause S8)."""
    return scores.reshape(batch_shape(scores.shape, shape))


def selection(where: ArrayLike | None, values: Array) -> Array:
    """A per-sample mask of shape (B,), or everything, as a mask of the shape of ``values``."""
    if where is None:
        return jnp.ones(values.shape, dtype=bool)
    mask = jnp.asarray(where, dtype=bool)
    require_mask(mask.shape, values.shape[0])
    return jnp.broadcast_to(mask.reshape((-1,) + (1,) * (values.ndim - 1)), values.shape)
