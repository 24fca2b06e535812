"""Options with few values. Public functions take the plain string; these enums give it a type and a check."""

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Self, SupportsFloat

from anomnorm_core.errors import OptionError


class _Option(StrEnum):
    @classmethod
    def parse(cls, value: str, argument: str) -> Self:
        """Return the member for ``value``; raise `OptionError` naming ``argument`` and the allowed values."""
        try:
            return cls(value)
        except ValueError:
            allowed = ", ".join(repr(str(member)) for member in cls)
            raise OptionError(f"{argument}={value!r} is not an option; use one of {allowed}.") from None


class OnInvalid(_Option):
    """What happens to scores that cannot enter the statistics (clause S6). They are left out and counted either way."""

    WARN = "warn"  # one warning per fit gives the counts
    RAISE = "raise"  # the first one is an error


class Center(_Option):
    """Where pixel z-scores are zero (clause N3)."""

    IMAGE = "image"  # at the image-level mean: the founding behaviour
    PIXEL = "pixel"  # at each pixel's own mean: a true per-pixel z-score


class Source(_Option):
    """Where the score distribution is fitted (clause L3)."""

    TRAIN = "train"  # normal samples of the training data
    VALIDATION = "validation"  # normal samples of the validation data


class ThresholdRule(_Option):
    """How a threshold is found in a validation run."""

    ADAPTIVE = "adaptive"  # the one of the best F1; from the normals where there is no anomaly (clauses T2, T3)
    NORMAL_QUANTILE = "normal_quantile"  # just above a quantile of the normals (clause T3)


class Method(_Option):
    """How raw scores become unit scores."""

    MIN_MAX = "min-max"  # linear in the score (clause N1)
    CDF = "cdf"  # log-normal (clauses N2, N3)


class Units(_Option):
    """The scale on which a threshold is given."""

    DECISION = "decision"  # where labels are decided: raw scores under min-max, z-scores under the CDF
    RAW = "raw"  # raw scores
    UNIT = "unit"  # unit scores as they are now: 0.5 changes nothing, 0.7 flags what is at 0.7 or above


class Extra(_Option):
    """What can be had beside the unit score, which saturates (clause N10)."""

    Z = "z"  # z-scores; CDF
    MARGIN = "margin"  # the unclipped distance from the threshold as a share of the range; min-max
    RAW = "raw"  # the raw values themselves, not copied


_EXTRAS = {
    Method.MIN_MAX: (Extra.MARGIN, Extra.RAW),
    Method.CDF: (Extra.Z, Extra.RAW),
}


def parse_extras(values: Iterable[Extra | str], method: Method) -> tuple[Extra, ...]:
    """Return ``values`` as members, each once; raise `OptionError` for one that ``method`` does not have."""
    names = (values,) if isinstance(values, str) else values
    found = tuple(dict.fromkeys(Extra.parse(name, "extras") for name in names))
    for extra in found:
        if extra not in _EXTRAS[method]:
            there = ", ".join(repr(str(name)) for name in _EXTRAS[method])
            raise OptionError(f"extras: {method} normalization has no {str(extra)!r}; there are {there}.")
    return found


LARGEST_FLOAT32 = float.fromhex("0x1.fffffep+127")


def manual(threshold: SupportsFloat) -> float:
    """A threshold given by hand, checked (clause T4).

    Args:
        threshold: in decision space, or an array of one number, which is read off its device.

    Returns:
        The number. It is rounded to the dtype of the scores where it is used, see `threshold.flag`.

    Raises:
        OptionError: it is no number, or not finite (in float32, which most scores are).
    """
    number = parse_threshold(threshold, "threshold")
    if number is None:
        raise OptionError("threshold=None is not a number; give a finite float.")
    return number


# A share times a count is rounded: 0.07 * 100 is 7.000000000000001. This much, relatively, is taken for rounding.
QUANTILE_SLACK = 1 + 2.0**-20


def may_exceed(quantile: float, count: int) -> int:
    """How many of ``count`` samples may lie above their ``quantile``: less than all of them."""
    return min(int((1.0 - quantile) * count * QUANTILE_SLACK), count - 1)


def require_number(shape: tuple[int, ...], argument: str) -> None:
    """Raise `OptionError` for several numbers: one for each sample would fall on the wrong axis of maps."""
    if shape != ():
        raise OptionError(f"{argument} has shape {tuple(shape)}; one number, of shape (), is needed for all samples.")


def require_flag(value: object, argument: str) -> None:
    """Raise `OptionError` for what is neither True nor False: a string like "no" would count as true."""
    if not isinstance(value, bool):
        raise OptionError(f"{argument}={value!r} is not an option; use True or False.")


def parse_quantile(value: SupportsFloat, argument: str) -> float:
    """Return ``value`` as a float between 0 and 1; raise `OptionError` for anything else."""
    number = parse_threshold(value, argument)
    if number is None or not 0.0 <= number <= 1.0:
        raise OptionError(f"{argument}={value!r} is not a quantile; give a number from 0 to 1.")
    return number


def parse_threshold_option(value: SupportsFloat | str | None, argument: str) -> float | ThresholdRule | None:
    """Return a number as a finite float and a name as the rule of that name; raise `OptionError` for anything else."""
    if not isinstance(value, str):
        return parse_threshold(value, argument)
    try:
        return ThresholdRule(value)
    except ValueError:
        names = ", ".join(repr(str(rule)) for rule in ThresholdRule)
        raise OptionError(f"{argument}={value!r} is not an option; give a finite number or one of {names}.") from None


def parse_threshold(value: SupportsFloat | str | None, argument: str) -> float | None:
    """Return ``value`` as a finite float (or None); raise `OptionError` for anything else.

    A NaN threshold would flag nothing and an infinite one has no place on the unit scale, so both are refused.
    """
    if value is None:
        return None
    if isinstance(value, bool | str):
        raise OptionError(f"{argument}={value!r} is not a number; give a finite float.")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise OptionError(f"{argument}={value!r} is not a number; give a finite float.") from None
    except OverflowError:  # an integer of many digits
        number = math.inf
    if not math.isfinite(number):
        raise OptionError(f"{argument}={number} is not finite; give a finite float.")
    if abs(number) > LARGEST_FLOAT32:
        raise OptionError(f"{argument}={number} is infinite in float32, which most scores are; give a smaller number.")
    return number
