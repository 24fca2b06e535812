"""Time the kernels of one backend on maps, and what they are compared with. A worker of ``bench.py``.

Prints one JSON object: times in copies of the batch, or peak bytes, by work and way.
"""

import argparse
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from measuring import peak_bytes, seconds, use_cores

SHAPE = (32, 1, 256, 256)
THRESHOLD, LOW, HIGH, MEAN, STD = 2.0, 0.0, 5.0, 0.5, 0.25
Ways = dict[str, Callable[[], Any]]


def maps() -> np.ndarray:
    """A batch of log-normal maps, 8 MiB."""
    return np.exp(np.random.default_rng(0).normal(MEAN, STD, size=SHAPE)).astype(np.float32)


def torch_eager() -> dict[str, Ways]:
    """Eager PyTorch: the founding formulas, the straightforward ones, the floor, and anomnorm."""
    import torch
    from torchmetrics.functional.classification import binary_precision_recall_curve

    from anomnorm_torch import cdf, min_max, threshold

    x = torch.from_numpy(maps())
    z = cdf.standardize(x, MEAN, STD)
    masks = torch.zeros(SHAPE, dtype=torch.uint8)
    masks[::4, :, :64, :64] = 1
    moments, ranges, histogram = cdf.init(SHAPE[-2:]), min_max.init(), threshold.init()

    def founding_min_max() -> torch.Tensor:
        normalized = ((x - THRESHOLD) / (HIGH - LOW)) + 0.5
        normalized = torch.minimum(normalized, torch.tensor(1))
        return torch.maximum(normalized, torch.tensor(0))

    def founding_cdf() -> torch.Tensor:
        standard = torch.distributions.Normal(torch.zeros(1), torch.ones(1))
        return standard.cdf((torch.log(x) - MEAN) / STD - THRESHOLD)

    def exact_threshold() -> torch.Tensor:
        scores, truth = x.repeat(4, 1, 1, 1).reshape(-1), masks.repeat(4, 1, 1, 1).reshape(-1).long()
        precision, recall, thresholds = binary_precision_recall_curve(scores, truth, validate_args=False)
        return thresholds[(2 * precision * recall / (precision + recall + 1e-10))[:-1].argmax()]

    def streamed_threshold() -> torch.Tensor:
        record = histogram
        for _ in range(4):
            record = threshold.update(record, x, masks)
        return threshold.streamed_adaptive(record)

    return {
        "min-max normalize": {
            "founding": founding_min_max,
            "straightforward": lambda: ((x - THRESHOLD) / (HIGH - LOW) + 0.5).clamp(0, 1),
            "floor": lambda: x.clone(),
            "anomnorm": lambda: min_max.normalize(x, THRESHOLD, LOW, HIGH),
        },
        "CDF normalize": {
            "founding": founding_cdf,
            "straightforward": lambda: torch.special.ndtr((x.log() - MEAN) / STD - THRESHOLD),
            "floor": lambda: x.log().erfc_(),
            "anomnorm": lambda: cdf.normalize(cdf.standardize(x, MEAN, STD), THRESHOLD),
        },
        "z-scores alone": {
            "founding": lambda: (torch.log(x) - MEAN) / STD,
            "anomnorm": lambda: cdf.standardize(x, MEAN, STD),
        },
        "CDF of z-scores alone": {"floor": lambda: z.erfc(), "anomnorm": lambda: cdf.normalize(z, THRESHOLD)},
        "per-pixel moments update": {
            "straightforward": lambda: torch.var_mean(x.log(), dim=0),
            "floor": lambda: x.log(),
            "anomnorm": lambda: cdf.update(moments, x),
        },
        "min/max update": {
            "straightforward": lambda: torch.aminmax(x),
            "anomnorm": lambda: min_max.update(ranges, x),
        },
        "pixel histogram update": {"anomnorm": lambda: threshold.update(histogram, x, masks)},
        "pixel threshold of 128 maps": {"straightforward": exact_threshold, "anomnorm": streamed_threshold},
    }


def torch_compiled() -> dict[str, Ways]:
    """PyTorch through ``torch.compile``."""
    import torch

    from anomnorm_torch import cdf, min_max

    x, t = torch.from_numpy(maps()), torch.tensor(THRESHOLD)
    moments, ranges = cdf.init(SHAPE[-2:]), min_max.init()
    plain = torch.compile(lambda x, t: ((x - t) / (HIGH - LOW) + 0.5).clamp(0, 1))
    plain_cdf = torch.compile(lambda x, t: torch.special.ndtr((x.log() - MEAN) / STD - t))
    own = torch.compile(lambda x, t: min_max.normalize(x, t, LOW, HIGH))
    own_cdf = torch.compile(lambda x, t: cdf.normalize(cdf.standardize(x, MEAN, STD), t))
    own_moments, own_ranges = torch.compile(cdf.update), torch.compile(min_max.update)
    return {
        "min-max normalize": {"straightforward": lambda: plain(x, t), "anomnorm": lambda: own(x, t)},
        "CDF normalize": {"straightforward": lambda: plain_cdf(x, t), "anomnorm": lambda: own_cdf(x, t)},
        "per-pixel moments update": {"anomnorm": lambda: own_moments(moments, x)},
        "min/max update": {"anomnorm": lambda: own_ranges(ranges, x)},
    }


def jax_jitted() -> dict[str, Ways]:
    """JAX: the straightforward formulas under ``jax.jit``, and anomnorm."""
    import jax
    import jax.numpy as jnp

    from anomnorm_jax import cdf, min_max, threshold

    x, t = jnp.asarray(maps()), jnp.float32(THRESHOLD)
    z = cdf.standardize(x, MEAN, STD)
    masks = jnp.zeros(SHAPE, dtype=jnp.uint8).at[::4, :, :64, :64].set(1)
    moments, ranges, histogram = cdf.init(SHAPE[-2:]), min_max.init(), threshold.init()
    plain = jax.jit(lambda x, t: jnp.clip((x - t) / (HIGH - LOW) + 0.5, 0, 1))
    plain_cdf = jax.jit(lambda x, t: jax.scipy.stats.norm.cdf((jnp.log(x) - MEAN) / STD - t))
    plain_moments = jax.jit(lambda x: (jnp.mean(jnp.log(x), axis=0), jnp.var(jnp.log(x), axis=0)))
    plain_ranges = jax.jit(lambda x: (jnp.min(x), jnp.max(x)))
    own = jax.jit(lambda x, t: cdf.normalize(cdf.standardize(x, MEAN, STD), t))
    return {
        "min-max normalize": {
            "straightforward": lambda: plain(x, t),
            "anomnorm": lambda: min_max.normalize(x, t, LOW, HIGH),
        },
        "CDF normalize": {"straightforward": lambda: plain_cdf(x, t), "anomnorm": lambda: own(x, t)},
        "z-scores alone": {"anomnorm": lambda: cdf.standardize(x, MEAN, STD)},
        "CDF of z-scores alone": {"anomnorm": lambda: cdf.normalize(z, t)},
        "per-pixel moments update": {
            "straightforward": lambda: plain_moments(x),
            "anomnorm": lambda: cdf.update(moments, x),
        },
        "min/max update": {"straightforward": lambda: plain_ranges(x), "anomnorm": lambda: min_max.update(ranges, x)},
        "pixel histogram update": {"anomnorm": lambda: threshold.update(histogram, x, masks)},
    }


BACKENDS = {"torch": torch_eager, "torch-compiled": torch_compiled, "jax": jax_jitted}


def measure(arguments: list[str] | None = None) -> dict[str, Any]:
    """What is found, as the command line or ``arguments`` say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--peak", action="store_true", help="peak bytes instead of times")
    options = parser.parse_args(arguments)
    use_cores(options.threads)
    finished: Callable[[Any], object] = lambda _: None  # noqa: E731
    if options.backend == "jax":
        import jax

        finished = jax.block_until_ready
    else:
        import torch

        torch.set_num_threads(options.threads)
    source, target = maps(), np.empty(SHAPE, np.float32)
    # One yardstick for all processes of a run: copying the batch into memory that is there.
    copy = seconds(lambda: np.copyto(target, source), options.repetitions)
    found = {
        work: {
            way: peak_bytes(function, finished)
            if options.peak
            else seconds(function, options.repetitions, finished) / copy
            for way, function in ways.items()
        }
        for work, ways in BACKENDS[options.backend]().items()
    }
    package = options.backend.split("-")[0]
    return {"work": found, "copy": copy, "version": f"{package} {version(package)}"}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
