"""Normalization of anomaly scores in a training loop, under either Lightning distribution: neither is imported here."""

import inspect
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any, ClassVar, NoReturn, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from anomnorm_core.checks import report_undefined
from anomnorm_core.errors import (
    AnomnormError,
    FitWarning,
    InvalidScoreWarning,
    NotFittedError,
    OptionError,
    ThresholdWarning,
    warn,
)
from anomnorm_core.fields import LEVEL, MAPS
from anomnorm_core.fit import Fit, Threshold
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.normalizer import require_complete
from anomnorm_core.options import (
    LEVELS,
    OnInvalid,
    Per,
    Rules,
    Source,
    ThresholdRule,
    Units,
    parse_threshold_option,
    require_rule,
)
from anomnorm_core.threshold.choice import Choice, choose, place, transform_of
from anomnorm_torch.batches import normalize_batch, standardize_batch
from anomnorm_torch.beside_anomalib import require_alone
from anomnorm_torch.collection import Pass
from anomnorm_torch.framework import LightningModule, Trainer
from anomnorm_torch.inference_model import as_inference_model, create_inference_model, take_buffers
from anomnorm_torch.log_images import HistogramLog
from anomnorm_torch.logged import logged
from anomnorm_torch.methods import METHODS
from anomnorm_torch.mixin import NormalizationMixin
from anomnorm_torch.normal_data import ENOUGH_NORMALS, CalibrationLoader, PassOptions, flattened
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.outputs import GroundTruth, StepOutputs
from anomnorm_torch.processes import OwnSamples, total
from anomnorm_torch.run import Records, Run, some_weights
from anomnorm_torch.sharding import (
    data_group,
    has_no_duplicate,
    is_sharded,
    put_fit,
    require_process_group,
    take_fit,
    take_missed_fit,
)
from anomnorm_torch.slot import NAME, Slot, carrier_of
from anomnorm_torch.thresholds import largest_below_half, own_threshold, set_metric_threshold, slot_of
from anomnorm_torch.user_hooks import UserHooks

logger = logging.getLogger("anomnorm_torch.callbacks.cdf_normalization")

ThresholdOption = float | ThresholdRule | str | None


class Normalization:
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold, by any method.

    Each validation run fits the method and its thresholds. A method without sigmas is fitted by the run's own scores,
    which stay raw; one with sigmas by a pass over normal data before the run, which then leaves z-scores in the step's
    outputs, in place, so that thresholds that the module computes from them are in sigmas. Test and predict replace
    ``pred_scores`` and ``anomaly_maps`` by normalized scores and add ``pred_labels`` and ``pred_masks``, which are
    decided on the raw values (``x >= threshold``). Parameters and thresholds are in the module's state dict.

    Args:
        method: its name, ``"two-slope"``, ``"min-max"``, ``"cdf"``, ``"normal"`` or that of a registered one.
        threshold: decision threshold, in sigmas where the method has them and else in raw units, or how to find it. A
            number wins over that of a checkpoint, unless `with_threshold` has set it there. None takes the module's own
            ``image_threshold`` and ``pixel_threshold``, numbers or objects with a ``value``, and does as
            ``"adaptive"`` does where it has none. ``"adaptive"`` finds the threshold of the best F1 in each validation
            run, from the labels and masks in the step's outputs or in the batch. ``"normal_quantile"`` places it just
            above the normal samples, and ``"false_alarm_rate"`` where a given share of new ones is expected to reach
            it (see `threshold.false_alarm_rate`).
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does, and takes a number that was
            given there. ``"image"`` takes that of the images in any case.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        false_alarm_rate: under ``"false_alarm_rate"``, which share of new normal samples may be flagged.
        confidence: in which share of validation runs that rate shall hold, 0.9 for example; None: it holds on average.
            Of images, and of pixels with ``per="image"``.
        per: what the rate of the anomaly maps is a share of: ``"pixel"``, the pixels of normal images; ``"image"``, the
            normal images, which one flagged pixel flags.
        source: where a method with sigmas is fitted: ``"train"``, the default; ``"validation"`` on the normal samples
            of the validation data, which unlike the training data the detector has not seen before; ``"auto"`` on those
            if at least 10 are labelled, else on the training data, which the first validation run of a training decides
            for all of it.
        calibration_loader: normal data for a method with sigmas, instead of the training data: a loader, batches, or a
            function that returns them anew for each fit.
        step: the step of the module that scores the normal data.
        limit_batches: of the normal data: a number of batches of each loader, or a share of them; None does as the
            trainer's limit for that data does.
        every_n_validations: in which validation runs of a training a method with sigmas is fitted: the first and every
            n-th after it. In between, its parameters stay.
        on_invalid: ``"warn"``: scores that cannot enter the statistics are left out and one warning counts them;
            ``"raise"``: the first one is an error (this reads counts off the device in every batch).
        extras: what test and predict write beside the normalized scores, under the same names with ``_z``, ``_margin``
            or ``_raw`` added: ``"z"`` (CDF), ``"margin"`` (min-max), ``"raw"``; and ``"invalid"``, shape (B,), True
            where the image score is NaN.
        log_prefix: of what a validation run logs: thresholds, parameters, how many values were left out, and the fit
            check, as ``normalization/image_threshold`` and so on. None: nothing is logged.
        log_images: whether a validation run also logs the histograms of its image scores (see
            `anomnorm_core.plot.scores`), as ``normalization/image_scores``, to loggers that take pictures.
        options: of the method, by name.

    Attributes:
        thresholds: by level, with their origin, as of the last validation run or the start of a test or prediction.
        fit_check: how the fit does on the normal validation samples, of a method with sigmas; None without any.
        fitted_source: what a method with sigmas was fitted on, ``"train"`` or ``"validation"``; None before that, for a
            ``calibration_loader``, and where the statistics of a checkpoint stay.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    other_import: ClassVar[str]  # of the same class for the other Lightning distribution
    normal_quantile: float  # the numbers of `Rules`
    false_alarm_rate: float
    confidence: float | None
    per: Per | str

    def __init__(
        self,
        method: str,
        threshold: ThresholdOption = None,
        *,
        pixel_threshold: ThresholdOption = None,
        normal_quantile: float = 1.0,
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        per: Per | str = Per.PIXEL,
        source: Source | str | None = None,
        calibration_loader: CalibrationLoader | None = None,
        step: str = "validation_step",
        limit_batches: int | float | None = None,
        every_n_validations: int = 1,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
        extras: Iterable[str] = (),
        log_prefix: str | None = "normalization",
        log_images: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._kernels = METHODS[method]
        self.method = self._kernels.method
        self.options = self.method.parse_options(options or {})
        self.threshold = parse_threshold_option(threshold, "threshold")
        self.pixel_threshold = parse_threshold_option(pixel_threshold, "pixel_threshold")
        vars(self).update(vars(Rules(normal_quantile, false_alarm_rate, confidence, per)))
        require_rule(self._rules, self.threshold, self.pixel_threshold)
        of_the_pass = {
            "source": (source, None),
            "calibration_loader": (calibration_loader, None),
            "step": (step, "validation_step"),
            "limit_batches": (limit_batches, None),
            "every_n_validations": (every_n_validations, 1),
        }
        for name, (value, default) in of_the_pass.items():
            if value != default and not self.method.sigmas:
                fitted = f"{self.method.name} normalization is fitted by each validation run"
                raise OptionError(f"{name}={value!r}: {fitted}.")
        self.source = Source.TRAIN if source is None else Source.parse(source, "source")
        self.on_invalid = OnInvalid.parse(on_invalid, "on_invalid")
        self.calibration_loader, self.step, self.limit_batches = calibration_loader, step, limit_batches
        self.every_n_validations = every_n_validations
        self._pass_options()  # checks them
        self.extras = self.method.parse_extras(extras)
        if log_prefix is not None and not isinstance(log_prefix, str):
            raise OptionError(f"log_prefix={log_prefix!r} is no text; give one, or None to log nothing.")
        self.log_prefix, self.log_images = log_prefix, log_images
        self._histograms = HistogramLog(log_prefix) if log_images else None
        self.thresholds: dict[str, Threshold] = {}
        self.fit_check: FitCheck | None = None
        self.fitted_source: Source | None = None
        self._run: Run | None = None
        self._own: list[OwnSamples] = []  # of each validation loader
        self._user_hooks: UserHooks | None = None
        self._runs = 0  # validation runs of this training
        self._is_stale = False  # whether the present one keeps the parameters of an earlier one, of other weights
        self._truth: tuple[bool, bool] = (True, True)  # whether labels are needed, and masks
        self._is_first = True  # whether no batch of the present validation run had outputs yet
        self._normalizer: Normalizer | None = None  # of the present test or prediction
        self._resolved: tuple[Slot, Fit] | None = None  # what it was made of: the fit that was in the slot
        self._sets_metrics = False  # whether the dtype of the test's results is not known yet
        self._undefined: Tensor | None = None  # (): image scores of it that are NaN
        self._reported = False  # whether this training had its warning about values that were left out
        self._fit_reported = False  # and about its fit
        self._rate_reported = False  # and about what its sigmas say
        # Some of the weights that the normal data were scored with, and of those that were validated.
        self._weights: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._exchange_reported = False  # whether this training had its warning that those differ
        self._validated_at: int | None = None  # optimizer steps before the last validation run of this training
        # Of the last validation run: its fit, raw image scores (N,) and labels (N,), on the host. In no checkpoint.
        self._validated: tuple[Fit, np.ndarray, np.ndarray | None] | None = None

    def __repr__(self) -> str:
        shown = []
        for name, parameter in self._parameters().items():
            given = {"method": self.method.name, "options": self.options}.get(name, getattr(self, name, None))
            value = self.options.get(name, given)
            if name == "options":
                default = self.method.parse_options({})
                value = {key: each for key, each in self.options.items() if each != default[key]} or None
            if value != parameter.default and not (name == "source" and value is Source.TRAIN):
                shown.append(f"{name}={str(value)!r}" if isinstance(value, StrEnum) else f"{name}={value!r}")
        if self.source is Source.AUTO and self.fitted_source is not None:
            shown.append(f"fitted_source={str(self.fitted_source)!r}")
        if self.thresholds:
            shown.append(f"thresholds={self.thresholds!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def _parameters(cls) -> Mapping[str, inspect.Parameter]:
        """The options of the constructor; a subclass may hand all of them on without naming any."""
        for base in cls.__mro__:
            if "__init__" in vars(base):
                parameters = dict(list(inspect.signature(vars(base)["__init__"]).parameters.items())[1:])
                if not any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters.values()):
                    return parameters
        return {}

    def __iter__(self) -> NoReturn:
        # Trainer(callbacks=callback) takes a single one of its own distribution, and iterates over anything else.
        raise TypeError(
            f"a single {type(self).__name__} is no list of callbacks: give callbacks=[callback]. If it was given "
            f"alone, the Trainer is of the other Lightning distribution; {self.other_import} fits that."
        )

    @property
    def _listed(self) -> Any:
        """What the trainer has in its list of callbacks: this one, or the one that holds it."""
        return self

    @property
    def _name(self) -> str:
        return type(self._listed).__name__

    # What a module carries.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Give the module its slot, ``normalization_metrics``, or adopt the one that is there.

        Raises:
            AnomnormError: the module carries the fit of another method, the trainer or the module has a second
                normalization, of this package or of anomalib, or its strategy is not supported.
        """
        require_process_group(trainer, self._name)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[union-attr]
        normalizing = [each for each in callbacks if isinstance(each, Normalization) or each is self._listed]
        if len(normalizing) > 1:
            names = ", ".join(type(callback).__name__ for callback in normalizing)
            raise AnomnormError(f"the trainer has {len(normalizing)} normalization callbacks ({names}); use one.")
        beside = [*callbacks, getattr(pl_module, "post_processor", None)]
        require_alone([each for each in beside if each is not self._listed], self._name)
        carrier = carrier_of(pl_module)
        if carrier is not pl_module and carrier is not self._listed:  # even one that is switched off
            raise AnomnormError(
                f"the model's post-processor ({type(carrier).__name__}) has the place for what is fitted: give the "
                f"model post_processor=False to use {self._name}."
            )
        self.threshold = parse_threshold_option(self.threshold, "threshold")  # they may have been changed
        self.pixel_threshold = parse_threshold_option(self.pixel_threshold, "pixel_threshold")
        self.source = Source.parse(self.source, "source")
        vars(self).update(vars(self._rules))
        self._run = self._normalizer = self._undefined = self._validated_at = None
        self._reported = self._fit_reported = self._rate_reported = self._exchange_reported = False
        self._user_hooks, self._runs, self.fitted_source = None, 0, None
        self._give_slot(pl_module)
        slot = slot_of(pl_module)
        slot.trainer, slot.in_state_dict, slot.is_restored = trainer, not is_sharded(trainer), False
        for position, callback in enumerate(callbacks):
            if "WeightAveraging" not in {base.__name__ for base in type(callback).__mro__}:
                continue
            if position > callbacks.index(self._listed):  # it would exchange the weights after they were used here
                raise AnomnormError(
                    f"{type(callback).__name__} validates with averaged weights, and {self._name} has to see "
                    f"those: list {type(callback).__name__} before it."
                )
            # Its copy of the module has to accept a checkpoint with a fit.
            average = getattr(getattr(callback, "_average_model", None), "module", None)
            if average is not None:
                self._give_slot(average)

    def _give_slot(self, module: Any) -> None:
        slot = getattr(carrier_of(module), NAME, None)
        if slot is None:
            slot = Slot().to(module.device)
            setattr(module, NAME, slot)
        found = slot.fit.method.name if isinstance(slot, Slot) else type(slot).__name__
        if not isinstance(slot, Slot) or (slot.fit.image is not None and slot.fit.method != self.method):
            raise AnomnormError(
                f"the module already has {NAME} of {found}, but {self._name} is of {self.method.name} "
                f"normalization. To change the method, delete module.{NAME} first."
            )
        if slot.fit.image is None:
            slot.fit = Fit(self.method, options=self.options)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the fit into the state dict, where another callback has put another module's there."""
        put_fit(slot_of(pl_module), checkpoint)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the fit from beside the state dict of a sharded module."""
        take_fit(slot_of(pl_module), checkpoint)

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

    def report(
        self,
        path: str | os.PathLike[str],
        pl_module: LightningModule,
        *,
        names: Sequence[Any] | None = None,
        title: str = "Normalization report",
    ) -> None:
        """Write a page for a browser about the last validation run, at the present thresholds.

        It has the run's image scores and, where the run has read labels (a method with sigmas or a threshold that is
        found does), those. Maps are not kept: give them to ``callback.normalizer(pl_module).report(...)``.

        Args:
            path: of the file, see `anomnorm_core.report.write_report`.
            pl_module: the module that was validated.
            names: of the samples, in the order of the validation loaders, in several processes process by process.
            title: of the page.

        Raises:
            NotFittedError: nothing was fitted yet, or the module has another fit than that of the run.
            OptionError: there are more or fewer names than samples.
            OSError: the file cannot be written; an old one stays.
        """
        normalizer = self.normalizer(pl_module)
        if self._validated is None or not _has_same_parameters(self._validated[0], slot_of(pl_module).fit):
            raise NotFittedError(
                "the module's fit is not that of a validation run of this callback, so that there are no scores for a "
                "report: call trainer.validate(...) first. callback.normalizer(module).report(path) says what the fit "
                "alone says."
            )
        _, scores, labels = self._validated
        normalizer.report(path, scores, labels, names=names, title=title)

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
        if slot.fit.image is None:
            require_complete(slot.fit)  # which says so
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

    @property
    def _rules(self) -> Rules:
        return Rules(self.normal_quantile, self.false_alarm_rate, self.confidence, self.per)

    def _choices(self, pl_module: LightningModule, fit: Fit, *, refuse: bool = False) -> dict[str, Choice]:
        options = {"image": self.threshold, "pixel": self.pixel_threshold}
        return choose(options, fit, partial(own_threshold, pl_module, refuse=refuse))

    def _read(self, fit: Fit, check: FitCheck | None) -> None:
        self.thresholds = fit.thresholds
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
        alone = any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks)
        if alone and is_sharded(trainer) and not isinstance(pl_module, NormalizationMixin):
            strategy = type(trainer.strategy).__name__
            warnings.warn(
                f"checkpoints of weights alone will have no statistics: under {strategy} those are beside the weights. "
                "Let the checkpoint callback have save_weights_only=False, or derive "
                f"{type(pl_module).__name__} from NormalizationMixin.",
                stacklevel=2,
            )
        if not trainer.enable_validation:
            warnings.warn(
                f"{self._name} fits its statistics in validation runs, and this training has none: give "
                "trainer.fit a validation loader and the module a validation_step.",
                stacklevel=2,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the pass over the normal data with a batch: what cannot be read or scored is better known before (L3).

        Also warn of a training that is over before its first validation run is due.

        Raises:
            AnomnormError: see ``Pass.try_out``.
        """
        if trainer.enable_validation and trainer.is_global_zero and _never_validates(trainer):
            warnings.warn(
                f"this training is over before its first validation run, in which {self._name} fits its "
                f"statistics: let check_val_every_n_epoch={trainer.check_val_every_n_epoch} and "
                f"val_check_interval={trainer.val_check_interval} be smaller, or call trainer.validate(...) after it.",
                stacklevel=2,
            )
        if self.method.sigmas and trainer.enable_validation:
            with self._inference_model(trainer, pl_module) as model:
                for source in (Source.AUTO, Source.TRAIN) if self.source is Source.AUTO else (self.source,):
                    records = Records(self._kernels, self.options, pl_module.device)
                    self._pass(trainer, model, records, source).try_out()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of final weights that no validation run has seen, so that no fit belongs to them."""
        if not trainer.enable_validation or not trainer.is_global_zero:
            return
        remedy = "call trainer.validate(...) before you test or predict with these weights"
        if self._validated_at is None:
            if _never_validates(trainer):  # which was said at the start
                return
            warnings.warn(
                f"the training has ended without a validation run, in which {self._name} fits its "
                f"statistics: {remedy}, or let check_val_every_n_epoch and val_check_interval be smaller.",
                stacklevel=2,
            )
        elif self._validated_at < trainer.global_step:
            steps = trainer.global_step - self._validated_at
            plural = "s" if steps > 1 else ""
            warnings.warn(
                f"the final weights are {steps} optimizer step{plural} younger than the last validation run, so that "
                f"statistics and thresholds do not belong to them: {remedy}, or load a checkpoint that was saved at a "
                "validation.",
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
        take_missed_fit(slot)
        choices = self._choices(pl_module, slot.fit)
        searched = {level: choice.is_searched for level, choice in choices.items()}
        self._truth = self.method.sigmas or any(searched.values()), searched["pixel"]
        self._is_first = True
        if trainer.sanity_checking:
            return
        slot.draft, self._weights = None, ([], [])
        if self.method.sigmas:
            is_due = trainer.state.fn != "fit" or self._runs % self.every_n_validations == 0
            self._runs += 1
            self._is_stale = not is_due and slot.fit.image is not None
            if not self._is_stale:
                logger.info("Collecting the statistics of the normal data to normalize the scores.")
                self._collect_stats(trainer, pl_module)
                self._weights = some_weights(pl_module), []
            else:  # the parameters are the same for all options
                slot.draft = replace(slot.fit, options=self.options)
        device = pl_module.device
        rule = choices["pixel"].origin if searched["pixel"] else None
        self._run = Run(self._kernels, self.options, device, draft=slot.draft, pixels=rule, per=self._rules.per)
        self._own = [OwnSamples(loader) for loader in flattened(trainer.val_dataloaders)]

    def _collect_stats(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the statistics of the normal data.

        A duplicate of the module that shares its weights scores the data batch by batch; only moments are kept.
        """
        slot = slot_of(pl_module)
        source = Source.TRAIN if self.fitted_source is Source.TRAIN else self.source
        is_decided = source is not Source.AUTO or self.fitted_source is not None
        with self._inference_model(trainer, pl_module) as model:
            if trainer.world_size > 1:
                take_buffers(model, trainer)
            records = self._collected(trainer, pl_module, model, source, 0 if is_decided else ENOUGH_NORMALS)
            if records is None and not is_decided:
                source = Source.TRAIN
                try:
                    records = self._collected(trainer, pl_module, model, source)
                except NotFittedError as error:
                    few = f'source="auto": fewer than {ENOUGH_NORMALS} validation samples are labelled normal, and '
                    raise NotFittedError(f"{few}{error}") from error
        if records is None:  # the parameters are the same for all options
            slot.draft = replace(slot.fit, options=self.options)
            return
        if self.calibration_loader is None:
            self.fitted_source = Source.TRAIN if source is Source.TRAIN else Source.VALIDATION
        slot.draft = self._reporting_invalid(trainer, records)

    def _collected(
        self, trainer: Trainer, pl_module: LightningModule, model: LightningModule, source: Source, enough: int = 0
    ) -> Records | None:
        """The statistics of a pass; None where there is no data, or not ``enough`` normal samples among them."""
        records = Records(self._kernels, self.options, pl_module.device)
        data = self._pass(trainer, model, records, source)
        found = data.collect(fitted=slot_of(pl_module).fit.image is not None, enough=enough)
        if enough:
            logger.info(
                'source="auto": %d validation samples are labelled normal, and statistics need %d: they are fitted on '
                "the %s data.",
                data.normals,
                enough,
                "validation" if found else "training",
            )
        return records if found else None

    @contextmanager
    def _inference_model(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[LightningModule]:
        if not has_no_duplicate(trainer, pl_module):
            yield self._create_inference_model(pl_module)
            return
        with as_inference_model(pl_module) as model:
            yield model

    def _pass(self, trainer: Trainer, model: LightningModule, records: Records, source: Source) -> Pass:
        if self._user_hooks is None:
            self._user_hooks = UserHooks(trainer.callbacks, self._listed)  # type: ignore[union-attr]
        return Pass(trainer, model, records, self._user_hooks, replace(self._pass_options(), source=source))

    def _pass_options(self) -> PassOptions:
        return PassOptions(
            self._name,
            self.step,
            self.source,
            self.limit_batches,
            self.every_n_validations,
            self.calibration_loader,
            self.on_invalid,
        )

    def _reporting_invalid(self, trainer: Trainer, records: Records) -> Fit:
        """What was fitted, with one warning in a training of what was left out."""
        source = self.fitted_source  # None: a method without sigmas, or nobody knows
        if self.on_invalid is OnInvalid.RAISE:
            records.report_invalid(self.on_invalid, source)
        fit = records.finish()  # an unusable one is an error
        with reporting(trainer):
            found = records.report_invalid(None if self._reported else OnInvalid.WARN, source)
        self._reported = self._reported or found
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
        if self._is_first:
            step.require_writable()
            self._is_first = False
        if run is None:  # in a sanity check, which finds out what the outputs lack
            return
        if self._weights[0] and not self._weights[1]:
            self._weights = self._weights[0], some_weights(pl_module)
        raw, units = step.maps, step.maps
        if run.standardizer is not None:
            if self._standardize_batch is Normalization._standardize_batch:
                z = run.standardizer(step.shaped_scores, raw)
                step.write(z)
                units = z.get(MAPS)
            else:
                self._standardize_batch(outputs, pl_module)
                units = StepOutputs(outputs).maps
        if _dataloader_idx < len(self._own):  # without the samples that only pad the share of this process
            own = slice(self._own[_dataloader_idx].count(_batch_idx, len(scores)))
            truth = GroundTruth(*(None if part is None else part[own] for part in truth))
            raw, units, valid = (None if part is None else part[own] for part in (raw, units, valid))
            scores = scores[own]
        run.add(scores, raw, truth, valid, units=units)
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
        if not self._exchange_reported and not all(map(torch.equal, *self._weights)):
            self._exchange_reported = True
            with reporting(trainer):
                warn(
                    "the weights that were validated are not those that scored the normal data before the validation, "
                    "so that thresholds in sigmas mean something else. A callback that exchanges weights for "
                    f"validations has to be listed before {self._name}, and a module that fits itself has to "
                    "do so in on_validation_start at the latest.",
                    FitWarning,
                )
        if trainer.world_size > 1:
            run.merge_processes(data_group(trainer))
        if run.records is not None:
            run.draft = self._reporting_invalid(trainer, run.records)
        choices = self._choices(pl_module, slot.fit)
        with reporting(trainer):
            unseen = self.fitted_source is not Source.VALIDATION
            fit = run.finish(choices, self._rules, unseen=unseen)
            self._rate_reported = self._rate_reported or fit.report_rate()
            check = None
            if self.method.sigmas:
                check = run.fit_check(fit, unseen=unseen)
                # Weights that have changed since the fit explain what the check may find, and the user chose that.
                if check is not None and not (self._fit_reported or self._is_stale or fit.is_constant):
                    self._fit_reported = check.report(transform_of(self.method))
        if self._histograms is not None:
            self._histograms.keep(run)
        # What was there before is replaced only by a complete fit.
        slot.fit, slot.fit_check, slot.draft, self._run = fit, check, None, None
        self._validated_at, self._validated = trainer.global_step, (fit, *run.labelled_scores())
        if self.log_prefix is not None and not trainer.barebones:
            prefix = self.log_prefix and f"{self.log_prefix}/"
            values = {prefix + name: value for name, value in logged(fit, check).items()}
            # All processes have the same numbers: nothing has to be exchanged, and Lightning does not advise it.
            pl_module.log_dict(values, reduce_fx="max", sync_dist=True, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the module's own thresholds, and read all into ``thresholds``.

        That is later than `on_validation_epoch_end`, where a module may still compute its own (clause N4a).
        """
        if trainer.sanity_checking:
            return
        self._own, slot = [], slot_of(pl_module)
        slot.fit = place(slot.fit, self._choices(pl_module, slot.fit))
        self._read(slot.fit, slot.fit_check)
        if self._histograms is not None:
            self._histograms.send(trainer, _with_pixels(slot.fit))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop what a validation run has gathered that does not come to its end; the fit before it stays."""
        self._run, self._own = None, []
        self._normalizer = self._resolved = self._undefined = None
        slot = getattr(carrier_of(pl_module), NAME, None)
        if isinstance(slot, Slot):
            slot.draft = slot.placed = None

    # Test and prediction.

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve the thresholds, once (clause T1), and put those of the module's test metrics below 1/2 (clause L7).

        Raises:
            NotFittedError: no validation run has fitted the module and no checkpoint has restored a fit (clause N8).
        """
        self._resolve(pl_module)
        self._sets_metrics = True
        for level in LEVELS:
            _set_metrics(pl_module, level, torch.float32)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resolve the thresholds, once (clause T1).

        Raises:
            NotFittedError: no validation run has fitted the module and no checkpoint has restored a fit (clause N8).
        """
        self._resolve(pl_module)
        self._sets_metrics = False

    def _resolve(self, pl_module: LightningModule) -> None:
        slot = slot_of(pl_module)
        take_missed_fit(slot)
        self._resolved, fit = (slot, slot.fit), self._placed(pl_module)
        self._normalizer = self._ready(pl_module, fit)
        slot.placed = fit

    def on_test_batch_end(
        self,
        _trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        _batch: Any,
        _batch_idx: int,
        _dataloader_idx: int = 0,
    ) -> None:
        """Normalize the batch's scores and maps, in place in ``outputs``, and add labels, masks and extras."""
        if outputs is None:  # a skipped batch
            return
        if self._resolved is not None and self._resolved[0].fit is not self._resolved[1]:
            self._resolve(pl_module)  # weights were loaded, with a fit of theirs
        step = StepOutputs(outputs)
        valid = step.valid(_batch)
        own = self._normalize_batch is not Normalization._normalize_batch
        own = own or (self.method.sigmas and self._standardize_batch is not Normalization._standardize_batch)
        result: dict[str, Tensor] = {}
        if self.extras or not own:
            normalizer = self.normalizer(pl_module) if self._normalizer is None else self._normalizer
            result = normalizer(step.given, step.maps, valid=valid, extras=self.extras)
        if own:
            if self.method.sigmas:
                self._standardize_batch(outputs, pl_module)
            self._normalize_batch(outputs, pl_module)
            step.write({name: value for name, value in result.items() if name.endswith(self.extras)})
            return
        undefined = result["pred_scores"].isnan()
        undefined = undefined if valid is None else undefined.reshape(-1) & valid
        self._undefined = undefined.sum() + (0 if self._undefined is None else self._undefined)
        step.write(result)
        if self._sets_metrics:
            self._sets_metrics = False
            for name, value in result.items():
                if name in LEVEL and value.dtype == torch.float64:
                    _set_metrics(pl_module, LEVEL[name], torch.float64)

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the normalizer of this stage, and warn of image scores that are NaN (clause N6)."""
        undefined = torch.zeros((), dtype=torch.int64, device=pl_module.device)
        undefined += 0 if self._undefined is None else self._undefined
        if trainer.world_size > 1:
            undefined = total(undefined, data_group(trainer))
        if trainer.is_global_zero:
            report_undefined(int(undefined))
        self._normalizer = self._resolved = self._undefined = slot_of(pl_module).placed = None

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


def _set_metrics(pl_module: LightningModule, level: str, dtype: torch.dtype) -> None:
    set_metric_threshold(getattr(pl_module, f"{level}_metrics", None), largest_below_half(dtype))


def _never_validates(trainer: Trainer) -> bool:
    """Whether a training, at its start, will be over before its first validation run is due."""
    between, interval = trainer.check_val_every_n_epoch, trainer.val_check_batch
    epochs = math.inf if trainer.max_epochs is None or trainer.max_epochs < 0 else trainer.max_epochs
    if between is not None and between > epochs:
        return True
    in_epoch = trainer.num_training_batches
    if not isinstance(interval, int | float) or math.isinf(interval) or math.isinf(in_epoch):  # a time, or a stream
        return False
    batches = epochs * in_epoch
    if trainer.max_steps >= 0:
        batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
    if between is None:  # the interval counts the batches of all epochs
        return interval > batches
    return min(interval, in_epoch) + (in_epoch * (between - 1) if between > 1 else 0) > batches


def _has_same_parameters(a: Fit, b: Fit) -> bool:
    """Whether two fits have the same statistics of image scores: a loaded checkpoint has others."""
    if a.image is None or b.image is None:
        return False
    return all(map(np.array_equal, a.image.parameters, b.image.parameters))


def _with_pixels(fit: Fit) -> Fit:
    """``fit``, where a pixel threshold that nobody has is that of the images (clause T6)."""
    return fit.following() if fit.pixel is not None and fit.pixel.threshold is None else fit
