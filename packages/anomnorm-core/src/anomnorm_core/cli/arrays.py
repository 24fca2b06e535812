"""Tables in NumPy's files: an array of scores (NPY), or several arrays of one length (NPZ).

They are read piece by piece, compressed ones too, and never as a whole.
"""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from anomnorm_core.cli.labels import coded
from anomnorm_core.cli.table import Block, Table, TableError, Wanted, Writer

ROWS = 2**16  # that are read at a time


@dataclass(frozen=True)
class _Header:
    """What an NPY file says of its array."""

    shape: tuple[int, ...]
    by_column: bool
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, file: IO[bytes]) -> "_Header":
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        if version > (2, 0):
            raise ValueError(f"format version {version} of NPY is not read")
        return cls(*read(file))

    @property
    def is_column(self) -> bool:
        """Whether there is one value for each row."""
        return len(self.shape) == 1 or self.shape[1:] == (1,)

    def pieces(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        """The rows that follow in ``file``, up to `ROWS` at a time."""
        left, row = self.shape[0], self.shape[1:]
        length = int(np.prod(row)) * self.dtype.itemsize
        while left:
            count = min(left, ROWS)
            data = file.read(count * length)
            if len(data) != count * length:
                raise ValueError("the file is cut off")
            yield np.frombuffer(data, dtype=self.dtype).reshape(count, *row)
            left -= count


class NpyTable(Table):
    """One array: (N,) scores, (N, K) columns, or a structured array with named ones."""

    suffixes = (".npy",)
    outputs = (".npy", ".npz")
    place = "index"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        with path.open("rb") as file:
            try:
                self._header = _Header.read(file)
            except ValueError as error:
                raise TableError(f"{path}: this is no array of numbers in NumPy's format ({error}).") from None
        shape, names = self._header.shape, self._header.dtype.names
        axes = len(shape)
        if axes not in (1, 2) or (names and axes > 1) or self._header.dtype.hasobject:
            raise TableError(
                f"{path}: it holds an array of shape {shape} and type {self._header.dtype}; scores are numbers of "
                "shape (N,), or columns of shape (N, K)."
            )
        if self._header.by_column and not self._header.is_column:
            raise TableError(f"{path}: its columns are stored one after the other; save np.ascontiguousarray(...).")
        width = 1 if axes == 1 else shape[1]
        self.rows = shape[0]
        super().__init__(path, wanted, names or list(map(str, range(1, width + 1))))

    def blocks(self, *, whole: bool = False) -> Iterator[Block]:
        """See `Table.blocks`."""
        with self.path.open("rb") as file:
            _Header.read(file)
            start = 0
            for piece in _told(self.path, self._header.pieces(file)):
                rows = piece.reshape(len(piece), -1) if piece.dtype.names is None else piece
                numbers = range(start, start + len(piece))
                kinds = None if self.label is None else self._kinds(coded(self._column(rows, self.label)), numbers)
                names = None if self.name is None else list(map(str, self._column(rows, self.name)))
                scores = self._scores(self._column(rows, self.score))
                yield Block(scores, kinds, names, {} if whole else None, piece.nbytes)
                start += len(piece)

    def _column(self, rows: np.ndarray, position: int) -> np.ndarray:
        return rows[:, position] if rows.dtype.names is None else rows[self.columns[position]]

    def writer(self, path: Path, file: BinaryIO, added: Sequence[str]) -> Writer:
        """See `Table.writer`. An NPY file gets the first of the added columns alone."""
        return _NpyWriter(file, self.rows) if path.suffix == ".npy" else _NpzWriter(file, None, added)


class NpzTable(Table):
    """Several arrays, of which those of shape (N,) are columns."""

    suffixes = (".npz",)
    outputs = (".npz",)
    place = "index"

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._headers: dict[str, _Header] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as file:
                        self._headers[member.removesuffix(".npy")] = _Header.read(file)
        except (ValueError, RuntimeError, zipfile.BadZipFile) as error:  # encrypted, or compressed in another way
            raise TableError(f"{path}: this is no archive of arrays in NumPy's format ({error}).") from None
        columns = [name for name, header in self._headers.items() if header.is_column and not header.dtype.hasobject]
        super().__init__(path, wanted, columns)
        used = {position for position in (self.score, self.label, self.name) if position is not None}
        lengths = {columns[position]: self._headers[columns[position]].shape[0] for position in used}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise TableError(f"{path}: its columns are of different lengths: {listed}.")

    def blocks(self, *, whole: bool = False) -> Iterator[Block]:
        """See `Table.blocks`."""
        total = self._headers[self.columns[self.score]].shape[0]
        start = 0
        others = [self._pieces(position) for position in (self.label, self.name)]
        for values in self._pieces(self.score):
            labels, names = (next(each, None) for each in others)
            numbers = range(start, start + len(values))
            kinds = None if labels is None else self._kinds(coded(labels), numbers)
            listed = None if names is None else list(map(str, names))
            start += len(values)
            size = self.size * len(values) // total
            yield Block(self._scores(values), kinds, listed, {} if whole else None, size)

    def _pieces(self, position: int | None) -> Iterator[np.ndarray]:
        if position is None:
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(self.columns[position] + ".npy") as file:
            header = _Header.read(file)
            for piece in _told(self.path, header.pieces(file)):
                yield piece.reshape(-1)

    def writer(self, path: Path, file: BinaryIO, added: Sequence[str]) -> Writer:  # noqa: ARG002
        """See `Table.writer`. All arrays of this file are kept, whatever their shape."""
        return _NpzWriter(file, self.path, added)


def _told(path: Path, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """``pieces`` with errors that name the file."""
    try:
        yield from pieces
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TableError(f"{path}: {error}.") from None


class _NpyWriter(Writer):
    def __init__(self, file: BinaryIO, rows: int) -> None:
        self._file, self._rows, self._begun = file, rows, False

    def write(self, block: Block, added: Mapping[str, np.ndarray]) -> None:  # noqa: ARG002
        values = next(iter(added.values()))
        if not self._begun:
            _write_header(self._file, values.dtype, self._rows)
            self._begun = True
        self._file.write(values.tobytes())


class _NpzWriter(Writer):
    """An archive is written member by member: the columns wait in temporary files."""

    def __init__(self, file: BinaryIO, source: Path | None, added: Sequence[str]) -> None:
        self._file, self._source = file, source
        self._columns = {name: tempfile.TemporaryFile() for name in added}  # noqa: SIM115
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._rows = 0

    def write(self, block: Block, added: Mapping[str, np.ndarray]) -> None:
        self._rows += len(block.scores)
        for name, values in added.items():
            self._columns[name].write(values.tobytes())
            self._dtypes[name] = values.dtype

    def finish(self) -> None:
        with zipfile.ZipFile(self._file, "w", allowZip64=True) as target:
            if self._source is not None:
                with zipfile.ZipFile(self._source) as source:
                    for info in source.infolist():
                        with source.open(info) as old, target.open(info.filename, "w", force_zip64=True) as new:
                            shutil.copyfileobj(old, new)
            for name, column in self._columns.items():
                with column, target.open(f"{name}.npy", "w", force_zip64=True) as new:
                    _write_header(new, self._dtypes[name], self._rows)
                    column.seek(0)
                    shutil.copyfileobj(column, new)


def _write_header(file: IO[bytes], dtype: np.dtype[Any], rows: int) -> None:
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)})
