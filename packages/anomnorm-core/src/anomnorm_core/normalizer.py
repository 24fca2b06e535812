"""A fitted normalization that scores what a detector gives, in NumPy (clauses N1 to N11, P1, T4)."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from anomnorm_core import cdf, min_max
from anomnorm_core._version import __version__
from anomnorm_core.cdf import ScoreDistribution
from anomnorm_core.fields import Scored, assemble, missing_values, require_shapes
from anomnorm_core.fit import Fit
from anomnorm_core.fitted import FittedNormalizer, Statistics, pair, require_record
from anomnorm_core.min_max import MinMaxStatistics
from anomnorm_core.policy import Center, Companion, Method, parse_companions
from anomnorm_core.threshold import flag, manual


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

    def __init__(self, fit: Fit) -> None:
        self._fit = fit

    @classmethod
    def from_fit(cls, fit: Fit) -> Self:
        """A normalizer of what `Fit` describes."""
        return cls(fit)

    def fit(self) -> Fit:
        """This normalizer as NumPy arrays and Python numbers."""
        return self._fit

    @staticmethod
    def _finalized(method: Method, level: str, statistics: Any) -> tuple[Statistics, tuple[int, int] | None]:
        if not isinstance(statistics, MinMaxStatistics | ScoreDistribution):
            return pair(np.asarray(value) for value in statistics), None
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
        companions: Iterable[Companion | str] = (),
    ) -> dict[str, np.ndarray]:
        """Unit scores, labels and masks of raw scores and maps; either may be missing.

        Args:
            pred_scores: raw image scores of shape (B,); without them, the maximum of each map.
            anomaly_maps: raw maps of shape (B, H, W) or (B, 1, H, W).
            threshold: for this call, in decision units, instead of the normalizer's own for image scores.
            pixel_threshold: the same for maps; None takes the normalizer's own or, if that follows the one for image
                scores, ``threshold``.
            companions: what else to return for scores and maps, under the same names with ``_z``, ``_margin``,
                ``_log_survival`` or ``_raw`` added: ``"z"`` and ``"log_survival"`` (CDF), ``"margin"`` (min-max), which
                keep their order where the unit score is 0 or 1; ``"raw"``, the values given, not copied.

        Returns:
            ``pred_scores`` and ``pred_labels`` and, with maps, ``anomaly_maps`` and ``pred_masks``: unit scores of the
            shape and dtype of the raw ones, and booleans.

        Raises:
            OutputError: neither scores nor maps are given, or their shapes are wrong.
            NotFittedError: maps are given, but none were fitted.
            ResolutionError: the maps do not have the fitted height and width (CDF).
            OptionError: a companion is not one of the method.
        """
        wanted = parse_companions(companions, self._fit.method)
        maps = None if anomaly_maps is None else np.asarray(anomaly_maps)
        scores = None if pred_scores is None else np.asarray(pred_scores)
        if scores is None:
            if maps is None:
                raise missing_values()
            require_shapes(maps.shape[:1], maps.shape)
            scores = maps.max(axis=tuple(range(1, maps.ndim)))
        require_shapes(scores.shape, None if maps is None else maps.shape)
        own = self._fit.pixel_threshold
        image = self._score("image", scores, threshold, wanted)
        if maps is None:
            return assemble(image, None)
        if pixel_threshold is None:
            pixel_threshold = own if own is not None else threshold
        return assemble(image, self._score("pixel", maps, pixel_threshold, wanted))

    def _score(self, level: str, x: np.ndarray, threshold: ArrayLike | None, wanted: tuple[Companion, ...]) -> Scored:
        fit = self._fit
        if fit.method is Method.MIN_MAX:
            t = fit.threshold if threshold is None else _parsed(threshold)
            low, high = fit.level(level)
            beside = {Companion.RAW: lambda: x, Companion.MARGIN: lambda: min_max.margin(x, t, low, high)}
            return Scored(min_max.normalize(x, t, low, high), flag(x, t), {name: beside[name]() for name in wanted})
        z, t = self._standardized(level, x, threshold)
        beside = {
            Companion.RAW: lambda: x,
            Companion.Z: lambda: z,
            Companion.LOG_SURVIVAL: lambda: cdf.log_survival(z, t),
        }
        return Scored(cdf.normalize(z, t), flag(z, t), {name: beside[name]() for name in wanted})

    def _standardized(self, level: str, x: np.ndarray, threshold: ArrayLike | None) -> tuple[np.ndarray, Any]:
        """z-scores and the threshold that belongs to them."""
        fit = self._fit
        mean, std = fit.level(level)
        if level == "image" and threshold is None and fit.raw_threshold:
            return cdf.standardize_around(x, fit.threshold, mean, std)
        center = fit.image[0] if level == "pixel" and fit.center is Center.IMAGE else None
        z = cdf.standardize(x, mean, std, center_at=center)
        return z, fit.z_threshold if threshold is None else _parsed(threshold)

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
        given = {"image": pred_scores, "pixel": anomaly_maps}
        names = {"image": "pred_scores", "pixel": "anomaly_maps"}
        if pred_scores is None and anomaly_maps is None:
            raise missing_values()
        return {names[level]: self._raw(level, np.asarray(unit)) for level, unit in given.items() if unit is not None}

    def _raw(self, level: str, unit: np.ndarray) -> np.ndarray:
        fit = self._fit
        first, second = fit.level(level)
        own = fit.pixel_threshold if level == "pixel" else None
        t = fit.z_threshold if own is None else own
        if fit.method is Method.MIN_MAX:
            raw: np.ndarray = min_max.denormalize(unit, t, first, second)
        else:
            center = fit.image[0] if level == "pixel" and fit.center is Center.IMAGE else None
            raw = cdf.denormalize(unit, t, first, second, center_at=center)
        return raw


def _parsed(threshold: ArrayLike) -> Any:
    # An array is used as it is, also one threshold for each sample; a number is checked.
    return threshold if isinstance(threshold, np.ndarray) else manual(threshold)  # type: ignore[arg-type]
