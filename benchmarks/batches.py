"""What one batch of 32 image scores costs beyond the model. A worker of ``bench.py``.

Prints one JSON object: microseconds by what was called.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from measuring import seconds, use_cores

SCORES = np.exp(np.random.default_rng(0).normal(size=32)).astype(np.float32)


HOOKS = ("on_validation_batch_end", "on_test_batch_end")


def callbacks(batches: int) -> dict[str, float]:
    """Median seconds of the hooks that Lightning calls for each batch, of both callbacks and of an empty one."""
    import logging
    import warnings

    import pytorch_lightning as pl
    import torch

    from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    scores = torch.from_numpy(SCORES)
    found: dict[str, float] = {}

    class Detector(pl.LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"pred_scores": scores}

        predict_step = test_step = validation_step

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    def timed(kind: type[pl.Callback], name: str, times: list[float]) -> Any:
        def hook(self: pl.Callback, *arguments: Any, **more: Any) -> None:
            start = time.perf_counter()
            getattr(kind, name)(self, *arguments, **more)
            times.append(time.perf_counter() - start)

        return hook

    data = torch.utils.data.DataLoader(torch.zeros(batches))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for kind, options in ((pl.Callback, ()), (MinMaxNormalizationCallback, (2.0,)), (CdfNormalizationCallback, (2.0,))):
        times: dict[str, list[float]] = {name: [] for name in HOOKS}
        watched = type(kind.__name__, (kind,), {name: timed(kind, name, times[name]) for name in HOOKS})
        trainer = pl.Trainer(
            max_epochs=1, callbacks=[watched(*options)], accelerator="cpu", enable_model_summary=False, **quiet
        )
        module = Detector()
        trainer.fit(module, data, data)
        trainer.test(module, data, verbose=False)
        found |= {f"{kind.__name__}.{name}": median(seen) for name, seen in times.items()}
    return found


def hooks() -> dict[str, Callable[[], Any]]:
    """The per-batch methods of both hooks, and an empty jitted function."""
    import jax
    import jax.numpy as jnp

    from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook

    outputs = {"pred_scores": jnp.asarray(SCORES)}
    empty = jax.jit(lambda state, outputs: (state, outputs))
    found: dict[str, Callable[[], Any]] = {}
    for hook in (MinMaxNormalizationHook(2.0), CdfNormalizationHook(2.0, progress=False)):
        state = hook.setup(outputs)
        if isinstance(hook, CdfNormalizationHook):
            begun = fitted = hook.on_validation_epoch_start(state, lambda batch: batch, [outputs])
        else:
            begun = hook.on_validation_epoch_start(state)
            fitted = hook.on_validation_epoch_end(hook.on_validation_batch_end(begun, outputs)[0])
        name = type(hook).__name__
        found[f"an empty jitted function of the state of {name}"] = lambda s=fitted: empty(s, outputs)
        found[f"{name}.on_validation_batch_end"] = lambda h=hook, s=begun: h.on_validation_batch_end(s, outputs)
        found[f"{name}.on_test_batch_end"] = lambda h=hook, s=fitted: h.on_test_batch_end(s, outputs)
    return found


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("torch", "jax"))
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args(arguments)
    use_cores(1)
    finished: Callable[[Any], object] = lambda _: None  # noqa: E731
    if options.package == "torch":
        import torch

        torch.set_num_threads(1)
        found = callbacks(options.repetitions)
    else:
        import jax

        finished = jax.block_until_ready
        found = {name: seconds(call, options.repetitions, finished) for name, call in hooks().items()}
    return {name: 1e6 * value for name, value in found.items()}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
