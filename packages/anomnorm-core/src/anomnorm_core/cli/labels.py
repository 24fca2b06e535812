"""What the labels in a table say: words, numbers or booleans, for normal and anomalous."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from anomnorm_core.threshold.choice import ANOMALOUS, IGNORED, NORMAL

NORMAL_WORDS = ("0", "false", "no", "normal", "good", "ok", "pass", "negative", "inlier")
ANOMALOUS_WORDS = (
    "1",
    "true",
    "yes",
    "anomalous",
    "anomaly",
    "abnormal",
    "bad",
    "ng",
    "nok",
    "fail",
    "defect",
    "defective",
    "positive",
    "outlier",
)
_MISSING = ("", "nan")
_FEW = 20  # different words; more are sorted


class Coded(NamedTuple):
    """Words, each by its position in a list of the different ones."""

    codes: np.ndarray  # (n,) integers
    values: list[str]


def coded(values: np.ndarray, encoding: str = "utf-8") -> Coded:
    """Labels of any dtype, bytes in this encoding. Those are few: comparing all with each is faster than sorting."""
    codes = np.zeros(values.shape, dtype=np.int32)
    rest = np.ones(values.shape, dtype=bool)
    known: list[str] = []
    if values.dtype.kind == "f":  # NaN equals nothing
        known, rest = [""], ~np.isnan(values)
    while np.any(rest):
        if len(known) == _FEW:
            different, found = np.unique(values[rest], return_inverse=True)
            codes[rest] = found + len(known)
            return Coded(codes, known + [_word(value, encoding) for value in different])
        word = values[np.argmax(rest)]
        same = values == word
        codes[same] = len(known)
        known.append(_word(word, encoding))
        rest &= ~same
    return Coded(codes, known)


def _word(value: object, encoding: str) -> str:
    return value.decode(encoding, errors="replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Labels:
    """Which labels are normal, and which anomalous.

    Given the ``normal`` ones, all others are anomalous; given the ``anomalous`` ones, all others are normal; given
    neither, the usual words are known, and any other is an error. Case does not matter, and 1.0 is 1.
    """

    normal: frozenset[str] = field(default_factory=frozenset)
    anomalous: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, normal: Iterable[str], anomalous: Iterable[str]) -> "Labels":
        """From what a user gave."""
        return cls(frozenset(map(_plain, normal)), frozenset(map(_plain, anomalous)))

    def kind(self, word: str) -> int | None:
        """``NORMAL``, ``ANOMALOUS``, or ``IGNORED`` where there is no label; None: the word is unknown."""
        plain = _plain(word)
        if plain in _MISSING:
            return IGNORED
        if self.normal:
            return NORMAL if plain in self.normal else ANOMALOUS
        if self.anomalous:
            return ANOMALOUS if plain in self.anomalous else NORMAL
        return NORMAL if plain in NORMAL_WORDS else ANOMALOUS if plain in ANOMALOUS_WORDS else None

    @staticmethod
    def unknown(word: str) -> str:
        """What to do about a word that is not known."""
        learn = " (scikit-learn has -1 for anomalous and 1 for normal)" if _plain(word) == "-1" else ""
        return (
            f"{word!r} is no known label{learn}. Say which are normal with --normal, all others being anomalous, or "
            "which are anomalous with --anomalous."
        )


def _plain(word: str) -> str:
    word = word.strip().casefold()
    try:
        return f"{float(word):g}"
    except ValueError:
        return word
