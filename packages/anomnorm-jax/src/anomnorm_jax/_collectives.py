"""Merging records over the shards of a mesh axis, inside of ``jax.shard_map``."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Record = TypeVar("Record")


def all_merge(record: Record, axis_name: str, merge: Callable[[Record, Record], Record]) -> Record:
    """The ``merge`` of the records of all shards, in their order: the same on each of them.

    Pairs are merged with pairs, so that the depth is logarithmic in the number of shards.
    """
    shards = int(jax.lax.psum(1, axis_name))  # type: ignore[no-untyped-call]  # of a constant it is one
    gathered = jax.tree.map(lambda leaf: _gather(leaf, axis_name, shards), record)
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i], gathered) for i in range(shards)]
    while len(parts) > 1:
        pairs = [merge(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[2 * len(pairs) :]
    merged: Record = parts[0]
    return merged


def _gather(leaf: Array, axis_name: str, shards: int) -> Array:
    # A sum, and not all_gather, whose result counts as different on each shard.
    own = jnp.arange(shards).reshape(-1, *[1] * leaf.ndim) == jax.lax.axis_index(axis_name)
    summed: Array = jax.lax.psum(jnp.where(own, leaf[None], jnp.zeros_like(leaf)[None]), axis_name)  # type: ignore[no-untyped-call]
    return summed.astype(leaf.dtype)
