"""Training runs in one or several processes, as a program: each rank writes what was fitted, and what it predicted.

``python tests/distributed_run.py '[[FOLDER, {"kind": "cdf", "strategy": "ddp", "devices": 2}], ...]'``, one run after
the other. Lightning starts the other processes, or whoever starts this program has, with ``LOCAL_RANK`` and the address
of the first in the environment; then all runs share one process group.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from scripted_module import Sample, ScriptedModule, loader, samples
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, SubsetRandomSampler

from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback, NormalizationMixin

KINDS = {"min-max": MinMaxNormalizationCallback, "cdf": CdfNormalizationCallback}
TRAINING, VALIDATION = 21, 11  # odd, so that a sampler for two processes repeats the first one


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
        self.found: list[dict[str, Any]] = []

    def outputs(self, batch: Any) -> Any:
        result = super().outputs(batch)
        return result | {"pred_scores": result["pred_scores"].double() / 3} if self.double else result

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.kill == self.current_epoch and self.global_rank == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().validation_step(batch, batch_idx, dataloader_idx)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        fields = {name: outputs[name] for name in ("pred_scores", "pred_labels", "pred_masks") if name in outputs}
        for i, index in enumerate(batch["index"]):
            self.found.append({"index": int(index)} | {name: value[i].tolist() for name, value in fields.items()})

    def on_test_end(self) -> None:
        (self.folder / f"predicted_{self.global_rank}.json").write_text(json.dumps(self.found))


class OwnBatches(BatchSampler):
    """A batch sampler that Lightning cannot take for torch's."""


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
    size = 1 if sparse else 3
    callback = KINDS[options["kind"]](**options.get("callback", {}))
    strategy: Any = options["strategy"]
    if devices > 1:
        method = "spawn" if strategy == "ddp_spawn" else "popen"
        strategy = DDPStrategy(start_method=method, process_group_backend="gloo", timeout=timedelta(seconds=30))
    checkpoint = ModelCheckpoint(folder, "last", every_n_epochs=1)
    module = Module(folder, options)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_epochs=options.get("epochs", 1),
        logger=False,
        callbacks=[callback, checkpoint, Report(folder)],
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
    trainer.fit(module, batches(training, **chosen), batches(validation), ckpt_path=options.get("resume"))
    if options.get("validate"):  # of a module that has its training data, which the trainer does not prepare now
        module.train_dataloader = lambda: batches(training, **chosen)  # type: ignore[method-assign]
        trainer.validate(module, loader(validation, size), verbose=False)
    if options.get("test", True):
        trainer.test(module, loader(validation, size), verbose=False)


if __name__ == "__main__":
    for folder, options in json.loads(sys.argv[1]):
        torch.manual_seed(0)
        main(Path(folder), options)
