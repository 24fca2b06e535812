"""What the normalizers of all packages do alike: be built, saved, loaded, moved to another threshold, described."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, SupportsFloat

import numpy as np

from anomnorm_core import portable
from anomnorm_core.errors import AnomnormError, OptionError
from anomnorm_core.fitted_state import FittedState
from anomnorm_core.policy import Center, Method, Units, manual, parse_threshold

Statistics = tuple[np.ndarray, np.ndarray]


def pair(statistics: Any, read: Callable[[Any], Any] = np.asarray) -> Statistics:
    """Two statistics of one level as floating NumPy arrays of their own; ``read`` makes NumPy arrays.

    Raises:
        OptionError: they are not two.
    """
    try:
        first, second = (np.array(read(value), dtype=_floating(read(value))) for value in statistics)
    except (TypeError, ValueError):
        raise OptionError(
            f"statistics are a record of this package or a pair of arrays, found {type(statistics).__name__}."
        ) from None
    for array in (first, second):
        array.setflags(write=False)
    return first, second


def _floating(value: np.ndarray | float) -> np.dtype[Any]:
    dtype = np.asarray(value).dtype
    return dtype if dtype == np.float32 else np.dtype(np.float64)


def _cast(statistics: Statistics, dtype: Any) -> Statistics:
    first, second = statistics
    return first.astype(dtype), second.astype(dtype)


def require_record(method: Method, *, min_max: bool) -> None:
    """Raise `OptionError` for a record of the other method; ``min_max`` says which kind was found."""
    if (method is Method.MIN_MAX) is not min_max:
        found = "min_max" if min_max else "cdf"
        raise OptionError(f"statistics of {found}.update were given to a normalizer of the other method, {method}.")


def require_cdf(method: Method) -> None:
    """Raise `OptionError` where z-scores are asked for and the method has none."""
    if method is not Method.CDF:
        raise OptionError(f"{method} normalization has no z-scores: it decides on raw scores. Call the normalizer.")


class FittedNormalizer(ABC):
    """The part of a normalizer that does not compute scores.

    A package's ``Normalizer`` says how it is made from a `FittedState` and how it becomes one, and how the records of
    its own library are finalized.
    """

    _package: ClassVar[tuple[str, str]]  # name and version of the package that fits

    @classmethod
    @abstractmethod
    def from_fitted_state(cls, fit: FittedState) -> Self:
        """A normalizer of what `FittedState` describes."""

    @abstractmethod
    def fitted_state(self) -> FittedState:
        """This normalizer as NumPy arrays and Python numbers. Reads them off the device."""

    @staticmethod
    @abstractmethod
    def _finalized(method: Method, level: str, statistics: Any) -> tuple[Statistics, tuple[int, int] | None]:
        """A record's final statistics in NumPy and its counts; a pair of statistics has none."""

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
        return cls._build(Method.MIN_MAX, image, pixel, threshold, pixel_threshold)

    @classmethod
    def cdf(
        cls,
        image: Any,
        pixel: Any = None,
        *,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None = None,
        units: Units | str = Units.DECISION,
        center: Center | str = Center.IMAGE,
    ) -> Self:
        """A CDF normalizer (clauses N2, N3).

        Args:
            image: image-level statistics: a record of `cdf.update`, or a pair ``(mean, std)`` of the log scores.
            pixel: the same of the maps, if there are any, of shape (H, W).
            threshold: for the image scores, in ``units``.
            pixel_threshold: for the maps, in z units; None takes ``threshold``, also when that is changed (T6).
            units: of ``threshold``: ``"decision"`` is z, ``"raw"`` raw scores, which then decide (clauses N4, P2).
            center: where pixel z-scores are zero: ``"image"`` or ``"pixel"``.

        Raises:
            NotFittedError, InsufficientDataError: the statistics have seen too few valid values.
            OptionError: a threshold is no finite number, or an option is none.
        """
        scale = Units.parse(units, "units")
        if scale is Units.UNIT:
            raise OptionError('units="unit" refers to a threshold that is there already; give "decision" or "raw".')
        return cls._build(
            Method.CDF,
            image,
            pixel,
            threshold,
            pixel_threshold,
            raw_threshold=scale is Units.RAW,
            center=Center.parse(center, "center"),
        )

    @classmethod
    def _build(
        cls,
        method: Method,
        image: Any,
        pixel: Any,
        threshold: SupportsFloat,
        pixel_threshold: SupportsFloat | None,
        **options: Any,
    ) -> Self:
        given = {level: value for level, value in (("image", image), ("pixel", pixel)) if value is not None}
        final = {level: cls._finalized(method, level, value) for level, value in given.items()}
        dtype = np.result_type(*(array for statistics, _ in final.values() for array in statistics))
        arrays = {level: _cast(statistics, dtype) for level, (statistics, _) in final.items()}
        fit = FittedState(
            method=method,
            image=arrays["image"],
            pixel=arrays.get("pixel"),
            threshold=manual(threshold),
            pixel_threshold=parse_threshold(pixel_threshold, "pixel_threshold"),
            counts={level: counts for level, (_, counts) in final.items() if counts is not None},
            fitted_with=cls._package,
            **options,
        )
        return cls.from_fitted_state(fit)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a normalizer that any of the packages saved.

        Raises:
            FileFormatError: the file is damaged, foreign, or of a newer format; the message names it and the reason.
            OSError: it cannot be read, or is not there.
        """
        return cls.from_fitted_state(portable.read(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that all of the packages read. It appears complete or not at all, and replaces an old one.

        Raises:
            OSError: it cannot be written.
        """
        portable.write(path, self.fitted_state())

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str = Units.DECISION,
    ) -> Self:
        """The same statistics with other thresholds (clause T4). This normalizer stays as it is.

        Args:
            threshold: for the image scores; None keeps the present one.
            pixel_threshold: for the maps; None keeps the present one, or goes on following the image scores' one.
            units: of both: ``"decision"`` (raw scores under min-max, z-scores under the CDF), ``"raw"`` (under the CDF
                for images only, and then decided on raw scores), or ``"unit"``: a present unit score. With 0.7,
                what has the unit score 0.7 now has 0.5 then, up to rounding; numbers above 0.5 flag less.

        Raises:
            OptionError: a number is not finite, or not between 0 and 1 on the unit scale.
        """
        return self.from_fitted_state(self.fitted_state().with_threshold(threshold, pixel_threshold, units=units))

    def summary(self) -> str:
        """Method, statistics, thresholds and origin in a few lines for a person, and some raw scores by unit score."""
        return f"{type(self).__name__}: {self.fitted_state().summary()}"

    def __repr__(self) -> str:
        try:
            fit = self.fitted_state()
        except (AnomnormError, TypeError, ValueError, RuntimeError) as error:
            return f"{type(self).__name__}({type(error).__name__}: its values cannot be read)"  # a repr never raises
        parts = [f"method={str(fit.method)!r}", f"threshold={fit.z_threshold:.6g}"]
        if fit.raw_threshold:
            parts.append(f"raw_threshold={fit.threshold:.6g}")
        if fit.pixel_threshold is not None:
            parts.append(f"pixel_threshold={fit.pixel_threshold:.6g}")
        if fit.method is Method.CDF:
            parts.append(f"center={str(fit.center)!r}")
        maps = "none" if fit.pixel is None else "any" if fit.resolution is None else "x".join(map(str, fit.resolution))
        return f"{type(self).__name__}({', '.join(parts)}, maps={maps!r})"
