"""Duplicates of data loaders, to read their data beside a training that reads them too (clause L3)."""

import copy
import logging
import random
import types
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from anomnorm_torch.framework import Trainer, is_of_lightning, part
from anomnorm_torch.processes import sharing_sampler

_VALUES = (str, bytes, int, float, complex, type(None), Enum)
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_SHARED = (*_FUNCTIONS, type, types.ModuleType, weakref.ref, nn.Module, logging.Logger, BaseContext)
_COPYING = ("__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")  # how a class has itself copied
_DUPLICATE = "_is_duplicate"  # a mark
_MANY = 100  # items of a container in which nobody keeps random generators


class NotRepeatable(Exception):  # noqa: N818 - a reason: whoever catches it says what to do
    """Why a loader cannot be read a second time without disturbing whoever reads it now."""


class Duplicates:
    """Copies of loaders that have a position, workers and random numbers of their own, and share the data.

    A loader can be of any class; that class's own ``__iter__`` reads the duplicate. Copied is what reading may change:
    the loader, loaders and samplers inside it, random generators, containers and other plain objects. Shared are data
    sets, tensors, arrays, modules and functions.

    Args:
        workers: at most so many for each loader; None: as many as it has.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers
        self._copies: dict[int, tuple[Any, Any]] = {}  # by the id of the original, which has to live as long
        self._shared: list[Any] = []
        self._path: list[str] = []  # to what is being copied
        self._drawing = 0  # samplers on the way: what is inside of them is order, not data

    def of(self, loader: Any) -> Any:
        """A duplicate of ``loader``.

        Raises:
            NotRepeatable: something in it cannot be copied, or can be read once only.
        """
        self._path, before = [type(loader).__name__], dict(self._copies)
        self._drawing = 0
        try:
            return self._copied(loader)
        except Exception as error:
            self._copies = before  # without what is half done
            if isinstance(error, NotRepeatable):
                raise
            raise NotRepeatable(f"{self._place()} cannot be copied ({error!r})") from error

    def keep(self, value: Any) -> None:
        """Let ``value`` be its own duplicate."""
        self._copies[id(value)] = value, value

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the duplicates are read: random generators inside of what they share are put back afterwards.

        So are the attributes of shared data sets that become other numbers, texts, tensors or arrays, as counters and
        previous samples do. What a data set puts into its containers stays, as in a cache, and a file that it opens.

        A `DataLoader` that a loader reaches by other ways than its attributes, as a variable of the function or the
        module that its class was defined in, is read through a duplicate too.
        """
        generators: dict[int, Any] = {}
        seen: dict[int, Any] = {}
        for value in self._shared:
            _find_generators(value, generators, seen, depth=6)
        states = [(generator, _state(generator)) for generator in generators.values()]
        data_sets = [(value, dict(vars(value))) for value in seen.values() if isinstance(value, Dataset)]
        original = DataLoader.__iter__

        def iterated(loader: DataLoader[Any]) -> Any:
            return original(loader if _DUPLICATE in vars(loader) else self.of(loader))

        DataLoader.__iter__ = iterated  # type: ignore[method-assign]
        try:
            yield
        finally:
            DataLoader.__iter__ = original  # type: ignore[method-assign]
            for generator, state in states:
                _set_state(generator, state)
            for data_set, before in data_sets:
                _put_back(vars(data_set), before)

    def _copied(self, value: Any, name: str = "") -> Any:
        if isinstance(value, _VALUES):
            return value
        if id(value) not in self._copies:
            self._path.append(name)
            draws = name in ("sampler", "batch_sampler") or isinstance(value, Sampler)
            self._drawing += draws
            self._copies[id(value)] = value, self._made(value, type(value))
            self._drawing -= draws
            self._path.pop()
        return self._copies[id(value)][1]

    def _made(self, value: Any, kind: Any) -> Any:
        if isinstance(value, torch.Generator):
            generator = torch.Generator(value.device)
            generator.set_state(value.get_state())
            return generator
        if isinstance(value, _GENERATORS):
            return copy.deepcopy(value)
        if isinstance(value, Tensor | np.ndarray):
            # A loader may shuffle its indices in place. The data have other types or more axes.
            is_indices = value.ndim == 1 and str(value.dtype).removeprefix("torch.") in ("int32", "int64")
            is_order = self._drawing > 0 or is_indices
            return copy.deepcopy(value) if is_order else value
        if isinstance(value, types.MethodType):
            owner = self._copied(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if self._is_shared(value, kind):
            self._shared.append(value)
            return value
        if isinstance(value, _BaseDataLoaderIter):
            raise NotRepeatable(f"{self._place()} is a running iterator of a DataLoader")
        if hasattr(kind, "__next__") and not hasattr(value, "__dict__"):
            raise NotRepeatable(f"{self._place()} is a {kind.__name__}, which can be read once")
        if isinstance(value, tuple | frozenset):
            items = [self._copied(item) for item in value]
            if all(mine is its for mine, its in zip(items, value, strict=True)):
                return value
            return kind._make(items) if hasattr(kind, "_make") else kind(items)
        twin = self._shallow(value, kind)
        self._copies[id(value)] = value, twin
        if twin is value:
            return value
        if isinstance(twin, list):
            twin[:] = [self._copied(item) for item in value]
        elif isinstance(twin, dict):
            twin.update({key: self._copied(item, str(key)) for key, item in value.items()})
        elif isinstance(twin, deque):
            for index, item in enumerate(value):
                twin[index] = self._copied(item)
        if isinstance(twin, DataLoader):
            self._begin_anew(twin)
        for name, item in list(getattr(twin, "__dict__", {}).items()):
            vars(twin)[name] = self._copied(item, name)  # past __setattr__: a DataLoader guards its attributes
        return twin

    def _is_shared(self, value: Any, kind: Any) -> bool:
        if isinstance(value, _SHARED):
            return True
        if len(self._path) <= 2:  # the loader itself
            return False
        if isinstance(value, (*_CONTAINERS, Sampler, DataLoader, IterableDataset)):
            return False
        if isinstance(value, Dataset):
            return not hasattr(value, "_sampler")  # Lightning makes a data set of a sampler to share it out
        is_data = hasattr(kind, "__getitem__") and hasattr(kind, "__len__") and not self._drawing
        return is_data or (is_of_lightning(kind) and not hasattr(kind, "__iter__"))

    def _shallow(self, value: Any, kind: Any) -> Any:
        # A plain object is made without asking it: it may answer for a loader inside it, by __getattr__.
        is_plain = all(getattr(kind, name, None) is getattr(object, name, None) for name in _COPYING)
        is_plain = is_plain and not any(getattr(base, "__slots__", ()) for base in kind.__mro__)
        if is_plain and hasattr(value, "__dict__") and not isinstance(value, _CONTAINERS):
            twin = object.__new__(kind)
            vars(twin).update(vars(value))
            return twin
        return (
            copy.copy(value) if hasattr(value, "__dict__") or isinstance(value, _CONTAINERS) else copy.deepcopy(value)
        )

    def _begin_anew(self, twin: DataLoader[Any]) -> None:
        attributes = vars(twin)
        attributes.update({"_iterator": None, "persistent_workers": False, _DUPLICATE: True})
        for name in [name for name in attributes if name.startswith("__pl_")]:  # for Lightning to build another one of
            del attributes[name]
        # Functions that make a batch are shared, as is the data set, unless this process iterates over it.
        shared: list[Any] = [twin.collate_fn, twin.worker_init_fn]
        if twin.num_workers > 0 or not isinstance(twin.dataset, IterableDataset):
            shared.append(twin.dataset)
        for value in shared:
            self.keep(value)
        if twin.num_workers == 0:
            self._shared += shared
        elif self._workers is not None:
            attributes["num_workers"] = min(twin.num_workers, self._workers)

    def _place(self) -> str:
        names = [name for name in self._path if name]
        return ".".join(names) if len(names) > 1 else "the loader"


def begins_anew(loader: Any) -> bool:
    """Whether a loader that is its own iterator starts at its beginning when it is iterated again; reads a batch."""
    next(iter(loader), None)
    before = dict(vars(loader))
    iter(loader)
    return any(vars(loader).get(name) is not value for name, value in before.items())


def read_all(loader: DataLoader[Any], trainer: Trainer) -> None:
    """Let a duplicate give all samples of its data set, in order, to each of several processes its share.

    Shares are made equal by repeating samples, which `OwnSamples` tells apart, because steps may wait for each other. A
    sampler that selects, and a batch sampler of another class than torch's, are used as they are.
    """
    if isinstance(loader.dataset, IterableDataset):  # it has to share itself out
        vars(loader)["drop_last"] = False
        return
    batches: Any = loader.batch_sampler
    sampler: Any = loader.sampler if batches is None else getattr(batches, "sampler", None)
    sharing: Any = sharing_sampler(loader)
    shares: Any = None
    if sharing is not None:
        # Lightning puts a sampler of the user's into one of these, as the data set that it shares out.
        sampler = getattr(sharing.dataset, "_sampler", SequentialSampler(sharing.dataset))
        shares = {"num_replicas": sharing.num_replicas, "rank": sharing.rank}
    elif trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        # A loader that the trainer has not prepared, because it does not train with it.
        shares = None if isinstance(sampler, DistributedSampler) else trainer.distributed_sampler_kwargs
    if sampler is None:
        if shares is not None:
            vars(loader)["batch_sampler"] = _share(batches, shares, trainer)
        return
    if (size := _size_of_all(sampler)) is not None:
        sampler = (
            range(size) if shares is None else DistributedSampler(cast("Any", range(size)), shuffle=False, **shares)
        )
    elif shares is not None:
        sampler = _share(sampler, shares, trainer)
    if batches is None:
        vars(loader)["sampler"] = sampler
    elif type(batches) is BatchSampler:
        vars(loader).update(batch_sampler=BatchSampler(sampler, batches.batch_size, drop_last=False), sampler=sampler)
    elif shares is not None:
        batches.sampler = sampler


def _size_of_all(sampler: Any) -> int | None:
    """The number of samples that a sampler draws from, if it draws each of them once."""
    is_random = type(sampler) is RandomSampler and not sampler.replacement
    if type(sampler) is SequentialSampler or (is_random and sampler.num_samples == len(sampler.data_source)):
        return len(sampler.data_source)
    return None


def _share(drawn: Any, shares: dict[str, int], trainer: Trainer) -> Any:
    """What this process takes of what a sampler draws, which may be something else in each process."""
    length = part(trainer, "utilities.data").sized_len(drawn)
    if not length:  # it may have no end
        return drawn
    first: list[Any] = trainer.strategy.broadcast(list(islice(drawn, length)))
    return part(trainer, "trainer.connectors.data_connector").DistributedSamplerWrapper(first, shuffle=False, **shares)


def _put_back(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    """Put back what has become another number, text, tensor or array."""
    for name, value in list(attributes.items()):
        if value is not before.get(name, attributes) and isinstance(value, (*_VALUES, Tensor, np.ndarray)):
            if name in before:
                attributes[name] = before[name]
            else:
                del attributes[name]


def _find_generators(value: Any, found: dict[int, Any], seen: dict[int, Any], depth: int) -> None:
    if depth == 0 or id(value) in seen or isinstance(value, (*_VALUES, Tensor, np.ndarray, type, types.ModuleType)):
        return
    seen[id(value)] = value
    if isinstance(value, _GENERATORS):
        found[id(value)] = value
        return
    inside = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, _CONTAINERS) and len(value) <= _MANY:
        inside += value.values() if isinstance(value, dict) else value
    elif isinstance(value, types.MethodType):
        inside.append(value.__self__)
    elif isinstance(value, types.FunctionType):
        inside += [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
    for item in inside:
        _find_generators(item, found, seen, depth - 1)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.BitGenerator):
        return generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
