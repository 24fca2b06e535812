"""Validation data and collected values when several processes share the work (clause L8).

A ``group`` is one of torch.distributed; None stands for all processes.
"""

import warnings
from collections.abc import Iterable, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler
from torchmetrics.utilities.distributed import gather_all_tensors


def total(counts: Tensor, group: Any = None) -> Tensor:
    """The sum of ``counts`` over the processes of the group. Each of them has to call it."""
    counts = counts.clone()
    torch.distributed.all_reduce(counts, group=group)
    return counts


def gathered(values: Tensor, group: Any = None) -> list[Tensor]:
    """The ``values`` of the processes of the group, which may differ in size. Each of them has to call it."""
    found: list[Tensor] = gather_all_tensors(values, group)
    return found


def concatenated(columns: Tensor, group: Any = None) -> Tensor:
    """The (K, N) tensors of the processes of the group, side by side; N may differ. Each of them has to call it."""
    return torch.cat(gathered(columns, group), dim=1)


def shard(size: int, num_replicas: int, rank: int) -> range:
    """Which of ``size`` samples are for the process ``rank`` of ``num_replicas``, none of them twice."""
    return range(rank, size, num_replicas)


def sharing_sampler(loader: Any) -> "DistributedSampler[Any] | None":
    """The sampler that shares the data of ``loader`` out by position, if it has one whose positions are known.

    These are torch's own, which Lightning puts around any other sampler too. A class derived from it may select.
    """
    batches = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), getattr(batches, "sampler", None), batches):
        if type(sampler) is DistributedSampler or hasattr(getattr(sampler, "dataset", None), "_sampler"):
            return cast("DistributedSampler[Any]", sampler)
    return None


class OwnSamples:
    """How many outputs of each batch are of samples that this process has for itself, in one run through a loader.

    A `DistributedSampler` gives all processes equally many samples by repeating some at the end. They would count
    twice. A sample may have several outputs, the frames of a clip for example.

    Args:
        loader: that the batches come from.
    """

    def __init__(self, loader: Iterable[Any] | None) -> None:
        self._sampler = sharing_sampler(loader)
        if self._sampler is not None and not isinstance(self._sampler.dataset, Sized):
            self._sampler = None
        batches = getattr(loader, "batch_sampler", None)
        self._batch_size: int | None = 1  # each sample of the data set is a batch
        if batches is not None and batches is not self._sampler:  # which may form batches of any size
            is_torchs = getattr(type(batches), "__iter__", None) is BatchSampler.__iter__
            self._batch_size = batches.batch_size if is_torchs else None
        self._seen = 0  # outputs before the present batch
        self._warned = False

    def count(self, batch_index: int, found: int) -> int:
        """How many of the ``found`` outputs of a batch come first and are of own samples; the others are repeated."""
        if (sampler := self._sampler) is None:
            return found
        own = len(shard(len(cast("Sized", sampler.dataset)), sampler.num_replicas, sampler.rank))
        if self._batch_size is None:  # then each sample has one output, as far as their number allows
            before, self._seen = self._seen, self._seen + found
            return found if self._seen > sampler.num_samples else min(found, max(0, own - before))
        before = batch_index * self._batch_size
        samples = min(self._batch_size, sampler.num_samples - before)
        mine = min(samples, own - before)
        if mine == samples or samples <= 0:  # of more batches than the sampler has, positions mean nothing
            return found
        if mine > 0 and found % samples != 0:
            if not self._warned:
                warnings.warn(
                    f"{found} outputs of a batch are of {samples} samples, of which {samples - mine} only pad the "
                    "share of this process: how many outputs those have is not known, and they count twice. Use a "
                    "batch size of 1, or let each sample have equally many outputs.",
                    stacklevel=2,
                )
            self._warned = True
            return found
        return max(0, mine) * found // samples
