"""The distribution of scores as a metric."""

import math
from collections.abc import Iterable
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from anomnorm_core.fit_check import LIMITS, FitCheck
from anomnorm_core.policy import Center, Units
from anomnorm_torch import cdf
from anomnorm_torch.metrics._base import NormalizationMetric
from anomnorm_torch.metrics._thresholds import LEVELS, Level, nobodys
from anomnorm_torch.normalizer import Normalizer


class AnomalyScoreDistribution(NormalizationMetric[cdf.ScoreDistribution]):
    """Moments of the logarithm of the scores of normal images (shape ()) and of each pixel of their maps ((H, W)).

    Args:
        center: where pixel z-scores are zero: at the image-level mean (``"image"``, the founding behaviour) or at
            each pixel's own (``"pixel"``).
        kwargs: of ``torchmetrics.Metric``.
    """

    method = "CDF"
    _foreign_state = "min"
    _foreign_callback = "MinMaxNormalizationCallback"
    _option = "pixel_center"

    image_count: Tensor
    image_mean: Tensor
    image_m2: Tensor
    image_invalid: Tensor
    pixel_count: Tensor
    pixel_mean: Tensor
    pixel_m2: Tensor
    pixel_invalid: Tensor
    image_raw_threshold: Tensor  # (): what labels are decided on, where that is a raw score; else NaN
    validation_normals: Tensor  # (3,): normal samples of the last validation run; with z above 2; above 3

    def __init__(self, *, center: Center | str = Center.IMAGE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center = Center.parse(center, "center")
        for level in LEVELS:
            # Maps have no resolution before the first one arrives.
            shape = () if level == "image" else (0, 0)
            for name, default in cdf.init(shape)._asdict().items():
                self.add_state(f"{level}_{name}", default=default, dist_reduce_fx=None, persistent=True)
        unset = torch.full((), math.nan, dtype=torch.float64)
        self.add_state("image_raw_threshold", default=unset, dist_reduce_fx=None, persistent=True)
        counts = torch.zeros(1 + len(LIMITS), dtype=torch.int64)
        self.add_state("validation_normals", default=counts, dist_reduce_fx=None, persistent=True)

    @property
    def image_std(self) -> Tensor:
        """Standard deviation of the logarithm of image scores (ddof 1); NaN below two values."""
        return self._std("image")

    @property
    def pixel_std(self) -> Tensor:
        """Standard deviation of the logarithm of each pixel (ddof 1); NaN below two values."""
        return self._std("pixel")

    def _std(self, level: Level) -> Tensor:
        record = self.record(level)
        return torch.where(record.count > 1, record.m2 / (record.count - 1), math.nan).sqrt()

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(image_mean, image_std, pixel_mean, pixel_std)``; empty tensors where a level has seen nothing.

        Raises:
            NotFittedError, InsufficientDataError: no level has what it needs, see `statistics`.
        """
        wanted = [level for level in LEVELS if self.seen(level)] or [LEVELS[0]]
        nothing = torch.empty(0, device=self.device)
        image = self.statistics("image") if "image" in wanted else (nothing, nothing)
        pixel = self.statistics("pixel") if "pixel" in wanted else (nothing, nothing)
        return *image, *pixel

    def seen(self, level: Level) -> bool:
        """Whether any value of ``level`` arrived, valid or not. Waits for the device."""
        return self.record(level).count.numel() > 0 and super().seen(level)

    @property
    def fit_check(self) -> FitCheck | None:
        """How the fit does on the normal samples of the last validation run; None without any (clause S9)."""
        normals, *above = (int(count) for count in self.validation_normals)
        return FitCheck(int(self.image_count), normals, *above) if normals else None

    def keep_check(self, z: Tensor) -> None:
        """Count the z-scores of normal validation samples for `fit_check`; NaN is left out."""
        counted = [z.isnan().logical_not(), *(z > limit for limit in LIMITS)]
        self.validation_normals = torch.stack([which.sum() for which in counted]).to(self.validation_normals.device)

    def normalizer(
        self,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str = Units.DECISION,
    ) -> Normalizer:
        """A normalizer of the distributions so far. See the base class."""
        pixel = self.record("pixel") if self.seen("pixel") else None
        return Normalizer.cdf(
            self.record("image"),
            pixel,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            units=units,
            center=self.center,
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The states, and beside them ``image_std`` and ``pixel_std`` as the founding implementation had them."""
        destination: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for level in LEVELS:
            destination[f"{prefix}{level}_std"] = self._std(level)
        return destination

    @property
    def option(self) -> bool:
        """Whether pixel z-scores are zero at each pixel's own mean."""
        return self.center is Center.PIXEL

    @option.setter
    def option(self, value: bool) -> None:
        self.center = Center.PIXEL if value else Center.IMAGE

    def _fields(self, level: Level) -> tuple[str, ...]:
        return tuple(f"{level}_{name}" for name in cdf.ScoreDistribution._fields)

    def _make(self, fields: Iterable[Tensor]) -> cdf.ScoreDistribution:
        return cdf.ScoreDistribution(*fields)

    def _add(self, record: cdf.ScoreDistribution, values: Tensor, where: Tensor | None) -> cdf.ScoreDistribution:
        if record.mean.numel() == 0:
            record = cdf.init(tuple(values.shape[-2:]), device=record.mean.device)
        return cdf.update(record, values, where=where)

    def _merge(self, a: cdf.ScoreDistribution, b: cdf.ScoreDistribution) -> cdf.ScoreDistribution:
        return cdf.merge(a, b)

    def _finalize(self, record: cdf.ScoreDistribution, level: Level) -> tuple[Tensor, Tensor]:
        if record.count.numel() == 0:
            record = cdf.init(device=record.mean.device)
        return cdf.mean_std(record, level=level)

    def _write_thresholds(self) -> None:
        super()._write_thresholds()
        raw = self.thresholds.raw_decision(nobodys)
        self._write("image_raw_threshold", math.nan if raw is None else raw)

    def _complete(self, state: dict[str, Tensor]) -> None:
        raw = float(state.get("image_raw_threshold", math.nan))
        self.thresholds.raw = None if math.isnan(raw) else raw
        for level in LEVELS:
            std, mean = state.pop(f"{level}_std", None), state.get(f"{level}_mean")
            if std is None or mean is None or f"{level}_m2" in state:
                continue
            if mean.numel() == 0:
                del state[f"{level}_mean"]  # founding layout, level never seen
                continue
            # Founding layout: the count is unknown, and two is the least for which there is a deviation.
            # A pixel without a finite one, as a border of zeros gave then, counts as unseen (clause S6).
            known = mean.isfinite() & std.isfinite()
            state |= {
                f"{level}_count": torch.where(known, 2, 0),
                f"{level}_mean": torch.where(known, mean, 0.0),
                f"{level}_m2": torch.where(known, std.square(), 0.0),
                f"{level}_invalid": torch.zeros_like(mean, dtype=torch.int64),
            }
