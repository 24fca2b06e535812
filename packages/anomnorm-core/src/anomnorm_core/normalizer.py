"""A fitted normalization that scores what a detector gives, in NumPy (clauses N1 to N11, P1, T4)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from anomnorm_core import cdf, min_max
from anomnorm_core._arrays import Array
from anomnorm_core._version import __version__
from anomnorm_core.cdf import ScoreDistribution
from anomnorm_core.fields import (
    LEVEL,
    MAPS,
    SCORES,
    Scored,
    assemble,
    missing_values,
    require_no_mapping,
    require_shapes,
    require_unit_shapes,
)
from anomnorm_core.fitted import FittedNormalizer, Statistics, pair, require_cdf, require_record
from anomnorm_core.fitted_state import FittedState
from anomnorm_core.min_max import MinMaxStatistics
from anomnorm_core.policy import Center, Extra, Method, manual, parse_extras, require_number
from anomnorm_core.threshold import flag


class Normalizer(FittedNormalizer):
    """A method with its statistics and thresholds, ready to score: in NumPy, with no framework installed.

    Made by `min_max` or `cdf`, by `load` from a file, or by a training callback or hook of the other packages. It does
    not change; `with_threshold` gives another one.

    Example::

        normalizer = Normalizer.load("detector.safetensors")
        result = normalizer(pred_scores=scores, anomaly_maps=maps)
        result["pred_scores"]   # 0.5 at the threshold
        result["pred_labels"]   # True where flagged
    """

    _package = ("anomnorm-core", __version__)

    def __init__(self, fit: FittedState) -> None:
        self._fit = fit

    @classmethod
    def from_fitted_state(cls, fit: FittedState) -> Self:
        """A normalizer of what `FittedState` describes."""
        return cls(fit)

    def fitted_state(self) -> FittedState:
        """This normalizer as NumPy arrays and Python numbers."""
        return self._fit

    @staticmethod
    def _finalized(method: Method, level: str, statistics: Any) -> tuple[Statistics, tuple[int, int] | None]:
        if not isinstance(statistics, MinMaxStatistics | ScoreDistribution):
            return pair(statistics), None
        require_record(method, min_max=isinstance(statistics, MinMaxStatistics))
        counts = (int(np.max(statistics.count)), int(np.max(statistics.invalid)))
        if isinstance(statistics, MinMaxStatistics):
            return pair(min_max.bounds(statistics, level=level)), counts
        return pair(cdf.mean_std(statistics, level=level)), counts

    def __call__(
        self,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        *,
        threshold: ArrayLike | None = None,
        pixel_threshold: ArrayLike | None = None,
        extras: Iterable[Extra | str] = (),
    ) -> dict[str, np.ndarray]:
        """Unit scores, labels and masks of raw scores and maps; either may be missing.

        Args:
            pred_scores: raw image scores of shape (B,); without them, the maximum of each map.
            anomaly_maps: raw maps of shape (B, H, W) or (B, 1, H, W).
            threshold: for this call, in decision units, instead of the normalizer's own for image scores. One number.
            pixel_threshold: the same for maps; None takes the normalizer's own or, if that follows the one for image
                scores, ``threshold``.
            extras: what else to return for scores and maps, under the same names with ``_z``, ``_margin``
                or ``_raw`` added: ``"z"`` (CDF) and ``"margin"`` (min-max), which keep their order where the unit score
                is 0 or 1; ``"raw"``, the values given, not copied.

        Returns:
            ``pred_scores`` and ``pred_labels`` and, with maps, ``anomaly_maps`` and ``pred_masks``: unit scores of the
            shape and dtype of the raw ones, and booleans.

        Raises:
            OutputError: neither scores nor maps are given, or their shapes are wrong.
            NotFittedError: maps are given, but none were fitted.
            ResolutionError: the maps do not have the fitted height and width (CDF).
            OptionError: an extra is not one of the method.
        """
        raw = _values(pred_scores, anomaly_maps)
        z = {name: self._z(name, x) for name, x in raw.items()} if self._fit.method is Method.CDF else raw
        return self._scored(z, raw, threshold, pixel_threshold, extras)

    def standardize(
        self, pred_scores: ArrayLike | None = None, anomaly_maps: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
        """The z-scores of raw scores and maps: the space in which the CDF method decides.

        Args:
            pred_scores, anomaly_maps: as in a call.

        Returns:
            ``pred_scores`` and, with maps, ``anomaly_maps``: z-scores of the shape and dtype of the raw ones.

        Raises:
            OptionError: the method is min-max.
            OutputError, NotFittedError, ResolutionError: as in a call.
        """
        require_cdf(self._fit.method)
        return {name: self._z(name, x) for name, x in _values(pred_scores, anomaly_maps).items()}

    def normalize_standardized(
        self,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        *,
        threshold: ArrayLike | None = None,
        pixel_threshold: ArrayLike | None = None,
        extras: Iterable[Extra | str] = (),
    ) -> dict[str, np.ndarray]:
        """What a call gives, from the z-scores of `standardize`. ``"raw"`` gives those.

        Args:
            pred_scores, anomaly_maps: z-scores and maps of z-scores.
            threshold, pixel_threshold, extras: as in a call.

        Raises:
            OptionError, OutputError: as `standardize`.
        """
        require_cdf(self._fit.method)
        z = _values(pred_scores, anomaly_maps)
        return self._scored(z, z, threshold, pixel_threshold, extras)

    def _scored(
        self,
        values: Mapping[str, np.ndarray],
        raw: Mapping[str, np.ndarray],
        threshold: ArrayLike | None,
        pixel_threshold: ArrayLike | None,
        extras: Iterable[Extra | str],
    ) -> dict[str, np.ndarray]:
        """Unit scores and decisions of ``values`` in decision space."""
        wanted = parse_extras(extras, self._fit.method)
        result = {}
        for name, x in values.items():
            given = threshold
            if name == MAPS and (pixel_threshold is not None or self._fit.pixel_threshold is not None):
                given = pixel_threshold if pixel_threshold is not None else self._fit.pixel_threshold
            result[name] = self._score(name, x, raw[name], given, wanted)
        return assemble(result)

    def _score(
        self, name: str, x: np.ndarray, raw: np.ndarray, threshold: ArrayLike | None, wanted: tuple[Extra, ...]
    ) -> Scored:
        t = self._threshold(x) if threshold is None else _parsed(threshold)
        beside: dict[Extra, Callable[[], np.ndarray]] = {Extra.RAW: lambda: raw}
        if self._fit.method is Method.MIN_MAX:
            low, high = self._fit.level(LEVEL[name])
            unit = min_max.normalize(x, t, low, high)
            beside[Extra.MARGIN] = lambda: min_max.margin(x, t, low, high)
        else:
            unit = cdf.normalize(x, t)
            beside[Extra.Z] = lambda: x
        return Scored(unit, flag(x, t), {str(extra): beside[extra]() for extra in wanted})

    def _threshold(self, z: np.ndarray) -> Array:
        """The image threshold in decision units; where it is known in raw units, as z-score in the dtype of ``z``."""
        if self._fit.raw_threshold:
            return cdf.standardize_around(z[:0], self._fit.threshold, *self._fit.image)[1]
        return self._fit.threshold

    def _z(self, name: str, x: np.ndarray) -> Array:
        fit = self._fit
        mean, std = fit.level(LEVEL[name])
        if name == MAPS:
            return cdf.standardize(x, mean, std, center_at=fit.image[0] if fit.center is Center.IMAGE else None)
        if fit.raw_threshold:
            return cdf.standardize_around(x, fit.threshold, mean, std)[0]
        return cdf.standardize(x, mean, std)

    def denormalize(
        self, pred_scores: ArrayLike | None = None, anomaly_maps: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
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
        units = {name: np.asarray(unit) for name, unit in given.items() if unit is not None}
        require_unit_shapes({name: unit.shape for name, unit in units.items()})
        return {name: self._raw(name, unit) for name, unit in units.items()}

    def _raw(self, name: str, unit: np.ndarray) -> Array:
        fit = self._fit
        statistics = fit.level(LEVEL[name])
        t = fit.pixel_threshold if name == MAPS and fit.pixel_threshold is not None else self._threshold(unit)
        if fit.method is Method.MIN_MAX:
            return min_max.denormalize(unit, t, *statistics)
        center = fit.image[0] if name == MAPS and fit.center is Center.IMAGE else None
        return cdf.denormalize(unit, t, *statistics, center_at=center)


def _values(pred_scores: ArrayLike | None, anomaly_maps: ArrayLike | None) -> dict[str, np.ndarray]:
    """Scores and maps by name; scores default to the maximum of each map (clause L5)."""
    require_no_mapping(pred_scores)
    maps = None if anomaly_maps is None else np.asarray(anomaly_maps)
    if pred_scores is not None:
        scores = np.asarray(pred_scores)
    elif maps is not None:
        require_shapes(maps.shape[:1], maps.shape)
        scores = maps.max(axis=tuple(range(1, maps.ndim)))
    else:
        raise missing_values()
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return {SCORES: scores} | ({} if maps is None else {MAPS: maps})


def _parsed(threshold: ArrayLike) -> Array:
    require_number(np.shape(threshold), "threshold")
    return manual(threshold)  # type: ignore[arg-type]
