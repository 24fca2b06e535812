"""One streaming pass over the normal data, beside the trainer's own loops (clause L3)."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm.auto import tqdm

from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError, OutputError
from anomnorm_core.options import OnInvalid, Source
from anomnorm_torch.framework import LightningModule, Trainer, part
from anomnorm_torch.loaders import Duplicates
from anomnorm_torch.normal_data import NormalData, PassOptions, flattened
from anomnorm_torch.outputs import StepOutputs
from anomnorm_torch.processes import OwnSamples, total
from anomnorm_torch.run import Records
from anomnorm_torch.sharding import data_group, in_step, step_of
from anomnorm_torch.user_hooks import END, START, Position, UserHooks, snapshot


class Pass:
    """A pass over the normal data, which a duplicate of the module, or the module, scores as validation would.

    It runs in the trainer's precision and on its device, with its random number generators put back afterwards. The
    trainer's own loaders are not iterated: their workers and generators belong to the training. Where several processes
    share the work, each scores its share of the data, no sample counts twice, and every one has to call the methods.

    Args:
        trainer: the running trainer.
        model: what scores the data: a duplicate of its module, or that itself where it may be sharded.
        records: are updated.
        hooks: of the user's callbacks.
        options: of the callback.

    Raises:
        OptionError: the module has no such step.
    """

    def __init__(
        self, trainer: Trainer, model: LightningModule, records: Records, hooks: UserHooks, options: PassOptions
    ) -> None:
        self._trainer: Any = trainer
        self._model, self._records, self._hooks = model, records, hooks
        self._is_itself = model is trainer.lightning_module
        self._options, self._step = options, _step(trainer, model, options.step)
        self._data = NormalData(trainer, options)
        self._several = len(flattened(trainer.val_dataloaders)) > 1
        self._metrics = [module for module in model.modules() if isinstance(module, Metric)]
        self._batches = self._skipped = self._samples = 0  # of this process
        self._normal: Tensor | int = 0  # those of the samples that count
        self._has_maps = False
        self._is_labelled = True  # whether the present loader tells which samples are normal
        self.normals = 0  # those of all processes, after `collect`
        hooks.begin()

    def try_out(self) -> None:
        """Find out what would go wrong, before the training, with one batch of each loader.

        Raises:
            AnomnormError: the data cannot be read beside the training, or the step's outputs are not what is needed.
        """
        trainer = self._trainer
        found: Exception | None = None
        try:
            with self._beside_the_training():
                duplicates = Duplicates(workers=1)  # enough for a batch
                loaders = self._data.loaders(duplicates, fitted=False) or []
                with duplicates.in_use():
                    for index, loader in enumerate(loaders):
                        self._data.limit(self._data.length(loader), warns=trainer.is_global_zero)
                        for batch, _ in self._together(self._first(loader)):
                            self._try(snapshot(batch, batch), Position(0, index, self._several))
                    self._require_maps()
        except Exception as error:
            found = error
        # A process that went on alone would wait for the others.
        everywhere = trainer.world_size == 1 or trainer.strategy.reduce_boolean_decision(found is None)
        if found is not None:
            raise found
        if not everywhere:
            raise AnomnormError(f"{self._options.name} fails in another process, whose error says why.")

    def _try(self, batch: Any, position: Position) -> None:
        try:
            self._add(batch, position, None)
        except AnomnormError:
            raise
        except Exception:
            # A detector may be ready for scoring after an epoch only, or when validation starts.
            if self._validated() is not None:
                raise

    def _validated(self) -> list[Any] | None:
        """Outputs of the validation step for a batch of each validation loader; None where it cannot score yet."""
        found, duplicates = [], Duplicates(workers=1)
        try:
            step = _step(self._trainer, self._model, "validation_step")
            loaders = [duplicates.of(loader) for loader in flattened(self._trainer.val_dataloaders)]
            with duplicates.in_use():
                for index, loader in enumerate(loaders):
                    for batch in self._first(loader):
                        batch = self._transferred(snapshot(batch, batch), index)
                        found.append(Position(0, index, self._several).call(step, batch))
        except Exception:
            return None
        return found

    def _require_maps(self) -> None:
        """Raise unless there are maps to fit, or none to normalize."""
        if self._options.step == "validation_step" or self._has_maps or self._samples == 0:
            return
        for outputs in self._validated() or ():
            if outputs is not None and StepOutputs(outputs).maps is not None:
                raise OutputError(
                    f"{self._options.step} in {self._options.name} returns no anomaly maps, but validation_step does: "
                    "their statistics would be missing. Return them, or name another step with step=..."
                )

    def collect(self, *, fitted: bool, enough: int = 0) -> bool:
        """Add the scores of the normal data to the records.

        Those of ``source="auto"`` are the samples of the validation data that are labelled normal.

        Args:
            fitted: whether there are statistics of a checkpoint, which can stay where there is no data.
            enough: how many normal samples there have to be, in all processes together.

        Returns:
            False where there is no data but statistics that can stay, and where there are not enough normal samples.

        Raises:
            NotFittedError: there is no data to fit on, and nothing restored.
            InvalidScoreError: under ``RAISE``, a score cannot enter the statistics.
            AnomnormError: as `try_out`.
        """
        trainer, on_invalid = self._trainer, self._options.on_invalid
        bar = trainer.progress_bar_callback
        # fast_dev_run looks for errors in a batch or two, and that one sample has no deviation is none.
        least = 2 if trainer.fast_dev_run else 0
        with self._beside_the_training():
            duplicates = Duplicates()
            loaders = self._data.loaders(duplicates, fitted=fitted)
            if loaders is None:
                return False
            with duplicates.in_use():
                for loader_index, loader in enumerate(loaders):
                    own = OwnSamples(loader)
                    length = self._data.length(loader)
                    wanted = self._data.limit(length)
                    batches = self._data.read(loader, wanted, length, lambda: int(self._normal) >= least)
                    self._is_labelled = True
                    progress = tqdm(
                        # A loader without labels is not read to its end only to learn that.
                        takewhile(lambda _: self._is_labelled, batches),
                        desc="Collecting normal scores",
                        total=length if wanted is None else wanted,
                        leave=False,
                        disable=bar is None or not getattr(bar, "is_enabled", True),
                    )
                    for index, (batch, is_new) in enumerate(self._together(progress)):
                        self._add(batch, Position(index, loader_index, self._several), own, counts=is_new)
                        if on_invalid is OnInvalid.RAISE:
                            self._records.report_invalid(on_invalid, self._options.known_source)
        arrived = torch.tensor([self._batches, self._skipped, self._samples, int(self._normal)])
        if trainer.world_size > 1:
            group = data_group(trainer)
            self._records.merge_processes(group)
            arrived = total(arrived.to(trainer.strategy.root_device), group)
        self.normals = int(arrived[-1])
        if self.normals < enough:
            return False
        self._require_normal(loaders, *arrived.tolist())
        return True

    def _require_normal(self, loaders: list[Any], batches: int, skipped: int, samples: int, normal: int) -> None:
        if normal:
            return
        if any(hasattr(type(loader), "__next__") for loader in loaders):
            reason = "its loader is an iterator that has been read to its end: give a loader that can be iterated again"
        elif not batches:
            names = ", ".join(type(loader).__name__ for loader in loaders) or "no loader"
            reason = f"its loader ({names}) gave no batch: look for an empty data set, a sampler or a limit"
        elif skipped == batches:
            reason = (
                f"{self._options.step} returned None for each of {batches} batches: let it return scores of normal "
                f"samples, name another step with step=..., or {self._options.other_data}"
            )
        else:
            reason = (
                f"of {samples} samples none is normal: every sample is labelled anomalous (above 0) or ignored (below "
                "0), or is padding that 'valid' marks. Label normal samples 0; where all are normal, return no label"
            )
        raise NotFittedError(f"{self._options.name} has nothing to fit on: {reason}.")

    @contextmanager
    def _beside_the_training(self) -> Iterator[None]:
        """The trainer is in a validation; its loggers see nothing, and random numbers are put back."""
        trainer = self._trainer
        stage, loggers = trainer.state.stage, trainer.loggers
        silent = part(trainer, "loggers.logger").DummyLogger
        with part(trainer, "utilities.seed").isolate_rng(), torch.no_grad():
            trainer.validating = True
            trainer.loggers = [_silenced(silent, each) for each in loggers]
            try:
                yield
            finally:
                trainer.state.stage, trainer.loggers = stage, loggers

    def _first(self, loader: Iterable[Any]) -> Iterator[Any]:
        return self._data.read(loader, 1, None, lambda: True)

    def _together(self, batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
        """The batches, and whether each is new: all processes together score with a module that is sharded."""
        if self._is_itself and self._trainer.world_size > 1:
            return in_step(batches, self._trainer.strategy.root_device)
        return ((batch, True) for batch in batches)

    def _add(self, batch: Any, position: Position, own: OwnSamples | None, *, counts: bool = True) -> None:
        """Score a batch and add what is new in it: of own samples, or of all in a trial, where ``own`` is None."""
        trainer, model, hooks, trial = self._trainer, self._model, self._hooks, own is None
        with self._explained():
            batch = self._transferred(batch, position.loader)
            if not trial and hooks.may_change_batches:
                batch = snapshot(batch, batch)  # its tensors may be those of the data set
            hooks.run(START, trainer, model, position, batch, trial=trial)
            position.call(model.on_validation_batch_start, batch)
            with trainer.precision_plugin.val_step_context():
                outputs = position.call(self._step, batch)
            hooks.run(END, trainer, model, position, outputs, batch, trial=trial)
            self._batches += counts
            if outputs is None:
                self._skipped += counts
            elif counts:
                scores, maps, normal = self._normals(StepOutputs(outputs), batch)
                mine = len(scores) if own is None else own.count(position.index, len(scores))
                scores = scores[:mine]
                maps, normal = (None if each is None else each[:mine] for each in (maps, normal))
                self._records.add(scores, maps, normal)
                self._has_maps = self._has_maps or maps is not None
                self._samples += len(scores)
                self._normal = self._normal + (len(scores) if normal is None else normal.sum())
            position.call(model.on_validation_batch_end, outputs, batch)
        for metric in self._metrics:  # it may keep every score for its result, which nobody asks for
            metric.reset()

    def _transferred(self, batch: Any, loader_index: int) -> Any:
        """``batch`` on the device, by the hooks of the module's duplicate or of the datamodule."""
        trainer = self._trainer

        def hook(name: str) -> Callable[..., Any]:
            owner = trainer._data_connector._datahook_selector.get_instance(name)
            found: Callable[..., Any] = getattr(self._model if owner is trainer.lightning_module else owner, name)
            return found

        batch = trainer.precision_plugin.convert_input(batch)
        batch = hook("on_before_batch_transfer")(batch, loader_index)
        batch = hook("transfer_batch_to_device")(batch, trainer.strategy.root_device, loader_index)
        return hook("on_after_batch_transfer")(batch, loader_index)

    def _normals(self, step: StepOutputs, batch: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Scores, maps, and which of them are of normal samples; None: all."""
        normal, scores, valid = step.ground_truth(batch, masks=False).normal, step.scores, step.valid(batch)
        if normal is None and self._options.source is Source.VALIDATION:
            raise NotFittedError(
                "the normal validation samples are to be fitted on, but neither the step's outputs nor the batch have "
                "a 'label' or 'gt_label' that tells which those are. Return labels, 0 for normal."
            )
        if normal is None and self._options.source is Source.AUTO:
            self._is_labelled, normal = False, torch.zeros(len(scores), dtype=torch.bool)
        normal = None if normal is None else normal.to(scores.device)
        if valid is not None:
            normal = valid if normal is None else normal & valid
        return scores, step.maps, normal

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """An error says where it was found: nobody expects this step to run now."""
        where = f"{self._options.step} in {self._options.name}"
        remedy = f"Name the step that returns scores with step=..., or {self._options.other_data}."
        try:
            yield
        except (NotFittedError, OptionError) as error:  # which say themselves what to do
            raise type(error)(f"{where}: {error}") from error
        except AnomnormError as error:
            raise type(error)(f"{where}: {error} {remedy}") from error
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                remedy = "Give a loader with smaller batches with calibration_loader=..."
            error.add_note(f"This was raised by {where}. {remedy}")
            raise


def _silenced(silent: type[Any], logger: Any) -> Any:
    """A logger that takes no note of anything, in the place of ``logger``: steps write files beside the logs."""

    def place(name: str) -> property:
        return property(lambda _: getattr(logger, name, None))

    places = {name: place(name) for name in ("name", "version", "save_dir", "log_dir", "root_dir")}
    places["__class__"] = property(lambda _: type(logger))  # for isinstance
    return type(type(logger).__name__, (silent,), places)()


def _step(trainer: Trainer, model: LightningModule, name: str) -> Callable[..., Any]:
    step: Any = getattr(model, name, None)
    if not callable(step):
        raise OptionError(f"step={name!r}: {type(model).__name__} has no step of this name.")
    if "dataloader_iter" in inspect.signature(step).parameters:
        raise OptionError(
            f"{name} takes a dataloader_iter instead of batches: name a step that takes a batch with step=..."
        )
    found: Callable[..., Any] = step_of(trainer, model, name) if model is trainer.lightning_module else step
    return found
