"""CDF normalization of anomaly scores in a training loop of ``pytorch_lightning``."""

from pytorch_lightning import Callback

from anomnorm_torch.life_cycle import CdfNormalization
from anomnorm_torch.life_cycle.cdf import logger

__all__ = ["CdfNormalizationCallback", "logger"]


class CdfNormalizationCallback(CdfNormalization, Callback):  # noqa: D101  # its docstring is copied
    __doc__ = CdfNormalization.__doc__

    other_import = "from anomnorm_torch.lightning import CdfNormalizationCallback"
