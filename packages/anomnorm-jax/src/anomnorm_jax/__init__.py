"""Anomaly scores that mean something, for JAX: jitted functions and training-loop hooks."""

from anomnorm_jax import cdf, min_max, threshold
from anomnorm_jax._version import __version__
from anomnorm_jax.hooks import CdfNormalizationHook, MinMaxNormalizationHook
from anomnorm_jax.normalizer import Normalizer

__all__ = [
    "CdfNormalizationHook",
    "MinMaxNormalizationHook",
    "Normalizer",
    "__version__",
    "cdf",
    "min_max",
    "threshold",
]
