"""A whole training with PyTorch Lightning: a detector of defects in a brick pavement.

    pip install "packages/anomnorm-core[plot]" packages/anomnorm-torch scikit-image tensorboard
    python examples/bricks/lightning_detector.py

trains for about half a minute, until the validation AUROC rises no more, prints what the best epoch finds in the test
images, and leaves in the folder ``bricks-lightning``:

    checkpoints             weights, statistics and thresholds of the best epoch
    detector.safetensors    the normalizer, for NumPy, PyTorch and JAX
    report.html             what the thresholds mean, on the validation images
    heat_maps/test          a picture of each test image, and a table of their scores
    tensorboard, csv        logs
"""

import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from data import load
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAUROC, BinaryF1Score, BinaryRecall, BinarySpecificity

from anomnorm_core import FitWarning
from anomnorm_torch import CdfNormalizationCallback, HeatMapWriter, NormalizationMixin

Batch = dict[str, Tensor]


class Bricks(pl.LightningDataModule):
    """Batches of ``image`` (B, 1, 96, 96), ``label`` (B,), ``mask`` (B, 1, 96, 96) and ``image_path``."""

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.patches = load()

    def _loader(self, part: str, shuffle: bool = False) -> DataLoader:
        patches = self.patches[part]
        rows = zip(patches.image[:, None], patches.label, patches.mask[:, None], patches.name, strict=True)
        samples = [dict(zip(("image", "label", "mask", "image_path"), row, strict=True)) for row in rows]
        return DataLoader(samples, self.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")


class Detector(NormalizationMixin, pl.LightningModule):
    """Each neighbourhood of 8x8 pixels passes through three numbers; what does not come back is anomalous."""

    def __init__(self, learning_rate: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            nn.Conv2d(1, 32, 8, stride=4, padding=2, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(32, 3, 1),
            nn.Conv2d(3, 32, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=4),
            nn.Sigmoid(),
        )
        self.image_auroc, self.pixel_auroc = BinaryAUROC(), BinaryAUROC()
        self.recall, self.specificity, self.pixel_f1 = BinaryRecall(), BinarySpecificity(), BinaryF1Score()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(4 * images - 2)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch["image"]), batch["image"])
        self.log("loss", loss)
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        error = (self(batch["image"]) - batch["image"]).square()
        maps = nn.functional.avg_pool2d(error, 7, stride=1, padding=3, count_include_pad=False)
        return {"pred_scores": maps.amax((1, 2, 3)), "anomaly_maps": maps}

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        outputs = self.predict_step(batch, batch_idx)
        self.image_auroc.update(outputs["pred_scores"], batch["label"])  # raw scores here
        self.log("image_auroc", self.image_auroc)
        return outputs

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        outputs = self.validation_step(batch, batch_idx)
        self.pixel_auroc.update(outputs["anomaly_maps"], batch["mask"])
        self.log("pixel_auroc", self.pixel_auroc)
        return outputs

    def on_test_batch_end(self, outputs: Batch, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        # The callback has put normalized scores, labels and masks into the outputs.
        self.recall.update(outputs["pred_labels"], batch["label"])
        self.specificity.update(outputs["pred_labels"], batch["label"])
        self.pixel_f1.update(outputs["pred_masks"], batch["mask"])

    def on_test_epoch_end(self) -> None:
        self.log("found_anomalies", self.recall)
        self.log("false_alarms", 1 - self.specificity.compute())
        self.log("pixel_f1", self.pixel_f1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


def main(folder: Path = Path("bricks-lightning"), epochs: int = 30) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    warnings.simplefilter("ignore", FitWarning)  # of the first epochs; the logs have the fit check of all
    pl.seed_everything(0)
    # Five percent of new normal images may be flagged. Sigmas are those of normal images that the detector was not
    # trained on. The pixels' threshold has the best F1 on the validation masks.
    normalization = CdfNormalizationCallback(
        "false_alarm_rate",
        false_alarm_rate=0.05,
        pixel_threshold="adaptive",
        source="validation",
        log_images=True,
    )
    best = ModelCheckpoint(folder / "checkpoints", monitor="image_auroc", mode="max")
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[
            normalization,
            best,
            EarlyStopping("image_auroc", mode="max", patience=5),
            HeatMapWriter(folder / "heat_maps", overwrite=True),
        ],
        logger=[TensorBoardLogger(folder, "tensorboard"), CSVLogger(folder, "csv")],
        log_every_n_steps=20,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    detector, data = Detector(), Bricks()
    trainer.fit(detector, data)
    print(f"stopped after {trainer.current_epoch} epochs; the best validation AUROC is {best.best_model_score:.3f}")

    trainer.validate(detector, data, ckpt_path="best", verbose=False)
    normalization.report(folder / "report.html", detector, names=data.patches["validation"].name)
    normalizer = normalization.normalizer(detector)
    normalizer.save(folder / "detector.safetensors")
    print(normalizer.summary())
    trainer.test(detector, data, ckpt_path="best")
    print(f"results are in {folder.resolve()}")


if __name__ == "__main__":
    main()
