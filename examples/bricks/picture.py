"""One picture: what raw and normalized maps look like, and the scores of all test images with their threshold."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from data import DEFECTS
from evaluation import Result

from anomnorm_core import plot

mpl.use("Agg")
import matplotlib.pyplot as plt


def draw(result: Result, path: Path) -> None:
    """Write the picture of ``result`` to ``path``: a patch with each defect, a normal one, and two histograms."""
    patches, scores = result.test, result.fields["pred_scores"]
    kinds = np.array([name.split("/")[0] for name in patches.name])
    # Of each kind the patch whose score is in the middle.
    chosen = []
    for kind in (*DEFECTS, "normal"):
        of_kind = np.flatnonzero(kinds == kind)
        chosen.append(of_kind[np.argsort(scores[of_kind])[len(of_kind) // 2]])

    figure = plt.figure(figsize=(10, 10), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(6.9, 3.1))
    axes = top.subplots(len(chosen), 5)
    raw_maps, others = result.fields["anomaly_maps_raw"], axes[:, [0, 2, 3, 4]]
    plot.maps(result.normalizer, patches.image, raw_maps, index=chosen, axes=others)
    for row, index, kind in zip(axes, chosen, (*DEFECTS, "normal"), strict=True):
        row[0].set_ylabel(f"{kind.replace('-', ' ')}\nscore {scores[index]:.2f}")
        row[1].imshow(patches.mask[index], cmap="gray", vmin=0, vmax=1)
        row[1].set(xticks=[], yticks=[])
    axes[0, 1].set_title("ground truth")
    result.normalizer.plot(result.fields["pred_scores_raw"], patches.label, ax=bottom.subplots(1, 2))
    figure.savefig(path, dpi=100)
    plt.close(figure)
