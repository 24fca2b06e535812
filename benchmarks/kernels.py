"""Time the kernels of one backend on maps, and what they are compared with. A worker of ``bench.py``.

Prints one JSON object: times in copies of the batch, or peak bytes, by work and way.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from measuring import peak_bytes, seconds, use_cores

SHAPE = (32, 1, 256, 256)
THRESHOLD, LOW, HIGH = 2.0, 0.0, 5.0
MEAN, STD, SIGMAS = 0.5, 0.25, 2.0
RAW = math.exp(MEAN + STD * SIGMAS)
Ways = dict[str, Callable[[], Any]]


def maps() -> np.ndarray:
    """A batch of log-normal maps, 8 MiB."""
    return np.exp(np.random.default_rng(0).normal(MEAN, STD, size=SHAPE)).astype(np.float32)


def pixel_moments() -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the logarithm for each pixel."""
    rng = np.random.default_rng(1)
    mean, std = rng.normal(MEAN, 0.02, size=SHAPE[-2:]), rng.uniform(0.2, 0.3, size=SHAPE[-2:])
    return mean.astype(np.float32), std.astype(np.float32)


def made(kind: Any, pixel: tuple[Any, Any]) -> dict[str, Any]:
    """A package's normalizers: what callbacks and hooks call for each batch."""
    ranges = (LOW, HIGH), (LOW, HIGH)
    return {
        "min-max": kind.min_max(*ranges, threshold=THRESHOLD),
        "two-slope": kind.of("two-slope", *ranges, threshold=THRESHOLD),
        "CDF": kind.cdf((MEAN, STD), pixel, threshold=SIGMAS),
    }


def torch_eager() -> dict[str, Ways]:
    """Eager PyTorch: the formulas of anomalib 0.3, the straightforward ones, the floor, and anomnorm."""
    import formulas
    import torch
    from torchmetrics.functional.classification import binary_precision_recall_curve

    from anomnorm_torch import Normalizer, cdf, min_max, threshold, two_slope

    x = torch.from_numpy(maps())
    scores = x.amax((1, 2, 3))
    z = cdf.standardize(x, MEAN, STD)
    masks = torch.zeros(SHAPE, dtype=torch.uint8)
    masks[::4, :, :64, :64] = 1
    moments, ranges, histogram = cdf.init(SHAPE[-2:]), min_max.init(), threshold.init()
    mean, std = (torch.from_numpy(array) for array in pixel_moments())
    normalizers = made(Normalizer, (mean, std))

    def log_and_erfc_in_pieces() -> torch.Tensor:
        result = torch.empty_like(x)
        for source, target in zip(x.reshape(-1).split(2**16), result.reshape(-1).split(2**16), strict=True):
            torch.log(source, out=target).erfc_()
        return result

    def counted_bits() -> torch.Tensor:
        places = (x.view(torch.int32) >> 14).long() + (masks.long() << 18)
        return torch.bincount(places.reshape(-1), minlength=2**19)

    def exact_threshold() -> torch.Tensor:
        scores, truth = x.repeat(4, 1, 1, 1).reshape(-1), masks.repeat(4, 1, 1, 1).reshape(-1).long()
        precision, recall, thresholds = binary_precision_recall_curve(scores, truth, validate_args=False)
        return thresholds[(2 * precision * recall / (precision + recall + 1e-10))[:-1].argmax()]

    def streamed_threshold() -> Any:
        record = histogram
        for _ in range(4):
            record = threshold.update(record, x, masks)
        return threshold.streamed_adaptive(record)

    return {
        "min-max, maps and masks": {
            "anomalib 0.3": lambda: formulas.min_max_and_masks(x, THRESHOLD, LOW, HIGH),
            "straightforward": lambda: (((x - THRESHOLD) / (HIGH - LOW) + 0.5).clamp(0, 1), x >= THRESHOLD),
            "anomnorm": lambda: normalizers["min-max"](scores, x),
        },
        "two-slope, maps and masks": {"anomnorm": lambda: normalizers["two-slope"](scores, x)},
        "CDF, maps and masks": {
            "anomalib 0.3": lambda: formulas.cdf_and_masks(x, SIGMAS, mean, std, MEAN),
            "straightforward": lambda: (torch.special.ndtr((x.log() - MEAN) / std - SIGMAS), x >= RAW),
            "floor": log_and_erfc_in_pieces,
            "anomnorm": lambda: normalizers["CDF"](scores, x),
        },
        "min-max normalize": {
            "anomalib 0.3": lambda: formulas.min_max(x, THRESHOLD, LOW, HIGH),
            "straightforward": lambda: ((x - THRESHOLD) / (HIGH - LOW) + 0.5).clamp(0, 1),
            "floor": lambda: x.clone(),
            "anomnorm": lambda: min_max.normalize(x, THRESHOLD, LOW, HIGH),
        },
        "two-slope normalize": {
            "floor": lambda: x.clone(),
            "anomnorm": lambda: two_slope.normalize(x, THRESHOLD, LOW, HIGH),
        },
        "CDF normalize": {
            "anomalib 0.3": lambda: formulas.cdf(formulas.standardize(x, MEAN, STD), SIGMAS),
            "straightforward": lambda: torch.special.ndtr((x.log() - MEAN) / STD - SIGMAS),
            "floor": lambda: x.log().erfc_(),
            "anomnorm": lambda: cdf.normalize(x, RAW, MEAN, STD),
        },
        "z-scores alone": {
            "anomalib 0.3": lambda: formulas.standardize(x, MEAN, STD),
            "anomnorm": lambda: cdf.standardize(x, MEAN, STD),
        },
        "CDF of z-scores alone": {
            "floor": lambda: z.erfc(),
            "anomnorm": lambda: cdf.normalize_standardized(z, SIGMAS),
        },
        "per-pixel moments update": {
            "straightforward": lambda: torch.var_mean(x.log(), dim=0),
            "floor": lambda: x.log(),
            "anomnorm": lambda: cdf.update(moments, x),
        },
        "min/max update": {
            "straightforward": lambda: torch.aminmax(x),
            "anomnorm": lambda: min_max.update(ranges, x),
        },
        "pixel histogram update": {
            "straightforward": counted_bits,
            "anomnorm": lambda: threshold.update(histogram, x, masks),
        },
        "pixel threshold of 128 maps": {"straightforward": exact_threshold, "anomnorm": streamed_threshold},
    }


def torch_compiled() -> dict[str, Ways]:
    """PyTorch through ``torch.compile``."""
    import formulas
    import torch

    from anomnorm_torch import Normalizer, cdf, min_max, two_slope

    x, t, raw = torch.from_numpy(maps()), torch.tensor(THRESHOLD), torch.tensor(RAW)
    scores = x.amax((1, 2, 3))
    mean, std = (torch.from_numpy(array) for array in pixel_moments())
    moments, ranges = cdf.init(SHAPE[-2:]), min_max.init()
    normalizers = {name: torch.compile(each) for name, each in made(Normalizer, (mean, std)).items()}
    theirs, their_cdf = torch.compile(formulas.min_max_and_masks), torch.compile(formulas.cdf_and_masks)
    plain = torch.compile(lambda x, t: ((x - t) / (HIGH - LOW) + 0.5).clamp(0, 1))
    plain_cdf = torch.compile(lambda x, t: torch.special.ndtr((x.log() - MEAN) / STD - t))
    own = torch.compile(lambda x, t: min_max.normalize(x, t, LOW, HIGH))
    own_slopes = torch.compile(lambda x, t: two_slope.normalize(x, t, LOW, HIGH))
    own_cdf = torch.compile(lambda x, t: cdf.normalize(x, t, MEAN, STD))
    own_moments, own_ranges = torch.compile(cdf.update), torch.compile(min_max.update)
    return {
        "min-max, maps and masks": {
            "anomalib 0.3": lambda: theirs(x, THRESHOLD, LOW, HIGH),
            "anomnorm": lambda: normalizers["min-max"](scores, x),
        },
        "two-slope, maps and masks": {"anomnorm": lambda: normalizers["two-slope"](scores, x)},
        "CDF, maps and masks": {
            "anomalib 0.3": lambda: their_cdf(x, SIGMAS, mean, std, MEAN, validate=False),
            "anomnorm": lambda: normalizers["CDF"](scores, x),
        },
        "min-max normalize": {"straightforward": lambda: plain(x, t), "anomnorm": lambda: own(x, t)},
        "two-slope normalize": {"anomnorm": lambda: own_slopes(x, t)},
        "CDF normalize": {"straightforward": lambda: plain_cdf(x, t), "anomnorm": lambda: own_cdf(x, raw)},
        "per-pixel moments update": {"anomnorm": lambda: own_moments(moments, x)},
        "min/max update": {"anomnorm": lambda: own_ranges(ranges, x)},
    }


def jax_jitted() -> dict[str, Ways]:
    """JAX: the formulas of anomalib 0.3 and the straightforward ones under ``jax.jit``, and anomnorm."""
    import jax
    import jax.numpy as jnp

    from anomnorm_jax import Normalizer, cdf, min_max, threshold, two_slope

    x, t = jnp.asarray(maps()), jnp.float32(THRESHOLD)
    scores = x.max((1, 2, 3))
    z = cdf.standardize(x, MEAN, STD)
    masks = jnp.zeros(SHAPE, dtype=jnp.uint8).at[::4, :, :64, :64].set(1)
    mean, std = (jnp.asarray(array) for array in pixel_moments())
    moments, ranges, histogram = cdf.init(SHAPE[-2:]), min_max.init(), threshold.init()
    normalizers = made(Normalizer, (mean, std))
    theirs = jax.jit(lambda x, t: (jnp.clip((x - t) / (HIGH - LOW) + 0.5, 0, 1), x >= t))
    plain = jax.jit(lambda x, t: jnp.clip((x - t) / (HIGH - LOW) + 0.5, 0, 1))
    plain_cdf = jax.jit(lambda x, t: jax.scipy.stats.norm.cdf((jnp.log(x) - MEAN) / STD - t))
    plain_moments = jax.jit(lambda x: (jnp.mean(jnp.log(x), axis=0), jnp.var(jnp.log(x), axis=0)))
    plain_ranges = jax.jit(lambda x: (jnp.min(x), jnp.max(x)))
    maps_alone = jax.jit(lambda normalizer, scores, x: normalizer(scores, x)["anomaly_maps"])

    @jax.jit
    def counted_bits(x: jax.Array, masks: jax.Array) -> jax.Array:
        places = (jax.lax.bitcast_convert_type(x, jnp.int32) >> 14) + (masks.astype(jnp.int32) << 18)
        return jnp.bincount(places.reshape(-1), length=2**19)

    @jax.jit
    def their_cdf(x: jax.Array, t: jax.Array, mean: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = (jnp.log(x) - mean) / std - (MEAN - mean) / std
        return jax.scipy.stats.norm.cdf(z - t), z >= t

    return {
        "min-max, maps and masks": {
            "anomalib 0.3": lambda: theirs(x, t),
            "maps alone": lambda: maps_alone(normalizers["min-max"], scores, x),
            "anomnorm": lambda: normalizers["min-max"](scores, x),
        },
        "two-slope, maps and masks": {"anomnorm": lambda: normalizers["two-slope"](scores, x)},
        "CDF, maps and masks": {
            "anomalib 0.3": lambda: their_cdf(x, SIGMAS, mean, std),
            "maps alone": lambda: maps_alone(normalizers["CDF"], scores, x),
            "anomnorm": lambda: normalizers["CDF"](scores, x),
        },
        "min-max normalize": {
            "straightforward": lambda: plain(x, t),
            "anomnorm": lambda: min_max.normalize(x, t, LOW, HIGH),
        },
        "two-slope normalize": {"anomnorm": lambda: two_slope.normalize(x, t, LOW, HIGH)},
        "CDF normalize": {
            "straightforward": lambda: plain_cdf(x, SIGMAS),
            "anomnorm": lambda: cdf.normalize(x, RAW, MEAN, STD),
        },
        "z-scores alone": {"anomnorm": lambda: cdf.standardize(x, MEAN, STD)},
        "CDF of z-scores alone": {"anomnorm": lambda: cdf.normalize_standardized(z, SIGMAS)},
        "per-pixel moments update": {
            "straightforward": lambda: plain_moments(x),
            "anomnorm": lambda: cdf.update(moments, x),
        },
        "min/max update": {"straightforward": lambda: plain_ranges(x), "anomnorm": lambda: min_max.update(ranges, x)},
        "pixel histogram update": {
            "straightforward": lambda: counted_bits(x, masks),
            "anomnorm": lambda: threshold.update(histogram, x, masks),
        },
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
