"""Heat maps of normalized outputs on disk, with a table of the scores: of arrays of any library."""

import csv
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.errors import OptionError, OutputError
from anomnorm_core.fields import PLURAL, Fields, require_shapes, spelling
from anomnorm_core.plot.pictures import as_maps, as_rgb, overlay, png
from anomnorm_core.plot.style import require_matplotlib

TABLE = "scores.csv"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy")


class HeatMapFolder:
    """A folder with a heat map of each image (PNG) and a table of the scores, ``scores.csv``, written batch by batch.

    A heat map is the image, tinted by the normalized map and the more so the higher that is, with a line around what is
    flagged. The table has a line for each image: its name, its heat map, the raw score and other extras where the
    outputs hold them, the normalized score, and the label, 1 where flagged. It appears when all has been written; an
    error leaves none.

    Args:
        folder: is made where it is missing.
        overwrite: whether the table of a former run, and the heat maps that it lists, are removed first.

    Raises:
        FileExistsError: the folder holds anything else.
        OSError: it cannot be made or read.
        ModuleNotFoundError: matplotlib is not installed.

    Example::

        with HeatMapFolder("heat_maps") as folder:
            for batch in batches:
                folder.add(batch["image"], normalizer(**detector(batch)), names=batch["path"])
    """

    def __init__(self, folder: str | PathLike[str], *, overwrite: bool = False) -> None:
        require_matplotlib()
        self.path = Path(folder)
        _make_empty(self.path, overwrite=overwrite)
        self._unfinished = self.path / f".{TABLE}-{uuid.uuid4().hex}.tmp"
        self._file = self._unfinished.open("x", newline="", encoding="utf-8")
        self._columns: list[str] | None = None  # of what the outputs hold, once it is known
        self._taken: set[str] = set()  # names of files, in lower case: some systems do not tell them apart
        self._count = 0

    def add(
        self, images: Any, outputs: Any, names: Iterable[Any] | None = None, *, valid: Any = None
    ) -> list[Path | None]:
        """Write the heat maps of a batch, and keep its lines of the table.

        Args:
            images: (B, H, W), (B, C, H, W) or (B, H, W, C), see `plot.maps`; their height and width become those of
                the heat maps. None: the maps alone are drawn.
            outputs: what a normalizer returns: a mapping, or an object with attributes, of normalized scores and
                labels and, for heat maps, normalized maps and masks.
            names: one for each image, of which the heat map gets its name too: of a path the last folder and the file,
                ``broken_000.png`` of ``test/broken/000.jpg``. Where a name comes again, ``-2`` is added and so on.
                None: running numbers from 0.
            valid: (B,); False for what only pads the batch, and is left out. None takes ``valid`` of the outputs.

        Returns:
            The file of each image; None without maps, and for what is left out.

        Raises:
            OutputError: the outputs are not normalized, lack a field, or hold other fields than those before.
            OptionError: images, names, or ``valid`` are not one for each score.
            OSError: a file cannot be written.
        """
        batch = _Batch(outputs)
        size = batch.scores.size
        numbers = range(self._count, self._count + size)
        named = [f"{number:06d}" for number in numbers] if names is None else [str(name) for name in names]
        shown = None if images is None or batch.maps is None else as_rgb(images)
        kept = batch.valid if valid is None else to_host(valid).astype(bool).reshape(-1)
        for argument, value in (("images", shown), ("names", named), ("valid", kept)):
            if value is not None and len(value) != size:
                raise OptionError(f"{argument} has {len(value)} elements and there are {size} scores; give as many.")
        self._write_header(batch.columns)
        table, written = csv.writer(self._file), list[Path | None]()
        for i in range(size):
            path = None
            if kept is None or kept[i]:
                if batch.maps is not None and batch.masks is not None:
                    path = self.path / self._file_name(named[i])
                    drawn = overlay(None if shown is None else shown[i], batch.maps[i], batch.masks[i])
                    with path.open("xb") as file:
                        file.write(png(drawn))
                table.writerow([named[i], path.name if path else "", *(str(c[i]) for c in batch.columns.values())])
            written.append(path)
        self._count += size
        return written

    def _write_header(self, columns: Mapping[str, np.ndarray]) -> None:
        if self._columns is None:
            self._columns = list(columns)
            csv.writer(self._file).writerow(["name", "heat_map", *self._columns])
        elif self._columns != list(columns):
            raise OutputError(
                f"the outputs hold {', '.join(columns)} and those of earlier batches {', '.join(self._columns)}: a "
                "table has one set of columns. Return the same fields for every batch."
            )

    def _file_name(self, name: str) -> str:
        """A name of its own for the heat map of ``name``."""
        parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")][-2:] or ["image"]
        if parts[-1].lower().endswith(_SUFFIXES):
            parts[-1] = parts[-1].rpartition(".")[0]
        # A name has up to 255 bytes in most file systems.
        stem = re.sub(r"[^\w.-]", "_", "_".join(parts)).encode()[-150:].decode(errors="ignore")
        found, again = stem, 1
        while found.lower() in self._taken:
            again += 1
            found = f"{stem}-{again}"
        self._taken.add(found.lower())
        return f"{found}.png"

    def close(self) -> Path:
        """Let the table appear, and return its path."""
        if self._columns is None:
            self._write_header({})
        self._file.close()
        return self._unfinished.replace(self.path / TABLE)

    def abandon(self) -> None:
        """Leave the heat maps that were written, and no table."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close() if kind is None else self.abandon()


def write_heat_maps(
    folder: str | PathLike[str],
    images: Any,
    outputs: Any,
    names: Sequence[Any] | None = None,
    *,
    overwrite: bool = False,
) -> list[Path | None]:
    """Write heat maps and ``scores.csv`` of one batch; of several, use `HeatMapFolder`.

    Args:
        folder, overwrite: see `HeatMapFolder`.
        images, outputs, names: see `HeatMapFolder.add`.

    Returns:
        The file of each image; None without maps.

    Raises:
        FileExistsError, OSError, OutputError, OptionError, ModuleNotFoundError: as these do.
    """
    with HeatMapFolder(folder, overwrite=overwrite) as made:
        return made.add(images, outputs, names)


def _make_empty(folder: Path, *, overwrite: bool) -> None:
    """Make the folder where it is missing, and remove what a former run has written if that is wanted."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    former = {TABLE, *_listed(folder / TABLE)} if overwrite and TABLE in present else set()
    others = sorted(present - former)
    if others or (folder.exists() and not folder.is_dir()):
        found = (
            f"holds {others[0]!r}" + (f" and {len(others) - 1} more" if others[1:] else "") if others else "is a file"
        )
        raise FileExistsError(
            f"{folder} {found}: heat maps would be mixed with that. Name another folder"
            + (
                "."
                if overwrite
                else f", or give overwrite=True to replace the {TABLE} of a former run and its heat maps."
            )
        )
    for name in present & former:
        (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _listed(table: Path) -> list[str]:
    with table.open(newline="", encoding="utf-8") as file:
        return [row["heat_map"] for row in csv.DictReader(file) if row.get("heat_map")]


class _Batch:
    """Normalized outputs of one batch in NumPy, checked."""

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs
        self._fields: Fields = spelling(lambda name: self._find(name) is not None, outputs)
        scores, labels = self._find(self._fields.scores), self._find(self._fields.pred_labels)
        maps, masks = self._find(self._fields.maps), self._find(self._fields.pred_masks)
        for name, value, with_it in (
            (self._fields.scores, scores, True),
            (self._fields.pred_labels, labels, True),
            (self._fields.pred_masks, masks, maps is not None),
        ):
            if value is None and with_it:
                raise OutputError(
                    f"the outputs have no {name!r}: heat maps are made of what a normalizer, or a test or prediction "
                    "with its callback, returns. Normalize them first."
                )
        shaped = to_host(scores)
        self.maps = None if maps is None else as_maps(maps, self._fields.maps)
        self.masks = None if masks is None or maps is None else as_maps(masks, self._fields.pred_masks).astype(bool)
        require_shapes(shaped.shape, None if self.maps is None else self.maps.shape)
        self.scores = shaped.reshape(-1)
        marks = to_host(labels).reshape(-1).astype(np.uint8)
        shapes = [(self._fields.pred_labels, marks.shape, self.scores.shape)]
        if self.maps is not None and self.masks is not None:
            shapes.append((self._fields.pred_masks, self.masks.shape, self.maps.shape))
        for name, found_shape, expected in shapes:
            if found_shape != expected:
                raise OutputError(f"{name!r} has shape {found_shape}; {expected} is needed, that of what it labels.")
        for name, array in ((self._fields.scores, self.scores), (self._fields.maps, self.maps)):
            if array is not None and np.any((array < 0) | (array > 1)):
                raise OutputError(
                    f"{name!r} holds {float(np.nanmin(array)):.6g} to {float(np.nanmax(array)):.6g}, which are no "
                    "normalized scores: those are between 0 and 1. Normalize the outputs first."
                )
        found = self._find(self._fields.valid)
        self.valid = None if found is None else to_host(found).astype(bool).reshape(-1)
        # The table: raw scores and other extras, where there are any, the normalized score, and the label.
        self.columns = {
            PLURAL.scores + name.removeprefix(self._fields.scores): to_host(self._find(name)).reshape(-1)
            for name in self._extras()
        }
        self.columns |= {PLURAL.scores: self.scores, PLURAL.pred_labels: marks}

    def _find(self, name: str) -> Any:
        return self._outputs.get(name) if isinstance(self._outputs, Mapping) else getattr(self._outputs, name, None)

    def _extras(self) -> list[str]:
        names = self._outputs if isinstance(self._outputs, Mapping) else getattr(self._outputs, "__dict__", {})
        prefix = f"{self._fields.scores}_"
        return [name for name in names if str(name).startswith(prefix) and self._find(name) is not None]
