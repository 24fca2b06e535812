"""Post-processors for models of anomalib 2: normalization by any method, in the place of anomalib's own."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Self, SupportsFloat

import torch
from torch import Tensor

from anomnorm_core.errors import AnomnormError, OptionError
from anomnorm_core.fields import LEVEL
from anomnorm_core.fit import Fit
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.options import Source, Transform, Units
from anomnorm_torch._kernels import flag
from anomnorm_torch._tensors import arithmetic
from anomnorm_torch.framework import LightningModule, Trainer
from anomnorm_torch.methods import METHODS
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.outputs import StepOutputs
from anomnorm_torch.post_processor_callback import HeldNormalization, fields
from anomnorm_torch.post_processor_slot import PostProcessorSlot, StockSlot, facts_of, stock_numbers, stock_of

try:
    from anomalib.data import InferenceBatch  # pyright: ignore[reportMissingImports]
    from anomalib.post_processing import PostProcessor  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "anomalib":
        raise
    message = "anomnorm_torch.anomalib is for models of anomalib 2, which is not there: pip install 'anomalib>=2.7'"
    raise ModuleNotFoundError(message, name="anomalib") from error

__all__ = ["CdfPostProcessor", "MinMaxPostProcessor", "NormalizationPostProcessor"]

_OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")
_LABELS = {"pred_label": ("image", "pred_score"), "pred_mask": ("pixel", "anomaly_map")}  # with their level and values


class NormalizationPostProcessor(PostProcessor):  # type: ignore[misc]  # not in the environment of mypy
    """Normalize the scores and maps of an anomalib model to [0, 1] with 0.5 at the threshold, by any method.

    It goes where anomalib's own post-processor goes: ``Padim(post_processor=CdfPostProcessor())``. Each validation run
    fits the method and its thresholds; the outputs of validation stay raw. Test, predict and the model's ``forward``,
    which is what anomalib exports, give normalized scores and maps, and labels and masks that are decided on the raw
    values (``x >= threshold``). Before the first validation run they raise `NotFittedError`.

    Under min-max the state dict has the six buffers of anomalib's own class and nothing else, so that either class
    loads the checkpoints of the other. What other methods have fitted takes a post-processor of this module to load:
    ``Padim.load_from_checkpoint(path, post_processor=CdfPostProcessor())``, or a model class whose
    ``configure_post_processor`` returns one. The options come with the checkpoint, but for those that were given here
    with another value than their default.

    Args:
        method: its name, ``"min-max"``, ``"cdf"``, ``"normal"``, ``"two-slope"`` or that of a registered one.
        threshold: decision threshold, in sigmas where the method has them and else in raw units, or how to find it;
            None does as ``"adaptive"`` does. See `NormalizationCallback`.
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does. ``"image"`` is the raw score at
            which images are flagged, under all methods, as anomalib matches thresholds.
        normal_quantile, false_alarm_rate, confidence, per: see `NormalizationCallback`.
        source: where a method with sigmas is fitted, ``"train"``, ``"validation"`` or ``"auto"``, see
            `NormalizationCallback`. None is ``"auto"`` but, for a model with a memory bank, ``"validation"``: it knows
            its training data, and scores them lower than others.
        calibration_loader: see `NormalizationCallback`. Copies of this module, and exports, have it not.
        step, limit_batches, every_n_validations, on_invalid, log_prefix: see `NormalizationCallback`.
        extras: what test and predict write beside the normalized scores, as attributes of the batch: ``"raw"`` gives
            ``pred_score_raw`` and ``anomaly_map_raw``. See `NormalizationCallback`.
        options: of the method, by name.
        enable_normalization: False leaves raw scores and maps, beside labels.
        enable_thresholding: False finds no thresholds in validation runs and gives no labels; where none was given as
            a number, 0.5 is then in the middle of the range or, of a method with sigmas, where those are zero.
            Thresholds that were found before, or come with a checkpoint, stay where 0.5 is.
        enable_threshold_matching: whether the pixels have the raw threshold of the images where a validation run that
            looks for the best F1 has no masks; else it is found on the pixels of normal images.
        image_sensitivity: labels are cut at the normalized score ``1 - image_sensitivity``, on the raw score that has
            it; 0.5 is the threshold itself.
        pixel_sensitivity: the same for masks.

    Attributes:
        normalization: the options that anomalib's class has not, as plain data; a run begins with what is there.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        method: str,
        threshold: float | str | None = None,
        *,
        pixel_threshold: float | str | None = None,
        normal_quantile: float = 1.0,
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        per: str = "pixel",
        source: str | None = None,
        calibration_loader: Any = None,
        step: str = "validation_step",
        limit_batches: int | float | None = None,
        every_n_validations: int = 1,
        on_invalid: str = "warn",
        extras: Iterable[str] = (),
        log_prefix: str | None = "normalization",
        options: dict[str, Any] | None = None,
        enable_normalization: bool = True,
        enable_thresholding: bool = True,
        enable_threshold_matching: bool = True,
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
    ) -> None:
        given = dict(locals())
        super().__init__(**{name: given[name] for name in _STOCK_OPTIONS})
        self.calibration_loader = calibration_loader
        self.normalization = {name: _plain(given[name]) for name in _OWN_OPTIONS}
        self.normalization["options"] = METHODS[method].method.parse_options(options or {})
        self._given = {name for name, default in _DEFAULTS.items() if _plain(given[name]) != _plain(default)}
        if self._given & _ABOUT_THRESHOLDS:  # a rule and its numbers belong together
            self._given |= _ABOUT_THRESHOLDS
        self._adopted = [method]  # methods that a checkpoint may have
        self._callback = self._made_callback()  # which checks the options
        self.normalization_metrics = self._made_slot()
        self._ready: tuple[Any, Normalizer, dict[str, Tensor]] | None = None
        self.register_load_state_dict_post_hook(_write_buffers)

    def _made_callback(self) -> HeldNormalization:
        return HeldNormalization(self, self.normalization, self.calibration_loader)

    def _made_slot(self) -> PostProcessorSlot:
        fit = Fit(METHODS[self.normalization["method"]].method, options=self.normalization["options"])
        slot = StockSlot(fit) if fit.method.name == "min-max" else PostProcessorSlot(fit)
        return slot.to(self.image_min.device)

    # What a checkpoint has beside the state dict.

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        """Attributes that a checkpoint keeps, all of plain data."""
        return *super()._checkpoint_config_keys, "normalization", "_facts"

    @property
    def _facts(self) -> dict[str, Any] | None:
        """What anomalib's six buffers do not say of a fit."""
        slot = self.normalization_metrics
        return facts_of(slot.fit) if isinstance(slot, StockSlot) and slot.is_complete else None

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take over the options of a checkpoint, as far as they were not given to this object."""
        stock = {name: value for name, value in config.items() if name in _STOCK_OPTIONS and name not in self._given}
        super().load_checkpoint_config(stock)
        own, facts = config.get("normalization", {}), None
        if own.get("method") in self._adopted:  # thresholds of another method mean something else
            changed = own["method"] != self.normalization["method"]
            self.normalization |= {name: value for name, value in own.items() if name not in self._given - {"method"}}
            facts = config.get("_facts")
            if changed:
                self.normalization_metrics = self._made_slot()
        self._callback, slot = self._made_callback(), self.normalization_metrics
        if isinstance(slot, StockSlot):
            slot.facts, slot.matches = facts, self.enable_threshold_matching

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.normalization_metrics, StockSlot):
            destination |= {prefix + name: value for name, value in self.normalization_metrics.entries().items()}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        self.normalization_metrics.take_stock(stock_of(state_dict, prefix), prefix, *lists)

    @property
    def state_key(self) -> str:
        """Of the state that Lightning keeps of callbacks: under min-max that of anomalib's own class."""
        stock = self.normalization["method"] == "min-max"
        return PostProcessor.__name__ if stock else type(self).__name__

    def __getstate__(self) -> dict[str, Any]:
        loader = None if self.calibration_loader is None else _missing_loader
        return {**self.__dict__, "_callback": None, "_ready": None, "calibration_loader": loader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._callback = self._made_callback()
        self._refresh()

    # `forward` has to have ready what it computes with: a program that is traced cannot make it.

    def _refresh(self) -> None:
        self._ready = None
        with suppress(AnomnormError):  # nothing was fitted, or with other options, which the next use says
            self._prepared()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._refresh()
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        is_sensitivity = name in ("image_sensitivity", "pixel_sensitivity")
        if is_sensitivity and not (isinstance(value, SupportsFloat) and 0.0 <= float(value) <= 1.0):
            raise OptionError(f"{name}={value!r} is not between 0 and 1; 0.5 is the threshold itself.")
        super().__setattr__(name, value)
        if is_sensitivity and self.__dict__.get("_ready") is not None:
            self._refresh()

    # Lightning's hooks; those that the callback has alone are below.

    @property
    def _is_used(self) -> bool:
        return bool(self.enable_normalization or self.enable_thresholding)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """Prepare for a run, with the options as they are now."""
        self._callback = self._made_callback()
        self._refresh()
        if self._is_used:
            self._callback.setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the run has fitted."""
        if self._is_used:
            self._callback.on_validation_end(trainer, pl_module)
            _write_buffers(self)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Normalize the scores and maps of the batch, in place, and add labels, masks and extras."""
        if outputs is None or not self._is_used:
            return
        raw = fields(outputs)
        found = dict(raw)
        self._callback.on_test_batch_end(trainer, pl_module, found, batch, batch_idx, dataloader_idx)
        _write(outputs, self._decided(raw, found))

    on_predict_batch_end = on_test_batch_end

    # Inference.

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Normalized scores and maps with labels and masks, of raw ones: what a test gives, traced and exported too.

        Args:
            predictions: raw scores (B,) or (B, 1), and maps (B, 1, H, W) or (B, H, W). Without scores, they are the
                maximum of each map.

        Raises:
            ValueError: both are missing.
            NotFittedError: no validation run has fitted anything, and no checkpoint has brought it.
        """
        if predictions.pred_score is None and predictions.anomaly_map is None:
            raise ValueError("At least one of pred_score or anomaly_map must be provided.")
        return InferenceBatch(**self._processed(predictions))

    def post_process_batch(self, batch: Any) -> None:
        """Do to a batch, in place, what `forward` does."""
        _write(batch, self._processed(batch))

    def _processed(self, outputs: Any) -> dict[str, Any]:
        raw = fields(outputs)
        found = dict(raw)
        if self._is_used:
            step = StepOutputs(found)
            step.write(self._prepared()[0](step.given, step.maps))
            found = self._decided(raw, found)
        return {name: found[name] for name in _OUTPUTS}

    def _decided(self, raw: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """What is shown of normalized scores and labels, as options and sensitivities have it."""
        cuts = self._prepared()[1]
        for label, (level, values) in _LABELS.items():
            if level in cuts and found[values] is not None:
                x = arithmetic(StepOutputs(raw).shaped_scores if level == "image" else raw[values])
                found[label] = flag(x, cuts[level].to(x.dtype))
            if raw[label] is not None or not self.enable_thresholding:  # a model may decide for itself
                found[label] = raw[label]
            if not self.enable_normalization:
                found[values] = raw[values]
        return found

    def _prepared(self) -> tuple[Normalizer, dict[str, Tensor]]:
        """The normalizer of the present fit and, by level, the raw score at which a sensitivity other than 1/2 cuts."""
        slot, given = self.normalization_metrics, {"image": self.image_sensitivity, "pixel": self.pixel_sensitivity}
        key = (slot.fit, slot.device, *given.values())
        if self._ready is None or self._ready[0] != key:
            # A prediction runs in inference mode, and what is made in that no export takes.
            with torch.inference_mode(False):
                normalizer = self.normalizer
                fit, cuts = normalizer.to_fit(), {}
                for level, sensitivity in given.items():
                    if sensitivity != 0.5 and getattr(fit, level) is not None:
                        cuts[level] = torch.tensor(_cut(fit, level, 1.0 - sensitivity), device=slot.device)
            self._ready = key, normalizer, cuts
        return self._ready[1:]

    # What was fitted.

    @property
    def normalizer(self) -> Normalizer:
        """What was fitted, with the present thresholds, as a module of its own: to save, to serve, to export.

        Raises:
            NotFittedError: nothing was fitted yet.
        """
        return self._callback.normalizer(self)

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> Normalizer:
        """Set thresholds manually, for runs and exports from now on (clause T4). See `NormalizationCallback`."""
        normalizer = self._callback.with_threshold(self, threshold, pixel_threshold, units=units)
        self.normalization_metrics.fit = normalizer.to_fit()  # with pixels that follow
        _write_buffers(self)
        return normalizer

    def without_manual_threshold(self) -> Normalizer:
        """Let the next validation run replace the thresholds that were set manually; until then they stay."""
        normalizer = self._callback.without_manual_threshold(self)
        _write_buffers(self)
        return normalizer

    @property
    def fit_check(self) -> FitCheck | None:
        """How the fit does on the normal validation samples, of a method with sigmas; None without any."""
        return self.normalization_metrics.fit_check

    @property
    def fitted_source(self) -> Source | None:
        """What a method with sigmas was fitted on, ``"train"`` or ``"validation"``; None: nobody knows."""
        return self._callback.fitted_source

    @property
    def device(self) -> torch.device:
        """Where the fit is used."""
        return self.normalization_metrics.device

    @property
    def image_threshold(self) -> Tensor:
        """The raw threshold of image scores, () float32; NaN where there is none yet."""
        return self._threshold("image")

    @property
    def pixel_threshold(self) -> Tensor:
        """The raw threshold of maps, () or, where each pixel has its own, (H, W) float32; NaN where there is none."""
        return self._threshold("pixel")

    def _threshold(self, level: str) -> Tensor:
        fitted = getattr(self.normalization_metrics.fit, level)
        raw = math.nan if fitted is None or fitted.threshold is None else fitted.threshold.raw
        return torch.tensor(raw, dtype=torch.float32, device=self.device)

    def extra_repr(self) -> str:
        """The options that differ from their defaults, and what was fitted."""
        usual = {**_DEFAULTS, "options": METHODS[self.normalization["method"]].method.parse_options({})}
        given = {**self.normalization, **{name: getattr(self, name) for name in _STOCK_OPTIONS}}
        shown = [f"{name}={value!r}" for name, value in given.items() if value != _plain(usual[name])]
        thresholds = self.normalization_metrics.fit.thresholds
        return ", ".join([*shown, *([f"thresholds={thresholds}"] if thresholds else [])])

    # What anomalib's class computes by its own formula.

    def normalize_batch(self, batch: Any) -> None:
        """Normalize the scores and maps of a batch, in place, and nothing else."""
        step = StepOutputs(batch)
        found = self._prepared()[0](step.given, step.maps)
        step.write({name: value for name, value in found.items() if name in LEVEL})

    @staticmethod
    def _apply_threshold(preds: Tensor | None, threshold: Tensor) -> Tensor | None:
        return None if preds is None else preds >= threshold


class MinMaxPostProcessor(NormalizationPostProcessor):
    """Min-max normalization of an anomalib model, as anomalib's own post-processor has it, by the contract.

    ``clip((x - threshold) / (max - min) + 1/2, 0, 1)``; see `NormalizationPostProcessor`.

    Args:
        threshold: decision threshold in raw units, or how to find it.
        more: see `NormalizationPostProcessor`.
    """

    def __init__(self, threshold: float | str | None = None, **more: Any) -> None:
        super().__init__("min-max", threshold, **more)


class CdfPostProcessor(NormalizationPostProcessor):
    """CDF normalization of an anomalib model: ``Phi(z - threshold)``; see `NormalizationPostProcessor`.

    Args:
        threshold: decision threshold in sigmas, or how to find it.
        center: where pixel z-scores are zero, ``"image"`` or ``"pixel"``; see `CdfNormalizationCallback`.
        transform: what is taken as normally distributed, ``"log"`` or ``"identity"``: the logarithms of the scores or
            the scores themselves, which may then have any sign.
        more: see `NormalizationPostProcessor`.
    """

    def __init__(
        self,
        threshold: float | str | None = None,
        *,
        center: str = "image",
        transform: str = "log",
        **more: Any,
    ) -> None:
        chosen = Transform.parse(transform, "transform")
        super().__init__(chosen.method, threshold, options={"center": center}, **more)
        if chosen is Transform.LOG:  # the default: that of a checkpoint is taken over
            self._adopted = [each.method for each in Transform]
        if center == "image":
            self._given.discard("options")


_STOCK_OPTIONS = (
    "enable_normalization",
    "enable_thresholding",
    "enable_threshold_matching",
    "image_sensitivity",
    "pixel_sensitivity",
)
_ABOUT_THRESHOLDS = {"threshold", "pixel_threshold", "normal_quantile", "false_alarm_rate", "confidence", "per"}
_DEFAULTS = {
    name: each.default
    for name, each in inspect.signature(NormalizationPostProcessor).parameters.items()
    if name != "calibration_loader"
}
_OWN_OPTIONS = tuple(name for name in _DEFAULTS if name not in _STOCK_OPTIONS)


def _handed_on(name: str) -> Callable[..., None]:
    def hook(self: NormalizationPostProcessor, trainer: Trainer, pl_module: LightningModule, *given: Any) -> None:
        if self._is_used:
            getattr(self._callback, name)(trainer, pl_module, *given)

    hook.__name__, hook.__doc__ = name, f"See `NormalizationCallback.{name}`."
    return hook


for _name in (
    "on_fit_start",
    "on_train_start",
    "on_train_end",
    "on_validation_epoch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_test_start",
    "on_test_end",
    "on_predict_start",
    "on_predict_end",
    "on_exception",
    "on_save_checkpoint",
    "on_load_checkpoint",
):
    setattr(NormalizationPostProcessor, _name, _handed_on(_name))


def _write(outputs: Any, found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if name not in ("gt_label", "gt_mask", "valid"):
            setattr(outputs, name, value)


def _write_buffers(post_processor: NormalizationPostProcessor, *_: Any) -> None:
    """Let anomalib's buffers say what is in the slot."""
    with torch.no_grad():
        for name, value in stock_numbers(post_processor.normalization_metrics.fit).items():
            getattr(post_processor, name).copy_(value)
    post_processor._refresh()


def _cut(fit: Fit, level: str, score: float) -> Any:
    """The raw score that is normalized to ``score``."""
    if not 0.0 < score < 1.0:
        return math.inf if score > 0.0 else -math.inf
    return fit.raw_threshold(score, Units.NORMALIZED, level)


def _plain(value: Any) -> Any:
    """An option as what JSON can hold, which `torch.load` reads with ``weights_only=True``."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Iterable):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | type) else float(value)


def _missing_loader() -> Any:
    raise OptionError(
        "calibration_loader was left behind when the post-processor was copied or exported: set "
        "post_processor.calibration_loader again."
    )
