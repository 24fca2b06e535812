"""Normalization of anomaly scores by any method in a training loop of ``pytorch_lightning``."""

from pytorch_lightning import Callback

from anomnorm_torch.callback import Normalization


class NormalizationCallback(Normalization, Callback):  # noqa: D101  # its docstring is copied
    __doc__ = Normalization.__doc__

    other_import = "from anomnorm_torch.lightning import NormalizationCallback"
