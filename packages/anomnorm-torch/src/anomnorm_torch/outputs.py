"""Reading and writing a step's outputs in place (clauses L4, L5)."""

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from anomnorm_core.errors import OutputError
from anomnorm_core.fields import (
    ATTRIBUTE_FIELDS,
    MAPPING_FIELDS,
    MAPS,
    SCORES,
    missing_fields,
    require_no_other_layout,
    require_shapes,
    require_truth,
    wrong_type,
)
from anomnorm_torch._tensors import largest_defined

_FIELDS = {SCORES: "scores", MAPS: "maps", MAPPING_FIELDS.pred_labels: "pred_labels"}
_FIELDS |= {MAPPING_FIELDS.pred_masks: "pred_masks"}


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

    given: Tensor | None  # scores as the step gave them, (B,) or (B, 1)
    maps: Tensor | None  # (B, 1, H, W) or (B, H, W)

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs
        # Written out: this runs for every batch.
        if isinstance(outputs, Mapping):
            self._fields = MAPPING_FIELDS
            self.given, self.maps, self._valid = outputs.get(SCORES), outputs.get(MAPS), outputs.get("valid")
            if self.given is None or self.maps is None:
                require_no_other_layout(outputs)
        else:
            self._fields = ATTRIBUTE_FIELDS
            names = (self._fields.scores, self._fields.maps, self._fields.valid)
            self.given, self.maps, self._valid = (getattr(outputs, name, None) for name in names)
        for name, value in ((self._fields.scores, self.given), (self._fields.maps, self.maps)):
            if value is not None and not isinstance(value, Tensor):
                raise wrong_type(name, type(value).__name__, "a tensor")
        if self.given is None and self.maps is None:
            found = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", ())
            raise missing_fields(type(outputs).__name__, found, attributes=True)

    @property
    def shaped_scores(self) -> Tensor:
        """Raw image scores, shape (B,) or (B, 1) as the step gave them, or (B,), the maximum of each map."""
        if self.given is None and self.maps is not None:
            require_shapes(tuple(self.maps.shape[:1]), tuple(self.maps.shape))
            return largest_defined(self.maps)
        scores = cast("Tensor", self.given)
        require_shapes(tuple(scores.shape), _shape(self.maps))
        return scores

    @property
    def scores(self) -> Tensor:
        """The same in shape (B,)."""
        return self.shaped_scores.reshape(-1)

    def valid(self, batch: Any) -> Tensor | None:
        """Which samples are no padding, shape (B,) bool, as these outputs or their batch say; None: all.

        Raises:
            OutputError: there is not one boolean for each sample.
        """
        value = self._valid
        if value is None:
            value = batch.get("valid") if isinstance(batch, Mapping) else getattr(batch, "valid", None)
        if value is None:
            return None
        like = cast("Tensor", self.maps if self.given is None else self.given)
        if not isinstance(value, Tensor) or value.numel() != len(like):
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise OutputError(
                f"'valid' is {found}; it must be a tensor of {len(like)} booleans, False for what only pads the batch."
            )
        return value.reshape(-1).to(device=like.device, dtype=torch.bool)

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

    def require_writable(self) -> None:
        """Raise `OutputError` for outputs that `write` could not change (clause L4)."""
        self.write({SCORES: self.given} if self.maps is None else {MAPS: self.maps})

    def write(self, result: Mapping[str, Tensor | None]) -> None:
        """Take over what a normalizer gave: scores, maps, labels and masks, as far as they are there."""
        if isinstance(self._outputs, MutableMapping):
            self._outputs.update(result)
            return
        for name, value in result.items():
            attribute = getattr(self._fields, _FIELDS[name])
            try:
                setattr(self._outputs, attribute, value)
            except (AttributeError, TypeError) as error:
                raise OutputError(
                    f"cannot write {attribute!r} into the step's outputs ({type(self._outputs).__name__}): they are "
                    "updated in place. Return a dict, or an object whose attributes can be set."
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
