"""What a validation run shows of scores beside their ground truth, and its thresholds (clauses T2, T3, T5)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from anomnorm_core.checks import report_unlabelled
from anomnorm_core.errors import AnomnormError
from anomnorm_core.policy import ThresholdRule
from anomnorm_jax import threshold
from anomnorm_jax._sharding import automatic
from anomnorm_jax.outputs import GroundTruth


class ValidationRun(NamedTuple):
    """The raw image scores of a run with their labels, and its pixels in a histogram, in arrays of fixed size.

    Samples without a label count as normal.

    Laws: ``init(...)`` is the identity of ``merge``; ``merge`` is associative, and commutative but for the order of
    the scores, which does not matter.
    """

    scores: Array  # (capacity,) float32, or float64 for float64 scores: raw image scores
    anomalous: Array  # (capacity,) bool: which of them are of anomalous images
    seen: Array  # () uint32: images so far; those beyond the capacity are counted and not kept
    unlabelled: Array  # () uint32: images without a label
    masked: Array  # () uint32: images with a mask
    pixels: threshold.ScoreHistogram | None  # in decision space; None where no pixel threshold is wanted


def init(capacity: int, dtype: jnp.dtype, *, pixels: bool) -> ValidationRun:
    """An empty run with room for ``capacity`` images."""
    return ValidationRun(
        scores=jnp.zeros((capacity,), dtype=dtype),
        anomalous=jnp.zeros((capacity,), dtype=bool),
        seen=jnp.zeros((), dtype=jnp.uint32),
        unlabelled=jnp.zeros((), dtype=jnp.uint32),
        masked=jnp.zeros((), dtype=jnp.uint32),
        pixels=threshold.init() if pixels else None,
    )


@automatic
def update(run: ValidationRun, scores: Array, maps: Array | None, truth: GroundTruth) -> ValidationRun:
    """Add a batch: raw image scores (B,), maps in decision space, labels and masks. Traceable."""
    images = scores.shape[0]
    labelled = truth.anomalous is not None
    anomalous = truth.anomalous if truth.anomalous is not None else jnp.zeros((images,), dtype=bool)
    positions = run.seen + jnp.arange(images, dtype=jnp.uint32)
    pixels = run.pixels
    if pixels is not None and maps is not None:
        if truth.masks is None:  # the pixels of an anomalous image are unknown
            pixels = threshold.update(pixels, maps, where=~anomalous)
        else:
            pixels = threshold.update(pixels, maps, truth.masks)
    return ValidationRun(
        scores=run.scores.at[positions].set(scores.astype(run.scores.dtype), mode="drop"),
        anomalous=run.anomalous.at[positions].set(anomalous, mode="drop"),
        seen=run.seen + jnp.uint32(images),
        unlabelled=run.unlabelled + jnp.uint32(0 if labelled else images),
        masked=run.masked + jnp.uint32(0 if truth.masks is None or maps is None else images),
        pixels=pixels,
    )


def merge(a: ValidationRun, b: ValidationRun) -> ValidationRun:
    """The run of both; scores of ``b`` follow those of ``a``."""
    capacity = a.scores.shape[0]
    index = jnp.arange(capacity, dtype=jnp.uint32)
    positions = jnp.where(index < b.seen, a.seen + index, jnp.uint32(capacity))  # the last is dropped
    pixels = a.pixels
    if pixels is not None and b.pixels is not None:
        pixels = threshold.merge(pixels, b.pixels)
    return ValidationRun(
        scores=a.scores.at[positions].set(b.scores, mode="drop"),
        anomalous=a.anomalous.at[positions].set(b.anomalous, mode="drop"),
        seen=a.seen + b.seen,
        unlabelled=a.unlabelled + b.unlabelled,
        masked=a.masked + b.masked,
        pixels=pixels,
    )


def image_threshold(run: ValidationRun, rule: ThresholdRule, normal_quantile: float, *, positive: bool) -> Array:
    """The threshold of the raw image scores, shape (). Reads them off the device.

    Args:
        run: at its end.
        rule: how to find it.
        normal_quantile: share of the normals that is not flagged, where they alone decide.
        positive: a score that is not positive cannot be flagged.

    Raises:
        AnomnormError: there was no room for all scores.
        NotFittedError: there is no valid score that ``rule`` could go by.
    """
    seen, capacity = int(run.seen), run.scores.shape[0]
    if seen > capacity:
        raise AnomnormError(
            f"the validation run had {seen} images, and the hook keeps the scores of {capacity} to find a threshold "
            f"among them. Make the hook with capacity={seen} or more, or give it a threshold."
        )
    scores, anomalous = np.asarray(run.scores)[:seen], np.asarray(run.anomalous)[:seen]
    if positive:
        scores = np.where(scores <= 0, -np.inf, scores).astype(scores.dtype)
    # Just above a score without a logarithm there is none either.
    least = float(np.finfo(np.float32).tiny) if positive else -np.inf
    if rule is ThresholdRule.NORMAL_QUANTILE:
        return jnp.maximum(threshold.normal_quantile(scores, normal_quantile, labels=anomalous), least)
    report_unlabelled(int(run.unlabelled), seen, "the step's outputs")
    return jnp.maximum(threshold.adaptive(scores, anomalous, normal_quantile=normal_quantile), least)


def pixel_threshold(run: ValidationRun, rule: ThresholdRule, normal_quantile: float, *, searched: bool) -> Array | None:
    """The threshold of the maps in decision space, shape (); None to take that of the images (clause T6).

    Args:
        run, rule, normal_quantile: as in `image_threshold`.
        searched: whether the image threshold was found in this run too.
    """
    record = run.pixels
    if record is None or not any(jnp.any(counts > 0) for counts in record):
        return None
    if rule is ThresholdRule.NORMAL_QUANTILE:
        return threshold.streamed_normal_quantile(record, normal_quantile)
    # Without masks, the pixels are known only where every image is normal.
    anomalous = bool(jnp.any(run.anomalous[: int(run.seen)]))
    known = int(run.masked) > 0 or (searched and not anomalous)
    return threshold.streamed_adaptive(record, normal_quantile=normal_quantile) if known else None
