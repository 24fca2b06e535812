"""CDF normalization of anomaly scores in a training loop, under either Lightning distribution."""

import logging
from typing import Any

import torch
from torch import Tensor

from anomnorm_core.policy import LARGEST_FLOAT32, Center, OnInvalid, Source, ThresholdRule
from anomnorm_torch import cdf
from anomnorm_torch._tensors import wide
from anomnorm_torch.life_cycle.base import NormalizationLifeCycle, reporting
from anomnorm_torch.life_cycle.collection import collect
from anomnorm_torch.life_cycle.framework import LightningModule, Trainer
from anomnorm_torch.life_cycle.inference_model import share_weights
from anomnorm_torch.life_cycle.thresholds import batch_normalizer, batch_thresholds
from anomnorm_torch.life_cycle.validation_run import ValidationRun
from anomnorm_torch.metrics import AnomalyScoreDistribution
from anomnorm_torch.outputs import StepOutputs

logger = logging.getLogger("anomnorm_torch.callbacks.cdf_normalization")


class CdfNormalization(NormalizationLifeCycle[AnomalyScoreDistribution]):
    """Standardize image-level and pixel-level anomaly scores and normalize them to [0, 1] with 0.5 at the threshold.

    Before each validation run the current model scores the normal training data; the logarithms of those scores are
    taken as normally distributed. Validation then leaves z-scores ``(log x - mean) / std`` in the step's outputs, in
    place, so that thresholds that the module computes from them are in z units ("so many sigmas"). Test and predict
    leave unit scores ``Phi(z - threshold)`` and add ``pred_labels`` and ``pred_masks``, which are decided on ``z``
    (``z >= threshold``). Statistics and thresholds are in the module's state dict.

    Args:
        threshold: decision threshold in z units, or how to find it; wins over a checkpoint. None takes
            ``image_threshold.value`` and ``pixel_threshold.value`` of the module, and does as ``"adaptive"`` does where
            it has none. ``"adaptive"`` finds the threshold of the best F1 in each validation run, from the labels and
            masks in the step's outputs or in the batch. ``"normal_quantile"`` places it just above the normal samples.
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does, and takes a number that was
            given there.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        center: where pixel z-scores are zero: ``"image"`` (the image-level mean, the founding behaviour) or
            ``"pixel"`` (each pixel's own mean, for detectors with a stable spatial baseline).
        source: where the distribution is fitted: ``"train"``, or ``"validation"`` on the normal samples of the
            validation data, which unlike the training data the detector has not seen before.
        on_invalid: ``"warn"``: scores without a logarithm (NaN, infinite, not positive) are left out of the statistics
            and one warning counts them; ``"raise"``: the first one is an error (this reads counts off the device in
            every batch of the collection).

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    statistics_class = AnomalyScoreDistribution

    _needs_labels = True  # for the fit check

    def __init__(
        self,
        threshold: float | ThresholdRule | str | None = None,
        *,
        pixel_threshold: float | ThresholdRule | str | None = None,
        normal_quantile: float = 1.0,
        center: Center | str = Center.IMAGE,
        source: Source | str = Source.TRAIN,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
    ) -> None:
        super().__init__(threshold, pixel_threshold, normal_quantile, on_invalid)
        self.center = Center.parse(center, "center")
        self.source = Source.parse(source, "source")
        self._fit_reported = False
        self._before: Any = None  # statistics and thresholds of before the validation run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """See `NormalizationLifeCycle.setup`."""
        super().setup(trainer, pl_module, stage)
        self._fit_reported = False

    def _new_statistics(self) -> AnomalyScoreDistribution:
        # Each process finalizes what it has; merging processes is an explicit step, never a side effect of reading.
        return AnomalyScoreDistribution(center=self.center, sync_on_compute=False)

    @property
    def _option(self) -> tuple[bool, str, str]:
        image, pixel = (f'center="{center}"' for center in (Center.IMAGE, Center.PIXEL))
        return (True, pixel, image) if self.center is Center.PIXEL else (False, image, pixel)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the score distribution with the current weights.

        It happens before every validation run, so that the statistics of a checkpoint belong to its weights.

        Raises:
            NotFittedError: there is nothing to fit on and no checkpoint has restored statistics.
        """
        if not trainer.sanity_checking:
            metrics = self._metrics(pl_module)
            self._before = metrics.snapshot()
            metrics.option = self._option[0]  # the moments are the same for both
            logger.info("Collecting the statistics of the normal data to normalize the scores.")
            self._collect_stats(trainer, pl_module)
            batch_normalizer(pl_module)  # made here, it costs the first batch nothing
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
        """Replace the batch's scores and maps by z-scores, in place in ``outputs``.

        Raises:
            OutputError: the outputs hold neither scores nor maps.
            ResolutionError: the maps do not have the fitted height and width.
        """
        raw = StepOutputs(outputs)
        truth = self._ground_truth(pl_module, raw, _batch)
        if self._run is None:  # in a sanity check, which finds out what the outputs lack
            return
        self._standardize_batch(outputs, pl_module)
        maps = StepOutputs(outputs).maps
        self._run.add(*self._distinct(raw.scores, maps, truth, _batch_idx, _dataloader_idx))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the thresholds that nobody gave, and check how the fit does on normal validation samples (clause S9).

        Raises:
            NotFittedError: no valid score is there to place a threshold by.
        """
        if self._run is None:  # sanity check
            return
        if trainer.world_size > 1:
            self._run.merge_processes()
        with reporting(trainer):
            self._find_thresholds(trainer, pl_module, self._run)
            normals = self._run.normal_scores()
            self._check_fit(self._metrics(pl_module), normals[:0] if self.source is Source.VALIDATION else normals)
        self._before = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the statistics and thresholds of before a validation run back that does not come to its end."""
        if self._before is not None:
            self._metrics(pl_module).put_back(self._before)
            self._before = None
        super().on_exception(trainer, pl_module, exception)

    def _check_fit(self, metrics: AnomalyScoreDistribution, normals: Tensor) -> None:
        metrics.keep_check(cdf.standardize(normals, *metrics.statistics("image")))
        check = metrics.fit_check
        if check is not None and not self._fit_reported:
            self._fit_reported = check.report()

    def _image_threshold(
        self, metrics: AnomalyScoreDistribution, run: ValidationRun, rule: ThresholdRule
    ) -> tuple[float, float]:
        # On raw scores: rounding to z-scores could move the sample that defines the threshold below it (clause P2).
        raw = run.image_threshold(rule, self.normal_quantile, positive=True)
        nothing = torch.empty(0, dtype=wide(raw.device), device=raw.device)
        z = float(cdf.standardize_around(nothing, raw, *metrics.statistics("image"))[1])
        return max(-LARGEST_FLOAT32, min(z, LARGEST_FLOAT32)), float(raw)

    def _normalize_outputs(self, outputs: Any, pl_module: LightningModule) -> None:
        self._standardize_batch(outputs, pl_module)
        self._normalize_batch(outputs, pl_module)

    def _collect_stats(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the statistics of the normal data.

        A duplicate of the module that shares its weights scores the data batch by batch; only moments are kept.
        """
        metrics = self._metrics(pl_module)
        fresh = self._new_statistics().to(pl_module.device)
        if collect(trainer, pl_module, self._create_inference_model(pl_module), fresh, self.source, self.on_invalid):
            with reporting(trainer):
                self._reported |= fresh.finish(self.on_invalid, warn=not self._reported)
            # The old statistics are replaced only by complete ones.
            metrics.reset()
            metrics.merge_state(fresh)
        metrics.statistics("image")

    @staticmethod
    def _create_inference_model(pl_module: LightningModule) -> LightningModule:
        """Create a duplicate of the module that can be used to perform inference on the training set.

        It shares the parameters, has copies of the buffers, is in evaluation mode and logs nothing, so that using it
        leaves no trace in the module.
        """
        model = share_weights(pl_module)
        model.eval()
        for name in ("log", "log_dict"):
            object.__setattr__(model, name, _log_nothing)
        return model

    @staticmethod
    def _standardize_batch(outputs: Any, pl_module: LightningModule) -> None:
        """Replace raw scores and maps by z-scores."""
        step = StepOutputs(outputs)
        step.write(batch_normalizer(pl_module).standardize(step.scores, step.maps))

    @staticmethod
    def _normalize_batch(outputs: Any, pl_module: LightningModule) -> None:
        """Replace z-scores by unit scores, and add labels and masks."""
        step = StepOutputs(outputs)
        fitted = batch_normalizer(pl_module)
        step.write(fitted.normalize_standardized(step.scores, step.maps, **batch_thresholds(pl_module)))


def _log_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stands in for ``LightningModule.log`` in the duplicate."""
