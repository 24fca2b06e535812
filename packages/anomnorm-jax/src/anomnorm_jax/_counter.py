"""Exact counts past 2^32 without 64-bit integers: JAX has those only under a global switch.

A count is a uint32 array ``[upper, lower]``; many counts have more axes after that one. 32,768 maps of 256x256 are
already 2^31 pixels.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from anomnorm_core import checks
from anomnorm_core.checks import Counts
from anomnorm_jax._arrays import to_host


def zero(shape: tuple[int, ...] = ()) -> Array:
    """The count 0, or an array of such."""
    return jnp.zeros((2, *shape), dtype=jnp.uint32)


def widened(lower: Array) -> Array:
    """uint32 numbers as counts."""
    return jnp.stack([jnp.zeros_like(lower), lower])


def of_ints(*numbers: int) -> np.ndarray:
    """Python integers as counts, along the first axis, on the host."""
    return np.array([(number >> 32, number & 0xFFFFFFFF) for number in numbers], dtype=np.uint32)


def add(a: Array, b: Array) -> Array:
    """The sum of two counts; an unsigned sum that is smaller than a term has carried."""
    lower = a[1] + b[1]
    carry = (lower < a[1]).astype(jnp.uint32)
    return jnp.stack([a[0] + b[0] + carry, lower])


def to_int(count: Array | np.ndarray) -> int:
    """The count as a Python integer. Waits for the device."""
    upper, lower = (int(half) for half in np.asarray(count))
    return (upper << 32) + lower


def is_halves(count: np.ndarray) -> bool:
    """Whether a record's ``count`` is one of 64 bits; else it has one of 32 bits for each pixel."""
    return count.shape == (2,)


def largest(count: np.ndarray) -> int:
    """A record's ``count`` as a Python integer: of the pixel that has most, where each has its own."""
    return to_int(count) if is_halves(count) else int(np.max(count))


def share_of_zeros(record: Any) -> np.ndarray:
    """The share of exact zeros among the values of a record, of each pixel where those have their own."""
    count, zeros = (
        np.asarray(to_int(each) if is_halves(each) else each, dtype=np.float64)
        for each in (to_host(record.count), to_host(record.zeros))
    )
    found: np.ndarray = checks.share_of_zeros(count, zeros)
    return found


def total(count: np.ndarray) -> int:
    """The same of all pixels together."""
    return to_int(count) if is_halves(count) else int(np.sum(count, dtype=np.uint64))


def counts_of(record: Any) -> Counts:
    """How many values a record has taken, and left out for which reason. Waits for the device."""
    zeros = getattr(record, "zeros", None)
    causes = map(to_int, to_host(record.invalid).T)
    return Counts(total(to_host(record.count)), 0 if zeros is None else total(to_host(zeros)), *causes)
