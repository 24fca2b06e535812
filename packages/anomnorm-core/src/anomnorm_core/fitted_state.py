"""What a fitted normalizer consists of, whichever package fitted it: the form in which it travels between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import SupportsFloat

import numpy as np

from anomnorm_core import cdf, min_max
from anomnorm_core._arrays import ndtri
from anomnorm_core.checks import unfitted_level
from anomnorm_core.errors import NotFittedError, OptionError
from anomnorm_core.policy import Center, Method, Units, parse_threshold

SPECIFICATION_VERSION = "1"
LEVELS = ("image", "pixel")

# The two statistics of a level, by method.
STATISTICS: Mapping[Method, tuple[str, str]] = {Method.MIN_MAX: ("min", "max"), Method.CDF: ("mean", "std")}


@dataclass(frozen=True, eq=False)
class FittedState:
    """A method with its statistics, thresholds and options, as NumPy arrays and Python numbers.

    Raises:
        OptionError: a value is not one that a fit can have; the message names it.
    """

    method: Method
    image: tuple[np.ndarray, np.ndarray]  # (min, max) or (mean, std), each of shape (), float64 or float32
    threshold: float  # image level: in raw units under min-max; under the CDF in z units, or raw with raw_threshold
    pixel: tuple[np.ndarray, np.ndarray] | None = None  # the same of the pixels; under the CDF of shape (H, W)
    pixel_threshold: float | None = None  # in decision units; None: the image threshold
    raw_threshold: bool = False  # CDF: whether ``threshold`` is in raw units
    center: Center = Center.IMAGE  # CDF: where pixel z-scores are zero
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by level: values that were valid, left out
    fitted_with: tuple[str, str] = ("", "")  # package and version

    def __post_init__(self) -> None:
        _check_threshold(self.threshold, "threshold", positive=self.raw_threshold)
        if self.pixel_threshold is not None:
            _check_threshold(self.pixel_threshold, "pixel_threshold", positive=False)
        if self.raw_threshold and self.method is not Method.CDF:
            raise OptionError("raw_threshold is for the CDF; under min-max every threshold is in raw units.")
        for level in LEVELS:
            statistics = getattr(self, level)
            if statistics is not None:
                _check_statistics(self.method, level, *statistics)
        dtypes = {str(array.dtype) for array in (*self.image, *(self.pixel or ()))}
        if len(dtypes) > 1:
            raise OptionError(f"the statistics have the dtypes {' and '.join(sorted(dtypes))}; give them one.")

    @property
    def resolution(self) -> tuple[int, int] | None:
        """Height and width of the maps that were fitted, where it matters."""
        shape = () if self.pixel is None else self.pixel[0].shape
        return (shape[0], shape[1]) if len(shape) == 2 else None

    def level(self, level: str) -> tuple[np.ndarray, np.ndarray]:
        """The statistics of ``"image"`` or ``"pixel"``; `NotFittedError` if there are none."""
        statistics = self.image if level == "image" else self.pixel
        if statistics is None:
            raise unfitted_level(level)
        return statistics

    @property
    def z_threshold(self) -> float:
        """The image threshold in decision units."""
        if not self.raw_threshold:
            return self.threshold
        one = np.asarray([self.threshold], dtype=np.float64)
        return float(cdf.standardize_around(one, self.threshold, *self.image)[1])

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str = Units.DECISION,
    ) -> "FittedState":
        """The same fit with other thresholds. See `Normalizer.with_threshold`."""
        scale = Units.parse(units, "units")
        image = parse_threshold(threshold, "threshold")
        pixel = parse_threshold(pixel_threshold, "pixel_threshold")
        changed = self
        if image is not None:
            raw = scale is Units.RAW and self.method is Method.CDF
            value = self._from_unit(image, "threshold") if scale is Units.UNIT else image
            changed = replace(changed, threshold=value, raw_threshold=raw)
        if pixel is not None:
            if scale is Units.RAW and self.method is Method.CDF:
                raise OptionError(
                    "pixel_threshold cannot be in raw units under the CDF: every pixel has its own. Give it in z units "
                    'with units="decision", or on the unit scale with units="unit".'
                )
            value = self._from_unit(pixel, "pixel_threshold") if scale is Units.UNIT else pixel
            changed = replace(changed, pixel_threshold=value)
        return changed

    def _from_unit(self, unit: float, argument: str) -> float:
        if not 0.0 < unit < 1.0:
            raise OptionError(f"{argument}={unit} is not on the unit scale; give a number between 0 and 1.")
        level = "image" if argument == "threshold" or self.pixel is None else "pixel"
        present = self.z_threshold if argument == "threshold" or self.pixel_threshold is None else self.pixel_threshold
        if self.method is Method.MIN_MAX:
            low, high = getattr(self, level)
            return float(min_max.denormalize(np.asarray(unit), present, low, high))
        return present + float(ndtri(np.asarray(unit), np))

    def raw_scores(self, units: np.ndarray) -> np.ndarray:
        """The raw image scores of unit scores."""
        function = min_max.denormalize if self.method is Method.MIN_MAX else cdf.denormalize
        values: np.ndarray = function(np.asarray(units, dtype=np.float64), self.z_threshold, *self.image)
        return values

    def summary(self) -> str:
        """What this is, in a few lines for a person."""
        package, version = self.fitted_with
        kind = {Method.MIN_MAX: "min-max", Method.CDF: f"log-normal CDF, pixels centred at the {self.center} mean"}
        lines = [f"{kind[self.method]}; fitted with {package or 'unknown'} {version}".rstrip()]
        for level in LEVELS:
            statistics = getattr(self, level)
            if statistics is None:
                lines.append(f"  {level} level: not fitted")
                continue
            of = "scores" if self.method is Method.MIN_MAX else "log scores"
            values = ", ".join(
                f"{name} {_range(array)}" for name, array in zip(STATISTICS[self.method], statistics, strict=True)
            )
            lines.append(f"  {level} level: {of} with {values}{self._counted(level)}; {self._placed(level)}")
        marks = [0.1, 0.25, 0.5, 0.75, 0.9]
        raw = self.raw_scores(np.asarray(marks))
        pairs = ", ".join(f"{mark} is {value:.6g}" for mark, value in zip(marks, raw, strict=True))
        lines.append(f"  image scores on the unit scale: {pairs}")
        return "\n".join(lines)

    def _counted(self, level: str) -> str:
        if level not in self.counts:
            return ""
        valid, invalid = self.counts[level]
        per_pixel = level == "pixel" and self.resolution is not None
        size = " for each of {}x{} pixels".format(*self.resolution) if per_pixel and self.resolution else ""
        return f" of {valid} values{size}" + (f" ({invalid} left out)" if invalid else "")

    def _placed(self, level: str) -> str:
        unit = "" if self.method is Method.MIN_MAX else " (z)"
        if level == "pixel":
            own = self.pixel_threshold
            return "threshold as for images" if own is None else f"threshold {own:.6g}{unit}"
        return f"threshold {self.z_threshold:.6g}{unit}" + (f", raw {self.threshold:.6g}" if self.raw_threshold else "")


def _range(array: np.ndarray) -> str:
    low, high = float(np.min(array)), float(np.max(array))
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _check_threshold(value: float, name: str, *, positive: bool) -> None:
    if parse_threshold(value, name) is None:
        raise OptionError(f"{name} is missing; give a finite float.")
    if positive and value < np.finfo(np.float32).tiny:
        raise OptionError(
            f"{name}={value} in raw units is not a positive number of float32: it has no logarithm, and scores that "
            "have none are never flagged under the CDF. Give a positive number."
        )


def _check_statistics(method: Method, level: str, first: np.ndarray, second: np.ndarray) -> None:
    names = [f"{level}_{name}" for name in STATISTICS[method]]
    for name, array in zip(names, (first, second), strict=True):
        if array.dtype not in (np.float32, np.float64):
            raise OptionError(f"{name} has dtype {array.dtype}; float32 or float64 is needed.")
        if not np.all(np.isfinite(array)):
            raise NotFittedError(f"{name} is not finite, as if it had seen no value; fit it first.")
        if np.any(np.abs(array) > np.finfo(np.float32).max):
            raise OptionError(f"{name} is infinite in float32, which most scores are; scale the scores down.")
    if first.shape != second.shape:
        raise OptionError(f"{names[0]} has shape {first.shape}, but {names[1]} {second.shape}.")
    allowed = 2 if method is Method.CDF and level == "pixel" else 0
    if first.ndim != allowed or first.size == 0:
        raise OptionError(f"{names[0]} has shape {first.shape}; {'(H, W)' if allowed else '()'} is needed.")
    if method is Method.MIN_MAX and first > second:
        raise OptionError(f"{names[0]}={first} is above {names[1]}={second}.")
    if method is Method.CDF and np.any(second < 0):
        raise OptionError(f"{names[1]} is negative ({np.min(second)}); a deviation cannot be.")
