"""Exact counts past 2^32 without 64-bit integers: JAX has those only under a global switch.

A count is a uint32 array ``[upper, lower]``. 32,768 maps of 256x256 are already 2^31 pixels.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array


def zero() -> Array:
    """The count 0."""
    return jnp.zeros((2,), dtype=jnp.uint32)


def of(mask: Array) -> Array:
    """How many elements of a boolean array (of less than 2^32 elements) are true."""
    lower = jnp.sum(mask, dtype=jnp.uint32)
    return jnp.stack([jnp.zeros_like(lower), lower])


def add(a: Array, b: Array) -> Array:
    """The sum of two counts; an unsigned sum that is smaller than a term has carried."""
    lower = a[1] + b[1]
    carry = (lower < a[1]).astype(jnp.uint32)
    return jnp.stack([a[0] + b[0] + carry, lower])


def to_int(count: Array) -> int:
    """The count as a Python integer. Waits for the device."""
    upper, lower = (int(half) for half in np.asarray(count))
    return (upper << 32) + lower
