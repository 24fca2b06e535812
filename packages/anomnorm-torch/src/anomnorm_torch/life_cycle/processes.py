"""Validation data and collected values when several processes share the work (clause L8)."""

from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics.utilities.distributed import gather_all_tensors


def distributed() -> bool:
    """Whether this process is one of several that can talk to each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def total(counts: Tensor) -> Tensor:
    """The sum of ``counts`` over all processes. Every process has to call it."""
    if distributed():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
    return counts


def concatenated(columns: Tensor) -> Tensor:
    """The (K, N) tensors of all processes, side by side; N may differ. Every process has to call it."""
    return torch.cat(gather_all_tensors(columns), dim=1) if distributed() else columns


def shard(size: int, num_replicas: int, rank: int) -> range:
    """Which of ``size`` samples are for the process ``rank`` of ``num_replicas``, none of them twice."""
    return range(rank, size, num_replicas)


def distinct(loader: Iterable[Any] | None, batch_index: int, found: int) -> int:
    """How many of the ``found`` samples of a batch are no padding.

    A `DistributedSampler` gives all processes equally many samples by repeating some at the end. They would count
    twice. A batch that does not have the size that it should have is taken as it is.
    """
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if (
        not isinstance(sampler, DistributedSampler)
        or not isinstance(size, int)
        or not isinstance(sampler.dataset, Sized)
    ):
        return found
    start = batch_index * size
    if found != min(size, sampler.num_samples - start):
        return found
    return min(found, max(0, len(shard(len(sampler.dataset), sampler.num_replicas, sampler.rank)) - start))
