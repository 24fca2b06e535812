"""The executable specification of anomnorm: statistics, normalization and decisions for anomaly scores.

Written against the array API standard with NumPy float64 as the reference. The PyTorch and JAX packages implement
the same functions natively and take only what has no arrays in it from here.
"""

from anomnorm_core import cdf, min_max, threshold
from anomnorm_core.errors import (
    AnomnormError,
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    OptionError,
    OutputError,
    ResolutionError,
)
from anomnorm_core.policy import Center, OnInvalid, Source

__version__ = "0.1.0"

__all__ = [
    "AnomnormError",
    "Center",
    "InsufficientDataError",
    "InvalidScoreError",
    "InvalidScoreWarning",
    "NotFittedError",
    "OnInvalid",
    "OptionError",
    "OutputError",
    "ResolutionError",
    "Source",
    "__version__",
    "cdf",
    "min_max",
    "threshold",
]
