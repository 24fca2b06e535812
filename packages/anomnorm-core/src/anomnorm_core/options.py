"""Options with few values. Public functions take the plain string; these enums give it a type and a check."""

import math
from dataclasses import dataclass
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

    WARN = "warn"  #: one warning per fit gives the counts
    RAISE = "raise"  #: the first one is an error


class Center(_Option):
    """Where pixel z-scores are zero (clause N3)."""

    IMAGE = "image"  #: at the image-level mean, as in anomalib 0.3
    PIXEL = "pixel"  #: at each pixel's own mean: a true per-pixel z-score


class Transform(_Option):
    """What is taken as normally distributed: one method each (clauses N3, N3b)."""

    LOG = "log"  #: the logarithm of the scores: method "cdf"
    IDENTITY = "identity"  #: the scores themselves, which may have any sign: method "normal"

    @property
    def method(self) -> str:
        """The name of the method."""
        return "cdf" if self is Transform.LOG else "normal"


class Source(_Option):
    """Where the score distribution is fitted (clause L3)."""

    TRAIN = "train"  #: normal samples of the training data
    VALIDATION = "validation"  #: normal samples of the validation data
    AUTO = "auto"  #: of callbacks: those of the validation data where they are enough, else of the training data


class Per(_Option):
    """Of what the pixel threshold keeps a false-alarm rate (clause T7)."""

    PIXEL = "pixel"  #: the share of all pixels of normal images that are flagged
    IMAGE = "image"  #: the share of normal images with a flagged pixel


class ThresholdRule(_Option):
    """How a threshold is found in a validation run."""

    ADAPTIVE = "adaptive"  #: the one of the best F1; from the normals where there is no anomaly (clauses T2, T3)
    NORMAL_QUANTILE = "normal_quantile"  #: just above a quantile of the normals (clause T3)
    FALSE_ALARM_RATE = "false_alarm_rate"  #: the one that a given share of new normals reaches (clause T7)
    IMAGE = "image"  #: of pixels alone: not found, but that of the image scores (clause T6)


class Units(_Option):
    """The scale on which a threshold is given."""

    RAW = "raw"  #: raw scores
    SIGMAS = "sigmas"  #: deviations from the center, of a method that has them
    NORMALIZED = "normalized"  #: normalized scores as they are now: 0.5 changes nothing, 0.7 flags what has 0.7 or more


class Origin(_Option):
    """Where a threshold comes from (clause T1). It is kept with the number, in files and state dicts too."""

    MANUAL = "manual"  #: by `Normalizer.with_threshold`: wins over all others, and stays through later validation runs
    OPTION = "option"  #: the number that a callback or hook was given
    MODULE = "module"  #: the module's own ``image_threshold.value`` or ``pixel_threshold.value``
    ADAPTIVE = "adaptive"  #: found by this rule
    NORMAL_QUANTILE = "normal_quantile"  #: found by this rule
    FALSE_ALARM_RATE = "false_alarm_rate"  #: found by this rule
    IMAGE = "image"  #: of pixels: that of the image scores, with which it moves
    UNKNOWN = "unknown"  #: of a file or checkpoint that does not say


LEVELS = ("image", "pixel")


@dataclass(frozen=True)
class Rules:
    """The numbers that rules for thresholds take.

    Raises:
        OptionError: one is not between 0 and 1, or ``per`` is unknown.
    """

    normal_quantile: float = 1.0  # share of the normals that is not flagged, where those alone decide (clause T3)
    false_alarm_rate: float = 0.01  # under that rule (clause T7)
    confidence: float | None = None  # in which share of samples the rate holds; None: it holds on average
    per: Per | str = Per.PIXEL

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal_quantile", parse_quantile(self.normal_quantile, "normal_quantile"))
        object.__setattr__(self, "false_alarm_rate", parse_rate(self.false_alarm_rate, "false_alarm_rate"))
        object.__setattr__(self, "confidence", parse_confidence(self.confidence, "confidence"))
        object.__setattr__(self, "per", Per.parse(self.per, "per"))


LARGEST_FLOAT32 = float.fromhex("0x1.fffffep+127")


# A share times a count is rounded: 0.07 * 100 is 7.000000000000001. This much, relatively, is taken for rounding.
QUANTILE_SLACK = 1 + 2.0**-20


def may_exceed(quantile: float, count: int) -> int:
    """How many of ``count`` samples may lie above their ``quantile``: less than all of them."""
    return min(int((1.0 - quantile) * count * QUANTILE_SLACK), count - 1)


def parse_quantile(value: SupportsFloat, argument: str) -> float:
    """Return ``value`` as a float between 0 and 1; raise `OptionError` for anything else."""
    number = parse_threshold(value, argument)
    if number is None or not 0.0 <= number <= 1.0:
        raise OptionError(f"{argument}={value!r} is not a quantile; give a number from 0 to 1.")
    return number


def parse_rate(value: SupportsFloat, argument: str) -> float:
    """Return ``value`` as a float above 0 and below 1; raise `OptionError` for anything else."""
    number = parse_threshold(value, argument)
    if number is None or not 0.0 < number < 1.0:
        percent = f", {number / 100:g} for {number:g}%" if number is not None and 1.0 <= number < 100.0 else ""
        raise OptionError(f"{argument}={value!r} is no share of samples; give a number above 0 and below 1{percent}.")
    return number


def parse_confidence(value: SupportsFloat | None, argument: str) -> float | None:
    """The same, or None."""
    return None if value is None else parse_rate(value, argument)


def parse_threshold_option(value: SupportsFloat | str | None, argument: str) -> float | ThresholdRule | None:
    """Return a number as a finite float and a name as the rule of that name; raise `OptionError` for anything else."""
    if not isinstance(value, str):
        return parse_threshold(value, argument)
    rules = [rule for rule in ThresholdRule if argument == "pixel_threshold" or rule is not ThresholdRule.IMAGE]
    if value in rules:
        return ThresholdRule(value)
    names = ", ".join(repr(str(rule)) for rule in rules)
    raise OptionError(f"{argument}={value!r} is not an option; give a finite number or one of {names}.")


def parse_first_units(units: Units | str | None) -> Units | None:
    """The units of the first threshold there is, None for the method's own.

    Raises:
        OptionError: they are none, or normalized scores, which another threshold gives a meaning.
    """
    if units is None:
        return None
    parsed = Units.parse(units, "units")
    if parsed is Units.NORMALIZED:
        raise OptionError('units="normalized" refers to a threshold that is there already; give "raw" or "sigmas".')
    return parsed


def parse_threshold(value: SupportsFloat | str | None, argument: str) -> float | None:
    """Return ``value`` as a finite float (or None); raise `OptionError` for anything else.

    A NaN threshold would flag nothing and an infinite one has no place among scores, so both are refused.
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


def require_rule(rules: Rules, *thresholds: float | ThresholdRule | None) -> None:
    """Raise `OptionError` for numbers of a false-alarm rate where no threshold is found by that rule."""
    if ThresholdRule.FALSE_ALARM_RATE in thresholds:
        return
    usual = Rules()
    for name in ("false_alarm_rate", "confidence", "per"):
        value = getattr(rules, name)
        if value != getattr(usual, name):
            raise OptionError(
                f'{name}={value!s} is of thresholds that are found by a rate; give threshold="false_alarm_rate" too.'
            )
