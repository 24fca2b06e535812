"""Where a validation run puts the threshold (clauses T2, T3, T5, T7). On the host, once per run, for all packages."""

from typing import NamedTuple

import numpy as np

from anomnorm_core._arrays import Array, quiet, to_host
from anomnorm_core.checks import (
    Counts,
    label_axes,
    report_coarse_threshold,
    report_few_normals,
    report_infinite_normals,
    require_count,
    require_normal_samples,
    require_threshold_samples,
)
from anomnorm_core.options import (
    LARGEST_FLOAT32,
    QUANTILE_SLACK,
    Transform,
    may_exceed,
    parse_confidence,
    parse_quantile,
    parse_rate,
)
from anomnorm_core.threshold.false_alarms import allowed, least_rate, needed, normals_of
from anomnorm_core.threshold.histogram import BINS, BITS, ScoreHistogram, lower_edge

_LARGE = 2**30
_INFINITE = (0x7F800000 >> (32 - BITS)) + BINS // 2  # the bin of +inf, which a threshold at its edge flags


class Found(NamedTuple):
    """A threshold, and what it promises about normal samples that come later."""

    threshold: np.ndarray  #: ()
    false_alarm_rate: float | None = None  #: the share of them that is expected to reach it; None: nothing is promised
    guaranteed: bool = False  #: whether that holds for exchangeable samples of any distribution


@quiet
def adaptive(scores: Array, labels: Array, *, normal_quantile: float = 1.0) -> np.ndarray:
    """The threshold that maximizes F1 under the rule ``score >= threshold``; among equals, the largest (clause T2).

    It is the score of an anomaly, which is flagged. Without any anomaly to find, it is that of `normal_quantile`; with
    anomalies alone, it is the smallest of them, and a warning says so (clause T3).

    Args:
        scores: real array of shape (B,), of any library; it is read off its device. NaN is left out. Any sign; -inf is
            never flagged.
        labels: array of shape (B,), 0 for normal samples and above 0 for anomalous ones; samples with one below 0, or
            NaN, are ignored.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged.

    Returns:
        NumPy array of shape (), float64 for float64 scores and float32 for others.

    Raises:
        NotFittedError: there is no valid score.
        OptionError: ``normal_quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    x, normal, anomalous = _samples(scores, labels)
    positives, negatives = int(anomalous.sum()), int(normal.sum())
    require_threshold_samples(negatives, positives, x.size - positives - negatives)
    if positives:
        limit = x.dtype.type(LARGEST_FLOAT32)
        sortable = np.minimum(np.where(normal | anomalous, x, -np.inf), limit)
        order = np.argsort(sortable)
        x_up, y_up = sortable[order], anomalous[order].astype(np.int64)
        # Above and at each candidate; among equal scores the first one, which has them all.
        true_positives = positives - np.cumsum(y_up) + y_up
        flagged = np.arange(x.size, 0, -1)
        candidate = np.append(True, x_up[1:] > x_up[:-1]) & (x_up >= -limit)
        position, found = _best(np.where(candidate, true_positives, 0), flagged, positives)
        if found:
            return np.asarray(x_up[position], dtype=x.dtype)
    require_normal_samples(negatives, 0)  # no anomaly can be flagged
    return _above_quantile(x, normal, quantile)


@quiet
def normal_quantile(scores: Array, quantile: float = 1.0, *, labels: Array | None = None) -> Found:
    """A threshold from normal scores alone: no normal at or below their ``quantile`` is flagged (clause T3).

    The quantile is the smallest score that at least this share of the normals does not exceed, and the threshold is
    the next number above it (or the smallest normal number, where that would be a subnormal one).

    Args:
        scores: real array of shape (B,), of any library; it is read off its device. NaN is left out.
        quantile: from 0 to 1; with 1, no normal is flagged.
        labels: array of shape (B,), 0 for normal samples, which alone count; None: all are normal.

    Returns:
        The threshold, float64 for float64 scores and float32 for others, and the false-alarm rate that it guarantees in
        expectation, ``(k + 1) / (n + 1)`` where ``k`` of the ``n`` normals reach it: not the ``k / n`` of the samples
        that it was chosen by.

    Raises:
        NotFittedError: there is no valid normal score.
        OptionError: ``quantile`` is not between 0 and 1.
        ValueError: shapes do not match.
    """
    share = parse_quantile(quantile, "quantile")
    x, normal, _ = _samples(scores, labels)
    require_normal_samples(int(normal.sum()), int(np.isnan(x).sum()))
    threshold = _above_quantile(x, normal, share)
    return Found(threshold, _promised(x[normal], threshold), True)


@quiet
def false_alarm_rate(
    scores: Array,
    rate: float,
    *,
    labels: Array | None = None,
    confidence: float | None = None,
    transform: Transform | str | None = None,
) -> Found:
    """A threshold that at most a share ``rate`` of new normal samples is expected to reach (clause T7).

    Just above the ``ceil((n + 1)(1 - rate))``-th smallest of the ``n`` normal scores: new ones, exchangeable with
    these, reach it with a probability of at most ``rate``, whatever their distribution. That is an average over
    samples: of all samples of 99, 37% give a threshold for 1% that new ones reach more often. With ``confidence=0.9``
    the rank is taken for which at most 10% do.

    Too few samples have no such rank. Then the threshold is the larger one of the number just above all of them and of
    the prediction from their moments, see `false_alarms.Normals`; it guarantees nothing, and a warning says so. The
    threshold never falls as the rate falls.

    Args:
        scores: real array of shape (B,), of any library; it is read off its device. All normal ones count: NaN, -inf
            and, under the logarithm, what is not above zero as smaller than all others; +inf as largest.
        rate: above 0 and below 1.
        labels: array of shape (B,), 0 for normal samples, which alone count; None: all are normal.
        confidence: above 0 and below 1; None: the rate holds in expectation.
        transform: what the prediction takes as normally distributed, ``"log"`` or ``"identity"``; None: the logarithms
            where all finite scores are above zero, else the scores.

    Returns:
        The threshold, float64 for float64 scores and float32 for others; the rate that is expected for it, which may be
        below ``rate``; and whether that is guaranteed.

    Raises:
        NotFittedError: there is no normal score.
        OptionError: ``rate`` or ``confidence`` is not between 0 and 1, or the transform is unknown.
        ValueError: shapes do not match.

    Source: the rank is that of split conformal prediction (Vovk, Gammerman and Shafer, 2005); the distribution of the
    rate for a given sample is that of tolerance limits (Wilks, 1941).
    """
    rate, confidence = parse_rate(rate, "rate"), parse_confidence(confidence, "confidence")
    transform = None if transform is None else Transform.parse(transform, "transform")
    x, marks = _marked(scores, labels)
    x = x[marks == 0]
    require_normal_samples(int(np.sum(~np.isnan(x))), x.size)
    x = np.sort(np.where(np.isnan(x), -np.inf, x).astype(x.dtype))
    above = allowed(rate, x.size, confidence)
    least = np.finfo(x.dtype).smallest_normal if transform is Transform.LOG else -LARGEST_FLOAT32
    threshold = np.maximum(_next_above(x[x.size - 1 - max(above, 0)]), x.dtype.type(least))
    promised, reaching = _promised(x, threshold), int(np.sum(x >= threshold))
    if reaching > max(above, 0):  # +inf, or a number that float32 takes for it
        report_infinite_normals(rate, reaching, x.size)
        return Found(threshold, promised)
    if above >= 0:
        return Found(threshold, promised, True)
    normals = normals_of(x, transform)
    known = least_rate(x.size, confidence), needed(rate, confidence)
    report_few_normals(rate, confidence, x.size, *known, predicted=normals.valued > 1)
    if normals.valued < 2:
        return Found(threshold, promised)
    predicted = np.clip(normals.threshold(rate, confidence), -LARGEST_FLOAT32, LARGEST_FLOAT32).astype(x.dtype)
    return Found(np.maximum(threshold, predicted), rate)


def streamed_adaptive(record: ScoreHistogram, *, normal_quantile: float = 1.0) -> np.ndarray:
    """The edge of a bin that maximizes F1 under ``score >= threshold``; among equals, the largest (clauses T2, T5).

    Without any anomaly to find, it is the threshold of `streamed_normal_quantile`.

    Args:
        record: pixels of a validation run; a histogram of any of the packages, which is read off its device.
        normal_quantile: where there is no anomaly, the share of the normals that must not be flagged.

    Returns:
        NumPy float32 array of shape (). A warning says where a threshold inside a bin could be notably better.

    Raises:
        NotFittedError: nothing valid was counted.
        OptionError: ``normal_quantile`` is not between 0 and 1.
    """
    quantile = parse_quantile(normal_quantile, "normal_quantile")
    normal, anomalous, invalid = _counts(record)
    positives = int(anomalous.sum())
    require_threshold_samples(int(normal.sum()), positives, int(invalid))
    # An edge is a candidate if its bin holds an anomaly. Bin 0 is that of -inf, which is never flagged.
    candidates = np.flatnonzero(anomalous[1:]) + 1
    if candidates.size:
        hits, alarms = (_at_or_above(counts)[candidates] for counts in (anomalous, normal))
        position, _ = _best(hits, hits + alarms, positives)
        f1 = 2 * hits[position] / (hits[position] + alarms[position] + positives)
        # At best, a threshold inside a bin would flag all anomalies of the bin and none of its normals.
        ideal = 2 * hits / (hits + (alarms - normal[candidates]) + positives)
        report_coarse_threshold(float(ideal.max() - f1))
        return lower_edge(int(candidates[position]), threshold=True)
    return lower_edge(_above_quantile_bin(normal, quantile), threshold=True)


def streamed_normal_quantile(record: ScoreHistogram, quantile: float = 1.0, *, images: int | None = None) -> Found:
    """The first edge above the bin that holds the ``quantile`` of the normal pixels (clause T3).

    Args:
        record: pixels of a validation run, see `streamed_adaptive`; only the normal ones count.
        quantile: from 0 to 1; with 1, no normal pixel is flagged.
        images: how many normal images the pixels are of, if nothing else was counted. Those of one image depend on each
            other, so that images are what counts as samples.

    Returns:
        The threshold, float32, and with ``images`` the false-alarm rate of pixels that it guarantees in expectation:
        ``(k + p) / ((n + 1) p)`` where ``k`` pixels of ``n`` images of ``p`` pixels reach it.

    Raises:
        NotFittedError: no normal pixel was counted.
        OptionError: ``quantile`` is not between 0 and 1.
    """
    share = parse_quantile(quantile, "quantile")
    normal, _, invalid = _counts(record)
    require_normal_samples(int(normal.sum()), int(invalid))
    position = _above_quantile_bin(normal, share)
    rate = _promised_pixels(normal, int(invalid), position, images) if images else None
    return Found(lower_edge(position, threshold=True), rate, rate is not None)


def streamed_false_alarm_rate(
    record: ScoreHistogram, rate: float, images: int, *, transform: Transform | str | None = None
) -> Found:
    """A threshold that at most a share ``rate`` of the pixels of new normal images is expected to reach (clause T7).

    The smallest edge of a bin that ``k`` pixels of ``n`` images of ``p`` pixels reach with
    ``(k + p) / ((n + 1) p) <= rate``. Pixels of one image depend on each other, so that images are what counts as
    samples. With too few of them it is predicted, and a warning says so, as by `false_alarm_rate`.

    Args:
        record: pixels of normal images alone, see `streamed_adaptive`; NaN counts as smaller than all others.
        rate: above 0 and below 1.
        images: of how many images.
        transform: as for `false_alarm_rate`.

    Returns:
        The threshold, float32; the rate that is expected for it; and whether that is guaranteed.

    Raises:
        NotFittedError: no normal pixel was counted.
        OptionError: ``rate`` is not between 0 and 1, or the transform is unknown.
    """
    rate = parse_rate(rate, "rate")
    transform = None if transform is None else Transform.parse(transform, "transform")
    normal, _, invalid = _counts(record)
    total = int(normal.sum()) + int(invalid)
    require_normal_samples(int(normal.sum()) if images else 0, total)
    reaching, pixels = _at_or_above(normal), total / images
    least = int(np.searchsorted(-reaching, -pixels * max(rate * (images + 1) * QUANTILE_SLACK - 1, 0.0)))
    position = min(least, _INFINITE)
    threshold = lower_edge(position, threshold=True)
    if rate * (images + 1) * QUANTILE_SLACK >= 1:
        guaranteed = least <= _INFINITE
        if not guaranteed:
            report_infinite_normals(rate, int(normal[_INFINITE:].sum()), total)
        return Found(threshold, _promised_pixels(normal, int(invalid), position, images), guaranteed)
    report_few_normals(rate, None, images, least_rate(images, None), needed(rate, None), of="images")
    present = np.flatnonzero(normal)
    values = np.asarray([lower_edge(int(position)) for position in present], dtype=np.float64)
    values[present == 0], values[present >= _INFINITE] = -np.inf, np.inf
    moments = normals_of(np.append(values, np.nan), transform, np.append(normal[present], int(invalid)))
    # As sure as the images are many: the pixels are more, and depend on each other.
    moments = moments._replace(samples=images, valued=max(round(images * moments.share), 0))
    predicted = moments.threshold(rate) if moments.valued > 1 else -np.inf
    limited = np.clip(predicted, -LARGEST_FLOAT32, LARGEST_FLOAT32).astype(np.float32)
    return Found(np.maximum(threshold, limited), rate)


def streamed_quantile(record: ScoreHistogram, quantile: float) -> np.ndarray:
    """The ``quantile`` of all pixels, down to the lower edge of its bin: within 0.4 percent.

    Args:
        record: pixels of any number of maps, see `streamed_adaptive`.
        quantile: from 0 to 1.

    Returns:
        NumPy float32 array of shape (): the lower edge of the bin of the smallest score that at least this share of the
        pixels does not exceed.

    Raises:
        NotFittedError: nothing valid was counted.
        OptionError: ``quantile`` is not between 0 and 1.
    """
    share = parse_quantile(quantile, "quantile")
    normal, anomalous, invalid = _counts(record)
    counts = normal + anomalous
    require_count("pixel", Counts(int(counts.sum()), nan=int(invalid)), minimum=1)
    return lower_edge(_quantile_bin(counts, share))


def _samples(scores: Array, labels: Array | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, marks = _marked(scores, labels)
    anomalous, valid = marks > 0, ~np.isnan(x) & (marks >= 0)  # negative or NaN: the sample is ignored
    return x, valid & ~anomalous, valid & anomalous


def _marked(scores: Array, labels: Array | None) -> tuple[np.ndarray, np.ndarray]:
    x = to_host(scores)
    x = x if x.dtype == np.float64 or x.dtype.kind != "f" else x.astype(np.float32)
    x = x.astype(np.float64) if x.dtype.kind != "f" else x
    marks = np.zeros(x.shape, dtype=bool) if labels is None else to_host(labels)
    return x.ravel(), np.broadcast_to(marks.reshape(label_axes(marks.shape, x.shape)), x.shape).ravel()


def _promised(normals: np.ndarray, threshold: np.ndarray) -> float:
    """The false-alarm rate of a threshold that was chosen by the rank of a normal score, which guarantees it."""
    return (int(np.sum(normals >= threshold)) + 1) / (normals.size + 1)


def _promised_pixels(normal: np.ndarray, invalid: int, position: int, images: int) -> float:
    """The same of pixels, for a threshold at the lower edge of a bin."""
    reaching = int(normal[position:].sum())
    pixels = (int(normal.sum()) + invalid) / images
    return min((reaching + pixels) / ((images + 1) * pixels), 1.0)


def _counts(record: ScoreHistogram) -> list[np.ndarray]:
    """The counts in int64: JAX, which has no 64-bit integers by default, keeps them in two halves of 32 bits."""
    fields = [to_host(field) for field in record]
    halves = fields[0].ndim == 2
    return [(f[0].astype(np.int64) << 32) + f[1] if halves else f.astype(np.int64) for f in fields]


def _best(true_positives: np.ndarray, flagged: np.ndarray, positives: int) -> tuple[int, bool]:
    """The last candidate among those with the largest ``F1 = 2 true_positives / (positives + flagged)``, if it has any.

    Ratios of integers are compared as such, because floats would take different ratios for equal and equal ones, after
    rounding, for different: half of F1 is written down to 62 binary places, which no two ratios of 31-bit integers
    share. Counts past 2^30 are compared in float64.
    """
    divisor = flagged + positives
    if int(divisor.max()) < _LARGE:
        numerator = true_positives << 31
        upper = numerator // divisor
        half_f1 = (upper << 31) + ((numerator - upper * divisor) << 31) // divisor
    else:
        half_f1 = true_positives / divisor
    return half_f1.size - 1 - int(np.argmax(half_f1[::-1])), bool(half_f1.max() > 0)


def _above_quantile(x: np.ndarray, normal: np.ndarray, quantile: float) -> np.ndarray:
    count = int(normal.sum())
    position = count - 1 - may_exceed(quantile, count)
    return _next_above(np.sort(x[normal])[position])


def _next_above(value: np.floating) -> np.ndarray:
    """The finite number above ``value`` that a threshold can be: subnormal ones are zero to some devices."""
    smallest = np.finfo(value.dtype).smallest_normal
    up = np.nextafter(value, value.dtype.type(np.inf))
    if 0 < up < smallest:
        up = smallest
    elif -smallest < up <= 0:
        up = up * 0
    return np.asarray(np.clip(up, -LARGEST_FLOAT32, LARGEST_FLOAT32), dtype=value.dtype)


def _at_or_above(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts[::-1])[::-1]


def _quantile_bin(counts: np.ndarray, quantile: float) -> int:
    above = may_exceed(quantile, int(counts.sum()))
    return int(np.sum(_at_or_above(counts) > above)) - 1


def _above_quantile_bin(normal: np.ndarray, quantile: float) -> int:
    require_normal_samples(int(normal.sum()), 0)
    position: int = min(_quantile_bin(normal, quantile) + 1, _INFINITE)
    return position
