"""What a detector saw, and where it found something."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core.normalizer import BaseNormalizer
from anomnorm_core.plot.style import axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    Args:
        normalizer: of any of the packages, fitted with maps.
        images: (B, H, W), (B, C, H, W) or (B, H, W, C) of any array library, C = 1, 3 or 4; uint8, or floats from 0
            to 1 (others are spread over their range, each image for itself). Another height and width than the maps'
            are fine.
        anomaly_maps: raw maps (B, H, W), (B, 1, H, W) or (B, H, W, 1).
        masks: ground truth of the maps' height and width, above 0 where a pixel is anomalous; outlined too.
        index: which images of the batch, one or several; None: the first four.
        axes: to draw into, four for each row; None makes a figure.

    Returns:
        The figure and its axes, of shape (rows, 4).

    Raises:
        OptionError: an argument has another shape, or an index is not in the batch.
        NotFittedError, OutputError, ResolutionError: as in a call of the normalizer.
        ModuleNotFoundError: matplotlib is not installed.
    """
    count = 4 if index is None else np.size(index)
    figure, found = axes_of(axes, count, 4, (9, 2.3 * count), "axes")
    return figure, found
