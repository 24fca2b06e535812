"""What every other threshold would have given."""

from typing import TYPE_CHECKING, Any

from anomnorm_core.normalizer import BaseNormalizer
from anomnorm_core.plot.samples import read
from anomnorm_core.plot.style import ANOMALOUS, F1, NORMAL, PRECISION, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {
    "F1": (F1, "-", 2.2),
    "precision": (PRECISION, "--", 1.4),
    "recall": (ANOMALOUS, "-.", 1.4),
    "false-alarm rate": (NORMAL, ":", 1.8),
}


def thresholds(normalizer: BaseNormalizer, pred_scores: Any, labels: Any, *, ax: Any = None) -> "tuple[Figure, Axes]":
    """F1, precision, recall and false-alarm rate against the threshold, with the chosen one marked.

    Args:
        normalizer: of any of the packages.
        pred_scores: raw image scores (B,) or (B, 1) of any array library; NaN is never flagged.
        labels: (B,): 0 for normal, above 0 for anomalous; below 0, or NaN: left out.
        ax: the axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        OptionError: there is no score, or not at least one normal and one anomalous sample.
        ModuleNotFoundError: matplotlib is not installed.
    """
    fit = normalizer.to_fit()
    samples = read(pred_scores, labels)
    figure, axes = axes_of(ax, 1, 1, (7.5, 4.4))
    return figure, axes[0, 0]
