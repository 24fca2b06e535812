"""One streaming pass over the normal data, beside the trainer's own loops (clause L3)."""

import copy
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)
from tqdm.auto import tqdm

from anomnorm_core.errors import NotFittedError
from anomnorm_core.options import OnInvalid, Source
from anomnorm_torch.framework import LightningModule, Trainer, part
from anomnorm_torch.outputs import StepOutputs
from anomnorm_torch.processes import agreed, count_unpadded, shard, sharing_sampler
from anomnorm_torch.run import Records


def collect(
    trainer: Trainer,
    pl_module: LightningModule,
    model: LightningModule,
    records: Records,
    source: Source,
    on_invalid: OnInvalid,
    *,
    fitted: bool,
) -> bool:
    """Add the scores that ``model`` gives the normal data to ``records``.

    Runs in the trainer's precision and on its device, with its random number generators put back afterwards. The
    trainer's own loaders are not iterated: their workers and generators belong to the training run. Where several
    processes share the work, each scores its share of the data, no sample twice, and every one has to call this.

    Args:
        trainer: the running trainer.
        pl_module: its module.
        model: what scores the data: a duplicate of ``pl_module``.
        records: are updated.
        source: which data.
        on_invalid: ``RAISE`` checks after every batch.
        fitted: whether there are statistics of a checkpoint, which can stay where there is no data.

    Returns:
        False where there is no data but statistics that can stay.

    Raises:
        NotFittedError: there is no data to fit on, and nothing restored.
        InvalidScoreError: under ``RAISE``, a score cannot enter the statistics.
    """
    found = _loaders(trainer, pl_module, source, fitted=fitted)
    if found is None:
        return False
    loaders, limit = found
    isolate_rng = part(trainer, "utilities.seed").isolate_rng
    step = _inference_step(model)
    hidden = trainer.progress_bar_callback is None or not getattr(trainer.progress_bar_callback, "is_enabled", True)
    with isolate_rng(), torch.no_grad(), _silenced(trainer):
        for loader_index, loader in enumerate(loaders):
            seen = 0
            with _fresh(trainer, loader) as (batches, total):
                wanted = _limit(trainer, limit, total)
                progress = tqdm(
                    itertools.islice(batches, wanted),
                    desc="Collecting normal scores",
                    total=wanted if wanted is not None else total,
                    leave=False,
                    disable=hidden,
                )
                for index, batch in enumerate(progress):
                    batch = _to_device(trainer, pl_module, batch)
                    with trainer.precision_plugin.val_step_context():
                        outputs = step(batch, index, loader_index)
                    if outputs is None:  # a skipped batch
                        continue
                    scores, maps, normal = _normals(StepOutputs(outputs), batch, source)
                    own = slice(count_unpadded(batches, index, seen, len(scores)))
                    seen += len(scores)
                    where = None if normal is None else normal[own]
                    records.add(scores[own], None if maps is None else maps[own], where)
                    if on_invalid is OnInvalid.RAISE:
                        records.report_invalid(on_invalid)
    if trainer.world_size > 1:
        records.merge_processes()
    if records.is_empty:
        raise NotFittedError(
            "the pass over the data has found no normal sample to fit the statistics on: the loader gave no batch, "
            "or every sample is labelled anomalous."
        )
    return True


def _normals(step: StepOutputs, batch: Any, source: Source) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scores, maps, and which of them are of normal samples; None: all."""
    anomalous = step.ground_truth(batch, masks=False).anomalous
    if anomalous is None and source is Source.VALIDATION:
        raise NotFittedError(
            'source="validation" fits on the normal validation samples, but neither the step\'s outputs nor the batch '
            "have a 'label' or 'gt_label' that tells which those are."
        )
    scores, valid = step.scores, step.valid(batch)
    normal = None if anomalous is None else ~anomalous.to(scores.device)
    if valid is not None:
        normal = valid if normal is None else normal & valid
    return scores, step.maps, normal


def _loaders(
    trainer: Trainer, pl_module: LightningModule, source: Source, *, fitted: bool
) -> tuple[list[Iterable[Any]], int | float] | None:
    # The data loaders to pass over and the trainer's limit on them, or None to keep what a checkpoint restored.
    if source is Source.VALIDATION:
        return flattened(trainer.val_dataloaders), trainer.limit_val_batches
    reason: Exception | None = None
    data = trainer.train_dataloader  # None outside trainer.fit
    if data is None:
        datamodule: Any = trainer.datamodule  # type: ignore[union-attr]
        owner = pl_module if datamodule is None else datamodule
        if part(owner, "utilities.model_helpers").is_overridden("train_dataloader", owner):
            try:
                data = owner.train_dataloader()
            except Exception as error:  # a datamodule that was set up for validation alone may fail in any way
                reason = error
    if data is not None:
        return flattened(data), trainer.limit_train_batches
    if not fitted:
        missing = (
            "trainer.validate() was called without a datamodule or module that provides train_dataloader(). Provide it"
            if reason is None
            else f"train_dataloader() failed with {reason!r}. Let it work in this stage too"
        )
        raise NotFittedError(
            f"the statistics are fitted on the normal training data, and this run has none: {missing}, load a "
            'checkpoint with statistics, or use source="validation".'
        ) from reason
    if reason is not None:
        warnings.warn(
            f"train_dataloader() failed with {reason!r}; the statistics restored from the checkpoint stay.",
            stacklevel=2,
        )
    return None


def flattened(loaders: Any) -> list[Iterable[Any]]:
    """The data loaders of a trainer as a list: it takes one, or several in lists, dictionaries or a CombinedLoader."""
    if loaders is None:
        return []
    if hasattr(loaders, "flattened"):
        return list(loaders.flattened)
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return [part for each in loaders for part in flattened(each)] if isinstance(loaders, list | tuple) else [loaders]


def _limit(trainer: Trainer, limit: int | float, total: int | None) -> int | None:
    # As Trainer(limit_train_batches=) has it: a number of batches, or a share of them.
    if isinstance(limit, int):
        return limit
    if total is not None:
        return None if limit == 1.0 else int(total * limit)
    # A stream may have no end. Validating every so many batches says how many make an epoch.
    between = trainer.val_check_interval
    return between if isinstance(between, int) else None


@contextmanager
def _silenced(trainer: Any) -> Iterator[None]:
    """Loggers that the step reaches through the trainer do not see this pass."""
    loggers = trainer.loggers
    silent = part(trainer, "loggers.logger").DummyLogger
    trainer.loggers = [silent() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def _fresh(trainer: Trainer, loader: Iterable[Any]) -> Iterator[tuple[Iterable[Any], int | None]]:
    """An independent iteration over the data of ``loader``, in order where the order was random, and its length.

    Of a map-style data set it is the share of this process, if the trainer shares it out.

    A loader with persistent workers has one iterator, and restarting it would end the training epoch around this pass;
    a loader with a generator of its own would shuffle the next epoch differently.
    """
    if not isinstance(loader, DataLoader):
        # Its own iterator may be the loader itself; a copy of it has a position of its own.
        yield copy.copy(loader), len(loader) if isinstance(loader, Sized) else None
        return
    options = {
        name: getattr(loader, name)
        for name in ("collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    }
    if loader.num_workers > 0:
        options["prefetch_factor"] = loader.prefetch_factor
    if isinstance(loader.dataset, IterableDataset):
        options |= {"batch_size": loader.batch_size}
    elif loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        options |= {"batch_sampler": loader.batch_sampler}
    else:
        options |= {"batch_size": loader.batch_size, "sampler": _sampler(trainer, loader)}
    samplers = [loader.sampler, getattr(loader.batch_sampler, "sampler", None), loader.batch_sampler]
    samplers.append(getattr(getattr(loader.sampler, "dataset", None), "_sampler", None))  # inside a distributed one
    generators = {id(g): g for g in (getattr(s, "generator", None) for s in samplers) if g is not None}.values()
    states = [generator.get_state() for generator in generators]
    fresh: DataLoader[Any] = DataLoader(loader.dataset, **options)
    try:
        endless = isinstance(loader.dataset, IterableDataset) and not isinstance(loader.dataset, Sized)
        yield fresh, None if endless else len(fresh)
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _sampler(trainer: Trainer, loader: DataLoader[Any]) -> Iterable[Any] | None:
    # The order does not matter here, but a sampler may also select, and it may share out what it selects.
    sampler, sharing = loader.sampler, sharing_sampler(loader)
    shares: dict[str, int] | None = None
    if sharing is not None:
        # Lightning puts a sampler of the user's into one of these, as the data set that it shares out.
        sampler = getattr(sharing.dataset, "_sampler", SequentialSampler(cast("Sized", loader.dataset)))
        shares = {"num_replicas": sharing.num_replicas, "rank": sharing.rank}
    elif trainer._accelerator_connector.use_distributed_sampler:
        # A loader that the trainer has not prepared, because it does not train now.
        shares = None if isinstance(sampler, DistributedSampler) else trainer.distributed_sampler_kwargs
    if type(sampler) in (RandomSampler, SequentialSampler):
        size = len(cast("Sized", loader.dataset))
        return None if shares is None else shard(size, **shares)
    if shares is None:
        return sampler
    chosen = agreed(list(sampler), trainer.strategy.root_device)
    return chosen[shares["rank"] :: shares["num_replicas"]]


def _to_device(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    # As the trainer's loops do it, with the module's or datamodule's own transfer hooks.
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _inference_step(model: LightningModule) -> Callable[[Any, int, int], Any]:
    # predict_step is made for inference; validation_step is what a detector has that never predicts.
    is_overridden = part(model, "utilities.model_helpers").is_overridden
    names = ("predict_step", "validation_step", "test_step")
    name = next((name for name in names if is_overridden(name, model)), names[0])
    step = getattr(model, name)
    # As Lightning has it, a step may leave out the indices that it does not use.
    parameters = inspect.signature(step).parameters.values()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = sum(parameter.kind in by_position for parameter in parameters)
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        taken = 3
    return lambda *arguments: step(*arguments[:taken])
