"""Reading a step's outputs, and returning them with new values (clauses L4, L5)."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from anomnorm_core.errors import OutputError
from anomnorm_core.fields import (
    ATTRIBUTE_FIELDS,
    MAPPING_FIELDS,
    Fields,
    missing_fields,
    require_no_other_layout,
    require_shapes,
    require_truth,
    wrong_type,
)
from anomnorm_jax._arrays import largest_defined

# A dictionary, or an object with attributes: a dataclass, a named tuple, anything that can be copied and written to.
Outputs = Any
Entries = dict[str, Array]  # what is used of them: scores, maps, label, mask, valid, under the names of a dictionary

SCORES, MAPS = MAPPING_FIELDS.scores, MAPPING_FIELDS.maps
_LABEL, _MASK, _VALID = MAPPING_FIELDS.labels[0], MAPPING_FIELDS.masks[0], MAPPING_FIELDS.valid


class Scores(NamedTuple):
    """What normalization works on."""

    scores: Array  # (B,) or (B, 1); the maximum of the map where the step gave no scores
    maps: Array | None  # (B, 1, H, W) or (B, H, W)


class GroundTruth(NamedTuple):
    """What is known about the samples of a batch."""

    anomalous: Array | None  # (B,) bool
    masks: Array | None  # (B, 1, H, W) or (B, H, W) bool: where a pixel is anomalous
    valid: Array | None  # (B,) bool: False for what only pads the batch


def used(outputs: Outputs, *, truth: bool = True) -> Entries:
    """The entries that normalization works on: a step may also return file names, which nothing can trace.

    Labels and masks are among them with ``truth``.

    Raises:
        OutputError: there are neither scores nor maps, or they are no arrays.
    """
    fields = _fields(outputs)
    if isinstance(outputs, Mapping):
        require_no_other_layout(outputs)
        there: Any = outputs
    else:
        there = {name: getattr(outputs, name, None) for name in _names(fields)}
    wanted: dict[str, tuple[str, ...]] = {SCORES: (fields.scores,), MAPS: (fields.maps,), _VALID: (fields.valid,)}
    if truth:
        wanted |= {_LABEL: fields.labels, _MASK: fields.masks}
    found = {}
    for entry, names in wanted.items():
        name = next((name for name in names if there.get(name) is not None), None)
        if name is None:
            continue
        value = there[name]
        if not hasattr(value, "dtype") or getattr(value.dtype, "kind", "O") in "OSU":
            raise wrong_type(name, type(value).__name__, "an array")
        found[entry] = value
    if not {SCORES, MAPS} & found.keys():
        listed = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", ())
        raise missing_fields(type(outputs).__name__, listed, attributes=True)
    return found


def _fields(outputs: Outputs) -> Fields:
    return MAPPING_FIELDS if isinstance(outputs, Mapping) else ATTRIBUTE_FIELDS


def _names(fields: Fields) -> tuple[str, ...]:
    return (fields.scores, fields.maps, fields.valid, *fields.labels, *fields.masks)


def read(entries: Entries) -> Scores:
    """Scores and maps of the `used` entries of a step's outputs.

    Raises:
        OutputError: their shapes are wrong.
    """
    maps = entries.get(MAPS)
    scores = entries[SCORES] if maps is None or SCORES in entries else largest_defined(maps)
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return Scores(scores, maps)


def ground_truth(entries: Entries, values: Scores, *, masks: bool) -> GroundTruth:
    """The labels and, if asked for, the masks of the `used` entries of a step's outputs.

    Without labels, a sample is anomalous if its mask marks a pixel.

    Raises:
        OutputError: they do not belong to the scores and maps.
    """
    labels, marks, valid = (
        None if value is None else jnp.asarray(value).astype(bool)
        for value in (entries.get(_LABEL), entries.get(_MASK), padding(entries))
    )
    anomalous = None if labels is None else jnp.ravel(labels)
    if anomalous is None and marks is not None:
        anomalous = jnp.any(marks, axis=tuple(range(1, marks.ndim)))
    wanted = marks if masks else None
    require_truth(_shape(anomalous), _shape(wanted), values.scores.shape, _shape(values.maps))
    return GroundTruth(anomalous, wanted, None if valid is None else jnp.ravel(valid))


def padding(entries: Entries) -> Array | None:
    """The entry that is False for what only pads a batch.

    Raises:
        OutputError: it does not belong to the scores or maps.
    """
    valid = entries.get(_VALID)
    images = next(entries[name].shape[:1] for name in (SCORES, MAPS) if name in entries)
    if valid is not None and valid.shape not in (images, (*images, 1)):
        raise OutputError(
            f"'valid' has shape {tuple(valid.shape)} and there are {(*images, 'no')[0]} image scores; it has one "
            "boolean for each of them, False for what only pads the batch."
        )
    return valid


def _shape(value: Array | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)


def replaced(outputs: Outputs, entries: Mapping[str, Array]) -> Any:
    """A copy of ``outputs`` with these entries, which have the names of a dictionary.

    Raises:
        OutputError: they are of a type that has no place for them.
    """
    if isinstance(outputs, Mapping):
        return {**outputs, **entries}
    pairs = zip(dataclasses.astuple(MAPPING_FIELDS), dataclasses.astuple(ATTRIBUTE_FIELDS), strict=True)
    names = {mine: other for mine, other in pairs if isinstance(mine, str)}
    values = {names[name]: value for name, value in entries.items()}
    try:
        if hasattr(outputs, "_replace"):
            return outputs._replace(**values)
        if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
            return dataclasses.replace(outputs, **values)
        changed = copy.copy(outputs)
        for name, value in values.items():
            setattr(changed, name, value)
    except (TypeError, ValueError, AttributeError):
        listed = ", ".join(map(repr, values))
        raise OutputError(
            f"the step's outputs are of type {type(outputs).__name__}, which has no place for {listed}. Give it those "
            "fields, or return a dictionary."
        ) from None
    return changed
