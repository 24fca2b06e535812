"""Logistic normalization: ``u = sigmoid(4 (x - T) / (max - min))``, which nears 0 and 1 but never clips."""

import numpy as np

from anomnorm_core import Kernels, Method, min_max, register

METHOD = Method(
    name="logistic",
    parameters=("min", "max"),
    extras=("margin",),
    title="logistic min-max",
    package="anomnorm-logistic",
)
SMALLEST = float(np.finfo(np.float32).tiny)


def margin(x, t, low, high):
    # A constant population has max == min. This is 0 at the threshold all the same, and its derivative is right there.
    return (x - t) / np.maximum(high - low, SMALLEST)


def unit(x, t, low, high):
    return 1.0 / (1.0 + np.exp(-4.0 * margin(x, t, low, high)))


def inverse(u, t, low, high):
    return t + (high - low) / 4.0 * (np.log(u) - np.log1p(-u))


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
