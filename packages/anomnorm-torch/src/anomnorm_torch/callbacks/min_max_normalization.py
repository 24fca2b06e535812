"""Min-max normalization of anomaly scores in a Lightning training loop."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from anomnorm_core.policy import OnInvalid
from anomnorm_torch.callbacks._life_cycle import NormalizationLifeCycle, attached, thresholds
from anomnorm_torch.metrics import MinMax
from anomnorm_torch.outputs import StepOutputs


class MinMaxNormalizationCallback(NormalizationLifeCycle[MinMax], Callback):
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold.

    Each validation run collects the smallest and the largest raw score. Test and predict then replace, in place in the
    step's outputs, ``pred_scores`` and ``anomaly_maps`` by unit scores
    ``clip((x - threshold) / (max - min) + 1/2, 0, 1)`` and add ``pred_labels`` and ``pred_masks``, which are decided on
    the raw values (``x >= threshold``). Statistics and thresholds are in the module's state dict.

    Args:
        threshold: decision threshold in raw units; wins over the module's own and over a checkpoint. None takes
            ``image_threshold.value`` and ``pixel_threshold.value`` of the module.
        pixel_threshold: the same for the anomaly maps; None takes ``threshold``.
        shared_range: one range for both levels, from the maps where there are any (the founding behaviour).
        on_invalid: ``"warn"``: NaN and infinite scores are left out of the statistics and one warning counts them;
            ``"raise"``: the first one is an error (this reads a count off the device in every batch).

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    statistics_class = MinMax

    def __init__(
        self,
        threshold: float | None = None,
        *,
        pixel_threshold: float | None = None,
        shared_range: bool = False,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
    ) -> None:
        super().__init__(threshold, pixel_threshold, on_invalid)
        self.shared_range = shared_range

    def _new_statistics(self) -> MinMax:
        # Each process finalizes what it has; merging processes is an explicit step, never a side effect of reading.
        return MinMax(shared_range=self.shared_range, sync_on_compute=False)

    def _configure(self, metrics: MinMax) -> None:
        metrics.shared_range = self.shared_range

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empty the statistics: each validation run stands for itself (clause L1)."""
        if not trainer.sanity_checking:
            self._metrics(pl_module).reset()

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
        if _trainer.sanity_checking:
            return
        step = StepOutputs(outputs)
        metrics = self._metrics(pl_module)
        metrics.update(step.scores, step.maps)
        if self.on_invalid is OnInvalid.RAISE:
            metrics.report_invalid(self.on_invalid)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the statistics and report what was left out of them.

        Raises:
            NotFittedError: the run has seen no valid score.
        """
        if not trainer.sanity_checking:
            self._metrics(pl_module).finish(self.on_invalid)

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
        self._normalize_batch(outputs, pl_module)

    def on_predict_batch_end(
        self,
        _trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        _batch: Any,
        _batch_idx: int,
        _dataloader_idx: int = 0,
    ) -> None:
        """Normalize the batch's scores and maps, in place in ``outputs``, and add labels and masks."""
        self._normalize_batch(outputs, pl_module)

    @staticmethod
    def _normalize_batch(outputs: Any, pl_module: LightningModule) -> None:
        """Normalize a batch of predictions."""
        step = StepOutputs(outputs)
        fitted = attached(pl_module, MinMax).batch_normalizer()
        step.write(fitted(step.scores, step.maps, **thresholds(pl_module, step)))
