"""Reading and writing a step's outputs in place (clauses L4, L5)."""

from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


class GroundTruth(NamedTuple):
    """What is known about the samples of a batch."""

    anomalous: Tensor | None  # (B,) bool
    masks: Tensor | None  # (B, 1, H, W) or (B, H, W); not 0 where a pixel is anomalous


class StepOutputs:
    """The outputs of one step, whichever of the two layouts they have.

    Args:
        outputs: a mutable mapping with ``pred_scores`` and/or ``anomaly_maps``, or an object with the attributes
            ``pred_score`` and/or ``anomaly_map``. It is the one that `write` changes.

    Raises:
        OutputError: neither scores nor maps are there, or they are no tensors.
    """

    scores: Tensor  # (B,); the maximum of the map where the step gave no scores
    maps: Tensor | None  # (B, 1, H, W) or (B, H, W)

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs
        if isinstance(outputs, Mapping):
            require_no_other_layout(outputs)
        self._fields: Fields = MAPPING_FIELDS if isinstance(outputs, Mapping) else ATTRIBUTE_FIELDS
        scores, self.maps = self._tensor(self._fields.scores), self._tensor(self._fields.maps)
        if scores is None:
            if self.maps is None:
                found = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", ())
                raise missing_fields(type(outputs).__name__, found, attributes=True)
            scores = self.maps.flatten(1).amax(1) if self.maps.ndim > 1 else self.maps
        self.scores = scores
        require_shapes(tuple(scores.shape), _shape(self.maps))

    def _tensor(self, name: str) -> Tensor | None:
        value = read(self._outputs, (name,))
        if value is not None and not isinstance(value, Tensor):
            raise wrong_type(name, type(value).__name__, "a tensor")
        return value

    def ground_truth(self, batch: Any, *, masks: bool) -> GroundTruth:
        """The labels and, if asked for, the masks of these outputs or else of their batch.

        Without labels, a sample is anomalous if its mask marks a pixel.

        Raises:
            OutputError: they are no numbers, or do not belong to the scores and maps.
        """
        labels = _truth(self._outputs, batch, "labels")
        marks = _truth(self._outputs, batch, "masks") if masks or labels is None else None
        if labels is not None:
            labels = labels.reshape(-1) != 0
        elif marks is not None:
            labels = (marks != 0).flatten(1).any(1)
        wanted = marks if masks else None
        require_truth(_shape(labels), _shape(wanted), tuple(self.scores.shape), _shape(self.maps))
        return GroundTruth(labels, wanted)

    def write(self, result: Mapping[str, Tensor]) -> None:
        """Take over what a normalizer gave: scores, maps, labels and masks, as far as they are there."""
        for field in fields(Fields):
            name = getattr(MAPPING_FIELDS, field.name)
            if isinstance(name, str) and name in result:
                self._set(getattr(self._fields, field.name), result[name])

    def _set(self, name: str, value: Tensor) -> None:
        if isinstance(self._outputs, MutableMapping):
            self._outputs[name] = value
            return
        try:
            setattr(self._outputs, name, value)
        except (AttributeError, TypeError) as error:
            raise OutputError(
                f"cannot write {name!r} into the step's outputs ({type(self._outputs).__name__}): they are updated in "
                "place. Return a dict, or an object whose attributes can be set."
            ) from error


def read(source: Any, names: tuple[str, ...]) -> Any:
    """The first of ``names`` that ``source`` (a mapping or an object) has and that is not None, else None."""
    for name in names:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if value is not None:
            return value
    return None


def _truth(outputs: Any, batch: Any, kind: str) -> Tensor | None:
    for source in (outputs, batch):
        fields = MAPPING_FIELDS if isinstance(source, Mapping) else ATTRIBUTE_FIELDS
        names = getattr(fields, kind)
        value = read(source, names)
        if value is not None:
            try:
                return torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                found = next(name for name in names if read(source, (name,)) is not None)
                where = "the step's outputs" if source is outputs else "the batch"
                raise wrong_type(found, type(value).__name__, "a tensor", where) from error
    return None


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)
