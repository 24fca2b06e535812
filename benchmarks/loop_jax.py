"""What the hooks cost in whole runs of a network of the size of a ResNet-18. A worker of ``bench.py``.

Prints one JSON object: seconds of each stage, with each hook and without.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook

Batch = dict[str, Array]
WIDTHS = (64, 64, 64, 128, 128, 256, 256, 512, 512)  # channels after the stem and after each block


class Block(nnx.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(inputs, outputs, (3, 3), stride, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(outputs, use_running_average=True, rngs=rngs) for _ in range(2)])
        same = inputs == outputs
        self.shortcut = None if same else nnx.Conv(inputs, outputs, (1, 1), stride, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = self.norms[1](self.second(nnx.relu(self.norms[0](self.first(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Detector(nnx.Module):
    """Features whose size is a map; the scores say nothing, which takes as long as if they did."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, WIDTHS[0], (7, 7), 2, rngs=rngs)
        self.blocks = nnx.List([Block(a, b, 1 if a == b else 2, rngs) for a, b in pairwise(WIDTHS)])

    def __call__(self, images: Array) -> tuple[Array, Array]:
        x = nnx.max_pool(nnx.relu(self.stem(images)), (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        maps = jnp.square(x).mean(-1)
        maps = jax.image.resize(maps, images.shape[:3], "bilinear") + 1e-6
        return maps.max((1, 2)), maps


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    rng, side = np.random.default_rng(0), options.side
    images = [rng.normal(size=(8, side, side, 3)).astype("f4") for _ in range(options.batches)]
    batches = [{"image": jnp.asarray(part), "label": jnp.arange(8) % 4 == 0} for part in images]
    structure, weights = nnx.split(Detector(nnx.Rngs(0)))

    @jax.jit
    def forward(batch: Batch) -> Batch:
        scores, maps = nnx.merge(structure, weights)(batch["image"])
        masks = jnp.broadcast_to(batch["label"].reshape(-1, 1, 1), maps.shape)
        return {"pred_scores": scores, "anomaly_maps": maps, "label": batch["label"], "mask": masks}

    def normal(batch: Batch) -> Batch:
        outputs = forward(batch)
        return {name: outputs[name] for name in ("pred_scores", "anomaly_maps")}

    hooks: dict[str, Any] = {
        "without": None,
        "min-max": MinMaxNormalizationHook(),
        "two-slope": NormalizationHook("two-slope"),
        "CDF": CdfNormalizationHook(progress=False),
    }
    runs = {name: hook.setup(forward(batches[0])) for name, hook in hooks.items() if hook is not None}
    normalizers: dict[str, Any] = {}

    def start(name: str) -> None:
        passed = (normal, batches) if name == "CDF" else ()
        runs[name] = hooks[name].on_validation_epoch_start(runs[name], *passed)

    def validate(name: str) -> Any:
        hook, outputs = hooks[name], None
        for batch in batches:
            outputs = forward(batch)
            if hook is not None:
                runs[name], outputs = hook.on_validation_batch_end(runs[name], outputs)
        if hook is not None:
            normalizers[name] = hook.on_validation_epoch_end(runs[name])
        return outputs

    def test(name: str) -> Any:
        outputs = None
        for batch in batches:
            outputs = forward(batch)
            if hooks[name] is not None:
                outputs = hooks[name].on_test_batch_end(normalizers[name], outputs)
        return outputs

    stages: dict[str, Callable[[str], Any]] = {"start": start, "validate": validate, "test": test}
    times: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in stages} for name in hooks}
    for _ in range(options.repetitions + 1):
        for name, hook in hooks.items():  # in turn, so that what slows the machine slows all of them
            for stage, run in stages.items():
                if hook is None and stage == "start":
                    continue
                begin = time.perf_counter()
                jax.block_until_ready((run(name), runs.get(name), normalizers.get(name)))
                times[name][stage].append(time.perf_counter() - begin)
    return {name: {stage: median(seen[1:]) for stage, seen in all_.items() if seen} for name, all_ in times.items()}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
