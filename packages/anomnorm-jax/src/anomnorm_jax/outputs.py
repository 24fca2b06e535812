"""Reading a step's outputs, and returning them with new values (clauses L4, L5)."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from anomnorm_core.errors import OutputError
from anomnorm_core.fields import (
    MAPS,
    PLURAL,
    SCORES,
    Fields,
    require_shapes,
    require_truth,
    spelling,
    without_last_channel,
    wrong_type,
)
from anomnorm_core.threshold.choice import ANOMALOUS, IGNORED, NORMAL
from anomnorm_jax._arrays import largest_defined

# A dictionary, or an object with attributes: a dataclass, a named tuple, anything that can be copied and written to.
Outputs = Any
Entries = dict[str, Array]  # what is used of them: scores, maps, label, mask, valid, under their names in the plural

_LABEL, _MASK, _VALID = PLURAL.labels[0], PLURAL.masks[0], PLURAL.valid


class Scores(NamedTuple):
    """What normalization works on."""

    scores: Array  # (B,) or (B, 1); the maximum of the map where the step gave no scores
    maps: Array | None  # (B, 1, H, W) or (B, H, W)


class GroundTruth(NamedTuple):
    """What is known about the samples of a batch."""

    labels: Array | None  # (B,) uint8: NORMAL, ANOMALOUS or IGNORED
    masks: Array | None  # (B, 1, H, W) or (B, H, W): 0 for normal pixels, above for anomalous, below for ignored ones
    valid: Array | None  # (B,) bool: False for what only pads the batch


def used(outputs: Outputs, *, truth: bool = True) -> Entries:
    """The entries that normalization works on: a step may also return file names, which nothing can trace.

    Labels and masks are among them with ``truth``.

    Raises:
        OutputError: there are neither scores nor maps, or they are no arrays, or of two spellings.
    """
    fields = _fields(outputs)
    wanted: dict[str, tuple[str, ...]] = {SCORES: (fields.scores,), MAPS: (fields.maps,), _VALID: (fields.valid,)}
    if truth:
        wanted |= {_LABEL: fields.labels, _MASK: fields.masks}
    found = {}
    for entry, names in wanted.items():
        name = next((name for name in names if _value(outputs, name) is not None), None)
        if name is None:
            continue
        value = _value(outputs, name)
        if not hasattr(value, "dtype") or getattr(value.dtype, "kind", "O") in "OSU":
            raise wrong_type(name, type(value).__name__, "an array")
        found[entry] = value
    return found


def _fields(outputs: Outputs) -> Fields:
    """How the outputs spell their names."""
    unnamed = isinstance(outputs, list | tuple) and not hasattr(outputs, "_fields")
    if unnamed or isinstance(outputs, np.ndarray | Array | jax.ShapeDtypeStruct):
        raise OutputError(
            f"the step's outputs ({type(outputs).__name__}) do not say which of them are scores and which maps. "
            "Return a dict, {'pred_scores': scores, 'anomaly_maps': maps} or one of them, or a named tuple or "
            "dataclass with these fields."
        )
    return spelling(lambda name: _value(outputs, name) is not None, outputs)


def _value(outputs: Outputs, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def read(entries: Entries) -> Scores:
    """Scores and maps of the `used` entries of a step's outputs.

    Raises:
        OutputError: their shapes are wrong.
    """
    maps = entries.get(MAPS)
    if maps is not None and SCORES not in entries:
        require_shapes(maps.shape[:1], maps.shape)
    scores = entries[SCORES] if maps is None or SCORES in entries else largest_defined(maps)
    require_shapes(scores.shape, None if maps is None else maps.shape)
    return Scores(scores, None if maps is None else without_last_channel(maps))


def ground_truth(entries: Entries, values: Scores, *, masks: bool) -> GroundTruth:
    """The labels and, if asked for, the masks of the `used` entries of a step's outputs.

    Labels are 0 for normal samples, above 0 for anomalous ones, and below 0, or NaN, for those that are ignored.
    Without labels, a sample is anomalous if its mask marks a pixel.

    Raises:
        OutputError: they do not belong to the scores and maps.
    """
    labels, marks = entries.get(_LABEL), entries.get(_MASK)
    known = None if labels is None else _known(labels)
    if known is None and marks is not None:
        known = jnp.any(_known(marks) == jnp.uint8(ANOMALOUS), axis=tuple(range(1, marks.ndim))).astype(jnp.uint8)
    wanted = without_last_channel(jnp.asarray(marks)) if masks and marks is not None else None
    known = None if known is None else jnp.ravel(known)
    require_truth(_shape(known), _shape(wanted), values.scores.shape, _shape(values.maps))
    valid = padding(entries)
    return GroundTruth(known, wanted, None if valid is None else jnp.asarray(valid))


def _known(labels: Array) -> Array:
    """Labels or masks of any dtype as NORMAL, ANOMALOUS and IGNORED."""
    values = jnp.asarray(labels)
    if values.dtype == bool:
        return values.astype(jnp.uint8)
    zero = jnp.zeros((), values.dtype)
    below = jnp.where(values == zero, jnp.uint8(NORMAL), jnp.uint8(IGNORED))  # NaN too
    return jnp.where(values > zero, jnp.uint8(ANOMALOUS), below)


def padding(entries: Entries) -> Array | None:
    """The entry that is False for what only pads a batch, of shape (B,).

    Raises:
        OutputError: it does not belong to the scores or maps.
    """
    valid = entries.get(_VALID)
    if valid is None:
        return None
    images = next(entries[name].shape[:1] for name in (SCORES, MAPS) if name in entries)
    if valid.shape not in (images, (*images, 1)):
        raise OutputError(
            f"'valid' has shape {tuple(valid.shape)} and there are {(*images, 'no')[0]} image scores; it has one "
            "boolean for each of them, False for what only pads the batch."
        )
    flat: Array = valid.reshape(images).astype(bool)
    return flat


def _shape(value: Array | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)


def replaced(outputs: Outputs, entries: Mapping[str, Array]) -> Any:
    """A copy of ``outputs`` with these entries, whose names in the plural are spelled as the outputs spell them.

    Raises:
        OutputError: they are of a type that has no place for them.
    """
    fields = _fields(outputs)
    values = {fields.spelled(name): value for name, value in entries.items()}
    if isinstance(outputs, Mapping):
        changed = {**outputs, **values}
        try:
            return type(outputs)(changed)  # type: ignore[call-arg]  # as a FrozenDict or an OrderedDict takes them
        except TypeError:
            return changed
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
