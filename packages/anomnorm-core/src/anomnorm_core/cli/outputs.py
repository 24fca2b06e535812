"""Files that a command writes: known to be possible before anything is read."""

import errno
from pathlib import Path

from anomnorm_core.errors import AnomnormError
from anomnorm_core.file import target_of


class ExistsError(AnomnormError):
    """A file would be replaced, and nobody has allowed it."""


def require_writable(path: Path, *, force: bool) -> Path:
    """``path``, if a file can be written there.

    Raises:
        ExistsError: there is one already, and not ``force``.
        OSError: it is a folder or a device, or its folder does not exist.
    """
    target_of(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file", str(path))
    if path.exists() and not force:
        raise ExistsError(f"{path} exists already; replace it with --force.")
    return path
