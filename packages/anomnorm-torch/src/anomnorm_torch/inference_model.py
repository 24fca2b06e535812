"""A duplicate of a module that shares its weights, or a module that is used in place of one (clause L3)."""

import copy
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from anomnorm_torch.framework import LightningModule, Trainer

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_MAPPINGS = (dict, OrderedDict, defaultdict)
_SEQUENCES = (list, tuple, set, deque)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_COPYING = ("__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


def create_inference_model(pl_module: LightningModule) -> LightningModule:
    """Create a duplicate of the module that can be used to perform inference on the training set.

    It shares the parameters, has copies of the buffers, is in evaluation mode and logs nothing, so that using it leaves
    no trace in the module.
    """
    model = share_weights(cast("nn.Module", pl_module))
    model.eval()
    for name in ("log", "log_dict"):
        object.__setattr__(model, name, _log_nothing)
    return cast("LightningModule", model)


@contextmanager
def as_inference_model(pl_module: LightningModule) -> Iterator[LightningModule]:
    """The module itself, to perform inference where it can have no duplicate; afterwards it is what it was before."""
    with undisturbed(cast("nn.Module", pl_module)):
        pl_module.eval()
        for name in ("log", "log_dict"):
            object.__setattr__(pl_module, name, _log_nothing)
        yield pl_module


def _log_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stands in for ``LightningModule.log`` in the duplicate."""


def share_weights(module: ModuleT, package: str | None = None) -> ModuleT:
    """Duplicate ``module``: the same parameters, copies of everything that running it could change.

    Copied are the modules themselves (so the duplicate's train and eval flags are its own), buffers and other tensors,
    Python containers, objects that are registered as hooks, and plain objects of classes from the package that the
    module's own class is from, a memory bank for example. Hooks and other functions that close over a module are made
    anew for its duplicate: feature extractors often store activations that way, and would otherwise store them in the
    original. Any other object (a trainer, a data set, those of other packages) is shared, as are scripted modules.

    Args:
        module: to duplicate.
        package: whose plain objects are copied; None: that of the module's class.
    """
    prepared = _Prepared(module, package or package_of(module))
    twin = copy.deepcopy(module, prepared.memo)
    prepared.fill_functions()
    for mine, its in zip(module.modules(), twin.modules(), strict=True):
        for name, value in vars(mine).items():
            if name == "_trainer":  # Lightning leaves it out of copies
                vars(its)[name] = value
            elif type(value) is weakref.ref:
                vars(its)[name] = prepared.copied(value)
    return twin


def copy_callback(callback: Any) -> Any:
    """Duplicate a callback so that running it leaves no trace in it: its modules, tensors and containers are copies."""
    if isinstance(callback, nn.Module):
        return share_weights(callback)
    holder: Any = nn.Module()
    modules = {name: value for name, value in vars(callback).items() if isinstance(value, nn.Module)}
    holder._modules.update(modules)
    holder.others = {name: value for name, value in vars(callback).items() if name not in modules}
    copied = share_weights(holder, package_of(callback))
    twin = copy.copy(callback)
    vars(twin).update(copied._modules | copied.others)
    return twin


def take_buffers(model: LightningModule, trainer: Trainer) -> None:
    """Give ``model`` the buffers that it has in the first process, which the checkpoint will have. All have to call it.

    They may differ: each process has normalized or gathered with its own share of the data.
    """
    found = model.named_buffers(remove_duplicate=False)
    own = {name: buffer for name, buffer in found if not hasattr(buffer, "to_local")}  # that would be a part
    layout = [(name, tuple(buffer.shape), buffer.dtype) for name, buffer in own.items()]
    for name, shape, dtype in trainer.strategy.broadcast(layout):
        buffer = own.get(name)
        sent = torch.empty(shape, dtype=dtype, device=model.device)
        if trainer.global_rank == 0 and buffer is not None:
            sent.copy_(buffer)
        torch.distributed.broadcast(sent.reshape(-1).view(torch.uint8), src=0)
        if buffer is not None and (tuple(buffer.shape), buffer.dtype) == (shape, dtype):
            buffer.copy_(sent)
        else:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path).register_buffer(leaf, sent)


def package_of(value: Any) -> str:
    """The package that the class of ``value`` is from."""
    return type(value).__module__.partition(".")[0]


def is_own(value: Any, package: str) -> bool:
    """Whether ``value`` is a plain object of a class from this package, and no data."""
    kind = type(value)
    return (
        kind.__module__.partition(".")[0] == package
        and hasattr(value, "__dict__")
        and not isinstance(value, type | nn.Module | Dataset | DataLoader | Enum)
        and all(getattr(kind, name, None) is getattr(object, name, None) for name in _COPYING)
        and all(base.__module__.partition(".")[0] in (package, "abc", "typing") for base in kind.__mro__[:-1])
    )


class _Prepared:
    """A memo for `copy.deepcopy`, with what that would copy and should not, or should and would not."""

    def __init__(self, module: nn.Module, package: str) -> None:
        self.memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
        self._package = package
        self._functions: list[tuple[types.FunctionType, types.FunctionType]] = []
        self._seen: set[int] = set()
        for part in module.modules():
            if isinstance(part, torch.jit.ScriptModule):
                self.memo[id(part)] = part
                continue
            for name, value in vars(part).items():
                self._add(value, hooks=name in _HOOKS)

    def _add(self, value: Any, *, hooks: bool = False) -> None:
        kind = type(value)
        if id(value) in self.memo or id(value) in self._seen or isinstance(value, nn.Module):
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self.memo[id(value)] = value.detach().clone()  # deepcopy refuses what a gradient runs through
        elif kind in _MAPPINGS or kind in _SEQUENCES:
            for item in value.values() if kind in _MAPPINGS else value:
                self._add(item, hooks=hooks)
        elif kind is types.MethodType:
            self._add(value.__self__)
        elif kind is partial:
            for item in (value.func, *value.args, *value.keywords.values()):
                self._add(item)
        elif kind is types.FunctionType and (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
            self._add_function(value)
        elif (hooks and hasattr(value, "__dict__")) or is_own(value, self._package):
            # What it stores must go where the duplicate looks for it.
            self._add(vars(value))
        else:
            self.memo[id(value)] = value

    def _add_function(self, function: types.FunctionType) -> None:
        # Filled when the duplicates exist that it closes over. Closures that share a variable share its cell.
        closure = function.__closure__ or ()
        cells = tuple(self.memo.setdefault(id(cell), types.CellType()) for cell in closure)
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        made.__dict__.update(function.__dict__)
        self.memo[id(function)] = made
        self._functions.append((function, made))
        for cell in closure:
            with suppress(ValueError):  # a variable that was never assigned
                self._add(cell.cell_contents)
        self._add(function.__defaults__)
        self._add(function.__kwdefaults__)

    def fill_functions(self) -> None:
        """Give the new functions what they close over, now that there are duplicates of it."""
        for function, made in self._functions:
            made.__defaults__ = self.copied(function.__defaults__)
            made.__kwdefaults__ = self.copied(function.__kwdefaults__)
            for cell, empty in zip(function.__closure__ or (), made.__closure__ or (), strict=True):
                with suppress(ValueError):
                    empty.cell_contents = self.copied(cell.cell_contents)

    def copied(self, value: Any) -> Any:
        """What stands for ``value`` in the duplicate."""
        if type(value) is weakref.ref and isinstance(value(), nn.Module) and id(value()) in self.memo:
            return weakref.ref(self.memo[id(value())])
        return copy.deepcopy(value, self.memo)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put back, in place, what running ``module`` changes: all that its duplicate would have had for itself.

    Parameters are left to the strategy, as are modules of its own.
    """
    before = _Before(package_of(module))
    for part in module.modules():
        before.restoring.append(partial(setattr, part, "training", part.training))
        if isinstance(part, torch.jit.ScriptModule) or type(part).__module__.startswith("torch.distributed."):
            before.add(list(part.buffers(recurse=False)))
        else:
            before.known.add(id(part._parameters))
            before.add(vars(part))
    try:
        yield
    finally:
        for restore_one in before.restoring:
            restore_one()


class _Before:
    """What tensors, containers and closures hold now."""

    def __init__(self, package: str) -> None:
        self._package = package
        self.restoring: list[Callable[[], object]] = []
        self.known: set[int] = set()
        self._kept: list[Any] = []  # so that an id stays that of one object

    def add(self, value: Any) -> None:
        """Add ``value`` and what it holds."""
        kind = type(value)
        if id(value) in self.known or isinstance(value, nn.Module | nn.Parameter):
            return
        self.known.add(id(value))
        self._kept.append(value)
        if isinstance(value, Tensor):
            self.restoring.append(partial(_put, value, value.detach().clone()))
        elif kind in _MAPPINGS or kind in _SEQUENCES:
            if kind is not tuple:
                self.restoring.append(partial(_refill, value, copy.copy(value)))
            for item in list(value.values() if kind in _MAPPINGS else value):
                self.add(item)
        elif kind is types.MethodType:
            self.add(value.__self__)
        elif kind is types.FunctionType:
            for part in (value.__closure__, value.__defaults__, value.__kwdefaults__):
                self.add(part)
        elif kind is types.CellType:
            with suppress(ValueError):  # a variable that was never assigned
                content = value.cell_contents
                self.restoring.append(partial(setattr, value, "cell_contents", content))
                self.add(content)
        elif is_own(value, self._package):
            self.add(vars(value))


@torch.no_grad()
def _put(tensor: Tensor, content: Tensor) -> None:
    tensor.copy_(content)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(content)
