"""Reading a step's outputs, and returning them with new values (clauses L4, L5)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from anomnorm_core.fields import (
    MAPPING_FIELDS,
    missing_fields,
    require_no_other_layout,
    require_shapes,
    require_truth,
    wrong_type,
)

Outputs = Mapping[str, Any]


class Scores(NamedTuple):
    """What normalization works on."""

    scores: Array  # (B,); the maximum of the map where the step gave no scores
    maps: Array | None  # (B, 1, H, W) or (B, H, W)


class GroundTruth(NamedTuple):
    """What is known about the samples of a batch."""

    anomalous: Array | None  # (B,) bool
    masks: Array | None  # (B, 1, H, W) or (B, H, W); not 0 where a pixel is anomalous


def used(outputs: Outputs, *, truth: bool = True) -> dict[str, Any]:
    """The entries that normalization works on: a step may also return file names, which nothing can trace.

    Labels and masks are among them with ``truth``.

    Raises:
        OutputError: ``outputs`` is no mapping.
    """
    if not isinstance(outputs, Mapping):
        raise missing_fields(type(outputs).__name__, getattr(outputs, "__dict__", ()), attributes=False)
    require_no_other_layout(outputs)
    names: tuple[str, ...] = (MAPPING_FIELDS.scores, MAPPING_FIELDS.maps)
    if truth:
        names += MAPPING_FIELDS.labels + MAPPING_FIELDS.masks
    found = {name: outputs[name] for name in names if outputs.get(name) is not None}
    if not {MAPPING_FIELDS.scores, MAPPING_FIELDS.maps} & found.keys():
        raise missing_fields(type(outputs).__name__, outputs, attributes=False)
    for name, value in found.items():
        if not hasattr(value, "dtype") or getattr(value.dtype, "kind", "O") in "OSU":
            raise wrong_type(name, type(value).__name__, "an array")
    return found


def read(outputs: Outputs) -> Scores:
    """Scores and maps of the `used` entries of a step's outputs.

    Raises:
        OutputError: their shapes are wrong.
    """
    scores, maps = outputs.get(MAPPING_FIELDS.scores), outputs.get(MAPPING_FIELDS.maps)
    if scores is None:
        scores = jnp.max(outputs[MAPPING_FIELDS.maps], axis=tuple(range(1, outputs[MAPPING_FIELDS.maps].ndim)))
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return Scores(scores, maps)


def ground_truth(outputs: Outputs, values: Scores, *, masks: bool) -> GroundTruth:
    """The labels and, if asked for, the masks of the `used` entries of a step's outputs.

    Without labels, a sample is anomalous if its mask marks a pixel.

    Raises:
        OutputError: they do not belong to the scores and maps.
    """
    marks, labels = _first(outputs, MAPPING_FIELDS.masks), _first(outputs, MAPPING_FIELDS.labels)
    if labels is not None:
        anomalous = jnp.ravel(labels) != 0
    elif marks is not None:
        anomalous = jnp.any(marks != 0, axis=tuple(range(1, marks.ndim)))
    else:
        anomalous = None
    wanted = marks if masks else None
    require_truth(_shape(anomalous), _shape(wanted), values.scores.shape, _shape(values.maps))
    return GroundTruth(anomalous, wanted)


def _shape(value: Array | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)


def _first(outputs: Outputs, names: tuple[str, ...]) -> Array | None:
    return next((jnp.asarray(outputs[name]) for name in names if outputs.get(name) is not None), None)


def replaced(outputs: Outputs, entries: dict[str, Array]) -> dict[str, Any]:
    """A copy of ``outputs`` with these entries.

    A function, so that whatever makes the entries has refused ``outputs`` that are no mapping before they are unpacked.
    """
    return {**outputs, **entries}
