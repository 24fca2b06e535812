"""The executable specification of anomnorm: methods, statistics, thresholds, the fit and its file.

Written against the array API standard with NumPy float64 as the reference. The PyTorch and JAX packages implement
the same functions natively and take only what has no arrays in it from here.
"""

from typing import TYPE_CHECKING

from anomnorm_core import methods, threshold
from anomnorm_core._lazy import lazily
from anomnorm_core._version import __version__
from anomnorm_core.errors import (
    AnomnormError,
    FileFormatError,
    FitWarning,
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    OptionError,
    OutputError,
    ResolutionError,
    ThresholdWarning,
)
from anomnorm_core.fit import Fit, LevelFit, Threshold
from anomnorm_core.method import Kernels, Method
from anomnorm_core.methods import cdf, min_max, normal, register, two_slope
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.options import Center, OnInvalid, Origin, Source, ThresholdRule, Transform, Units

if TYPE_CHECKING:
    from anomnorm_core import fitting, plot
    from anomnorm_core.fit_check import FitCheck
    from anomnorm_core.heat_maps import HeatMapFolder, write_heat_maps

__all__ = [
    "AnomnormError",
    "Center",
    "FileFormatError",
    "Fit",
    "FitCheck",
    "FitWarning",
    "HeatMapFolder",
    "InsufficientDataError",
    "InvalidScoreError",
    "InvalidScoreWarning",
    "Kernels",
    "LevelFit",
    "Method",
    "Normalizer",
    "NotFittedError",
    "OnInvalid",
    "OptionError",
    "Origin",
    "OutputError",
    "ResolutionError",
    "Source",
    "Threshold",
    "ThresholdRule",
    "ThresholdWarning",
    "Transform",
    "Units",
    "__version__",
    "cdf",
    "fitting",
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
            "FitCheck": "anomnorm_core.fit_check",
            "HeatMapFolder": "anomnorm_core.heat_maps",
            "fitting": "anomnorm_core.fitting",
            "plot": "anomnorm_core.plot",
            "write_heat_maps": "anomnorm_core.heat_maps",
        },
    )


def __dir__() -> list[str]:
    return __all__
