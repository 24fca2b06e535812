"""What normalization by a range keeps of raw scores: ties at 0 and 1, AUROC, and the slopes beside the threshold."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from detectors import Scores
from scipy.stats import rankdata

from anomnorm_core import cdf, min_max, threshold, two_slope

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # a side shorter than this share of the range has the slope of min-max
CHOSEN = 0.05  # that of clause N1b
CONTINUED = "two-slope, missing side continued"
REDRAWS = 2
Normalize = Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
    """What a threshold is found on, and by which rule."""

    normals: int | None  # of the validation sample; None: half of those that were not trained on
    quantile: float | None  # where there are normals alone; None: the best F1, with half of the anomalies


CASES = {
    "20 normals, none flagged": Case(20, 1.0),
    "normals, none flagged": Case(None, 1.0),
    "normals, 5% flagged": Case(None, 0.95),
    "normals and anomalies, best F1": Case(None, None),
}


class Kept(NamedTuple):
    """What normalized scores have of raw ones."""

    zeros: float  # share of the test scores that are exactly 0
    ones: float  # share that are exactly 1
    crowded: float  # share that are within 0.05 of the threshold's 0.5
    lost: float  # AUROC of the raw scores less that of the normalized ones
    slope: float  # the larger slope beside the threshold over the smaller one
    moved: float  # mean distance between the normalized scores that two validation samples give one raw score


def two_sides(x: np.ndarray, t: float, low: float, high: float, share: float, missing: float = 1) -> np.ndarray:
    """Two-slope min-max of clause N1b with any share; ``missing`` times the range is mapped above the maximum."""
    below, above = _widths(t, low, high, share, missing)
    return np.clip(0.5 + (x - t) / np.where(x < t, below, above), 0, 1)


def _widths(t: float, low: float, high: float, share: float, missing: float) -> tuple[float, float]:
    span = high - low
    below, above = (2 * side if side > 0 and side >= share * span else span for side in (t - low, high - t))
    return below, above * missing if high <= t else above


def ways(t: float, low: float, high: float, normals: np.ndarray) -> dict[str, tuple[Normalize, float]]:
    """Normalizations by name, each with the ratio of its slopes beside the threshold."""
    mean, std = cdf.mean_std(cdf.update(cdf.init(), normals))
    found: dict[str, tuple[Normalize, float]] = {
        "min-max": (lambda x: min_max.normalize(x, t, low, high), 1.0),
        "min-max, margin": (lambda x: min_max.margin(x, t, low, high), 1.0),
        "log-normal CDF": (lambda x: cdf.normalize(x, t, mean, std), 1.0),
    }
    variants = {f"two-slope, {share:.0%}": (share, 1.0) for share in SHARES} | {CONTINUED: (CHOSEN, 2.0)}
    for name, (share, missing) in variants.items():
        below, above = _widths(t, low, high, share, missing)
        normalize = lambda x, share=share, missing=missing: two_sides(x, t, low, high, share, missing)  # noqa: E731
        found[name] = normalize, max(below, above) / min(below, above)
    published = two_slope.normalize(normals, t, low, high)
    assert np.allclose(published, two_sides(normals, t, low, high, CHOSEN), rtol=0, atol=1e-6)
    return found


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """How often an anomaly has the larger score; ties count half."""
    ranks = rankdata(np.concatenate([normal, anomalous]))[normal.size :]
    return float((ranks.sum() - anomalous.size * (anomalous.size + 1) / 2) / (normal.size * anomalous.size))


def kept(of: Scores, rng: np.random.Generator) -> dict[tuple[str, str], Kept]:
    """Of one detector and one split, by case and way: means over validation samples."""
    pool, anomalous = of.pool.astype(np.float32), of.anomalous.astype(np.float32)
    found = {}
    for name, case in CASES.items():
        half = pool.size // 2
        n = half if case.normals is None else case.normals
        if n > half:
            continue
        known = anomalous.size // 2 if case.quantile is None else 0
        draws = [(rng.permutation(pool), rng.permutation(anomalous)) for _ in range(REDRAWS)]
        fits = []
        for normals, anomalies in draws:
            scores, labels = np.concatenate([normals[:n], anomalies[:known]]), np.repeat([0, 1], [n, known])
            t = float(threshold.adaptive(scores, labels, normal_quantile=case.quantile or 1.0))
            fits.append(ways(t, float(scores.min()), float(scores.max()), normals[:n]))
        for way in fits[0]:
            (one, slope), (other, _) = (fit[way] for fit in fits)
            normals, anomalies = draws[0][0][n:], draws[0][1][known:]
            u = one(np.concatenate([normals, anomalies]))
            raw, normalized = auroc(normals, anomalies), auroc(u[: normals.size], u[normals.size :])
            moved = np.mean(np.abs(one(pool) - other(pool)))
            crowded = np.mean(np.abs(u - 0.5) < 0.05)
            found[name, way] = Kept(np.mean(u == 0), np.mean(u == 1), crowded, raw - normalized, slope, moved)
    return found
