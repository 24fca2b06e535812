"""Anomaly scores that mean something, for PyTorch Lightning: callbacks, metrics and the functions behind them."""

from typing import TYPE_CHECKING

from anomnorm_core._lazy import lazily
from anomnorm_torch import threshold
from anomnorm_torch._version import __version__
from anomnorm_torch.methods import cdf, min_max, normal, register, two_slope
from anomnorm_torch.normalizer import Normalizer

if TYPE_CHECKING:
    from anomnorm_core import HeatMapFolder, plot, write_heat_maps
    from anomnorm_torch.anomalib_checkpoint import from_anomalib
    from anomnorm_torch.callbacks import (
        CdfNormalizationCallback,
        HeatMapWriter,
        MinMaxNormalizationCallback,
        NormalizationCallback,
    )
    from anomnorm_torch.metrics import AnomalyScoreDistribution, MinMax
    from anomnorm_torch.mixin import NormalizationMixin

__all__ = [
    "AnomalyScoreDistribution",
    "CdfNormalizationCallback",
    "HeatMapFolder",
    "HeatMapWriter",
    "MinMax",
    "MinMaxNormalizationCallback",
    "NormalizationCallback",
    "NormalizationMixin",
    "Normalizer",
    "__version__",
    "cdf",
    "from_anomalib",
    "min_max",
    "normal",
    "plot",
    "register",
    "threshold",
    "two_slope",
    "write_heat_maps",
]

# Lightning takes seconds to import; the kernels alone do not need it.
if not TYPE_CHECKING:  # type checkers would take any name for one that is there
    __getattr__ = lazily(
        __name__,
        {
            "AnomalyScoreDistribution": "anomnorm_torch.metrics",
            "CdfNormalizationCallback": "anomnorm_torch.callbacks",
            "HeatMapFolder": "anomnorm_core.heat_maps",
            "HeatMapWriter": "anomnorm_torch.callbacks",
            "MinMax": "anomnorm_torch.metrics",
            "MinMaxNormalizationCallback": "anomnorm_torch.callbacks",
            "NormalizationCallback": "anomnorm_torch.callbacks",
            "NormalizationMixin": "anomnorm_torch.mixin",
            "from_anomalib": "anomnorm_torch.anomalib_checkpoint",
            "plot": "anomnorm_core.plot",
            "write_heat_maps": "anomnorm_core.heat_maps",
        },
    )


def __dir__() -> list[str]:
    return __all__
