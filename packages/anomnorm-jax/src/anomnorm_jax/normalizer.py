"""A fitted normalization as a pytree, for inference, checkpoints and export (clauses N1 to N11, L6, P1, P4, T4)."""

import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, dtypes
from jax.tree_util import keystr, tree_flatten_with_path
from jax.typing import ArrayLike

from anomnorm_core.checks import Counts, require_mask, unfitted_level
from anomnorm_core.errors import AnomnormError, InsufficientDataError, InvalidScoreError, NotFittedError, OptionError
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
from anomnorm_core.method import Kernels, Method
from anomnorm_core.normalizer import BaseNormalizer, require_complete
from anomnorm_core.options import LEVELS, Origin, Transform, Units, parse_threshold
from anomnorm_core.threshold.false_alarms import Normals
from anomnorm_jax import _counter
from anomnorm_jax._arrays import arithmetic, evaluated, is_traced, largest_defined, normalized, to_host
from anomnorm_jax._version import __version__
from anomnorm_jax.methods import METHODS
from anomnorm_jax.threshold import flag

# What the numbers in a checkpoint mean: append, and change nothing.
_ORIGINS = (
    Origin.MANUAL,
    Origin.OPTION,
    Origin.MODULE,
    Origin.ADAPTIVE,
    Origin.NORMAL_QUANTILE,
    Origin.IMAGE,
    Origin.UNKNOWN,
    Origin.FALSE_ALARM_RATE,
)
_NOT_FITTED, _RAW, _RAW_AND_SIGMAS, _SIGMAS = range(4)
FITTED, EMPTY = 0, 1
_WHERE = "the traced end of a validation run"
FAILURES: dict[int, tuple[type[AnomnormError], str]] = {
    EMPTY: (
        NotFittedError,
        "nothing has been fitted yet: this is the structure of a normalizer, from hook.empty(outputs). End a "
        "validation run with normalizer = hook.on_validation_epoch_end(run), or restore a checkpoint or file into it.",
    ),
    2: (InsufficientDataError, f"{_WHERE} had too few valid values to fit on. Fit on more normal samples."),
    3: (
        InvalidScoreError,
        f"{_WHERE} had values that cannot be fitted (NaN, infinite, or without a logarithm): more than a third of all, "
        'or any under on_invalid="raise".',
    ),
    4: (OptionError, f"{_WHERE} could not place its threshold at a float32 score that could be flagged."),
    5: (NotFittedError, f"{_WHERE} had no valid value to fit on or to place a threshold by."),
    6: (AnomnormError, f"{_WHERE} had more images than its hook has room for. Make the hook with a larger capacity."),
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["parameters", "threshold", "sigmas", "origin", "counts", "zeros", "expected"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class Level:
    """What was fitted of the image scores or of the pixels."""

    parameters: tuple[Array, ...]  # as the method names them, each () float or, where each pixel has its own, (H, W)
    threshold: Array  # like the parameters: the raw one, which decides
    sigmas: Array  # (2,) uint32: the halves of a float64, which is the threshold in sigmas where it is known
    origin: Array  # (2,) uint8: where the threshold comes from, 1 + index in _ORIGINS, 0 unfitted; and what of it stays
    counts: Array  # (2, 2) uint32: valid values and those left out (see ``_counter``)
    zeros: Array | None  # like the parameters: share of exact zeros; None: the method takes no logarithm
    expected: Array  # (16,) uint32: the halves of eight float64, see `_expected`


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["image", "pixel", "status", "kind"],
    meta_fields=["method", "options", "fitted_with"],
)
@dataclass(frozen=True, repr=False, eq=False)
class Normalizer(BaseNormalizer):
    """A method with its parameters and thresholds, ready to score: a pytree of finite arrays.

    Made by `min_max`, `cdf` or `of`, by `load` from a file, or by a hook at the end of a validation run. All of its
    numbers are leaves: pass it to a jitted function as an argument, and other values compile nothing anew; save it with
    any checkpoint library. Calls are jitted, and ``jax.export`` takes them.

    Example::

        normalizer = Normalizer.load("detector.safetensors")
        result = normalizer(pred_scores=scores, anomaly_maps=maps)
        result["pred_scores"]   # 0.5 at the threshold
        result["pred_labels"]   # True where flagged
    """

    _methods = METHODS
    _package = ("anomnorm-jax", __version__)

    image: Level
    pixel: Level | None  # None: made without maps
    status: Array  # () uint8: 0, or what was wrong where it could not be raised: a key of FAILURES
    kind: Array  # () uint32: of method and options, which a checkpoint of arrays does not name otherwise
    method: str
    options: tuple[tuple[str, Any], ...]
    fitted_with: tuple[str, str] = _package

    @classmethod
    def from_fit(cls, fit: Fit) -> Self:
        """A normalizer of a complete `Fit`, in JAX's default float."""
        made: Self = jax.tree.map(jnp.array, cls.on_host(fit))
        return made

    @classmethod
    def on_host(cls, fit: Fit) -> Self:
        """The same with NumPy arrays as leaves."""
        _register_with_flax()
        require_complete(fit)
        image, pixel = (_level(each, positive=fit.method.positive) for each in (fit.image, fit.pixel))
        options = tuple(sorted(fit.options.items()))
        kind = _kind(fit.method.name, options)
        return cls(image, pixel, _status(FITTED), kind, fit.method.name, options, fit.fitted_with)

    @classmethod
    def empty(cls, method: str, options: Mapping[str, Any], resolution: tuple[int, int] | None) -> Self:
        """The structure of a normalizer for maps of this height and width, or for none, with NumPy arrays as leaves.

        Used with values it raises; traced it gives NaN and flags nothing (clause N8).
        """
        _register_with_flax()
        described = METHODS[method].method
        own = resolution if described.per_pixel and resolution else ()
        pixel = None if resolution is None else _placeholder(described, own)
        given = tuple(sorted(described.parse_options(options).items()))
        return cls(_placeholder(described, ()), pixel, _status(EMPTY), _kind(method, given), method, given)

    def to_fit(self) -> Fit:
        """This normalizer as NumPy arrays and Python numbers. Reads them off the device.

        Raises:
            AnomnormError: it is traced, or the traced end of its validation run failed.
        """
        if is_traced(self):
            raise AnomnormError(
                "thresholds, files and summaries of a normalizer are made outside jax.jit: they read values off the "
                "device. Inside, call the normalizer, with raw thresholds as arguments."
            )
        status = int(to_host(self.status))
        if status not in (FITTED, EMPTY):
            raise _failure(status)
        self._require_kind()
        levels = {level: _level_fit(getattr(self, level)) for level in LEVELS}
        return Fit(METHODS[self.method].method, **levels, options=dict(self.options), fitted_with=self.fitted_with)

    def filled(self, fit: Fit) -> Self:
        """This structure with the numbers of ``fit``; a level of which it has none stays as it is."""
        made: Self = jax.tree.map(jnp.array, self.filled_on_host(fit))
        return made

    def filled_on_host(self, fit: Fit) -> Self:
        """The same with NumPy arrays as leaves, if this one has them."""
        made = self.on_host(fit)
        return replace(made, pixel=self.pixel if made.pixel is None else made.pixel)

    @staticmethod
    def _read(value: Any) -> np.ndarray:
        return to_host(value)

    @staticmethod
    def _total(count: Any) -> int:
        return _counter.largest(to_host(count))

    @staticmethod
    def _counts(record: Any) -> Counts:
        return _counter.counts_of(record)

    @classmethod
    def _zeros(cls, record: Any) -> np.ndarray:
        return _counter.share_of_zeros(record)

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> Self:
        """See `anomnorm_core.Normalizer.with_threshold`. The new one has the same structure; nothing compiles anew."""
        return self.filled(self.to_fit().with_threshold(threshold, pixel_threshold, units=units))

    def without_manual_threshold(self) -> Self:
        """The same numbers, which the next validation run may replace: none is manual any more."""
        return self.filled(self.to_fit().released())

    def require_fitted(self, maps: bool = False) -> None:
        """Raise what is wrong with this normalizer, if it has values: they are read once.

        Raises:
            NotFittedError: nothing was fitted or, for ``maps``, nothing of those.
            AnomnormError: the traced end of its validation run failed.
        """
        if maps and self.pixel is None:
            raise unfitted_level("pixel")
        read = [self.status, self.image.origin, *([] if self.pixel is None else [self.pixel.origin])]
        if is_traced(read):
            return
        known = self.__dict__.get("_known")  # no part of the tree
        if known is None:
            status, *origins = (int(to_host(each).flat[0]) for each in read)
            if status != FITTED:
                raise _failure(status)
            self._require_kind()
            known = [bool(origin) for origin in origins]
            object.__setattr__(self, "_known", known)
        if not all(known[: 1 + maps]):
            raise unfitted_level("pixel" if known[0] else "image")

    def _require_kind(self) -> None:
        """Raise for arrays of a checkpoint that were made with another method, or other options of it."""
        if int(to_host(self.kind).flat[0]) != int(_kind(self.method, self.options)):
            raise AnomnormError(
                f"the arrays of this normalizer were restored from one of another method than {self.method}, or with "
                f"other options than {dict(self.options)}: their numbers mean something else. Restore them into "
                "hook.empty(outputs) of a hook with the same method and options."
            )

    def __repr__(self) -> str:
        if is_traced(self):
            return f"{type(self).__name__}(method={self.method!r}, traced)"
        return super().__repr__()

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
    ) -> dict[str, Array]:
        """Normalized scores, labels and masks of raw scores and maps. See `anomnorm_core.Normalizer`.

        Args:
            pred_scores: raw image scores of shape (B,) or (B, 1); without them, the maximum of each map.
            anomaly_maps: raw maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).
            threshold: for this call, in raw units, instead of the normalizer's own for image scores: a number, or an
                array of shape (), which may be traced. Another value compiles nothing anew.
            pixel_threshold: the same for maps; under the CDF also one number for each pixel, (H, W). None takes the
                normalizer's own or, where there are no sigmas and that follows the images' one, ``threshold``.
            valid: booleans of shape (B,): False for what only pads the batch. It is never flagged (clause L5).
            extras: what else to return, under the same names with ``_z``, ``_margin`` or ``_raw`` added; ``"invalid"``
                is (B,): True where the image score is NaN and no padding.
            finite: whether infinities among the extras, but for ``raw``, become the largest finite numbers. Static.

        Returns:
            ``pred_scores`` and ``pred_labels`` and, with maps, ``anomaly_maps`` and ``pred_masks``: normalized scores
            of the shape and sharding of the raw ones, float64 for float64 and float32 for other floating dtypes, and
            booleans.

        Raises:
            OutputError: neither scores nor maps are given, or their shapes are wrong.
            NotFittedError: nothing was fitted, or maps are given, but none were fitted. A traced normalizer has no
                values to check: it gives NaN and flags nothing.
            ResolutionError: the maps do not have the fitted height and width (CDF).
            OptionError: an extra is not one of the method.
        """
        raw = _values(pred_scores, anomaly_maps)
        kernels = METHODS[self.method]
        wanted = kernels.method.parse_extras(extras)
        self.require_fitted(MAPS in raw)
        given = {
            SCORES: _given(threshold, kernels, ()),
            MAPS: _given(pixel_threshold, kernels, () if self.pixel is None else self.pixel.threshold.shape),
        }
        computed = tuple(extra for extra in wanted if extra != "raw")
        kept = None if valid is None else jnp.asarray(valid, dtype=bool)
        if kept is not None:
            require_mask(kept.shape, raw[SCORES].shape[0], "valid")
        result: dict[str, Array] = _call(self, raw, given, kept, computed, finite)
        if "raw" in wanted:  # outside of the jitted function, which would copy them
            result |= {f"{name}_raw": value for name, value in raw.items()}
        return result

    def denormalize(
        self, pred_scores: ArrayLike | None = None, anomaly_maps: ArrayLike | None = None
    ) -> dict[str, Array]:
        """The raw scores and maps of normalized ones (clause N11). See `anomnorm_core.Normalizer.denormalize`.

        Args:
            pred_scores: normalized scores of shape (B,) or (B, 1).
            anomaly_maps: normalized maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).

        Raises:
            OutputError, NotFittedError, ResolutionError: as in a call.
        """
        if pred_scores is None and anomaly_maps is None:
            raise missing_values()
        given = {SCORES: pred_scores, MAPS: anomaly_maps}
        units = {name: jnp.asarray(unit) for name, unit in given.items() if unit is not None}
        require_normalized_shapes({name: unit.shape for name, unit in units.items()})
        self.require_fitted(MAPS in units)
        result: dict[str, Array] = _denormalize(self, units)
        return result

    def _arguments(self, level: str) -> tuple[Array, ...]:
        """Threshold, parameters and, with sigmas, the center; NaN where nothing was fitted. See `Fit.arguments`."""
        fitted = self.image if level == "image" else self.pixel
        if fitted is None:
            raise unfitted_level(level)
        parameters = centered(self.method, self.options, level, self.image.parameters, fitted.parameters)
        usable = (self.status == FITTED) & (fitted.origin[0] != 0)
        return tuple(jnp.where(usable, value, jnp.nan) for value in (fitted.threshold, *parameters))


@partial(jax.jit, static_argnames=("extras", "finite"))
def _call(
    normalizer: Normalizer,
    raw: Mapping[str, Array],
    given: Mapping[str, Array | None],
    valid: Array | None,
    extras: tuple[str, ...],
    finite: bool,
) -> dict[str, Array]:
    kernels, pixel = METHODS[normalizer.method], normalizer.pixel
    result = {}
    for name in (SCORES, MAPS):  # a pytree sorts the keys of a dictionary
        if name not in raw:
            continue
        x, t, (own, *arguments) = without_last_channel(raw[name]), given[name], normalizer._arguments(LEVEL[name])
        image = given[SCORES]
        if t is None and name == MAPS and pixel is not None and image is not None and not kernels.method.sigmas:
            t = jnp.where(pixel.origin[0] == 1 + _ORIGINS.index(Origin.IMAGE), image, own)
        t = own if t is None else jnp.where(jnp.isnan(own), own, t)  # of what was not fitted, nothing is flagged
        result[name] = normalized(kernels, x, t, arguments)
        flagged = flag(x, t)
        if valid is not None:
            flagged = flagged & valid.reshape(-1, *[1] * (x.ndim - 1))
        result["pred_labels" if name == SCORES else "pred_masks"] = flagged
        for extra in (each for each in extras if each != "invalid"):
            value = evaluated(kernels.extras[extra], x, t, arguments)
            largest = jnp.finfo(value.dtype).max  # type: ignore[no-untyped-call]
            result[f"{name}_{extra}"] = jnp.clip(value, -largest, largest) if finite else value
    if "invalid" in extras:
        scores = raw[SCORES] if raw[SCORES].ndim == 1 else raw[SCORES][:, 0]
        undefined = jnp.isnan(arithmetic(scores))
        result["invalid"] = undefined if valid is None else undefined & valid
    return shaped_as(raw[MAPS].shape if MAPS in raw else None, result)


@jax.jit
def _denormalize(normalizer: Normalizer, units: Mapping[str, Array]) -> dict[str, Array]:
    inverse, found = METHODS[normalizer.method].inverse, {}
    for name, unit in units.items():
        t, *arguments = normalizer._arguments(LEVEL[name])
        found[name] = evaluated(inverse, without_last_channel(unit), t, arguments)
    return shaped_as(units[MAPS].shape if MAPS in units else None, found)


def centered(
    method: str, options: Iterable[tuple[str, Any]], level: str, image: tuple[Array, ...], own: tuple[Array, ...]
) -> tuple[Array, ...]:
    """The parameters of a level and, with sigmas, the center. See `Fit.arguments`."""
    if not METHODS[method].method.sigmas:
        return own
    return (*own, (image if level == "pixel" and dict(options).get("center") == "image" else own)[0])


def _register_with_flax() -> None:
    """Let ``flax.serialization`` take normalizers, where the program uses it: this package does not need it."""
    serialization = sys.modules.get("flax.serialization")
    if serialization is None or Normalizer in serialization._STATE_DICT_REGISTRY:
        return

    def names(tree: Normalizer) -> list[str]:
        return [keystr(path, simple=True, separator=".") for path, _ in tree_flatten_with_path(tree)[0]]

    def restored(target: Normalizer, state: Mapping[str, Any]) -> Normalizer:
        leaves, structure = jax.tree.flatten(target)
        found = [jnp.array(state[name], dtype=leaf.dtype) for name, leaf in zip(names(target), leaves, strict=True)]
        filled: Normalizer = jax.tree.unflatten(structure, found)
        return filled

    serialization.register_serialization_state(
        Normalizer, lambda tree: dict(zip(names(tree), jax.tree.leaves(tree), strict=True)), restored
    )


def _kind(method: str, options: tuple[tuple[str, Any], ...]) -> Array:
    return np.asarray(zlib.crc32(repr((method, options)).encode()), np.uint32)  # type: ignore[return-value]


def _status(code: int) -> Any:
    return np.asarray(code, dtype=np.uint8)


def failure_code(error: AnomnormError) -> int:
    """The status that stands for an error."""
    return next(code for code, (kind, _) in FAILURES.items() if code != EMPTY and isinstance(error, kind))


def _failure(status: int) -> AnomnormError:
    kind, message = FAILURES.get(status, (AnomnormError, f"status {status} is of a newer version of anomnorm-jax."))
    return kind(message)


def _level(fitted: LevelFit | None, *, positive: bool) -> Any:
    """With NumPy arrays: this also runs where a compiled program calls the host, which must not call JAX."""
    if fitted is None or fitted.threshold is None:
        return None
    threshold, dtype = fitted.threshold, dtypes.canonicalize_dtype(float)
    fixed = _RAW if threshold.sigmas is None else _SIGMAS if threshold.fixed is Units.SIGMAS else _RAW_AND_SIGMAS
    arrays: dict[str, Any] = {
        "parameters": tuple(array.astype(dtype) for array in fitted.parameters),
        "threshold": threshold.raw.astype(dtype),
        "sigmas": np.array([threshold.sigmas or 0.0], dtype=np.float64).view(np.uint32),
        "origin": np.array([1 + _ORIGINS.index(threshold.origin), fixed], dtype=np.uint8),
        "counts": _counter.of_ints(fitted.valid, fitted.invalid),
        "zeros": fitted.known_zeros.astype(dtype) if positive else None,
        "expected": _expected(fitted),
    }
    return Level(**arrays)


def _expected(fitted: LevelFit) -> np.ndarray:
    """The false-alarm rate of a threshold (-1: unknown), whether it is guaranteed, and the moments of the normals."""
    threshold, normals = fitted.threshold, fitted.normals
    rate = -1.0 if threshold is None or threshold.false_alarm_rate is None else threshold.false_alarm_rate
    numbers = [rate, threshold is not None and threshold.guaranteed, *([0.0] * 6)]
    if normals is not None:
        numbers[2:] = [*normals[:5], normals.transform is Transform.LOG]
    return np.array(numbers, dtype=np.float64).view(np.uint32)


def _placeholder(method: Method, shape: tuple[int, ...]) -> Any:
    dtype = dtypes.canonicalize_dtype(float)
    arrays: dict[str, Any] = {
        "parameters": tuple(np.ones(shape, dtype) for _ in method.parameters),
        "threshold": np.ones(shape, dtype),
        "sigmas": np.zeros(2, np.uint32),
        "origin": np.zeros(2, np.uint8),
        "counts": np.zeros((2, 2), np.uint32),
        "zeros": np.zeros(shape, dtype) if method.positive else None,
        "expected": np.zeros(16, np.uint32),
    }
    return Level(**arrays)


def _level_fit(level: Level | None) -> LevelFit | None:
    if level is None:
        return None
    arrays = jax.tree.map(to_host, level)
    origin, fixed = (int(code) for code in arrays.origin)
    if not origin:
        return None
    sigmas = float(np.ascontiguousarray(arrays.sigmas).view(np.float64)[0]) if fixed != _RAW else None
    numbers = np.ascontiguousarray(arrays.expected).view(np.float64).tolist()
    rate, guaranteed, samples, valued, mean, std, skewness, is_log = numbers
    threshold = Threshold(
        arrays.threshold.astype(np.float64),
        sigmas,
        _ORIGINS[origin - 1],
        Units.SIGMAS if fixed == _SIGMAS else Units.RAW,
        None if rate < 0 else rate,
        bool(guaranteed),
    )
    transform = Transform.LOG if is_log else Transform.IDENTITY
    normals = Normals(int(samples), int(valued), mean, std, skewness, transform) if valued else None
    valid, invalid = (_counter.to_int(each) for each in arrays.counts)
    return LevelFit(arrays.parameters, threshold, valid, invalid, arrays.zeros, normals)


def _values(pred_scores: ArrayLike | None, anomaly_maps: ArrayLike | None) -> dict[str, Array]:
    """Scores and maps by name; scores default to the maximum of each map (clause L5)."""
    require_no_mapping(pred_scores)
    maps = None if anomaly_maps is None else jnp.asarray(anomaly_maps)
    if pred_scores is not None:
        scores = jnp.asarray(pred_scores)
    elif maps is not None:
        require_shapes(maps.shape[:1], maps.shape)
        scores = largest_defined(maps)
    else:
        raise missing_values()
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return {SCORES: scores} | ({} if maps is None else {MAPS: maps})


def _given(value: ArrayLike | None, kernels: Kernels, shape: tuple[int, ...]) -> Array | None:
    """A threshold of a call. A number is checked; an array stays on the device, and may be traced."""
    if value is None:
        return None
    if jnp.shape(value) not in ((), shape):
        raise OptionError(
            f"threshold has shape {jnp.shape(value)}; one number, of shape (), is needed for all samples."
        )
    if isinstance(value, Array) or jnp.ndim(value):
        return jnp.asarray(value, dtype=float)
    number = parse_threshold(value, "threshold")  # type: ignore[arg-type]
    if number is not None and kernels.method.positive and number < float(np.finfo(np.float32).tiny):
        raise OptionError(f"threshold={number} is not a positive number of float32: no score could be on either side.")
    return jnp.asarray(number, dtype=float)
