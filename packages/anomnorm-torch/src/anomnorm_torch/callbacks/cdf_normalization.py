"""CDF normalization of anomaly scores in a training loop of ``pytorch_lightning``."""

from anomnorm_torch.callback import logger
from anomnorm_torch.callbacks.normalization import NormalizationCallback
from anomnorm_torch.named_callbacks import CdfNormalization

__all__ = ["CdfNormalizationCallback", "logger"]


class CdfNormalizationCallback(CdfNormalization, NormalizationCallback):  # noqa: D101  # its docstring is copied
    __doc__ = CdfNormalization.__doc__

    other_import = "from anomnorm_torch.lightning import CdfNormalizationCallback"
