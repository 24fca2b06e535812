"""The statistics as torchmetrics: streaming, mergeable, and part of a module's state dict.

Both metrics hold two levels: image scores and, where a detector has them, anomaly maps. Their state names are those of
the founding implementation where it had them (``min``, ``max``, ``image_mean``, ``pixel_mean``; ``image_std`` and
``pixel_std`` are written beside them), so that its checkpoints load (clause L6).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from anomnorm_core import Center, OnInvalid
from anomnorm_core.checks import report_invalid
from anomnorm_core.policy import parse_threshold
from anomnorm_torch import cdf, min_max

Level = Literal["image", "pixel"]
LEVELS: tuple[Level, Level] = ("image", "pixel")
Record = TypeVar("Record", min_max.MinMaxStatistics, cdf.ScoreDistribution)


class NormalizationMetric(Metric, Generic[Record]):
    """What `MinMax` and `AnomalyScoreDistribution` share: levels, thresholds, merging, state dicts.

    ``image_threshold`` and ``pixel_threshold`` are the thresholds that a callback was given; NaN where the module owns
    them. They live here to be in the state dict beside the statistics that they belong to.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = True

    image_threshold: Tensor
    pixel_threshold: Tensor
    method: str  # for messages
    _foreign_state: str  # a state name by which a checkpoint of the other method is recognized
    _foreign_callback: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._threshold_by_hand: dict[Level, float] = {}
        self._threshold_given: dict[Level, float] = {}
        self._threshold_restored: dict[Level, float] = {}
        self._finalized: dict[Level, tuple[Record, tuple[Tensor, Tensor]]] = {}
        for level in LEVELS:
            # A state and not a buffer: buffers that appear after its construction confuse copies of the module that
            # other callbacks keep in step with it (an average of the weights, say).
            unset = torch.full((), math.nan, dtype=torch.float64)
            self.add_state(f"{level}_threshold", default=unset, dist_reduce_fx=None, persistent=True)

    # Records: the functional statistics behind the states.

    @abstractmethod
    def _fields(self, level: Level) -> tuple[str, ...]:
        """State names of the fields of the record of ``level``, in the record's order."""

    @abstractmethod
    def _make(self, fields: Iterable[Tensor]) -> Record:
        """A record of ``fields``."""

    @abstractmethod
    def _merge(self, a: Record, b: Record) -> Record: ...

    @abstractmethod
    def _finalize(self, record: Record, level: Level) -> tuple[Tensor, Tensor]: ...

    def record(self, level: Level) -> Record:
        """The functional record of ``level``."""
        return self._make(getattr(self, name) for name in self._fields(level))

    def _store(self, level: Level, record: Record) -> None:
        for name, field in zip(self._fields(level), record, strict=True):
            setattr(self, name, field)

    def seen(self, level: Level) -> bool:
        """Whether any value of ``level`` arrived, valid or not. Waits for the device."""
        record = self.record(level)
        return bool((record.count.sum() + record.invalid.sum()).item())

    def statistics(self, level: Level) -> tuple[Tensor, Tensor]:
        """Finalized statistics: ``(min, max)`` or ``(mean, std)``. Checked once, then kept while the states stay.

        Raises:
            NotFittedError: ``level`` has seen no valid value (clauses N8, S6).
            InsufficientDataError: too few values for a deviation (clause S7).
        """
        record = self.record(level)
        kept = self._finalized.get(level)
        # States are replaced, never written to, so the same tensors are the same statistics.
        if kept is None or any(old is not new for old, new in zip(kept[0], record, strict=True)):
            kept = self._finalized[level] = (record, self._finalize(record, level))
        return kept[1]

    def report_invalid(self, on_invalid: OnInvalid) -> None:
        """Warn about, or refuse, what was left out so far (clause S6). Waits for the device.

        Raises:
            InvalidScoreError: something was left out and ``on_invalid`` is ``RAISE``.
        """
        records = {level: self.record(level) for level in LEVELS}
        # Level-wide totals: of a per-pixel record, all pixels together.
        counts: dict[str, tuple[int, int]] = {
            level: (int(each.count.sum()), int(each.invalid.sum())) for level, each in records.items()
        }
        report_invalid(counts, on_invalid)

    def finish(self, on_invalid: OnInvalid = OnInvalid.WARN) -> None:
        """End a fit: check every level that has seen values, and report what was left out (clauses S6, S7).

        Raises:
            NotFittedError, InsufficientDataError: see `statistics`.
            InvalidScoreError: see `report_invalid`.
        """
        if on_invalid is OnInvalid.RAISE:
            self.report_invalid(OnInvalid.RAISE)
        for level in LEVELS:
            if level == "image" or self.seen(level):
                self.statistics(level)
        self.report_invalid(OnInvalid.WARN)  # of a usable fit: an unusable one was an error above

    # Thresholds.

    def set_threshold(self, level: Level, value: float | None) -> None:
        """Set the threshold of ``level`` by hand; None takes it back (clause T4).

        It wins over the number that a callback was given, over the module's own threshold and over checkpoints, until
        a callback is given another number.

        Raises:
            OptionError: ``value`` is not a finite number.
        """
        self._remember(self._threshold_by_hand, level, parse_threshold(value, f"{level} threshold"))

    def give_threshold(self, level: Level, value: float | None) -> None:
        """Take over the threshold that a callback was given; None if it was given none.

        The same number again, as in each stage of a trainer, changes nothing; another one replaces also a threshold
        set by hand.
        """
        if value is not None and value != self._threshold_given.get(level):
            self._threshold_by_hand.pop(level, None)
        self._remember(self._threshold_given, level, value)

    def _remember(self, thresholds: dict[Level, float], level: Level, value: float | None) -> None:
        thresholds.pop(level, None)
        if value is not None:
            thresholds[level] = value
        self._write_thresholds()

    def _write_thresholds(self) -> None:
        # The buffers hold what belongs into a checkpoint.
        for level in LEVELS:
            value = (self._threshold_restored | self._threshold_given | self._threshold_by_hand).get(level, math.nan)
            old: Tensor = getattr(self, f"{level}_threshold")
            setattr(self, f"{level}_threshold", torch.full_like(old, value))

    def manual_threshold(self, level: Level) -> Tensor | None:
        """The threshold set by hand or given to a callback, or None."""
        return self._threshold(level) if level in self._threshold_by_hand | self._threshold_given else None

    def restored_threshold(self, level: Level) -> Tensor | None:
        """The threshold that a checkpoint brought, or None."""
        return self._threshold(level) if level in self._threshold_restored else None

    def _threshold(self, level: Level) -> Tensor:
        return cast("Tensor", getattr(self, f"{level}_threshold"))

    # What torchmetrics does to states.

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Add values, as `update` does. The statistics of a single batch are of no use, and may not even exist."""
        self.update(*args, **kwargs)

    def reset(self) -> None:
        """Forget all values. Thresholds stay."""
        super().reset()
        self._write_thresholds()

    def merge_state(self, incoming_state: "Mapping[str, Any] | Metric") -> None:
        """Add the statistics of another metric of this class, or of its ``metric_state``."""
        state: Mapping[str, Any]
        if isinstance(incoming_state, Metric):
            if not isinstance(incoming_state, type(self)):
                raise ValueError(f"cannot merge a {type(incoming_state).__name__} into a {type(self).__name__}.")
            state = incoming_state.metric_state
        else:
            state = incoming_state
        for level in LEVELS:
            self._pool(
                level, [self.record(level), self._make(cast("Tensor", state[name]) for name in self._fields(level))]
            )
        self._computed = None

    def _pool(self, level: Level, records: list[Record]) -> None:
        # A part without maps has the (0, 0) record of an empty pixel level: nothing to merge.
        parts = [record for record in records if record.count.numel()] or records[:1]
        total = parts[0]
        for part in parts[1:]:
            total = self._merge(total, part)
        self._store(level, total)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None
    ) -> None:
        group = process_group or self.process_group
        for level in LEVELS:
            gathered = [dist_sync_fn(field, group=group) for field in self.record(level)]
            self._pool(level, [self._make(fields) for fields in zip(*gathered, strict=True)])

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> torch.nn.Module:
        # Statistics follow the module's device but not its dtype: a bf16 model needs no bf16 statistics (clause L9).
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            # Apple's devices have no float64 at all.
            return tensor.to(device, torch.float32 if device.type == "mps" and tensor.is_floating_point() else None)

        return super()._apply(move, exclude_state)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],  # noqa: ARG002  # the signature is torch's
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],  # noqa: ARG002
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Absent statistics are no error: a checkpoint of a run without normalization loads (clause L6). Present ones
        # are taken over in the shape they have, so that maps need no resolution before the first one is seen.
        own = {key.removeprefix(prefix): key for key in state_dict if key.startswith(prefix)}
        if self._foreign_state in own:
            error_msgs.append(
                f"{prefix.rstrip('.')}: the checkpoint holds the statistics of the other normalization, this run "
                f"uses {self.method}. Use {self._foreign_callback}, or remove the keys that begin with {prefix!r} from "
                "the state dict and fit again."
            )
            return
        state = {name: cast("Tensor", state_dict.pop(key)).detach() for name, key in own.items()}
        self._complete(state)
        for name in self._state_names():
            if name in state:
                like = getattr(self, name)
                setattr(self, name, state.pop(name).to(device=like.device, dtype=like.dtype, copy=True))
        unexpected_keys.extend(own[name] for name in state)
        loaded: dict[Level, float] = {level: float(self._threshold(level)) for level in LEVELS}
        self._threshold_restored = {level: value for level, value in loaded.items() if not math.isnan(value)}
        self._write_thresholds()
        self._computed = None

    def _state_names(self) -> tuple[str, ...]:
        return tuple(self._defaults)

    @abstractmethod
    def _complete(self, state: dict[str, Tensor]) -> None:
        """Translate the founding layout, which had no counts, into this one."""


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
        """Add raw scores of shape (B,) and maps of shape (B, 1, H, W) or (B, H, W); either may be missing.

        ``where`` is a boolean tensor of shape (B,): samples that take part.
        """
        if self.shared_range and anomaly_maps is not None:
            anomaly_scores, anomaly_maps = anomaly_maps, None
        for level, values in zip(LEVELS, (anomaly_scores, anomaly_maps), strict=True):
            if values is not None:
                self._store(level, min_max.update(self.record(level), values, where=where))

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

    def _fields(self, level: Level) -> tuple[str, ...]:
        prefix = "" if level == "image" else "pixel_"
        return tuple(prefix + name for name in min_max.MinMaxStatistics._fields)

    def _make(self, fields: Iterable[Tensor]) -> min_max.MinMaxStatistics:
        return min_max.MinMaxStatistics(*fields)

    def _merge(self, a: min_max.MinMaxStatistics, b: min_max.MinMaxStatistics) -> min_max.MinMaxStatistics:
        return min_max.merge(a, b)

    def _finalize(self, record: min_max.MinMaxStatistics, level: Level) -> tuple[Tensor, Tensor]:
        return min_max.bounds(record, level=level)

    def _complete(self, state: dict[str, Tensor]) -> None:
        if {"min", "max"} <= state.keys() and "count" not in state:
            # One range for both levels, of an unknown number of values: at least one.
            fitted = (state["min"] <= state["max"]).to(torch.int64)
            state |= {"pixel_min": state["min"], "pixel_max": state["max"], "count": fitted, "pixel_count": fitted}


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

    image_count: Tensor
    image_mean: Tensor
    image_m2: Tensor
    image_invalid: Tensor
    pixel_count: Tensor
    pixel_mean: Tensor
    pixel_m2: Tensor
    pixel_invalid: Tensor

    def __init__(self, *, center: Center | str = Center.IMAGE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.center = Center.parse(center, "center")
        for level in LEVELS:
            # Maps have no resolution before the first one arrives.
            shape = () if level == "image" else (0, 0)
            for name, default in cdf.init(shape)._asdict().items():
                self.add_state(f"{level}_{name}", default=default, dist_reduce_fx=None, persistent=True)

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

    def update(
        self,
        anomaly_scores: Tensor | None = None,
        anomaly_maps: Tensor | None = None,
        where: Tensor | None = None,
    ) -> None:
        """Add raw scores of shape (B,) and maps of shape (B, 1, H, W) or (B, H, W); either may be missing.

        ``where`` is a boolean tensor of shape (B,): samples that take part.

        Raises:
            ResolutionError: the maps' height and width are not those of the first ones (clause S8).
        """
        updated: dict[Level, cdf.ScoreDistribution] = {}
        for level, values in zip(LEVELS, (anomaly_scores, anomaly_maps), strict=True):
            if values is None:
                continue
            record = self.record(level)
            if record.mean.numel() == 0:
                record = cdf.init(tuple(values.shape[-2:]), device=record.mean.device)
            updated[level] = cdf.update(record, values, where=where)
        for level, record in updated.items():  # both levels or, after an error, none
            self._store(level, record)

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

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The states, and beside them ``image_std`` and ``pixel_std`` as the founding implementation had them."""
        destination: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for level in LEVELS:
            destination[f"{prefix}{level}_std"] = self._std(level)
        return destination

    def _fields(self, level: Level) -> tuple[str, ...]:
        return tuple(f"{level}_{name}" for name in cdf.ScoreDistribution._fields)

    def _make(self, fields: Iterable[Tensor]) -> cdf.ScoreDistribution:
        return cdf.ScoreDistribution(*fields)

    def _merge(self, a: cdf.ScoreDistribution, b: cdf.ScoreDistribution) -> cdf.ScoreDistribution:
        return cdf.merge(a, b)

    def _finalize(self, record: cdf.ScoreDistribution, level: Level) -> tuple[Tensor, Tensor]:
        if record.count.numel() == 0:
            record = cdf.init(device=record.mean.device)
        return cdf.mean_std(record, level=level)

    def _complete(self, state: dict[str, Tensor]) -> None:
        for level in LEVELS:
            std, mean = state.pop(f"{level}_std", None), state.get(f"{level}_mean")
            if std is None or mean is None or f"{level}_m2" in state:
                continue
            if mean.numel() == 0:
                del state[f"{level}_mean"]  # founding layout, level never seen
                continue
            # Founding layout: the count is unknown, and two is the least for which there is a deviation.
            count = torch.full_like(mean, 2, dtype=torch.int64)
            state |= {
                f"{level}_count": count,
                f"{level}_m2": std.square(),
                f"{level}_invalid": torch.zeros_like(count),
            }
