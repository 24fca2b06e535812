"""Which reader reads which file."""

from pathlib import Path

from anomnorm_core.cli.arrays import NpyTable, NpzTable
from anomnorm_core.cli.parquet import ParquetTable
from anomnorm_core.cli.table import Table, TableError, Wanted
from anomnorm_core.cli.text import TextTable

_KINDS: tuple[type[Table], ...] = (TextTable, NpyTable, NpzTable, ParquetTable)


def open_table(path: str | Path, wanted: Wanted) -> Table:
    """The table in a file, by the end of the file's name.

    Raises:
        TableError: it is of no known kind, damaged, or lacks a column.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise TableError(f"{path}: this is no regular file, and scores are read more than once; save them to one.")
    for kind in _KINDS:
        if path.suffix.lower() in kind.suffixes:
            return kind(path, wanted)  # type: ignore[call-arg]
    listed = ", ".join(suffix for kind in _KINDS for suffix in kind.suffixes)
    raise TableError(f"{path}: scores are read from files that end in {listed}.")
