"""Reading and writing a step's outputs in place (clauses L4, L5)."""

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from anomnorm_core.errors import OutputError
from anomnorm_core.fields import (
    MAPS,
    PLURAL,
    SCORES,
    SINGULAR,
    Fields,
    parts_of,
    require_shapes,
    require_truth,
    shaped_as,
    spelling,
    without_last_channel,
    wrong_type,
)
from anomnorm_torch._tensors import largest_defined


class GroundTruth(NamedTuple):
    """What is known about the samples of a batch."""

    anomalous: Tensor | None  # (B,) bool
    masks: Tensor | None  # (B, 1, H, W), (B, H, W) or (B, H, W, 1); above 0 where a pixel is anomalous, below: ignored
    ignored: Tensor | None = None  # (B,) bool: neither anomalous nor normal; None: no sample is

    @property
    def normal(self) -> Tensor | None:
        """Which samples are labelled normal, shape (B,) bool; None without labels."""
        if self.anomalous is None or self.ignored is None:
            return None if self.anomalous is None else ~self.anomalous
        return ~(self.anomalous | self.ignored)


class StepOutputs:
    """The outputs of one step, whichever of the two spellings they have.

    Args:
        outputs: a mutable mapping, or an object with attributes, with ``pred_scores`` and/or ``anomaly_maps``, or with
            ``pred_score`` and/or ``anomaly_map``. It is the one that `write` changes.

    Raises:
        OutputError: neither scores nor maps are there, or they are no tensors, or both spellings are there.
    """

    given: Tensor | None  # scores as the step gave them, (B,) or (B, 1)
    maps: Tensor | None  # (B, 1, H, W) or (B, H, W)
    shaped_maps: Tensor | None  # maps as the step gave them, maybe (B, H, W, 1)

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs
        # Written out: this runs for every batch.
        find = outputs.get if isinstance(outputs, Mapping) else _attributes_of(outputs)
        scores, maps = find(PLURAL.scores), find(PLURAL.maps)
        score, map_ = find(SINGULAR.scores), find(SINGULAR.maps)
        is_plural = scores is not None or maps is not None
        if is_plural == (score is not None or map_ is not None):  # neither or both
            spelling(lambda name: find(name) is not None, outputs)
        self._fields: Fields = PLURAL if is_plural else SINGULAR
        self.given, self.maps = (scores, maps) if is_plural else (score, map_)
        self._valid = find(self._fields.valid)
        for name, value in ((self._fields.scores, self.given), (self._fields.maps, self.maps)):
            if value is not None and not isinstance(value, Tensor):
                raise wrong_type(name, type(value).__name__, "a tensor")
        self.shaped_maps = self.maps
        if self.maps is not None and self.maps.shape[-1:] == (1,):
            self.maps = without_last_channel(self.maps)

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
        if not isinstance(value, Tensor):
            with suppress(TypeError, ValueError, RuntimeError):
                value = torch.as_tensor(value)
        if not isinstance(value, Tensor) or value.numel() != len(like):
            found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise OutputError(
                f"'valid' is {found}; it must be a tensor of {len(like)} booleans, False for what only pads the batch."
            )
        return value.reshape(-1).to(device=like.device, dtype=torch.bool)

    def ground_truth(self, batch: Any, *, masks: bool) -> GroundTruth:
        """The labels and, if asked for, the masks of these outputs or else of their batch.

        Labels above 0 are anomalous, and those below 0, or NaN, ignored. Without labels, a sample is anomalous if its
        mask marks a pixel.

        Raises:
            OutputError: they are no numbers, or do not belong to the scores and maps.
        """
        labels = self._truth(batch, "labels")
        marks = self._truth(batch, "masks") if masks or labels is None else None
        anomalous = ignored = None
        if labels is not None:
            labels = labels.reshape(-1)
            anomalous = labels > 0
            if labels.dtype not in (torch.bool, torch.uint8):
                ignored = (labels >= 0).logical_not()
        elif marks is not None:
            anomalous = (marks > 0).flatten(1).any(1)
        wanted = marks if masks else None
        require_truth(_shape(anomalous), _shape(wanted), tuple(self.scores.shape), _shape(self.maps))
        return GroundTruth(anomalous, wanted, ignored)

    def _truth(self, batch: Any, kind: str) -> Tensor | None:
        of_batch = PLURAL if isinstance(batch, Mapping) else SINGULAR
        for source, fields in ((self._outputs, self._fields), (batch, of_batch)):
            for name in getattr(fields, kind):
                value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
                if value is None:
                    continue
                try:
                    return torch.as_tensor(value)
                except (TypeError, ValueError, RuntimeError) as error:
                    where = "the step's outputs" if source is self._outputs else "the batch"
                    raise wrong_type(name, type(value).__name__, "a tensor", where) from error
        return None

    def require_writable(self) -> None:
        """Raise `OutputError` for outputs that `write` could not change (clause L4)."""
        self.write({SCORES: cast("Tensor", self.given)} if self.maps is None else {MAPS: self.maps})

    def write(self, result: Mapping[str, Tensor]) -> None:
        """Take over what a normalizer gave: scores, maps, labels, masks and extras, as far as they are there.

        Names get the spelling of these outputs, and maps and masks the shape of its maps.
        """
        if self.maps is not self.shaped_maps:
            result = shaped_as(_shape(self.shaped_maps), result)
        if self._fields is not PLURAL:
            result = {self._fields.spelled(name): value for name, value in result.items()}
        is_mapping = isinstance(self._outputs, MutableMapping)
        for name, value in result.items():
            try:
                if is_mapping:
                    self._outputs[name] = value  # some mappings refuse update()
                else:
                    setattr(self._outputs, name, value)
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                raise OutputError(
                    f"cannot write {name!r} into the step's outputs ({type(self._outputs).__name__}): they are "
                    "updated in place. Return a dict, or an object whose attributes can be set."
                ) from error


def of_model(outputs: Any) -> StepOutputs:
    """What a model returns, which unlike a step's outputs may also be a tuple, or one tensor alone.

    Raises:
        OutputError: it holds neither scores nor maps.
    """
    parts: list[Any]
    if isinstance(outputs, Tensor):
        parts = [outputs]
    elif isinstance(outputs, tuple | list) and not {*getattr(outputs, "_fields", ())} & _READ:
        parts = [part for part in outputs if part is not None]
    else:
        return StepOutputs(outputs)
    kind = type(outputs).__name__
    for index, part in enumerate(parts):
        if not isinstance(part, Tensor):
            raise wrong_type(f"part {index}", type(part).__name__, "a tensor", f"the {kind} that the model returns")
    return StepOutputs(dict(zip(parts_of(kind, [part.ndim for part in parts]), parts, strict=True)))


_READ = {SCORES, MAPS, SINGULAR.scores, SINGULAR.maps}


def _attributes_of(outputs: Any) -> Callable[[str], Any]:
    return lambda name: getattr(outputs, name, None)


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)
