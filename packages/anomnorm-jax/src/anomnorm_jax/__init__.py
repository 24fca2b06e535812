"""Anomaly scores that mean something, for JAX: jitted functions and training-loop hooks."""

from typing import TYPE_CHECKING

from anomnorm_core._lazy import lazily
from anomnorm_jax import methods, threshold
from anomnorm_jax._version import __version__
from anomnorm_jax.hook import NormalizationHook
from anomnorm_jax.hooks import CdfNormalizationHook, MinMaxNormalizationHook
from anomnorm_jax.methods import cdf, min_max, normal, register, two_slope
from anomnorm_jax.normalizer import Normalizer

if TYPE_CHECKING:
    from anomnorm_core import HeatMapFolder, plot, write_heat_maps

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

if not TYPE_CHECKING:  # type checkers would take any name for one that is there
    __getattr__ = lazily(
        __name__,
        {
            "HeatMapFolder": "anomnorm_core.heat_maps",
            "plot": "anomnorm_core.plot",
            "write_heat_maps": "anomnorm_core.heat_maps",
        },
    )


def __dir__() -> list[str]:
    return __all__
