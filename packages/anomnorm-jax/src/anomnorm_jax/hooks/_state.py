"""The state that hooks hand from call to call, and what both hooks do alike."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, SupportsFloat, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import report_invalid
from anomnorm_core.errors import AnomnormError, NotFittedError, OptionError
from anomnorm_core.policy import OnInvalid, parse_threshold
from anomnorm_jax import _counter, cdf, min_max
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Scores

Record = TypeVar("Record", min_max.MinMaxStatistics, cdf.ScoreDistribution)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["image", "pixel", "image_threshold", "pixel_threshold"],
    meta_fields=["fitted"],
)
@dataclass(frozen=True)
class NormalizationState(Generic[Record]):
    """A pytree: statistics and thresholds are leaves, so that changing their values compiles nothing anew.

    ``fitted`` is part of the tree's structure. It is how a hook refuses to normalize with statistics that have seen
    nothing (clause N8) without reading a value off the device, also inside ``jax.jit``.
    """

    image: Record  # statistics of the scores
    pixel: Record | None  # statistics of the maps; None where a step returns none
    image_threshold: Array  # () float
    pixel_threshold: Array  # () float
    fitted: tuple[str, ...] = ()  # levels whose statistics passed the check that ends a fit


@dataclass(frozen=True)
class NormalizationHook(Generic[Record]):
    """The part of a hook that does not depend on the method. Hooks are hashable, hence static arguments of jit."""

    threshold: float
    pixel_threshold: float | None = None
    on_invalid: OnInvalid | str = OnInvalid.WARN

    def __post_init__(self) -> None:
        threshold = parse_threshold(self.threshold, "threshold")
        if threshold is None:
            raise OptionError("threshold=None is not a number; give a finite float.")
        # Plain floats, also where an array of one number was given: a hook has to be hashable.
        object.__setattr__(self, "threshold", threshold)
        object.__setattr__(self, "pixel_threshold", parse_threshold(self.pixel_threshold, "pixel_threshold"))
        object.__setattr__(self, "on_invalid", OnInvalid.parse(self.on_invalid, "on_invalid"))

    def _state(self, image: Record, pixel: Record | None) -> NormalizationState[Record]:
        unset = jnp.zeros((), dtype=float)
        state = NormalizationState(image=image, pixel=pixel, image_threshold=unset, pixel_threshold=unset)
        return self.with_threshold(state, self.threshold, self.pixel_threshold)

    def with_threshold(
        self, state: NormalizationState[Record], threshold: ArrayLike, pixel_threshold: ArrayLike | None = None
    ) -> NormalizationState[Record]:
        """The state with other thresholds. Nothing compiles anew, and the statistics stay.

        Args:
            state: any state of this hook.
            threshold: for the scores, in the units of the hook's ``threshold``: a finite number, or an array.
            pixel_threshold: for the maps; None takes ``threshold``.

        Raises:
            OptionError: a number that is not finite.
        """
        pixel = threshold if pixel_threshold is None else pixel_threshold
        return replace(
            state,
            image_threshold=_threshold_array(threshold, "threshold"),
            pixel_threshold=_threshold_array(pixel, "pixel_threshold"),
        )

    def normalizer(self, state: NormalizationState[Record]) -> Normalizer:
        """What was fitted, with the state's thresholds, as a pytree of its own: to save, to serve, to export.

        Args:
            state: after the fit.

        Returns:
            A `Normalizer`. It gives what `on_test_batch_end` and `on_predict_batch_end` leave in the outputs.

        Raises:
            NotFittedError: the state has not been fitted.
            AnomnormError: the state is traced: a normalizer names counts, which have to be read.
        """
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
            raise AnomnormError("a normalizer is taken from a state outside jax.jit: it reads counts off the device.")
        require_fitted(state, Scores(state.image_threshold, None))
        counts = {level: _counter.of_ints(*_most(getattr(state, level))) for level in state.fitted}
        fitted = replace(self._normalizer(state), counts=counts)
        follows = self.pixel_threshold is None and bool(state.pixel_threshold == state.image_threshold)
        return replace(fitted, pixel_threshold=None) if follows else fitted

    @abstractmethod
    def _normalizer(self, state: NormalizationState[Record]) -> Normalizer:
        """The normalizer that batches go through; traceable."""

    def _finish(self, state: NormalizationState[Record]) -> NormalizationState[Record]:
        """End a fit: check every level that has seen values, report what was left out, mark those levels as fitted."""
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
            raise AnomnormError(
                "a fit ends outside jax.jit: it reads counts and may warn. Jit the per-batch methods, and call "
                "on_validation_epoch_end (and on_validation_epoch_start of the CDF hook) from plain Python."
            )
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


def _threshold_array(value: ArrayLike, argument: str) -> Array:
    if not isinstance(value, Array):  # reading a JAX array would wait for the device, or fail under a trace
        parse_threshold(cast("SupportsFloat", value), argument)
    return jnp.asarray(value, dtype=float)


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


def require_fitted(state: NormalizationState[Record], values: Scores, *, shared: bool = False) -> None:
    """Raise `NotFittedError` unless a fit was finished for every level of ``values``. Reads no array.

    ``shared`` says that both levels use the image-level statistics.
    """
    needed = ["image"] if values.maps is None or shared else ["image", "pixel"]
    missing = [level for level in needed if level not in state.fitted]
    if missing:
        raise NotFittedError(
            f"the {missing[0]}-level statistics of the state have not been fitted, or the fit was not finished. Finish "
            "a validation run whose outputs hold that level with state = hook.on_validation_epoch_end(state) before "
            "testing or predicting; after restoring arrays from a checkpoint into a fresh state, call it too: it "
            "checks them."
        )


def require_maps(state: NormalizationState[Record], values: Scores) -> None:
    """Raise `NotFittedError` for maps at a state that was set up without any."""
    if values.maps is not None and state.pixel is None:
        raise NotFittedError(
            "the outputs hold 'anomaly_maps', but the state was set up from outputs without them. Call "
            "hook.setup(outputs) with outputs of the shape that the steps return, and fit again."
        )
