"""What callbacks of the user's do to a validation batch and to the outputs of its step (clause L3)."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from anomnorm_torch.framework import LightningModule, Trainer
from anomnorm_torch.inference_model import copy_callback

START, END = "on_validation_batch_start", "on_validation_batch_end"
_EARLIER = ("on_validation_start", "on_validation_epoch_start")  # hooks that run before those in a validation
_NOT_OF_USERS = ("pytorch_lightning.", "lightning.", "anomnorm_torch.")
_UNINVOLVED = {"ProgressBar", "Checkpoint"}  # base classes of callbacks that leave batches to others


@dataclass(frozen=True)
class Position:
    """Of a batch in the pass, which hooks and steps may ask for."""

    index: int
    loader: int
    several: bool  # whether validation has several loaders, so that Lightning hands the loader's index on

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a hook or step as Lightning does: it may leave out the indices that it does not use."""
        parameters = list(inspect.signature(function).parameters.values())
        positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        rest, takes_any = positional[len(arguments) :], any(each.kind is each.VAR_POSITIONAL for each in parameters)
        indices = []
        if rest or takes_any:
            indices.append(self.index)
        # Another argument in this place may have a meaning of its own, and a default.
        if (takes_any and self.several) or (
            len(rest) > 1 and (self.several or rest[1].name == "dataloader_idx" or rest[1].default is rest[1].empty)
        ):
            indices.append(self.loader)
        return function(*arguments, *indices)


class UserHooks:
    """The hooks of callbacks that may change a validation batch, or the outputs before the normalization reads them.

    Those of batches always run: one may begin with a later batch. Of those of outputs, which may also show or write
    them, only the ones run that change outputs: each pass finds out, by its first batch. They run as methods of a copy
    of their callback, which keeps nothing for it.

    Args:
        callbacks: of the trainer.
        owner: the one of them that normalizes.
    """

    def __init__(self, callbacks: Sequence[Any], owner: Any) -> None:
        place = next((index for index, each in enumerate(callbacks) if each is owner), len(callbacks))
        others = [callback for callback in callbacks if callback is not owner]
        self._callbacks = {
            START: [callback for callback in others if _is_of_users(callback, START)],
            END: [callback for callback in callbacks[:place] if _is_of_users(callback, END)],
        }
        self._owner = type(owner).__name__
        self._changing: dict[int, bool] = {}  # of outputs, by position; what is not there is not known yet
        self._copies: dict[int, Any] = {}

    def begin(self) -> None:
        """A new pass: the callbacks may have changed since the last one."""
        self._copies = {}
        self._changing = {place: True for place, changes in self._changing.items() if changes}  # others are asked again

    def run(
        self, name: str, trainer: Trainer, model: LightningModule, position: Position, *given: Any, trial: bool
    ) -> None:
        """Call the hooks ``name``, which may change what is ``given``, in place.

        Args:
            name: of the hook.
            trainer: the running trainer.
            model: the duplicate that scores the batch.
            position: of the batch.
            given: the batch, or the outputs and the batch.
            trial: whether this is no validation yet, so that a hook may lack what an earlier one prepares.
        """
        for place, callback in enumerate(self._callbacks[name]):
            known = True if name == START else self._changing.get(place)
            if known is False:
                continue
            before = snapshot(given) if known is None else None
            try:
                if id(callback) not in self._copies:
                    self._copies[id(callback)] = copy_callback(callback)
                position.call(getattr(self._copies[id(callback)], name), trainer, model, *given)
            except Exception as error:
                if trial and any(_is_overridden(callback, earlier) for earlier in _EARLIER):
                    continue  # it is tried again when those have run
                error.add_note(
                    f"This was raised by {type(callback).__name__}.{name}, which {self._owner} calls as it may change "
                    "a batch: the pass over the normal data that fits the statistics has to score "
                    "what validation scores. Prepare what it needs in __init__, setup or on_fit_start."
                )
                raise
            if known is None:
                self._changing[place] = before is None or not is_same(before, given)

    @property
    def may_change_batches(self) -> bool:
        """Whether there is a hook for batches."""
        return bool(self._callbacks[START])


def _is_of_users(callback: Any, name: str) -> bool:
    is_involved = _UNINVOLVED.isdisjoint(base.__name__ for base in type(callback).__mro__)
    return is_involved and not _module_of(callback, name).startswith(_NOT_OF_USERS)


def _is_overridden(callback: Any, name: str) -> bool:
    return not _module_of(callback, name).endswith(".callbacks.callback")


def _module_of(callback: Any, name: str) -> str:
    """Where a hook was defined."""
    hook = getattr(callback, name)
    return getattr(getattr(hook, "__func__", hook), "__module__", None) or ""


def snapshot(value: Any, otherwise: Any = None) -> Any:
    """A deep copy of ``value``, or something else where there cannot be one."""
    try:
        return copy.deepcopy(value)
    except Exception:  # classes may refuse in any way
        return otherwise


def is_same(one: Any, other: Any) -> bool:
    """Whether two objects hold the same, to the last bit."""
    return _is_same(one, other, set())


def _is_same(one: Any, other: Any, compared: set[tuple[int, int]]) -> bool:
    if one is other or (id(one), id(other)) in compared:
        return True
    compared.add((id(one), id(other)))
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
            return False
        return bool(((one == other) | (one.isnan() & other.isnan())).all())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    mine, its = _parts(one), _parts(other)
    if mine is None or its is None:
        return bool(one == other)
    return mine.keys() == its.keys() and all(_is_same(mine[name], its[name], compared) for name in mine)


def _parts(value: Any) -> dict[Any, Any] | None:
    """What ``value`` consists of, by key or name; None: it is one thing."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    return vars(value) if hasattr(value, "__dict__") else None
