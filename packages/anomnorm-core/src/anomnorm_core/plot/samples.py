"""Scores and labels as pictures take them: read into NumPy, and parted into normals and anomalies."""

from typing import Any, NamedTuple

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.checks import label_axes
from anomnorm_core.errors import OptionError


class Samples(NamedTuple):
    """Raw scores, and which of them are of normal and which of anomalous samples."""

    scores: np.ndarray  # (N,) float32 or float64
    normal: np.ndarray  # (N,) bool; all, where nothing is labelled
    anomalous: np.ndarray  # (N,) bool
    is_labelled: bool

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """The scores by the name of their group, without empty groups."""
        if not self.is_labelled:
            return {"all": self.scores}
        found = {"normal": self.scores[self.normal], "anomalous": self.scores[self.anomalous]}
        return {name: values for name, values in found.items() if values.size}


def read(pred_scores: Any, labels: Any = None) -> Samples:
    """Scores of any library, with labels for each of them or for each sample.

    Args:
        pred_scores: real array; half types become float32, integers float64.
        labels: 0 for normal, above 0 for anomalous; below 0, or NaN: left out. None: nothing is known.

    Raises:
        OptionError: there are no scores.
        ValueError: the labels do not belong to the scores.
    """
    x = to_host(pred_scores)
    x = x if x.dtype == np.float64 else x.astype(np.float32 if x.dtype.kind == "f" else np.float64)
    if x.size == 0:
        raise OptionError("pred_scores is empty; give at least one score.")
    x = x.ravel() if x.ndim == 2 and x.shape[1] == 1 else x
    if labels is None:
        every = np.ones(x.size, dtype=bool)
        return Samples(x.ravel(), every, ~every, is_labelled=False)
    marks = to_host(labels)
    marks = marks.ravel() if marks.ndim == 2 and marks.shape[1] == 1 else marks
    marks = np.broadcast_to(marks.reshape(label_axes(marks.shape, x.shape)), x.shape).ravel()
    return Samples(x.ravel(), marks == 0, marks > 0, is_labelled=True)


def share_reaching(scores: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """The share of scores at or above each threshold; NaN is never flagged, but counts."""
    known = np.sort(scores[~np.isnan(scores)])
    reaching = known.size - np.searchsorted(known, np.asarray(thresholds, dtype=scores.dtype))
    found: np.ndarray = reaching / max(scores.size, 1)
    return found
