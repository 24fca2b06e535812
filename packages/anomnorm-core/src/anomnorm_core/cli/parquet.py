"""Tables in Parquet, where pyarrow is installed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from anomnorm_core.cli import libraries
from anomnorm_core.cli.labels import Coded
from anomnorm_core.cli.table import Block, Table, TableError, Wanted, Writer

ROWS = 2**16  # that are read at a time


class ParquetTable(Table):
    """A Parquet file."""

    suffixes = (".parquet", ".pq")
    outputs = suffixes

    def __init__(self, path: Path, wanted: Wanted) -> None:
        libraries.require_arrow(path)
        pa, parquet = libraries.arrow(""), libraries.arrow("parquet")
        try:
            self._file = parquet.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise TableError(f"{path}: this is no Parquet file ({error}).") from None
        super().__init__(path, wanted, self._file.schema_arrow.names)
        for position in (self.score, self.label, self.name):
            if position is not None and self.columns.count(self.columns[position]) > 1:
                raise TableError(f"{path}: several columns are named {self.columns[position]!r}; rename them.")

    def blocks(self, *, whole: bool = False) -> Iterator[Block]:
        """See `Table.blocks`."""
        total, start = self._file.metadata.num_rows, 0
        used = [self.columns[each] for each in (self.score, self.label, self.name) if each is not None]
        for batch in self._batches(None if whole else used):
            numbers = range(start, start + batch.num_rows)
            start += batch.num_rows
            kinds = names = None
            if self.label is not None:
                kinds = self._kinds(_coded(batch.column(self.columns[self.label])), numbers)
            if self.name is not None:
                given = batch.column(self.columns[self.name]).to_pylist()
                names = ["" if name is None else str(name) for name in given]
            scores = self._scores(batch.column(self.columns[self.score]).to_numpy(zero_copy_only=False))
            yield Block(scores, kinds, names, batch if whole else None, self.size * batch.num_rows // total)

    def _batches(self, columns: list[str] | None) -> Iterator[Any]:
        """Pieces of the file, with errors that name it."""
        pa = libraries.arrow("")
        try:
            yield from self._file.iter_batches(ROWS, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{self.path}: it is damaged: {error}.") from None

    def writer(self, path: Path, file: BinaryIO, added: Sequence[str]) -> Writer:  # noqa: ARG002
        """See `Table.writer`."""
        return _ParquetWriter(file)


def _coded(column: Any) -> Coded:
    pa = libraries.arrow("")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    # Missing labels are the last of the words.
    values = ["" if value is None else str(value) for value in column.dictionary.to_pylist()]
    codes = column.indices.cast(pa.int64()).fill_null(len(values))
    return Coded(codes.to_numpy(), [*values, ""])


class _ParquetWriter(Writer):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: Any = None

    def write(self, block: Block, added: Mapping[str, np.ndarray]) -> None:
        pa, parquet = libraries.arrow(""), libraries.arrow("parquet")
        batch: Any = block.rows
        arrays = [*batch.columns, *map(pa.array, added.values())]
        schema = batch.schema
        for name, array in zip(added, arrays[batch.num_columns :], strict=True):
            schema = schema.append(pa.field(name, array.type))
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._file, schema)
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
