"""How raw and normalized scores are distributed."""

from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.fit import Fit
from anomnorm_core.methods import METHODS
from anomnorm_core.normalizer import BaseNormalizer, Normalizer
from anomnorm_core.plot.samples import Samples, read
from anomnorm_core.plot.style import ANOMALOUS, NORMAL, UNLABELLED, axes_of, mark_threshold, put_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"normal": NORMAL, "anomalous": ANOMALOUS, "all": UNLABELLED}
_SIGMAS = (0, 3, -3, 2, -2, 1, -1)  # what is named first


def scores(
    normalizer: BaseNormalizer, pred_scores: Any, labels: Any = None, *, level: str = "image", ax: Any = None
) -> "tuple[Figure, np.ndarray]":
    """Histograms of raw scores and of the normalized ones, with the threshold and the fitted statistics.

    Each group has bars of its own, in percent of the group. The raw axis is logarithmic for methods that take the
    logarithm. Named on top are the smallest and largest score that were fitted, or the mean of the fit and the
    deviations from it; of pixels that have parameters of their own neither, and a band covers their thresholds.

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
        NotFittedError, OutputError, ResolutionError: as in a call of the normalizer.
        ModuleNotFoundError: matplotlib is not installed.
    """
    fit = normalizer.to_fit()
    raw = to_host(pred_scores)
    threshold = fit.thresholds[level] if level in fit.thresholds else fit.threshold(level)
    name = "pred_scores" if level == "image" else "anomaly_maps"
    normalized = Normalizer(fit)(**{name: raw})[name]
    samples = read(raw, labels)
    figure, axes = axes_of(ax, 1, 2, (10, 4.2))
    first, second = axes.flat
    sigmas = "" if threshold.sigmas is None else f" ({threshold.sigmas:.3g} sigmas)"
    _histogram(first, samples, is_log=fit.method.positive)
    mark_threshold(first, threshold.raw, f"threshold {_number(threshold.raw)}{sigmas}, {threshold.origin}")
    _name_statistics(first, fit, level)
    first.set(xlabel=f"raw {level} score", ylabel="share of each group (%)", title=f"Raw {level} scores")
    _histogram(second, samples._replace(scores=normalized.ravel()), is_log=False, limits=(0.0, 1.0))
    mark_threshold(second, 0.5, "threshold 0.5")
    second.set(xlabel=f"normalized {level} score", title=f"Normalized {level} scores", xlim=(-0.02, 1.02))
    for each in (first, second):
        put_legend(each)
    return figure, axes.ravel()


def _number(raw: np.ndarray) -> str:
    low, high = float(np.min(raw)), float(np.max(raw))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _histogram(axes: "Axes", samples: Samples, *, is_log: bool, limits: tuple[float, float] | None = None) -> None:
    groups = samples.groups
    drawn = {name: values[np.isfinite(values) & ((values > 0) | (not is_log))] for name, values in groups.items()}
    every = np.concatenate([np.zeros(0), *drawn.values()])
    if every.size:
        low, high = (float(every.min()), float(every.max())) if limits is None else limits
        edges = _edges(low, high, every.size, is_log=is_log)
        for name, values in drawn.items():
            left_out = groups[name].size - values.size
            label = f"{name}, n = {groups[name].size}" + (f" ({left_out} not drawable)" if left_out else "")
            weights = np.full(values.size, 100 / max(groups[name].size, 1))
            color = _COLORS[name]
            axes.hist(values, edges, weights=weights, histtype="stepfilled", color=color, alpha=0.35)
            axes.hist(values, edges, weights=weights, histtype="step", color=color, linewidth=1.5, label=label)
    if is_log:
        axes.set_xscale("log")


def _edges(low: float, high: float, count: int, *, is_log: bool) -> np.ndarray:
    bins = int(np.clip(np.sqrt(count), 10, 50))
    if low == high:
        low, high = (low / 1.5, high * 1.5) if is_log else (low - 0.5, high + 0.5)
    return np.geomspace(low, high, bins + 1) if is_log else np.linspace(low, high, bins + 1)


def _name_statistics(axes: "Axes", fit: Fit, level: str) -> None:
    """Thin lines at what was fitted, named on top as far as there is room."""
    found = statistics(fit, level)
    low, high = axes.get_xlim()
    for value in found.values():
        axes.axvline(value, color=UNLABELLED, linewidth=0.8, linestyle=":")
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(found.values()), labels=list(found))
    top.minorticks_off()
    axes.set_xlim(low, high)


def statistics(fit: Fit, level: str) -> dict[str, float]:
    """The raw scores at what was fitted of a level, by name, the most important first."""
    parameters = fit.level(level).parameters
    if any(array.ndim for array in parameters):
        return {}
    kernels = METHODS[fit.method.name]
    own = [array.astype(np.float64) for array in parameters]
    if kernels.raw_threshold is not None:
        at = {f"{t:+d}σ" if t else "mean": float(kernels.raw_threshold(float(t), *own, own[0])) for t in _SIGMAS}
        return at
    return {n: float(v) for n, v in zip(fit.method.parameters, own, strict=True) if n in ("min", "max")}
