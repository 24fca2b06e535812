"""What thresholds and moments have to be, in NumPy float64 and by trying every candidate."""

from typing import Any

import numpy as np
from scipy import stats


def f1(flagged: np.ndarray, truth: np.ndarray) -> float:
    hits = (flagged & truth).sum()
    return 2 * hits / (flagged.sum() + truth.sum())


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The largest among the candidates of the best F1."""
    candidates = np.unique(scores[truth])
    values = [f1(scores >= candidate, truth) for candidate in candidates]
    return float(max(c for c, value in zip(candidates, values, strict=True) if value == max(values)))


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the logarithm over the first axis."""
    logs = np.log(values.astype("f8"))
    return logs.mean(axis=0), logs.std(axis=0, ddof=1)


def fit_check(z: np.ndarray, fitted_on: int, *, unseen: bool = True) -> dict[str, Any]:
    """The fields of a `FitCheck` of the z-scores of normal samples."""
    beyond = {f"{side}_{limit}": int((sign * z > limit).sum()) for side, sign in SIDES.items() for limit in (2, 3)}
    shape = {"mean": z.mean(), "std": z.std(ddof=1), "skewness": stats.skew(z)}
    return {"fitted_on": fitted_on, "normals": len(z), **beyond, **shape, "unseen": unseen}


SIDES = {"above": 1, "below": -1}
