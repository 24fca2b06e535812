"""What a run has fitted, whichever package did it: the form in which it travels between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, SupportsFloat

import numpy as np

from anomnorm_core.checks import unfitted_level
from anomnorm_core.errors import FitWarning, NotFittedError, OptionError, warn
from anomnorm_core.method import Method
from anomnorm_core.methods import METHODS, cdf, normal
from anomnorm_core.options import LARGEST_FLOAT32, LEVELS, Origin, ThresholdRule, Units, parse_threshold
from anomnorm_core.threshold.false_alarms import Normals

SPECIFICATION_VERSION = "2"
_SMALLEST = float(np.finfo(np.float32).tiny)
_NOTABLE = 1e-6  # a false-alarm rate below which nobody counts


@dataclass(frozen=True, eq=False)
class Threshold:
    """The threshold of one level, and where it comes from."""

    raw: np.ndarray  #: () or, of pixels with parameters of their own, (H, W); float64: what decides
    sigmas: float | None  #: the same in sigmas; None: the method has none, or pixels were given raw numbers
    origin: Origin  #: which rule or option it is of
    fixed: Units = Units.RAW  #: which of the two stays when statistics are fitted anew
    #: Share of new normal samples that is expected to reach it: by the rule that found it or, in `Fit.thresholds`, by
    #: the fit. None: nothing is known.
    false_alarm_rate: float | None = None
    guaranteed: bool = False  #: whether the rule's holds for exchangeable samples of any distribution (clause T7)

    @property
    def _are_sigmas_finite(self) -> bool:
        """Whether there are sigmas to show: those of a constant population stand for infinity."""
        return self.sigmas is not None and abs(self.sigmas) < LARGEST_FLOAT32

    @property
    def value(self) -> float | np.ndarray:
        """What stays when statistics are fitted anew, in the units ``fixed``."""
        if self.fixed is Units.SIGMAS and self.sigmas is not None:
            return self.sigmas
        return float(self.raw) if self.raw.ndim == 0 else self.raw

    def __repr__(self) -> str:
        sigmas = f", sigmas={self.sigmas:.6g}" if self._are_sigmas_finite else ""
        rate = "" if self.false_alarm_rate is None else f", false_alarm_rate={self.false_alarm_rate:.3g}"
        rate += ", guaranteed=True" if self.guaranteed else ""
        return f"Threshold(raw={_range(self.raw)}{sigmas}, origin={str(self.origin)!r}{rate})"


@dataclass(frozen=True, eq=False)
class LevelFit:
    """The fitted parameters of image scores or of pixels, and their threshold."""

    parameters: tuple[np.ndarray, ...]  #: as the method names them, each () or (H, W), float32 or float64
    threshold: Threshold | None = None  #: None: not placed yet
    valid: int = 0  #: values that the parameters are of; of pixels with their own, of the one that has most
    invalid: int = 0  #: values left out
    zeros: np.ndarray | None = None  #: like the parameters: share of exact zeros, where those cannot be fitted (S10)
    normals: Normals | None = None  #: of a method without sigmas: the normal image scores of the validation run

    @property
    def known_zeros(self) -> np.ndarray:
        """The share of exact zeros, none where it is not known."""
        return np.zeros(self.parameters[0].shape) if self.zeros is None else self.zeros


@dataclass(frozen=True, eq=False)
class Fit:
    """A method with its parameters, thresholds and options, as NumPy arrays and Python numbers.

    It may be empty, or lack thresholds: before the first validation run and in its middle. A ``Normalizer`` is made of
    a complete one.

    Raises:
        OptionError: a value is not one that a fit can have; the message names it.
        NotFittedError: a parameter is not finite, as if it had seen no value.
    """

    method: Method  #: what was fitted
    image: LevelFit | None = None  #: of the image scores
    pixel: LevelFit | None = None  #: of the maps; None without any
    options: Mapping[str, Any] = field(default_factory=dict)  #: of the method, by name
    fitted_with: tuple[str, str] = ("", "")  #: package and version

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", self.method.parse_options(self.options))
        for level in LEVELS:
            if getattr(self, level) is not None:
                _check(self.method, level, getattr(self, level))
        levels = [each for each in (self.image, self.pixel) if each is not None]
        dtypes = {str(array.dtype) for each in levels for array in each.parameters}
        if len(dtypes) > 1:
            raise OptionError(f"the parameters have the dtypes {' and '.join(sorted(dtypes))}; give them one.")

    @property
    def resolution(self) -> tuple[int, int] | None:
        """Height and width of the maps that were fitted, where it matters."""
        shape = () if self.pixel is None else self.pixel.parameters[0].shape
        return (shape[0], shape[1]) if len(shape) == 2 else None

    def level(self, level: str) -> LevelFit:
        """What was fitted of ``"image"`` or ``"pixel"``; `NotFittedError` if nothing was."""
        if level not in LEVELS:
            raise OptionError(f"level={level!r} is not a level; use one of 'image', 'pixel'.")
        found = self.image if level == "image" else self.pixel
        if found is None:
            raise unfitted_level(level)
        return found

    def threshold(self, level: str) -> Threshold:
        """The threshold of a level; `NotFittedError` if there is none yet."""
        found = self.level(level).threshold
        if found is None:
            raise NotFittedError(
                f"there is no {level}-level threshold to put at 0.5 yet. Run a validation, which finds one; load a "
                "checkpoint that has one; or give threshold=... to the callback or hook."
            )
        return found

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """The thresholds by level, as far as there are any, each with the false-alarm rate that is expected of it."""
        found = {level: self._with_rate(level) for level in LEVELS}
        return {level: threshold for level, threshold in found.items() if threshold is not None}

    def _with_rate(self, level: str) -> Threshold | None:
        fitted = self.image if level == "image" else self.pixel
        threshold = None if fitted is None else fitted.threshold
        if fitted is None or threshold is None or threshold.false_alarm_rate is not None:
            return threshold
        if not self.method.sigmas and fitted.normals is None:
            return threshold
        rate = float(np.mean(self.false_alarm_rate(threshold.raw, Units.RAW, level)))
        return replace(threshold, false_alarm_rate=rate)

    def false_alarm_rate(self, score: Any, units: Units | str = Units.RAW, level: str = "image") -> np.ndarray:
        """The share of new normal samples that is expected to reach a score. See `Normalizer.false_alarm_rate`."""
        fitted, kernels = self.level(level), METHODS[self.method.name]
        raw = np.asarray(score, dtype=np.float64)
        if Units.parse(units, "units") is not Units.RAW:
            raw = self._placed(level, score, units, Origin.MANUAL, argument="score").raw
        if kernels.sigmas is None:
            if fitted.normals is None:
                raise NotFittedError(
                    f"nothing is known about the {level}-level scores of normal samples: {self.method.name} "
                    "normalization keeps their moments of validation runs with labelled normal samples in which the "
                    "image threshold was searched. Validate with labels, 0 for normal, and no number as threshold."
                )
            return fitted.normals.rate(raw)
        from scipy.special import ndtr, stdtr

        parameters = [array.astype(np.float64) for array in fitted.parameters]
        own = (*parameters, parameters[0])
        z, n = kernels.sigmas(raw, *own), fitted.valid
        tail = stdtr(n - 1, -z / np.sqrt(1 + 1 / n)) if n > 1 else ndtr(-z)
        # No sample of a constant population reaches the threshold that one sigma has there (clause N7).
        edge: np.ndarray = kernels.raw_threshold(1.0, *own)  # type: ignore[misc]
        reached: np.ndarray = np.where(self._constant(level), (raw < edge).astype(np.float64), tail)
        share = 1.0 - fitted.known_zeros.astype(np.float64)
        return np.where((raw <= 0) & self.method.positive, 1.0, share * reached)

    @property
    def is_constant(self) -> bool:
        """Whether a method with sigmas was fitted on image scores without a deviation (clause N7)."""
        return bool(self._constant("image"))

    def _constant(self, level: str) -> np.ndarray:
        """Where a level's parameters are of scores without a deviation."""
        parameters = [array.astype(np.float64) for array in self.level(level).parameters]
        named = dict(zip(self.method.parameters, parameters, strict=True))
        if not self.method.sigmas or "std" not in named:
            return np.zeros(parameters[0].shape, dtype=bool)
        least = cdf.LEAST_STD if self.method.positive else normal.LEAST_STD
        flat: np.ndarray = cdf.constant(parameters[0], named["std"], parameters[0], least)[0]
        return flat

    def report_rate(self) -> bool:
        """Warn where the image threshold's sigmas say little: more than twice as many false alarms are expected.

        Likewise of a constant population, which has no deviations. Returns whether it has.
        """
        if self.is_constant and self.level("image").valid:  # else somebody gave the moments, and knows
            warn(
                f"all {self.level('image').valid} image scores that were fitted are equal, up to rounding: there is no "
                "deviation to count in, and every other score is normalized to 0 or 1. Look for scores that are "
                "clipped or saturated, or for one sample that is repeated; or use min-max normalization.",
                FitWarning,
            )
            return True
        threshold = self._with_rate("image")
        if threshold is None or threshold.fixed is not Units.SIGMAS or threshold.sigmas is None:
            return False
        from scipy.special import ndtr

        said, expected = float(ndtr(-threshold.sigmas)), threshold.false_alarm_rate
        if expected is None or expected <= max(2 * said, _NOTABLE):
            return False
        warn(
            f"a threshold of {threshold.sigmas:g} sigmas says {said:.2g} of the normals, but mean and deviation of "
            f"{self.level('image').valid} values are uncertain: {expected:.2g} of new normal samples are expected to "
            f"reach it. Fit on more normal samples, or let a callback or hook find the threshold, with "
            f'threshold="{ThresholdRule.FALSE_ALARM_RATE}".',
            FitWarning,
        )
        return True

    def arguments(self, level: str) -> tuple[np.ndarray, ...]:
        """What the method's kernels take beside values and threshold: its parameters and, with sigmas, the center."""
        parameters = self.level(level).parameters
        if not self.method.sigmas:
            return parameters
        by_image = level == "pixel" and self.options.get("center") == "image"
        return (*parameters, (self.level("image").parameters if by_image else parameters)[0])

    def raw_threshold(self, value: Any, units: Units | str | None = None, level: str = "image") -> np.ndarray:
        """A threshold in raw units: what kernels, traces and exported programs take (clause T4).

        Args:
            value: a number; in raw units, of pixels with parameters of their own also one for each, (H, W).
            units: of ``value``: ``"raw"``, ``"sigmas"`` or ``"normalized"``, a present normalized score. None: sigmas
                where the method has them, else raw units.
            level: ``"image"`` or ``"pixel"``.

        Returns:
            float64 array of shape () or, of pixels with parameters of their own, (H, W).

        Raises:
            OptionError: the number is not finite, or none of a float32 score that could be flagged.
            NotFittedError: the level was not fitted.
        """
        return self._placed(level, value, units, Origin.MANUAL).raw

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> "Fit":
        """The same fit with other thresholds. See `Normalizer.with_threshold`."""
        if threshold is None and pixel_threshold is None:
            raise OptionError("threshold and pixel_threshold are None; give at least one of them.")
        changed = self
        if threshold is not None:
            placed = self._placed("image", threshold, units, Origin.MANUAL)
            changed = changed._with("image", self._bounded("image", placed))
        if pixel_threshold is not None:
            placed = self._placed("pixel", pixel_threshold, units, Origin.MANUAL, argument="pixel_threshold")
            changed = changed._with("pixel", self._bounded("pixel", placed))
        return changed

    def _bounded(self, level: str, placed: Threshold) -> Threshold:
        """``placed`` with a rate that does not contradict what the rule that found the present threshold expects.

        A lower threshold has at least as many false alarms, whatever the method supposes.
        """
        fitted = self.level(level)
        own, present = replace(self, **{level: replace(fitted, threshold=placed)})._with_rate(level), fitted.threshold  # type: ignore[arg-type]
        if own is None or present is None or present.raw.shape != placed.raw.shape:
            return placed
        known, expected = present.false_alarm_rate, own.false_alarm_rate
        if known is None or expected is None:
            return placed
        if np.all(placed.raw <= present.raw):
            expected = max(expected, known)
        if np.all(placed.raw >= present.raw):
            expected = min(expected, known)
        return replace(placed, false_alarm_rate=expected)

    def released(self) -> "Fit":
        """The same fit with thresholds that the next validation run may replace: none is manual any more."""
        changed = self
        for level in LEVELS:
            present = getattr(self, level)
            if present is not None and present.threshold is not None and present.threshold.origin is Origin.MANUAL:
                threshold = replace(present.threshold, origin=Origin.UNKNOWN)
                changed = replace(changed, **{level: replace(present, threshold=threshold)})
        return changed

    def placed(
        self,
        level: str,
        value: Any,
        units: Units | str | None,
        origin: Origin,
        *,
        found: bool = False,
        above: bool = False,
        rate: float | None = None,
        guaranteed: bool = False,
    ) -> "Fit":
        """The same fit with the threshold of ``level`` at ``value``.

        Args:
            level: ``"image"`` or ``"pixel"``, which then does not move with the image level any more.
            value, units: as for `raw_threshold`.
            origin: where it comes from.
            found: whether it was found among values that were rounded to z-scores, and their own one has to be at or
                above it (clause N4a).
            above: whether it was found likewise, and their own one has to be below it (clause T3).
            rate, guaranteed: the false-alarm rate that the rule which found it expects, and whether that holds.
        """
        threshold = self._placed(level, value, units, origin, found=found, above=above)
        return self._with(level, replace(threshold, false_alarm_rate=rate, guaranteed=guaranteed))

    def following(self) -> "Fit":
        """The same fit with the threshold of the images for the pixels too (clause T6).

        It is the same raw score or, where there are sigmas, the same in those, and moves with that of the images.
        """
        if self.pixel is None or self.image is None or self.image.threshold is None:
            return self
        image = self.image.threshold
        value, units = (float(image.raw), Units.RAW) if image.sigmas is None else (image.sigmas, Units.SIGMAS)
        threshold = self._placed("pixel", value, units, Origin.IMAGE, refuse=False)
        return replace(self, pixel=replace(self.pixel, threshold=threshold))

    def _with(self, level: str, threshold: Threshold) -> "Fit":
        changed: Fit = replace(self, **{level: replace(self.level(level), threshold=threshold)})  # type: ignore[arg-type]
        follows = level == "image" and self.pixel is not None and self.pixel.threshold is not None
        if follows and self.pixel.threshold.origin is Origin.IMAGE:  # type: ignore[union-attr]
            return changed.following()
        return changed

    def _placed(
        self,
        level: str,
        value: Any,
        units: Units | str | None,
        origin: Origin,
        *,
        found: bool = False,
        above: bool = False,
        refuse: bool = True,
        argument: str = "threshold",
    ) -> Threshold:
        scale = self.method.units if units is None else Units.parse(units, "units")
        method, fitted = self.method, self.level(level)
        kernels, arguments = METHODS[method.name], [array.astype(np.float64) for array in self.arguments(level)]
        if scale is Units.SIGMAS and not method.sigmas:
            raise OptionError(f'units="sigmas": {method.name} normalization has none; give the threshold in raw units.')
        shape = fitted.parameters[0].shape if method.per_pixel else ()
        numbers = _numbers(value, argument, shape if scale is Units.RAW else ())
        if scale is Units.NORMALIZED:
            present = self.threshold(level)
            if not 0.0 < numbers < 1.0:
                raise OptionError(f"{argument}={value} is no normalized score; give a number between 0 and 1.")
            raw = np.asarray(kernels.inverse(numbers, present.raw, *arguments))
            if present.sigmas is not None and kernels.sigmas is not None:
                # One number for all pixels, which constant ones do not know.
                moved = kernels.sigmas(raw, *arguments) - kernels.sigmas(present.raw, *arguments)
                known = raw != present.raw
                if not np.any(known):
                    return replace(present, origin=origin, false_alarm_rate=None, guaranteed=False)
                step = float(np.median(moved[known]))
                return self._placed(level, present.sigmas + step, Units.SIGMAS, origin, argument=argument)
        elif scale is Units.SIGMAS:
            raw = kernels.raw_threshold(float(numbers), *arguments, found=found)  # type: ignore[misc]
            if found or above:  # scores of float32 were standardized with parameters of float32
                rounded = [array.astype(np.float32).astype(np.float64) for array in arguments]
                other = kernels.raw_threshold(float(numbers), *rounded, found=found)  # type: ignore[misc]
                raw = np.minimum(raw, other) if found else _next_float32(np.maximum(raw, other))
            raw = np.broadcast_to(raw, shape)
        else:
            raw = np.broadcast_to(numbers, shape)
        least = _SMALLEST if method.positive else -LARGEST_FLOAT32
        given = scale is Units.RAW or raw.ndim == 0
        if refuse and given and not np.all((least <= raw) & (raw <= LARGEST_FLOAT32)):
            raise OptionError(
                f"{argument}={value} is the raw score {_range(raw)}, "
                + ("which is not a positive normal number of float32" if method.positive else "beyond float32")
                + ": no score could be on either side of it. Give another number."
            )
        raw = np.clip(raw, least, LARGEST_FLOAT32)
        sigmas = None
        if scale is Units.SIGMAS:
            sigmas = float(numbers)
        elif kernels.sigmas is not None and raw.ndim == 0:
            sigmas = float(kernels.sigmas(raw, *arguments))
        fixed = Units.SIGMAS if scale is Units.SIGMAS else Units.RAW
        return Threshold(np.array(raw, dtype=np.float64), sigmas, origin, fixed)

    def summary(self) -> str:
        """What this is, in a few lines for a person."""
        package, version = self.fitted_with
        options = "".join(f", {name} {value}" for name, value in self.options.items())
        title = self.method.title or self.method.name
        lines = [f"{title}{options}; fitted with {package or 'unknown'} {version}".rstrip()]
        for level in LEVELS:
            fitted = getattr(self, level)
            if fitted is None:
                lines.append(f"  {level} level: not fitted")
                continue
            of = "log scores" if self.method.positive else "scores"
            values = ", ".join(
                f"{name} {_range(array)}" for name, array in zip(self.method.parameters, fitted.parameters, strict=True)
            )
            threshold = _placed(self._with_rate(level))
            lines.append(f"  {level} level: {of} with {values}{self._counted(level)}; {threshold}")
        if self.image is not None and self.image.threshold is not None:
            marks = np.asarray([0.1, 0.25, 0.5, 0.75, 0.9])
            raw = METHODS[self.method.name].inverse(marks, self.image.threshold.raw, *self.arguments("image"))
            pairs = ", ".join(f"{mark} is {value:.6g}" for mark, value in zip(marks, raw, strict=True))
            lines.append(f"  normalized image scores in raw units: {pairs}")
        return "\n".join(lines)

    def _counted(self, level: str) -> str:
        fitted = self.level(level)
        if not fitted.valid + fitted.invalid:
            return ""
        size = ""
        if level == "pixel" and self.resolution is not None:
            size = " for each of {}x{} pixels".format(*self.resolution)
        return f" of {fitted.valid} values{size}" + (f" ({fitted.invalid} left out)" if fitted.invalid else "")


def _placed(threshold: Threshold | None) -> str:
    if threshold is None:
        return "no threshold yet"
    sigmas = f" ({threshold.sigmas:.6g} sigmas)" if threshold._are_sigmas_finite else ""
    origin = "that of the images" if threshold.origin is Origin.IMAGE else threshold.origin
    rate = threshold.false_alarm_rate
    shown = ""
    if rate is not None:
        percent = "below 0.0001%" if rate < _NOTABLE else f"{100 * rate:.2g}%" if rate < 0.995 else "100%"
        shown = f", expected false alarms {percent}{' at most' if threshold.guaranteed else ''}"
    return f"threshold {_range(threshold.raw)}{sigmas}, {origin}{shown}"


def _next_float32(value: np.ndarray) -> np.ndarray:
    """The float32 after that nearest to ``value``: above every float32 that is below ``value``, and not subnormal."""
    with np.errstate(over="ignore"):
        up = np.nextafter(value.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    return np.where(np.abs(up) < _SMALLEST, np.where(up > 0, _SMALLEST, 0.0), up)


def _range(array: np.ndarray) -> str:
    low, high = float(np.min(array)), float(np.max(array))
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _numbers(value: Any, argument: str, shape: tuple[int, ...]) -> np.ndarray:
    """A number or, where there may be one for each pixel, an array of them, checked."""
    if shape and np.ndim(value) == len(shape):
        array = np.array(value, dtype=np.float64)
        if array.shape != shape or not np.all(np.isfinite(array)):
            raise OptionError(f"{argument} has shape {array.shape}; one finite number or {shape} of them are needed.")
        return array
    if np.ndim(value):
        raise OptionError(f"{argument} has shape {np.shape(value)}; one number, of shape (), is needed.")
    number = parse_threshold(value, argument)
    if number is None:
        raise OptionError(f"{argument} is missing; give a finite number.")
    return np.asarray(number)


def _check(method: Method, level: str, fitted: LevelFit) -> None:
    if len(fitted.parameters) != len(method.parameters):
        raise OptionError(
            f"{method.name} normalization has the parameters {', '.join(method.parameters)}, and {level} got "
            f"{len(fitted.parameters)} of them. Of scores, make a record first: update(init(), scores) of the method."
        )
    names = [f"{level}_{name}" for name in method.parameters]
    shape = fitted.parameters[0].shape
    allowed = 2 if method.per_pixel and level == "pixel" else 0
    for name, array in zip(names, fitted.parameters, strict=True):
        if array.dtype not in (np.float32, np.float64):
            raise OptionError(f"{name} has dtype {array.dtype}; float32 or float64 is needed.")
        if not np.all(np.isfinite(array)):
            raise NotFittedError(f"{name} is not finite, as if it had seen no value; fit it first.")
        if np.any(np.abs(array) > LARGEST_FLOAT32):
            raise OptionError(f"{name} is infinite in float32, which most scores are; scale the scores down.")
        if array.shape != shape:
            raise OptionError(f"{names[0]} has shape {shape}, but {name} {array.shape}.")
    if len(shape) != allowed or fitted.parameters[0].size == 0:
        raise OptionError(f"{names[0]} has shape {shape}; {'(H, W)' if allowed else '()'} is needed.")
    if fitted.zeros is not None and not (
        fitted.zeros.shape == shape and np.all((fitted.zeros >= 0) & (fitted.zeros <= 1))
    ):
        raise OptionError(f"{level}_zeros are no shares of shape {shape}, from 0 to 1.")
    check = METHODS[method.name].check
    wrong = None if check is None else check(*fitted.parameters)
    if wrong is not None:
        raise OptionError(f"{level} level: {wrong}.")
    threshold = fitted.threshold
    if threshold is not None:
        if not method.sigmas and (threshold.sigmas is not None or threshold.fixed is Units.SIGMAS):
            raise OptionError(f"{level}_threshold is in sigmas, and {method.name} normalization has none.")
        if level == "image" and threshold.origin is Origin.IMAGE:
            raise OptionError("image_threshold cannot follow itself: its origin is 'image'.")
        if threshold.raw.shape != (shape if method.per_pixel else ()):
            raise OptionError(f"{level}_threshold has shape {threshold.raw.shape}; {shape} is needed.")
        least = _SMALLEST if method.positive else -LARGEST_FLOAT32
        if not np.all((threshold.raw >= least) & (threshold.raw <= LARGEST_FLOAT32)):
            raise OptionError(f"{level}_threshold is no normal number of float32 that a score could be flagged by.")
