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
            return {"all": self.scores[self.normal]}
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
    if labels is None:
        every = np.ones(x.size, dtype=bool)
        return Samples(x.ravel(), every, ~every, False)
    marks = to_host(labels)
    shape = x.shape[:1] if x.shape[1:] == (1,) else x.shape
    marks = np.broadcast_to(marks.reshape(label_axes(_flat(marks.shape), shape)), shape).ravel()
    return Samples(x.ravel(), marks == 0 if marks.dtype == bool else (marks >= 0) & ~(marks > 0), marks > 0, True)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Labels of shape (B, 1) as (B,)."""
    return shape[:1] if len(shape) == 2 and shape[1] == 1 else shape
