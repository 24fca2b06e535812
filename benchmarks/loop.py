"""What the callbacks cost in whole runs of a network of the size of a ResNet-18. A worker of ``bench.py``.

Prints one JSON object: seconds of each stage, with each callback and without.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from anomnorm_torch.callbacks import CdfNormalizationCallback, MinMaxNormalizationCallback, NormalizationCallback

WIDTHS = (64, 64, 64, 128, 128, 256, 256, 512, 512)  # channels after the stem and after each block
CALLBACKS = {
    "without": None,
    "min-max": MinMaxNormalizationCallback,
    "two-slope": partial(NormalizationCallback, "two-slope"),
    "CDF": CdfNormalizationCallback,
}


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class Detector(pl.LightningModule):
    """Features whose size is a map; the scores say nothing, which takes as long as if they did."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(WIDTHS)]
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTHS[0], 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.features = nn.Sequential(*blocks)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        maps = self.features(self.stem(batch[0])).square().mean(1, keepdim=True)
        maps = nn.functional.interpolate(maps, size=batch[0].shape[-2:], mode="bilinear") + 1e-6
        masks = batch[1].reshape(-1, 1, 1, 1).expand_as(maps)
        return {"anomaly_maps": maps, "pred_scores": maps.amax((1, 2, 3)), "label": batch[1], "mask": masks}

    test_step = validation_step

    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None  # the weights are of no interest

    def configure_optimizers(self) -> None:
        return None


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    size, side = 8 * options.batches, options.side
    data = torch.utils.data.TensorDataset(torch.randn(size, 3, side, side), torch.arange(size) % 4 == 0)
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu"}
    times: dict[str, dict[str, list[float]]] = {name: {"test": [], "validate": [], "fit": []} for name in CALLBACKS}
    module = Detector()
    for _ in range(options.repetitions + 1):
        for name, kind in CALLBACKS.items():  # in turn, so that what slows the machine slows all of them
            trainer = pl.Trainer(
                max_epochs=1, callbacks=[] if kind is None else [kind()], num_sanity_val_steps=0, **quiet
            )
            if hasattr(module, "normalization_metrics"):
                del module.normalization_metrics
            stages = {
                "fit": lambda t=trainer: t.fit(module, loader, loader),
                "validate": lambda t=trainer: t.validate(module, loader, verbose=False),
                "test": lambda t=trainer: t.test(module, loader, verbose=False),
            }
            for stage, run in stages.items():
                start = time.perf_counter()
                run()
                times[name][stage].append(time.perf_counter() - start)
    return {name: {s: median(seen[1:]) for s, seen in stages.items()} for name, stages in times.items()}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
