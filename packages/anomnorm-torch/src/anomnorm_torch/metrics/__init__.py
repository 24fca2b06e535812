"""The statistics as torchmetrics: streaming, mergeable, and part of a module's state dict.

Both metrics hold two levels: image scores and, where a detector has them, anomaly maps. Their state names are those of
the founding implementation where it had them (``min``, ``max``, ``image_mean``, ``pixel_mean``; ``image_std`` and
``pixel_std`` are written beside them), so that its checkpoints load (clause L6).
"""

from anomnorm_torch.metrics._base import NormalizationMetric
from anomnorm_torch.metrics._thresholds import LEVELS, Level
from anomnorm_torch.metrics.min_max import MinMax
from anomnorm_torch.metrics.score_distribution import AnomalyScoreDistribution

__all__ = ["LEVELS", "AnomalyScoreDistribution", "Level", "MinMax", "NormalizationMetric"]
