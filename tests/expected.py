"""What thresholds and moments have to be, in NumPy float64 and by trying every candidate."""

import numpy as np


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
