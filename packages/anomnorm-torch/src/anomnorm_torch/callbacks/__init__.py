"""The Lightning callbacks, on ``pytorch_lightning.Callback``."""

from anomnorm_torch.callbacks.cdf_normalization import CdfNormalizationCallback
from anomnorm_torch.callbacks.heat_map_writer import HeatMapWriter
from anomnorm_torch.callbacks.min_max_normalization import MinMaxNormalizationCallback
from anomnorm_torch.callbacks.normalization import NormalizationCallback

__all__ = ["CdfNormalizationCallback", "HeatMapWriter", "MinMaxNormalizationCallback", "NormalizationCallback"]
