"""The callbacks for ``lightning.pytorch``, whose ``Callback`` is another class than that of ``pytorch_lightning``."""

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BasePredictionWriter

from anomnorm_torch.callback import Normalization
from anomnorm_torch.heat_map_writer import HeatMapWriting
from anomnorm_torch.mixin import NormalizationMixin
from anomnorm_torch.named_callbacks import CdfNormalization, MinMaxNormalization

__all__ = [
    "CdfNormalizationCallback",
    "HeatMapWriter",
    "MinMaxNormalizationCallback",
    "NormalizationCallback",
    "NormalizationMixin",
]


class NormalizationCallback(Normalization, Callback):  # noqa: D101  # its docstring is copied
    __doc__ = Normalization.__doc__

    other_import = "from anomnorm_torch import NormalizationCallback"


class MinMaxNormalizationCallback(MinMaxNormalization, NormalizationCallback):  # noqa: D101  # its docstring is copied
    __doc__ = MinMaxNormalization.__doc__

    other_import = "from anomnorm_torch import MinMaxNormalizationCallback"


class CdfNormalizationCallback(CdfNormalization, NormalizationCallback):  # noqa: D101  # its docstring is copied
    __doc__ = CdfNormalization.__doc__

    other_import = "from anomnorm_torch import CdfNormalizationCallback"


class HeatMapWriter(HeatMapWriting, BasePredictionWriter):  # noqa: D101  # its docstring is copied
    __doc__ = HeatMapWriting.__doc__
