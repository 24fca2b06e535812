"""What both metrics share."""

import copy
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, SupportsFloat, TypeVar, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from anomnorm_core import OnInvalid
from anomnorm_core.checks import report_invalid
from anomnorm_core.errors import OptionError
from anomnorm_core.policy import ThresholdRule, Units, parse_threshold
from anomnorm_torch import cdf, min_max
from anomnorm_torch._tensors import keep_dtype
from anomnorm_torch.metrics._thresholds import LEVELS, Level, Thresholds
from anomnorm_torch.normalizer import Normalizer

Record = TypeVar("Record", min_max.MinMaxStatistics, cdf.ScoreDistribution)


class NormalizationMetric(Metric, Generic[Record]):
    """What `MinMax` and `AnomalyScoreDistribution` share: levels, thresholds, merging, state dicts.

    ``image_threshold`` and ``pixel_threshold`` are the thresholds that were set by hand, given to a callback or found
    in a validation run; NaN where there is none, or where the pixel threshold is that of the images. They live here to
    be in the state dict beside the statistics that they belong to.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = True  # unused: forward() is update()

    image_threshold: Tensor
    pixel_threshold: Tensor
    method: str  # for messages
    _foreign_state: str  # a state name by which a checkpoint of the other method is recognized
    _foreign_callback: str
    _option: str  # the name, in a state dict, of the option that says what statistics and thresholds mean

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thresholds = Thresholds()
        self._finalized: dict[Level, tuple[Record, tuple[Tensor, Tensor]]] = {}
        self._fitted: tuple[tuple[Any, ...], Normalizer] | None = None  # in a tuple, so that it is no submodule
        # States and not buffers: buffers that appear after its construction confuse copies of the module that other
        # callbacks keep in step with it (an average of the weights, say).
        for level in LEVELS:
            unset = torch.full((), math.nan, dtype=torch.float64)
            self.add_state(f"{level}_threshold", default=unset, dist_reduce_fx=None, persistent=True)
            self.add_state(f"{level}_threshold_found", default=unset.clone(), dist_reduce_fx=None, persistent=True)
            by_hand = torch.zeros((), dtype=torch.bool)
            self.add_state(f"{level}_threshold_by_hand", default=by_hand, dist_reduce_fx=None, persistent=True)

    # Records: the functional statistics behind the states.

    @abstractmethod
    def _fields(self, level: Level) -> tuple[str, ...]:
        """State names of the fields of the record of ``level``, in the record's order."""

    @abstractmethod
    def _make(self, fields: Iterable[Tensor]) -> Record:
        """A record of ``fields``."""

    @abstractmethod
    def _add(self, record: Record, values: Tensor, where: Tensor | None) -> Record:
        """The record with a batch of one level."""

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
        if self.thresholds.raw is not None:  # of other statistics; what it is in decision units stays
            self.thresholds.raw = None
            self._write_thresholds()

    def update(
        self,
        anomaly_scores: Tensor | None = None,
        anomaly_maps: Tensor | None = None,
        where: Tensor | None = None,
    ) -> None:
        """Add raw scores of shape (B,) and maps of shape (B, 1, H, W) or (B, H, W); either may be missing.

        ``where`` is a boolean tensor of shape (B,): samples that take part.

        Raises:
            ResolutionError: maps do not have the height and width that per-pixel statistics began with (clause S8).
        """
        updated: dict[Level, Record] = {}
        for level, values in zip(LEVELS, (anomaly_scores, anomaly_maps), strict=True):
            if values is not None:
                updated[level] = self._add(self.record(level), values, where)
        for level, record in updated.items():  # both levels or, after an error, none
            self._store(level, record)

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

    @abstractmethod
    def normalizer(
        self,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str = Units.DECISION,
    ) -> Normalizer:
        """A normalizer of the statistics so far, on the CPU (``.to(device)`` moves it).

        Args:
            threshold: for the image scores, in ``units``.
            pixel_threshold: for the maps, in decision units (raw under min-max, z under the CDF); None takes
                ``threshold``.
            units: ``"decision"`` or ``"raw"``, which are the same under min-max.

        Raises:
            NotFittedError, InsufficientDataError: see `statistics`.
            OptionError: a threshold is no finite number.
        """

    @property
    @abstractmethod
    def option(self) -> bool:
        """The option that says what statistics and thresholds mean: a shared range, or a centre for each pixel."""

    @option.setter
    @abstractmethod
    def option(self, value: bool) -> None: ...

    def batch_normalizer(self, raw_threshold: float | None = None) -> Normalizer:
        """The normalizer that batches go through. Made once while states, options and ``raw_threshold`` stay.

        Args:
            raw_threshold: what labels are decided on, where that is a raw score; else its thresholds are nobody's, and
                given with each call.

        Raises:
            NotFittedError, InsufficientDataError: see `statistics`.
        """
        states = (raw_threshold, self.option, *(field for level in LEVELS for field in self.record(level)))
        if self._fitted is None or any(old is not new for old, new in zip(self._fitted[0], states, strict=True)):
            raw = raw_threshold is not None
            fitted = self.normalizer(raw_threshold or 0.0, units=Units.RAW if raw else Units.DECISION)
            self._fitted = (states, fitted.to(self.device))
        return self._fitted[1]

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

    def finish(self, on_invalid: OnInvalid = OnInvalid.WARN, *, warn: bool = True) -> bool:
        """End a fit: check every level that has seen values, and report what was left out (clauses S6, S7).

        Args:
            on_invalid: ``RAISE`` makes an error of it.
            warn: whether ``WARN`` gives a warning.

        Returns:
            Whether something was left out.

        Raises:
            NotFittedError, InsufficientDataError: see `statistics`.
            InvalidScoreError: see `report_invalid`.
        """
        if on_invalid is OnInvalid.RAISE:
            self.report_invalid(OnInvalid.RAISE)
        for level in LEVELS:
            if level == "image" or self.seen(level):
                self.statistics(level)
        left_out = any(bool(self.record(level).invalid.any()) for level in LEVELS)
        if warn:
            self.report_invalid(OnInvalid.WARN)  # of a usable fit: an unusable one was an error above
        return left_out

    # Thresholds.

    def set_threshold(self, level: Level, value: float | None) -> None:
        """Set the threshold of ``level`` by hand; None takes it back (clause T4).

        It wins over what a callback was given, over the module's own threshold and over those of validation runs, in
        this process and after loading a checkpoint, until a callback is given another option.

        Raises:
            OptionError: ``level`` is neither, or ``value`` is not a finite number.
        """
        if level not in LEVELS:
            raise OptionError(f"level={level!r} is not a level; use one of 'image', 'pixel'.")
        self.thresholds.set_by_hand(level, parse_threshold(value, f"{level} threshold"))
        self._write_thresholds()

    def configure_threshold(self, level: Level, option: float | ThresholdRule | None) -> None:
        """Take over the option that a callback was given. See `Thresholds.configure`."""
        self.thresholds.configure(level, option)
        self._write_thresholds()

    def keep_found(self, image: float | None, pixel: float | None, raw: float | None = None) -> None:
        """Take over the thresholds that a validation run found. See `Thresholds.keep_found`."""
        self.thresholds.keep_found(image, pixel, raw)
        self._write_thresholds()

    def _write_thresholds(self) -> None:
        # The states hold what belongs into a checkpoint.
        for level in LEVELS:
            self._write(f"{level}_threshold", self.thresholds.saved(level))
            self._write(f"{level}_threshold_found", self.thresholds.found.get(level, math.nan))
            self._write(f"{level}_threshold_by_hand", self.thresholds.is_by_hand(level))

    def _write(self, name: str, value: float) -> None:
        setattr(self, name, torch.full_like(getattr(self, name), value))

    # What torchmetrics does to states.

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Add values, as `update` does. The statistics of a single batch are of no use, and may not even exist."""
        self.update(*args, **kwargs)

    def reset(self) -> None:
        """Forget all values. Thresholds stay, though in decision units only: a raw one is that of other statistics."""
        super().reset()
        self.thresholds.raw = None
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
            incoming = self._make(cast("Tensor", state[name]) for name in self._fields(level))
            self._pool(level, [self.record(level), incoming])
        self._update_count += 1
        self._computed = None

    def _pool(self, level: Level, records: list[Record]) -> None:
        # A part without maps has the (0, 0) record of an empty pixel level: nothing to merge.
        parts = [record for record in records if record.count.numel()] or records[:1]
        total = parts[0]
        for part in parts[1:]:
            total = self._merge(total, part)
        self._store(level, total)

    def merge_processes(self) -> None:
        """Merge the statistics of all processes of a distributed run, for good. Every process has to call it."""
        self._sync_dist()

    def snapshot(self) -> Any:
        """What `put_back` takes: the states, which are replaced and never written to, and the thresholds."""
        return {name: getattr(self, name) for name in self._defaults}, copy.deepcopy(self.thresholds), self.option

    def put_back(self, snapshot: Any) -> None:
        """Return to a `snapshot`."""
        states, self.thresholds, self.option = snapshot
        for name, value in states.items():
            setattr(self, name, value)
        self._computed = None

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None
    ) -> None:
        group = process_group or self.process_group
        for level in LEVELS:
            gathered = [dist_sync_fn(field, group=group) for field in self.record(level)]
            self._pool(level, [self._make(fields) for fields in zip(*gathered, strict=True)])

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The states, and beside them the option that says what they mean."""
        destination: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        destination[prefix + self._option] = torch.tensor(self.option, device=self.device)
        return destination

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), exclude_state)

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
        if not own and any(self.seen(level) for level in LEVELS):
            warnings.warn(
                f"the state dict holds no statistics of the {self.method} normalization: those that the module had "
                "belong to other weights and were dropped. Run a validation to fit new ones.",
                stacklevel=2,
            )
            self.reset()
        if self._foreign_state in own:
            error_msgs.append(
                f"{prefix.rstrip('.')}: the checkpoint holds the statistics of the other normalization, this run "
                f"uses {self.method}. Use {self._foreign_callback}, or remove the keys that begin with {prefix!r} from "
                "the state dict and fit again."
            )
            return
        state = {name: cast("Tensor", state_dict.pop(key)).detach() for name, key in own.items()}
        if self._option in state:
            self.option = bool(state.pop(self._option))
        self._complete(state)
        for level in LEVELS:
            if f"{level}_threshold" in state:
                found = float(state.get(f"{level}_threshold_found", math.nan))
                by_hand = bool(state.get(f"{level}_threshold_by_hand", False))
                self.thresholds.restore(level, float(state[f"{level}_threshold"]), found, by_hand=by_hand)
        for name in self._defaults:
            if name in state:
                like = getattr(self, name)
                setattr(self, name, state.pop(name).to(device=like.device, dtype=like.dtype, copy=True))
        unexpected_keys.extend(own[name] for name in state)
        self._write_thresholds()
        self._computed = None

    @abstractmethod
    def _complete(self, state: dict[str, Tensor]) -> None:
        """Translate the founding layout, which had no counts, into this one."""
