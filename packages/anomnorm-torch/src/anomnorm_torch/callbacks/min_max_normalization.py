"""Min-max normalization of anomaly scores in a training loop of ``pytorch_lightning``."""

from pytorch_lightning import Callback

from anomnorm_torch.life_cycle import MinMaxNormalization


class MinMaxNormalizationCallback(MinMaxNormalization, Callback):  # noqa: D101  # its docstring is copied
    __doc__ = MinMaxNormalization.__doc__

    other_import = "from anomnorm_torch.lightning import MinMaxNormalizationCallback"
