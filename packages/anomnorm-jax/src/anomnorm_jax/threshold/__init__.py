"""Thresholds: the decision rule (`flag`), and where thresholds come from. See `anomnorm_core.threshold`.

The histogram is filled on the device. The search runs on the host, in NumPy, for all packages: it takes this package's
arrays and histograms, outside of ``jax.jit``.
"""

from anomnorm_core.threshold import (
    Found,
    adaptive,
    false_alarm_rate,
    normal_quantile,
    streamed_adaptive,
    streamed_false_alarm_rate,
    streamed_normal_quantile,
    streamed_quantile,
)
from anomnorm_jax.threshold.decision import flag
from anomnorm_jax.threshold.histogram import ScoreHistogram, init, merge, update

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
