"""What thresholds and moments have to be, in NumPy float64 and by trying every candidate."""

from typing import Any

import numpy as np
from scipy import stats
from scipy.special import digamma, polygamma


def f1(flagged: np.ndarray, truth: np.ndarray) -> float:
    hits = (flagged & truth).sum()
    return 2 * hits / (flagged.sum() + truth.sum())


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The largest among the candidates of the best F1."""
    candidates = np.unique(scores[truth])
    values = [f1(scores >= candidate, truth) for candidate in candidates]
    return float(max(c for c, value in zip(candidates, values, strict=True) if value == max(values)))


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the logarithm over the first axis, of scores (B,) or maps (B, H, W); NaN is left out."""
    logs = np.log(values.astype("f8"))
    mean, std = np.nanmean(logs, axis=0), np.nanstd(logs, axis=0, ddof=1)
    return mean, shrunk(std, np.isfinite(logs).sum(axis=0) - 1) if logs.ndim > 1 else std


def shrunk(std: np.ndarray, freedom: np.ndarray | int) -> np.ndarray:
    """Deviations of the pixels as clause S3 has them, given their degrees of freedom; none may be zero."""
    freedom = np.broadcast_to(freedom, std.shape)
    own = 2 * np.log(std) + np.log(freedom / 2) - digamma(freedom / 2)
    noise = polygamma(1, freedom / 2)
    typical = np.average(own, weights=freedom)
    spread = max(0.0, np.average((own - typical) ** 2 - noise, weights=freedom))
    result: np.ndarray = np.exp((noise * typical + spread * own) / (spread + noise) / 2)
    return result


def fit_check(z: np.ndarray, fitted_on: int, *, unseen: bool = True) -> dict[str, Any]:
    """The fields of a `FitCheck` of the z-scores of normal samples."""
    beyond = {f"{side}_{limit}": int((sign * z > limit).sum()) for side, sign in SIDES.items() for limit in (2, 3)}
    shape = {"mean": z.mean(), "std": z.std(ddof=1), "skewness": stats.skew(z)}
    return {"fitted_on": fitted_on, "normals": len(z), **beyond, **shape, "unseen": unseen}


SIDES = {"above": 1, "below": -1}
