"""Anomaly scores that mean something, for JAX: jitted functions and training-loop hooks."""

from anomnorm_core import HeatMapFolder, plot, write_heat_maps
from anomnorm_jax import methods, threshold
from anomnorm_jax._version import __version__
from anomnorm_jax.hook import NormalizationHook
from anomnorm_jax.hooks import CdfNormalizationHook, MinMaxNormalizationHook
from anomnorm_jax.methods import cdf, min_max, normal, register, two_slope
from anomnorm_jax.normalizer import Normalizer

__all__ = [
    "CdfNormalizationHook",
    "HeatMapFolder",
    "MinMaxNormalizationHook",
    "NormalizationHook",
    "Normalizer",
    "__version__",
    "cdf",
    "methods",
    "min_max",
    "normal",
    "plot",
    "register",
    "threshold",
    "two_slope",
    "write_heat_maps",
]
