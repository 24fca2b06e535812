"""Tables in text: CSV and its relatives.

Lines are read in blocks and parsed by pyarrow, in large files and where it is installed, or by `numpy.loadtxt`. What
those do not take is parsed again, slowly, by the standard library: empty fields and quoted delimiters are read there,
and of anything else it is known in which line and column it is. All three give the same numbers.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from anomnorm_core.cli import libraries
from anomnorm_core.cli.labels import Coded, coded
from anomnorm_core.cli.table import Block, Table, TableError, Wanted, Writer

BLOCK = 2**18  # bytes that are parsed at a time
LARGE = 2**24  # bytes of a file for which it pays to import pyarrow
_SAMPLE, _LINES = 2**16, 20  # bytes and lines by which delimiter and header are known
_LONGEST = 2**26  # bytes of a line
_DELIMITERS = "\t;,| "
_WORD = 32  # characters of a label
_MARK = b"\xef\xbb\xbf"  # what some programs put before UTF-8
_FIRST_LINE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\r?\n)*[^\n]*\n?")


class TextTable(Table):
    """A text file of one row for each line, in UTF-8."""

    suffixes = (".csv", ".tsv", ".txt")
    outputs = suffixes
    place = "line"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        with path.open("rb") as file:
            start = file.read(_SAMPLE)
        self._mark = _MARK if start.startswith(_MARK) else b""
        text = start.removeprefix(_MARK)
        lines = self._sample(path, text if len(start) < _SAMPLE else text[: text.rfind(b"\n") + 1])
        self.newline = "\r\n" if text.partition(b"\n")[0].endswith(b"\r") else "\n"
        self.decimal = wanted.decimal
        self.delimiter = wanted.delimiter or _sniffed(lines, _DELIMITERS.replace(wanted.decimal, ""))
        try:
            rows = list(csv.reader(lines, delimiter=self.delimiter))
        except (csv.Error, TypeError) as error:
            raise TableError(f"{path}: its first lines are no table: {error}.") from None
        plain = [[field.replace(self.decimal, ".") for field in row] for row in rows]
        has_header = _has_header(plain) if wanted.header is None else wanted.header
        self.header = _FIRST_LINE.match(start)[0] if has_header else b""  # type: ignore[index]
        names = rows[0] if has_header else map(str, range(1, len(rows[0]) + 1))
        super().__init__(path, wanted, [name.strip() for name in names])
        self._has_arrow = self.size >= LARGE and libraries.has_arrow()

    @staticmethod
    def _sample(path: Path, text: bytes) -> list[str]:
        try:
            lines = [line.removesuffix("\r") for line in text.decode().split("\n")]
        except UnicodeDecodeError as error:
            number = text.count(b"\n", 0, error.start) + 1
            raise TableError(f"{path}, line {number}: this is no text in UTF-8. Save it in that encoding.") from None
        found = [line for line in lines if line][:_LINES]
        if not found:
            raise TableError(f"{path}: " + ("its first line is too long." if text.strip() else "the file is empty."))
        return found

    def blocks(self, *, whole: bool = False) -> Iterator[Block]:
        """See `Table.blocks`."""
        with self.path.open("rb") as file:
            file.seek(len(self.header) or len(self._mark))
            number, rest = 1 + self.header.count(b"\n"), b""
            while chunk := file.read(BLOCK):
                data = rest + chunk
                end = data.rfind(b"\n")
                rest = data[end + 1 :]
                if end >= 0:
                    block, count = self._parsed(data[:end], number, whole)
                    yield block
                    number += count
                elif len(rest) > _LONGEST:
                    raise TableError(f"{self._at(number)}: it has more than {_LONGEST} bytes; is this a table?")
            if rest:
                yield self._parsed(rest, number, whole)[0]

    def writer(self, path: Path, file: BinaryIO, added: Sequence[str]) -> Writer:  # noqa: ARG002
        """See `Table.writer`."""
        names = "".join(self.delimiter + name for name in added) + self.newline
        file.write(self.header.rstrip(b"\r\n") + names.encode() if self.header else self._mark)
        return _TextWriter(file, self.delimiter, self.newline, self.decimal)

    def _parsed(self, data: bytes, number: int, whole: bool) -> tuple[Block, int]:
        """The rows of some lines, the first of which has this ``number``, and how many lines that are."""
        size = len(data) + 1
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").removesuffix(b"\r")
        lines = None if self._has_arrow and not whole else self._lines(data, number)
        count = data.count(b"\n") + 1 if lines is None else len(lines)
        numbers: Sequence[int] = range(number, number + count)
        names, found = None, None
        if self.name is None and self.decimal == "." and self._is_regular(data, count):
            with suppress(ValueError):  # of both
                found = self._by_arrow(data) if self._has_arrow else self._by_numpy(lines or [])
        if found is not None and len(found[0]) == count:
            values, words = found
        else:
            lines = lines or self._lines(data, number)
            values, words, names, numbers = self._careful(lines, number)
        kinds = None if words is None else self._kinds(words, numbers)
        rows = [line for line in lines or () if line] if whole else None
        return Block(self._scores(values), kinds, names, rows, size), count

    def _lines(self, data: bytes, number: int) -> list[str]:
        try:
            return data.decode().split("\n")
        except UnicodeDecodeError as error:
            number += data.count(b"\n", 0, error.start)
            raise TableError(f"{self._at(number)}: this is no text in UTF-8. Save it in that encoding.") from None

    def _is_regular(self, data: bytes, count: int) -> bool:
        """Whether the delimiter occurs as often as it separates columns. Of empty lines there are no values."""
        return bool(data.strip()) and data.count(self.delimiter.encode()) == count * (len(self.columns) - 1)

    def _by_numpy(self, lines: list[str]) -> tuple[np.ndarray, Coded | None]:
        if self.label == self.score:
            raise ValueError("one column twice")
        columns, dtype = [self.score], [("score", "f8")]
        if self.label is not None:
            columns, dtype = [*columns, self.label], [*dtype, ("label", f"S{_WORD}")]
        last = len(self.columns) - 1
        if last not in columns:  # so that a line with fewer columns is an error, though another one has more
            columns, dtype = [*columns, last], [*dtype, ("last", "U1")]
        table: Any = np.loadtxt(
            lines, dtype, comments=None, delimiter=self.delimiter, usecols=columns, ndmin=1, quotechar='"'
        )
        if self.label is None:
            return table["score"], None
        labels = np.ascontiguousarray(table["label"])
        if np.any(labels.view("S1").reshape(-1, _WORD)[:, -1] != b""):
            raise ValueError("a label may have been cut off")
        return table["score"], coded(labels, "latin-1")

    def _by_arrow(self, plain: bytes) -> tuple[np.ndarray, Coded | None]:
        pa, reader = libraries.arrow(""), libraries.arrow("csv")
        names = list(map(str, range(len(self.columns))))
        types = {names[self.score]: pa.float64()}
        if self.label is not None:
            types[names[self.label]] = pa.dictionary(pa.int32(), pa.string())
        table = reader.read_csv(
            pa.py_buffer(plain),
            read_options=reader.ReadOptions(column_names=names),
            parse_options=reader.ParseOptions(delimiter=self.delimiter),
            convert_options=reader.ConvertOptions(include_columns=list(types), column_types=types, null_values=[]),
        )
        values = table.column(0).to_numpy()
        if self.label is None:
            return values, None
        words = table.column(1).combine_chunks()
        return values, Coded(words.indices.to_numpy(), words.dictionary.to_pylist())

    def _careful(
        self, lines: list[str], number: int
    ) -> tuple[np.ndarray, Coded | None, list[str] | None, Sequence[int]]:
        """Scores, labels, names and numbers of lines, one by one."""
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        values: list[float] = []
        words: list[str] = []
        names: list[str] = []
        numbers: list[int] = []
        done = 0
        try:
            for row in reader:
                if reader.line_num > done + 1:
                    raise csv.Error
                here, done = number + done, reader.line_num
                if not row:  # a line without anything
                    continue
                if len(row) != len(self.columns):
                    many = f"{len(row)} column{'s' if len(row) > 1 else ''}"
                    raise TableError(f"{self._at(here)}: it has {many}, and the first line {len(self.columns)}.")
                values.append(self._number(row[self.score], here))
                numbers.append(here)
                words.append("" if self.label is None else row[self.label])
                names.append("" if self.name is None else row[self.name])
        except csv.Error as error:
            is_open = reader.line_num > done + 1
            fault = "a quotation mark opens here that is not closed in this line" if is_open else error
            raise TableError(f"{self._at(number + done)}: {fault}.") from None
        known = {word: code for code, word in enumerate(dict.fromkeys(words))}
        codes = np.asarray([known[word] for word in words], dtype=np.int32)
        labels = None if self.label is None else Coded(codes, list(known))
        return np.asarray(values, dtype=np.float64), labels, None if self.name is None else names, numbers

    def _number(self, text: str, number: int) -> float:
        """A score; NaN of an empty field, which is how many programs write one."""
        try:
            if text.isascii() and "_" not in text and (self.decimal == "." or "." not in text):
                return float(text.replace(self.decimal, ".")) if text.strip() else np.nan
        except ValueError:
            pass
        comma = text.count(",") == 1 and text.replace(",", "").strip(" +-").isdecimal()
        remedy = ". If that is a decimal comma, give --decimal ," if comma else ""
        raise TableError(f"{self._at(number, self.score)}: {text!r} is no number{remedy}.")


class _TextWriter(Writer):
    def __init__(self, file: BinaryIO, delimiter: str, newline: str, decimal: str) -> None:
        self._file, self._delimiter, self._newline, self._decimal = file, delimiter, newline, decimal

    def write(self, block: Block, added: Mapping[str, np.ndarray]) -> None:
        texts = [[text.replace(".", self._decimal) for text in _texts(values)] for values in added.values()]
        fields = zip(block.rows, *texts, strict=True)
        lines = self._newline.join(map(self._delimiter.join, fields))
        self._file.write((lines + self._newline).encode() if lines else b"")


def _texts(values: np.ndarray) -> Iterator[str]:
    """Numbers in as many digits as it takes to read the same ones again."""
    if values.dtype.kind == "f":
        return map("%.9g".__mod__ if values.dtype == np.float32 else repr, values.tolist())
    return map(str, values.tolist())


def _sniffed(lines: list[str], delimiters: str) -> str:
    """The delimiter that is equally often in each of the lines; if none is, one that is nowhere."""
    for delimiter in delimiters:
        try:
            counts = {len(row) for row in csv.reader(lines, delimiter=delimiter)}
        except csv.Error:
            continue
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return "," if "," in delimiters else ";"


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row has no number, or something else where all others have numbers."""
    first, *others = rows
    if not any(map(_is_number, first)):
        return True
    columns = zip(first, *others, strict=False)
    return bool(others) and any(not _is_number(head) and all(map(_is_number, rest)) for head, *rest in columns)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
