"""Batches whose sharding is part of their type: the explicit mode, in which ``jax.make_mesh`` makes its meshes."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import jax
from jax import Array
from jax.sharding import NamedSharding

Record = TypeVar("Record")


def automatic(update: Callable[..., Record]) -> Callable[..., Record]:
    """``update(record, ...)``, under a trace, with the sharding of its intermediate results left to the compiler.

    What adds a batch to a record reduces, cuts and scatters along the axis of the batch, which in explicit mode needs a
    sharding for each step. The record keeps the sharding that it has.
    """

    @wraps(update)
    def wrapper(record: Record, *args: Any, **kwargs: Any) -> Record:
        shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves((record, args, kwargs))]
        # Inside of shard_map, the axes that it maps over are not the compiler's to handle.
        split = (each.mesh for each in shardings if any(each.spec) and not each.mesh.manual_axes)
        mesh = next((mesh for mesh in split if mesh.explicit_axes), None)
        if mesh is None:
            return update(record, *args, **kwargs)
        own = jax.tree.map(lambda leaf: NamedSharding(mesh, jax.typeof(leaf).sharding.spec), record)
        with jax.sharding.use_abstract_mesh(mesh):
            free: Any = jax.sharding.auto_axes(lambda r, a, k: update(r, *a, **k), out_sharding=own)
            return cast("Record", free(record, args, kwargs))

    return wrapper


def varying(value: Array, *others: Array) -> Array:
    """``value``, made to vary over the axes of ``jax.shard_map`` that ``others`` vary over.

    Loops want their state to vary from the start on as it does later.
    """
    for other in others:
        first = other[(0,) * other.ndim]
        nothing = (first != first) & False
        value = value | nothing if value.dtype == bool else value + nothing.astype(value.dtype)
    return value
