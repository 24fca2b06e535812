"""The state that hooks hand from call to call, and what has to be known of it."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import jax
from jax import Array
from jax.core import Tracer

from anomnorm_core.errors import AnomnormError, NotFittedError
from anomnorm_jax import cdf, min_max
from anomnorm_jax.hooks._validation_run import ValidationRun
from anomnorm_jax.outputs import Scores

LEVELS = ("image", "pixel")
Record = TypeVar("Record", min_max.MinMaxStatistics, cdf.ScoreDistribution)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["image", "pixel", "image_threshold", "pixel_threshold", "run", "normals", "warned"],
    meta_fields=["fitted", "decided", "raw_threshold", "by_hand"],
)
@dataclass(frozen=True)
class NormalizationState(Generic[Record]):
    """A pytree: statistics and thresholds are leaves, so that changing their values compiles nothing anew.

    What is known of them is part of the tree's structure. It is how a hook refuses to normalize with statistics that
    have seen nothing (clause N8) without reading a value off the device, also inside ``jax.jit``.
    """

    image: Record  # statistics of the scores
    pixel: Record | None  # statistics of the maps; None where a step returns none
    image_threshold: Array  # () float: in decision units, or in raw ones with `raw_threshold`
    pixel_threshold: Array | None  # () float: in decision units; None: the one of the images
    run: ValidationRun | None = None  # what a validation run has shown so far, if thresholds are to be found in it
    normals: Array | None = None  # CDF: (3,) uint32: normal validation samples; with z above 2; above 3
    warned: Array | None = None  # CDF: () bool: whether these were worth a warning before
    fitted: tuple[str, ...] = ()  # levels whose statistics passed the check that ends a fit
    decided: bool = False  # whether there are thresholds
    raw_threshold: bool = False  # whether images are decided on raw scores: a found threshold under the CDF (P2)
    by_hand: tuple[str, ...] = ()  # levels whose threshold was set with `with_threshold`, where one is searched


def require_state(state: Any, record: type[Any]) -> None:
    """Raise `AnomnormError` for what is no state, or one of the other kind of hook: statistics are no ``record``."""
    if isinstance(state, NormalizationState) and isinstance(state.image, record):
        return
    found = type(state).__name__
    if isinstance(state, NormalizationState):
        found = f"one of {type(state.image).__name__}, made by another kind of hook"
    raise AnomnormError(
        f"the first argument must be a state of this hook, found {found}. Begin with state = hook.setup(outputs); "
        "on_validation_batch_end returns two values: state, outputs = hook.on_validation_batch_end(state, outputs)."
    )


def refuse_traced(state: Any) -> None:
    """Raise `AnomnormError` inside of jit."""
    if is_traced(state):
        raise AnomnormError(
            "a fit ends outside jax.jit: it reads counts and may warn. Jit the per-batch methods, and call "
            "on_validation_epoch_end (and on_validation_epoch_start of the CDF hook) from plain Python."
        )


def is_traced(tree: Any) -> bool:
    """Whether a leaf is a value that is not known yet, inside of jit."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


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
            "testing or predicting, or restore a checkpoint with state = hook.restore(state, arrays)."
        )


def require_maps(state: NormalizationState[Record], values: Scores) -> None:
    """Raise `NotFittedError` for maps at a state that was set up without any."""
    if values.maps is not None and state.pixel is None:
        raise NotFittedError(
            "the outputs hold 'anomaly_maps', but the state was set up from outputs without them. Call "
            "hook.setup(outputs) with outputs of the shape that the steps return, and fit again."
        )


def require_thresholds(state: NormalizationState[Record]) -> None:
    """Raise `NotFittedError` unless the state has thresholds. Reads no array."""
    if not state.decided:
        raise NotFittedError(
            "the state has no thresholds yet: they are found when a validation run ends. Call state = "
            "hook.on_validation_epoch_end(state) after its batches, or give the hook threshold=..., or "
            "hook.with_threshold(state, ...)."
        )
