"""What every other threshold would have given."""

from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core.errors import OptionError
from anomnorm_core.normalizer import BaseNormalizer
from anomnorm_core.plot.samples import Samples, read, share_reaching
from anomnorm_core.plot.style import (
    ANOMALOUS,
    F1,
    NORMAL,
    PRECISION,
    axes_of,
    has_log_axis,
    mark_threshold,
    put_legend,
    raw_axis,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: dict[str, dict[str, Any]] = {
    "F1": {"color": F1, "linestyle": "-", "linewidth": 2.2},
    "precision": {"color": PRECISION, "linestyle": "--", "linewidth": 1.4},
    "recall": {"color": ANOMALOUS, "linestyle": "-.", "linewidth": 1.4},
    "false-alarm rate": {"color": NORMAL, "linestyle": ":", "linewidth": 1.8},
}
_COLUMNS = 1000  # more points than that are not seen, and make large files


def thresholds(normalizer: BaseNormalizer, pred_scores: Any, labels: Any, *, ax: Any = None) -> "tuple[Figure, Axes]":
    """F1, precision, recall and false-alarm rate against the threshold, with the chosen one and that of the best F1.

    They are those of all distinct scores as thresholds, with the rule ``score >= threshold``; of more than 2000, what
    differs by less than a thousandth of the axis is drawn as one.

    Args:
        normalizer: of any of the packages.
        pred_scores: raw image scores (B,) or (B, 1) of any array library; NaN is never flagged.
        labels: (B,): 0 for normal, above 0 for anomalous; below 0, or NaN: left out.
        ax: the axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        OptionError: there is not at least one normal and one anomalous sample, or none has a finite score.
        ValueError: the labels do not belong to the scores.
        ModuleNotFoundError: matplotlib is not installed.
    """
    fit = normalizer.to_fit()
    chosen = fit.threshold("image")
    samples = read(pred_scores, labels)
    found = np.unique(samples.scores[samples.normal | samples.anomalous])
    found = found[np.isfinite(found)]
    if not (samples.normal.any() and samples.anomalous.any() and found.size):
        raise OptionError(
            f"of {samples.scores.size} samples {int(samples.normal.sum())} are labelled normal and "
            f"{int(samples.anomalous.sum())} anomalous; at least one of each is needed, with finite scores among them."
        )
    figure, axes = axes_of(ax, 1, 1, (7.5, 4.6))
    cell: Axes = axes[0, 0]
    curves, here = rates(samples, found), rates(samples, chosen.raw)
    best = found.size - 1 - int(np.argmax(curves["F1"][::-1]))
    is_log = has_log_axis(fit.method, samples.scores, chosen.raw)
    kept = _kept(np.log(np.maximum(found, np.finfo(found.dtype).tiny)) if is_log else found, best)
    for name, style in _LINES.items():
        label = f"{name}, {100 * float(here[name]):.3g}% at the threshold"
        cell.plot(found[kept], 100 * curves[name][kept], drawstyle="steps-pre", label=label, **style)
        cell.plot(chosen.raw, 100 * here[name], marker="o", markersize=5, color=style["color"])
    mark_threshold(cell, chosen.raw, f"threshold {short(chosen)}")
    label = f"best F1, {100 * curves['F1'][best]:.3g}% at {found[best]:.4g}"
    cell.plot(
        found[best], 100 * curves["F1"][best], "D", markersize=8, fillstyle="none", color=F1, label=label, zorder=3
    )
    raw_axis(cell, is_log=is_log)
    cell.set(ylabel="percent", ylim=(-3, 103), title="What each threshold gives")
    put_legend(cell)
    return figure, cell


def rates(samples: Samples, at: np.ndarray) -> dict[str, np.ndarray]:
    """F1, precision, recall and false-alarm rate of thresholds; precision is NaN where nothing is flagged."""
    normals, anomalies = samples.scores[samples.normal], samples.scores[samples.anomalous]
    false_alarms, recall = share_reaching(normals, at), share_reaching(anomalies, at)
    hits, flagged = recall * anomalies.size, recall * anomalies.size + false_alarms * normals.size
    with np.errstate(invalid="ignore"):
        precision = hits / flagged
    f1 = 2 * hits / (anomalies.size + flagged)
    return {"F1": f1, "precision": precision, "recall": recall, "false-alarm rate": false_alarms}


def _kept(x: np.ndarray, best: int) -> np.ndarray:
    """Which points to draw: of those in one column of the picture the first and the last."""
    if x.size <= 2 * _COLUMNS:
        return np.arange(x.size)
    x = x.astype(np.float64)
    column = np.floor((x - x[0]) / (x[-1] - x[0]) * _COLUMNS)
    new = np.flatnonzero(np.diff(column)) + 1
    return np.unique(np.concatenate([[0, best, x.size - 1], new, new - 1]))
