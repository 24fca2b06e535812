"""What a detector saw, and where it found something."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core.errors import OptionError
from anomnorm_core.normalizer import BaseNormalizer, Normalizer
from anomnorm_core.plot.pictures import as_maps, as_rgb
from anomnorm_core.plot.style import FLAGGED, NORMALIZED_MAP, RAW_MAP, TRUTH, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EXTENT = (0.0, 1.0, 1.0, 0.0)  # images and maps of any size cover the same square


def maps(
    normalizer: BaseNormalizer,
    images: Any,
    anomaly_maps: Any,
    masks: Any = None,
    *,
    index: int | Sequence[int] | None = None,
    axes: Any = None,
) -> "tuple[Figure, np.ndarray]":
    """A row for each image: input, raw map, normalized map, and what is flagged, outlined in the image.

    All raw maps have one scale, from the smallest to the largest value shown; normalized maps have that from 0 to 1,
    whose middle is the threshold.

    Args:
        normalizer: of any of the packages, fitted with maps.
        images: (B, H, W), (B, C, H, W) or (B, H, W, C) of any array library, C = 1, 3 or 4; uint8, or floats from 0
            to 1 (others are spread over their range, each image for itself). Another height and width than the maps'
            are fine.
        anomaly_maps: raw maps (B, H, W), (B, 1, H, W) or (B, H, W, 1).
        masks: ground truth, above 0 where a pixel is anomalous, which is outlined too; shapes as of the maps, height
            and width may differ.
        index: which images of the batch, one or several; None: the first four.
        axes: to draw into, four for each row; None makes a figure.

    Returns:
        The figure and its axes, of shape (rows, 4).

    Raises:
        OptionError: an argument has another shape or length, or an index is not in the batch.
        NotFittedError, OutputError, ResolutionError: as in a call of the normalizer.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.ticker import MaxNLocator

    raw = to_host(anomaly_maps)
    shown = list(range(min(4, len(raw)))) if index is None else [int(each) for each in np.atleast_1d(index)]
    lengths = {"images": len(images), "anomaly_maps": len(raw)} | ({} if masks is None else {"masks": len(masks)})
    if len(set(lengths.values())) > 1:
        raise OptionError(f"there are {', '.join(f'{n} {name}' for name, n in lengths.items())}; give as many of each.")
    if not shown or not all(-len(raw) <= each < len(raw) for each in shown):
        raise OptionError(f"index={index!r} is not in a batch of {len(raw)}; give one or several from 0 on.")
    raw = raw[shown]
    result = Normalizer(normalizer.to_fit())(anomaly_maps=raw)
    pictures, raw = as_rgb(to_host(images)[shown]), as_maps(raw, "anomaly_maps")
    normalized, flagged = as_maps(result["anomaly_maps"], "anomaly_maps"), as_maps(result["pred_masks"], "pred_masks")
    truth = None if masks is None else as_maps(to_host(masks)[shown], "masks") > 0
    ratio = pictures.shape[1] / pictures.shape[2]
    figure, found = axes_of(axes, len(shown), 4, (10, 0.9 + 2.4 * len(shown) * ratio), "axes")
    low, high = range_of(raw)
    for row, (number, cells) in enumerate(zip(shown, found, strict=True)):
        cells[0].imshow(pictures[row], extent=_EXTENT)
        of_raw = cells[1].imshow(raw[row], cmap=RAW_MAP, vmin=low, vmax=high, extent=_EXTENT)
        of_normalized = cells[2].imshow(normalized[row], cmap=NORMALIZED_MAP, vmin=0, vmax=1, extent=_EXTENT)
        if row == len(shown) - 1:
            for cell, drawn, ticks in ((cells[1], of_raw, MaxNLocator(3)), (cells[2], of_normalized, [0, 0.5, 1])):
                bar = cell.inset_axes((0.1, -0.14, 0.8, 0.07))
                figure.colorbar(drawn, cax=bar, orientation="horizontal", ticks=ticks)
        cells[3].imshow(pictures[row], extent=_EXTENT)
        outline(cells[3], flagged[row], FLAGGED)
        if truth is not None:
            outline(cells[3], truth[row], TRUTH, linestyle="--")
        for cell in cells:
            cell.set(xticks=[], yticks=[], aspect=ratio, xlim=(0, 1), ylim=(1, 0))
        cells[0].set_ylabel(f"image {number % len(images)}")
    titles = ("input", "raw map", "normalized map", "flagged" + ("" if truth is None else " (truth dashed)"))
    for cell, title in zip(found[0], titles, strict=True):
        cell.set_title(title)
    return figure, found


def range_of(maps: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite pixel."""
    finite = maps[np.isfinite(maps)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def outline(axes: "Axes", mask: np.ndarray, color: str, linestyle: str = "-") -> None:
    """Draw a line around the pixels of a mask (H, W), through the middles of the edges between pixels."""
    if not mask.any():
        return
    height, width = mask.shape
    padded = np.pad(mask.astype(np.float64), 1)  # closes the line of what touches the border
    x, y = ((np.arange(-1, size + 1) + 0.5) / size for size in (width, height))
    axes.contour(x, y, padded, levels=[0.5], colors=[color], linewidths=1.6, linestyles=linestyle)
