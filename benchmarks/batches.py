"""What one batch of 32 costs beyond the model, through callbacks and hooks. A worker of ``bench.py``.

Prints one JSON object: microseconds by what was called. With ``--maps`` the batch has maps of 256 x 256 too, and the
formulas of anomalib 0.3 are there as callbacks.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from measuring import seconds, use_cores

SIZE, SIDE = 32, 256
HOOKS = ("on_validation_batch_end", "on_test_batch_end")
Around = Callable[[str, Callable[[], None]], None]


def arrays(maps: bool) -> dict[str, np.ndarray]:
    """Log-normal scores and, if asked for, maps."""
    rng = np.random.default_rng(0)
    shapes = {"pred_scores": (SIZE,)} | ({"anomaly_maps": (SIZE, 1, SIDE, SIDE)} if maps else {})
    return {name: np.exp(rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def train_and_test(callback: Any, outputs: dict[str, Any], batches: int) -> None:
    """An epoch and a test of a module whose steps return ``outputs``."""
    import pytorch_lightning as pl
    import torch

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    class Detector(pl.LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return dict(outputs)

        predict_step = test_step = validation_step

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    data = torch.utils.data.DataLoader(torch.zeros(batches))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback], accelerator="cpu", enable_model_summary=False, **quiet)
    module = Detector()
    trainer.fit(module, data, data)
    trainer.test(module, data, verbose=False)


def watched(kind: type, around: Around) -> type:
    """``kind`` with hooks for batches that go through ``around(name, call)``."""

    def watch(name: str) -> Any:
        def hook(self: Any, *arguments: Any, **more: Any) -> None:
            around(name, lambda: getattr(kind, name)(self, *arguments, **more))

        return hook

    return type(kind.__name__, (kind,), {name: watch(name) for name in HOOKS})


def timed(kind: type, options: tuple[Any, ...], outputs: dict[str, Any], batches: int) -> dict[str, float]:
    """Median seconds of the hooks of a callback that Lightning calls for each batch."""
    times: dict[str, list[float]] = defaultdict(list)

    def around(name: str, call: Callable[[], None]) -> None:
        start = time.perf_counter()
        call()
        times[name].append(time.perf_counter() - start)

    train_and_test(watched(kind, around)(*options), outputs, batches)
    return {name: median(times[name]) for name in HOOKS}


def callbacks(batches: int, maps: bool) -> dict[str, float]:
    """Median seconds by callback and hook; first an empty callback."""
    import pytorch_lightning as pl
    import torch

    import anomnorm_torch.callbacks as own

    outputs = {name: torch.from_numpy(array) for name, array in arrays(maps).items()}
    kinds: dict[str, tuple[type, tuple[Any, ...]]] = {
        "Callback": (pl.Callback, ()),
        "MinMaxNormalizationCallback": (own.MinMaxNormalizationCallback, (2.0,)),
        "NormalizationCallback (two-slope)": (own.NormalizationCallback, ("two-slope", 2.0)),
        "CdfNormalizationCallback": (own.CdfNormalizationCallback, (2.0,)),
    }
    found = {}
    for name, (kind, options) in kinds.items():
        found |= {f"{name}.{hook}": value for hook, value in timed(kind, options, outputs, batches).items()}
    if maps:
        found |= {f"anomalib 0.3, {name}": value for name, value in formulas(outputs, batches).items()}
    return found


def formulas(outputs: dict[str, Any], batches: int) -> dict[str, float]:
    """Median seconds that the formulas of anomalib 0.3 and the comparisons take in a test, as callbacks."""
    import pytorch_lightning as pl
    import torch
    from formulas import cdf_and_masks, min_max_and_masks

    moments = {"pred_scores": (torch.tensor(0.0), torch.tensor(1.0))}
    moments["anomaly_maps"] = torch.zeros(SIDE, SIDE), torch.ones(SIDE, SIDE)
    labels = {"pred_scores": "pred_labels", "anomaly_maps": "pred_masks"}

    class MinMax(pl.Callback):
        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            for name, label in labels.items():
                outputs[name], outputs[label] = min_max_and_masks(outputs[name], 2.0, 0.0, 50.0)

    class Cdf(pl.Callback):
        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            for name, label in labels.items():
                outputs[name], outputs[label] = cdf_and_masks(outputs[name], 2.0, *moments[name], 0.0)

    kinds = {"min-max": MinMax, "CDF": Cdf}
    return {name: timed(kind, (), outputs, batches)["on_test_batch_end"] for name, kind in kinds.items()}


def hooks(maps: bool) -> dict[str, Callable[[], Any]]:
    """The per-batch methods of the hooks, and an empty jitted function of what they take."""
    import jax
    import jax.numpy as jnp

    from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook

    outputs = {name: jnp.asarray(array) for name, array in arrays(maps).items()}
    empty = jax.jit(lambda values, outputs: (values, outputs))
    found: dict[str, Callable[[], Any]] = {}
    for name, hook in {
        "MinMaxNormalizationHook": MinMaxNormalizationHook(2.0),
        "NormalizationHook (two-slope)": NormalizationHook("two-slope", 2.0),
        "CdfNormalizationHook": CdfNormalizationHook(2.0, progress=False),
    }.items():
        passed = (lambda batch: batch, [outputs]) if isinstance(hook, CdfNormalizationHook) else ()
        run = hook.on_validation_epoch_start(hook.setup(outputs), *passed)
        fitted = hook.on_validation_epoch_end(hook.on_validation_batch_end(run, outputs)[0])
        if not maps:
            found[f"an empty jitted function of the normalizer of {name}"] = lambda n=fitted: empty(n, outputs)
        found[f"{name}.on_validation_batch_end"] = lambda h=hook, r=run: h.on_validation_batch_end(r, outputs)
        found[f"{name}.on_test_batch_end"] = lambda h=hook, n=fitted: h.on_test_batch_end(n, outputs)
    return found


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("torch", "jax"))
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--maps", action="store_true", help="batches of maps too")
    options = parser.parse_args(arguments)
    use_cores(1)
    if options.package == "torch":
        import torch

        torch.set_num_threads(1)
        found = callbacks(options.repetitions, options.maps)
    else:
        import jax

        calls = hooks(options.maps)
        found = {name: seconds(call, options.repetitions, jax.block_until_ready) for name, call in calls.items()}
    return {name: 1e6 * value for name, value in found.items()}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
