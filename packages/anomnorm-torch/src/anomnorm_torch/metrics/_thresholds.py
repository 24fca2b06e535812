"""Which number is the threshold of a level, where several were given (clauses T1, T4, T6)."""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from anomnorm_core.policy import ThresholdRule

Level = Literal["image", "pixel"]
LEVELS: tuple[Level, Level] = ("image", "pixel")
Own = Callable[[Level], Tensor | float | None]  # a module's own threshold, if it has one


class Thresholds:
    """Numbers and rules by origin and level.

    In this order: what was set by hand; the number that a callback was given; the module's own; what a validation run
    found, in this process or in the one that wrote a checkpoint. A pixel threshold that nobody has is the image one.
    """

    def __init__(self) -> None:
        self.by_hand: dict[Level, float] = {}
        self.loaded: dict[Level, float] = {}  # set by hand in the process that wrote a checkpoint
        self.options: dict[Level, float | ThresholdRule | None] = dict.fromkeys(LEVELS)  # of a callback
        self.found: dict[Level, float] = {}
        self.raw: float | None = None  # the found image threshold in raw units, where those decide

    def set_by_hand(self, level: Level, value: float | None) -> None:
        """Remember ``value``, or forget what was set with None."""
        _put(self.by_hand, level, value)
        self.loaded.pop(level, None)

    def configure(self, level: Level, option: float | ThresholdRule | None) -> None:
        """Take over the option of a callback.

        The same again, as in each stage of a trainer, changes nothing; another one replaces also a threshold set by
        hand, unless it is None. A number that is not given any more stays as if it had been found.
        """
        before = self.options[level]
        if option is not None and option != before:
            self.by_hand.pop(level, None)
            self.loaded.pop(level, None)
        if option is None and isinstance(before, float):
            self.found.setdefault(level, before)
        self.options[level] = option

    def keep_found(self, image: float | None, pixel: float | None, raw: float | None) -> None:
        """Take over what a validation run found in place of what an earlier one did; None where it did not search."""
        _put(self.found, "image", image)
        _put(self.found, "pixel", pixel)
        self.raw = raw

    def restore(self, level: Level, value: float, found: float, *, by_hand: bool) -> None:
        """Take over what a checkpoint holds: the threshold that counted, and the found one; NaN is none.

        What was set by hand in this process and an option of the callback win over a number set by hand there (T4).
        """
        beneath = found if by_hand or not math.isnan(found) else value
        _put(self.loaded, level, value if by_hand and self.options[level] is None else None)
        _put(self.found, level, None if math.isnan(beneath) else beneath)

    def rule(self, level: Level, own: Own) -> ThresholdRule | None:
        """How a validation run has to find the threshold of ``level``; None where a callback or the module has it.

        Also where one was set by hand: taking that back leaves the found one.
        """
        option = self._option(level)
        if option is None and own(level) is None:
            return ThresholdRule.ADAPTIVE
        return option if isinstance(option, ThresholdRule) else None

    def resolve(self, level: Level, own: Own) -> tuple[Level, Tensor | float] | None:
        """The threshold of ``level``, and of which level it is; None if there is none."""
        number = self._number(level, own)
        if number is None and not isinstance(self._option(level), float):
            number = self.found.get(level)
        if number is not None:
            return level, number
        return self.resolve("image", own) if level == "pixel" else None

    def is_by_hand(self, level: Level) -> bool:
        """Whether a person set the threshold of ``level``."""
        return level in self.by_hand or level in self.loaded

    def raw_decision(self, own: Own) -> float | None:
        """The image threshold in raw units, if it is the found one and was found there."""
        return self.raw if "image" in self.found and self._number("image", own) is None else None

    def saved(self, level: Level) -> float:
        """What belongs into a checkpoint; NaN if there is nothing."""
        found = self.resolve(level, nobodys)
        return float(found[1]) if found is not None and found[0] == level else math.nan

    def _number(self, level: Level, own: Own) -> Tensor | float | None:
        if self.is_by_hand(level):
            return (self.loaded | self.by_hand)[level]
        option = self.options[level]
        if isinstance(option, float):
            return option
        return own(level) if self._option(level) is None else None

    def _option(self, level: Level) -> float | ThresholdRule | None:
        # Without one of its own the pixel level goes by that of the image level, and follows a number given there.
        option = self.options[level]
        return self.options["image"] if option is None else option


def nobodys(_level: Level) -> None:
    """The own thresholds of a module that has none."""


def _put(numbers: dict[Level, float], level: Level, value: float | None) -> None:
    numbers.pop(level, None)
    if value is not None:
        numbers[level] = value
