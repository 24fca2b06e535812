"""A table of scores, whatever file it is in: read in blocks of rows, and written again with more columns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from anomnorm_core.cli.labels import Coded, Labels
from anomnorm_core.errors import AnomnormError

SCORE_NAMES = ("score", "pred_score", "anomaly_score", "scores", "pred_scores", "anomaly_scores")


class TableError(AnomnormError, ValueError):
    """A table does not hold what was asked of it; the message names file, line and column."""


class UsageError(AnomnormError):
    """Arguments that do not go together: exit code 2."""


@dataclass(frozen=True)
class Wanted:
    """Which columns are read, and how."""

    score: str | None = None  # name or number, from 1; None: by one of the usual names, or the only one
    label: str | None = None  # None: there are none
    name: str | None = None  # of what each row is called; None: of nothing
    labels: Labels = field(default_factory=Labels)
    dtype: str | None = None  # of the scores, "float32" or "float64"; None: as in the file
    delimiter: str | None = None  # of text; None: what its first lines have
    decimal: str = "."  # of text
    header: bool | None = None  # of text; None: whether its first line looks like one


@dataclass(frozen=True)
class Block:
    """Some rows."""

    scores: np.ndarray  # (n,) float32 or float64
    kinds: np.ndarray | None  # (n,) int8: 0 normal, 1 anomalous, 3 without a label
    names: list[str] | None
    rows: Any  # the whole rows, for the writer of the same kind of file; None where they were not asked for
    size: int  # bytes of the file that they take


class Writer(ABC):
    """Writes the rows of a table, in their order, each with more columns."""

    @abstractmethod
    def write(self, block: Block, added: Mapping[str, np.ndarray]) -> None:
        """Write the rows of a block."""

    def finish(self) -> None:  # noqa: B027
        """Write what comes after all rows, if anything does."""


class Table(ABC):
    """A file of scores.

    Attributes:
        path: of the file.
        columns: their names; their numbers, from 1, where they have none.
        size: bytes of the file.
    """

    suffixes: tuple[str, ...]  # of the files of this kind
    outputs: tuple[str, ...]  # of those that it can be written to
    place = "row"  # what is counted in error messages

    def __init__(self, path: Path, wanted: Wanted, columns: Sequence[str]) -> None:
        self.path, self.columns, self.size = path, list(columns), path.stat().st_size
        self._wanted = wanted
        self.score = self._find("--score", wanted.score)
        self.label = None if wanted.label is None else self._find("--label", wanted.label)
        self.name = None if wanted.name is None else self._find("--name", wanted.name)

    @abstractmethod
    def blocks(self, *, whole: bool = False) -> Iterator[Block]:
        """The rows; ``whole`` keeps all of their columns, for a writer.

        Raises:
            TableError: something in them is no number or no label.
        """

    @abstractmethod
    def writer(self, path: Path, file: BinaryIO, added: Sequence[str]) -> Writer:
        """What writes rows of this table with columns ``added`` to ``file``, which will be at ``path``."""

    def _find(self, option: str, wanted: str | None) -> int:
        """The position of a column.

        Raises:
            TableError: there is none of this name, or several.
        """
        columns = self.columns
        there = ", ".join(map(repr, columns[:20])) + (", ..." if len(columns) > 20 else "")
        if wanted is None:
            usual = [name for name in SCORE_NAMES if name in columns]
            if len(columns) != 1 and not usual:
                raise TableError(f"{self.path}: say with --score which column holds the scores; there are {there}.")
            wanted = usual[0] if usual else columns[0]
        if columns.count(wanted) > 1:
            raise TableError(f"{self.path}: {columns.count(wanted)} columns are named {wanted!r}; give its number.")
        if wanted in columns:
            return columns.index(wanted)
        if wanted.isdecimal() and 1 <= int(wanted) <= len(columns):
            return int(wanted) - 1
        raise TableError(f"{self.path}: {option} {wanted}: there is no such column; there are {there}.")

    def _scores(self, values: np.ndarray) -> np.ndarray:
        """The scores in a floating dtype of at least 32 bits, that which was asked for if one was."""
        if values.dtype.kind not in "fiu":
            raise TableError(
                f"{self.path}, column {self.columns[self.score]!r}: its values are of type {values.dtype}; scores are "
                "real numbers."
            )
        single = values.dtype.kind == "f" and values.dtype.itemsize <= 4
        with np.errstate(over="ignore"):
            return values.astype(self._wanted.dtype or ("float32" if single else "float64"), copy=False)

    def _kinds(self, words: Coded, numbers: Sequence[int]) -> np.ndarray:
        """What the labels say, of rows with these ``numbers``."""
        known = [self._wanted.labels.kind(word) for word in words.values]
        for code, kind in enumerate(known):
            if kind is None and np.any(words.codes == code):
                number = numbers[int(np.argmax(words.codes == code))]
                raise TableError(f"{self._at(number, self.label)}: {self._wanted.labels.unknown(words.values[code])}")
        kinds: np.ndarray = np.asarray([kind or 0 for kind in known] or [0], dtype=np.int8)[words.codes]
        return kinds

    def _at(self, number: int, column: int | None = None) -> str:
        named = "" if column is None else f", column {self.columns[column]!r}"
        return f"{self.path}, {self.place} {number}{named}"
