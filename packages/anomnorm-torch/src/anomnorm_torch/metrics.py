"""The statistics as torchmetrics, for loops of one's own: streaming, mergeable, synchronized between processes.

Both hold two levels: image scores and, where a detector has them, anomaly maps. A normalizer takes their records:
``Normalizer.cdf(metric.record("image"), metric.record("pixel"), threshold=3.0)``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from anomnorm_core.checks import Counts, counts_of, require_count, without_channel
from anomnorm_core.errors import NotFittedError
from anomnorm_core.method import Kernels
from anomnorm_core.options import LEVELS, Transform
from anomnorm_torch._tensors import keep_dtype
from anomnorm_torch.methods import METHODS, cdf, min_max


class RecordMetric(Metric):
    """The records of both levels of a method, field by field, as states."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = True  # unused: forward() is update()

    kernels: Kernels
    _prefixes: ClassVar[dict[str, str]]  # of the states, by level; as in anomalib 0.3, where it had them

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._type = type(self.kernels.init())
        for level in LEVELS:
            # Maps have no resolution before the first one arrives.
            shape = (0, 0) if level == "pixel" and self.kernels.method.per_pixel else ()
            for name, default in self.kernels.init(shape)._asdict().items():
                self.add_state(self._prefixes[level] + name, default=default, dist_reduce_fx=None, persistent=True)

    def update(
        self,
        anomaly_scores: Tensor | None = None,
        anomaly_maps: Tensor | None = None,
        where: Tensor | None = None,
    ) -> None:
        """Add raw scores (B,) or (B, 1) and maps (B, 1, H, W), (B, H, W) or (B, H, W, 1); either may be missing.

        ``where`` is a boolean tensor of shape (B,): samples that take part. Give ``valid`` of padded batches here.

        Raises:
            ResolutionError: maps do not have the height and width that per-pixel statistics began with (clause S8).
        """
        updated = {}
        for level, values in zip(LEVELS, (anomaly_scores, anomaly_maps), strict=True):
            if values is not None:
                record = self.record(level)
                if record.count.shape == (0, 0):
                    shape = without_channel(tuple(values.shape))[-2:]
                    record = self.kernels.init(shape, device=record.count.device)
                updated[level] = self.kernels.update(record, values, where=where)
        for level, record in updated.items():  # both levels or, after an error, none
            self._store(level, record)

    def record(self, level: str) -> Any:
        """The record of ``"image"`` or ``"pixel"``, which functions and normalizers take."""
        return self._type(*(getattr(self, self._prefixes[level] + name) for name in self._type._fields))

    def _store(self, level: str, record: Any) -> None:
        for name, field in record._asdict().items():
            setattr(self, self._prefixes[level] + name, field)

    def seen(self, level: str) -> bool:
        """Whether any value of ``level`` arrived, valid or not. Waits for the device."""
        counts = counts_of(self.record(level))
        return bool(counts.valid + counts.left_out)

    def statistics(self, level: str) -> tuple[Tensor, ...]:
        """What the method's finalizer makes of ``level``: ``(min, max)`` or ``(mean, std)``.

        Raises:
            NotFittedError: ``level`` has seen no valid value (clauses N8, S6).
            InsufficientDataError: too few values for a deviation (clause S7).
        """
        record = self.record(level)
        if record.count.numel() == 0:
            require_count(level, Counts(0), minimum=1)
        return self.kernels.finalize(record, level=level)

    def compute(self) -> tuple[Tensor, ...]:
        """The `statistics` of the image and then the pixel level; empty tensors for one that has seen nothing.

        Raises:
            NotFittedError, InsufficientDataError: no level has what it needs.
        """
        wanted = [level for level in LEVELS if self.seen(level)] or ["image"]
        nothing = (torch.empty(0, device=self.device),) * 2
        image, pixel = (self.statistics(level) if level in wanted else nothing for level in LEVELS)
        return *image, *pixel

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the statistics that are single numbers: their values, or how they develop.

        Args:
            val: what `compute` returned, or a list of that, of several epochs for example; None computes it.
            ax: the matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and its axes, see ``torchmetrics.Metric.plot``.

        Raises:
            NotFittedError, InsufficientDataError: no level has what it needs, or each pixel has its own.
            ModuleNotFoundError: matplotlib is not installed.
        """
        results = val if isinstance(val, list) else [self.compute() if val is None else val]
        names = [prefix + name for prefix in ("", "pixel_") for name in self.kernels.method.parameters]
        drawn = [
            {name: value for name, value in zip(names, result, strict=True) if value.ndim == 0} for result in results
        ]
        if not all(drawn):
            raise NotFittedError("there are no image-level statistics to draw: update the metric with scores too.")
        return self._plot(drawn if isinstance(val, list) else drawn[0], ax)

    # What torchmetrics does to states.

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Add values, as `update` does. The statistics of a single batch are of no use, and may not even exist."""
        self.update(*args, **kwargs)

    def merge_state(self, incoming_state: "Mapping[str, Any] | Metric") -> None:
        """Add the statistics of another metric of this class, or of its ``metric_state``."""
        state: Mapping[str, Any]
        if isinstance(incoming_state, Metric):
            if not isinstance(incoming_state, type(self)):
                raise ValueError(f"cannot merge a {type(incoming_state).__name__} into a {type(self).__name__}.")
            if incoming_state.kernels.method != self.kernels.method:
                raise ValueError(
                    f"statistics of {incoming_state.kernels.method.name} and {self.kernels.method.name} normalization "
                    "have no sum: make both metrics with one transform."
                )
            state = incoming_state.metric_state
        else:
            state = incoming_state
        for level in LEVELS:
            incoming = self._type(*(state[self._prefixes[level] + name] for name in self._type._fields))
            self._pool(level, [self.record(level), incoming])
        self._update_count += 1
        self._computed = None

    def _pool(self, level: str, records: list[Any]) -> None:
        # A part without maps has the (0, 0) record of an empty pixel level: nothing to merge.
        total, *others = [record for record in records if record.count.numel()] or records[:1]
        for other in others:
            total = self.kernels.merge(total, other)
        self._store(level, total)

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any = None
    ) -> None:
        group = process_group or self.process_group
        for level in LEVELS:
            gathered = [dist_sync_fn(field, group=group) for field in self.record(level)]
            self._pool(level, [self._type(*fields) for fields in zip(*gathered, strict=True)])

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Any = "") -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), exclude_state)


class MinMax(RecordMetric):
    """Smallest and largest score, of images (``min``, ``max``) and of pixels (``pixel_min``, ``pixel_max``)."""

    kernels = min_max.KERNELS
    _prefixes: ClassVar = {"image": "", "pixel": "pixel_"}


class AnomalyScoreDistribution(RecordMetric):
    """Moments of the logarithm of the scores of normal images (shape ()) and of each pixel of their maps ((H, W)).

    Args:
        transform: ``"log"``, or ``"identity"`` for the moments of the scores themselves.
        kwargs: of ``torchmetrics.Metric``.
    """

    kernels = cdf.KERNELS
    _prefixes: ClassVar = {"image": "image_", "pixel": "pixel_"}

    def __init__(self, transform: Transform | str = Transform.LOG, **kwargs: Any) -> None:
        self.kernels = METHODS[Transform.parse(transform, "transform").method]
        super().__init__(**kwargs)

    @property
    def image_std(self) -> Tensor:
        """Standard deviation of (the logarithm of) image scores (ddof 1); NaN below two values."""
        return self._std("image")

    @property
    def pixel_std(self) -> Tensor:
        """Standard deviation of (the logarithm of) each pixel (ddof 1); NaN below two values."""
        return self._std("pixel")

    def _std(self, level: str) -> Tensor:
        record = self.record(level)
        return torch.where(record.count > 1, record.m2 / (record.count - 1), math.nan).sqrt()
