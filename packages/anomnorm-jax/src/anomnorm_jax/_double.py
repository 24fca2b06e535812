"""Logarithms of parameters in heads and tails: twice the digits of float32, where those of it would cancel.

JAX has no float64 unless a global switch is set. The logarithm of a score needs none: its distance from a center comes
from a quotient (`log_ratio`). What such a quotient takes for the center is a rounded number, whose own logarithm is
needed to 2^-31: as a pair ``head + tail``. It is computed for the parameters, never for each score.

Compilers may contract ``a * b + c`` into one rounding. Nothing below depends on whether they do: a product that enters
an exact sum is exact itself, because its factors were cut to 12 bits (`cut`).
"""

import math

import jax.numpy as jnp
from jax import Array, lax

_LN2_HEAD = 0.693145751953125  # 16 bits, so that exponent * head is exact
_LN2_TAIL = math.log(2.0) - _LN2_HEAD
_TWO_THIRDS_HEAD = 2731 / 4096  # 12 bits
_TWO_THIRDS_TAIL = 2 / 3 - _TWO_THIRDS_HEAD


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` exactly, as head and tail (Knuth)."""
    head = a + b
    part = head - a
    return head, (a - (head - part)) + (b - part)


def cut(x: Array) -> Array:
    """Keep the upper 12 of the 24 bits of a float32.

    Products of two such numbers are exact, and so is what was cut off, the number minus its upper bits.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(bits & jnp.uint32(0xFFFFF000), jnp.float32)


def log_distance(x: Array, center: Array) -> tuple[Array, Array]:
    """``log(x) - center`` for normal positive float32 as head and tail, with an absolute error of about 2^-35.

    With ``x = m * 2^e`` and ``s = (m - 1) / (m + 1)``, ``log(x) = e log 2 + 2 (s + s^3/3 + s^5/5 + ...)``: the first
    two terms carry a tail, the others are too small to need one.
    """
    if x.dtype == jnp.float64:
        return two_sum(jnp.log(x), -center)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    # m in [sqrt(1/2), sqrt(2)) keeps |s| under 0.172.
    exponent = lax.shift_right_arithmetic(bits - 0x3F3504F3, jnp.int32(23))
    mantissa = lax.bitcast_convert_type(bits - lax.shift_left(exponent, jnp.int32(23)), jnp.float32)
    e = exponent.astype(jnp.float32)

    f = mantissa - 1.0
    below, below_tail = two_sum(mantissa, jnp.ones_like(mantissa))
    s = cut(f / below)
    below_upper = cut(below)
    rest = ((f - s * below_upper) - s * (below - below_upper)) - s * below_tail
    s_tail = rest / below

    square = s * s
    square_upper = cut(square)
    square_tail = (square - square_upper) + (2.0 * s + s_tail) * s_tail
    w = square_upper + square_tail
    cube = s * square_upper
    cube_tail = s * square_tail + s_tail * w
    cube_upper = cut(cube)
    third = _TWO_THIRDS_HEAD * cube_upper
    third_tail = _TWO_THIRDS_HEAD * ((cube - cube_upper) + cube_tail) + _TWO_THIRDS_TAIL * (cube + cube_tail)

    series = 2 / 5 + w * (2 / 7 + w * (2 / 9 + w * (2 / 11 + w * (2 / 13))))
    small = (2.0 * s_tail + third_tail) + (e * _LN2_TAIL + (cube + cube_tail) * w * series)

    total, tail_1 = two_sum(e * _LN2_HEAD, -center)
    total, tail_2 = two_sum(total, 2.0 * s)
    total, tail_3 = two_sum(total, third)
    return two_sum(total, ((tail_1 + tail_2) + tail_3) + small)
