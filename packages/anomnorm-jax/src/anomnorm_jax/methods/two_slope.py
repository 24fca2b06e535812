"""Two-slope min-max normalization: each side of the threshold has its own scale (clause N1b)."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.method import Kernels
from anomnorm_core.methods.two_slope import METHOD, PARTS
from anomnorm_jax._arrays import evaluated, normalized
from anomnorm_jax._double import two_sum
from anomnorm_jax.methods.min_max import bounds, distance, init, margin, merge, safe_scale, stepped, update

__all__ = ["bounds", "denormalize", "init", "margin", "merge", "normalize", "update"]


@jax.jit
def normalize(scores: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the threshold, ``min`` at 0 and ``max`` at 1.

    Shapes, dtypes and special values are those of `min_max.normalize`. See `anomnorm_core.two_slope.normalize`.
    """
    return normalized(KERNELS, scores, threshold, (min, max))


@jax.jit
def denormalize(unit: ArrayLike, threshold: ArrayLike, min: ArrayLike, max: ArrayLike) -> Array:
    """The raw score of a normalized score, the inverse of `normalize`. See `anomnorm_core.two_slope.denormalize`."""
    return evaluated(_inverse, unit, threshold, (min, max))


def _unit(x: Array, t: Array, low: Array, high: Array) -> Array:
    scale, below, above = _widths(t, low, high)
    u = jnp.clip(stepped(x, t, scale, jnp.where(x < t, below, above)) + 0.5, 0.0, 1.0)
    return jnp.where(high >= low, u, jnp.nan)


def _inverse(u: Array, t: Array, low: Array, high: Array) -> Array:
    scale, below, above = _widths(t, low, high)
    x = ((u - 0.5) * jnp.where(u < 0.5, below, above) + t * scale) / scale
    return jnp.where((u >= 0) & (u <= 1) & (high >= low), x, jnp.nan)


def _widths(t: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """A scale, and the widths times it that are mapped to all of [0, 1], by the slope below and by the one above."""
    scale = safe_scale(t, low, high)
    bottom, middle, top = low * scale, t * scale, high * scale
    span = two_sum(top, -bottom)
    sides = two_sum(middle, -bottom), two_sum(top, -middle)
    below, above = (jnp.where((span[0] > 0) & _is_long(side, span), 2 * side[0], span[0]) for side in sides)
    return scale, below, above


def _is_long(side: tuple[Array, Array], span: tuple[Array, Array]) -> Array:
    """Whether ``PARTS side >= span``, of heads and tails, so that rounding does not decide it."""
    part, lost = two_sum(side[0], (PARTS / 16 - 1) * side[0])  # a quarter, which is exact
    difference, more = two_sum(part, -span[0] / 16)
    return difference + ((lost + more) + (PARTS / 16 * side[1] - span[1] / 16)) >= 0


KERNELS = Kernels(METHOD, init, update, merge, bounds, unit=_unit, inverse=_inverse, extras={"margin": distance})
