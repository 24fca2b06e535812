"""Heat maps and a table of scores from test and prediction, under either Lightning distribution."""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomnorm_core.errors import AnomnormError, OptionError
from anomnorm_core.heat_maps import HeatMapFolder
from anomnorm_core.plot.style import require_matplotlib
from anomnorm_torch.callback import Normalization
from anomnorm_torch.framework import LightningModule, Trainer
from anomnorm_torch.normal_data import flattened
from anomnorm_torch.outputs import StepOutputs
from anomnorm_torch.processes import OwnSamples

_IMAGES = ("image", "images")
_PATHS = ("image_path", "image_paths", "path", "paths", "filename", "filenames")


class HeatMapWriting:
    """Save a heat map of each image (PNG) and a table, ``scores.csv``, of what test and predict leave in the outputs.

    List it after the normalization callback, which puts normalized scores, labels and masks there. What is written is
    described at `anomnorm_core.HeatMapFolder`: into ``folder/test`` and ``folder/predict``; of n processes each has a
    folder of its own in those, ``0-of-n`` and so on. Outputs without maps get a table alone. Use
    ``trainer.predict(..., return_predictions=False)`` to keep nothing in memory.

    Args:
        folder: where to write.
        images: what to draw on: a function of a batch that returns its images, see `anomnorm_core.plot.maps` for their
            shapes. None: the batch itself where it is a tensor of images, the first part of a tuple, or a field
            ``image`` or ``images``; without any of them the maps alone are drawn.
        names: of the images: a function of a batch that returns a text or path for each. None takes ``image_path``,
            ``path`` or ``filename`` (or their plural) of the batch, else the index in the data; in a test that of the
            output among those of its loader, in several processes for each by itself.
        overwrite: whether the table of a former run, and the heat maps that it lists, are replaced.

    Raises:
        OptionError: ``images`` or ``names`` is no function.
        ModuleNotFoundError: matplotlib is not installed.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        images: Callable[[Any], Any] | None = None,
        names: Callable[[Any], Iterable[Any]] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__()
        require_matplotlib()
        for argument, value in (("images", images), ("names", names)):
            if value is not None and not callable(value):
                raise OptionError(f"{argument}={value!r} is no function; give one that takes a batch, or None.")
        self.folder, self.overwrite = Path(folder), overwrite
        self._images, self._names = images, names
        self._writer: HeatMapFolder | None = None  # of the present test or prediction
        self._own: list[OwnSamples] = []  # of each of its loaders
        self._count = 0  # samples of the present loader so far

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the order of the callbacks.

        Raises:
            AnomnormError: the normalization callback is listed after this one.
        """
        super().setup(trainer, pl_module, stage)  # type: ignore[misc]  # of the framework's writer
        callbacks: list[Any] = trainer.callbacks  # type: ignore[union-attr]
        for callback in callbacks[callbacks.index(self) :]:
            if isinstance(callback, Normalization):
                name, own = type(callback).__name__, type(self).__name__
                raise AnomnormError(
                    f"{own} would write the outputs before {name} has normalized them: list it after that, "
                    f"callbacks=[{name}(...), {own}(...)]."
                )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder of the test.

        Raises:
            FileExistsError: it is not empty.
        """
        self._start(trainer, "test", trainer.test_dataloaders)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder of the prediction.

        Raises:
            FileExistsError: it is not empty.
        """
        self._start(trainer, "predict", trainer.predict_dataloaders)

    def _start(self, trainer: Trainer, stage: str, loaders: Any) -> None:
        folder = self.folder / stage
        if trainer.world_size > 1:
            folder /= f"{trainer.global_rank}-of-{trainer.world_size}"
        self._writer = HeatMapFolder(folder, overwrite=self.overwrite)
        self._own = [OwnSamples(loader) for loader in flattened(loaders)]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch of the prediction.

        Raises:
            OutputError, OptionError, OSError: see `anomnorm_core.HeatMapFolder.add`.
        """
        self._write(prediction, batch, batch_idx, dataloader_idx, batch_indices)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch of the test. Raises what `write_on_batch_end` does."""
        self._write(outputs, batch, batch_idx, dataloader_idx)

    def _write(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int, indices: Any = None) -> None:
        if batch_idx == 0:
            self._count = 0
        if outputs is None or self._writer is None:  # a skipped batch
            return
        step = StepOutputs(outputs)
        size = len(step.scores)
        # Without the samples that only pad the batch, or the share of this process.
        valid = step.valid(batch)
        kept = torch.ones(size, dtype=torch.bool) if valid is None else valid.cpu()
        if dataloader_idx < len(self._own):
            kept = kept & (torch.arange(size) < self._own[dataloader_idx].count(batch_idx, size))
        images = _images_of(batch) if self._images is None else self._images(batch)
        names = _paths_of(batch) if self._names is None else self._names(batch)
        if names is None:
            numbers = indices if indices and len(indices) == size else range(self._count, self._count + size)
            loader = f"{dataloader_idx}-" if len(self._own) > 1 else ""
            names = [f"{loader}{number:06d}" for number in numbers]
        self._count += size
        self._writer.add(images, outputs, names, valid=kept)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the table appear."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._own = None, []

    on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no table of a stage that does not come to its end."""
        if self._writer is not None:
            self._writer.abandon()
        self._writer, self._own = None, []


def _images_of(batch: Any) -> Any:
    """The images of a batch, None where it has no tensor that could be some."""
    if isinstance(batch, Mapping):
        found = next((batch[name] for name in _IMAGES if name in batch), None)
    elif isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        found = batch[0] if batch else None
    elif isinstance(batch, Tensor):
        found = batch
    else:
        found = next((getattr(batch, name) for name in _IMAGES if hasattr(batch, name)), None)
    return found if isinstance(found, Tensor) and found.ndim in (3, 4) else None


def _paths_of(batch: Any) -> list[str] | None:
    """The paths of a batch's images, None where it has none."""
    for name in _PATHS:
        value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
        if isinstance(value, str | PathLike):  # of a batch of one
            return [str(value)]
        if isinstance(value, list | tuple) and all(isinstance(each, str | PathLike) for each in value):
            return [str(each) for each in value]
    return None
