"""A fitted normalization as a module, for inference and export (clauses N1 to N11, P1, P4, T4)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn

from anomnorm_core.checks import require_mask, unfitted_level
from anomnorm_core.errors import AnomnormError, OptionError
from anomnorm_core.fields import (
    LEVEL,
    MAPS,
    SCORES,
    missing_values,
    require_no_mapping,
    require_normalized_shapes,
    require_shapes,
    shaped_as,
    without_last_channel,
    wrong_type,
)
from anomnorm_core.fit import Fit, LevelFit
from anomnorm_core.normalizer import BaseNormalizer, follows_raw, require_complete
from anomnorm_core.options import LEVELS, Origin, Units, parse_threshold
from anomnorm_torch._kernels import Specialized, coefficients_of, evaluated, scored
from anomnorm_torch._tensors import keep_dtype, largest_defined
from anomnorm_torch._version import __version__
from anomnorm_torch.methods import METHODS
from anomnorm_torch.outputs import of_model

_ROUNDED = "rounded_"
_SMALLEST = torch.finfo(torch.float32).tiny


class Normalizer(BaseNormalizer, nn.Module):
    """A method with its statistics and thresholds, ready to score: a module without parameters.

    Made by `min_max`, `cdf` or `of`, by `load` from a file, or by ``callback.normalizer(module)`` after training.
    Statistics and raw thresholds are buffers: they move with the module to another device and keep their dtype. Calling
    it waits for no device, and ``torch.export`` and ``torch.onnx.export`` take it, alone or after a model
    (`append_to`). Normalized scores are differentiable.

    Example::

        normalizer = Normalizer.load("detector.safetensors")
        result = normalizer(pred_scores=scores, anomaly_maps=maps)
        result["pred_scores"]   # 0.5 at the threshold
        result["pred_labels"]   # True where flagged
    """

    _methods = METHODS
    _package = ("anomnorm-torch", __version__)

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        require_complete(fit)
        self.method = fit.method
        self._kernels = METHODS[fit.method.name]
        self._about = fit  # also what is no tensor
        self._pixels_follow = follows_raw(fit)
        self._names = {level: self._arguments_of(fit, level) for level in LEVELS}
        for level in LEVELS:
            fitted: LevelFit | None = getattr(fit, level)
            arrays = (None,) * len(fit.method.parameters) if fitted is None else fitted.parameters
            for name, array in zip(fit.method.parameters, arrays, strict=True):
                self.register_buffer(f"{level}_{name}", None if array is None else torch.from_numpy(array.copy()))
            raw = None if fitted is None else torch.from_numpy(fit.threshold(level).raw.copy())
            self.register_buffer(f"{level}_threshold", raw)
        self._round()

    def _round(self) -> None:
        """Keep the buffers in float32 too, in which most scores are computed: converting takes time in each call."""
        self._forget()
        for name, buffer in list(self.named_buffers(recurse=False)):
            if not name.startswith(_ROUNDED):
                self.register_buffer(_ROUNDED + name, buffer.to(torch.float32, copy=True), persistent=False)
        for level in LEVELS:
            known = None
            if self._buffers[f"{level}_threshold"] is not None:
                arguments = (self._buffers[_ROUNDED + name] for name in self._names[level])
                known = coefficients_of(self._kernels, *arguments)  # type: ignore[arg-type]
            self.register_buffer(f"{_ROUNDED}{level}_coefficients", known, persistent=False)

    def _forget(self) -> None:
        """Drop what kernels made of the buffers."""
        self._kept: dict[str, dict[torch.dtype, Specialized]] = {level: {} for level in LEVELS}

    @staticmethod
    def _arguments_of(fit: Fit, level: str) -> tuple[str, ...]:
        """The buffers that the kernels of a level take: threshold, parameters and, with sigmas, the center."""
        names = [f"{level}_{name}" for name in ("threshold", *fit.method.parameters)]
        if fit.method.sigmas:
            own = "image" if fit.options.get("center") == "image" else level
            names.append(f"{own}_{fit.method.parameters[0]}")
        return tuple(names)

    @classmethod
    def from_fit(cls, fit: Fit) -> Self:
        """A normalizer of a complete `Fit`, on the CPU."""
        return cls(fit)

    def to_fit(self) -> Fit:
        """This normalizer as NumPy arrays and Python numbers. Reads them off the device."""
        about = self._about
        raw, levels, same = {}, {}, True
        for level in LEVELS:
            known: LevelFit | None = getattr(about, level)
            if known is not None:
                parameters = tuple(self._read(self._buffer(level, name)) for name in self.method.parameters)
                raw[level] = self._read(self._buffer(level, "threshold"))
                levels[level] = LevelFit(parameters)
                pairs = zip((*parameters, raw[level]), (*known.parameters, about.threshold(level).raw), strict=True)
                # Some devices have no float64.
                same = same and all(np.array_equal(mine, other.astype(mine.dtype)) for mine, other in pairs)
        if same:
            return about
        # A state dict was loaded, which does not say where its thresholds come from.
        fit = Fit(self.method, **levels, options=about.options, fitted_with=about.fitted_with)
        for level, threshold in raw.items():
            fit = fit.placed(level, threshold, Units.RAW, Origin.UNKNOWN)
        return fit

    @staticmethod
    def _read(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16

    @staticmethod
    def _total(count: Any) -> int:
        return int(torch.as_tensor(count).max())

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> Self:
        """See `anomnorm_core.Normalizer.with_threshold`. The new one is on the same device."""
        return (
            super()
            .with_threshold(threshold, pixel_threshold, units=units)
            .to(self._buffer("image", "threshold").device)
        )

    def append_to(self, model: nn.Module) -> "NormalizedModel":
        """``model`` followed by this normalizer, as one module."""
        return NormalizedModel(model, self)

    def forward(
        self,
        pred_scores: Tensor | None = None,
        anomaly_maps: Tensor | None = None,
        *,
        threshold: Tensor | float | None = None,
        pixel_threshold: Tensor | float | None = None,
        valid: Tensor | None = None,
        extras: Iterable[str] = (),
        finite: bool = False,
    ) -> dict[str, Tensor]:
        """Normalized scores, labels and masks of raw scores and maps; either may be missing.

        See `anomnorm_core.Normalizer.__call__`.

        Args:
            pred_scores: raw image scores of shape (B,) or (B, 1); without them, the maximum of each map.
            anomaly_maps: raw maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).
            threshold: for this call, in raw units, instead of the normalizer's own for image scores. A number, or a
                tensor of shape (), which is an input of an exported program. Under the CDF it is above zero.
            pixel_threshold: the same for maps; under the CDF also a tensor (H, W). None takes the normalizer's own or,
                where there are no sigmas and that follows the images' one, ``threshold``.
            valid: booleans of shape (B,): False for what only pads the batch, which is never flagged.
            extras: what else to return: ``"z"`` (CDF), ``"margin"`` (min-max), ``"raw"``; ``"invalid"`` is of shape
                (B,): True where the image score is NaN.
            finite: whether infinities among the extras, but for ``"raw"``, become the largest finite numbers.

        Returns:
            ``pred_scores`` and ``pred_labels`` and, with maps, ``anomaly_maps`` and ``pred_masks``: normalized scores
            of the shape and device of the raw ones, float64 for float64 and float32 for other floating dtypes, and
            booleans.

        Raises:
            OutputError: neither scores nor maps are given, or their shapes are wrong.
            NotFittedError: maps are given, but none were fitted.
            ResolutionError: the maps do not have the fitted height and width (CDF).
            OptionError: an extra is not one of the method, or a threshold is no number that a score could have.
            ValueError: ``valid`` is not of shape (B,).
        """
        wanted = self.method.parse_extras(extras) if extras else ()
        if pixel_threshold is None and self._pixels_follow:
            pixel_threshold = threshold
        result: dict[str, Tensor] = {}
        labels: dict[str, Tensor] = {}
        values = _values(pred_scores, anomaly_maps)
        for name, x in values.items():
            given = threshold if name == SCORES else pixel_threshold
            own, *arguments = self._arguments(LEVEL[name], x)
            t = own if given is None else self._checked(given, own, name)
            # What is kept is of the normalizer's own threshold.
            known = None
            if given is None and x.dtype != torch.float64:
                known = self._buffers[f"{_ROUNDED}{LEVEL[name]}_coefficients"]
            # Integers may be computed in float64 too, but with rounded parameters.
            kept = self._kept[LEVEL[name]] if given is None and x.is_floating_point() else None
            u, flagged = scored(self._kernels, x, t, tuple(arguments), known, kept)
            if valid is not None:
                require_mask(tuple(valid.shape), x.shape[0], "valid")
                flagged = flagged & valid.to(flagged.device).bool().reshape(-1, *[1] * (flagged.ndim - 1))
            result[name] = u
            labels["pred_labels" if name == SCORES else "pred_masks"] = flagged
            for extra in wanted:
                if extra == "invalid":
                    continue
                value = x
                if extra != "raw":
                    value = evaluated(self._kernels.extras[extra], x, t, tuple(arguments))
                    value = value.clamp(*_finite(value.dtype)) if finite else value
                labels[f"{name}_{extra}"] = value
        if "invalid" in wanted:
            invalid = values[SCORES].reshape(-1).isnan()
            labels["invalid"] = invalid if valid is None else invalid & valid.to(invalid.device).bool()
        result |= labels
        if anomaly_maps is None or values[MAPS] is anomaly_maps:
            return result
        return shaped_as(anomaly_maps.shape, result)

    def denormalize(self, pred_scores: Tensor | None = None, anomaly_maps: Tensor | None = None) -> dict[str, Tensor]:
        """The raw scores and maps of normalized ones. See `anomnorm_core.Normalizer.denormalize`.

        Args:
            pred_scores: normalized scores of shape (B,).
            anomaly_maps: normalized maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).
        """
        given = {SCORES: pred_scores, MAPS: anomaly_maps}
        units = {name: unit for name, unit in given.items() if unit is not None}
        if not units:
            raise missing_values()
        require_normalized_shapes({name: tuple(unit.shape) for name, unit in units.items()})
        result = {}
        for name, unit in units.items():
            t, *arguments = self._arguments(LEVEL[name], unit)
            result[name] = evaluated(self._kernels.inverse, without_last_channel(unit), t, tuple(arguments))
        return shaped_as(None if anomaly_maps is None else anomaly_maps.shape, result)

    def _arguments(self, level: str, like: Tensor) -> list[Tensor]:
        """Threshold, parameters and, with sigmas, the center of a level."""
        buffers = self._buffers
        if buffers[f"{level}_threshold"] is None:
            raise unfitted_level(level)
        prefix = "" if like.dtype == torch.float64 else _ROUNDED
        found: list[Tensor] = []
        for name in self._names[level]:
            found.append(buffers[prefix + name])  # type: ignore[arg-type]  # noqa: PERF401  # a call less
        return found

    def _buffer(self, level: str, name: str) -> Tensor:
        buffer: Tensor = getattr(self, f"{level}_{name}")
        return buffer

    def _checked(self, given: Tensor | float, own: Tensor, name: str) -> Tensor | float:
        """A threshold for one call. Tensors stay on their device, unread."""
        argument = "threshold" if name == SCORES else "pixel_threshold"
        if isinstance(given, Tensor):
            if given.ndim and given.shape != own.shape:
                numbers = "one number" if own.ndim == 0 else f"one number or {tuple(own.shape)} of them"
                raise OptionError(f"{argument} has shape {tuple(given.shape)}; {numbers} are needed for all samples.")
            return given
        if torch.compiler.is_compiling():  # where a number may be a symbol
            return given
        number: float = parse_threshold(given, argument)  # type: ignore[assignment]
        if self.method.positive and number < _SMALLEST:
            raise OptionError(
                f"{argument}={number} is not a positive normal number of float32: no score could be on either side of "
                "it. Give another number."
            )
        return number

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, *lists: list[str]
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        self._round()
        if self._buffer("image", "threshold").is_meta:
            return
        try:
            self._about = self.to_fit()
        except AnomnormError as error:
            lists[-1].append(f"{prefix.rstrip('.') or 'normalizer'}: the state dict cannot be used: {error}")
        self._pixels_follow = follows_raw(self._about)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        self._forget()
        return self


class NormalizedModel(nn.Module):
    """A detector followed by a normalizer: from its input to normalized scores, labels and masks.

    Args:
        model: returns a dict, a named tuple or an object with ``pred_scores`` and/or ``anomaly_maps``, or with
            ``pred_score`` and/or ``anomaly_map`` (and ``valid``); or scores and maps in a tuple, or one of them alone:
            a tensor of up to two axes is of scores.
        normalizer: fitted on the model's raw scores.
    """

    def __init__(self, model: nn.Module, normalizer: Normalizer) -> None:
        super().__init__()
        self.model = model
        self.normalizer = normalizer
        self.train(model.training)  # one mode for the whole, the model's

    def forward(
        self,
        *inputs: Any,
        threshold: Tensor | float | None = None,
        pixel_threshold: Tensor | float | None = None,
    ) -> dict[str, Tensor]:
        """The normalizer's result for the model's outputs.

        Args:
            inputs: of the model.
            threshold, pixel_threshold: in raw units, as for `Normalizer`.

        Raises:
            OutputError: the model returns something else.
        """
        step = of_model(self.model(*inputs))
        result: dict[str, Tensor] = self.normalizer(
            step.given, step.shaped_maps, valid=step.valid(None), threshold=threshold, pixel_threshold=pixel_threshold
        )
        return result


def _finite(dtype: torch.dtype) -> tuple[float, float]:
    info = torch.finfo(dtype)
    return info.min, info.max


def _values(pred_scores: Tensor | None, anomaly_maps: Tensor | None) -> dict[str, Tensor]:
    """Scores and maps by name; scores default to the maximum of each map (clause L5)."""
    value: Any
    for name, value in ((SCORES, pred_scores), (MAPS, anomaly_maps)):
        if value is not None and not isinstance(value, Tensor):
            require_no_mapping(value)
            raise wrong_type(name, type(value).__name__, "a tensor")
    if pred_scores is None:
        if anomaly_maps is None:
            raise missing_values()
        require_shapes(tuple(anomaly_maps.shape[:1]), tuple(anomaly_maps.shape))
        pred_scores = largest_defined(anomaly_maps)
    require_shapes(tuple(pred_scores.shape), None if anomaly_maps is None else tuple(anomaly_maps.shape))
    if anomaly_maps is None:
        return {SCORES: pred_scores}
    if anomaly_maps.shape[-1] == 1:
        anomaly_maps = without_last_channel(anomaly_maps)
    return {SCORES: pred_scores, MAPS: anomaly_maps}
