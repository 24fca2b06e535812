"""Normalization of anomaly scores in a training loop, under either Lightning distribution: neither is imported here."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NoReturn, SupportsFloat

from torch import Tensor

from anomnorm_core.checks import report_undefined
from anomnorm_core.errors import AnomnormError, FitWarning, InvalidScoreWarning, OptionError, ThresholdWarning
from anomnorm_core.fit import Fit, Threshold
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.options import (
    LEVELS,
    OnInvalid,
    Source,
    ThresholdRule,
    Units,
    parse_quantile,
    parse_threshold_option,
)
from anomnorm_core.threshold.choice import Choice, choose, place
from anomnorm_torch.batches import normalize_batch, standardize_batch
from anomnorm_torch.collection import collect, flattened
from anomnorm_torch.framework import LightningModule, Trainer
from anomnorm_torch.inference_model import create_inference_model
from anomnorm_torch.methods import METHODS
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.outputs import GroundTruth, StepOutputs
from anomnorm_torch.processes import count_unpadded
from anomnorm_torch.run import Records, Run
from anomnorm_torch.slot import NAME, Slot
from anomnorm_torch.thresholds import own_threshold, set_metric_threshold, slot_of

logger = logging.getLogger("anomnorm_torch.callbacks.cdf_normalization")

ThresholdOption = float | ThresholdRule | str | None

# They do not hold the whole module in each process, or have no torch.distributed to talk through.
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy", "XLAFSDPStrategy"}


class Normalization:
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold, by any method.

    Each validation run fits the method and its thresholds. A method without sigmas is fitted by the run's own scores,
    which stay raw; one with sigmas by a pass over normal data before the run, which then leaves z-scores in the step's
    outputs, in place, so that thresholds that the module computes from them are in sigmas. Test and predict replace
    ``pred_scores`` and ``anomaly_maps`` by normalized scores and add ``pred_labels`` and ``pred_masks``, which are
    decided on the raw values (``x >= threshold``). Parameters and thresholds are in the module's state dict.

    Args:
        method: its name, ``"two-slope"``, ``"min-max"``, ``"cdf"`` or that of a registered one.
        threshold: decision threshold, in sigmas where the method has them and else in raw units, or how to find it; it
            wins over a checkpoint. None takes ``image_threshold.value`` and ``pixel_threshold.value`` of the module,
            and does as ``"adaptive"`` does where it has none. ``"adaptive"`` finds the threshold of the best F1 in each
            validation run, from the labels and masks in the step's outputs or in the batch. ``"normal_quantile"``
            places it just above the normal samples.
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does, and takes a number that was
            given there. ``"image"`` takes that of the images in any case.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        source: where a method with sigmas is fitted: ``"train"``, the default, or ``"validation"`` on the normal
            samples of the validation data, which unlike the training data the detector has not seen before.
        on_invalid: ``"warn"``: scores that cannot enter the statistics are left out and one warning counts them;
            ``"raise"``: the first one is an error (this reads counts off the device in every batch).
        options: of the method, by name.

    Attributes:
        thresholds: by level, with their origin, as of the last validation run or the start of a test or prediction.
        fit_check: how the fit does on the normal validation samples, of a method with sigmas; None without any.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    other_import: ClassVar[str]  # of the same class for the other Lightning distribution

    def __init__(
        self,
        method: str,
        threshold: ThresholdOption = None,
        *,
        pixel_threshold: ThresholdOption = None,
        normal_quantile: float = 1.0,
        source: Source | str | None = None,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._kernels = METHODS[method]
        self.method = self._kernels.method
        self.options = self.method.parse_options(options or {})
        self.threshold = parse_threshold_option(threshold, "threshold")
        self.pixel_threshold = parse_threshold_option(pixel_threshold, "pixel_threshold")
        self.normal_quantile = parse_quantile(normal_quantile, "normal_quantile")
        if source is not None and not self.method.sigmas:
            raise OptionError(f"source={source!r}: {self.method.name} normalization is fitted by each validation run.")
        self.source = Source.TRAIN if source is None else Source.parse(source, "source")
        self.on_invalid = OnInvalid.parse(on_invalid, "on_invalid")
        self.thresholds: dict[str, Threshold] = {}
        self.fit_check: FitCheck | None = None
        self._run: Run | None = None
        self._loaders: list[Iterable[Any]] = []
        self._seen: list[int] = []  # samples of each loader so far
        self._truth: tuple[bool, bool] = (True, True)  # whether labels are needed, and masks
        self._normalizer: Normalizer | None = None  # of the present test or prediction
        self._undefined: Tensor | None = None  # (): image scores of it that are NaN
        self._reported = False  # whether this training had its warning about values that were left out
        self._fit_reported = False  # and about its fit

    def __iter__(self) -> NoReturn:
        # Trainer(callbacks=callback) takes a single one of its own distribution, and iterates over anything else.
        raise TypeError(
            f"a single {type(self).__name__} is no list of callbacks: give callbacks=[callback]. If it was given "
            f"alone, the Trainer is of the other Lightning distribution; {self.other_import} fits that."
        )

    # What a module carries.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Give the module its slot, ``normalization_metrics``, or adopt the one that is there.

        Raises:
            AnomnormError: the module carries the fit of another method, the trainer has a second normalization
                callback, or its strategy is not supported.
        """
        strategy = type(trainer.strategy)
        if _SHARDING & {base.__name__ for base in strategy.__mro__}:
            raise AnomnormError(
                f"{type(self).__name__} cannot run under {strategy.__name__}: statistics are fitted and saved with the "
                'whole module, of which each process holds a part there. Use strategy="ddp" for several processes.'
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[union-attr]
        normalizing = [callback for callback in callbacks if isinstance(callback, Normalization)]
        if len(normalizing) > 1:
            names = ", ".join(type(callback).__name__ for callback in normalizing)
            raise AnomnormError(f"the trainer has {len(normalizing)} normalization callbacks ({names}); use one.")
        self.threshold = parse_threshold_option(self.threshold, "threshold")  # they may have been changed
        self.pixel_threshold = parse_threshold_option(self.pixel_threshold, "pixel_threshold")
        self._run = self._normalizer = self._undefined = None
        self._reported = self._fit_reported = False
        self._give_slot(pl_module)
        for position, callback in enumerate(callbacks):
            if "WeightAveraging" not in {base.__name__ for base in type(callback).__mro__}:
                continue
            if position > callbacks.index(self):  # it would exchange the weights after they were used here
                raise AnomnormError(
                    f"{type(callback).__name__} validates with averaged weights, and {type(self).__name__} has to see "
                    f"those: list {type(callback).__name__} before it."
                )
            # Its copy of the module has to accept a checkpoint with a fit.
            average = getattr(getattr(callback, "_average_model", None), "module", None)
            if average is not None:
                self._give_slot(average)

    def _give_slot(self, module: Any) -> None:
        slot = getattr(module, NAME, None)
        if slot is None:
            slot = Slot().to(module.device)
            setattr(module, NAME, slot)
        found = slot.fit.method.name if isinstance(slot, Slot) else type(slot).__name__
        if not isinstance(slot, Slot) or (slot.fit.image is not None and slot.fit.method != self.method):
            raise AnomnormError(
                f"the module already has {NAME} of {found}, but {type(self).__name__} is of {self.method.name} "
                f"normalization. To change the method, delete module.{NAME} first."
            )
        if slot.fit.image is None:
            slot.fit = Fit(self.method, options=self.options)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the fit into the state dict, where another callback has put another module's there."""
        own = slot_of(pl_module).state_dict(prefix=f"{NAME}.")
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **own}

    def normalizer(self, pl_module: LightningModule) -> Normalizer:
        """What was fitted, with the present thresholds, as a module of its own: to save, to serve, to export.

        Args:
            pl_module: a module that this callback was trained with, or that restored such a one.

        Returns:
            A `Normalizer` on the module's device. It gives what test and predict leave in the outputs, bit for bit, and
            stays as it is when the training goes on.

        Raises:
            NotFittedError: nothing was fitted yet, or a threshold is missing.
        """
        return self._ready(pl_module, self._placed(pl_module))

    def _ready(self, pl_module: LightningModule, fit: Fit) -> Normalizer:
        """The normalizer of ``fit`` on the module's device; its thresholds are read into ``thresholds``."""
        normalizer = Normalizer(fit).to(pl_module.device)
        self._read(fit, slot_of(pl_module).fit_check)
        return normalizer

    def with_threshold(
        self,
        pl_module: LightningModule,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> Normalizer:
        """Set thresholds manually: they stay through later validation runs, and win over those of a checkpoint (T4).

        The module is changed.

        Args:
            pl_module: a module with a fit.
            threshold, pixel_threshold, units: see `Normalizer.with_threshold`.

        Returns:
            The normalizer that the module has now, as `normalizer` gives it.

        Raises:
            NotFittedError: nothing was fitted yet.
            OptionError: a number is not finite, or not between 0 and 1 if normalized.
        """
        slot = slot_of(pl_module)
        fit = self._placed(pl_module).with_threshold(threshold, pixel_threshold, units=units)
        slot.set_manually(_with_pixels(fit))
        self._normalizer = None
        return self.normalizer(pl_module)

    def without_manual_threshold(self, pl_module: LightningModule) -> Normalizer:
        """Let the next validation run replace the thresholds that were set manually; until then they stay.

        Args:
            pl_module: a module with a fit, which is changed.

        Returns:
            The normalizer that the module has now, as `normalizer` gives it.

        Raises:
            NotFittedError: nothing was fitted yet.
        """
        slot = slot_of(pl_module)
        slot.set_manually(slot.fit.released())
        return self.normalizer(pl_module)

    def _placed(self, pl_module: LightningModule) -> Fit:
        """The fit with the thresholds that count now (clause T1), as far as there are any. Waits for the device.

        Raises:
            NotFittedError: the module's own threshold is not finite.
            AnomnormError: it was fitted with other options.
        """
        fit = slot_of(pl_module).fit
        if fit.image is not None and fit.options != self.options:
            given = (
                ", ".join(f"{name}={value!r}" for name, value in each.items()) for each in (fit.options, self.options)
            )
            raise AnomnormError(
                "the statistics were fitted with {} and this callback has {}: their numbers mean something else. Give "
                "it the same options, or run a validation with this one first.".format(*given)
            )
        return _with_pixels(place(fit, self._choices(pl_module, fit, refuse=True)))

    def _choices(self, pl_module: LightningModule, fit: Fit, *, refuse: bool = False) -> dict[str, Choice]:
        options = {"image": self.threshold, "pixel": self.pixel_threshold}
        return choose(options, fit, partial(own_threshold, pl_module, refuse=refuse))

    def _read(self, fit: Fit, check: FitCheck | None) -> None:
        levels = [level for level in LEVELS if getattr(fit, level) is not None]
        self.thresholds = {level: fit.threshold(level) for level in levels}
        self.fit_check = check

    # A validation run: observed batch by batch, judged at its end.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a training that ends without a validation of its final weights, or has none at all."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[union-attr]
        if "StochasticWeightAveraging" in [type(callback).__name__ for callback in callbacks]:
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

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with nothing: each validation run stands for itself (clause L1).

        A method with sigmas is fitted here, with the current weights, so that the statistics of a checkpoint belong to
        its weights. What the module was fitted with before stays until the run has come to its end.

        Raises:
            NotFittedError: there is nothing to fit on and no checkpoint has restored statistics.
        """
        slot = slot_of(pl_module)
        searched = {level: choice.is_searched for level, choice in self._choices(pl_module, slot.fit).items()}
        self._truth = self.method.sigmas or any(searched.values()), searched["pixel"]
        if trainer.sanity_checking:
            return
        slot.draft = None
        if self.method.sigmas:
            logger.info("Collecting the statistics of the normal data to normalize the scores.")
            self._collect_stats(trainer, pl_module)
        device = pl_module.device
        self._run = Run(self._kernels, self.options, device, draft=slot.draft, pixels=searched["pixel"])
        self._loaders = flattened(trainer.val_dataloaders)
        self._seen = [0] * len(self._loaders)

    def _collect_stats(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the statistics of the normal data.

        A duplicate of the module that shares its weights scores the data batch by batch; only moments are kept.
        """
        slot = slot_of(pl_module)
        records = Records(self._kernels, self.options, pl_module.device)
        model = self._create_inference_model(pl_module)
        fitted = slot.fit.image is not None
        if collect(trainer, pl_module, model, records, self.source, self.on_invalid, fitted=fitted):
            slot.draft = self._reporting_invalid(trainer, records)
        else:  # the parameters are the same for all options
            slot.draft = replace(slot.fit, options=self.options)

    def _reporting_invalid(self, trainer: Trainer, records: Records) -> Fit:
        """What was fitted, with one warning in a training of what was left out."""
        if self.on_invalid is OnInvalid.RAISE:
            records.report_invalid(self.on_invalid)
        fit = records.finish()  # an unusable one is an error
        if not self._reported:
            with reporting(trainer):
                self._reported = records.report_invalid(OnInvalid.WARN)
        return fit

    def on_validation_batch_end(
        self,
        _trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        _batch: Any,
        _batch_idx: int,
        _dataloader_idx: int = 0,
    ) -> None:
        """Add the batch to the run; a method with sigmas leaves z-scores in the outputs, in place.

        Raises:
            OutputError: the outputs hold neither scores nor maps, or cannot be changed.
            ResolutionError: the maps do not have the fitted height and width.
            InvalidScoreError: under ``on_invalid="raise"``.
        """
        if outputs is None:  # a skipped batch
            return
        step, run = StepOutputs(outputs), self._run
        scores, valid = step.scores, step.valid(_batch)
        labels, masks = self._truth
        truth = step.ground_truth(_batch, masks=masks) if labels else GroundTruth(None, None)
        if _batch_idx == 0:
            step.require_writable()
        if run is None:  # in a sanity check, which finds out what the outputs lack
            return
        raw, units = step.maps, step.maps
        if run.standardizer is not None:
            if self._standardize_batch is Normalization._standardize_batch:
                step.write(run.standardizer(step.shaped_scores, raw))
            else:
                self._standardize_batch(outputs, pl_module)
            units = StepOutputs(outputs).maps
        # Without the samples that only pad the share of this process.
        own = slice(None)
        if _dataloader_idx < len(self._loaders):
            before = self._seen[_dataloader_idx]
            own = slice(count_unpadded(self._loaders[_dataloader_idx], _batch_idx, before, len(scores)))
            self._seen[_dataloader_idx] += len(scores)
        marks, maps, units, valid = (None if part is None else part[own] for part in (truth.masks, raw, units, valid))
        known = None if truth.anomalous is None else truth.anomalous[own]
        run.add(scores[own], maps, GroundTruth(known, marks), valid, units=units)
        if run.records is not None and self.on_invalid is OnInvalid.RAISE:
            run.records.report_invalid(self.on_invalid)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the fit of this run, with the thresholds that nobody gave, and log those.

        Raises:
            NotFittedError: the run has seen no valid score.
        """
        run, slot = self._run, slot_of(pl_module)
        if run is None:  # sanity check
            return
        if trainer.world_size > 1:
            run.merge_processes()
        if run.records is not None:
            run.draft = self._reporting_invalid(trainer, run.records)
        choices = self._choices(pl_module, slot.fit)
        with reporting(trainer):
            fit = run.finish(choices, self.normal_quantile)
            check = None
            if self.method.sigmas and self.source is Source.TRAIN:
                check = run.fit_check(fit)
                if check is not None and not self._fit_reported:
                    self._fit_reported = check.report()
        # What was there before is replaced only by a complete fit.
        slot.fit, slot.fit_check, slot.draft, self._run = fit, check, None, None
        if not trainer.barebones:
            for level, choice in choices.items():
                if choice.is_searched and getattr(fit, level) is not None:
                    threshold = fit.threshold(level)
                    number = float(threshold.raw) if threshold.sigmas is None else threshold.sigmas
                    pl_module.log(f"{level}_threshold", number, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the module's own thresholds, and read all into ``thresholds``.

        That is later than `on_validation_epoch_end`, where a module may still compute its own (clause N4a).
        """
        if trainer.sanity_checking:
            return
        self._loaders, slot = [], slot_of(pl_module)
        slot.fit = place(slot.fit, self._choices(pl_module, slot.fit))
        self._read(slot.fit, slot.fit_check)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop what a validation run has gathered that does not come to its end; the fit before it stays."""
        self._run, self._loaders, self._normalizer = None, [], None
        slot = getattr(pl_module, NAME, None)
        if isinstance(slot, Slot):
            slot.draft = slot.placed = None

    # Test and prediction.

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve the thresholds, once (clause T1), and put those of the module's test metrics at 0.5 (clause L7).

        Raises:
            NotFittedError: no validation run has fitted the module and no checkpoint has restored a fit (clause N8).
        """
        self.on_predict_start(trainer, pl_module)
        for name in ("image_metrics", "pixel_metrics"):
            set_metric_threshold(getattr(pl_module, name, None), 0.5)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve the thresholds, once (clause T1).

        Raises:
            NotFittedError: no validation run has fitted the module and no checkpoint has restored a fit (clause N8).
        """
        fit = self._placed(pl_module)
        self._normalizer = self._ready(pl_module, fit)
        slot_of(pl_module).placed = fit

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
        if outputs is None:  # a skipped batch
            return
        own = self._normalize_batch is not Normalization._normalize_batch
        if own or (self.method.sigmas and self._standardize_batch is not Normalization._standardize_batch):
            if self.method.sigmas:
                self._standardize_batch(outputs, pl_module)
            self._normalize_batch(outputs, pl_module)
            return
        normalizer = self.normalizer(pl_module) if self._normalizer is None else self._normalizer
        step = StepOutputs(outputs)
        valid = step.valid(_batch)
        result = normalizer(step.given, step.maps, valid=valid)
        undefined = result["pred_scores"].isnan()
        undefined = undefined if valid is None else undefined.reshape(-1) & valid
        self._undefined = undefined.sum() + (0 if self._undefined is None else self._undefined)
        step.write(result)

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the normalizer of this stage, and warn of image scores that are NaN (clause N6)."""
        report_undefined(0 if self._undefined is None else int(self._undefined))
        self._normalizer = self._undefined = slot_of(pl_module).placed = None

    on_predict_end = on_test_end

    # Those of anomalib 0.3, which a subclass may replace (clause N4b).
    _create_inference_model = staticmethod(create_inference_model)
    _standardize_batch = staticmethod(standardize_batch)
    _normalize_batch = staticmethod(normalize_batch)


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


def _with_pixels(fit: Fit) -> Fit:
    """``fit``, where a pixel threshold that nobody has is that of the images (clause T6)."""
    return fit.following() if fit.pixel is not None and fit.pixel.threshold is None else fit
