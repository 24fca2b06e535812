"""The executable specification of anomnorm: methods, statistics, thresholds, the fit and its file.

Written against the array API standard with NumPy float64 as the reference. The PyTorch and JAX packages implement
the same functions natively and take only what has no arrays in it from here.
"""

from anomnorm_core import fitting, methods, plot, threshold
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
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.heat_maps import HeatMapFolder, write_heat_maps
from anomnorm_core.method import Kernels, Method
from anomnorm_core.methods import cdf, min_max, normal, register, two_slope
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.options import Center, OnInvalid, Origin, Source, ThresholdRule, Transform, Units

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
