"""What both hooks do alike."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, SupportsFloat, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.checks import report_invalid
from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError
from anomnorm_core.policy import (
    OnInvalid,
    ThresholdRule,
    parse_quantile,
    parse_threshold,
    parse_threshold_option,
    require_number,
)
from anomnorm_jax import _counter, cdf, min_max
from anomnorm_jax._arrays import arithmetic, to_host
from anomnorm_jax._collectives import all_merge
from anomnorm_jax.hooks import _validation_run
from anomnorm_jax.hooks._state import (
    LEVELS,
    NormalizationState,
    Record,
    is_traced,
    refuse_traced,
    require_fitted,
    require_state,
    require_thresholds,
)
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Outputs, Scores, read, replaced, used


@dataclass(frozen=True)
class NormalizationHook(Generic[Record]):
    """The part of a hook that does not depend on the method. Hooks are hashable, hence static arguments of jit."""

    threshold: float | ThresholdRule | str | None = None
    pixel_threshold: float | ThresholdRule | str | None = None
    normal_quantile: float = 1.0
    capacity: int = 2**16
    on_invalid: OnInvalid | str = OnInvalid.WARN

    def __post_init__(self) -> None:
        # Plain floats, also where an array of one number was given: a hook has to be hashable.
        for name in ("threshold", "pixel_threshold"):
            object.__setattr__(self, name, parse_threshold_option(getattr(self, name), name))
        object.__setattr__(self, "normal_quantile", parse_quantile(self.normal_quantile, "normal_quantile"))
        object.__setattr__(self, "on_invalid", OnInvalid.parse(self.on_invalid, "on_invalid"))
        if type(self.capacity) is not int or self.capacity < 1:
            raise OptionError(f"capacity={self.capacity!r} is no number of images; give a positive integer.")

    _record: ClassVar[type[Any]]  # of the statistics
    _positive: ClassVar[bool]  # whether a score has to be positive to be flagged

    @property
    @abstractmethod
    def _scale(self) -> bool:
        """The option that says what the statistics and thresholds in a checkpoint mean."""

    def _rules(self, state: NormalizationState[Record]) -> tuple[ThresholdRule | None, ThresholdRule | None]:
        """How a validation run has to find the thresholds; None where they were given."""
        pixel = self.threshold if self.pixel_threshold is None else self.pixel_threshold
        image_rule = None if "image" in state.by_hand else _rule(self.threshold)
        return image_rule, None if state.pixel is None or "pixel" in state.by_hand else _rule(pixel)

    def _given(self) -> tuple[float | None, float | None]:
        """The thresholds that the hook was made with; the one of the maps follows a number."""
        image = self.threshold if isinstance(self.threshold, float) else None
        pixel = self.pixel_threshold if isinstance(self.pixel_threshold, float) else None
        return image, image if self.pixel_threshold is None else pixel

    def _state(
        self, outputs: Outputs, image: Record, pixel: Record | None, normals: Array | None = None
    ) -> NormalizationState[Record]:
        """A state without values, for steps that return ``outputs`` (or their shapes)."""
        warned = None if normals is None else jnp.zeros((), dtype=bool)
        unset = jnp.full((), jnp.nan, dtype=float)
        state = self._undecided(NormalizationState(image, pixel, unset, unset, normals=normals, warned=warned))
        if state.decided:
            return state
        dtype = jax.eval_shape(lambda entries: arithmetic(read(entries).scores)[0], used(outputs)).dtype
        pixels = self._rules(state)[1] is not None
        return replace(state, run=_validation_run.init(self.capacity, dtype, pixels=pixels))

    def _searches(self, state: NormalizationState[Record]) -> bool:
        """Whether validation runs find thresholds for ``state``."""
        return self._rules(state) != (None, None)

    def _undecided(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """The state with its thresholds by hand and the hook's own, without those that a validation run has to find."""
        image, pixel = (jnp.full((), jnp.nan if value is None else value, dtype=float) for value in self._given())
        state = replace(
            state,
            image_threshold=state.image_threshold if "image" in state.by_hand else image,
            pixel_threshold=state.pixel_threshold if "pixel" in state.by_hand else pixel,
            raw_threshold=False,
        )
        return replace(state, decided=not self._searches(state))

    def _begun(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """The state at the beginning of a validation run."""
        require_state(state, self._record)
        begun = self._undecided(state) if self._searches(state) else state
        return self.emptied(replace(begun, fitted=()))

    def with_threshold(
        self,
        state: NormalizationState[Record],
        threshold: ArrayLike | None = None,
        pixel_threshold: ArrayLike | None = None,
    ) -> NormalizationState[Record]:
        """The state with other thresholds, which stay through later validation runs (clause T4).

        Nothing compiles anew for another number (once for the first number in place of found thresholds), and the
        statistics stay.

        Args:
            state: any state of this hook.
            threshold: for the scores, in decision units (raw under min-max, z under the CDF): a finite number, or an
                array of shape (). None keeps the present one.
            pixel_threshold: for the maps. None keeps the present one; where there is none, or it is the number that
                the hook was given for both, it follows ``threshold``. Both None: takes back what was set by hand, for
                the hook's own numbers or what the next run finds.

        Raises:
            OptionError: a number that is not finite, or several.
        """
        require_state(state, self._record)
        if threshold is None and pixel_threshold is None:
            return self._undecided(replace(state, by_hand=()))
        image, pixel = state.image_threshold, state.pixel_threshold
        if threshold is not None:
            image = _threshold_array(threshold, "threshold")
            one_number = self.pixel_threshold is None and isinstance(self.threshold, float)
            if "pixel" not in state.by_hand and (one_number or not state.decided):
                pixel = _threshold_array(threshold, "threshold")
        if pixel_threshold is not None:
            pixel = _threshold_array(pixel_threshold, "pixel_threshold")
        # Where nothing is searched there is nothing to keep from it, and the structure stays.
        given = (threshold, pixel_threshold)
        levels = zip(LEVELS, self._rules(state), given, strict=True)
        by_hand = {level for level, rule, value in levels if rule is not None and value is not None}
        return replace(
            state,
            image_threshold=image,
            pixel_threshold=pixel,
            decided=state.decided or threshold is not None,
            raw_threshold=state.raw_threshold and threshold is None,
            by_hand=tuple(level for level in LEVELS if level in by_hand or level in state.by_hand),
        )

    def thresholds(self, state: NormalizationState[Record]) -> dict[str, float]:
        """The thresholds in decision units, by level, as Python numbers: waits for the device.

        Raises:
            NotFittedError: there is none yet.
        """
        self._require_known(state)
        require_thresholds(state)
        normalizer = self._normalizer(state)
        image = normalizer._own_threshold(jnp.zeros((0,), dtype=float))
        levels = {"image": image, "pixel": image if state.pixel_threshold is None else state.pixel_threshold}
        return {level: float(to_host(value)) for level, value in levels.items() if level in state.fitted}

    def normalizer(self, state: NormalizationState[Record]) -> Normalizer:
        """What was fitted, with the state's thresholds, as a pytree of its own: to save, to serve, to export.

        Args:
            state: after the fit.

        Returns:
            A `Normalizer`. It gives what `on_test_batch_end` and `on_predict_batch_end` leave in the outputs.

        Raises:
            NotFittedError: the state has not been fitted, or there is no threshold yet.
            AnomnormError: the state is traced: a normalizer names counts, which have to be read.
        """
        self._require_known(state)
        require_fitted(state, Scores(state.image_threshold, None))
        require_thresholds(state)
        counts = {level: _counter.of_ints(*_most(getattr(state, level))) for level in state.fitted}
        fitted = replace(self._normalizer(state), counts=counts)
        follows = self.pixel_threshold is None and bool(fitted.pixel_threshold == fitted.threshold)
        return replace(fitted, pixel_threshold=None) if follows else fitted

    @abstractmethod
    def _normalizer(self, state: NormalizationState[Record]) -> Normalizer:
        """The normalizer that batches go through; traceable."""

    @abstractmethod
    def _found(self, state: NormalizationState[Record], threshold: Array) -> NormalizationState[Record]:
        """The state with an image threshold that was found on raw scores."""

    def to_arrays(self, state: NormalizationState[Record]) -> dict[str, Any]:
        """What a checkpoint has to hold of a state, as a dictionary of arrays and of dictionaries of arrays.

        Its structure is the same for all states of one `setup`, fitted or not, so that a checkpoint library can restore
        into the arrays of a fresh state, onto any sharding. `restore` takes it back. A validation run that has not
        ended is not part of it.
        """
        require_state(state, self._record)
        levels = {level: getattr(state, level) for level in LEVELS if getattr(state, level) is not None}
        follows = state.pixel_threshold is None
        known = [level in names for names in (state.fitted, state.by_hand) for level in LEVELS]
        known += [state.decided, state.raw_threshold, follows, self._scale]
        return {
            **{level: record._asdict() for level, record in levels.items()},
            "image_threshold": state.image_threshold,
            "pixel_threshold": jnp.full((), jnp.nan, dtype=float) if follows else state.pixel_threshold,
            "known": jnp.asarray(known, dtype=jnp.uint8),
            **({} if state.normals is None else {"normals": state.normals}),
        }

    def restore(self, state: NormalizationState[Record], arrays: Mapping[str, Any]) -> NormalizationState[Record]:
        """A fresh state with the statistics and thresholds of `to_arrays`; a number given to this hook wins (T4).

        Args:
            state: from `setup`, with outputs of the same shapes.
            arrays: of a state of such a hook.

        Raises:
            AnomnormError: arrays are missing, too many, or of other shapes, or the hook has another ``center`` or
                ``shared_range`` than the one that made them.
        """
        self._require_known(state)
        if not isinstance(arrays, Mapping):
            raise TypeError(f"arrays must be a dictionary made by to_arrays, found {type(arrays).__name__}.")
        mine = self.to_arrays(state)
        shapes, found = ({key: jnp.shape(leaf) for key, leaf in _named(tree)} for tree in (mine, arrays))
        if shapes != found:
            wrong = sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))
            raise AnomnormError(
                f"the arrays do not belong to this state: {', '.join(wrong)} missing, too many or of another shape. "
                "Set the state up with outputs of the same shapes, for the same kind of hook."
            )
        typed = jax.tree.map(lambda own, value: jnp.array(value, dtype=own.dtype), mine, _plain(arrays))
        flags = [bool(flag) for flag in to_host(typed["known"])]
        decided, raw, follows, scale = flags[4:]
        if scale != self._scale:
            raise AnomnormError(
                "the arrays come from a hook whose option center or shared_range is not that of this one: their "
                "numbers mean something else. Make the hook with the same options."
            )
        numbers = dict(zip(LEVELS, self._given(), strict=True))
        state = replace(
            state,
            image=type(state.image)(**typed["image"]),
            pixel=None if state.pixel is None else type(state.image)(**typed["pixel"]),
            run=jax.tree.map(jnp.zeros_like, state.run),
            normals=typed.get("normals"),
            fitted=tuple(level for level, known in zip(LEVELS, flags[:2], strict=True) if known),
            by_hand=tuple(
                level for level, known in zip(LEVELS, flags[2:4], strict=True) if known and numbers[level] is None
            ),
        )
        own = self._undecided(replace(state, by_hand=()))
        pixel_threshold = None if follows else typed["pixel_threshold"]
        return replace(
            state,
            image_threshold=typed["image_threshold"] if numbers["image"] is None else own.image_threshold,
            pixel_threshold=pixel_threshold if numbers["pixel"] is None else own.pixel_threshold,
            decided=decided or own.decided,
            raw_threshold=raw and numbers["image"] is None,
        )

    def emptied(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """The state without what its fit or its validation run has seen: what a worker begins from. Traceable."""
        run, normals = jax.tree.map(jnp.zeros_like, (state.run, state.normals))
        image, pixel = state.image, state.pixel
        if not state.fitted:
            image = _init(image)
            pixel = None if pixel is None else _init(pixel)
        return replace(state, image=image, pixel=pixel, run=run, normals=normals)

    def merge(self, a: NormalizationState[Record], b: NormalizationState[Record]) -> NormalizationState[Record]:
        """The state of what ``a`` and ``b`` have seen; at least one of them began from `emptied`. Traceable.

        Statistics are merged until their fit is finished; what a validation run has seen is merged always. The fit of
        the CDF begins and ends in `on_validation_epoch_start`: workers validate with one fit, and do not make their
        own.

        Raises:
            AnomnormError: both were fitted, each on its own (outside of a trace, which has no values to compare).
        """
        for state in (a, b):
            require_state(state, self._record)
        if a.fitted and b.fitted and not is_traced((a, b)) and not _equal((a.image, a.pixel), (b.image, b.pixel)):
            raise AnomnormError(
                "both states were fitted, each on other data, and a finished fit is not merged. Let the workers begin "
                "from hook.emptied(state) of one state; or merge records with anomnorm_jax.cdf and min_max."
            )
        library: Any = _library(a.image)
        image, pixel = a.image, a.pixel
        if not a.fitted:
            image = library.merge(image, b.image)
            pixel = None if pixel is None else library.merge(pixel, b.pixel)
        run = None if a.run is None or b.run is None else _validation_run.merge(a.run, b.run)
        normals = None if a.normals is None or b.normals is None else a.normals + b.normals
        return replace(a, image=image, pixel=pixel, run=run, normals=normals)

    def all_merge(self, state: NormalizationState[Record], axis_name: str) -> NormalizationState[Record]:
        """The `merge` of the states of all shards, inside of ``jax.shard_map`` over ``axis_name``: the same on each.

        Each of them began from `emptied`; the result is merged into the state that was emptied. Everything that the
        shards have seen is exchanged, so do it once for many batches.
        """
        return all_merge(state, axis_name, self.merge)

    def on_test_start(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """Check that there are statistics and finite thresholds, before the first batch. The state stays as it is.

        Unit scores have their threshold at 0.5: that is where metrics of a test belong (clause L7).

        Raises:
            NotFittedError: the state has not been fitted, or a threshold is missing or not finite.
        """
        self._require_known(state)
        require_fitted(state, Scores(state.image_threshold, None))
        for level, value in self.thresholds(state).items():
            if not np.isfinite(value):
                raise NotFittedError(f"the {level}-level threshold of the state is {value}; set it first.")
        return state

    def on_predict_start(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """Check that there are statistics and finite thresholds. See `on_test_start`."""
        return self.on_test_start(state)

    def on_test_batch_end(self, state: NormalizationState[Record], outputs: Outputs) -> dict[str, Any]:
        """The outputs with unit scores and maps, labels and masks.

        Raises:
            NotFittedError: the state has not been fitted, or has no threshold yet.
            OutputError: the outputs hold neither scores nor maps.
            ResolutionError: the maps do not have the fitted height and width (CDF).
        """
        require_state(state, self._record)
        return replaced(outputs, self._normalize_batch(state, used(outputs, truth=False)))

    def on_predict_batch_end(self, state: NormalizationState[Record], outputs: Outputs) -> dict[str, Any]:
        """The outputs with unit scores and maps, labels and masks. Raises as `on_test_batch_end`."""
        return self.on_test_batch_end(state, outputs)

    @abstractmethod
    def _normalize_batch(self, state: NormalizationState[Record], outputs: dict[str, Array]) -> dict[str, Array]:
        """What becomes of the `used` entries of a step's outputs; jitted."""

    def _finish(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """End a fit: check every level that has seen values, report what was left out, mark those levels as fitted."""
        refuse_traced(state)
        records = {"image": state.image} | ({} if state.pixel is None else {"pixel": state.pixel})
        counts = {level: _totals(record) for level, record in records.items()}
        if self.on_invalid is OnInvalid.RAISE:
            report_invalid(counts, OnInvalid.RAISE)
        fitted = tuple(level for level in records if level == "image" or any(counts[level]))
        for level in fitted:
            record = records[level]
            if isinstance(record, min_max.MinMaxStatistics):
                min_max.bounds(record, level=level)
            else:
                cdf.mean_std(record, level=level)
        report_invalid(counts, OnInvalid.WARN)  # of a usable fit: an unusable one was an error above
        return replace(state, fitted=fitted)

    def _find_thresholds(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """The state with the thresholds that nobody gave, from the validation run that ends."""
        image_rule, pixel_rule = self._rules(state)
        run = state.run
        if run is None or (image_rule is None and pixel_rule is None):
            return state
        empty, run = jax.tree.map(jnp.zeros_like, run), jax.tree.map(to_host, run)
        if image_rule is not None and int(run.seen) == 0:
            raise NotFittedError(
                "no outputs came in this validation run, so there is nothing to find a threshold in. Give "
                "hook.on_validation_batch_end(state, outputs) the outputs of each batch. A state from a checkpoint "
                "comes back, with its thresholds, with hook.restore(state, arrays)."
            )
        searched = image_rule is not None
        if image_rule is not None:
            found = _validation_run.image_threshold(run, image_rule, self.normal_quantile, positive=self._positive)
            state = self._found(state, found)
        if pixel_rule is not None:
            pixel = _validation_run.pixel_threshold(run, pixel_rule, self.normal_quantile, searched=searched)
            same = None if state.raw_threshold else state.image_threshold  # raw scores say nothing about maps
            state = replace(state, pixel_threshold=same if pixel is None else pixel.astype(float))
        elif state.pixel is None and "pixel" not in state.by_hand and self._given()[1] is None:  # no maps: it follows
            state = replace(state, pixel_threshold=None if state.raw_threshold else state.image_threshold)
        # Emptied, so that another run with this fit finds its thresholds among its own scores.
        return replace(state, run=empty, decided=True)

    def _require_known(self, state: NormalizationState[Record]) -> None:
        """Raise for what is no state of this hook, and for one inside of jit, where its values are not known."""
        require_state(state, self._record)
        if is_traced(state):
            raise AnomnormError(
                "thresholds, checks, checkpoints and normalizers are taken from a state outside jax.jit: they read "
                "values off the device. Inside, call the per-batch methods."
            )


def _equal(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return all(np.array_equal(to_host(x), to_host(y)) for x, y in leaves)


def _rule(option: float | ThresholdRule | str | None) -> ThresholdRule | None:
    return None if isinstance(option, float) else ThresholdRule(option or ThresholdRule.ADAPTIVE)


def _library(record: Any) -> Any:
    return cdf if isinstance(record, cdf.ScoreDistribution) else min_max


def _init(record: Any) -> Any:
    return cdf.init(record.mean.shape) if isinstance(record, cdf.ScoreDistribution) else min_max.init()


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _named(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _threshold_array(value: ArrayLike, argument: str) -> Array:
    require_number(jnp.shape(value), argument)
    if not isinstance(value, Array):  # reading a JAX array would wait for the device, or fail under a trace
        parse_threshold(cast("SupportsFloat", value), argument)
    return jnp.array(value, dtype=float)  # a copy: a buffer that stands twice in a state could not be donated


def _totals(record: min_max.MinMaxStatistics | cdf.ScoreDistribution) -> tuple[int, int]:
    # Level-wide totals in Python integers: of a per-pixel record, all pixels together.
    if isinstance(record, min_max.MinMaxStatistics):
        return _counter.to_int(record.count), _counter.to_int(record.invalid)
    count, invalid = (int(np.sum(np.asarray(field), dtype=np.uint64)) for field in (record.count, record.invalid))
    return count, invalid


def _most(record: min_max.MinMaxStatistics | cdf.ScoreDistribution) -> tuple[int, int]:
    # Of a per-pixel record, those of the pixel that has most.
    if isinstance(record, min_max.MinMaxStatistics):
        return _totals(record)
    return int(np.max(record.count)), int(np.max(record.invalid))
