"""The range of scores as a metric."""

from collections.abc import Iterable
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from anomnorm_core.policy import Units
from anomnorm_torch import min_max
from anomnorm_torch.metrics._base import NormalizationMetric
from anomnorm_torch.metrics._thresholds import Level
from anomnorm_torch.normalizer import Normalizer


class MinMax(NormalizationMetric[min_max.MinMaxStatistics]):
    """Smallest and largest score, of images (``min``, ``max``) and of pixels (``pixel_min``, ``pixel_max``).

    Args:
        shared_range: one range for both levels, in ``min`` and ``max``, taken from the maps where there are any and
            from the scores otherwise. This is the founding behaviour; separate ranges use more of the unit scale.
        kwargs: of ``torchmetrics.Metric``.
    """

    method = "min-max"
    _foreign_state = "image_mean"
    _foreign_callback = "CdfNormalizationCallback"
    _option = "shared_range"

    min: Tensor
    max: Tensor
    count: Tensor
    invalid: Tensor
    pixel_min: Tensor
    pixel_max: Tensor
    pixel_count: Tensor
    pixel_invalid: Tensor

    def __init__(self, *, shared_range: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shared_range = shared_range
        for prefix in ("", "pixel_"):
            for name, default in min_max.init()._asdict().items():
                reduction = name if name in ("min", "max") else "sum"
                self.add_state(prefix + name, default=default, dist_reduce_fx=reduction, persistent=True)

    def update(
        self,
        anomaly_scores: Tensor | None = None,
        anomaly_maps: Tensor | None = None,
        where: Tensor | None = None,
    ) -> None:
        """See the base class; with ``shared_range``, maps take the place of scores."""
        if self.shared_range and anomaly_maps is not None:
            anomaly_scores, anomaly_maps = anomaly_maps, None
        super().update(anomaly_scores, anomaly_maps, where)

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(min, max, pixel_min, pixel_max)``; the identity ``(inf, -inf)`` where a level has seen nothing.

        Raises:
            NotFittedError: neither level has seen a valid value.
        """
        level: Level = "image" if self.seen("image") or not self.seen("pixel") else "pixel"
        self.statistics(level)
        return self.min, self.max, self.pixel_min, self.pixel_max

    def seen(self, level: Level) -> bool:
        """Whether any value of ``level`` arrived, valid or not. Waits for the device."""
        return super().seen("image" if self.shared_range else level)

    def statistics(self, level: Level) -> tuple[Tensor, Tensor]:
        """``(min, max)`` of ``level``; of both levels with ``shared_range``. See the base class."""
        return super().statistics("image" if self.shared_range else level)

    def normalizer(
        self,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str = Units.DECISION,  # noqa: ARG002  # the same
    ) -> Normalizer:
        """A normalizer of the ranges so far. See the base class."""
        pixel = self.record("image" if self.shared_range else "pixel") if self.seen("pixel") else None
        return Normalizer.min_max(self.record("image"), pixel, threshold=threshold, pixel_threshold=pixel_threshold)

    @property
    def option(self) -> bool:
        """Whether both levels have one range."""
        return self.shared_range

    @option.setter
    def option(self, value: bool) -> None:
        self.shared_range = value

    def _fields(self, level: Level) -> tuple[str, ...]:
        prefix = "" if level == "image" else "pixel_"
        return tuple(prefix + name for name in min_max.MinMaxStatistics._fields)

    def _make(self, fields: Iterable[Tensor]) -> min_max.MinMaxStatistics:
        return min_max.MinMaxStatistics(*fields)

    def _add(self, record: min_max.MinMaxStatistics, values: Tensor, where: Tensor | None) -> min_max.MinMaxStatistics:
        return min_max.update(record, values, where=where)

    def _merge(self, a: min_max.MinMaxStatistics, b: min_max.MinMaxStatistics) -> min_max.MinMaxStatistics:
        return min_max.merge(a, b)

    def _finalize(self, record: min_max.MinMaxStatistics, level: Level) -> tuple[Tensor, Tensor]:
        return min_max.bounds(record, level=level)

    def _complete(self, state: dict[str, Tensor]) -> None:
        if {"min", "max"} <= state.keys() and "count" not in state:
            # One range for both levels, of an unknown number of values: at least one.
            fitted = (state["min"] <= state["max"]).to(torch.int64)
            state |= {"pixel_min": state["min"], "pixel_max": state["max"], "count": fitted, "pixel_count": fitted}
