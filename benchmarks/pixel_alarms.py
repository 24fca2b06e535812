"""False alarms on held-out normals, pixel level: of deviations that are of few images, and of thresholds for a rate."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from detectors import Maps
from scipy.stats import norm

from anomnorm_core import cdf, threshold

SIZES = (5, 20, 50, 99)  # images
CENTERS = ("image", "pixel")
SIGMAS = (2.0, 3.0)
RATES = (0.05, 0.01)
REDRAWS, RATE_REDRAWS = 5, 2  # a histogram takes longer
Finalizer = Callable[[cdf.ScoreDistribution], tuple[np.ndarray, np.ndarray]]
# What makes means and deviations of what was counted.
FINALIZERS: dict[str, Finalizer] = {"own": partial(cdf.mean_std, level="image")}
SAME = "z, by the same normals"  # which are closer to their own mean than others: they are not exchangeable with those
SCALES = ("raw", "z, by the training data", SAME)


class SigmasRow(NamedTuple):
    """Whose rates they are: of deviations above the center."""

    finalizer: str
    center: str
    sigmas: float
    size: int


class RateRow(NamedTuple):
    """Whose rate it is: of a threshold that was found for a rate."""

    scale: str  # of the pixels, when the threshold is found
    per: str  # "pixel" or "image"
    rate: float
    size: int


class Observed(NamedTuple):
    share: float  # of pixels or of images with a pixel that are flagged
    guaranteed: bool


def promised(sigmas: float) -> float:
    return float(norm.sf(sigmas))


def by_sigmas(pool: np.ndarray, rng: np.random.Generator) -> dict[SigmasRow, np.ndarray]:
    """By row, the share of held-out images in which each pixel is flagged, (H, W)."""
    found = {}
    for size in _sizes(pool):
        rates: dict[SigmasRow, list[np.ndarray]] = {}
        for maps in _draws(pool, rng, REDRAWS):
            pixels = cdf.update(cdf.init(maps.shape[1:]), maps[:size])
            image, _ = cdf.mean_std(cdf.update(cdf.init(), maps[:size].max(axis=(1, 2))))
            for name, finalizer in FINALIZERS.items():
                mean, std = finalizer(pixels)
                for center in CENTERS:
                    at = mean if center == "pixel" else np.broadcast_to(image, mean.shape)
                    for sigmas in SIGMAS:
                        flagged = maps[size:] >= cdf.raw_threshold(sigmas, mean, std, at)
                        rates.setdefault(SigmasRow(name, center, sigmas, size), []).append(flagged.mean(axis=0))
        found |= {row: np.mean(each, axis=0) for row, each in rates.items()}
    return found


def by_rate(of: Maps, rng: np.random.Generator) -> dict[RateRow, Observed]:
    """By row, what of the held-out images is flagged."""
    trained_on = cdf.mean_std(cdf.update(cdf.init(of.train.shape[1:]), of.train), level="pixel")
    found: dict[RateRow, list[Observed]] = {}
    for size in _sizes(of.pool):
        for maps in _draws(of.pool, rng, RATE_REDRAWS):
            same = cdf.mean_std(cdf.update(cdf.init(maps.shape[1:]), maps[:size]), level="pixel")
            scaled = (maps, cdf.standardize(maps, *trained_on), cdf.standardize(maps, *same))
            for scale, x in zip(SCALES, scaled, strict=True):
                transform = None if scale == "raw" else "identity"
                record, maxima = threshold.update(threshold.init(), x[:size]), x[:size].max(axis=(1, 2))
                for rate in RATES:
                    pixel = threshold.streamed_false_alarm_rate(record, rate, size, transform=transform)
                    image = threshold.false_alarm_rate(maxima, rate, transform=transform)
                    shares = np.mean(x[size:] >= pixel.threshold), np.mean(x[size:].max(axis=(1, 2)) >= image.threshold)
                    for per, share, each in zip(("pixel", "image"), shares, (pixel, image), strict=True):
                        row = RateRow(scale, per, rate, size)
                        found.setdefault(row, []).append(Observed(float(share), each.guaranteed and scale != SAME))
    return {
        row: Observed(float(np.mean([one.share for one in each])), all(one.guaranteed for one in each))
        for row, each in found.items()
    }


def _sizes(pool: np.ndarray) -> list[int]:
    return [size for size in SIZES if size <= len(pool) // 2]


def _draws(pool: np.ndarray, rng: np.random.Generator, number: int) -> list[np.ndarray]:
    return [pool[rng.permutation(len(pool))] for _ in range(number)]
