"""Files that a command writes: known to be possible before anything is read."""

from pathlib import Path

from anomnorm_core.errors import AnomnormError


class ExistsError(AnomnormError):
    """A file would be replaced, and nobody has allowed it."""


def require_writable(path: Path, *, force: bool) -> Path:
    """``path``, if a file can be written there.

    Raises:
        ExistsError: there is one already, and not ``force``.
        OSError: it is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder; name a file", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "the folder to write to does not exist", str(path.parent))
    if path.exists() and not force:
        raise ExistsError(f"{path} exists already; replace it with --force.")
    return path
