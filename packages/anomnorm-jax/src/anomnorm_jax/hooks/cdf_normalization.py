"""CDF normalization of anomaly scores in a JAX training loop."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from anomnorm_core.errors import NotFittedError
from anomnorm_core.fields import MAPS, SCORES
from anomnorm_core.fit_check import LIMITS, FitCheck
from anomnorm_core.policy import Center, Method, Source, require_flag
from anomnorm_jax import cdf
from anomnorm_jax._arrays import to_host
from anomnorm_jax.cdf import ScoreDistribution
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
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Outputs, Scores, ground_truth, read, replaced, used

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
        threshold: decision threshold in z units, or how it is found when a validation run ends. ``"adaptive"`` (or
            None): the one of the best F1, by the labels and masks in the outputs. ``"normal_quantile"``: just above the
            normal samples.
        pixel_threshold: the same for the anomaly maps; None does as ``threshold`` does, and takes a number that was
            given there.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        capacity: how many image scores of a validation run there is room for, if a threshold has to be found: 5 or 9
            bytes each. A run with more is an error at its end.
        center: where pixel z-scores are zero: ``"image"`` (the image-level mean, the founding behaviour) or
            ``"pixel"`` (each pixel's own mean, for detectors with a stable spatial baseline).
        source: what the batches of `on_validation_epoch_start` are: ``"train"``, or ``"validation"``, normal samples
            that unlike the training data the detector has not seen before, which then have to be labelled.
        progress: whether passes over the training data show a progress bar.
        on_invalid: ``"warn"``: scores without a logarithm (NaN, infinite, not positive) are left out of the statistics
            and one warning per fit counts them; ``"raise"``: they are an error when the fit ends.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    center: Center | str = Center.IMAGE
    source: Source | str = Source.TRAIN
    progress: bool = True
    _record: ClassVar[type[Any]] = ScoreDistribution
    _positive: ClassVar[bool] = True

    @property
    def _scale(self) -> bool:
        return self.center == Center.PIXEL

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "center", Center.parse(self.center, "center"))
        object.__setattr__(self, "source", Source.parse(self.source, "source"))
        require_flag(self.progress, "progress")

    def setup(self, outputs: Outputs) -> State:
        """An empty state for steps that return ``outputs`` (an example, or its shapes).

        Raises:
            OutputError: the outputs hold neither scores nor maps.
        """
        values = jax.eval_shape(read, used(outputs))
        pixel = None if values.maps is None else cdf.init(tuple(values.maps.shape[-2:]))
        return self._state(outputs, cdf.init(), pixel, jnp.zeros((1 + len(LIMITS),), dtype=jnp.uint32))

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
        from tqdm.auto import tqdm  # here, because a tenth of the time of importing the package would be for it

        refuse_traced(state)
        logger.info("Collecting the statistics of the normal data to normalize the scores.")
        state = self._begun(state)
        for batch in tqdm(batches, desc="Collecting normal scores", leave=False, disable=not self.progress):
            state = self._update(state, used(predict(batch)))
        return self._finish(state)

    @partial(jax.jit, static_argnums=0)
    def _update(self, state: State, outputs: dict[str, Array]) -> State:
        values = read(outputs)
        require_maps(state, values)
        anomalous = ground_truth(outputs, values, masks=False).anomalous
        if anomalous is None and self.source is Source.VALIDATION:
            raise NotFittedError(
                "source=\"validation\" fits on the normal validation samples, but the outputs have no 'label' or "
                "'gt_label' that tells which those are."
            )
        normal = None if anomalous is None else ~anomalous
        pixel = state.pixel
        if pixel is not None and values.maps is not None:
            pixel = cdf.update(pixel, values.maps, where=normal)
        return replace(state, image=cdf.update(state.image, values.scores, where=normal), pixel=pixel)

    def on_validation_batch_end(self, state: State, outputs: Outputs) -> tuple[State, dict[str, Any]]:
        """The outputs with z-scores in place of raw scores and maps; the state takes note of the raw ones.

        Raises:
            NotFittedError: the state has not been fitted.
            OutputError: the outputs hold neither scores nor maps.
            ResolutionError: the maps do not have the fitted height and width.
        """
        require_state(state, self._record)
        state, z = self._validate_batch(state, used(outputs))
        return state, replaced(outputs, z)

    def on_validation_epoch_end(self, state: State) -> State:
        """Find the thresholds that nobody gave, and check how the fit does on normal validation samples (clause S9).

        Raises:
            NotFittedError, InsufficientDataError: too few valid scores to fit on, or none to place a threshold by.
            AnomnormError: the state is traced, or ``capacity`` was too small.
        """
        require_state(state, self._record)
        refuse_traced(state)
        state = self._find_thresholds(state if state.fitted else self._finish(state))
        check = self.fit_check(state)
        if check is None or state.warned is None or bool(to_host(state.warned)) or not check.report():
            return state
        return replace(state, warned=jnp.ones_like(state.warned))

    def fit_check(self, state: State) -> FitCheck | None:
        """How the fit does on the labelled normal samples of the last validation run; None without any (clause S9)."""
        self._require_known(state)
        if state.normals is None:
            return None
        normals, *above = (int(count) for count in to_host(state.normals))
        return FitCheck(int(to_host(state.image.count)), normals, *above) if normals else None

    def _found(self, state: State, threshold: Array) -> State:
        # On raw scores: rounding to z-scores could move the sample that defines the threshold below it (clause P2).
        return replace(state, image_threshold=threshold.astype(float), raw_threshold=True)

    @partial(jax.jit, static_argnums=0)
    def _validate_batch(self, state: State, outputs: dict[str, Array]) -> tuple[State, dict[str, Array]]:
        values = self._checked(state, outputs)
        z = self._normalizer(state).standardize(values.scores, values.maps)
        truth = ground_truth(outputs, values, masks=state.run is not None and state.run.pixels is not None)
        run, normals = state.run, state.normals
        if run is not None:
            run = _validation_run.update(run, values.scores, z.get(MAPS), truth)
        if normals is not None and truth.anomalous is not None and self.source is Source.TRAIN:
            above = [~jnp.isnan(z[SCORES]), *(z[SCORES] > limit for limit in LIMITS)]
            counted = (jnp.sum(which & ~truth.anomalous, dtype=jnp.uint32) for which in above)
            normals = normals + jnp.stack(list(counted))
        return replace(state, run=run, normals=normals), z

    @partial(jax.jit, static_argnums=0)
    def _normalize_batch(self, state: State, outputs: dict[str, Array]) -> dict[str, Array]:
        values = self._checked(state, outputs)
        require_thresholds(state)
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
            raw_threshold=state.raw_threshold,
            center=Center(self.center),
        )
