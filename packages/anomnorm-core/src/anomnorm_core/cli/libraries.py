"""Libraries that the command line uses where they are installed."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anomnorm_core.cli.table import TableError


def has_arrow() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def arrow(module: str) -> Any:
    """A module of pyarrow."""
    return import_module(f"pyarrow.{module}" if module else "pyarrow")


def require_arrow(path: Path) -> None:
    """Raise `TableError` where there is no pyarrow to read ``path``."""
    if not has_arrow():
        raise TableError(f"{path}: reading Parquet needs pyarrow: pip install 'anomnorm-core[parquet]'.")
