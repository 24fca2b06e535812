"""What both callbacks do alike, under either Lightning distribution."""

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

from torch import Tensor

from anomnorm_core.errors import AnomnormError, FitWarning, InvalidScoreWarning, ThresholdWarning
from anomnorm_core.policy import OnInvalid, ThresholdRule, parse_quantile, parse_threshold_option
from anomnorm_torch.life_cycle.collection import flattened
from anomnorm_torch.life_cycle.framework import LightningModule, Trainer
from anomnorm_torch.life_cycle.processes import distinct
from anomnorm_torch.life_cycle.thresholds import (
    attached,
    batch_normalizer,
    fitted_normalizer,
    own_threshold,
    read_thresholds,
    require_thresholds,
)
from anomnorm_torch.life_cycle.validation_run import ValidationRun
from anomnorm_torch.metrics import LEVELS, AnomalyScoreDistribution, Level, MinMax
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.outputs import GroundTruth, StepOutputs

Statistics = TypeVar("Statistics", MinMax, AnomalyScoreDistribution)

# They do not hold the whole module in each process, or have no torch.distributed to talk through.
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy", "XLAFSDPStrategy"}


class NormalizationLifeCycle(Generic[Statistics]):
    """The part of a callback that does not depend on the method, nor on which ``Callback`` class it is mixed into.

    Args:
        threshold: decision threshold, or how to find it.
        pixel_threshold: the same for the maps; None does as ``threshold`` does.
        normal_quantile: share of the normal scores that stays unflagged, where those alone decide.
        on_invalid: ``"warn"`` or ``"raise"`` when scores cannot enter the statistics.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    statistics_class: ClassVar[type[MinMax] | type[AnomalyScoreDistribution]]
    _needs_labels: ClassVar[bool]  # also where no threshold has to be found
    other_import: ClassVar[str]  # of the same class for the other Lightning distribution

    def __init__(
        self,
        threshold: float | str | None,
        pixel_threshold: float | str | None,
        normal_quantile: float,
        on_invalid: OnInvalid | str,
    ) -> None:
        super().__init__()
        self.threshold = parse_threshold_option(threshold, "threshold")
        self.pixel_threshold = parse_threshold_option(pixel_threshold, "pixel_threshold")
        self.normal_quantile = parse_quantile(normal_quantile, "normal_quantile")
        self.on_invalid = OnInvalid.parse(on_invalid, "on_invalid")
        self.thresholds: dict[Level, float] = {}
        self._run: ValidationRun | None = None
        self._loaders: list[Iterable[Any]] = []
        self._seen: list[int] = []  # samples of each loader so far
        self._reported = False  # whether this training had its warning about values that were left out

    @abstractmethod
    def _new_statistics(self) -> Statistics:
        """Empty statistics with this callback's options."""

    @property
    @abstractmethod
    def _option(self) -> tuple[bool, str, str]:
        """This callback's ``option`` of the statistics; and how it and the other one are written."""

    @abstractmethod
    def _image_threshold(
        self, metrics: Statistics, run: ValidationRun, rule: ThresholdRule
    ) -> tuple[float, float | None]:
        """The image threshold of a validation run: in decision units; and in raw units, if those differ and decide."""

    @abstractmethod
    def _normalize_outputs(self, outputs: Any, pl_module: LightningModule) -> None:
        """Replace raw scores and maps by unit ones, in place in ``outputs``, and add labels and masks."""

    def __iter__(self) -> NoReturn:
        # Trainer(callbacks=callback) takes a single one of its own distribution, and iterates over anything else.
        raise TypeError(
            f"a single {type(self).__name__} is no list of callbacks: give callbacks=[callback]. If it was given "
            f"alone, the Trainer is of the other Lightning distribution; {self.other_import} fits that."
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Add the statistics to the module as ``normalization_metrics``, or adopt the ones that are there.

        Raises:
            AnomnormError: the module carries the statistics of the other method, the trainer has a second
                normalization callback, or its strategy is not supported.
        """
        strategy = type(trainer.strategy)
        if _SHARDING & {base.__name__ for base in strategy.__mro__}:
            raise AnomnormError(
                f"{type(self).__name__} cannot run under {strategy.__name__}: statistics are fitted and saved with the "
                'whole module, of which each process holds a part there. Use strategy="ddp" for several processes.'
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[union-attr]
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
        self._beside_averages(callbacks)
        metrics = self._metrics(pl_module)
        if not any(metrics.seen(level) for level in LEVELS):
            metrics.option = self._option[0]
        self._reported = False
        self.threshold = parse_threshold_option(self.threshold, "threshold")  # they may have been changed
        self.pixel_threshold = parse_threshold_option(self.pixel_threshold, "pixel_threshold")
        for level, option in zip(LEVELS, (self.threshold, self.pixel_threshold), strict=True):
            metrics.configure_threshold(level, option)

    def _beside_averages(self, callbacks: list[Any]) -> None:
        """Fit in with callbacks that validate with an average of the weights, and save that.

        Raises:
            AnomnormError: one of them comes later in the list. It would exchange the weights after they were used here.
        """
        for position, callback in enumerate(callbacks):
            if "WeightAveraging" not in {base.__name__ for base in type(callback).__mro__}:
                continue
            if position > callbacks.index(self):
                raise AnomnormError(
                    f"{type(callback).__name__} validates with averaged weights, and {type(self).__name__} has to see "
                    f"those: list {type(callback).__name__} before it."
                )
            # Its copy of the module has to accept a checkpoint with statistics.
            average = getattr(getattr(callback, "_average_model", None), "module", None)
            if average is not None and getattr(average, "normalization_metrics", None) is None:
                average.normalization_metrics = self._new_statistics()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the statistics into the state dict, where another callback has put another module's there."""
        own = self._metrics(pl_module).state_dict(prefix="normalization_metrics.")
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}

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
        self._require_ready(pl_module)
        return fitted_normalizer(pl_module).to(pl_module.device)

    def _metrics(self, pl_module: LightningModule) -> Statistics:
        return cast("Statistics", attached(pl_module, self.statistics_class))

    def _require_ready(self, pl_module: LightningModule) -> None:
        """Check statistics and thresholds when a stage starts, where reading values is affordable.

        Raises:
            NotFittedError: there are no statistics, or there is no threshold, or it is not finite.
            AnomnormError: they were fitted with another option.
        """
        metrics = self._metrics(pl_module)
        option, own, other = self._option
        if metrics.option != option:
            raise AnomnormError(
                f"the statistics were fitted with {other} and this callback has {own}: their numbers mean something "
                f"else. Make it a {type(self).__name__}({other}), or run a validation with this one first."
            )
        metrics.statistics("image")
        self.thresholds = require_thresholds(pl_module)
        batch_normalizer(pl_module)  # made here, it costs the first batch nothing

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a training that ends without a validation of its final weights, or has none at all."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[union-attr]
        names = [type(callback).__name__ for callback in callbacks]
        if "StochasticWeightAveraging" in names:
            warnings.warn(
                "StochasticWeightAveraging changes the weights after the last validation, so that statistics and "
                "thresholds do not belong to them: call trainer.validate(...) after the training.",
                stacklevel=2,
            )
        if not trainer.enable_validation:
            warnings.warn(
                f"{type(self).__name__} fits its statistics in validation runs, and this training has none: give "
                "trainer.fit a validation loader and the module a validation_step.",
                stacklevel=2,
            )

    # A validation run: observed batch by batch, judged at its end.

    def _start_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run = ValidationRun(pl_module.device, pixels=self._rule(pl_module, "pixel") is not None)
        self._loaders = flattened(trainer.val_dataloaders)
        self._seen = [0] * len(self._loaders)

    def _distinct(
        self, scores: Tensor, maps: Tensor | None, truth: GroundTruth, batch_index: int, loader_index: int
    ) -> tuple[Tensor, Tensor | None, GroundTruth]:
        """A batch without the samples that only pad the share of this process."""
        own = slice(None)
        if loader_index < len(self._loaders):
            own = slice(distinct(self._loaders[loader_index], batch_index, self._seen[loader_index], len(scores)))
            self._seen[loader_index] += len(scores)
        labels, masks = (None if part is None else part[own] for part in truth)
        return scores[own], None if maps is None else maps[own], GroundTruth(labels, masks)

    def _ground_truth(self, pl_module: LightningModule, step: StepOutputs, batch: Any) -> GroundTruth:
        """The ground truth of a batch, as far as a threshold has to be found with it."""
        image, pixel = (self._rule(pl_module, level) is not None for level in LEVELS)
        if not (image or pixel or self._needs_labels):
            return GroundTruth(None, None)
        return step.ground_truth(batch, masks=pixel)

    def _rule(self, pl_module: LightningModule, level: Level) -> ThresholdRule | None:
        return self._metrics(pl_module).thresholds.rule(level, partial(own_threshold, pl_module))

    def _find_thresholds(self, trainer: Trainer, pl_module: LightningModule, run: ValidationRun) -> None:
        """Find the thresholds that nobody gave, and log them."""
        metrics = self._metrics(pl_module)
        rule, pixel_rule = self._rule(pl_module, "image"), self._rule(pl_module, "pixel")
        image, raw = (None, None) if rule is None else self._image_threshold(metrics, run, rule)
        pixel = None
        if pixel_rule is not None:
            pixel = run.pixel_threshold(pixel_rule, self.normal_quantile, searched=rule is not None)
        metrics.keep_found(image, None if pixel is None else float(pixel), raw)
        found: dict[str, float] = {f"{level}_threshold": value for level, value in metrics.thresholds.found.items()}
        if not trainer.barebones:
            for name, value in found.items():
                pl_module.log(name, value, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the thresholds into ``thresholds``.

        That is later than `on_validation_epoch_end`, where a module may still compute its own.
        """
        if not trainer.sanity_checking:
            self._run, self._loaders = None, []
            self.thresholds = read_thresholds(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop what a validation run has gathered that does not come to its end."""
        self._run, self._loaders = None, []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are statistics (clause N8) and put the thresholds of the module's test metrics at 0.5.

        That is where unit scores have theirs (clause L7).

        Raises:
            NotFittedError: no validation run has fitted the statistics and no checkpoint has restored them.
        """
        self._require_ready(pl_module)
        for name in ("image_metrics", "pixel_metrics"):
            set_metric_threshold(getattr(pl_module, name, None), 0.5)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there are statistics (clause N8).

        Raises:
            NotFittedError: no validation run has fitted the statistics and no checkpoint has restored them.
        """
        self._require_ready(pl_module)

    def on_test_batch_end(
        self,
        _trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        _batch: Any,
        _batch_idx: int,
        _dataloader_idx: int = 0,
    ) -> None:
        """Normalize the batch's scores and maps, in place in ``outputs``, and add labels and masks."""
        self._normalize_outputs(outputs, pl_module)

    on_predict_batch_end = on_test_batch_end


@contextmanager
def reporting(trainer: Trainer) -> Iterator[None]:
    """Let the first process alone give the warnings of a validation run: all of them have the same."""
    if trainer.is_global_zero:  # untouched filters remember what they have shown
        yield
        return
    with warnings.catch_warnings():
        for category in (InvalidScoreWarning, ThresholdWarning, FitWarning):
            warnings.simplefilter("ignore", category)
        yield


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
