"""Thresholds: the decision rule (`flag`), and where thresholds come from.

Image scores, exactly (`adaptive`, `normal_quantile`, `false_alarm_rate`); or the pixels of any number of maps, from a
histogram of fixed size: ``record = init()``, ``record = update(record, maps, masks)`` per batch, then
`streamed_adaptive`, `streamed_normal_quantile`, `streamed_false_alarm_rate` or `streamed_quantile`. The search runs on
the host, in NumPy, for all packages.
"""

from anomnorm_core.threshold.decision import flag
from anomnorm_core.threshold.histogram import ScoreHistogram, init, merge, update
from anomnorm_core.threshold.search import (
    Found,
    adaptive,
    false_alarm_rate,
    normal_quantile,
    streamed_adaptive,
    streamed_false_alarm_rate,
    streamed_normal_quantile,
    streamed_quantile,
)

__all__ = [
    "Found",
    "ScoreHistogram",
    "adaptive",
    "false_alarm_rate",
    "flag",
    "init",
    "merge",
    "normal_quantile",
    "streamed_adaptive",
    "streamed_false_alarm_rate",
    "streamed_normal_quantile",
    "streamed_quantile",
    "update",
]
