"""Thresholds from scores that are all at hand, as image scores are (clauses T2, T3)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import label_axes, require_normal_samples, require_threshold_samples
from anomnorm_core.policy import QUANTILE_SLACK, parse_quantile
from anomnorm_jax._arrays import arithmetic, from_order_key, order_key
from anomnorm_jax.threshold._f1 import best


def adaptive(scores: ArrayLike, labels: ArrayLike, *, normal_quantile: float = 1.0) -> Array:
    """The threshold that maximizes F1 under the rule ``score >= threshold``; among equals, the largest (clause T2).

    It is the score of an anomaly, which is flagged. Without any anomaly to find, it is that of `normal_quantile`; with
    anomalies alone, it is the smallest of them, and a warning says so (clause T3).

    Args:
        scores: real array of shape (B,) of less than 2^29 elements, in decision space. NaN is left out. Any sign; -inf
            (a CDF z-score of what has no logarithm) is never flagged.
        labels: array of shape (B,), 0 for normal samples and anything else for anomalous ones.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged. Static.

    Returns:
        Array of shape (), float64 for float64 scores and float32 for others.

    Raises:
        NotFittedError: there is no valid score. Under a trace there is no value to check, nor a warning; the result is
            NaN.
        OptionError: ``normal_quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    key, normal, anomalous = _samples(scores, labels)
    if not isinstance(key, Tracer):
        negatives, positives = int(jnp.sum(normal)), int(jnp.sum(anomalous))
        require_threshold_samples(negatives, positives, key.size - negatives - positives)
    threshold: Array = _adaptive(key, normal, anomalous, quantile)
    if not isinstance(key, Tracer) and bool(jnp.isnan(threshold)):
        require_normal_samples(0, 0)  # no anomaly can be flagged, and there is no normal to stay above
    return threshold


@partial(jax.jit, static_argnames="quantile")
def _adaptive(key: Array, normal: Array, anomalous: Array, quantile: float) -> Array:
    if key.size == 0:
        return jnp.asarray(_above_quantile(key, normal, quantile))
    largest = _largest(key)
    lowest = jnp.iinfo(key.dtype).min  # type: ignore[no-untyped-call]
    sortable = jnp.where(normal | anomalous, jnp.minimum(key, largest), lowest)
    key_up, y_up = jax.lax.sort((sortable, anomalous.astype(jnp.uint32)), num_keys=1)
    positives = jnp.sum(y_up, dtype=jnp.uint32)
    # Above and at each candidate; among equal scores the first one, which has them all.
    true_positives = positives - jnp.cumsum(y_up, dtype=jnp.uint32) + y_up
    flagged = (key_up.size - jnp.arange(key_up.size)).astype(jnp.uint32)
    first = jnp.concatenate([jnp.ones((1,), dtype=bool), key_up[1:] > key_up[:-1]])
    candidate = first & (key_up >= -largest)
    position, found = best(jnp.where(candidate, true_positives, 0), flagged, positives)
    return jnp.where(found, from_order_key(key_up[position]), _above_quantile(key, normal, quantile))


def normal_quantile(scores: ArrayLike, quantile: float = 1.0, *, labels: ArrayLike | None = None) -> Array:
    """A threshold from normal scores alone: no normal at or below their ``quantile`` is flagged (clause T3).

    The quantile is the smallest score that at least this share of the normals does not exceed, and the threshold is
    the next number above it (or the smallest normal number, where that would be a subnormal one).

    Args:
        scores: real array of shape (B,), in decision space. NaN is left out.
        quantile: from 0 to 1; with 1, no normal is flagged. Static.
        labels: array of shape (B,), 0 for normal samples, which alone count; None: all are normal.

    Returns:
        Array of shape (), float64 for float64 scores and float32 for others.

    Raises:
        NotFittedError: there is no valid normal score. Under a trace there is no value to check; the result is NaN.
        OptionError: ``quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    share = parse_quantile(quantile, "quantile")
    key, normal, _ = _samples(scores, jnp.zeros(jnp.shape(scores), dtype=bool) if labels is None else labels)
    if not isinstance(key, Tracer):
        require_normal_samples(int(jnp.sum(normal)), int(jnp.sum(jnp.isnan(jnp.asarray(scores)))))
    threshold: Array = _above_quantile(key, normal, share)
    return threshold


def _samples(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array, Array]:
    # Keys instead of floats: XLA on CPU takes subnormal numbers for zero, also when sorting.
    x, _ = arithmetic(scores)
    y = jnp.asarray(labels)
    anomalous = jnp.broadcast_to(y.astype(bool).reshape(label_axes(y.shape, x.shape)), x.shape).ravel()
    valid = ~jnp.isnan(x.ravel())
    return order_key(x.ravel()), valid & ~anomalous, valid & anomalous


@partial(jax.jit, static_argnames="quantile")
def _above_quantile(key: Array, normal: Array, quantile: float) -> Array:
    count = jnp.sum(normal, dtype=jnp.int32)
    if key.size == 0:
        return jnp.full_like(from_order_key(jnp.zeros((), key.dtype)), jnp.nan)
    above = jnp.floor(count.astype(jnp.float32) * ((1.0 - quantile) * QUANTILE_SLACK)).astype(jnp.int32)
    position = count - 1 - jnp.minimum(above, count - 1)
    last = jnp.iinfo(key.dtype).max  # type: ignore[no-untyped-call]
    value = jnp.sort(jnp.where(normal, key, last))[position]
    threshold = from_order_key(_next_above(value))
    return jnp.where(count > 0, threshold, jnp.nan).astype(threshold.dtype)


def _next_above(key: Array) -> Array:
    """The key of the finite number above that a threshold can be: subnormal ones are zero to some devices."""
    smallest = _key_of(key, jnp.finfo(jnp.float64 if key.dtype == jnp.int64 else jnp.float32).tiny)  # type: ignore[no-untyped-call]
    up = key + 1
    up = jnp.where((up > 0) & (up < smallest), smallest, up)
    up = jnp.where((up <= 0) & (up > -smallest), 0, up)
    return jnp.clip(up, -_largest(key), _largest(key))


def _largest(key: Array) -> Array:
    """The key of the largest number of float32, which every threshold is within."""
    return _key_of(key, jnp.finfo(jnp.float32).max)  # type: ignore[no-untyped-call]


def _key_of(key: Array, number: Any) -> Array:
    dtype = jnp.float64 if key.dtype == jnp.int64 else jnp.float32
    return order_key(jnp.asarray(number, dtype=dtype))
