"""A duplicate of a module that shares its weights (clause L3)."""

import copy
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_MAPPINGS = (dict, OrderedDict, defaultdict)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def share_weights(module: ModuleT) -> ModuleT:
    """Duplicate ``module``: the same parameters, copies of everything that running it could change.

    Copied are the modules themselves (so the duplicate's train and eval flags are its own), buffers and other tensors,
    and Python containers. Forward hooks and other callables that are bound to a module, or close over one, are
    rebuilt for its duplicate: feature extractors often store activations that way, and would otherwise store them in
    the original. So are objects that are registered as hooks. Any other object (a trainer, a data set, hyperparameters)
    is shared, as are scripted modules.
    """
    return cast("ModuleT", _duplicate(module, {}))


def _duplicate(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    kind = type(value)
    if isinstance(value, nn.Parameter | torch.jit.ScriptModule):
        return value
    if isinstance(value, nn.Module):
        twin = object.__new__(kind)
        memo[id(value)] = twin  # before its contents, which may refer back to it
        for name, item in value.__dict__.items():
            twin.__dict__[name] = _duplicate_hooks(item, memo) if name in _HOOKS else _duplicate(item, memo)
        return twin
    if isinstance(value, Tensor):
        twin = value.detach().clone()
    elif kind in _MAPPINGS:
        twin = memo[id(value)] = kind(value.default_factory) if kind is defaultdict else kind()
        twin.update((key, _duplicate(item, memo)) for key, item in value.items())
    elif kind in (list, deque):
        twin = memo[id(value)] = [] if kind is list else deque(maxlen=value.maxlen)
        twin.extend(_duplicate(item, memo) for item in value)
    elif kind in (tuple, set):
        twin = kind(_duplicate(item, memo) for item in value)
    elif kind is weakref.ref and isinstance(value(), nn.Module):
        twin = weakref.ref(_duplicate(value(), memo))
    elif kind is types.MethodType:
        twin = types.MethodType(value.__func__, _duplicate(value.__self__, memo))
    elif kind is partial:
        keywords = {name: _duplicate(item, memo) for name, item in value.keywords.items()}
        twin = partial(_duplicate(value.func, memo), *(_duplicate(item, memo) for item in value.args), **keywords)
    elif kind is types.FunctionType and (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
        twin = _duplicate_function(value, memo)
    else:
        return value
    memo[id(value)] = twin
    return twin


def _duplicate_hooks(hooks: dict[int, Any], memo: dict[int, Any]) -> OrderedDict[int, Any]:
    return OrderedDict((key, _duplicate_hook(hook, memo)) for key, hook in hooks.items())


def _duplicate_hook(hook: Any, memo: dict[int, Any]) -> Any:
    twin = _duplicate(hook, memo)
    if twin is not hook or not hasattr(hook, "__dict__") or isinstance(hook, types.FunctionType | nn.Module | type):
        return twin
    # An object that is called: what it stores must go where the duplicate looks for it.
    twin = memo[id(hook)] = copy.copy(hook)
    twin.__dict__.update({name: _duplicate(item, memo) for name, item in hook.__dict__.items()})
    return twin


def _duplicate_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    twin = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        _duplicate(function.__defaults__, memo),
        tuple(_duplicate_cell(cell, memo) for cell in function.__closure__ or ()) or None,
    )
    twin.__kwdefaults__ = _duplicate(function.__kwdefaults__, memo)
    twin.__dict__.update(function.__dict__)
    return twin


def _duplicate_cell(cell: types.CellType, memo: dict[int, Any]) -> types.CellType:
    # Closures that share a variable share its cell, and their duplicates must too.
    if id(cell) not in memo:
        twin = memo[id(cell)] = types.CellType()
        with suppress(ValueError):  # a variable that was never assigned
            twin.cell_contents = _duplicate(cell.cell_contents, memo)
    return cast("types.CellType", memo[id(cell)])
