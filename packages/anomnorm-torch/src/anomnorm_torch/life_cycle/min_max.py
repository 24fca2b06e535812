"""Min-max normalization of anomaly scores in a training loop, under either Lightning distribution."""

from typing import Any

from anomnorm_core.policy import OnInvalid, ThresholdRule, require_flag
from anomnorm_torch.life_cycle.base import NormalizationLifeCycle, reporting
from anomnorm_torch.life_cycle.framework import LightningModule, Trainer
from anomnorm_torch.life_cycle.thresholds import batch_normalizer, batch_thresholds
from anomnorm_torch.life_cycle.validation_run import ValidationRun
from anomnorm_torch.metrics import MinMax
from anomnorm_torch.outputs import StepOutputs


class MinMaxNormalization(NormalizationLifeCycle[MinMax]):
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold.

    Each validation run collects the smallest and the largest raw score. Test and predict then replace, in place in the
    step's outputs, ``pred_scores`` and ``anomaly_maps`` by unit scores
    ``clip((x - threshold) / (max - min) + 1/2, 0, 1)`` and add ``pred_labels`` and ``pred_masks``, which are decided on
    the raw values (``x >= threshold``). Statistics and thresholds are in the module's state dict.

    Args:
        threshold: decision threshold in raw units, or how to find it; wins over a checkpoint. None takes
            ``image_threshold.value`` and ``pixel_threshold.value`` of the module, and does as ``"adaptive"`` does where
            it has none. ``"adaptive"`` finds the threshold of the best F1 in each validation run, from the labels and
            masks in the step's outputs or in the batch. ``"normal_quantile"`` places it just above the normal samples.
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does, and takes a number that was
            given there.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        shared_range: one range for both levels, from the maps where there are any (the founding behaviour).
        on_invalid: ``"warn"``: NaN and infinite scores are left out of the statistics and one warning counts them;
            ``"raise"``: the first one is an error (this reads a count off the device in every batch).

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    statistics_class = MinMax

    _needs_labels = False

    def __init__(
        self,
        threshold: float | ThresholdRule | str | None = None,
        *,
        pixel_threshold: float | ThresholdRule | str | None = None,
        normal_quantile: float = 1.0,
        shared_range: bool = False,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
    ) -> None:
        super().__init__(threshold, pixel_threshold, normal_quantile, on_invalid)
        require_flag(shared_range, "shared_range")
        self.shared_range = shared_range
        self._fresh: MinMax | None = None

    def _new_statistics(self) -> MinMax:
        # Each process finalizes what it has; merging processes is an explicit step, never a side effect of reading.
        return MinMax(shared_range=self.shared_range, sync_on_compute=False)

    @property
    def _option(self) -> tuple[bool, str, str]:
        return self.shared_range, f"shared_range={self.shared_range}", f"shared_range={not self.shared_range}"

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with empty statistics: each validation run stands for itself (clause L1)."""
        if not trainer.sanity_checking:
            self._fresh = self._new_statistics().to(pl_module.device)
            self._start_run(trainer, pl_module)

    def on_validation_batch_end(
        self,
        _trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        _batch: Any,
        _batch_idx: int,
        _dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's raw scores to the statistics; the outputs stay as they are.

        Raises:
            OutputError: the outputs hold neither scores nor maps.
            InvalidScoreError: under ``on_invalid="raise"``.
        """
        step = StepOutputs(outputs)
        truth = self._ground_truth(pl_module, step, _batch)
        if self._fresh is None or self._run is None:  # in a sanity check, which finds out what the outputs lack
            return
        own = self._distinct(step.scores, step.maps, truth, _batch_idx, _dataloader_idx)
        scores, maps, _ = own
        self._fresh.update(scores, maps)
        if self.on_invalid is OnInvalid.RAISE:
            self._fresh.report_invalid(self.on_invalid)
        self._run.add(*own)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the run's statistics, find the thresholds that nobody gave, and report what was left out.

        Raises:
            NotFittedError: the run has seen no valid score.
        """
        if self._fresh is None or self._run is None:  # sanity check
            return
        fresh, self._fresh = self._fresh, None
        if trainer.world_size > 1:
            fresh.merge_processes()
            self._run.merge_processes()
        with reporting(trainer):
            self._end_run(trainer, pl_module, fresh, self._run)

    def _end_run(self, trainer: Trainer, pl_module: LightningModule, fresh: MinMax, run: ValidationRun) -> None:
        self._reported |= fresh.finish(self.on_invalid, warn=not self._reported)
        # The old statistics are replaced only by complete ones.
        metrics = self._metrics(pl_module)
        metrics.reset()
        metrics.option = fresh.option
        metrics.merge_state(fresh)
        self._find_thresholds(trainer, pl_module, run)

    def _image_threshold(self, metrics: MinMax, run: ValidationRun, rule: ThresholdRule) -> tuple[float, None]:
        return float(run.image_threshold(rule, self.normal_quantile)), None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop what a validation run has gathered that does not come to its end; the statistics before it stay."""
        self._fresh = None
        super().on_exception(trainer, pl_module, exception)

    def _normalize_outputs(self, outputs: Any, pl_module: LightningModule) -> None:
        self._normalize_batch(outputs, pl_module)

    @staticmethod
    def _normalize_batch(outputs: Any, pl_module: LightningModule) -> None:
        """Normalize a batch of predictions."""
        step = StepOutputs(outputs)
        step.write(batch_normalizer(pl_module)(step.scores, step.maps, **batch_thresholds(pl_module)))
