"""Anomaly scores that mean something, for JAX: jitted functions and training-loop hooks."""

from anomnorm_jax import cdf, min_max, threshold
from anomnorm_jax.hooks import CdfNormalizationHook, MinMaxNormalizationHook

__version__ = "0.1.0"

__all__ = [
    "CdfNormalizationHook",
    "MinMaxNormalizationHook",
    "__version__",
    "cdf",
    "min_max",
    "threshold",
]
