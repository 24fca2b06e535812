"""One picture: raw and normalized scores of both methods with their threshold, and what the maps look like."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from data import Split
from evaluation import Result

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLORS = {"normal": "#4477aa", "anomalous": "#ee6677"}


def draw(results: list[Result], test: Split, path: Path) -> None:
    """Write the picture of ``results`` (of one detector, one for each method) to ``path``."""
    figure = plt.figure(figsize=(11, 8.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2.3))
    axes = top.subplots(2, 2)
    for row, result in zip(axes, results, strict=True):
        threshold = result.normalizer.thresholds["image"]
        sigmas = "" if threshold.sigmas is None else f", threshold at {threshold.sigmas:.2f} sigmas"
        _histogram(row[0], result, "raw_scores", float(threshold.raw), f"{result.method}: raw image scores{sigmas}")
        _histogram(row[1], result, "pred_scores", 0.5, f"{result.method}: normalized scores, 0.5 at the threshold")
    _triples(bottom.subplots(2, 9), results[-1], test)
    title = (
        f"input, raw map, and normalized map ({results[-1].method}; red is flagged) with the image's normalized score"
    )
    bottom.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _histogram(axes: Axes, result: Result, name: str, threshold: float, title: str) -> None:
    scores, labels = result.fields[name], result.test.labels
    bins = np.linspace(0, 1 if name == "pred_scores" else scores.max(), 41)
    for label, (word, color) in enumerate(COLORS.items()):
        axes.hist(scores[labels == label], bins, alpha=0.7, label=word, color=color)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}")
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("images")
    axes.legend(fontsize=8)


def _triples(axes: np.ndarray, result: Result, test: Split) -> None:
    known = len(test.masks)
    damaged = np.flatnonzero(test.labels[:known])[:3]
    chosen = [*damaged, known, known + 1, np.flatnonzero(test.labels == 0)[0]]
    words = ["damaged"] * 3 + ["other digit"] * 2 + ["normal"]
    raw, normalized = result.fields["raw_maps"], result.fields["anomaly_maps"]
    for i, (index, word) in enumerate(zip(chosen, words, strict=True)):
        cells = axes[i // 3, 3 * (i % 3) : 3 * (i % 3) + 3]
        cells[0].imshow(test.images[index, 0], cmap="gray", vmin=0, vmax=1)
        cells[1].imshow(raw[index, 0], cmap="viridis", vmin=0, vmax=raw[chosen].max())
        cells[2].imshow(normalized[index, 0], cmap="RdBu_r", vmin=0, vmax=1)
        cells[0].set_title(word, fontsize=8)
        cells[1].set_title("raw", fontsize=8)
        cells[2].set_title(f"image score {result.fields['pred_scores'][index]:.2f}", fontsize=8)
    for cell in axes.ravel():
        cell.set_axis_off()
