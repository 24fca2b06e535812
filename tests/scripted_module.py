"""A LightningModule that emits known scores, so that what callbacks make of them can be computed independently.

A sample is a dictionary with its score, its map, its label and its mask; steps return them, scores and maps times
``gain``, the module's only weight, which grows by one with each training epoch.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

Sample = dict[str, Any]


def samples(scores: Any, maps: Any = None, labels: Any = None, masks: Any = None) -> list[Sample]:
    """Samples from arrays of shape (N,), (N, H, W), (N,) and (N, H, W); all are normal
    without labels, and have none with ``labels=False``.
    """
    count = len(scores if scores is not None else maps)
    result: list[Sample] = [{} for _ in range(count)]
    for i, sample in enumerate(result):
        if scores is not None:
            sample["score"] = torch.tensor(scores[i], dtype=torch.float32)
        if maps is not None:
            sample["map"] = torch.as_tensor(np.asarray(maps[i]), dtype=torch.float32)[None]
        if labels is not False:
            sample["label"] = torch.tensor(0 if labels is None else labels[i])
        if masks is not None:
            sample["mask"] = torch.as_tensor(np.asarray(masks[i]), dtype=torch.bool)[None]
    return result


def loader(data: list[Sample], batch_size: int = 3, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size, **options)  # type: ignore[arg-type]


class ScriptedModule(pl.LightningModule):
    def __init__(self, threshold: float | None = None, pixel_threshold: float | None = None) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.emitted: list[dict[str, Tensor]] = []  # validation outputs, as the module's own hook sees them
        if threshold is not None:
            self.image_threshold = SimpleNamespace(value=torch.tensor(threshold))
        if pixel_threshold is not None:
            self.pixel_threshold = SimpleNamespace(value=torch.tensor(pixel_threshold))

    def outputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        gain = self.gain.detach()
        result = {name: batch[name] for name in ("label", "mask") if name in batch}
        if "score" in batch:
            result["pred_scores"] = batch["score"] * gain
        if "map" in batch:
            result["anomaly_maps"] = batch["map"] * gain
        return result

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return 0.0 * self.gain

    def on_train_epoch_end(self) -> None:
        with torch.no_grad():
            self.gain += 1.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self.outputs(batch)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self.emitted.append(outputs)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.outputs(batch)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.outputs(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **defaults | options)


def predictions(run: pl.Trainer, module: pl.LightningModule, data: Any, **options: Any) -> dict[str, np.ndarray]:
    """The concatenated outputs of ``trainer.predict``."""
    outputs: Any = run.predict(module, data, **options)
    return {name: torch.cat([entry[name] for entry in outputs]).numpy() for name in outputs[0]}


def fitted(module: Any, level: str = "image") -> Any:
    """What the module was fitted with at a level: parameters, threshold, counts."""
    return module.normalization_metrics.fit.level(level)


def parameters(module: Any, level: str = "image") -> list[np.ndarray]:
    return list(fitted(module, level).parameters)


def numbers(callback: Any) -> dict[str, float]:
    """The callback's thresholds in the units of its method."""
    return {
        level: each.sigmas if callback.method.sigmas else each.raw.item() for level, each in callback.thresholds.items()
    }
