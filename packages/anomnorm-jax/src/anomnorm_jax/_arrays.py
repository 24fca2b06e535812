"""Dtypes, parameters, masks, and what is done to the normalized scores of every method."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import batch_shape, require_mask, require_resolution
from anomnorm_core.method import Kernels


def arithmetic(scores: ArrayLike) -> Array:
    """``scores`` in the dtype that is computed in and returned: float64, or float32 (clause N9).

    Half types become float32, and integers JAX's default float.
    """
    values = jnp.asarray(scores)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(f"scores must be real numbers, found dtype {values.dtype}.")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(float)
    return values.astype(jnp.float64 if values.dtype == jnp.float64 else jnp.float32)


def parameter(value: ArrayLike, like: Array) -> Array:
    """Round a parameter or threshold to the dtype of ``like``, with the axes to broadcast against it."""
    values = jnp.asarray(value, dtype=like.dtype)
    return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)


def normalized(kernels: Kernels, scores: ArrayLike, threshold: ArrayLike, arguments: Iterable[ArrayLike]) -> Array:
    """The normalized scores of ``kernels``, on the right side of 1/2 (clauses N4, N9)."""
    x, t, others = _rounded(scores, threshold, arguments)
    u = kernels.unit(x, t, *others)
    return u if kernels.unit in _EXACT and x.dtype == jnp.float32 else _repaired(u, x, t)


_EXACT: set[Callable[..., Array]] = set()


def exact(unit: Callable[..., Array]) -> Callable[..., Array]:
    """Says that ``unit`` is on the right side of 1/2 by itself in float32, so that nothing has to be repaired."""
    _EXACT.add(unit)
    return unit


def evaluated(
    function: Callable[..., Array], values: ArrayLike, threshold: ArrayLike, arguments: Iterable[ArrayLike]
) -> Array:
    """``function(values, threshold, *arguments)``, with parameters rounded as the dtype of the values has it."""
    x, t, others = _rounded(values, threshold, arguments)
    return function(x, t, *others)


def _rounded(
    scores: ArrayLike, threshold: ArrayLike, arguments: Iterable[ArrayLike]
) -> tuple[Array, Array, list[Array]]:
    x = arithmetic(scores)
    require_resolution(x.shape, *(jnp.shape(value) for value in (threshold, *arguments)))
    t, *others = (parameter(value, x) for value in (threshold, *arguments))
    return x, t, others


@jax.custom_jvp
def _repaired(u: Array, x: Array, t: Array) -> Array:
    below_half = 0.5 - float(jnp.finfo(u.dtype).eps) / 4  # type: ignore[no-untyped-call]
    return jnp.where(x >= t, jnp.maximum(u, 0.5), jnp.minimum(u, below_half))


@_repaired.defjvp
def _repaired_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    # The repair undoes rounding: what it moves still changes as the formula does, at the threshold too.
    return _repaired(*primals), tangents[0]


def is_traced(tree: Any) -> bool:
    """Whether a leaf is a value that is not known yet, inside of jit."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def to_host(x: ArrayLike) -> np.ndarray:
    """``x`` in NumPy: waits for the device, and for the other processes that hold a part of it."""
    if isinstance(x, Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(x, tiled=True))
    return np.asarray(x)


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


def largest_defined(maps: Array) -> Array:
    """The image scores (B,) of maps: the maximum of each one's pixels that are not NaN."""
    pixels = maps.reshape(maps.shape[0], -1)
    if not jnp.issubdtype(maps.dtype, jnp.floating):
        return jnp.max(pixels, axis=1)
    lowest = jnp.asarray(-jnp.inf, maps.dtype)
    largest = jnp.max(jnp.where(jnp.isnan(pixels), lowest, pixels), axis=1)
    return jnp.where(jnp.all(jnp.isnan(pixels), axis=1), jnp.asarray(jnp.nan, maps.dtype), largest)
