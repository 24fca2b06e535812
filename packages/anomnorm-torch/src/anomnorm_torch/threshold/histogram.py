"""How often which scores occur, in bounded memory (clause T5). See `anomnorm_core.threshold.histogram`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core.checks import label_axes
from anomnorm_core.threshold.histogram import BINS, BITS
from anomnorm_torch._tensors import arithmetic, selection
from anomnorm_torch._tiles import batch_tiles, finite_range

_SHIFT = 32 - BITS


class ScoreHistogram(NamedTuple):
    """How many pixels of either kind lie in which bin.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    normal: Tensor  #: (2^18,) int64: normal pixels per bin, in ascending order of the scores
    anomalous: Tensor  #: (2^18,) int64
    invalid: Tensor  #: () int64: NaN values left out


def init(*, device: torch.device | str = "cpu") -> ScoreHistogram:
    """An empty histogram on ``device``; 4 MB."""
    return ScoreHistogram(
        normal=torch.zeros((BINS,), dtype=torch.int64, device=device),
        anomalous=torch.zeros((BINS,), dtype=torch.int64, device=device),
        invalid=torch.zeros((), dtype=torch.int64, device=device),
    )


def update(
    record: ScoreHistogram, scores: Tensor, labels: Tensor | None = None, *, where: Tensor | None = None
) -> ScoreHistogram:
    """Add a batch of maps or scores.

    Args:
        record: what was counted so far.
        scores: real tensor of shape (B, ...), of any sign. NaN is left out and counted; infinities
            count. Values are taken in float32.
        labels: ground truth, 0 for normal and above 0 for anomalous: of the shape of ``scores`` (a channel axis of one,
            first or last, may be missing in either), or (B,) with one for all pixels of a sample. Pixels with one below
            0, or NaN, are ignored: they are not counted at all. None: all are normal.
        where: boolean tensor of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        A new histogram on the device of ``record``, which is not changed. Only on a CPU values are read, so no device
        is waited for.

    Raises:
        ValueError: shapes do not match.
    """
    x = arithmetic(scores).detach().to(torch.float32)
    anomalous, taken = None, selection(where, x)
    if labels is not None:
        marks = labels.to(x.device).reshape(label_axes(tuple(labels.shape), tuple(x.shape)))
        anomalous = (marks > 0).expand_as(x)
        known = finite_range(marks) if marks.dtype.is_signed else (0.0, 0.0)
        if known is None or known[0] < 0:
            counted = (marks >= 0).expand_as(x)
            taken = counted if taken is None else taken & counted
    # Two more bins: of what is invalid, and of what does not take part.
    counts = torch.zeros(2 * BINS + 2, dtype=torch.int64, device=x.device)
    one = torch.ones((), dtype=torch.int64, device=x.device)
    for part in batch_tiles(x, anomalous, taken):
        bins = _bins(*part).reshape(-1)
        counts.index_add_(0, bins, one.expand_as(bins))
    return merge(record, ScoreHistogram(counts[:BINS], counts[BINS : 2 * BINS], counts[2 * BINS]))


def _bins(x: Tensor, anomalous: Tensor | None, taken: Tensor | None) -> Tensor:
    bits = x.contiguous().view(torch.int32)
    # Bit patterns of floats order like integers of sign and magnitude.
    sign = bits >> 31  # 0 or -1, and x ^ -1 is -1 - x
    key = (bits & 0x7FFFFFFF).bitwise_xor_(sign).sub_(sign)
    bins = key.bitwise_right_shift_(_SHIFT).add_(BINS // 2)
    finite = finite_range(x) is not None
    if not finite:
        # The bin of -inf would hold the largest negative numbers too.
        bins.masked_fill_(x == -math.inf, 0)
    if anomalous is not None:
        bins.add_(anomalous, alpha=BINS)
    if not finite:
        bins.masked_fill_(x.isnan(), 2 * BINS)
    if taken is not None:
        bins.masked_fill_(~taken, 2 * BINS + 1)
    return bins


def merge(a: ScoreHistogram, b: ScoreHistogram) -> ScoreHistogram:
    """The histogram of the union of the data behind ``a`` and ``b``, on the device of ``a``."""
    normal, anomalous, invalid = (mine + other.to(mine.device) for mine, other in zip(a, b, strict=True))
    return ScoreHistogram(normal, anomalous, invalid)
