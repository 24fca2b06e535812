"""Clauses T2, T3 and T5: where a validation run puts the threshold."""

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conformance import oracle
from conformance.assertions import random_values

from anomnorm_core import NotFittedError, OptionError, ThresholdWarning
from anomnorm_core.threshold import (
    adaptive,
    flag,
    init,
    merge,
    normal_quantile,
    streamed_adaptive,
    streamed_normal_quantile,
    streamed_quantile,
    update,
)
from anomnorm_core.threshold.search import _best

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])


def counted(values: Any, labels: Any = None) -> Any:
    array = np.asarray(values, dtype=np.float32)
    return update(init(), array, None if labels is None else np.asarray(labels))


@pytest.mark.clause("T2")
@DTYPES
@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 0, 1, 1], [2.3, 1.6, 2.6, 7.9, 3.3], 3.3),
        ([1, 0, 0, 0], [4.0, 3.0, 2.0, 1.0], 4.0),
        ([0, 0, 0, 1, 1], [-2.3, -1.6, -2.6, 7.9, -0.3], -0.3),
        ([0, 1, 0, 1], [1.0, 1.0, 0.0, 1.0], 1.0),  # ties between normals and anomalies
        ([1, 0, 0, 1], [4.0, 3.0, 2.0, 1.0], 4.0),  # F1 is 2/3 at 4 and at 1: the largest
    ],
)
def test_golden_rows(dtype: str, labels: list[int], scores: list[float], expected: float) -> None:
    values = np.array(scores, dtype=dtype)
    for truth in (np.array(labels), np.array(labels) == 1, np.array(labels, dtype=np.float32) * 2):
        found = adaptive(values, truth)
        assert (found.dtype, found.shape) == (oracle.arithmetic(dtype), ())
        assert float(found) == oracle.rounded(expected, dtype)


@pytest.mark.clause("T2")
@DTYPES
@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_all_and_the_largest_among_equals(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for size in (2, 5, 23, 64):
        # Few different values, so that many scores and many F1 are equal; all signs.
        values = random_values(dtype, rng.integers(-4, 5, size=size) * (0.1 if seed % 2 else 1.7))
        labels = (rng.random(size) < 0.4).astype(int)
        labels[:2] = 1, 0
        if seed > 3:
            values[-1], values[size // 2] = math.nan, -math.inf
        counts = [label if not math.isnan(value) else 0 for value, label in zip(values, labels.tolist(), strict=True)]
        wanted = oracle.adaptive(values, counts)
        if oracle.f1(wanted, values, counts) > 0:
            assert float(adaptive(np.array(values, dtype=dtype), labels)) == wanted


@pytest.mark.clause("T2")
@DTYPES
def test_the_anomaly_that_defines_it_is_flagged(dtype: str) -> None:
    scores = np.array([0.1 * k for k in range(1, 9)], dtype=dtype)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1], dtype=bool)
    assert flag(scores, adaptive(scores, labels)).tolist() == labels.tolist()
    # One anomaly is enough; above all normals it would not be flagged.
    scores, labels = np.array([0.25, 4.0, 0.5, 6.0], dtype=dtype), np.array([0, 1, 0, 0])
    for threshold in (adaptive(scores, labels), streamed_adaptive(counted(scores, labels))):
        assert flag(scores, threshold).tolist() == [False, True, False, True]
    # Above every number there is none, and -inf is never flagged.
    scores = np.array([math.inf, 1.0, -math.inf, 2.0], dtype=dtype)
    threshold = adaptive(scores, np.array([1, 0, 1, 0]))
    assert np.isfinite(threshold)
    assert flag(scores, threshold).tolist() == [True, False, False, False]


@pytest.mark.clause("T2")
def test_ratios_closer_than_floats_can_tell() -> None:
    cases = []
    for n in (2**29 - 1, 2**29 - 3, 1_000_003, 65_537):
        a, flagged = n // 2, [n - 2 - k for k in range(4)]
        cases.append(([a, a - 1, a - 1, a - 2], flagged, a + 2))
        cases.append(([a - 3, a - 1, a, a - 2], flagged[::-1], a + 2))
    # k / 2^31 lies between a / b and c / d, which differ by less than 2^-58: k b = 2^31 a - 1, k d = 2^31 c + 3.
    for b in range(2**29 + 1, 2**29 + 41, 2):
        d, k = -3 * b % 2**31, pow(-b, -1, 2**31)
        if max(d, k) < 2**30:
            pair = [((k * b + 1) >> 31, b - 1), ((k * d - 3) >> 31, d - 1)]
            cases += [([h for h, _ in order], [f for _, f in order], 1) for order in (pair, pair[::-1])]
    cases += [([1, 2, 3, 4], [2, 4, 6, 8], 0), ([0, 0, 0], [1, 2, 3], 5)]  # all equal, and none above zero
    for hits, flagged, positives in cases:
        ratios = [Fraction(h, f + positives) for h, f in zip(hits, flagged, strict=True)]
        expected = max(range(len(ratios)), key=lambda i: (ratios[i], i)), max(ratios) > 0
        assert _best(np.array(hits), np.array(flagged), positives) == expected


@pytest.mark.clause("T3")
@DTYPES
@pytest.mark.parametrize("values", [[0.3, 2.0, 1.7, 1.7], [0.0, 0.0], [-3.0, -1.0], [-0.5], [5.0], [0.0, -0.0, 6e-8]])
def test_no_normal_is_flagged(dtype: str, values: list[float]) -> None:
    scores = np.array([*values, math.nan], dtype=dtype)
    largest = float(np.nanmax(scores))
    for threshold in (normal_quantile(scores).threshold, adaptive(scores, np.zeros(len(scores)))):
        # As near above as a number can be that is not subnormal.
        above = oracle.next_up(largest, oracle.arithmetic(dtype))
        least = oracle.smallest_normal(oracle.arithmetic(dtype))
        assert largest < float(threshold) <= (above if abs(above) >= least else least)
        assert not flag(scores, threshold).any()
    scores = np.array([1.0, oracle.largest("float32")])
    record = counted(scores)
    for threshold in (
        normal_quantile(scores).threshold,
        streamed_normal_quantile(record).threshold,
        streamed_adaptive(record),
    ):
        assert float(threshold) == scores[1]  # finite


@pytest.mark.clause("L5", "T2", "T3")
def test_samples_with_a_negative_label_or_none_are_ignored() -> None:
    scores = np.array([1.0, 2.0, 8.0, 9.0, 5.0, 99.0, 0.5])
    labels = np.array([0, 0, 1, 2, -1, -1, math.nan])
    assert adaptive(scores, labels) == adaptive(scores[:4], labels[:4]) == 8.0
    assert normal_quantile(scores, labels=labels).threshold == normal_quantile(scores[:2]).threshold
    with pytest.raises(NotFittedError):
        adaptive(scores[4:], labels[4:])


@pytest.mark.clause("T3", "T5")
def test_no_threshold_is_subnormal() -> None:
    for dtype in ("float64", "float32"):
        tiny = oracle.smallest_normal(dtype)
        for largest in (-tiny, 0.0, -0.0, tiny):
            found = float(normal_quantile(np.array([-1.0, largest], dtype=dtype)).threshold)
            assert found > largest
            assert found == 0.0 or abs(found) >= tiny
    tiny = 2.0**-126
    for normal, anomalous in ((-tiny, tiny / 2), (0.0, tiny / 4), (-1.0, -tiny / 2), (tiny / 2, 1.0)):
        record = counted([normal, anomalous], [0, 1])
        for threshold in (streamed_adaptive(record), streamed_normal_quantile(record).threshold):
            assert float(threshold) == 0.0 or abs(float(threshold)) >= tiny
    # A quantile is no threshold: it is where the numbers are.
    assert 0 <= float(streamed_quantile(counted([tiny / 4] * 3), 0.5)) <= tiny / 4


@pytest.mark.clause("T3")
@pytest.mark.parametrize("share", ["0", "0.07", "0.5", "0.9", "0.93", "0.99", "1"])
def test_quantiles_of_the_normals(share: str) -> None:
    for size in (1, 7, 100, 1000):
        rng = np.random.default_rng(size)
        values = random_values("float32", rng.permutation(np.linspace(-3.0, 8.0, size)))
        scores = np.array([*values, *rng.normal(9, 1, size=5), math.nan], dtype=np.float32)
        labels = np.array([0] * size + [1] * 5 + [0])
        threshold = normal_quantile(scores, float(share), labels=labels).threshold
        quantile = oracle.quantile(values, Fraction(share))
        assert float(threshold) == oracle.next_up(quantile, "float32")
        assert flag(np.array(values, dtype=np.float32), threshold).sum() <= (1 - Fraction(share)) * size
        without = labels * (scores < 0)  # where nothing is flagged by finding anomalies, the quantile decides
        assert without.any() or float(adaptive(scores[:size], labels[:size], normal_quantile=float(share))) == threshold


@pytest.mark.clause("T3")
def test_anomalies_alone_give_the_smallest_with_a_warning() -> None:
    scores, labels = np.array([3.0, 2.0, 7.0]), np.ones(3)
    for find in (lambda: adaptive(scores, labels), lambda: streamed_adaptive(counted(scores, labels))):
        with pytest.warns(ThresholdWarning, match="smallest of 3 anomalous"):
            assert float(find()) == 2.0


@pytest.mark.clause("T3")
def test_nothing_to_place_a_threshold_by_is_an_error() -> None:
    nan, labels = np.array([math.nan, math.nan]), np.array([0, 1])
    with pytest.raises(NotFittedError, match="all 2 scores are NaN"):
        adaptive(nan, labels)
    with pytest.raises(NotFittedError, match="there are none"):
        adaptive(nan[:0], labels[:0])
    for find in (streamed_adaptive, streamed_normal_quantile, lambda record: streamed_quantile(record, 0.5)):
        with pytest.raises(NotFittedError):
            find(init())
    lowest = np.array([-math.inf, -math.inf])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        with pytest.raises(NotFittedError, match="normal scores, and there are none"):
            adaptive(lowest, [1, 1])  # no number flags one of them
        with pytest.raises(NotFittedError, match="normal scores, and there are none"):
            streamed_adaptive(counted(lowest, [1, 1]))
    with pytest.raises(NotFittedError, match="normal scores, and there are none"):
        normal_quantile(np.array([1.0]), labels=np.array([1]))
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(OptionError, match="quantile"):
            normal_quantile(np.array([1.0]), share)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\)"):
        adaptive(np.array([1.0]), labels)


@pytest.mark.clause("T5", "T3")
def test_few_among_very_many_count() -> None:
    many = counted([1.0], [0])
    for _ in range(33):
        many = merge(many, many)
    anomalies = counted([2.0] * 15 + [3.0] * 96, [1] * 111)
    assert float(streamed_adaptive(merge(many, anomalies))) == 2.0
    # One anomaly far down flags everything, and is not worth it.
    assert float(streamed_adaptive(merge(many, merge(anomalies, counted([0.5], [1]))))) == 2.0
    one_above = merge(many, counted([5.0], [0]))
    assert float(streamed_normal_quantile(one_above).threshold) > 5.0
    assert float(streamed_quantile(one_above, 1.0)) == 5.0


@pytest.mark.clause("T5")
def test_a_threshold_that_could_be_notably_better_is_reported() -> None:
    with pytest.warns(ThresholdWarning, match="close together"):  # everything lies in one bin
        streamed_adaptive(counted([1000.0, 1000.25, 1000.5, 1000.75], [0, 0, 1, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(streamed_adaptive(counted([1.0, 1.25, 1.5, 1.75], [0, 0, 1, 1]))) == 1.5
