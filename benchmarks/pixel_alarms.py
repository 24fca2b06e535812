"""False alarms on held-out normals, pixel level: each pixel has a mean and a deviation of its own, of few images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from anomnorm_core import cdf

SIZES = (5, 20, 50)  # images
CENTERS = ("image", "pixel")
SIGMAS = (2.0, 3.0)
REDRAWS = 5
Finalizer = Callable[[cdf.ScoreDistribution], tuple[np.ndarray, np.ndarray]]
# What makes means and deviations of what was counted.
FINALIZERS: dict[str, Finalizer] = {"own deviations": lambda record: cdf.mean_std(record, level="pixel")}


class Row(NamedTuple):
    """Whose false-alarm rates they are."""

    finalizer: str
    center: str
    sigmas: float
    size: int


def promised(sigmas: float) -> float:
    return float(norm.sf(sigmas))


def alarms(pool: np.ndarray, rng: np.random.Generator) -> dict[Row, np.ndarray]:
    """Of maps (P, H, W) of normals, by row: the share of held-out images in which each pixel is flagged, (H, W)."""
    found = {}
    for size in SIZES:
        if 2 * size > len(pool):
            continue
        rates: dict[Row, list[np.ndarray]] = {}
        for _ in range(REDRAWS):
            maps = pool[rng.permutation(len(pool))]
            pixels = cdf.update(cdf.init(maps.shape[1:]), maps[:size])
            image, _ = cdf.mean_std(cdf.update(cdf.init(), maps[:size].max(axis=(1, 2))))
            for name, finalizer in FINALIZERS.items():
                mean, std = finalizer(pixels)
                for center in CENTERS:
                    at = mean if center == "pixel" else np.broadcast_to(image, mean.shape)
                    for sigmas in SIGMAS:
                        flagged = maps[size:] >= cdf.raw_threshold(sigmas, mean, std, at)
                        rates.setdefault(Row(name, center, sigmas, size), []).append(flagged.mean(axis=0))
        found |= {row: np.mean(each, axis=0) for row, each in rates.items()}
    return found
