"""Which number is the threshold of a level, where several were given (clauses T1, T4)."""

import math
from typing import Literal

Level = Literal["image", "pixel"]
LEVELS: tuple[Level, Level] = ("image", "pixel")


class Thresholds:
    """Numbers by origin and level: set by hand, given to a callback, restored from a checkpoint, in this order."""

    def __init__(self) -> None:
        self.by_hand: dict[Level, float] = {}
        self.given: dict[Level, float] = {}
        self.restored: dict[Level, float] = {}

    def set_by_hand(self, level: Level, value: float | None) -> None:
        """Remember ``value``, or forget what was set with None."""
        _put(self.by_hand, level, value)

    def give(self, level: Level, value: float | None) -> None:
        """Take over what a callback was given.

        The same number again, as in each stage of a trainer, changes nothing; another one replaces also a threshold
        set by hand.
        """
        if value is not None and value != self.given.get(level):
            self.by_hand.pop(level, None)
        _put(self.given, level, value)

    def restore(self, level: Level, value: float) -> None:
        """Take over what a checkpoint holds; NaN is none."""
        _put(self.restored, level, None if math.isnan(value) else value)

    def is_manual(self, level: Level) -> bool:
        """Whether a person gave a number, by hand or to a callback."""
        return level in self.by_hand or level in self.given

    def value(self, level: Level) -> float:
        """The number that counts; NaN if there is none."""
        return (self.restored | self.given | self.by_hand).get(level, math.nan)


def _put(numbers: dict[Level, float], level: Level, value: float | None) -> None:
    numbers.pop(level, None)
    if value is not None:
        numbers[level] = value
