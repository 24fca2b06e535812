"""Exact counts past 2^32 without 64-bit integers: JAX has those only under a global switch.

A count is a uint32 array ``[upper, lower]``; many counts have more axes after that one. 32,768 maps of 256x256 are
already 2^31 pixels.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array


def zero() -> Array:
    """The count 0."""
    return jnp.zeros((2,), dtype=jnp.uint32)


def widened(lower: Array) -> Array:
    """uint32 numbers as counts."""
    return jnp.stack([jnp.zeros_like(lower), lower])


def of_ints(*numbers: int) -> Array:
    """Python integers as counts, along the first axis."""
    return jnp.asarray(np.array([(number >> 32, number & 0xFFFFFFFF) for number in numbers], dtype=np.uint32))


def add(a: Array, b: Array) -> Array:
    """The sum of two counts; an unsigned sum that is smaller than a term has carried."""
    lower = a[1] + b[1]
    carry = (lower < a[1]).astype(jnp.uint32)
    return jnp.stack([a[0] + b[0] + carry, lower])


def to_float(count: Array) -> Array:
    """Counts in float32, rounded where they are longer than its 24 bits."""
    upper, lower = count.astype(jnp.float32)
    number: Array = upper * 2.0**32 + lower
    return number


def to_int(count: Array) -> int:
    """The count as a Python integer. Waits for the device."""
    upper, lower = (int(half) for half in np.asarray(count))
    return (upper << 32) + lower
