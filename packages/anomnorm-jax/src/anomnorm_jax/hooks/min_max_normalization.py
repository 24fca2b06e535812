"""Min-max normalization of anomaly scores in a JAX training loop."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
from jax import Array

from anomnorm_core.errors import AnomnormError
from anomnorm_core.policy import Method, require_flag
from anomnorm_jax import min_max
from anomnorm_jax.hooks import _validation_run
from anomnorm_jax.hooks._hook import NormalizationHook
from anomnorm_jax.hooks._state import (
    NormalizationState,
    refuse_traced,
    require_fitted,
    require_maps,
    require_state,
    require_thresholds,
)
from anomnorm_jax.min_max import MinMaxStatistics
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Outputs, ground_truth, read, used

State = NormalizationState[MinMaxStatistics]


@dataclass(frozen=True)
class MinMaxNormalizationHook(NormalizationHook[MinMaxStatistics]):
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold.

    Each validation run collects the smallest and the largest raw score. Test and predict then return outputs whose
    ``pred_scores`` and ``anomaly_maps`` are unit scores ``clip((x - threshold) / (max - min) + 1/2, 0, 1)``, with
    ``pred_labels`` and ``pred_masks`` beside them, decided on the raw values (``x >= threshold``).

    Example::

        hook = MinMaxNormalizationHook(threshold=0.7)
        state = hook.setup(outputs)
        for epoch in range(epochs):
            ...                                              # train
            state = hook.on_validation_epoch_start(state)
            for batch in validation:
                state, outputs = hook.on_validation_batch_end(state, predict(batch))
            state = hook.on_validation_epoch_end(state)
        outputs = hook.on_predict_batch_end(state, predict(batch))

    Args:
        threshold: decision threshold in raw units, or how it is found when a validation run ends. ``"adaptive"`` (or
            None): the one of the best F1, by the labels and masks in the outputs. ``"normal_quantile"``: just above the
            normal samples.
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does, and takes a number that was
            given there.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        capacity: how many image scores of a validation run there is room for, if a threshold has to be found: 5 or 9
            bytes each. A run with more is an error at its end.
        shared_range: one range for both levels, from the maps where there are any (the founding behaviour).
        on_invalid: ``"warn"``: NaN and infinite scores are left out of the statistics and one warning per fit counts
            them; ``"raise"``: they are an error when the fit ends.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    shared_range: bool = False
    _record: ClassVar[type[Any]] = MinMaxStatistics
    _positive: ClassVar[bool] = False

    @property
    def _scale(self) -> bool:
        return self.shared_range

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag(self.shared_range, "shared_range")

    def setup(self, outputs: Outputs) -> State:
        """An empty state for steps that return ``outputs`` (an example, or its shapes).

        Raises:
            OutputError: the outputs hold neither scores nor maps.
        """
        values = jax.eval_shape(read, used(outputs))
        return self._state(outputs, min_max.init(), None if values.maps is None else min_max.init())

    def on_validation_epoch_start(self, state: State) -> State:
        """Empty the statistics: each validation run stands for itself (clause L1)."""
        return self._begun(state)

    def on_validation_batch_end(self, state: State, outputs: Outputs) -> tuple[State, Outputs]:
        """Add the batch's raw scores to the statistics; the outputs stay as they are.

        Raises:
            OutputError: the outputs hold neither scores nor maps.
            AnomnormError: the state's fit is finished; `on_validation_epoch_start` begins the next one.
        """
        require_state(state, self._record)
        entries = used(outputs)
        if state.fitted:
            raise AnomnormError(
                "the fit of this state is finished, and adding to it would mix two validation runs. Begin the next one "
                "with state = hook.on_validation_epoch_start(state)."
            )
        return self._update(state, entries), outputs

    @partial(jax.jit, static_argnums=0)
    def _update(self, state: State, outputs: dict[str, Array]) -> State:
        values = read(outputs)
        require_maps(state, values)
        image_values = values.maps if self.shared_range and values.maps is not None else values.scores
        pixel = state.pixel
        if pixel is not None and values.maps is not None:
            pixel = min_max.update(pixel, values.maps)
        run = state.run
        if run is not None:
            run = _validation_run.update(
                run, values.scores, values.maps, ground_truth(outputs, values, masks=run.pixels is not None)
            )
        return replace(state, image=min_max.update(state.image, image_values), pixel=pixel, run=run)

    def on_validation_epoch_end(self, state: State) -> State:
        """Check the statistics, report what was left out of them, and find the thresholds that nobody gave.

        Raises:
            NotFittedError: the run has seen no valid score.
            InvalidScoreError: under ``on_invalid="raise"``, something was left out.
            AnomnormError: the state is traced, or ``capacity`` was too small.
        """
        require_state(state, self._record)
        refuse_traced(state)
        return self._find_thresholds(self._finish(state))

    def _found(self, state: State, threshold: Array) -> State:
        return replace(state, image_threshold=threshold.astype(float))

    @partial(jax.jit, static_argnums=0)
    def _normalize_batch(self, state: State, outputs: dict[str, Array]) -> dict[str, Array]:
        values = read(outputs)
        require_maps(state, values)
        require_fitted(state, values, shared=self.shared_range)
        require_thresholds(state)
        return self._normalizer(state)(values.scores, values.maps)

    def _normalizer(self, state: State) -> Normalizer:
        image = min_max.bounds(state.image)
        pixel = min_max.bounds(state.pixel) if state.pixel is not None and "pixel" in state.fitted else None
        return Normalizer(
            method=Method.MIN_MAX,
            image=image,
            threshold=state.image_threshold,
            pixel=image if self.shared_range else pixel,
            pixel_threshold=state.pixel_threshold,
        )
