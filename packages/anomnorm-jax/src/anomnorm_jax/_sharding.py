"""Batches whose sharding is part of their type: the explicit mode, in which ``jax.make_mesh`` makes its meshes."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from anomnorm_jax._arrays import is_traced, to_host

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


def like(example: Any, tree: Record) -> Record:
    """``tree`` on all devices that the arrays of ``example`` are on, in every process; inside of jit as it is.

    An array on one device beside arrays on many is another program, and no checkpoint over several processes has it.
    """
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(example) if not is_traced(leaf))
    meshes = (each.mesh for each in shardings if isinstance(each, NamedSharding) and each.mesh.size > 1)
    mesh = next(meshes, None)
    if mesh is None or is_traced(tree):
        return tree
    whole = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def put(leaf: Any) -> Array:
        if getattr(leaf, "sharding", None) == whole:
            return cast("Array", leaf)
        host = to_host(leaf)
        return jax.make_array_from_callback(host.shape, whole, lambda index: host[index])

    return cast("Record", jax.tree.map(put, tree))
