"""The normal distribution and the logarithm of a quotient, in operations of which XLA makes short vectorized loops."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

# P with P(s(y)) = exp(y^2) erfc(y) / 2 and s = y / 2 / (1 + y / 2), to 2^-29 absolute after the exponential: a weighted
# least-squares fit of degree 9. Written around s = 0, where it is 1/2 exactly, because that is where errors count.
_TAIL = (
    -1.128378987312317,
    0.8716074228286743,
    -0.13712117075920105,
    -0.1580083668231964,
    0.01688539981842041,
    0.000552055484149605,
    0.09288550913333893,
    -0.075115866959095,
    0.0166768841445446,
)


@jax.custom_jvp
def half_erfc(y: Array) -> Array:
    """``erfc(y) / 2``, which is ``Phi(-y sqrt 2)``, within 0.75 x 2^-23; 1/2 exactly at 0.

    Unlike ``(1 - erf) / 2`` it keeps the upper tail, and XLA's erf exceeds 1. Its erfc computes every branch for every
    element, which takes twice as long.
    """
    if y.dtype == jnp.float64:
        exact: Array = 0.5 * jax.scipy.special.erfc(y)
        return exact
    size = jnp.abs(y)
    size = jnp.where(size > 16.0, 16.0, size)  # where it is 0, and an infinite number has a fraction
    s = size / (2.0 + size)
    p = jnp.full_like(s, _TAIL[-1])
    for coefficient in _TAIL[-2::-1]:
        p = s * p + coefficient
    tail = (s * p + 0.5) * jnp.exp(-(size * size))
    below = 0.5 - 2.0**-25  # 1 - below is 1/2
    tail = jnp.where(tail > below, below, tail)
    return jnp.where(y > 0, tail, 1.0 - tail)


@half_erfc.defjvp
def _half_erfc_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (y,), (y_dot,) = primals, tangents
    return half_erfc(y), -(math.pi**-0.5) * jnp.exp(-(y * y)) * y_dot


def has_logarithm(x: Array) -> Array:
    """Whether ``x`` is positive, finite and normal; numbers below may count as zero (clause N13)."""
    found: Array = (x >= float(jnp.finfo(x.dtype).tiny)) & (x < jnp.inf)  # type: ignore[no-untyped-call]
    return found


# As good as infinite, by whatever deviation it is divided; an infinite number times a slope of zero would be none.
FAR = 2.0**100


@jax.custom_jvp
def log_ratio(x: Array, c: Array) -> Array:
    """``log(x / c)`` for a normal ``c > 0``, within 2 ulp near ``c`` too (clause N3).

    ``FAR`` for an infinite ``x``, and ``-FAR`` for one below the smallest normal number. Its derivatives are 0 there.
    """
    if x.dtype == jnp.float64:
        value = _log_ratio_of_quotients(jnp.where(has_logarithm(x), x, 1.0), c)
    else:
        value = _log_ratio_of_bits(x, c)
    tiny = float(jnp.finfo(x.dtype).tiny)  # type: ignore[no-untyped-call]
    return jnp.where(x < jnp.inf, jnp.where(x < tiny, -FAR, value), jnp.minimum(x, FAR))


@log_ratio.defjvp
def _log_ratio_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (x, c), (x_dot, c_dot) = primals, tangents
    usual = has_logarithm(x)
    change = x_dot / jnp.where(usual, x, 1.0) - c_dot / c
    return log_ratio(x, c), jnp.where(usual, change, 0.0)


def _log_ratio_of_bits(x: Array, c: Array) -> Array:
    # x / c = 2^k y / c with y / c in [2/3, 3/2), by integers: a float's bits grow by 2^23 where it doubles. So the
    # digits of x - c stay near c, and nothing leaves the range of normal numbers away from it.
    bits, start = (lax.bitcast_convert_type(value, jnp.int32) for value in (x, c))
    above = bits - (start - _HALF_A_DOUBLING)
    k = lax.shift_right_arithmetic(above, jnp.int32(23))
    one = (start & _DIGITS) | _ONE  # c scaled to [1, 2), so that no step is subnormal
    scale, y = (
        lax.bitcast_convert_type(value, jnp.float32) for value in (one, (above & _DIGITS) + (one - _HALF_A_DOUBLING))
    )
    s = (y - scale) / (y + scale)
    w = s * s
    p = (w * _ATANH[2] + _ATANH[1]) * w + _ATANH[0]
    return k.astype(jnp.float32) * math.log(2.0) + (s * (w * p) + s) * 2.0


# atanh(s) = s (1 + w P(w)) with w = s^2, to 2^-28.4 relative up to s = 1/5: a fit of minimal largest error.
_ATANH = (0.3333347454096629, 0.1997882553535425, 0.15182159162050055)
_ONE, _DIGITS, _HALF_A_DOUBLING = 127 << 23, (1 << 23) - 1, 1 << 22


def _log_ratio_of_quotients(x: Array, c: Array) -> Array:
    quotient = x / c
    near = (quotient >= 0.5) & (quotient <= 2.0)
    info = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    normal = (quotient >= float(info.tiny)) & (quotient <= float(info.max))
    far = jnp.log(jnp.where(normal, quotient, x)) - jnp.where(normal, 0.0, jnp.log(c))
    ratio = jnp.where(near, x - c, 0.0) / c
    # XLA's log1p is off by up to 238 half places elsewhere.
    return jnp.where(near, jnp.where(jnp.abs(ratio) < 0.25, jnp.log1p(ratio), jnp.log(1.0 + ratio)), far)
