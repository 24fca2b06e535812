"""Thresholds: the decision rule (`flag`), and where thresholds come from.

Image scores, exactly (`adaptive`, `normal_quantile`); or the pixels of any number of maps, from a histogram of fixed
size: ``record = init()``, ``record = update(record, maps, masks)`` per batch, then `streamed_adaptive`,
`streamed_normal_quantile` or `streamed_quantile`. The search runs on the host, in NumPy, for all packages.
"""

from anomnorm_core.threshold.decision import flag
from anomnorm_core.threshold.histogram import ScoreHistogram, init, merge, update
from anomnorm_core.threshold.search import (
    adaptive,
    normal_quantile,
    streamed_adaptive,
    streamed_normal_quantile,
    streamed_quantile,
)

__all__ = [
    "ScoreHistogram",
    "adaptive",
    "flag",
    "init",
    "merge",
    "normal_quantile",
    "streamed_adaptive",
    "streamed_normal_quantile",
    "streamed_quantile",
    "update",
]
