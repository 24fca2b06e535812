"""Validation data and collected values when several processes share the work (clause L8)."""

from collections.abc import Iterable, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics.utilities.distributed import gather_all_tensors


def total(counts: Tensor) -> Tensor:
    """The sum of ``counts`` over all processes. Every process has to call it."""
    counts = counts.clone()
    torch.distributed.all_reduce(counts)
    return counts


def gathered(values: Tensor) -> list[Tensor]:
    """The ``values`` of all processes, which may differ in size. Every process has to call it."""
    found: list[Tensor] = gather_all_tensors(values)
    return found


def concatenated(columns: Tensor) -> Tensor:
    """The (K, N) tensors of all processes, side by side; N may differ. Every process has to call it."""
    return torch.cat(gathered(columns), dim=1)


def agreed(numbers: list[int], device: torch.device) -> list[int]:
    """The ``numbers`` of the first process: a random sampler draws others in each. Every process has to call it."""
    drawn = torch.tensor(numbers, dtype=torch.int64, device=device)
    torch.distributed.broadcast(drawn, src=0)
    return drawn.tolist()


def shard(size: int, num_replicas: int, rank: int) -> range:
    """Which of ``size`` samples are for the process ``rank`` of ``num_replicas``, none of them twice."""
    return range(rank, size, num_replicas)


def sharing_sampler(loader: Any) -> "DistributedSampler[Any] | None":
    """The sampler that shares the data of ``loader`` out by position, if it has one whose positions are known.

    These are torch's own, which Lightning puts around any other sampler too. A class derived from it may select.
    """
    for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)):
        if type(sampler) is DistributedSampler or hasattr(getattr(sampler, "dataset", None), "_sampler"):
            return cast("DistributedSampler[Any]", sampler)
    return None


def count_unpadded(loader: Iterable[Any] | None, batch_index: int, seen: int, found: int) -> int:
    """How many of the ``found`` samples of a batch are no padding.

    A `DistributedSampler` gives all processes equally many samples by repeating some at the end. They would count
    twice. Where there are more samples than it gives, positions mean nothing, and all are taken.

    Args:
        loader: that the batch comes from.
        batch_index: of the batch.
        seen: samples of this loader before the batch.
        found: samples of the batch.
    """
    sampler = sharing_sampler(loader)
    if sampler is None or not isinstance(sampler.dataset, Sized):
        return found
    own = len(shard(len(sampler.dataset), sampler.num_replicas, sampler.rank))
    if getattr(loader, "batch_sampler", None) is None:  # each sample of the data set is a batch
        return found if batch_index < own else 0
    return found if seen + found > sampler.num_samples else min(found, max(0, own - seen))
