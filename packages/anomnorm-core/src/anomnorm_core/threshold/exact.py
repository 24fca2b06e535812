"""Thresholds from scores that are all at hand, as image scores are (clauses T2, T3)."""

import numpy as np

from anomnorm_core._arrays import Array, Namespace, array_namespace, quiet, widen
from anomnorm_core.checks import label_axes, require_normal_samples, require_threshold_samples
from anomnorm_core.policy import may_exceed, parse_quantile
from anomnorm_core.threshold._f1 import best


def adaptive(scores: Array, labels: Array, *, normal_quantile: float = 1.0) -> Array:
    """The threshold that maximizes F1 under the rule ``score >= threshold``; among equals, the largest (clause T2).

    It is the score of an anomaly, which is flagged. Without any anomaly to find, it is that of `normal_quantile`; with
    anomalies alone, it is the smallest of them, and a warning says so (clause T3).

    Args:
        scores: real array of shape (B,), in decision space. NaN is left out. Any sign; -inf (a CDF z-score of what has
            no logarithm) is never flagged.
        labels: array of shape (B,), 0 for normal samples and anything else for anomalous ones.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged.

    Returns:
        Array of shape (), float64 for float64 scores and float32 for others.

    Raises:
        NotFittedError: there is no valid score.
        OptionError: ``normal_quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    return _adaptive(scores, labels, quantile, xp=array_namespace(scores))


@quiet
def _adaptive(scores: Array, labels: Array, quantile: float, *, xp: Namespace) -> Array:
    x, normal, anomalous, dtype = _samples(scores, labels, xp)
    positives, negatives = (xp.sum(xp.astype(mask, xp.int64)) for mask in (anomalous, normal))
    require_threshold_samples(int(negatives), int(positives), x.shape[0] - int(positives + negatives))
    if int(positives) > 0:
        limit = float(xp.finfo(xp.float32).max)
        sortable = xp.where(normal | anomalous, x, xp.asarray(-xp.inf, dtype=x.dtype))
        order = xp.argsort(sortable)
        x_up = xp.clip(xp.take(sortable, order), max=limit)
        y_up = xp.take(xp.astype(anomalous, xp.int64), order)
        # Above and at each candidate; among equal scores the first one, which has them all.
        true_positives = positives - xp.cumulative_sum(y_up) + y_up
        flagged = x_up.shape[0] - xp.arange(x_up.shape[0], dtype=xp.int64)
        first = xp.concat([xp.asarray([True]), x_up[1:] > x_up[:-1]])
        candidate = first & (x_up >= -limit)
        position, found = best(xp.where(candidate, true_positives, 0 * flagged), flagged, positives, xp)
        if bool(found):
            return xp.astype(x_up[int(position)], dtype)
    require_normal_samples(int(negatives), 0)  # no anomaly can be flagged
    return _above_quantile(x, normal, quantile, dtype, xp)


def normal_quantile(scores: Array, quantile: float = 1.0, *, labels: Array | None = None) -> Array:
    """A threshold from normal scores alone: no normal at or below their ``quantile`` is flagged (clause T3).

    The quantile is the smallest score that at least this share of the normals does not exceed, and the threshold is
    the next number above it (or the smallest normal number, where that would be a subnormal one).

    Args:
        scores: real array of shape (B,), in decision space. NaN is left out.
        quantile: from 0 to 1; with 1, no normal is flagged.
        labels: array of shape (B,), 0 for normal samples, which alone count; None: all are normal.

    Returns:
        Array of shape (), float64 for float64 scores and float32 for others.

    Raises:
        NotFittedError: there is no valid normal score.
        OptionError: ``quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    share = parse_quantile(quantile, "quantile")
    return _normal_quantile(scores, share, labels, xp=array_namespace(scores))


@quiet
def _normal_quantile(scores: Array, quantile: float, labels: Array | None, *, xp: Namespace) -> Array:
    x, normal, _, dtype = _samples(scores, xp.zeros_like(scores) if labels is None else labels, xp)
    require_normal_samples(int(xp.sum(xp.astype(normal, xp.int64))), int(xp.sum(xp.astype(xp.isnan(x), xp.int64))))
    return _above_quantile(x, normal, quantile, dtype, xp)


def _samples(scores: Array, labels: Array, xp: Namespace) -> tuple[Array, Array, Array, Array]:
    x, dtype, _ = widen(scores, xp)
    shape = label_axes(tuple(labels.shape), tuple(x.shape))
    anomalous = xp.reshape(xp.broadcast_to(xp.reshape(xp.astype(labels, xp.bool), shape), x.shape), (-1,))
    x = xp.reshape(x, (-1,))
    valid = ~xp.isnan(x)
    return x, valid & ~anomalous, valid & anomalous, dtype


def _above_quantile(x: Array, normal: Array, quantile: float, dtype: Array, xp: Namespace) -> Array:
    count = int(xp.sum(xp.astype(normal, xp.int64)))
    position = count - 1 - may_exceed(quantile, count)
    value = xp.sort(xp.where(normal, x, xp.asarray(xp.inf, dtype=x.dtype)))[position]
    return _next_above(xp.astype(value, dtype), xp)


def _next_above(value: Array, xp: Namespace) -> Array:
    """The finite number above ``value`` that a threshold can be: subnormal ones are zero to some devices."""
    info = xp.finfo(value.dtype)
    up = xp.nextafter(value, xp.asarray(np.inf, dtype=value.dtype))
    up = xp.where((up > 0) & (up < info.smallest_normal), xp.asarray(info.smallest_normal, dtype=value.dtype), up)
    up = xp.where((up <= 0) & (up > -info.smallest_normal), xp.zeros_like(up), up)
    return xp.clip(up, -float(xp.finfo(xp.float32).max), float(xp.finfo(xp.float32).max))
