"""Whether normals are flagged as often as promised."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core.errors import OptionError
from anomnorm_core.fit import Fit
from anomnorm_core.normalizer import BaseNormalizer
from anomnorm_core.plot.samples import read, share_reaching
from anomnorm_core.plot.style import INK, NORMAL, axes_of, plain_numbers, put_legend, short, text_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CONFIDENCE = 0.95  # at each threshold for itself


def false_alarms(
    normalizer: BaseNormalizer, pred_scores: Any, labels: Any = None, *, ax: Any = None
) -> "tuple[Figure, Axes]":
    """Promised against observed false-alarm rates of normals, over all thresholds, with what chance explains.

    ``normalizer.false_alarm_rate`` of each distinct score against the share of normals that reach it. Within the band
    lie 95% of the observed rates of so many normals at a threshold, where the fit has no fault but its uncertainty: it
    knows mean and deviation from its own samples alone. Above it there are more false alarms than promised.

    Args:
        normalizer: of any of the packages.
        pred_scores: raw image scores (B,) or (B, 1) of any array library, of samples that nothing was fitted on; NaN is
            never flagged.
        labels: (B,): 0 for normal, others are left out. None: all are normal.
        ax: the axes to draw into; None makes a figure.

    Returns:
        The figure and its axes.

    Raises:
        NotFittedError: nothing is known about normal samples, see `Normalizer.false_alarm_rate`.
        OptionError: there is no normal sample with a finite score.
        ValueError: the labels do not belong to the scores.
        ModuleNotFoundError: matplotlib is not installed.
    """
    fit = normalizer.to_fit()
    samples = read(pred_scores, labels)
    normals = samples.scores[samples.normal]
    at = np.unique(normals[np.isfinite(normals)])
    if not at.size:
        raise OptionError(
            f"none of {samples.scores.size} samples is a normal one with a finite score; give scores of normal "
            "samples, with labels of 0 or without."
        )
    promised, observed = fit.false_alarm_rate(at.astype(np.float64)), share_reaching(normals, at)
    figure, axes = axes_of(ax, 1, 1, (5.8, 5.6))
    cell: Axes = axes[0, 0]
    least = min(0.5 / normals.size, 0.1)
    grid = np.geomspace(least, 1, 80)
    low, high = band(grid, fit, normals.size)
    cell.fill_between(100 * grid, 100 * low, 100 * high, color=INK, alpha=0.22, linewidth=0, label="chance (95%)")
    cell.plot([100 * least, 100], [100 * least, 100], color=INK, linewidth=1, linestyle="--", label="as promised")
    label = f"normals, n = {normals.size}"
    rates = np.append(promised, promised[-1]), np.append(observed, 0.0)  # above the largest score
    cell.plot(100 * rates[0], 100 * rates[1], color=NORMAL, linewidth=1.8, drawstyle="steps-pre", label=label)
    threshold = fit.thresholds["image"]
    if threshold.false_alarm_rate is not None:
        here = float(share_reaching(normals, threshold.raw))
        said = f"{100 * threshold.false_alarm_rate:.2g}% promised, {100 * here:.2g}% observed"
        place = 100 * max(threshold.false_alarm_rate, least), 100 * max(here, least)  # at the edge, not outside
        label = f"threshold {short(threshold)}:\n{said}"
        cell.plot(*place, "o", markersize=7, color=text_color(), clip_on=False, label=label)
    cell.set(xscale="log", yscale="log", xlim=(100 * least, 100), ylim=(100 * least, 130))
    cell.set(xlabel="promised false-alarm rate (%)", ylabel="observed false-alarm rate (%)", title="False alarms")
    for axis in (cell.xaxis, cell.yaxis):
        plain_numbers(axis)
    put_legend(cell)
    return figure, cell


def band(rate: np.ndarray, fit: Fit, normals: int) -> tuple[np.ndarray, np.ndarray]:
    """Between which shares of ``normals`` the observed rate lies by chance, where ``rate`` is promised.

    How many of the normals are flagged has a binomial distribution, of a rate that itself is uncertain: ``fit`` knows
    mean and deviation of a normal distribution from the samples that it was fitted on.

    Args:
        rate: promised, float64 of shape (N,).
        fit: what promises it.
        normals: how many.

    Returns:
        The smallest and the largest share within the band, each (N,).
    """
    from scipy.special import bdtr, chdtri, ndtr, ndtri, stdtrit

    image = fit.level("image")
    if fit.method.sigmas:
        share, fitted_on = 1 - float(image.known_zeros), image.valid
    else:
        share, fitted_on = (1.0, 0) if image.normals is None else (image.normals.share, image.normals.valued)
    own = np.minimum(rate / share, 1 - 1e-9)[:, None]
    if fitted_on > 1:
        probable = (np.arange(24) + 0.5) / 24  # midpoints of equally probable pieces of what the estimates can be
        deviation = np.sqrt(chdtri(fitted_on - 1, probable) / (fitted_on - 1))[:, None]
        mean = ndtri(probable) / np.sqrt(fitted_on)
        z = -stdtrit(fitted_on - 1, own) * np.sqrt(1 + 1 / fitted_on)
        true = share * ndtr(-(mean + z[..., None] * deviation)).reshape(len(rate), -1)
    else:
        true = share * own
    tail = (1 - _CONFIDENCE) / 2
    low = _smallest(lambda k: bdtr(k[:, None], normals, true).mean(axis=1) >= tail, len(rate), normals)
    high = _smallest(lambda k: bdtr(k[:, None], normals, true).mean(axis=1) >= 1 - tail, len(rate), normals)
    return low / normals, high / normals


def _smallest(holds: Callable[[np.ndarray], np.ndarray], size: int, most: int) -> np.ndarray:
    """The smallest whole number up to ``most`` from which on ``holds``, for each of ``size`` questions."""
    low, high = np.zeros(size, dtype=np.int64), np.full(size, most)
    while np.any(low < high):
        middle = (low + high) // 2
        yes = holds(middle)
        low, high = np.where(yes, low, middle + 1), np.where(yes, middle, high)
    return high
