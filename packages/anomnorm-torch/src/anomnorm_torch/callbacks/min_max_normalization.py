"""Min-max normalization of anomaly scores in a training loop of ``pytorch_lightning``."""

from anomnorm_torch.callbacks.normalization import NormalizationCallback
from anomnorm_torch.named_callbacks import MinMaxNormalization


class MinMaxNormalizationCallback(MinMaxNormalization, NormalizationCallback):  # noqa: D101  # its docstring is copied
    __doc__ = MinMaxNormalization.__doc__

    other_import = "from anomnorm_torch.lightning import MinMaxNormalizationCallback"
