"""Thresholds from scores that are all at hand, as image scores are (clauses T2, T3)."""

import math

import torch
from torch import Tensor

from anomnorm_core.checks import label_axes, require_normal_samples, require_threshold_samples
from anomnorm_core.policy import may_exceed, parse_quantile
from anomnorm_torch._tensors import arithmetic
from anomnorm_torch.threshold._f1 import best


def adaptive(scores: Tensor, labels: Tensor, *, normal_quantile: float = 1.0) -> Tensor:
    """The threshold that maximizes F1 under the rule ``score >= threshold``; among equals, the largest (clause T2).

    It is the score of an anomaly, which is flagged. Without any anomaly to find, it is that of `normal_quantile`; with
    anomalies alone, it is the smallest of them, and a warning says so (clause T3).

    Args:
        scores: real tensor of shape (B,), in decision space. NaN is left out. Any sign; -inf (a CDF z-score of what
            has no logarithm) is never flagged.
        labels: tensor of shape (B,), 0 for normal samples and anything else for anomalous ones.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged.

    Returns:
        Tensor of shape () on the device of ``scores``, float64 for float64 scores and float32 for others. Reads counts
        off the device: call it once per stage.

    Raises:
        NotFittedError: there is no valid score.
        OptionError: ``normal_quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    x, normal, anomalous = _samples(scores, labels)
    negatives, positives = int(normal.sum()), int(anomalous.sum())
    require_threshold_samples(negatives, positives, x.numel() - negatives - positives)
    if positives > 0:
        limit = torch.finfo(torch.float32).max
        x_up, order = torch.where(normal | anomalous, x, -math.inf).clamp(max=limit).sort()
        y_up = anomalous[order].to(torch.int64)
        # Above and at each candidate; among equal scores the first one, which has them all.
        true_positives = positives - y_up.cumsum(0) + y_up
        flagged = torch.arange(x_up.numel(), 0, -1, device=x.device)
        candidate = x_up >= -limit
        candidate[1:] &= x_up[1:] > x_up[:-1]
        position, found = best(torch.where(candidate, true_positives, 0), flagged, torch.as_tensor(positives))
        if bool(found):
            return x_up[position]
    require_normal_samples(negatives, 0)  # no anomaly can be flagged
    return _above_quantile(x, normal, quantile)


def normal_quantile(scores: Tensor, quantile: float = 1.0, *, labels: Tensor | None = None) -> Tensor:
    """A threshold from normal scores alone: no normal at or below their ``quantile`` is flagged (clause T3).

    The quantile is the smallest score that at least this share of the normals does not exceed, and the threshold is
    the next number above it (or the smallest normal number, where that would be a subnormal one).

    Args:
        scores: real tensor of shape (B,), in decision space. NaN is left out.
        quantile: from 0 to 1; with 1, no normal is flagged.
        labels: tensor of shape (B,), 0 for normal samples, which alone count; None: all are normal.

    Returns:
        Tensor of shape () on the device of ``scores``, float64 for float64 scores and float32 for others. Reads counts
        off the device: call it once per stage.

    Raises:
        NotFittedError: there is no valid normal score.
        OptionError: ``quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    share = parse_quantile(quantile, "quantile")
    x, normal, _ = _samples(scores, torch.zeros_like(scores) if labels is None else labels)
    require_normal_samples(int(normal.sum()), int(x.isnan().sum()))
    return _above_quantile(x, normal, share)


def _samples(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = arithmetic(scores)[0].detach()
    axes = label_axes(tuple(labels.shape), tuple(x.shape))
    anomalous = (labels.to(x.device) != 0).reshape(axes).expand_as(x).reshape(-1)
    x = x.reshape(-1)
    valid = x.isnan().logical_not()
    return x, valid & ~anomalous, valid & anomalous


def _above_quantile(x: Tensor, normal: Tensor, quantile: float) -> Tensor:
    count = int(normal.sum())
    position = count - 1 - may_exceed(quantile, count)
    return _next_above(torch.where(normal, x, math.inf).sort().values[position])


def _next_above(value: Tensor) -> Tensor:
    """The finite number above ``value`` that a threshold can be: subnormal ones are zero to some devices."""
    info = torch.finfo(value.dtype)
    up = torch.nextafter(value, torch.full_like(value, math.inf))
    up = torch.where((up > 0) & (up < info.smallest_normal), info.smallest_normal, up)
    up = torch.where((up <= 0) & (up > -info.smallest_normal), 0.0, up)
    return up.clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
