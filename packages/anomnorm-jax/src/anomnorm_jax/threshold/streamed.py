"""Thresholds from the pixels of any number of maps, in bounded memory (clause T5).

A histogram whose bins are float32 numbers that share their upper 18 bits: sign, exponent and 9 bits of the significand,
so that a bin is between 0.2 and 0.4 percent of its value wide wherever it is. No range has to be known beforehand.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from anomnorm_core.checks import (
    label_axes,
    report_coarse_threshold,
    require_count,
    require_normal_samples,
    require_threshold_samples,
)
from anomnorm_core.policy import QUANTILE_SLACK, parse_quantile
from anomnorm_jax import _counter
from anomnorm_jax._arrays import arithmetic, from_order_key, order_key, selection
from anomnorm_jax._sharding import automatic, varying
from anomnorm_jax.threshold._f1 import best, last

BITS = 18
BINS = 2**BITS
_SHIFT = 32 - BITS
_LARGEST = 0x7F7FFFFF  # bit pattern of the largest finite number
_SMALLEST = 0x00800000  # and of the smallest that is not subnormal


class ScoreHistogram(NamedTuple):
    """How many pixels of either kind lie in which bin.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    normal: Array  # (2, 2^18) uint32: normal pixels per bin, in ascending order of the scores (see `_counter`)
    anomalous: Array  # (2, 2^18) uint32
    invalid: Array  # (2,) uint32: NaN values left out


def init() -> ScoreHistogram:
    """An empty histogram; 4 MB."""
    return ScoreHistogram(
        normal=jnp.zeros((2, BINS), dtype=jnp.uint32),
        anomalous=jnp.zeros((2, BINS), dtype=jnp.uint32),
        invalid=_counter.zero(),
    )


@jax.jit
@automatic
def update(
    record: ScoreHistogram, scores: ArrayLike, labels: ArrayLike | None = None, *, where: ArrayLike | None = None
) -> ScoreHistogram:
    """Add a batch of maps or scores.

    Args:
        record: what was counted so far.
        scores: real array of shape (B, ...) of less than 2^32 elements, in decision space, of any sign. NaN is left out
            and counted; infinities count. Values are taken in float32.
        labels: ground truth, 0 for normal and anything else for anomalous: of the shape of ``scores`` (a channel axis
            of one may be missing in either), or (B,) with one for all pixels of a sample. None: all are normal.
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        A new histogram.

    Raises:
        ValueError: shapes do not match.
    """
    x = arithmetic(scores)[0].astype(jnp.float32)
    anomalous = None
    if labels is not None:
        y = jnp.asarray(labels)
        anomalous = jnp.broadcast_to(y.astype(bool).reshape(label_axes(y.shape, x.shape)), x.shape)
    taken = selection(where, x)
    if x.size == 0:
        return record
    start = varying(jnp.zeros((2 * BINS + 2,), dtype=jnp.uint32), *jax.tree.leaves((x, anomalous, taken)))
    if x.ndim > 1:
        # XLA for CPUs would compute what the scores come from number by number, on the way into the counts; and the
        # bins of one image stay in the cache. Others would wait for each image.
        counts = jax.lax.platform_dependent(start, x, anomalous, taken, cpu=_count_by_image, default=_count)
    else:
        counts = _count(start, x, anomalous, taken)
    counts = _counter.widened(counts)
    batch = ScoreHistogram(counts[:, :BINS], counts[:, BINS : 2 * BINS], counts[:, 2 * BINS])
    merged: ScoreHistogram = merge(record, batch)
    return merged


def _count(counts: Array, x: Array, anomalous: Array | None, taken: Array) -> Array:
    """``counts`` and how many of ``x`` are in which bin: of the normals, of the anomalous, of NaN, of the rest."""
    # Bit patterns of floats order like integers. The bin of -inf would hold the largest negative numbers too.
    bins = jnp.where(jnp.isneginf(x), 0, (order_key(x) >> _SHIFT) + BINS // 2)
    if anomalous is not None:
        bins = bins + anomalous.astype(jnp.int32) * BINS
    bins = jnp.where(taken, jnp.where(jnp.isnan(x), 2 * BINS, bins), 2 * BINS + 1)
    return counts.at[bins.ravel()].add(1, mode="promise_in_bounds")


def _count_by_image(counts: Array, x: Array, anomalous: Array | None, taken: Array) -> Array:
    """The same, one image after the other."""

    def add(so_far: Array, image: tuple[Array, Array | None, Array]) -> tuple[Array, None]:
        return _count(so_far, *image), None

    total: Array = jax.lax.scan(add, counts, (x, anomalous, taken))[0]
    return total


@jax.jit
def merge(a: ScoreHistogram, b: ScoreHistogram) -> ScoreHistogram:
    """The histogram of the union of the data behind ``a`` and ``b``."""
    return ScoreHistogram(*(_counter.add(mine, other) for mine, other in zip(a, b, strict=True)))


def streamed_adaptive(record: ScoreHistogram, *, normal_quantile: float = 1.0) -> Array:
    """The edge of a bin that maximizes F1 under ``score >= threshold``; among equals, the largest (clauses T2, T5).

    Without any anomaly to find, it is the threshold of `streamed_normal_quantile`.

    Args:
        record: pixels of a validation run.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged. Static.

    Returns:
        float32 array of shape (). A warning says where a threshold inside a bin could be notably better.

    Raises:
        NotFittedError: nothing valid was counted. Under a trace there is no value to check, nor a warning; the result
            is NaN.
        OptionError: ``normal_quantile`` is not between 0 and 1.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    threshold: Array
    threshold, possible_loss = _streamed_adaptive(record, quantile)
    if not isinstance(record.normal, Tracer):
        negatives, positives = (_counter.to_int(_total(counts)) for counts in (record.normal, record.anomalous))
        require_threshold_samples(negatives, positives, _counter.to_int(record.invalid))
        if bool(jnp.isnan(threshold)):
            require_normal_samples(0, 0)  # no anomaly can be flagged, and there is no normal to stay above
        report_coarse_threshold(float(possible_loss))
    return threshold


@partial(jax.jit, static_argnames="quantile")
def _streamed_adaptive(record: ScoreHistogram, quantile: float) -> tuple[Array, Array]:
    above = jax.lax.associative_scan(
        _counter.add, jnp.stack([record.normal, record.anomalous], 2), reverse=True, axis=1
    )
    # An edge is a candidate if its bin holds an anomaly. Bin 0 is that of -inf, which is never flagged.
    candidate = jnp.any(record.anomalous > 0, axis=0).at[0].set(False)
    # Exactly, as long as 32 bits hold the counts.
    false_positives, true_positives = above[1].T
    exact, _ = best(jnp.where(candidate, true_positives, 0), true_positives + false_positives, true_positives[0])
    alarms, hits = _counter.to_float(above).T
    total = alarms[0] + 2.0 * hits[0]
    hits = jnp.where(candidate, hits, 0.0)
    positives = jnp.maximum(_counter.to_float(above)[0, 1], 1.0)
    f1 = 2.0 * hits / (hits + alarms + positives)
    position = jnp.where(total < 2.0**30, exact, last(f1 == jnp.max(f1)))
    found = jnp.any(hits > 0)
    # At best, a threshold inside a bin would flag all anomalies of the bin and none of its normals.
    ideal = 2.0 * hits / (hits + (alarms - _counter.to_float(record.normal)) + positives)
    loss = jnp.where(found, jnp.max(ideal) - f1[position], 0.0)
    return jnp.where(found, _lower_edge(position, threshold=True), _above_quantile(record.normal, quantile)), loss


def streamed_normal_quantile(record: ScoreHistogram, quantile: float = 1.0) -> Array:
    """The first edge above the bin that holds the ``quantile`` of the normal pixels (clause T3).

    Args:
        record: pixels of a validation run; only the normal ones count.
        quantile: from 0 to 1; with 1, no normal pixel is flagged. Static.

    Returns:
        float32 array of shape ().

    Raises:
        NotFittedError: no normal pixel was counted. Under a trace there is no value to check; the result is NaN.
        OptionError: ``quantile`` is not between 0 and 1.
    """
    share = parse_quantile(quantile, "quantile")
    if not isinstance(record.normal, Tracer):
        require_normal_samples(_counter.to_int(_total(record.normal)), _counter.to_int(record.invalid))
    return _above_quantile(record.normal, share)


def streamed_quantile(record: ScoreHistogram, quantile: float) -> Array:
    """The ``quantile`` of all pixels, down to the lower edge of its bin: within 0.4 percent.

    Args:
        record: pixels of any number of maps.
        quantile: from 0 to 1. Static.

    Returns:
        float32 array of shape (): the lower edge of the bin of the smallest score that at least this share of the
        pixels does not exceed.

    Raises:
        NotFittedError: nothing valid was counted. Under a trace there is no value to check; the result is NaN.
        OptionError: ``quantile`` is not between 0 and 1.
    """
    share = parse_quantile(quantile, "quantile")
    counts = _counter.add(record.normal, record.anomalous)
    if not isinstance(counts, Tracer):
        require_count("pixel", _counter.to_int(_total(counts)), _counter.to_int(record.invalid), minimum=1)
    position, known = _quantile_bin(counts, share)
    return jnp.where(known, _lower_edge(position), jnp.nan)


@jax.jit
def _total(counts: Array) -> Array:
    return _at_or_above(counts)[:, 0]


def _at_or_above(counts: Array) -> Array:
    cumulated: Array = jax.lax.associative_scan(_counter.add, counts, reverse=True, axis=1)
    return cumulated


def _above_quantile(counts: Array, quantile: float) -> Array:
    position, known = _quantile_bin(counts, quantile)
    edge: Array = jnp.where(known, _lower_edge(position + 1, threshold=True), jnp.nan)
    return edge


@partial(jax.jit, static_argnames="quantile")
def _quantile_bin(counts: Array, quantile: float) -> tuple[Array, Array]:
    """The bin, and whether anything was counted."""
    above = _at_or_above(counts)
    numbers = _counter.to_float(above)
    # Whatever the share, not all may lie above.
    reached = (numbers > numbers[0] * ((1.0 - quantile) * QUANTILE_SLACK)) | (numbers == numbers[0])
    return jnp.sum(reached) - 1, numbers[0] > 0


def _lower_edge(position: Array, *, threshold: bool = False) -> Array:
    """The smallest finite float32 of a bin. Subnormal numbers are zero to some devices, so no threshold is one."""
    key = (position.astype(jnp.int32) - BINS // 2) << _SHIFT
    if threshold:
        key = jnp.where((key > 0) & (key < _SMALLEST), _SMALLEST, key)
        key = jnp.where((key < 0) & (key > -_SMALLEST), 0, key)
    return from_order_key(jnp.clip(key, -_LARGEST, _LARGEST))
