"""A report about a normalizer and the scores that it judges: one HTML file that needs no network and no script."""

import os
from collections.abc import Sequence
from typing import Any

from anomnorm_core.normalizer import BaseNormalizer


def write_report(
    path: str | os.PathLike[str],
    normalizer: BaseNormalizer,
    pred_scores: Any = None,
    labels: Any = None,
    *,
    anomaly_maps: Any = None,
    images: Any = None,
    masks: Any = None,
    names: Sequence[Any] | None = None,
    title: str = "Normalization report",
) -> None:
    """Write a page about ``normalizer`` and, where given, about scores. It appears complete or not at all.

    Args:
        path: of the file, which ends in ``.html`` by custom; an old one is replaced.
        normalizer: of any of the packages.
        pred_scores: raw image scores of shape (N,) or (N, 1); without them, the maximum of each map. None without maps:
            the page says what the fit alone says.
        labels: shape (N,): 0 for normal, above 0 for anomalous; below 0 or NaN to ignore.
        anomaly_maps: raw maps of shape (N, H, W), (N, 1, H, W) or (N, H, W, 1).
        images: what was scored, shown beside the maps: (N, H, W), or with 1, 3 or 4 channels first or last.
        masks: ground truth of the pixels, of the shape of the maps.
        names: of the samples, N of them; None: their numbers, from 0 on.
        title: of the page.

    Raises:
        OptionError: something has not one entry for each score, or has no values that can be shown.
        OutputError, ResolutionError: as a call of the normalizer.
        OSError: the file cannot be written; an old one stays.
    """
    raise NotImplementedError
