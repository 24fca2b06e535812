"""What both callbacks do alike: attach the statistics to the module, find thresholds, check when a stage starts."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Generic, TypedDict, TypeVar, cast

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError
from anomnorm_core.policy import OnInvalid, parse_threshold
from anomnorm_torch.metrics import LEVELS, AnomalyScoreDistribution, Level, MinMax, NormalizationMetric
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.outputs import StepOutputs

Statistics = TypeVar("Statistics", MinMax, AnomalyScoreDistribution)
Metrics = TypeVar("Metrics", bound=NormalizationMetric[Any])


def attached(pl_module: LightningModule, kind: type[Metrics]) -> Metrics:
    """The statistics that `NormalizationLifeCycle.setup` gave the module.

    Raises:
        NotFittedError: it has none of this kind.
    """
    metrics = getattr(pl_module, "normalization_metrics", None)
    if not isinstance(metrics, kind):
        raise NotFittedError(
            f"{type(pl_module).__name__} has no normalization_metrics of type {kind.__name__} (found "
            f"{type(metrics).__name__}). A trainer with the callback attaches them; without one, call "
            "callback.setup(trainer, pl_module) first."
        )
    return metrics


def threshold(pl_module: LightningModule, level: Level) -> Tensor | float:
    """The decision threshold of ``level`` (clauses T1, T4, T6).

    In this order: the number set by hand or given to the callback; the module's own ``image_threshold.value`` or
    ``pixel_threshold.value``; the number that a checkpoint restored. A missing pixel threshold is the image one.

    Raises:
        NotFittedError: there is none.
    """
    return _find_threshold(pl_module, level)[1]


def _find_threshold(pl_module: LightningModule, level: Level) -> tuple[Level, Tensor | float]:
    # Of which level the number is, and the number.
    metrics: NormalizationMetric[Any] = attached(pl_module, NormalizationMetric)  # type: ignore[type-abstract]
    levels: tuple[Level, ...] = (level,) if level == "image" else (level, "image")
    owners: tuple[Callable[[Level], Tensor | float | None], ...] = (
        metrics.manual_threshold,
        partial(own_threshold, pl_module),
        metrics.restored_threshold,
    )
    for owner in owners:
        for candidate in levels:
            value = owner(candidate)
            if value is not None:
                return candidate, value
    raise NotFittedError(
        f"there is no {level}-level threshold to put at 0.5: give threshold=... to the callback, or let "
        f"{type(pl_module).__name__} have {level}_threshold.value (found {level}_threshold of type "
        f"{type(getattr(pl_module, f'{level}_threshold', None)).__name__})."
    )


def own_threshold(pl_module: LightningModule, level: Level) -> Tensor | float | None:
    """The module's own threshold (the founding contract), if it has one."""
    value = getattr(getattr(pl_module, f"{level}_threshold", None), "value", None)
    return value if value is None or isinstance(value, Tensor) else float(value)


def require_ready(pl_module: LightningModule) -> None:
    """Check statistics and threshold when a stage starts, where reading a value is affordable.

    Raises:
        NotFittedError: no validation run has fitted the statistics and no checkpoint has restored them, or there is
            no threshold, or it is not finite.
    """
    metrics: NormalizationMetric[Any] = attached(pl_module, NormalizationMetric)  # type: ignore[type-abstract]
    metrics.statistics("image")
    for level in LEVELS:
        value = float(threshold(pl_module, level))
        if not math.isfinite(value):
            raise NotFittedError(f"the {level}-level threshold of {type(pl_module).__name__} is {value}; set it first.")


class BatchThresholds(TypedDict):
    """The thresholds for one batch, as arguments of a normalizer."""

    threshold: Tensor | float
    pixel_threshold: Tensor | float | None


def thresholds(pl_module: LightningModule, step: StepOutputs) -> BatchThresholds:
    """The thresholds that count for the outputs of a step."""
    pixel = None if step.maps is None else threshold(pl_module, "pixel")
    return {"threshold": threshold(pl_module, "image"), "pixel_threshold": pixel}


class NormalizationLifeCycle(Generic[Statistics]):
    """The part of a callback that does not depend on the method, nor on which ``Callback`` class it is mixed into.

    Args:
        threshold: decision threshold; wins over the module's own and over a checkpoint. None takes those.
        pixel_threshold: the same for the maps; None takes ``threshold``.
        on_invalid: ``"warn"`` or ``"raise"`` when scores cannot enter the statistics.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    statistics_class: ClassVar[type[MinMax] | type[AnomalyScoreDistribution]]

    def __init__(self, threshold: float | None, pixel_threshold: float | None, on_invalid: OnInvalid | str) -> None:
        super().__init__()
        self.threshold = parse_threshold(threshold, "threshold")
        self.pixel_threshold = parse_threshold(pixel_threshold, "pixel_threshold")
        if self.threshold is None and self.pixel_threshold is not None:
            raise OptionError("pixel_threshold is given without threshold; give both, or threshold alone for both.")
        self.on_invalid = OnInvalid.parse(on_invalid, "on_invalid")

    @abstractmethod
    def _new_statistics(self) -> Statistics:
        """Empty statistics with this callback's options."""

    @abstractmethod
    def _configure(self, metrics: Statistics) -> None:
        """Give statistics that the module already had this callback's options."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Add the statistics to the module as ``normalization_metrics``, or adopt the ones that are there.

        Raises:
            AnomnormError: the module carries the statistics of the other method, the trainer has a second
                normalization callback, or it runs several processes.
        """
        if trainer.world_size > 1:
            raise AnomnormError(
                f"{type(self).__name__} does not merge statistics between processes yet, and this trainer runs "
                f"{trainer.world_size}; statistics of one of them would be wrong. Use devices=1."
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        normalizing = [callback for callback in callbacks if isinstance(callback, NormalizationLifeCycle)]
        if len(normalizing) > 1:
            names = ", ".join(type(callback).__name__ for callback in normalizing)
            raise AnomnormError(f"the trainer has {len(normalizing)} normalization callbacks ({names}); use one.")
        present = getattr(pl_module, "normalization_metrics", None)
        if present is None:
            pl_module.normalization_metrics = self._new_statistics()
        elif not isinstance(present, self.statistics_class):
            raise AnomnormError(
                f"the module already has normalization_metrics of type {type(present).__name__}, but "
                f"{type(self).__name__} needs {self.statistics_class.__name__}. To change the method, delete "
                "module.normalization_metrics first."
            )
        metrics = self._metrics(pl_module)
        self._configure(metrics)
        for level, value in zip(LEVELS, (self.threshold, self.pixel_threshold), strict=True):
            metrics.give_threshold(level, value)

    def normalizer(self, pl_module: LightningModule) -> Normalizer:
        """What was fitted, with the present thresholds, as a module of its own: to save, to serve, to export.

        Args:
            pl_module: a module that this callback was trained with, or that restored such a one.

        Returns:
            A `Normalizer` on the module's device. It gives what test and predict leave in the outputs, bit for bit, and
            stays as it is when the training goes on.

        Raises:
            NotFittedError: there are no statistics or there is no threshold yet.
        """
        require_ready(pl_module)
        level, pixel = _find_threshold(pl_module, "pixel")
        image = float(threshold(pl_module, "image"))
        own = float(pixel) if level == "pixel" else None
        return self._metrics(pl_module).normalizer(image, own).to(pl_module.device)

    def _metrics(self, pl_module: LightningModule) -> Statistics:
        return cast("Statistics", attached(pl_module, self.statistics_class))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a threshold, rather than find out after the training (clause T1).

        Raises:
            NotFittedError: neither callback nor module nor a restored checkpoint has one.
        """
        threshold(pl_module, "image")
        if not trainer.enable_validation:
            warnings.warn(
                f"{type(self).__name__} fits its statistics in validation runs, and this training has none: give "
                "trainer.fit a validation loader and the module a validation_step.",
                stacklevel=2,
            )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are statistics (clause N8) and put the thresholds of the module's test metrics at 0.5.

        That is where unit scores have theirs (clause L7).

        Raises:
            NotFittedError: no validation run has fitted the statistics and no checkpoint has restored them.
        """
        require_ready(pl_module)
        for name in ("image_metrics", "pixel_metrics"):
            set_metric_threshold(getattr(pl_module, name, None), 0.5)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are statistics (clause N8).

        Raises:
            NotFittedError: no validation run has fitted the statistics and no checkpoint has restored them.
        """
        require_ready(pl_module)


def set_metric_threshold(metrics: Any, value: float) -> None:
    """Set the threshold of a metric or of every metric of a collection that has one; nothing for None."""
    if metrics is None:
        return
    if hasattr(metrics, "set_threshold"):
        metrics.set_threshold(value)
        return
    for metric in metrics.values() if hasattr(metrics, "values") else (metrics,):
        if hasattr(metric, "threshold"):
            metric.threshold = value
