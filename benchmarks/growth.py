"""What calls cost by batch and resolution, and merging by the number of records. A worker of ``bench.py``.

Prints one JSON object: milliseconds by work and package, each as pairs of a number and a time.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from measuring import seconds, use_cores

SIDE, BATCH = 256, 8
SIZES, SIDES, WORKERS = (1, 2, 4, 8, 16, 32, 64), (32, 64, 128, 256, 512), (2, 8, 32, 128)
Rows = list[tuple[int, float]]


def _maps(size: int, side: int) -> np.ndarray:
    return np.exp(np.random.default_rng(0).normal(size=(size, side, side))).astype(np.float32)


def _merged(merge: Callable[[Any, Any], Any], records: Iterable[Any]) -> Any:
    """Pair by pair, as processes that wait for each other do."""
    left = list(records)
    while len(left) > 1:
        left = [merge(*left[i : i + 2]) if i + 1 < len(left) else left[i] for i in range(0, len(left), 2)]
    return left[0]


def measure(arguments: list[str] | None = None) -> dict[str, dict[str, Rows]]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("torch", "jax"))
    parser.add_argument("--repetitions", type=int, default=25)
    options = parser.parse_args(arguments)
    use_cores(1)
    finished: Callable[[Any], object] = lambda _: None  # noqa: E731
    array: Callable[[np.ndarray], Any]
    cdf: Any
    if options.package == "torch":
        import torch

        from anomnorm_torch import Normalizer, cdf

        torch.set_num_threads(1)
        array = torch.from_numpy
    else:
        import jax

        from anomnorm_jax import Normalizer, cdf

        array, finished = jax.numpy.asarray, jax.block_until_ready

    def calls(size: int, side: int) -> dict[str, float]:
        found = _maps(size, side)
        scores, maps = array(found.max((1, 2))), array(found)
        pixel = np.zeros((side, side), np.float32), np.ones((side, side), np.float32)
        normalizers = {
            "min-max": Normalizer.min_max((0.0, 9.0), (0.0, 9.0), threshold=3.0),
            "CDF": Normalizer.cdf((0.0, 1.0), pixel, threshold=2.0),
        }
        return {
            name: 1e3 * seconds(lambda n=normalizer: n(scores, maps), options.repetitions, finished)
            for name, normalizer in normalizers.items()
        }

    by_size = {size: calls(size, SIDE) for size in SIZES}
    by_side = {side: calls(BATCH, side) for side in SIDES}
    record = cdf.update(cdf.init((64, 64)), array(_maps(BATCH, 64)))
    repetitions = max(options.repetitions // 5, 1)
    merging = [
        (workers, 1e3 * seconds(lambda n=workers: _merged(cdf.merge, [record] * n), repetitions, finished))
        for workers in WORKERS
    ]
    return {
        "images in a batch": {name: [(size, by_size[size][name]) for size in SIZES] for name in ("min-max", "CDF")},
        "pixels of a side": {name: [(side, by_side[side][name]) for side in SIDES] for name in ("min-max", "CDF")},
        "records merged": {"per-pixel moments": merging},
    }


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
