"""Strategies that leave each process a part of the module (clause L8)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch

from anomnorm_core.errors import AnomnormError, NotFittedError
from anomnorm_torch.framework import LightningModule, Trainer
from anomnorm_torch.slot import NAME, Slot

_END = object()


def _is_any(value: Any, *names: str) -> bool:
    return not {base.__name__ for base in type(value).__mro__}.isdisjoint(names)  # none of them is imported here


def is_sharded(trainer: Trainer) -> bool:
    """Whether the trainer's strategy may leave each process a part of the module, as FSDP and DeepSpeed do."""
    return _is_any(trainer.strategy, "FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def require_process_group(trainer: Trainer, name: str) -> None:
    """Refuse processes that torch.distributed does not connect.

    Args:
        trainer: whose strategy has started its processes.
        name: of the callback, for the message.

    Raises:
        AnomnormError: they are connected by something else.
    """
    strategy = trainer.strategy
    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    if _is_any(strategy, "XLAStrategy", "XLAFSDPStrategy") or (trainer.world_size > 1 and not connected):
        raise AnomnormError(
            f"{name} cannot run under {type(strategy).__name__}: what the processes have seen is put together by "
            'torch.distributed, which this strategy does without. Use strategy="ddp", FSDP, ModelParallelStrategy or '
            "DeepSpeed for several processes."
        )


def data_group(trainer: Trainer) -> Any:
    """The process group that has all of the data, each sample once, and this process in it; None: all processes.

    The processes of a tensor-parallel group compute the same scores together.
    """
    strategy: Any = trainer.strategy
    return strategy.device_mesh["data_parallel"].get_group() if _is_any(strategy, "ModelParallelStrategy") else None


# The pass over the normal data: the module itself scores them, because no duplicate could gather its parameters.


def has_no_duplicate(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether hooks, of the strategy or of FSDP under another one, put parameters together that are in parts."""
    return (
        is_sharded(trainer)
        or any(_is_any(part, "FSDPModule", "FullyShardedDataParallel") for part in pl_module.modules())
        or any(hasattr(parameter, "to_local") for parameter in pl_module.parameters())
    )


def step_of(trainer: Trainer, pl_module: LightningModule, name: str) -> Callable[..., Any]:
    """The module's step, called as the trainer calls it: through what the strategy has put around the module."""
    strategy: Any = trainer.strategy
    step: Callable[..., Any] = getattr(pl_module, name)
    if strategy.model in (None, pl_module):
        return step
    return wraps(step)(partial(strategy._forward_redirection, strategy.model, pl_module, name))


def in_step(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, bool]]:
    """The batches, and whether each is new: the last one comes again until no process has a new one.

    A forward pass of a sharded module takes all processes, so each of them has to iterate.

    Raises:
        NotFittedError: a process has no batch that could come again. All processes raise it.
    """
    iterator, last = iter(batches), _END
    while True:
        batch = next(iterator, _END)
        last = last if batch is _END else batch
        counts = torch.tensor([batch is not _END, last is _END], dtype=torch.int64, device=device)
        torch.distributed.all_reduce(counts)
        going, without = counts.tolist()
        if going == 0:
            return
        if without > 0:
            raise NotFittedError(
                f"{without} of {torch.distributed.get_world_size()} processes have no batch of the normal data, and a "
                "sharded module scores in all of them together: let the batches be smaller, so that each process has "
                "one."
            )
        yield last, batch is not _END


# Checkpoints: a sharded module is saved and loaded in parts, which are its parameters and buffers alone.


def put_fit(slot: Slot, checkpoint: dict[str, Any]) -> None:
    """Put the fit into the state dict of a checkpoint, and beside that where the slot is not loaded with it."""
    entries = slot.entries()
    own = {slot.prefix + key: value for key, value in entries.items()}
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}
    if not slot.in_state_dict:
        checkpoint[NAME] = entries


def take_fit(slot: Slot, checkpoint: Mapping[str, Any]) -> None:
    """Give a slot that is not loaded with the state dict what the checkpoint holds of a fit.

    Args:
        slot: of a trainer's module.
        checkpoint: what the strategy has left of it after loading the parts.
    """
    if slot.in_state_dict:
        return
    entries = checkpoint.get(NAME)
    if entries is None:  # it was saved by a run whose module was whole
        state, path = checkpoint.get("state_dict"), slot.trainer.ckpt_path
        if state is None and path is not None and Path(path).is_file():
            state = torch.load(path, mmap=True, map_location="cpu", weights_only=True)["state_dict"]
        prefix = slot.prefix
        entries = {key.removeprefix(prefix): value for key, value in (state or {}).items() if key.startswith(prefix)}
    slot.take(entries)


def take_missed_fit(slot: Slot) -> None:
    """Do as `take_fit` does after a checkpoint of weights alone was loaded: of those, Lightning tells no callback."""
    if not slot.in_state_dict and not slot.is_restored and slot.trainer.ckpt_path is not None:
        take_fit(slot, {})
