"""How raw and normalized scores are distributed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.fit import Fit
from anomnorm_core.methods import METHODS
from anomnorm_core.normalizer import BaseNormalizer, Normalizer
from anomnorm_core.plot.samples import Samples, read
from anomnorm_core.plot.style import (
    ANOMALOUS,
    INK,
    NORMAL,
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

_COLORS = {"normal": NORMAL, "anomalous": ANOMALOUS, "all": INK}
_SIGMAS = (0, 3, -3, 2, -2, 1, -1)  # those that come first are named where there is no room for all


def scores(
    normalizer: BaseNormalizer, pred_scores: Any, labels: Any = None, *, level: str = "image", ax: Any = None
) -> "tuple[Figure, np.ndarray]":
    """Histograms of raw scores and of the normalized ones, with the threshold and the fitted statistics.

    Each group has bars of its own, in percent of the group. The raw axis is logarithmic for methods that take the
    logarithm, and where the largest of positive scores would leave no room for the others. Named on top are the
    smallest and largest score that were fitted, or the mean of the fit and the deviations from it. Pixels that have
    parameters of their own have neither, and a band covers their thresholds.

    Args:
        normalizer: of any of the packages.
        pred_scores: raw scores (B,) or (B, 1) of any array library; with ``level="pixel"`` raw maps, of the shapes that
            normalizers take.
        labels: 0 for normal, above 0 for anomalous; below 0, or NaN: left out. (B,) or, of maps, masks of their shape.
        level: ``"image"`` or ``"pixel"``.
        ax: two axes to draw into; None makes a figure.

    Returns:
        The figure and its two axes, raw and normalized.

    Raises:
        OptionError: there is no score, the level is none, or ``ax`` does not hold two axes.
        ValueError: the labels do not belong to the scores.
        NotFittedError, OutputError, ResolutionError: as in a call of the normalizer.
        ModuleNotFoundError: matplotlib is not installed.
    """
    fit = normalizer.to_fit()
    threshold = fit.threshold(level)
    raw = to_host(pred_scores)
    samples = read(raw, labels)
    name = "pred_scores" if level == "image" else "anomaly_maps"
    values: dict[str, Any] = {name: raw}
    normalized = Normalizer(fit)(**values)[name]
    figure, axes = axes_of(ax, 1, 2, (10, 4.4))
    first, second = axes.flat
    is_log = has_log_axis(fit.method, samples.scores, threshold.raw)
    _histogram(first, samples, is_log=is_log)
    mark_threshold(first, threshold.raw, f"threshold {short(threshold)}")
    raw_axis(first, is_log=is_log, level=level)
    _name_statistics(first, statistics(fit, level), is_log=is_log)
    first.set_ylabel("share of each group (%)")
    _histogram(second, samples._replace(scores=normalized.ravel()), limits=(0.0, 1.0))
    mark_threshold(second, 0.5, "threshold 0.5")
    second.set(xlabel=f"normalized {level} score", ylabel="share of each group (%)", xlim=(-0.02, 1.02))
    for each, title in ((first, f"Raw {level} scores"), (second, f"Normalized {level} scores")):
        each.set_title(title, y=1.12)  # at one height, above the names of the statistics
        put_legend(each)
    return figure, axes.ravel()


def _histogram(
    axes: "Axes", samples: Samples, *, is_log: bool = False, limits: tuple[float, float] | None = None
) -> None:
    groups = samples.groups
    drawn = {name: values[np.isfinite(values) & ((values > 0) | (not is_log))] for name, values in groups.items()}
    every = np.concatenate([np.zeros(0), *drawn.values()])
    low, high = limits or ((float(every.min()), float(every.max())) if every.size else (1.0, 1.0))
    edges = _edges(low, high, every.size, is_log=is_log)
    for name, values in drawn.items():
        left_out = groups[name].size - values.size
        label = f"{name}, n = {groups[name].size}" + (f" ({left_out} cannot be drawn)" if left_out else "")
        of_group: dict[str, Any] = {"weights": np.full(values.size, 100 / groups[name].size), "color": _COLORS[name]}
        axes.hist(values, edges, histtype="stepfilled", alpha=0.35, **of_group)
        axes.hist(values, edges, histtype="step", linewidth=1.5, label=label, **of_group)


def _edges(low: float, high: float, count: int, *, is_log: bool) -> list[float]:
    bins = int(np.clip(np.sqrt(count), 10, 50))
    if low == high:
        low, high = (low / 1.5, high * 1.5) if is_log else (low - 0.5, high + 0.5)
    found: list[float] = (np.geomspace if is_log else np.linspace)(low, high, bins + 1).tolist()
    return found


def statistics(fit: Fit, level: str) -> dict[str, float]:
    """The raw scores at what was fitted of a level, by name, the most important first."""
    parameters = [array.astype(np.float64) for array in fit.level(level).parameters]
    if any(array.ndim for array in parameters):
        return {}
    raw_threshold = METHODS[fit.method.name].raw_threshold
    if raw_threshold is None:
        named = zip(fit.method.parameters, parameters, strict=True)
        return {name: float(value) for name, value in named if name in ("min", "max")}
    center = parameters[0]
    return {f"{t:+d}\u03c3" if t else "mean": float(raw_threshold(t, *parameters, center)) for t in _SIGMAS}


def _name_statistics(axes: "Axes", found: dict[str, float], *, is_log: bool) -> None:
    """Thin lines at what was fitted, named on top as far as there is room."""
    limits = axes.get_xlim()
    low, high = np.log(limits) if is_log else limits
    named: dict[float, str] = {}
    for name, value in found.items():
        if is_log and value <= 0:
            continue
        axes.axvline(value, color=INK, linewidth=0.8, linestyle=":", zorder=0)
        place = ((np.log(value) if is_log else value) - low) / (high - low)
        if all(abs(place - other) > 0.075 for other in named):
            named[place] = name
    axes.set_xlim(*limits)
    top = axes.secondary_xaxis("top")
    top.set_xticks([found[name] for name in named.values()], labels=list(named.values()))
    top.minorticks_off()
    top.tick_params(labelsize="small")
