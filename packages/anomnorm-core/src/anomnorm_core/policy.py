"""Options with few values. Public functions take the plain string; these enums give it a type and a check."""

import math
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


_LARGEST_FLOAT32 = float.fromhex("0x1.fffffep+127")


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
    if not math.isfinite(number):
        raise OptionError(f"{argument}={number} is not finite; give a finite float.")
    if abs(number) > _LARGEST_FLOAT32:
        raise OptionError(f"{argument}={number} is infinite in float32, which most scores are; give a smaller number.")
    return number
