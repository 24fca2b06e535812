"""Training runs in one or several processes, as a program: each rank writes what was fitted, and what it predicted.

``python tests/distributed_run.py '[[FOLDER, {"kind": "cdf", "strategy": "ddp", "devices": 2}], ...]'``, one run after
the other. Lightning starts the other processes, or whoever starts this program has, with ``LOCAL_RANK`` and the address
of the first in the environment; then all runs share one process group.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from scripted_module import Sample, ScriptedModule, loader, samples
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

import anomnorm_torch.callback
from anomnorm_core import AnomnormError
from anomnorm_torch import CdfNormalizationCallback, HeatMapWriter, MinMaxNormalizationCallback, NormalizationMixin
from anomnorm_torch.inference_model import take_buffers
from anomnorm_torch.normal_data import ENOUGH_NORMALS

KINDS = {"min-max": MinMaxNormalizationCallback, "cdf": CdfNormalizationCallback}
TRAINING, VALIDATION, CALIBRATION = 21, 11, 13  # odd, so that a sampler for two processes repeats the first one


def data(count: int, seed: int, *, sparse: bool) -> list[Sample]:
    """Labelled samples with maps and masks; ``sparse``: only those for rank 0 of two have any of these."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3 == 1).astype(int)
    masks = rng.random((count, 4, 4)) < 0.3 * labels[:, None, None]
    scores = np.exp(rng.normal(size=count) + labels).astype("f4")
    maps = np.exp(rng.normal(size=(count, 4, 4)) + masks).astype("f4")
    scores[0] *= 50  # the one that padding repeats
    maps[0] *= 50
    result = samples(scores, maps, labels, masks)
    for index, sample in enumerate(result):
        sample["index"] = torch.tensor(index)
        if sparse and index % 2:
            del sample["map"], sample["mask"], sample["label"]
    return result


class Module(NormalizationMixin, ScriptedModule):
    """Writes what it predicts, and dies on demand."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        super().__init__()
        self.folder, self.kill, self.double = folder, options.get("kill"), options.get("double", False)
        self.frames, self.skipped = options.get("frames"), options.get("skipped", [])
        self.misleads, self.gathers = options.get("misleads", False), options.get("gathers", False)
        self.found: list[dict[str, Any]] = []
        self.register_buffer("center", torch.zeros(()))
        self.moves = options.get("buffers", False)

    def outputs(self, batch: Any) -> Any:
        result = super().outputs(batch)
        if self.frames:
            result = {"pred_scores": result["pred_scores"]}
        if self.moves:
            result["pred_scores"] = result["pred_scores"] + self.center
        return result | {"pred_scores": result["pred_scores"].double() / 3} if self.double else result

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.kill == self.current_epoch and self.global_rank == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.misleads and self.global_rank == 1:
            return batch  # type: ignore[return-value]
        if self.gathers:  # which hangs or fails unless all processes do it with equally many samples
            self.all_gather(batch["score"])
        if set(self.skipped) & set(batch["index"].tolist()):
            return None  # type: ignore[return-value]
        if self.frames:  # each sample is a clip, and the last frame has the largest score
            scores = batch["score"][:, None] * torch.arange(1, self.frames + 1)
            return {"pred_scores": scores.flatten(), "label": batch["label"].repeat_interleave(self.frames)}
        return super().validation_step(batch, batch_idx, dataloader_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        # DistributedDataParallel replaces it by that of the first process when the module runs again.
        self.center.fill_(1.0 + 100.0 * self.global_rank)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        fields = {name: outputs[name] for name in ("pred_scores", "pred_labels", "pred_masks") if name in outputs}
        for i, index in enumerate(batch["index"]):
            self.found.append({"index": int(index)} | {name: value[i].tolist() for name, value in fields.items()})

    def on_test_end(self) -> None:
        (self.folder / f"predicted_{self.global_rank}.json").write_text(json.dumps(self.found))


class OwnBatches(BatchSampler):
    """A batch sampler that Lightning cannot take for torch's."""


class Pairs(Sampler[list[int]]):
    """Batches that are drawn, other ones in each process, without a sampler inside."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(int(os.environ.get("LOCAL_RANK", "0")))

    def __iter__(self) -> Iterator[list[int]]:
        yield from torch.randperm(CALIBRATION, generator=self.generator)[:10].reshape(-1, 2).tolist()

    def __len__(self) -> int:
        return 5


def calibration(kind: str) -> Any:
    """Loaders of one share of some normal data in each process."""
    part = [sample | {"label": torch.tensor(0)} for sample in data(CALIBRATION, 2, sparse=False)]
    if kind == "batches":
        return [default_collate(part[i : i + 3]) for i in range(0, CALIBRATION, 3)]
    if kind == "pairs":
        return DataLoader(part, batch_sampler=Pairs())  # type: ignore[arg-type]
    chosen = SubsetRandomSampler(range(CALIBRATION)) if kind == "subset" else None
    return loader(part, 3, sampler=chosen)


def shared_buffers(trainer: pl.Trainer) -> dict[str, Any]:
    """Buffers that differ between processes in everything, after they were shared."""
    rank = trainer.global_rank
    module = pl.LightningModule()
    module.inner = torch.nn.Module()
    module.inner.register_buffer(
        "bank", torch.full((2 + rank, 3), 1.0 + rank, dtype=[torch.float32, torch.int64][rank])
    )
    module.register_buffer("flag", torch.tensor(rank == 0))
    module.register_buffer(["first", "second"][rank], torch.arange(3))
    take_buffers(module, trainer)
    return {name: [str(buffer.dtype), buffer.tolist()] for name, buffer in module.named_buffers()}


class Report(pl.Callback):
    """Writes what was fitted when a stage ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.on_fit_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = pl_module.normalization_metrics.state_dict()  # type: ignore[union-attr,operator]
        report = {name: value.tolist() for name, value in state.items()}
        (self.folder / f"fitted_{trainer.global_rank}.json").write_text(json.dumps(report))


def main(folder: Path, options: dict[str, Any]) -> None:
    sparse, devices = options.get("sparse", False), options["devices"]
    size = 1 if sparse or "skipped" in options else 3
    calibrated = {"calibration_loader": calibration(options["calibration"])} if "calibration" in options else {}
    callback = KINDS[options["kind"]](**options.get("callback", {}), **calibrated)
    anomnorm_torch.callback.ENOUGH_NORMALS = options.get("enough", ENOUGH_NORMALS)
    strategy: Any = options["strategy"]
    if devices > 1:
        method = "spawn" if strategy == "ddp_spawn" else "popen"
        strategy = DDPStrategy(start_method=method, process_group_backend="gloo", timeout=timedelta(seconds=30))
    checkpoint = ModelCheckpoint(folder, "last", every_n_epochs=1)
    named = HeatMapWriter(folder / "heat_maps", names=lambda batch: batch["index"].tolist())
    writers = [named] if options.get("writes") else []
    module = Module(folder, options)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=options.get("epochs", 1),
        logger=False,
        callbacks=[callback, *writers, checkpoint, Report(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    training, validation = data(TRAINING, 0, sparse=sparse), data(VALIDATION, 1, sparse=sparse)
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", "0")))  # so that random samplers draw different numbers

    def batches(part: list[Sample], **chosen: Any) -> Any:
        if options.get("batch_sampler"):
            return DataLoader(part, batch_sampler=OwnBatches(SequentialSampler(part), size, drop_last=False))  # type: ignore[arg-type]
        return loader(part, size, **chosen)

    chosen = {"sampler": SubsetRandomSampler(range(15))} if options.get("subset") else {"shuffle": True}
    if options.get("misleads"):
        try:
            trainer.fit(module, batches(training, **chosen), batches(validation))
        except AnomnormError as error:
            (folder / f"error_{trainer.global_rank}.txt").write_text(str(error))
        return
    trainer.fit(module, batches(training, **chosen), batches(validation), ckpt_path=options.get("resume"))
    if options.get("buffers") and devices > 1:
        (folder / f"buffers_{trainer.global_rank}.json").write_text(json.dumps(shared_buffers(trainer)))
    if options.get("validate"):  # of a module that has its training data, which the trainer does not prepare now
        module.train_dataloader = lambda: batches(training, **chosen)  # type: ignore[method-assign]
        trainer.validate(module, loader(validation, size), verbose=False)
    if options.get("test", True):
        trainer.test(module, loader(validation, size), verbose=False)


if __name__ == "__main__":
    for folder, options in json.loads(sys.argv[1]):
        torch.manual_seed(0)
        main(Path(folder), options)
