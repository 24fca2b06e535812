"""Training runs of a module with sharded parameters, as a program: each rank writes what was fitted and predicted.

``python tests/sharded_run.py '[[FOLDER, {"kind": "cdf", "parallel": "fsdp"}], ...]'`` in each of two processes that
find each other by their environment; without ``parallel`` in one process, with the same module in one piece.
"""

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from distributed_run import KINDS, data
from pytorch_lightning.strategies import ModelParallelStrategy
from scripted_module import ScriptedModule, loader
from torch import Tensor, nn

from anomnorm_core import AnomnormError
from anomnorm_torch import NormalizationMixin

TRAINING, VALIDATION = 21, 11  # in batches of 5 one of two processes has a batch more of the first


class Module(ScriptedModule):
    """Scores and maps times the gain and an exact power of two of each column, by a layer that can be sharded."""

    layer: Any
    calls: Tensor

    def __init__(self, parallel: str | None = None) -> None:
        super().__init__()
        self.parallel, self.is_configured = parallel, False
        self.layer = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 0.5, 4.0])))
        self.register_buffer("calls", torch.zeros(()))
        self.kept: list[Tensor] = []
        self.before: Any = None
        self.found: list[dict[str, Any]] = []

    def configure_model(self) -> None:
        if self.parallel is None or self.is_configured:
            return
        self.is_configured, mesh = True, cast("Any", self.device_mesh)
        if self.parallel == "fsdp":
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.layer, mesh=mesh["data_parallel"])
        else:
            from torch.distributed.tensor import Replicate
            from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

            plan = ColwiseParallel(output_layouts=Replicate())
            parallelize_module(self.layer, mesh["tensor_parallel"], plan)

    def outputs(self, batch: Any) -> Any:
        assert not self.training
        self.calls += 1
        result = super().outputs(batch)
        result["pred_scores"] = result["pred_scores"] * self.layer(torch.ones(4))[1]
        result["anomaly_maps"] = self.layer(result["anomaly_maps"])
        self.kept.append(result["pred_scores"])
        return result

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = 0.0 * (self.gain + self.layer(torch.ones(4)).sum())
        return loss

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.parallel == "fsdp":
            self.layer.reshard()
        with torch.no_grad():
            self.layer.weight *= 2.0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("calls", self.calls, sync_dist=True)
        return super().validation_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)  # Lightning 2.6 needs one with a state

    def trace(self) -> Any:
        training = [part.training for part in self.modules()]
        return self.calls.item(), len(self.kept), training, torch.get_rng_state().tolist(), set(vars(self))

    def on_validation_start(self) -> None:
        self.before = self.trace()

    def on_validation_epoch_start(self) -> None:  # after the callback's, which scores the training data
        assert self.trace() == self.before

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        fields = {name: outputs[name] for name in ("pred_scores", "pred_labels", "pred_masks")}
        for i, index in enumerate(batch["index"]):
            self.found.append({"index": int(index)} | {name: value[i].tolist() for name, value in fields.items()})


class Carrying(NormalizationMixin, Module):
    """Takes a fit with it into checkpoints of weights alone."""


def run(folder: Path, options: dict[str, Any]) -> None:
    """Train, save and test; with ``checkpoints`` also resume, go back, and take over the checkpoint ``other``."""
    kind, parallel = options["kind"], options.get("parallel")
    training = data(options.get("training", TRAINING), 0, sparse=False)
    validation = data(VALIDATION, 1, sparse=False)
    report: dict[str, Any] = {}

    def trainer(epochs: int = 1) -> pl.Trainer:
        strategy: Any = "auto"
        if parallel is not None:
            strategy = ModelParallelStrategy(
                *((2, 1) if parallel == "fsdp" else (1, 2)),
                save_distributed_checkpoint=options["in_parts"],
                process_group_backend="gloo",
                timeout=timedelta(seconds=30),
            )
        return pl.Trainer(
            accelerator="cpu",
            devices=1 if parallel is None else 2,
            strategy=strategy,
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            callbacks=[KINDS[kind]()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )

    def fitted(module: Module, epochs: int, path: str | None = None) -> pl.Trainer:
        runner = trainer(epochs)
        runner.fit(module, loader(training, 5, shuffle=True), loader(validation, 5), ckpt_path=path)
        slot: Any = module.normalization_metrics
        report[f"fitted, {epochs}"] = {name: value.tolist() for name, value in slot.entries().items()}
        return runner

    def tested(module: Module, name: str, path: str | None = None) -> pl.Trainer:
        module.found, runner = [], trainer()
        try:
            runner.test(module, loader(validation, 5), verbose=False, ckpt_path=path)
            report[name] = module.found
        except AnomnormError as error:
            report[name] = repr(error)
        return runner

    first, weights, alone = (str(folder / f"{name}.ckpt") for name in ("first", "weights", "alone"))
    module = Module(parallel)
    try:
        fitted(module, 1).save_checkpoint(first)
        runner = tested(module, "predicted")
        if options.get("checkpoints"):
            resumed, carrying = Module(parallel), Carrying(parallel)
            fitted(resumed, 2, first)
            tested(resumed, "back", first)  # with the weights of the first epoch
            tested(resumed, "other", options["other"])
            tested(carrying, "restored", first).save_checkpoint(weights, weights_only=True)
            tested(Carrying(parallel), "weights", weights)
            runner.save_checkpoint(alone, weights_only=True)
            tested(module, "alone", alone)
    except AnomnormError as error:
        report["error"] = repr(error)
    rank = os.environ.get("RANK", "0")
    (folder / f"report_{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for folder, options in json.loads(sys.argv[1]):
        torch.manual_seed(0)
        run(Path(folder), options)
