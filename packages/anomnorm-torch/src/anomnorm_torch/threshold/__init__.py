"""Thresholds: the decision rule (`flag`), and where thresholds come from.

A number of one's own (`manual`); image scores, exactly (`adaptive`, `normal_quantile`); or the pixels of any number of
maps, from a histogram of fixed size: ``record = init()``, ``record = update(record, maps, masks)`` per batch, then
`streamed_adaptive`, `streamed_normal_quantile` or `streamed_quantile`.
"""

from anomnorm_core.policy import manual
from anomnorm_torch.threshold.decision import flag
from anomnorm_torch.threshold.exact import adaptive, normal_quantile
from anomnorm_torch.threshold.streamed import (
    ScoreHistogram,
    init,
    merge,
    streamed_adaptive,
    streamed_normal_quantile,
    streamed_quantile,
    update,
)

__all__ = [
    "ScoreHistogram",
    "adaptive",
    "flag",
    "init",
    "manual",
    "merge",
    "normal_quantile",
    "streamed_adaptive",
    "streamed_normal_quantile",
    "streamed_quantile",
    "update",
]
