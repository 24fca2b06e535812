"""The executable specification of anomnorm: statistics, normalization and decisions for anomaly scores.

Written against the array API standard with NumPy float64 as the reference. The PyTorch and JAX packages implement
the same functions natively and take only what has no arrays in it from here.
"""

from anomnorm_core import cdf, min_max, threshold
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
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.policy import Center, Extra, Method, OnInvalid, Source, ThresholdRule, Units

__all__ = [
    "AnomnormError",
    "Center",
    "Extra",
    "FileFormatError",
    "FitCheck",
    "FitWarning",
    "InsufficientDataError",
    "InvalidScoreError",
    "InvalidScoreWarning",
    "Method",
    "Normalizer",
    "NotFittedError",
    "OnInvalid",
    "OptionError",
    "OutputError",
    "ResolutionError",
    "Source",
    "ThresholdRule",
    "ThresholdWarning",
    "Units",
    "__version__",
    "cdf",
    "min_max",
    "threshold",
]
