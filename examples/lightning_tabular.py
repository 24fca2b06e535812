"""Malignant tumours as anomalies: a Lightning autoencoder on a table; its threshold is found, saved and moved.

The data are the 569 fine-needle samples that scikit-learn bundles (Wolberg, Mangasarian and Street, 1995). Benign ones
are normal, and the detector is trained on those alone. ``python examples/lightning_tabular.py``
"""

import logging
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from anomnorm_torch import CdfNormalizationCallback, NormalizationMixin


class Detector(NormalizationMixin, pl.LightningModule):
    """Thirty measurements pass through eight numbers; the mean squared error of what comes back is the score."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 8), nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 30))
        self.model = nn.Sequential(*layers)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.model(batch[0]), batch[0])

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        table, label = batch
        return {"pred_scores": (self.model(table) - table).square().mean(1), "label": label}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.predict_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loaders() -> tuple[DataLoader, DataLoader, DataLoader]:
    """Benign samples to train on; benign and malignant ones (label 1) to validate and to test with."""
    table, benign = load_breast_cancer(return_X_y=True)
    malignant = 1 - benign
    normal, rest = train_test_split(range(len(table)), test_size=0.6, stratify=malignant, random_state=0)
    normal = [index for index in normal if not malignant[index]]
    validation, test = train_test_split(rest, test_size=0.5, stratify=malignant[rest], random_state=0)
    table = torch.tensor(StandardScaler().fit(table[normal]).transform(table), dtype=torch.float32)
    parts = (TensorDataset(table[part], torch.tensor(malignant[part])) for part in (normal, validation, test))
    train, validation, test = (DataLoader(part, batch_size=32, shuffle=i == 0) for i, part in enumerate(parts))
    return train, validation, test


def trainer(callback: CdfNormalizationCallback, epochs: int = 1) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[callback], enable_progress_bar=False, **quiet)


def report(title: str, outputs: list[dict[str, Tensor]]) -> None:
    label, flagged = (torch.cat([batch[name] for batch in outputs]).numpy() for name in ("label", "pred_labels"))
    (passed, false_alarms), (missed, found) = confusion_matrix(label, flagged)
    print(f"{title}\n              passed  flagged")
    print(f"  benign     {passed:7d}{false_alarms:9d}\n  malignant  {missed:7d}{found:9d}")


def main(epochs: int = 30) -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|smaller than the logging interval|LeafSpec).*")
    pl.seed_everything(0)
    train, validation, test = loaders()
    # Sigmas of benign samples that the detector was not trained on, which it knows less well than its training data.
    # No threshold is given: it is the one of the best F1 on the validation labels.
    callback = CdfNormalizationCallback(source="validation")
    run = trainer(callback, epochs)
    detector = Detector()
    run.fit(detector, train, validation)
    chosen = callback.thresholds["image"].sigmas
    report(f"at the threshold found in validation, {chosen:.2f} sigmas:", run.predict(detector, test))

    with tempfile.TemporaryDirectory() as folder:
        run.save_checkpoint(Path(folder) / "detector.ckpt")
        again = Detector.load_from_checkpoint(Path(folder) / "detector.ckpt", weights_only=True)
    moved, serving = chosen - 0.5, CdfNormalizationCallback()
    serving.with_threshold(again, moved, units="sigmas")
    report(f"after reloading, moved down to {moved:.2f} sigmas:", trainer(serving).predict(again, test))


if __name__ == "__main__":
    main()
