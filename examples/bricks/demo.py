"""The demo: real images, a detector in PyTorch Lightning and one in Flax, two normalizations in both frameworks.

Run with ``nox -s demo``, or ``python examples/bricks/demo.py --output picture.png``.
"""

import argparse
import copy
import logging
import warnings
from pathlib import Path

import jax_detector
import lightning_detector
import numpy as np
import optax
import pytorch_lightning as pl
import torch
from data import Patches, load
from evaluation import Result, table
from flax import nnx
from picture import draw
from tqdm import tqdm

from anomnorm_core import FitWarning
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

# Of both methods and both frameworks: at most five percent false alarms among images; pixels by the best F1.
THRESHOLDS = {"threshold": "false_alarm_rate", "false_alarm_rate": 0.05, "pixel_threshold": "adaptive"}
FIELDS = ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks", "pred_scores_raw", "anomaly_maps_raw")
BEFORE = """
A brick pavement, cut into patches of 96x96 pixels. Anomalies are patches with a scratch, a stain or a missing piece,
which were drawn, so that their pixels are known. An autoencoder was trained on normal patches, once in PyTorch
Lightning and once in Flax. How badly it reproduces a pixel and its neighbours is the pixel's raw score; the largest is
the image's. Thresholds were found on validation data: that of images allows 5% false alarms, that of pixels has the
best F1. All figures are of test data.
"""
AFTER = """
threshold      an image or a pixel is flagged from this raw score on
sigmas         the same threshold in standard deviations above normal (CDF)
AUROC, F1      how well normal and anomalous are told apart, by raw scores and by normalized ones (F1: 0.5 or more):
               normalization keeps what the raw scores knew
false alarms   the share of normal images, or of pixels without a defect, that is flagged
labels differ  how often PyTorch and JAX decide differently on the same raw scores, both reading one file
differ by      how far apart their normalized scores are at most
"""


def with_lightning(epochs: int) -> list[Result]:
    """Train a detector; let the callback of each method fit and find thresholds, and normalize the test data."""
    pl.seed_everything(0, verbose=False)
    detector, data = lightning_detector.Detector(), lightning_detector.Bricks()
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    pl.Trainer(max_epochs=epochs, limit_val_batches=0, **quiet).fit(detector, data)
    results = []
    for method, callback in (
        ("min-max", MinMaxNormalizationCallback(**THRESHOLDS, extras=["raw"])),
        ("CDF", CdfNormalizationCallback(**THRESHOLDS, extras=["raw"], source="validation")),
    ):
        module = copy.deepcopy(detector)
        trainer = pl.Trainer(callbacks=[callback], enable_progress_bar=False, **quiet)
        trainer.validate(module, data, verbose=False)
        outputs = trainer.predict(module, data.test_dataloader())
        fields = {name: torch.cat([batch[name] for batch in outputs]).squeeze().numpy() for name in FIELDS}
        results.append(Result("PyTorch", method, callback.normalizer(module), fields, data.patches["test"]))
    return results


def with_flax(patches: dict[str, Patches], epochs: int) -> list[Result]:
    """The same with the hooks for JAX."""
    normal = jax_detector.batches(patches["train"])
    validation, test = (jax_detector.batches(patches[part], 20) for part in ("validation", "test"))
    detector, order = jax_detector.Detector(nnx.Rngs(0)), np.random.default_rng(0)
    optimizer = nnx.Optimizer(detector, optax.adam(5e-3), wrt=nnx.Param)
    for _ in tqdm(range(epochs), desc="Flax"):
        for index in order.permutation(len(normal)):
            jax_detector.train(detector, optimizer, normal[index])

    results = []
    for method, hook in (
        ("min-max", MinMaxNormalizationHook(**THRESHOLDS, extras=["raw"])),
        ("CDF", CdfNormalizationHook(**THRESHOLDS, extras=["raw"], source="validation", progress=False)),
    ):
        run = hook.setup(jax_detector.predict(detector, validation[0]))
        fit_on = (lambda batch: jax_detector.predict(detector, batch), validation) if method == "CDF" else ()
        run = hook.on_validation_epoch_start(run, *fit_on)
        for batch in validation:
            run, _ = hook.on_validation_batch_end(run, jax_detector.predict(detector, batch))
        normalizer = hook.on_validation_epoch_end(run)
        outputs = [hook.on_predict_batch_end(normalizer, jax_detector.predict(detector, batch)) for batch in test]
        fields = {name: np.concatenate([np.asarray(batch[name]) for batch in outputs]).squeeze() for name in FIELDS}
        results.append(Result("JAX", method, normalizer, fields, patches["test"]))
    return results


def main() -> None:
    """Run, print the table, write the picture."""
    # Of what Lightning has to say, the progress bars are enough here.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(treespec, LeafSpec|does not have many workers|logging interval).*")
    warnings.simplefilter("ignore", FitWarning)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="where the picture goes")
    parser.add_argument("--epochs", type=int, default=15, help="how long to train")
    arguments = parser.parse_args()
    lightning = with_lightning(arguments.epochs)
    flax = with_flax(load(), arguments.epochs)
    print(BEFORE)
    print(table(lightning + flax))
    print(AFTER)
    draw(lightning[-1], arguments.output)
    print(f"Picture: {arguments.output.resolve()}")


if __name__ == "__main__":
    main()
