"""A small autoencoder in PyTorch Lightning whose reconstruction errors are anomaly maps and scores."""

import pytorch_lightning as pl
import torch
from data import Split
from evaluation import Result
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

CALLBACKS = {"min-max": MinMaxNormalizationCallback, "CDF": CdfNormalizationCallback}
Batch = dict[str, Tensor]


class Detector(pl.LightningModule):
    """Normal digits pass through eight numbers and come back; what does not come back is anomalous."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).view_as(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch["image"]), batch["image"])

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        error = (batch["image"] - self(batch["image"])).abs()
        maps = nn.functional.avg_pool2d(error, 3, stride=1, padding=1, count_include_pad=False)
        scores = maps.flatten(1).mean(1)
        # The callback normalizes pred_scores and anomaly_maps; it finds labels and masks in the batch.
        return {"pred_scores": scores, "anomaly_maps": maps, "raw_scores": scores, "raw_maps": maps}

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        return self.predict_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def run(method: str, train: Split, validation: Split, test: Split, epochs: int) -> Result:
    """Train a detector with the callback of ``method``, which finds the thresholds, and predict the test data."""
    pl.seed_everything(0)
    detector, callback = Detector(), CALLBACKS[method]()
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(detector, _loader(train, shuffle=True), _loader(validation))
    predictions = trainer.predict(detector, _loader(test)) or []
    fields = {name: torch.cat([outputs[name] for outputs in predictions]).numpy() for name in predictions[0]}
    return Result("PyTorch", method, callback.normalizer(detector), fields, test)


def _loader(split: Split, shuffle: bool = False) -> DataLoader:
    return DataLoader(split.batches(), batch_size=None, shuffle=shuffle)
