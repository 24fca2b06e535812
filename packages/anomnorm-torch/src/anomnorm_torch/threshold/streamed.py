"""Thresholds from the pixels of any number of maps, in bounded memory (clause T5).

A histogram whose bins are float32 numbers that share their upper 18 bits: sign, exponent and 9 bits of the significand,
so that a bin is between 0.2 and 0.4 percent of its value wide wherever it is. No range has to be known beforehand.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anomnorm_core.checks import (
    label_axes,
    report_coarse_threshold,
    require_count,
    require_normal_samples,
    require_threshold_samples,
)
from anomnorm_core.policy import may_exceed, parse_quantile
from anomnorm_torch._blocks import finite_range, pieces
from anomnorm_torch._tensors import arithmetic, selection
from anomnorm_torch.threshold._f1 import best

BITS = 18
BINS = 2**BITS
_SHIFT = 32 - BITS
_LOWEST = -(2**31)
_LARGEST = 0x7F7FFFFF  # bit pattern of the largest finite number
_SMALLEST = 0x00800000  # and of the smallest that is not subnormal


class ScoreHistogram(NamedTuple):
    """How many pixels of either kind lie in which bin.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    normal: Tensor  # (2^18,) int64: normal pixels per bin, in ascending order of the scores
    anomalous: Tensor  # (2^18,) int64
    invalid: Tensor  # () int64: NaN values left out


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
        scores: real tensor of shape (B, ...), in decision space, of any sign. NaN is left out and counted; infinities
            count. Values are taken in float32.
        labels: ground truth, 0 for normal and anything else for anomalous: of the shape of ``scores`` (a channel axis
            of one may be missing in either), or (B,) with one for all pixels of a sample. None: all are normal.
        where: boolean tensor of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        A new histogram on the device of ``record``, which is not changed. Only on a CPU values are read, so no device
        is waited for.

    Raises:
        ValueError: shapes do not match.
    """
    x = arithmetic(scores)[0].detach().to(torch.float32)
    anomalous = None
    if labels is not None:
        anomalous = (labels.to(x.device) != 0).reshape(label_axes(tuple(labels.shape), tuple(x.shape))).expand_as(x)
    taken = selection(where, x)
    # Two more bins: of what is invalid, and of what does not take part.
    counts = torch.zeros(2 * BINS + 2, dtype=torch.int64, device=x.device)
    one = torch.ones((), dtype=torch.int64, device=x.device)
    for part in pieces(x, anomalous, taken):
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


def streamed_adaptive(record: ScoreHistogram, *, normal_quantile: float = 1.0) -> Tensor:
    """The edge of a bin that maximizes F1 under ``score >= threshold``; among equals, the largest (clauses T2, T5).

    Without any anomaly to find, it is the threshold of `streamed_normal_quantile`.

    Args:
        record: pixels of a validation run.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged.

    Returns:
        float32 tensor of shape () on the device of ``record``. A warning says where a threshold inside a bin could be
        notably better. Reads counts off the device: call it once per stage.

    Raises:
        NotFittedError: nothing valid was counted.
        OptionError: ``normal_quantile`` is not between 0 and 1.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    negatives, positives = record.normal.sum(), record.anomalous.sum()
    require_threshold_samples(int(negatives), int(positives), int(record.invalid))
    # An edge is a candidate if its bin holds an anomaly. Bin 0 is that of -inf, which is never flagged.
    candidates = record.anomalous[1:].nonzero().flatten() + 1
    if len(candidates) > 0:
        true_positives, false_positives = (
            _at_or_above(counts)[candidates] for counts in (record.anomalous, record.normal)
        )
        position, _ = best(true_positives, true_positives + false_positives, positives)
        hits, alarms = true_positives[position], false_positives[position]
        # At best, a threshold inside a bin would flag all anomalies of the bin and none of its normals.
        ideal = 2 * true_positives / (true_positives + (false_positives - record.normal[candidates]) + positives)
        report_coarse_threshold(float(ideal.amax() - 2 * hits / (hits + alarms + positives)))
        return _lower_edge(candidates[position], threshold=True)
    return streamed_normal_quantile(record, quantile)


def streamed_normal_quantile(record: ScoreHistogram, quantile: float = 1.0) -> Tensor:
    """The first edge above the bin that holds the ``quantile`` of the normal pixels (clause T3).

    Args:
        record: pixels of a validation run; only the normal ones count.
        quantile: from 0 to 1; with 1, no normal pixel is flagged.

    Returns:
        float32 tensor of shape () on the device of ``record``. Reads counts off the device: call it once per stage.

    Raises:
        NotFittedError: no normal pixel was counted.
        OptionError: ``quantile`` is not between 0 and 1.
    """
    share = parse_quantile(quantile, "quantile")
    require_normal_samples(int(record.normal.sum()), int(record.invalid))
    return _lower_edge(_quantile_bin(record.normal, share) + 1, threshold=True)


def streamed_quantile(record: ScoreHistogram, quantile: float) -> Tensor:
    """The ``quantile`` of all pixels, down to the lower edge of its bin: within 0.4 percent.

    Args:
        record: pixels of any number of maps.
        quantile: from 0 to 1.

    Returns:
        float32 tensor of shape () on the device of ``record``: the lower edge of the bin of the smallest score that at
        least this share of the pixels does not exceed. Reads counts off the device.

    Raises:
        NotFittedError: nothing valid was counted.
        OptionError: ``quantile`` is not between 0 and 1.
    """
    share = parse_quantile(quantile, "quantile")
    counts = record.normal + record.anomalous
    require_count("pixel", int(counts.sum()), int(record.invalid), minimum=1)
    return _lower_edge(_quantile_bin(counts, share))


def _at_or_above(counts: Tensor) -> Tensor:
    return counts.sum() - counts.cumsum(0) + counts


def _quantile_bin(counts: Tensor, quantile: float) -> Tensor:
    return (_at_or_above(counts) > may_exceed(quantile, int(counts.sum()))).sum() - 1


def _lower_edge(position: Tensor, *, threshold: bool = False) -> Tensor:
    """The smallest finite float32 of a bin. Subnormal numbers are zero to some devices, so no threshold is one."""
    key = ((position - BINS // 2) << _SHIFT).clamp(-_LARGEST, _LARGEST)
    if threshold:
        key = torch.where((key > 0) & (key < _SMALLEST), _SMALLEST, key)
        key = torch.where((key < 0) & (key > -_SMALLEST), 0, key)
    return torch.where(key >= 0, key, _LOWEST - key).to(torch.int32).view(torch.float32)
