"""CDF normalization of anomaly scores in a JAX training loop."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
from jax import Array
from tqdm.auto import tqdm

from anomnorm_core.policy import Center, Method
from anomnorm_jax import cdf
from anomnorm_jax.cdf import ScoreDistribution
from anomnorm_jax.hooks._state import (
    NormalizationHook,
    NormalizationState,
    require_fitted,
    require_maps,
)
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Outputs, Scores, normal_samples, read, replaced, used

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
State = NormalizationState[ScoreDistribution]


@dataclass(frozen=True)
class CdfNormalizationHook(NormalizationHook[ScoreDistribution]):
    """Standardize image-level and pixel-level anomaly scores and normalize them to [0, 1] with 0.5 at the threshold.

    Before each validation run the current model scores the normal training data; the logarithms of those scores are
    taken as normally distributed. Validation then returns outputs with z-scores ``(log x - mean) / std``, so that
    thresholds computed from them are in z units ("so many sigmas"). Test and predict return unit scores
    ``Phi(z - threshold)``, with ``pred_labels`` and ``pred_masks`` beside them, decided on ``z`` (``z >= threshold``).

    Example::

        hook = CdfNormalizationHook(threshold=3.0)
        state = hook.setup(outputs)
        for epoch in range(epochs):
            ...                                              # train
            state = hook.on_validation_epoch_start(state, predict, normal_training_batches)
            for batch in validation:
                state, outputs = hook.on_validation_batch_end(state, predict(batch))
            state = hook.on_validation_epoch_end(state)
        outputs = hook.on_predict_batch_end(state, predict(batch))

    Args:
        threshold: decision threshold in z units.
        pixel_threshold: the same for the anomaly maps; None takes ``threshold``.
        center: where pixel z-scores are zero: ``"image"`` (the image-level mean, the founding behaviour) or
            ``"pixel"`` (each pixel's own mean, for detectors with a stable spatial baseline).
        progress: whether passes over the training data show a progress bar.
        on_invalid: ``"warn"``: scores without a logarithm (NaN, infinite, not positive) are left out of the statistics
            and one warning per fit counts them; ``"raise"``: they are an error when the fit ends.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    center: Center | str = Center.IMAGE
    progress: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "center", Center.parse(self.center, "center"))

    def setup(self, outputs: Outputs) -> State:
        """An empty state for steps that return ``outputs`` (an example, or its shapes).

        Raises:
            OutputError: the outputs hold neither scores nor maps.
        """
        values = jax.eval_shape(read, used(outputs))
        return self._state(cdf.init(), None if values.maps is None else cdf.init(tuple(values.maps.shape[-2:])))

    def on_validation_epoch_start(
        self, state: State, predict: Callable[[Batch], Outputs], batches: Iterable[Batch]
    ) -> State:
        """Fit the score distribution with the current weights: one pass over the normal training data.

        Args:
            state: from `setup` or an earlier run; its statistics are replaced.
            predict: maps a batch to a step's outputs, in evaluation mode.
            batches: the normal training data. Samples that the outputs label anomalous (``label`` or ``gt_label`` not
                0) are left out.

        Returns:
            A fitted state: validation, test and predict can follow.

        Raises:
            NotFittedError, InsufficientDataError: too few valid scores to fit on.
            InvalidScoreError: under ``on_invalid="raise"``, something was left out.
            ResolutionError: maps do not have the height and width of `setup`.
        """
        logger.info("Collecting the statistics of the normal data to normalize the scores.")
        pixel = None if state.pixel is None else cdf.init(state.pixel.mean.shape)
        state = replace(state, image=cdf.init(), pixel=pixel, fitted=())
        for batch in tqdm(batches, desc="Collecting normal scores", leave=False, disable=not self.progress):
            state = self._update(state, used(predict(batch)))
        return self._finish(state)

    @partial(jax.jit, static_argnums=0)
    def _update(self, state: State, outputs: dict[str, Array]) -> State:
        values, normal = read(outputs), normal_samples(outputs)
        require_maps(state, values)
        pixel = state.pixel
        if pixel is not None and values.maps is not None:
            pixel = cdf.update(pixel, values.maps, where=normal)
        return replace(state, image=cdf.update(state.image, values.scores, where=normal), pixel=pixel)

    def on_validation_batch_end(self, state: State, outputs: Outputs) -> tuple[State, dict[str, Any]]:
        """The outputs with z-scores in place of raw scores and maps; the state stays as it is.

        Raises:
            NotFittedError: the state has not been fitted.
            OutputError: the outputs hold neither scores nor maps.
            ResolutionError: the maps do not have the fitted height and width.
        """
        return state, replaced(outputs, self._standardize_batch(state, used(outputs)))

    def on_validation_epoch_end(self, state: State) -> State:
        """Check the statistics and mark the state as fitted (which also makes a restored state usable).

        Raises:
            NotFittedError, InsufficientDataError: too few valid scores to fit on.
        """
        return state if state.fitted else self._finish(state)

    def on_test_batch_end(self, state: State, outputs: Outputs) -> dict[str, Any]:
        """The outputs with unit scores and maps, labels and masks. Raises as `on_validation_batch_end`."""
        return replaced(outputs, self._normalize_batch(state, used(outputs)))

    def on_predict_batch_end(self, state: State, outputs: Outputs) -> dict[str, Any]:
        """The outputs with unit scores and maps, labels and masks. Raises as `on_validation_batch_end`."""
        return replaced(outputs, self._normalize_batch(state, used(outputs)))

    @partial(jax.jit, static_argnums=0)
    def _standardize_batch(self, state: State, outputs: dict[str, Array]) -> dict[str, Array]:
        values = self._checked(state, outputs)
        return self._normalizer(state).standardize(values.scores, values.maps)

    @partial(jax.jit, static_argnums=0)
    def _normalize_batch(self, state: State, outputs: dict[str, Array]) -> dict[str, Array]:
        values = self._checked(state, outputs)
        return self._normalizer(state)(values.scores, values.maps)

    def _checked(self, state: State, outputs: dict[str, Array]) -> Scores:
        values = read(outputs)
        require_maps(state, values)
        require_fitted(state, values)
        return values

    def _normalizer(self, state: State) -> Normalizer:
        pixel = state.pixel if "pixel" in state.fitted else None
        return Normalizer(
            method=Method.CDF,
            image=cdf.mean_std(state.image),
            threshold=state.image_threshold,
            pixel=None if pixel is None else cdf.mean_std(pixel, level="pixel"),
            pixel_threshold=state.pixel_threshold,
            center=Center(self.center),
        )
