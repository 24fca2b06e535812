"""Logistic normalization in JAX. See `numpy_kernels`."""

import jax
import jax.numpy as jnp

from anomnorm_core import Kernels
from anomnorm_jax import min_max, register
from anomnorm_logistic.numpy_kernels import METHOD, SMALLEST


def margin(x, t, low, high):
    return (x - t) / jnp.maximum(high - low, SMALLEST)


def unit(x, t, low, high):
    return jax.nn.sigmoid(4.0 * margin(x, t, low, high))


def inverse(u, t, low, high):
    return t + (high - low) / 4.0 * jax.scipy.special.logit(u)


KERNELS = Kernels(
    METHOD,
    min_max.init,
    min_max.update,
    min_max.merge,
    min_max.bounds,
    unit=unit,
    inverse=inverse,
    extras={"margin": margin},
)
register(KERNELS)
