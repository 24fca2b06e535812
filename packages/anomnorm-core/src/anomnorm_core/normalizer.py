"""A fitted normalization that scores what a detector gives: what all packages do, and NumPy's (N1 to N11, P1, T4)."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from anomnorm_core import file
from anomnorm_core._arrays import Array, evaluated, normalized
from anomnorm_core._version import __version__
from anomnorm_core.checks import Counts, counts_of, report_invalid, require_mask, share_of_zeros
from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError
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
)
from anomnorm_core.fit import Fit, LevelFit, Threshold
from anomnorm_core.method import Kernels, Registry
from anomnorm_core.methods import METHODS
from anomnorm_core.options import LEVELS, Center, OnInvalid, Origin, Transform, Units, parse_first_units
from anomnorm_core.threshold import flag


class BaseNormalizer(ABC):
    """The part of a normalizer that does not compute: made, saved, loaded, moved to another threshold, described.

    A package's ``Normalizer`` says how it is made from a `Fit` and becomes one again, and reads its library's arrays.
    """

    _methods: ClassVar[Registry]  # of the package
    _package: ClassVar[tuple[str, str]]  # name and version of the package that fits

    @classmethod
    @abstractmethod
    def from_fit(cls, fit: Fit) -> Self:
        """A normalizer of a complete `Fit`.

        Raises:
            NotFittedError: a level lacks its threshold, or nothing was fitted.
        """

    @abstractmethod
    def to_fit(self) -> Fit:
        """This normalizer as NumPy arrays and Python numbers. Reads them off the device."""

    @staticmethod
    @abstractmethod
    def _read(value: Any) -> np.ndarray:
        """An array of the package's library in NumPy."""

    @staticmethod
    def _total(count: Any) -> int:
        """The ``count`` of a record: of pixels with their own, of the one that has most."""
        return int(np.max(np.asarray(count)))

    @staticmethod
    def _counts(record: Any) -> Counts:
        """How many values a record has taken and left out."""
        return counts_of(record)

    @classmethod
    def _zeros(cls, record: Any) -> np.ndarray:
        """The share of exact zeros among the values of a record, of each pixel where those have their own."""
        found: np.ndarray = share_of_zeros(cls._read(record.count), cls._read(record.zeros))
        return found

    @classmethod
    def min_max(
        cls,
        image: Any,
        pixel: Any = None,
        *,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
    ) -> Self:
        """A min-max normalizer (clause N1).

        Args:
            image: image-level statistics: a record of `min_max.update`, or a pair ``(min, max)``.
            pixel: the same of the maps, if there are any; the image-level ones again for one shared range.
            threshold: for the image scores, in raw units.
            pixel_threshold: for the maps, in raw units; None takes ``threshold``, also when that is changed (T6).

        Raises:
            NotFittedError: the statistics have seen no valid value.
            OptionError: a threshold is no finite number, or a range is none.
        """
        return cls.of("min-max", image, pixel, threshold=threshold, pixel_threshold=pixel_threshold)

    @classmethod
    def cdf(
        cls,
        image: Any,
        pixel: Any = None,
        *,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
        units: Units | str = Units.SIGMAS,
        center: Center | str = Center.IMAGE,
        transform: Transform | str = Transform.LOG,
    ) -> Self:
        """A CDF normalizer (clauses N2, N3, N3b).

        Args:
            image: image-level statistics: a record of `cdf.update`, or a pair ``(mean, std)`` of the log scores. With
                ``transform="identity"`` a record of `normal.update`, or such a pair of the scores themselves.
            pixel: the same of the maps, if there are any, of shape (H, W).
            threshold: for the image scores, in ``units``.
            pixel_threshold: for the maps; None takes that of the images in sigmas, also when that is changed (T6).
            units: of both: ``"sigmas"`` or ``"raw"``.
            center: where pixel z-scores are zero: ``"image"`` or ``"pixel"``.
            transform: what is normally distributed: ``"log"``, the logarithms of the scores, or ``"identity"``, the
                scores, which may then have any sign.

        Raises:
            NotFittedError, InsufficientDataError: the statistics have seen too few valid values.
            OptionError: a threshold is no finite number, or an option is none.
        """
        options = {"center": str(Center.parse(center, "center"))}
        method = Transform.parse(transform, "transform").method
        return cls.of(
            method, image, pixel, threshold=threshold, pixel_threshold=pixel_threshold, units=units, options=options
        )

    @classmethod
    def of(
        cls,
        method: str,
        image: Any,
        pixel: Any = None,
        *,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
        units: Units | str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """A normalizer of any method.

        Args:
            method: its name: ``"min-max"``, ``"two-slope"``, ``"cdf"``, ``"normal"`` or that of a registered one.
            image: image-level statistics: a record of the method's ``update``, or its parameters in a tuple.
            pixel: the same of the maps, if there are any.
            threshold: for the image scores, in ``units``.
            pixel_threshold: for the maps; None takes that of the images, also when that is changed (T6).
            units: of both: ``"raw"`` or, where the method has them, ``"sigmas"``, which are the default then.
            options: of the method, by name.

        Raises:
            NotFittedError, InsufficientDataError: the statistics have seen too few valid values.
            OptionError: a threshold is no finite number, or the method, or an option, is unknown.
        """
        units = parse_first_units(units)
        fit = cls.fitted(method, image, pixel, options=options)
        fit = fit.placed("image", threshold, units, Origin.OPTION)
        fit.report_rate()
        if pixel_threshold is None:
            return cls.from_fit(fit.following())
        if pixel is None:
            raise OptionError(f"pixel_threshold={pixel_threshold} is given, but no statistics of maps.")
        return cls.from_fit(fit.placed("pixel", pixel_threshold, units, Origin.OPTION))

    @classmethod
    def fitted(
        cls,
        method: str,
        image: Any,
        pixel: Any = None,
        *,
        options: Mapping[str, Any] | None = None,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
    ) -> Fit:
        """A `Fit` of statistics, without thresholds. The arguments are those of `of`, and ``on_invalid`` of clause S6.

        Raises:
            NotFittedError, InsufficientDataError: the statistics have seen too few valid values.
            OptionError: the method, or an option, is unknown.
            InvalidScoreError: too many values were left out, or any under ``on_invalid="raise"``.
        """
        kernels = cls._methods[method]
        given = dict(zip(LEVELS, (image, pixel), strict=True))
        fitted = {level: cls._level_fit(kernels, level, each) for level, each in given.items()}
        counts = {level: cls._counts(each) for level, each in given.items() if hasattr(each, "_fields")}
        report_invalid(counts, OnInvalid.parse(on_invalid, "on_invalid"), method=kernels.method)
        arrays = [array for each in fitted.values() if each is not None for array in each.parameters]
        dtype = np.result_type(*arrays)
        levels = {
            level: replace(each, parameters=tuple(array.astype(dtype) for array in each.parameters))
            for level, each in fitted.items()
            if each is not None
        }
        return Fit(kernels.method, **levels, options=options or {}, fitted_with=cls._package)

    @classmethod
    def _level_fit(cls, kernels: Kernels, level: str, statistics: Any) -> LevelFit | None:
        """A record, finalized, or parameters; None for None."""
        if statistics is None:
            return None
        if hasattr(statistics, "_fields"):
            record = type(kernels.init())
            if not isinstance(statistics, record):
                raise OptionError(
                    f"{type(statistics).__name__} is no record of {kernels.method.name} normalization, which has "
                    f"{record.__name__}."
                )
            parameters = kernels.finalize(statistics, level=level)
            counts = cls._total(statistics.count), cls._counts(statistics).left_out
            zeros = cls._zeros(statistics) if kernels.method.positive else None
        else:
            parameters, counts, zeros = statistics, (0, 0), None
        try:
            arrays = tuple(_floating(cls._read(value)) for value in parameters)
        except (TypeError, ValueError):
            raise OptionError(
                "statistics are a record of this package or its parameters in a tuple, found "
                f"{type(statistics).__name__}."
            ) from None
        return LevelFit(arrays, None, *counts, zeros)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a normalizer that any of the packages saved.

        Raises:
            FileFormatError: the file is damaged, foreign, or of a newer format; the message names it and the reason.
            OSError: it cannot be read, or is not there.
        """
        return cls.from_fit(file.read(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that all of the packages read. It appears complete or not at all, and replaces an old one.

        Raises:
            OSError: it cannot be written.
        """
        file.write(path, self.to_fit())

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """The thresholds by level, ``"image"`` and ``"pixel"``: raw, in sigmas, and where each comes from."""
        return self.to_fit().thresholds

    def false_alarm_rate(self, score: Any, units: Units | str = Units.RAW, level: str = "image") -> np.ndarray:
        """The share of new normal samples that is expected to reach a score: what 0.9 means (clause T7).

        With sigmas, of the fit: ``(1 - p0) (1 - T_(n-1)(z / sqrt(1 + 1/n)))`` for a mean and a deviation of ``n``
        values, with ``T`` the distribution of Student's t and the share ``p0`` of exact zeros (clause S10). Without, of
        the moments of the normal samples of the validation run, see `threshold.false_alarms.Normals`.

        Args:
            score: a number; in raw units an array of any shape too.
            units: of ``score``: ``"raw"``, ``"sigmas"`` or ``"normalized"``.
            level: ``"image"`` or, with sigmas, ``"pixel"``: then the share is that of each pixel.

        Returns:
            float64 array of the shape of ``score`` or, of pixels with parameters of their own, (H, W).

        Raises:
            NotFittedError: nothing is known about normal samples.
            OptionError: a score in other units is not finite, or none of a float32 score that could be flagged.
        """
        return self.to_fit().false_alarm_rate(score, units, level)

    def raw_threshold(self, value: Any, units: Units | str | None = None, level: str = "image") -> np.ndarray:
        """A threshold in raw units, which calls, traces and exported programs take (clause T4).

        Args:
            value: a number.
            units: of ``value``: ``"raw"``, ``"sigmas"`` or ``"normalized"``, a present normalized score. None: sigmas
                where the method has them, else raw units.
            level: ``"image"`` or ``"pixel"``.

        Returns:
            float64 array of shape () or, for pixels under the CDF, (H, W).

        Raises:
            OptionError: the number is not finite, or none of a float32 score that could be flagged.
            NotFittedError: the level was not fitted.
        """
        return self.to_fit().raw_threshold(value, units, level)

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> Self:
        """The same statistics with other thresholds (clause T4). This normalizer stays as it is.

        Args:
            threshold: for the image scores; None keeps the present one.
            pixel_threshold: for the maps; None keeps the present one, or goes on following that of the images.
            units: of both: ``"raw"``; ``"sigmas"``, where the method has them; or ``"normalized"``: a present
                score. With 0.7, what has 0.7 now has 0.5 then, up to rounding; numbers above 0.5 flag less. None:
                sigmas where the method has them, else raw units.

        Raises:
            OptionError: a number is not finite, or not between 0 and 1 if normalized.
        """
        return self.from_fit(self.to_fit().with_threshold(threshold, pixel_threshold, units=units))

    def without_manual_threshold(self) -> Self:
        """The same numbers, which the next validation run may replace: none is manual any more."""
        return self.from_fit(self.to_fit().released())

    def plot(self, pred_scores: Any, labels: Any = None, *, level: str = "image", ax: Any = None) -> Any:
        """Histograms of raw scores and of the normalized ones, with threshold and statistics: `plot.scores`.

        Other pictures of this normalizer: `plot.thresholds`, `plot.false_alarms` and `plot.maps`.

        Args:
            pred_scores, labels, level, ax: as there.

        Returns:
            The matplotlib figure and its two axes.
        """
        from anomnorm_core.plot import scores

        return scores(self, pred_scores, labels, level=level, ax=ax)

    def summary(self) -> str:
        """Method, parameters and thresholds with their origins in a few lines for a person, and some raw scores."""
        return f"{type(self).__name__}: {self.to_fit().summary()}"

    def report(
        self,
        path: str | os.PathLike[str],
        pred_scores: Any = None,
        labels: Any = None,
        *,
        anomaly_maps: Any = None,
        images: Any = None,
        masks: Any = None,
        names: Sequence[Any] | None = None,
        title: str = "Normalization report",
    ) -> None:
        """Write a page for a browser about this normalizer and, where given, about scores. See `report.write_report`.

        Example::

            normalizer.report("report.html", scores, labels, names=files)
        """
        from anomnorm_core.report import write_report

        write_report(
            path,
            self,
            pred_scores,
            labels,
            anomaly_maps=anomaly_maps,
            images=images,
            masks=masks,
            names=names,
            title=title,
        )

    def __repr__(self) -> str:
        try:
            fit = self.to_fit()
        except (AnomnormError, TypeError, ValueError, RuntimeError) as error:
            return f"{type(self).__name__}({type(error).__name__}: its values cannot be read)"  # a repr never raises
        parts = [f"method={fit.method.name!r}"]
        for level in LEVELS:
            fitted = getattr(fit, level)
            if fitted is not None and fitted.threshold is not None:
                number = fitted.threshold.raw if fitted.threshold.sigmas is None else fitted.threshold.sigmas
                units = "" if fitted.threshold.sigmas is None else "_sigmas"
                prefix = "" if level == "image" else "pixel_"
                parts.append(f"{prefix}threshold{units}={float(np.mean(number)):.6g}")
        maps = "none" if fit.pixel is None else "any" if fit.resolution is None else "x".join(map(str, fit.resolution))
        return f"{type(self).__name__}({', '.join(parts)}, maps={maps!r})"


def _floating(values: Any) -> np.ndarray:
    array = np.asarray(values)
    copy = np.array(array, dtype=array.dtype if array.dtype == np.float32 else np.float64)
    copy.setflags(write=False)
    return copy


def require_complete(fit: Fit) -> Fit:
    """``fit``, if a normalizer can be made of it.

    Raises:
        NotFittedError: nothing was fitted, or a level lacks its threshold.
    """
    if fit.image is None:
        raise NotFittedError(
            "nothing has been fitted yet: run a validation first (trainer.fit or trainer.validate, or the hook's "
            "on_validation_* methods), or load a checkpoint or file."
        )
    for level in LEVELS:
        if getattr(fit, level) is not None:
            fit.threshold(level)
    return fit


class Normalizer(BaseNormalizer):
    """A method with its statistics and thresholds, ready to score: in NumPy, with no framework installed.

    Made by `min_max`, `cdf` or `of`, by `load` from a file, or by a training callback or hook of the other packages. It
    does not change; `with_threshold` gives another one.

    Example::

        normalizer = Normalizer.load("detector.safetensors")
        result = normalizer(pred_scores=scores, anomaly_maps=maps)
        result["pred_scores"]   # 0.5 at the threshold
        result["pred_labels"]   # True where flagged
    """

    _methods = METHODS
    _package = ("anomnorm-core", __version__)

    def __init__(self, fit: Fit) -> None:
        self._fit = require_complete(fit)

    @classmethod
    def from_fit(cls, fit: Fit) -> Self:
        """A normalizer of a complete `Fit`."""
        return cls(fit)

    def to_fit(self) -> Fit:
        """This normalizer as NumPy arrays and Python numbers."""
        return self._fit

    @staticmethod
    def _read(value: Any) -> np.ndarray:
        return np.asarray(value)

    def __call__(
        self,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        *,
        threshold: ArrayLike | None = None,
        pixel_threshold: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        extras: Iterable[str] = (),
        finite: bool = False,
    ) -> dict[str, np.ndarray]:
        """Normalized scores, labels and masks of raw scores and maps; either may be missing.

        Args:
            pred_scores: raw image scores of shape (B,) or (B, 1); without them, the maximum of each map's
                pixels that are not NaN.
            anomaly_maps: raw maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).
            threshold: for this call, in raw units, instead of the normalizer's own for image scores: one number.
                `raw_threshold` converts from sigmas and normalized scores.
            pixel_threshold: the same for maps; under the CDF also one number for each pixel, (H, W). None takes the
                normalizer's own or, where there are no sigmas and that follows the images' one, ``threshold``.
            valid: booleans of shape (B,): False for what only pads the batch. It is never flagged (clause L5).
            extras: what else to return for scores and maps, under the same names with ``_z``, ``_margin`` or ``_raw``
                added: ``"z"`` (CDF) and ``"margin"`` (min-max), which keep their order where the normalized score is 0
                or 1; ``"raw"``, the values given, not copied. ``"invalid"`` is (B,): True where the image score is NaN.
            finite: whether infinities among the extras become the largest finite numbers: metrics refuse infinite ones.

        Returns:
            ``pred_scores`` and ``pred_labels`` and, with maps, ``anomaly_maps`` and ``pred_masks``: normalized scores
            of the shape of the raw ones, float64 for float64 and float32 for other floating dtypes, and booleans.

        Raises:
            OutputError: neither scores nor maps are given, or their shapes are wrong.
            NotFittedError: maps are given, but none were fitted.
            ResolutionError: the maps do not have the fitted height and width (CDF).
            OptionError: an extra is not one of the method.
            ValueError: ``valid`` is not of shape (B,).
        """
        fit, kernels = self._fit, METHODS[self._fit.method.name]
        wanted = kernels.method.parse_extras(extras)
        given = {SCORES: threshold, MAPS: pixel_threshold}
        if pixel_threshold is None and threshold is not None and follows_raw(fit):
            given[MAPS] = threshold
        result: dict[str, np.ndarray] = {}
        values = raw_values(pred_scores, anomaly_maps)
        for name, x in values.items():
            level = LEVEL[name]
            arguments = fit.arguments(level)
            t = fit.threshold(level).raw if given[name] is None else fit.raw_threshold(given[name], Units.RAW, level)
            result[name] = normalized(kernels, x, t, arguments)
            flagged = flag(x, t)
            if valid is not None:
                kept = np.asarray(valid, dtype=bool)
                require_mask(kept.shape, x.shape[0], "valid")
                flagged = flagged & kept.reshape(-1, *[1] * (x.ndim - 1))
            result["pred_labels" if name == SCORES else "pred_masks"] = flagged
            for extra in wanted:
                if extra == "invalid":
                    continue
                value = x
                if extra != "raw":
                    value = evaluated(kernels.extras[extra], x, t, arguments)
                    largest = np.finfo(value.dtype).max
                    value = np.clip(value, -largest, largest) if finite else value
                result[f"{name}_{extra}"] = value
        if "invalid" in wanted:
            scores = values[SCORES].reshape(-1)
            result["invalid"] = (scores != scores) & (True if valid is None else np.asarray(valid, dtype=bool))
        return shaped_as(None if anomaly_maps is None else np.shape(anomaly_maps), result)

    def denormalize(
        self, pred_scores: ArrayLike | None = None, anomaly_maps: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
        """The raw scores and maps of normalized ones; either may be missing (clause N11).

        Args:
            pred_scores: normalized scores of shape (B,).
            anomaly_maps: normalized maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).

        Returns:
            ``pred_scores`` and ``anomaly_maps``, as far as given. 0 and 1 stand for a whole tail: under min-max they
            give its near end, under the CDF 0 and infinity.

        Raises:
            OutputError, NotFittedError, ResolutionError: as in a call.
        """
        if pred_scores is None and anomaly_maps is None:
            raise missing_values()
        given = {SCORES: pred_scores, MAPS: anomaly_maps}
        units = {name: np.asarray(unit) for name, unit in given.items() if unit is not None}
        require_normalized_shapes({name: unit.shape for name, unit in units.items()})
        inverse, fit = METHODS[self._fit.method.name].inverse, self._fit
        result = {
            name: evaluated(inverse, without_last_channel(unit), fit.threshold(level).raw, fit.arguments(level))
            for name, unit in units.items()
            for level in (LEVEL[name],)
        }
        return shaped_as(None if anomaly_maps is None else np.shape(anomaly_maps), result)


def follows_raw(fit: Fit) -> bool:
    """Whether a raw image threshold is that of the pixels too: those follow it, and there are no sigmas between."""
    pixel = None if fit.pixel is None else fit.pixel.threshold
    return pixel is not None and pixel.origin is Origin.IMAGE and not fit.method.sigmas


def raw_values(pred_scores: ArrayLike | None, anomaly_maps: ArrayLike | None) -> dict[str, Array]:
    """Scores and maps by name; scores default to the maximum of each map (clause L5)."""
    require_no_mapping(pred_scores)
    maps = None if anomaly_maps is None else np.asanyarray(anomaly_maps)
    if pred_scores is not None:
        scores = np.asanyarray(pred_scores)
    elif maps is not None:
        require_shapes(maps.shape[:1], maps.shape)
        scores = maps.reshape(maps.shape[0], -1).max(axis=1)
        if maps.dtype.kind == "f" and np.any(np.isnan(scores)):  # of the pixels that are defined
            scores = np.fmax.reduce(maps.reshape(maps.shape[0], -1), axis=1)
    else:
        raise missing_values()
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return {SCORES: scores} | ({} if maps is None else {MAPS: without_last_channel(maps)})
