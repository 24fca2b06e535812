"""Which of many thresholds has the largest F1, compared exactly."""

import jax
import jax.numpy as jnp
from jax import Array


def best(true_positives: Array, flagged: Array, positives: Array) -> tuple[Array, Array]:
    """The last candidate among those with the largest ``F1 = 2 true_positives / (positives + flagged)``.

    Ratios of integers are compared as such, because floats would take different ratios for equal and equal ones, after
    rounding, for different: half of F1 is written down to 62 binary places, which no two ratios of 31-bit integers
    share. By long division, for want of 64-bit integers.

    Args:
        true_positives, flagged: uint32 arrays of shape (N,): anomalies and samples at or above each candidate.
        positives: uint32, shape (): anomalies in all; at least one. ``flagged + positives`` stays below 2^31.

    Returns:
        The position, and whether its F1 is above zero.
    """
    divisor = jnp.maximum(flagged + positives, 1)

    def digits(remainder: Array, count: int) -> tuple[Array, Array]:
        def one(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
            number, rest = state
            rest = 2 * rest
            bit = rest >= divisor
            return 2 * number + bit.astype(jnp.uint32), jnp.where(bit, rest - divisor, rest)

        start = (jnp.zeros_like(remainder), remainder)
        number, rest = jax.lax.fori_loop(0, count, one, start)
        return number, rest

    upper, rest = digits(true_positives, 31)
    lower, _ = digits(rest, 31)
    top = upper == jnp.max(upper)
    lower = jnp.where(top, lower, 0)
    top &= lower == jnp.max(lower)
    return last(top), jnp.max(true_positives) > 0


def last(chosen: Array) -> Array:
    """The last position that is true."""
    return jnp.max(jnp.where(chosen, jnp.arange(chosen.shape[0]), 0))
