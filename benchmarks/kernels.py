"""Time the kernels on maps, as ratios within one run: against the founding formulas and against a plain copy.

``nox -s bench`` runs it; ``--quick`` takes fewer repetitions. Figures of different runs or machines do not compare;
ratios of one run do. One thread, median of the repetitions.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpy as np
import torch

import anomnorm_jax
import anomnorm_torch

SHAPE = (32, 1, 256, 256)
THRESHOLD, LOW, HIGH, MEAN, STD = 2.0, 0.0, 5.0, 0.5, 0.25


def founding_min_max(maps: torch.Tensor) -> torch.Tensor:
    """As anomalib 0.3 had it: no step at the threshold, new tensors for each operation."""
    normalized = ((maps - THRESHOLD) / (HIGH - LOW)) + 0.5
    normalized = torch.minimum(normalized, torch.tensor(1))
    return torch.maximum(normalized, torch.tensor(0))


def founding_cdf(maps: torch.Tensor) -> torch.Tensor:
    """As anomalib 0.3 had it: standardize, then the CDF of torch.distributions, on the CPU."""
    z = (torch.log(maps) - MEAN) / STD
    return torch.distributions.Normal(torch.zeros(1), torch.ones(1)).cdf(z - THRESHOLD)


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """What is measured: a group for each task; in each, the founding formula comes first."""
    values = np.exp(np.random.default_rng(0).normal(MEAN, STD, size=SHAPE)).astype(np.float32)
    maps, array = torch.from_numpy(values), jnp.asarray(values)
    torch_cdf, jax_cdf = anomnorm_torch.cdf, anomnorm_jax.cdf
    jax_normalize = jax.jit(lambda x: jax_cdf.normalize(jax_cdf.standardize(x, MEAN, STD), THRESHOLD))
    records = torch_cdf.init(SHAPE[-2:]), jax_cdf.init(SHAPE[-2:])
    return {
        "min-max normalize": {
            "founding formula (torch)": lambda: founding_min_max(maps),
            "anomnorm-torch eager": lambda: anomnorm_torch.min_max.normalize(maps, THRESHOLD, LOW, HIGH),
            "anomnorm-jax jit": lambda: anomnorm_jax.min_max.normalize(array, THRESHOLD, LOW, HIGH),
        },
        "CDF standardize and normalize": {
            "founding formula (torch)": lambda: founding_cdf(maps),
            "anomnorm-torch eager": lambda: torch_cdf.normalize(torch_cdf.standardize(maps, MEAN, STD), THRESHOLD),
            "anomnorm-jax jit": lambda: jax_normalize(array),
        },
        "per-pixel moments of one batch": {
            "log and var_mean (torch)": lambda: torch.var_mean(maps.log(), dim=0),
            "anomnorm-torch eager": lambda: torch_cdf.update(records[0], maps),
            "anomnorm-jax jit": lambda: jax_cdf.update(records[1], array),
        },
        "copy": {"torch": lambda: maps.clone()},
    }


def seconds(function: Callable[[], Any], repetitions: int) -> float:
    """Median time of one call, compilation left out."""
    times = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return median(times[2:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three repetitions")
    repetitions = 3 if parser.parse_args().quick else 25
    torch.set_num_threads(1)
    groups = cases()
    copy = seconds(groups.pop("copy")["torch"], repetitions)
    print(f"{' x '.join(map(str, SHAPE))} float32 ({math.prod(SHAPE) * 4 / 2**20:.0f} MiB), one thread\n")
    print(f"{'':<34}{'in copies':>10}{'speed-up':>10}")
    for title, group in groups.items():
        print(title)
        times = {name: seconds(function, repetitions) for name, function in group.items()}
        first = next(iter(times.values()))
        for name, value in times.items():
            print(f"  {name:<32}{value / copy:>10.1f}{first / value:>9.1f}x")


if __name__ == "__main__":
    main()
