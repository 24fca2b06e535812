"""A fitted normalization as a pytree, for inference and export (clauses N1 to N11, P1, P4, T4)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self, SupportsFloat

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import unfitted_level
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
from anomnorm_core.policy import Center, Extra, Method, Units, manual, parse_extras, require_number
from anomnorm_jax import _counter, cdf, min_max
from anomnorm_jax._version import __version__
from anomnorm_jax.cdf import ScoreDistribution
from anomnorm_jax.min_max import MinMaxStatistics
from anomnorm_jax.threshold import flag


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["image", "pixel", "threshold", "pixel_threshold", "counts"],
    meta_fields=["method", "raw_threshold", "center", "fitted_with"],
)
@dataclass(frozen=True, repr=False, eq=False)
class Normalizer(FittedNormalizer):
    """A method with its statistics and thresholds, ready to score: a pytree.

    Made by `min_max` or `cdf`, by `load` from a file, or by ``hook.normalizer(state)`` after a fit. Statistics and
    thresholds are leaves: pass it to a jitted function as an argument, and other values compile nothing anew. Calls are
    jitted, and `jax.export` takes them.

    Example::

        normalizer = Normalizer.load("detector.safetensors")
        result = normalizer(pred_scores=scores, anomaly_maps=maps)
        result["pred_scores"]   # 0.5 at the threshold
        result["pred_labels"]   # True where flagged
    """

    _package = ("anomnorm-jax", __version__)

    method: Method
    image: tuple[Array, Array]  # each () float: (min, max) or (mean, std)
    threshold: Array  # () float: in decision units, or raw with raw_threshold
    pixel: tuple[Array, Array] | None = None  # each () float under min-max, (H, W) float under the CDF
    pixel_threshold: Array | None = None  # () float, in decision units; None: as for images
    raw_threshold: bool = False
    center: Center = Center.IMAGE
    counts: Mapping[str, Array] = field(default_factory=dict)  # by level, (2, 2) uint32: valid, left out (`_counter`)
    fitted_with: tuple[str, str] = _package

    @classmethod
    def from_fitted_state(cls, fit: FittedState) -> Self:
        """A normalizer of what `FittedState` describes, in JAX's default float."""
        return cls(
            method=fit.method,
            image=_arrays(fit.image),
            threshold=jnp.asarray(fit.threshold, dtype=float),
            pixel=None if fit.pixel is None else _arrays(fit.pixel),
            pixel_threshold=None if fit.pixel_threshold is None else jnp.asarray(fit.pixel_threshold, dtype=float),
            raw_threshold=fit.raw_threshold,
            center=fit.center,
            counts={level: _counter.of_ints(*numbers) for level, numbers in fit.counts.items()},
            fitted_with=fit.fitted_with,
        )

    def fitted_state(self) -> FittedState:
        """This normalizer as NumPy arrays and Python numbers. Reads them off the device."""
        counts = {level: (_counter.to_int(valid), _counter.to_int(out)) for level, (valid, out) in self.counts.items()}
        return FittedState(
            method=self.method,
            image=pair(self.image),
            threshold=float(self.threshold),
            pixel=None if self.pixel is None else pair(self.pixel),
            pixel_threshold=None if self.pixel_threshold is None else float(self.pixel_threshold),
            raw_threshold=self.raw_threshold,
            center=self.center,
            counts=counts,
            fitted_with=self.fitted_with,
        )

    @staticmethod
    def _finalized(method: Method, level: str, statistics: Any) -> tuple[Statistics, tuple[int, int] | None]:
        if not isinstance(statistics, MinMaxStatistics | ScoreDistribution):
            return pair(statistics), None
        require_record(method, min_max=isinstance(statistics, MinMaxStatistics))
        if isinstance(statistics, MinMaxStatistics):
            counts = (_counter.to_int(statistics.count), _counter.to_int(statistics.invalid))
            final = min_max.bounds(statistics, level=level)
        else:
            counts = (int(jnp.max(statistics.count)), int(jnp.max(statistics.invalid)))
            final = cdf.mean_std(statistics, level=level)
        return pair(final), counts

    def with_threshold(
        self,
        threshold: SupportsFloat | Array | None = None,
        pixel_threshold: SupportsFloat | Array | None = None,
        *,
        units: Units | str = Units.DECISION,
    ) -> Self:
        """See `FittedNormalizer.with_threshold`. In decision units, arrays stay on the device, and may be traced."""
        if Units.parse(units, "units") is not Units.DECISION:
            return super().with_threshold(threshold, pixel_threshold, units=units)
        changed = self
        image, pixel = _threshold(threshold), _threshold(pixel_threshold)
        if image is not None:
            changed = replace(changed, threshold=image, raw_threshold=False)
        return changed if pixel is None else replace(changed, pixel_threshold=pixel)

    def __repr__(self) -> str:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(self)):
            return f"{type(self).__name__}(method={str(self.method)!r}, traced)"
        return super().__repr__()

    def __call__(
        self,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        *,
        threshold: ArrayLike | None = None,
        pixel_threshold: ArrayLike | None = None,
        extras: Iterable[Extra | str] = (),
    ) -> dict[str, Array]:
        """Unit scores, labels and masks of raw scores and maps; either may be missing.

        Args:
            pred_scores: raw image scores of shape (B,); without them, the maximum of each map.
            anomaly_maps: raw maps of shape (B, H, W) or (B, 1, H, W).
            threshold: for this call, in decision units, instead of the normalizer's own for image scores. A number, or
                an array of shape (), which may be traced. Another value compiles nothing anew.
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
        return self._scored(_call, raw, threshold, pixel_threshold, extras)

    def standardize(
        self, pred_scores: ArrayLike | None = None, anomaly_maps: ArrayLike | None = None
    ) -> dict[str, Array]:
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
        z: dict[str, Array] = _standardize(self, _values(pred_scores, anomaly_maps))
        return z

    def normalize_standardized(
        self,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        *,
        threshold: ArrayLike | None = None,
        pixel_threshold: ArrayLike | None = None,
        extras: Iterable[Extra | str] = (),
    ) -> dict[str, Array]:
        """What a call gives, from the z-scores of `standardize`. ``"raw"`` gives those.

        Args:
            pred_scores, anomaly_maps: z-scores and maps of z-scores.
            threshold, pixel_threshold, extras: as in a call.

        Raises:
            OptionError, OutputError: as `standardize`.
        """
        require_cdf(self.method)
        z = _values(pred_scores, anomaly_maps)
        return self._scored(_decide, z, threshold, pixel_threshold, extras)

    def _scored(
        self,
        function: Callable[..., dict[str, Array]],
        values: dict[str, Array],
        threshold: ArrayLike | None,
        pixel_threshold: ArrayLike | None,
        extras: Iterable[Extra | str],
    ) -> dict[str, Array]:
        wanted = parse_extras(extras, self.method)
        computed = tuple(extra for extra in wanted if extra is not Extra.RAW)
        result = function(self, values, _threshold(threshold), _threshold(pixel_threshold), computed)
        if Extra.RAW in wanted:  # outside of the jitted function, which would copy them
            result |= {f"{name}_{Extra.RAW}": value for name, value in values.items()}
        return result

    def _score(self, name: str, x: Array, threshold: Array | None, wanted: tuple[Extra, ...]) -> Scored:
        t = self._own_threshold(x) if threshold is None else threshold
        beside: dict[Extra, Callable[[], Array]] = {}
        if self.method is Method.MIN_MAX:
            low, high = self._level(name)
            unit = min_max.normalize(x, t, low, high)
            beside[Extra.MARGIN] = lambda: min_max.margin(x, t, low, high)
        else:
            unit = cdf.normalize(x, t)
            beside[Extra.Z] = lambda: x
        return Scored(unit, flag(x, t), {str(extra): beside[extra]() for extra in wanted})

    def _own_threshold(self, z: Array) -> Array:
        """The image threshold in decision units; where it is known in raw units, as z-score in the dtype of ``z``."""
        return cdf.standardize_around(z[:0], self.threshold, *self.image)[1] if self.raw_threshold else self.threshold

    def _z(self, name: str, x: Array) -> Array:
        mean, std = self._level(name)
        if name == MAPS:
            z: Array = cdf.standardize(x, mean, std, center_at=self._pixel_center())
        elif self.raw_threshold:
            z = cdf.standardize_around(x, self.threshold, mean, std)[0]
        else:
            z = cdf.standardize(x, mean, std)
        return z

    def _pixel_center(self) -> Array | None:
        return self.image[0] if self.center is Center.IMAGE else None

    def denormalize(
        self, pred_scores: ArrayLike | None = None, anomaly_maps: ArrayLike | None = None
    ) -> dict[str, Array]:
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
        units = {name: jnp.asarray(unit) for name, unit in given.items() if unit is not None}
        require_unit_shapes({name: unit.shape for name, unit in units.items()})
        return {name: self._raw(name, unit) for name, unit in units.items()}

    def _raw(self, name: str, unit: Array) -> Array:
        statistics = self._level(name)
        own = self.pixel_threshold if name == MAPS else None
        t = self._own_threshold(unit) if own is None else own
        if self.method is Method.MIN_MAX:
            x: Array = min_max.denormalize(unit, t, *statistics)
        else:
            x = cdf.denormalize(unit, t, *statistics, center_at=self._pixel_center() if name == MAPS else None)
        return x

    def _level(self, name: str) -> tuple[Array, Array]:
        statistics = self.image if LEVEL[name] == "image" else self.pixel
        if statistics is None:
            raise unfitted_level(LEVEL[name])
        return statistics


@jax.jit
def _standardize(normalizer: Normalizer, raw: Mapping[str, Array]) -> dict[str, Array]:
    return {name: normalizer._z(name, x) for name, x in raw.items()}


@partial(jax.jit, static_argnames="extras")
def _decide(
    normalizer: Normalizer,
    values: Mapping[str, Array],
    threshold: Array | None,
    pixel_threshold: Array | None,
    extras: tuple[Extra, ...],
) -> dict[str, Array]:
    """Unit scores and decisions of ``values`` in decision space."""
    own = normalizer.pixel_threshold if pixel_threshold is None else pixel_threshold
    given = {SCORES: threshold, MAPS: threshold if own is None else own}
    return assemble({name: normalizer._score(name, values[name], given[name], extras) for name in _ordered(values)})


@partial(jax.jit, static_argnames="extras")
def _call(
    normalizer: Normalizer,
    raw: Mapping[str, Array],
    threshold: Array | None,
    pixel_threshold: Array | None,
    extras: tuple[Extra, ...],
) -> dict[str, Array]:
    values = _standardize(normalizer, raw) if normalizer.method is Method.CDF else raw
    result: dict[str, Array] = _decide(normalizer, values, threshold, pixel_threshold, extras)
    return result


def _ordered(values: Mapping[str, Array]) -> list[str]:
    # A pytree sorts the keys of a dictionary.
    return [name for name in (SCORES, MAPS) if name in values]


def _values(pred_scores: ArrayLike | None, anomaly_maps: ArrayLike | None) -> dict[str, Array]:
    """Scores and maps by name; scores default to the maximum of each map (clause L5)."""
    require_no_mapping(pred_scores)
    maps = None if anomaly_maps is None else jnp.asarray(anomaly_maps)
    if pred_scores is not None:
        scores = jnp.asarray(pred_scores)
    elif maps is not None:
        require_shapes(maps.shape[:1], maps.shape)
        scores = jnp.max(maps, axis=tuple(range(1, maps.ndim)))
    else:
        raise missing_values()
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return {SCORES: scores} | ({} if maps is None else {MAPS: maps})


def _arrays(statistics: Statistics) -> tuple[Array, Array]:
    first, second = (jnp.asarray(value, dtype=float) for value in statistics)
    return first, second


def _threshold(value: SupportsFloat | ArrayLike | None) -> Array | None:
    # A number is checked; an array stays on the device, and may be traced.
    if value is None:
        return None
    require_number(jnp.shape(value), "threshold")  # type: ignore[arg-type]
    return jnp.asarray(value if isinstance(value, Array) else manual(value), dtype=float)  # type: ignore[arg-type]
