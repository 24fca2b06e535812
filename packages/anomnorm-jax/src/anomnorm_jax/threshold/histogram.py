"""How often which scores occur, in bounded memory (clause T5).

A histogram whose bins are float32 numbers that share their upper 18 bits: sign, exponent and 9 bits of the significand,
so that a bin is between 0.2 and 0.4 percent of its value wide wherever it is. No range has to be known beforehand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.checks import label_axes
from anomnorm_core.threshold.histogram import BINS, BITS
from anomnorm_jax import _counter
from anomnorm_jax._arrays import arithmetic, selection
from anomnorm_jax._sharding import automatic, varying

_SHIFT = 32 - BITS
_LOWEST = -(2**31)


class ScoreHistogram(NamedTuple):
    """How many pixels of either kind lie in which bin.

    Laws: ``init()`` is the identity of ``merge``; ``merge`` is exactly associative and commutative; updating with a
    concatenation equals merging the parts.
    """

    normal: Array  #: (2, 2^18) uint32: normal pixels per bin, in ascending order of the scores (see ``_counter``)
    anomalous: Array  #: (2, 2^18) uint32
    invalid: Array  #: (2,) uint32: NaN values left out


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
        scores: real array of shape (B, ...) of less than 2^32 elements, of any sign. NaN is left out and counted;
            infinities count. Values are taken in float32.
        labels: ground truth, 0 for normal and above 0 for anomalous: of the shape of ``scores`` (a channel axis of one,
            first or last, may be missing in either), or (B,) with one for all pixels of a sample. Pixels with one below
            0, or NaN, are ignored: they are not counted at all. None: all are normal.
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        A new histogram.

    Raises:
        ValueError: shapes do not match.
    """
    x = arithmetic(scores).astype(jnp.float32)
    anomalous, taken = None, selection(where, x)
    if labels is not None:
        y = jnp.asarray(labels)
        y = jnp.broadcast_to(y.reshape(label_axes(y.shape, x.shape)), x.shape)
        zero = jnp.zeros((), y.dtype)  # of its dtype, which may be bool, for strict promotion
        anomalous = y > zero
        if not jnp.issubdtype(y.dtype, jnp.unsignedinteger) and y.dtype != bool:
            taken = taken & (y >= zero)
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
    # Bit patterns of floats order like integers of sign and magnitude.
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    key = jnp.where(bits < 0, _LOWEST - bits, bits)
    # The bin of -inf would hold the largest negative numbers too.
    bins = jnp.where(jnp.isneginf(x), 0, (key >> _SHIFT) + BINS // 2)
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
