"""Everything that anomnorm raises or warns, in one hierarchy.

Each class also derives from the built-in exception a caller would expect, so that existing ``except ValueError``
clauses keep working.
"""

import sys
import warnings


class AnomnormError(Exception):
    """Base class of all errors raised by the anomnorm packages."""


class NotFittedError(AnomnormError, RuntimeError):
    """Statistics or a threshold are needed that no data has provided yet."""


class InsufficientDataError(NotFittedError):
    """Some values were seen, but too few for the statistic (a deviation needs two)."""


class InvalidScoreError(AnomnormError, ValueError):
    """A score that cannot enter the statistics was met under ``on_invalid="raise"``."""


class ResolutionError(AnomnormError, ValueError):
    """Anomaly maps do not have the height and width that the statistics were fitted on."""


class OutputError(AnomnormError, TypeError):
    """The outputs of a step do not hold what normalization needs."""


class OptionError(AnomnormError, ValueError):
    """An option has a value that is not one of its few allowed ones."""


class FileFormatError(AnomnormError, ValueError):
    """A file does not hold a normalizer, or not one that this version reads; or a normalizer is not fit to be saved."""


class InvalidScoreWarning(UserWarning):
    """Scores were left out of the statistics because they are NaN, infinite, or have no logarithm."""


class ThresholdWarning(UserWarning):
    """A threshold was found, but the data say less about it than one would wish."""


class FitWarning(UserWarning):
    """Fitted statistics do not describe normal samples that the detector has not seen."""


def warn(message: str, category: type[Warning]) -> None:
    """Give a warning that points at the line outside of these packages which led to it."""
    level, frame = 2, sys._getframe(1)
    ours = ("anomnorm_", "numpy._core._ufunc_config", "contextlib")  # the latter two decorate functions here
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(ours):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
