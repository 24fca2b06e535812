"""A fitted normalization as a module, for inference and export (clauses N1 to N11, P1, P4, T4)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, SupportsFloat, cast

import torch
from torch import Tensor, nn

from anomnorm_core.checks import unfitted_level
from anomnorm_core.fields import (
    LEVEL,
    MAPS,
    SCORES,
    Scored,
    assemble,
    missing_fields,
    missing_values,
    require_no_mapping,
    require_shapes,
    require_unit_shapes,
    wrong_type,
)
from anomnorm_core.fitted import FittedNormalizer, Statistics, pair, require_cdf, require_record
from anomnorm_core.fitted_state import LEVELS, STATISTICS, FittedState
from anomnorm_core.policy import Center, Extra, Method, Units, manual, parse_extras, require_number
from anomnorm_torch import cdf, min_max
from anomnorm_torch._tensors import keep_dtype
from anomnorm_torch._version import __version__
from anomnorm_torch.cdf import ScoreDistribution
from anomnorm_torch.min_max import MinMaxStatistics
from anomnorm_torch.threshold import flag


class Normalizer(FittedNormalizer, nn.Module):
    """A method with its statistics and thresholds, ready to score: a module without parameters.

    Made by `min_max` or `cdf`, by `load` from a file, or by ``callback.normalizer(module)`` after training. Statistics
    and thresholds are buffers: they move with the module to another device and keep their dtype. Calling it waits for
    no device, and `torch.export` and `torch.onnx.export` take it, alone or after a model (`append_to`).

    Example::

        normalizer = Normalizer.load("detector.safetensors")
        result = normalizer(pred_scores=scores, anomaly_maps=maps)
        result["pred_scores"]   # 0.5 at the threshold
        result["pred_labels"]   # True where flagged
    """

    _package = ("anomnorm-torch", __version__)

    image_threshold: Tensor | None
    pixel_threshold: Tensor | None
    image_raw_threshold: Tensor | None

    def __init__(self, fit: FittedState) -> None:
        super().__init__()
        self.method, self.center = fit.method, fit.center
        self.counts, self.fitted_with = dict(fit.counts), fit.fitted_with
        for level in LEVELS:
            statistics = getattr(fit, level) or (None, None)
            for name, array in zip(STATISTICS[fit.method], statistics, strict=True):
                self.register_buffer(f"{level}_{name}", None if array is None else torch.from_numpy(array.copy()))
        # One of the two: in decision units or, under the CDF, in raw units.
        self.register_buffer("image_threshold", None if fit.raw_threshold else _number(fit.threshold))
        self.register_buffer("image_raw_threshold", _number(fit.threshold) if fit.raw_threshold else None)
        self.register_buffer("pixel_threshold", None if fit.pixel_threshold is None else _number(fit.pixel_threshold))

    @classmethod
    def from_fitted_state(cls, fit: FittedState) -> Self:
        """A normalizer of what `FittedState` describes, on the CPU."""
        return cls(fit)

    def fitted_state(self) -> FittedState:
        """This normalizer as NumPy arrays and Python numbers. Reads them off the device."""
        statistics = {
            level: pair(self._level(level), _read)
            for level in LEVELS
            if getattr(self, f"{level}_{STATISTICS[self.method][0]}") is not None
        }
        raw, decided = self.image_raw_threshold, self.image_threshold
        return FittedState(
            method=self.method,
            image=statistics["image"],
            pixel=statistics.get("pixel"),
            threshold=float(cast("Tensor", decided if raw is None else raw)),
            pixel_threshold=None if self.pixel_threshold is None else float(self.pixel_threshold),
            raw_threshold=raw is not None,
            center=self.center,
            counts=self.counts,
            fitted_with=self.fitted_with,
        )

    @staticmethod
    def _finalized(method: Method, level: str, statistics: Any) -> tuple[Statistics, tuple[int, int] | None]:
        if not isinstance(statistics, MinMaxStatistics | ScoreDistribution):
            return pair(statistics, _read), None
        require_record(method, min_max=isinstance(statistics, MinMaxStatistics))
        counts = (int(statistics.count.max()), int(statistics.invalid.max()))
        final = (
            min_max.bounds(statistics, level=level)
            if isinstance(statistics, MinMaxStatistics)
            else cdf.mean_std(statistics, level=level)
        )
        return pair(final, _read), counts

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str = Units.DECISION,
    ) -> Self:
        """See `FittedNormalizer.with_threshold`. The new one is on the same device."""
        changed = super().with_threshold(threshold, pixel_threshold, units=units)
        return changed.to(self._level("image")[0].device)

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
        extras: Iterable[Extra | str] = (),
    ) -> dict[str, Tensor]:
        """Unit scores, labels and masks of raw scores and maps; either may be missing.

        Args:
            pred_scores: raw image scores of shape (B,); without them, the maximum of each map.
            anomaly_maps: raw maps of shape (B, H, W) or (B, 1, H, W).
            threshold: for this call, in decision units, instead of the normalizer's own for image scores. A number, or
                a tensor of shape (), which is an input of an exported program.
            pixel_threshold: the same for maps; None takes the normalizer's own or, if that follows the one for image
                scores, ``threshold``.
            extras: what else to return for scores and maps, under the same names with ``_z``, ``_margin``
                or ``_raw`` added: ``"z"`` (CDF) and ``"margin"`` (min-max), which keep their order where the unit score
                is 0 or 1; ``"raw"``, the values given, not copied.

        Returns:
            ``pred_scores`` and ``pred_labels`` and, with maps, ``anomaly_maps`` and ``pred_masks``: unit scores of the
            shape, dtype and device of the raw ones, and booleans.

        Raises:
            OutputError: neither scores nor maps are given, or their shapes are wrong.
            NotFittedError: maps are given, but none were fitted.
            ResolutionError: the maps do not have the fitted height and width (CDF).
            OptionError: an extra is not one of the method.
        """
        raw = _values(pred_scores, anomaly_maps)
        if self.method is Method.MIN_MAX:
            return self._scored(raw, raw, threshold, pixel_threshold, extras)
        own = None
        z = {}
        for name, x in raw.items():
            if name == SCORES and self.image_raw_threshold is not None:
                z[name], own = cdf.standardize_around(x, self.image_raw_threshold, *self._level("image"))
            else:
                z[name] = self._z(name, x)
        return self._scored(z, raw, threshold, pixel_threshold, extras, own)

    def standardize(self, pred_scores: Tensor | None = None, anomaly_maps: Tensor | None = None) -> dict[str, Tensor]:
        """The z-scores of raw scores and maps: the space in which the CDF method decides.

        Args:
            pred_scores, anomaly_maps: as in a call.

        Returns:
            ``pred_scores`` and, with maps, ``anomaly_maps``: z-scores of the shape and dtype of the raw ones.

        Raises:
            OptionError: the method is min-max.
            OutputError, NotFittedError, ResolutionError: as in a call.
        """
        require_cdf(self.method)
        return {name: self._z(name, x) for name, x in _values(pred_scores, anomaly_maps).items()}

    def normalize_standardized(
        self,
        pred_scores: Tensor | None = None,
        anomaly_maps: Tensor | None = None,
        *,
        threshold: Tensor | float | None = None,
        pixel_threshold: Tensor | float | None = None,
        extras: Iterable[Extra | str] = (),
    ) -> dict[str, Tensor]:
        """What a call gives, from the z-scores of `standardize`. ``"raw"`` gives those.

        Args:
            pred_scores, anomaly_maps: z-scores and maps of z-scores.
            threshold, pixel_threshold, extras: as in a call.

        Raises:
            OptionError, OutputError: as `standardize`.
        """
        require_cdf(self.method)
        z = _values(pred_scores, anomaly_maps)
        return self._scored(z, z, threshold, pixel_threshold, extras)

    def _scored(
        self,
        values: Mapping[str, Tensor],
        raw: Mapping[str, Tensor],
        threshold: Tensor | float | None,
        pixel_threshold: Tensor | float | None,
        extras: Iterable[Extra | str],
        own: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Unit scores and decisions of ``values`` in decision space; ``own`` is the image threshold where it is known.

        Otherwise it is looked up.
        """
        wanted = parse_extras(extras, self.method)
        result = {}
        for name, x in values.items():
            given = own if name == SCORES and threshold is None else threshold
            if name == MAPS and (pixel_threshold is not None or self.pixel_threshold is not None):
                given = pixel_threshold if pixel_threshold is not None else self.pixel_threshold
            result[name] = self._score(name, x, raw[name], given, wanted)
        return assemble(result)

    def _score(
        self, name: str, x: Tensor, raw: Tensor, threshold: Tensor | float | None, wanted: tuple[Extra, ...]
    ) -> Scored:
        t = self._threshold(x) if threshold is None else threshold
        if isinstance(t, Tensor):  # which stays on its device
            require_number(tuple(t.shape), "threshold")
        elif not torch.compiler.is_compiling():  # where a number may be a symbol
            t = manual(t)
        beside: dict[Extra, Callable[[], Tensor]] = {Extra.RAW: lambda: raw}
        if self.method is Method.MIN_MAX:
            low, high = self._level(LEVEL[name])
            unit = min_max.normalize(x, t, low, high)
            beside[Extra.MARGIN] = lambda: min_max.margin(x, t, low, high)
        else:
            unit = cdf.normalize(x, t)
            beside[Extra.Z] = lambda: x
        return Scored(unit, flag(x, t), {str(extra): beside[extra]() for extra in wanted})

    def _threshold(self, z: Tensor) -> Tensor:
        """The image threshold in decision units; where it is known in raw units, as z-score in the dtype of ``z``."""
        if self.image_raw_threshold is not None:
            return cdf.standardize_around(z[:0], self.image_raw_threshold, *self._level("image"))[1]
        return cast("Tensor", self.image_threshold)

    def _z(self, name: str, x: Tensor) -> Tensor:
        mean, std = self._level(LEVEL[name])
        if name == MAPS:
            return cdf.standardize(x, mean, std, center_at=self._pixel_center())
        if self.image_raw_threshold is not None:
            return cdf.standardize_around(x, self.image_raw_threshold, mean, std)[0]
        return cdf.standardize(x, mean, std)

    def _pixel_center(self) -> Tensor | None:
        return self._level("image")[0] if self.center is Center.IMAGE else None

    def denormalize(self, pred_scores: Tensor | None = None, anomaly_maps: Tensor | None = None) -> dict[str, Tensor]:
        """The raw scores and maps of unit scores and maps; either may be missing (clause N11).

        Args:
            pred_scores: unit scores of shape (B,).
            anomaly_maps: unit maps of shape (B, H, W) or (B, 1, H, W).

        Returns:
            ``pred_scores`` and ``anomaly_maps``, as far as given. 0 and 1 stand for a whole tail: under min-max they
            give its near end, under the CDF 0 and infinity.

        Raises:
            OutputError, NotFittedError, ResolutionError: as in a call.
        """
        if pred_scores is None and anomaly_maps is None:
            raise missing_values()
        given = {SCORES: pred_scores, MAPS: anomaly_maps}
        units = {name: unit for name, unit in given.items() if unit is not None}
        require_unit_shapes({name: tuple(unit.shape) for name, unit in units.items()})
        return {name: self._raw(name, unit) for name, unit in units.items()}

    def _raw(self, name: str, unit: Tensor) -> Tensor:
        statistics = self._level(LEVEL[name])
        own = self.pixel_threshold if name == MAPS else None
        t = self._threshold(unit) if own is None else own
        if self.method is Method.MIN_MAX:
            return min_max.denormalize(unit, t, *statistics)
        return cdf.denormalize(unit, t, *statistics, center_at=self._pixel_center() if name == MAPS else None)

    def _level(self, level: str) -> tuple[Tensor, Tensor]:
        first, second = (getattr(self, f"{level}_{name}") for name in STATISTICS[self.method])
        if first is None:
            raise unfitted_level(level)
        return first, second

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self


class NormalizedModel(nn.Module):
    """A detector followed by a normalizer: from its input to unit scores, labels and masks.

    Args:
        model: returns a dict with ``pred_scores`` and/or ``anomaly_maps``, or image scores alone.
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
            threshold, pixel_threshold: as for `Normalizer`.

        Raises:
            OutputError: the model returns something else.
        """
        outputs = self.model(*inputs)
        if isinstance(outputs, Tensor):
            outputs = {SCORES: outputs}
        if not isinstance(outputs, Mapping):
            raise missing_fields(type(outputs).__name__, (), attributes=False)
        given = {name: outputs.get(name) for name in (SCORES, MAPS)}
        result: dict[str, Tensor] = self.normalizer(**given, threshold=threshold, pixel_threshold=pixel_threshold)
        return result


def _read(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # NumPy has no bfloat16


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _values(pred_scores: Tensor | None, anomaly_maps: Tensor | None) -> dict[str, Tensor]:
    """Scores and maps by name; scores default to the maximum of each map (clause L5)."""
    require_no_mapping(pred_scores)
    for name, value in ((SCORES, pred_scores), (MAPS, anomaly_maps)):
        if value is not None and not isinstance(value, Tensor):
            raise wrong_type(name, type(value).__name__, "a tensor")
    if pred_scores is None:
        if anomaly_maps is None:
            raise missing_values()
        require_shapes(tuple(anomaly_maps.shape[:1]), tuple(anomaly_maps.shape))
        pred_scores = anomaly_maps.flatten(1).amax(1)
    require_shapes(tuple(pred_scores.shape), None if anomaly_maps is None else tuple(anomaly_maps.shape))
    return {SCORES: pred_scores} | ({} if anomaly_maps is None else {MAPS: anomaly_maps})
