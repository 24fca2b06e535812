"""Seconds of compiling in a first epoch with JAX, whose caches are empty. A worker of ``bench.py``.

Prints one JSON object: seconds by hook and part of the epoch, with maps and thresholds searched for at both levels.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook

SIDE, SIZE, BATCHES = 64, 8, 3


def batches() -> list[dict[str, Any]]:
    """Outputs with labels and masks."""
    rng = np.random.default_rng(0)
    shape = (SIZE, SIDE, SIDE)
    return [
        {
            "pred_scores": jnp.asarray(rng.lognormal(size=SIZE).astype("f4")),
            "anomaly_maps": jnp.asarray(rng.lognormal(size=shape).astype("f4")),
            "label": jnp.arange(SIZE) % 4 == 0,
            "mask": jnp.asarray(rng.random(shape) < 0.1),
        }
        for _ in range(BATCHES)
    ]


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found."""
    jax.config.update("jax_enable_compilation_cache", False)
    given, found = batches(), {}
    names = ("pred_scores", "anomaly_maps")
    for name, hook in {"min-max": MinMaxNormalizationHook(), "CDF": CdfNormalizationHook(progress=False)}.items():
        jax.clear_caches()  # the one before compiled some of it
        seconds: dict[str, float] = {}

        def timed(part: str, call: Callable[[], Any], seconds: dict[str, float] = seconds) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(call())
            seconds[part] = time.perf_counter() - start
            return result

        normal = [{key: batch[key] for key in names} for batch in given] if name == "CDF" else None
        passed = () if normal is None else (lambda batch: batch, normal)
        run = hook.setup(given[0])
        run = timed("pass", lambda h=hook, r=run, p=passed: h.on_validation_epoch_start(r, *p))

        def validated(hook: Any = hook, run: Any = run) -> Any:
            for batch in given:
                run, _ = hook.on_validation_batch_end(run, batch)
            return run

        run = timed("batches", validated)
        timed("end", lambda h=hook, r=run: h.on_validation_epoch_end(r))
        found[name] = seconds
    return found


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
