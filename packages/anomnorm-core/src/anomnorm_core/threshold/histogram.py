"""How often which scores occur, in bounded memory (clause T5).

A histogram whose bins are float32 numbers that share their upper 18 bits: sign, exponent and 9 bits of the significand,
so that a bin is between 0.2 and 0.4 percent of its value wide wherever it is. No range has to be known beforehand.
"""

from typing import NamedTuple

import numpy as np

from anomnorm_core._arrays import Array, Namespace, array_namespace
from anomnorm_core.checks import label_axes, require_mask

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

    normal: Array  #: (2^18,) int64: normal pixels per bin, in ascending order of the scores
    anomalous: Array  #: (2^18,) int64
    invalid: Array  #: () int64: NaN values left out


def init(*, xp: Namespace = np) -> ScoreHistogram:
    """An empty histogram, arrays of the namespace ``xp``; 4 MB."""
    return ScoreHistogram(
        normal=xp.zeros((BINS,), dtype=xp.int64),
        anomalous=xp.zeros((BINS,), dtype=xp.int64),
        invalid=xp.asarray(0, dtype=xp.int64),
    )


def update(
    record: ScoreHistogram, scores: Array, labels: Array | None = None, *, where: Array | None = None
) -> ScoreHistogram:
    """Add a batch of maps or scores.

    Args:
        record: what was counted so far.
        scores: real array of shape (B, ...), of any sign. NaN is left out and counted; infinities
            count. Values are taken in float32.
        labels: ground truth, 0 for normal and above 0 for anomalous: of the shape of ``scores`` (a channel axis of one,
            first or last, may be missing in either), or (B,) with one for all pixels of a sample. Pixels with one below
            0, or NaN, are ignored: they are not counted at all. None: all are normal.
        where: boolean array of shape (B,): samples that take part. The others are not counted at all.

    Returns:
        A new histogram; ``record`` is not changed.

    Raises:
        ValueError: shapes do not match.
    """
    xp = array_namespace(scores)
    # The standard has neither bit patterns nor counting; NumPy has.
    with np.errstate(over="ignore"):
        x = np.from_dlpack(xp.asarray(scores)).astype(np.float32)
    marks = np.zeros((), dtype=bool)
    if labels is not None:
        marks = np.from_dlpack(xp.asarray(labels))
        marks = marks.reshape(label_axes(marks.shape, x.shape))
    marks = np.broadcast_to(marks, x.shape)
    if where is not None:
        require_mask(tuple(where.shape), x.shape[0])
        taken = np.from_dlpack(xp.asarray(where)).astype(bool)
        x, marks = x[taken], marks[taken]
    if marks.dtype.kind not in "bu" and not np.all(marks >= 0):
        x, marks = x[marks >= 0], marks[marks >= 0]
    invalid, anomalous = np.isnan(x), marks > 0
    bins = _bin_of(x)
    counts = [np.bincount(bins[mask & ~invalid], minlength=BINS) for mask in (~anomalous, anomalous)]
    batch = ScoreHistogram(*(xp.asarray(count.astype(np.int64)) for count in (*counts, invalid.sum())))
    return merge(record, batch)


def merge(a: ScoreHistogram, b: ScoreHistogram) -> ScoreHistogram:
    """The histogram of the union of the data behind ``a`` and ``b``."""
    return ScoreHistogram(a.normal + b.normal, a.anomalous + b.anomalous, a.invalid + b.invalid)


def _bin_of(x: np.ndarray) -> np.ndarray:
    """The bin of each float32: bit patterns of floats order like integers of sign and magnitude."""
    bits = x.view(np.int32)
    key = np.where(bits < 0, np.int32(_LOWEST) - bits, bits)
    bins = (key >> _SHIFT) + BINS // 2
    # The bin of -inf would hold the largest negative numbers too.
    return np.where(np.isneginf(x), 0, bins)


def lower_edge(position: int, *, threshold: bool = False) -> np.ndarray:
    """The smallest finite float32 of a bin. Subnormal numbers are zero to some devices, so no threshold is one."""
    key = min(max((position - BINS // 2) << _SHIFT, -_LARGEST), _LARGEST)
    if threshold and -_SMALLEST < key < _SMALLEST and key != 0:
        key = _SMALLEST if key > 0 else 0
    return np.asarray(key if key >= 0 else _LOWEST - key, dtype=np.int32).view(np.float32)
