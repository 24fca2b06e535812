"""Time and memory against the number of maps, and the cost of a merge. A worker of ``bench.py``.

Prints one JSON object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import resident_bytes, seconds, use_cores

BATCH, SIDE = 32, 64


def torch_statistics() -> tuple[dict[str, tuple[Any, Callable[..., Any], Callable[..., Any]]], Any, Any]:
    """Each record with its update and merge, how to make an array, and how to wait for a result."""
    import torch

    from anomnorm_torch import cdf, min_max, threshold

    torch.set_num_threads(1)
    return (
        {
            "min/max": (min_max.init(), min_max.update, min_max.merge),
            "per-pixel moments": (cdf.init((SIDE, SIDE)), cdf.update, cdf.merge),
            "pixel histogram": (threshold.init(), threshold.update, threshold.merge),
        },
        torch.from_numpy,
        lambda _: None,
    )


def jax_statistics() -> tuple[dict[str, tuple[Any, Callable[..., Any], Callable[..., Any]]], Any, Any]:
    """The same in JAX."""
    import jax

    from anomnorm_jax import cdf, min_max, threshold

    return (
        {
            "min/max": (min_max.init(), min_max.update, min_max.merge),
            "per-pixel moments": (cdf.init((SIDE, SIDE)), cdf.update, cdf.merge),
            "pixel histogram": (threshold.init(), threshold.update, threshold.merge),
        },
        jax.numpy.asarray,
        jax.block_until_ready,
    )


def streamed(record: Any, update: Any, batches: list[Any], sizes: list[int], finished: Any) -> dict[str, Any]:
    """Seconds and additional resident bytes after each of ``sizes`` maps."""
    finished(update(record, batches[0]))
    before, found, maps = resident_bytes(), [], 0
    start = time.perf_counter()
    for size in sizes:
        while maps < size:
            record = update(record, batches[maps // BATCH % len(batches)])
            maps += BATCH
        finished(record)
        found.append((maps, time.perf_counter() - start, resident_bytes() - before))
    x, y = np.log([row[:2] for row in found[1:]]).T  # the first one is too short to be timed
    return {"rows": found, "slope": float(np.polyfit(x, y, 1)[0])}


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("torch", "jax"))
    parser.add_argument("--largest", type=int, default=6, help="power of ten of the largest number of maps")
    options = parser.parse_args(arguments)
    use_cores(1)
    statistics, array, finished = torch_statistics() if options.package == "torch" else jax_statistics()
    rng = np.random.default_rng(0)
    batches = [array(np.exp(rng.normal(size=(BATCH, SIDE, SIDE))).astype(np.float32)) for _ in range(4)]
    sizes = [10**power for power in range(2, options.largest + 1)]
    found: dict[str, Any] = {}
    for name, (empty, update, merge) in statistics.items():
        record = update(empty, batches[0])
        found[name] = streamed(empty, update, batches, sizes, finished)
        found[name]["merge"] = seconds(lambda m=merge, r=record: m(r, r), 25, finished)
        found[name]["bytes"] = sum(np.asarray(field).nbytes for field in record)
    return found


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
