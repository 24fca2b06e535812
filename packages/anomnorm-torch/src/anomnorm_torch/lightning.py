"""The callbacks for ``lightning.pytorch``, whose ``Callback`` is another class than that of ``pytorch_lightning``."""

from lightning.pytorch import Callback

from anomnorm_torch.life_cycle import CdfNormalization, MinMaxNormalization

__all__ = ["CdfNormalizationCallback", "MinMaxNormalizationCallback"]


class MinMaxNormalizationCallback(MinMaxNormalization, Callback):  # noqa: D101  # its docstring is copied
    __doc__ = MinMaxNormalization.__doc__

    other_import = "from anomnorm_torch import MinMaxNormalizationCallback"


class CdfNormalizationCallback(CdfNormalization, Callback):  # noqa: D101  # its docstring is copied
    __doc__ = CdfNormalization.__doc__

    other_import = "from anomnorm_torch import CdfNormalizationCallback"
