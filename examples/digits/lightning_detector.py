"""A small autoencoder in PyTorch Lightning whose reconstruction errors are anomaly maps and scores."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from data import Split
from evaluation import Result, best_threshold
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

CALLBACKS = {"min-max": MinMaxNormalizationCallback, "CDF": CdfNormalizationCallback}


class Threshold(nn.Module):
    """A threshold that is saved with the module."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(0.0))


class Detector(pl.LightningModule):
    """Normal digits pass through eight numbers and come back; what does not come back is anomalous."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)
        )
        # A module that has these decides where its thresholds are, and the callback takes them.
        self.image_threshold = Threshold()
        self.pixel_threshold = Threshold()
        self.seen: list[dict[str, Any]] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).view_as(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[0])

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        images, labels, masks, has_mask = batch
        maps = nn.functional.avg_pool2d((images - self(images)).abs(), 3, stride=1, padding=1, count_include_pad=False)
        scores = maps.flatten(1).mean(1)
        return {
            "pred_scores": scores,
            "anomaly_maps": maps,
            "label": labels,
            "mask": masks,
            "has_mask": has_mask,
            "raw_scores": scores,
            "raw_maps": maps,
        }

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.predict_step(batch, batch_idx)

    def on_validation_batch_end(self, outputs: dict[str, Tensor], batch: Any, batch_idx: int) -> None:
        # Callbacks come first: with the CDF callback these scores are z-scores, and so will be the threshold.
        self.seen.append(outputs)

    def on_validation_epoch_end(self) -> None:
        scores, labels, maps, masks, has_mask = (
            torch.cat([outputs[name] for outputs in self.seen]).numpy()
            for name in ("pred_scores", "label", "anomaly_maps", "mask", "has_mask")
        )
        self.seen.clear()
        self.image_threshold.value = torch.tensor(best_threshold(labels, scores))
        self.pixel_threshold.value = torch.tensor(best_threshold(masks[has_mask], maps[has_mask]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def run(method: str, train: Split, validation: Split, test: Split, epochs: int) -> Result:
    """Train a detector with the callback of ``method`` and predict the test data."""
    pl.seed_everything(0)
    detector = Detector()
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        callbacks=[CALLBACKS[method]()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(detector, _loader(train, shuffle=True), _loader(validation))
    predictions = trainer.predict(detector, _loader(test)) or []
    fields = {name: torch.cat([outputs[name] for outputs in predictions]).numpy() for name in predictions[0]}
    thresholds = np.float32([detector.image_threshold.value, detector.pixel_threshold.value])
    statistics = [detector.normalization_metrics.statistics(level) for level in ("image", "pixel")]
    return Result("PyTorch", method, fields, thresholds, [[v.numpy() for v in pair] for pair in statistics])


def _loader(split: Split, shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(*map(torch.from_numpy, split)), batch_size=64, shuffle=shuffle)
