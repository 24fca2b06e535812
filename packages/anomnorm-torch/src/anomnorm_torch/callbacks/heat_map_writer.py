"""Heat maps from test and prediction of ``pytorch_lightning``."""

from pytorch_lightning.callbacks import BasePredictionWriter

from anomnorm_torch.heat_map_writer import HeatMapWriting


class HeatMapWriter(HeatMapWriting, BasePredictionWriter):  # noqa: D101  # its docstring is copied
    __doc__ = HeatMapWriting.__doc__
