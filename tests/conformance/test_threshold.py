"""Clauses T2, T3 and T5: thresholds from data."""

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from anomnorm_core import NotFittedError, OptionError, ThresholdWarning
from conformance import oracle
from conformance.assertions import random_values
from conformance.backend import Backend

pytestmark = pytest.mark.needs("thresholds")


def number(backend: Backend, threshold: object) -> float:
    array = backend.to_numpy(threshold)
    assert array.shape == ()
    return float(array)


@pytest.mark.clause("T2")
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
def test_t2_golden_rows(backend: Backend, dtype: str, labels: list[int], scores: list[float], expected: float) -> None:
    values = [oracle.rounded(score, dtype) for score in scores]
    found = backend.threshold.adaptive(backend.asarray(values, dtype), backend.asarray(labels, "int32"))
    assert number(backend, found) == oracle.rounded(expected, dtype)
    assert backend.describe(found).dtype == oracle.arithmetic(dtype)


@pytest.mark.clause("T2")
@pytest.mark.parametrize("seed", range(8))
def test_t2_is_the_best_of_all_and_the_largest_among_equals(backend: Backend, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for size in (2, 5, 23, 64):
        # Few different values, so that many scores and many F1 are equal; all signs.
        values = random_values(dtype, rng.integers(-4, 5, size=size) * (0.1 if seed % 2 else 1.7))
        labels = (rng.random(size) < 0.4).astype(int)
        labels[0] = 1
        labels[1] = 0
        if seed > 3:
            values[-1], values[size // 2] = math.nan, -math.inf
        found = backend.threshold.adaptive(backend.asarray(values, dtype), backend.asarray(labels, "int32"))
        counted = [label if not math.isnan(value) else 0 for value, label in zip(values, labels.tolist(), strict=True)]
        wanted = oracle.adaptive(values, counted)
        if oracle.f1(wanted, values, counted) > 0:
            assert number(backend, found) == wanted


@pytest.mark.clause("T2")
def test_t2_flags_the_anomaly_that_defines_it(backend: Backend, dtype: str) -> None:
    values = [oracle.rounded(0.1 * k, dtype) for k in range(1, 9)]
    labels = [0, 0, 0, 0, 0, 1, 1, 1]
    scores = backend.asarray(values, dtype)
    threshold = backend.threshold.adaptive(scores, backend.asarray(labels, "bool"))
    assert backend.to_numpy(backend.threshold.flag(scores, threshold)).tolist() == [bool(label) for label in labels]


@pytest.mark.clause("T2")
def test_t2_infinite_scores(backend: Backend, dtype: str) -> None:
    # The anomaly above every number is flagged by a number, and what has no logarithm never is.
    scores = backend.asarray([math.inf, 1.0, -math.inf, 2.0], dtype)
    threshold = backend.threshold.adaptive(scores, backend.asarray([1, 0, 1, 0], "int32"))
    assert math.isfinite(number(backend, threshold))
    assert backend.to_numpy(backend.threshold.flag(scores, threshold)).tolist() == [True, False, False, False]


@pytest.mark.clause("T3")
@pytest.mark.parametrize("values", [[0.3, 2.0, 1.7, 1.7], [0.0, 0.0], [-3.0, -1.0], [-0.5], [5.0], [0.0, -0.0, 6e-8]])
def test_t3_all_normal_never_flags_a_normal(backend: Backend, dtype: str, values: list[float]) -> None:
    scores = backend.asarray([*values, math.nan], dtype)
    thresholds = [
        backend.threshold.normal_quantile(scores),
        backend.threshold.adaptive(scores, backend.asarray([0] * (len(values) + 1), "int32")),
    ]
    largest = max(backend.to_numpy(scores)[:-1].tolist())
    for threshold in thresholds:
        found = number(backend, threshold)
        assert not backend.to_numpy(backend.threshold.flag(scores, threshold)).any()
        # As near above as a number can be that is not subnormal.
        assert found > largest
        above = oracle.next_up(largest, oracle.arithmetic(dtype))
        assert found <= (above if abs(above) >= 2.0**-126 else 2.0**-126)


@pytest.mark.clause("T2", "T5")
def test_t2_one_anomaly_is_enough(backend: Backend) -> None:
    scores = backend.asarray([0.25, 4.0, 0.5, 6.0], backend.usual_dtype)  # above all normals it would not be flagged
    labels = backend.asarray([0, 1, 0, 0], "int32")
    record = backend.threshold.update(backend.threshold.init(), scores, labels)
    for threshold in (backend.threshold.adaptive(scores, labels), backend.threshold.streamed_adaptive(record)):
        assert backend.to_numpy(backend.threshold.flag(scores, threshold)).tolist() == [False, True, False, True]


@pytest.mark.clause("T3", "T5")
def test_t3_every_threshold_is_finite(backend: Backend) -> None:
    largest = 2.0**128 - 2.0**104
    scores = backend.asarray([1.0, largest], backend.usual_dtype)
    record = backend.threshold.update(backend.threshold.init(), scores)
    for threshold in (
        backend.threshold.normal_quantile(scores),
        backend.threshold.streamed_normal_quantile(record),
        backend.threshold.streamed_adaptive(record),
    ):
        assert number(backend, threshold) == largest


@pytest.mark.clause("T3")
def test_t3_no_threshold_is_subnormal(backend: Backend, dtype: str) -> None:
    tiny = oracle.smallest_normal(dtype)
    for largest in (-tiny, 0.0, -0.0, tiny):
        scores = backend.asarray([-1.0, largest], dtype)
        found = number(backend, backend.threshold.normal_quantile(scores))
        assert found > largest
        assert found == 0.0 or abs(found) >= 2.0 ** (-1022 if dtype == "float64" else -126)
    tiny = 2.0**-126
    for normal, anomalous in ((-tiny, tiny / 2), (0.0, tiny / 4), (-1.0, -tiny / 2), (tiny / 2, 1.0)):
        scores = backend.asarray([normal, anomalous], "float32")
        record = backend.threshold.init()
        record = backend.threshold.update(record, scores, backend.asarray([0, 1], "int32"))
        for threshold in (
            backend.threshold.streamed_adaptive(record),
            backend.threshold.streamed_normal_quantile(record),
        ):
            found = number(backend, threshold)
            assert found == 0.0 or abs(found) >= tiny
    # A quantile is no threshold: it is where the numbers are.
    record = backend.threshold.update(backend.threshold.init(), backend.asarray([tiny / 4] * 3, "float32"))
    assert 0 <= number(backend, backend.threshold.streamed_quantile(record, 0.5)) <= tiny / 4


@pytest.mark.clause("T3")
@pytest.mark.parametrize("share", ["0", "0.07", "0.5", "0.9", "0.93", "0.99", "1"])
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_t3_quantile_of_the_normals(backend: Backend, share: str, size: int) -> None:
    dtype = backend.usual_dtype
    rng = np.random.default_rng(size)
    values = random_values(dtype, rng.permutation(np.linspace(-3.0, 8.0, size)))
    anomalies = random_values(dtype, rng.normal(9, 1, size=5))
    scores = backend.asarray([*values, *anomalies, math.nan], dtype)
    labels = backend.asarray([0] * size + [1] * 5 + [0], "int32")
    threshold = backend.threshold.normal_quantile(scores, float(share), labels=labels)
    quantile = oracle.quantile(values, Fraction(share))
    assert number(backend, threshold) == oracle.next_up(quantile, oracle.arithmetic(dtype))
    flags = backend.to_numpy(backend.threshold.flag(backend.asarray(values, dtype), threshold))
    assert not [value for value, flag in zip(values, flags.tolist(), strict=True) if flag and value <= quantile]
    assert flags.sum() <= (1 - Fraction(share)) * size


@pytest.mark.clause("T3")
def test_t3_anomalies_alone_give_the_smallest_with_a_warning(backend: Backend, dtype: str) -> None:
    scores = backend.asarray([3.0, 2.0, 7.0], dtype)
    with pytest.warns(ThresholdWarning, match="smallest of 3 anomalous"):
        threshold = backend.threshold.adaptive(scores, backend.asarray([1, 1, 1], "int32"))
    assert number(backend, threshold) == 2.0


@pytest.mark.clause("T3")
def test_t3_nothing_to_place_a_threshold_by_is_an_error(backend: Backend) -> None:
    nan = backend.asarray([math.nan, math.nan], backend.usual_dtype)
    labels = backend.asarray([0, 1], "int32")
    with pytest.raises(NotFittedError, match="all 2 scores are NaN"):
        backend.threshold.adaptive(nan, labels)
    with pytest.raises(NotFittedError, match="there are none"):
        backend.threshold.adaptive(nan[:0], labels[:0])
    lowest = backend.asarray([-math.inf, -math.inf], backend.usual_dtype)
    anomalous = backend.asarray([1, 1], "int32")
    record = backend.threshold.update(backend.threshold.init(), lowest, anomalous)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        with pytest.raises(NotFittedError, match="normal scores, and there are none"):
            backend.threshold.adaptive(lowest, anomalous)  # no number flags one of them
        with pytest.raises(NotFittedError, match="normal scores, and there are none"):
            backend.threshold.streamed_adaptive(record)
    one = backend.asarray([1.0], backend.usual_dtype)
    with pytest.raises(NotFittedError, match="normal scores, and there are none"):
        backend.threshold.normal_quantile(one, labels=backend.asarray([1], "int32"))
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(OptionError, match="quantile"):
            backend.threshold.normal_quantile(one, share)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\)"):
        backend.threshold.adaptive(one, labels)


# Streamed.


def maps_and_masks(dtype: str, size: int, *, shift: float = 0.0, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((size, 1, 80, 96)) < 0.05
    maps = rng.normal(size=masks.shape) + 2.5 * masks + shift
    return np.reshape(random_values(dtype, maps.ravel()), maps.shape), masks


@pytest.mark.clause("T5")
@pytest.mark.parametrize("shift", [0.0, -9.0, 5.0])
@pytest.mark.filterwarnings("ignore::anomnorm_core.ThresholdWarning")  # of the half types, whose scores are equal
def test_t5_streamed_threshold_is_nearly_the_best(backend: Backend, dtype: str, shift: float) -> None:
    maps, masks = maps_and_masks(dtype, 8, shift=shift)
    record = backend.threshold.init()
    for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
        record = backend.threshold.update(
            record, backend.asarray(maps[part], dtype), backend.asarray(masks[part], "bool")
        )
    threshold = number(backend, backend.threshold.streamed_adaptive(record))
    values, labels = maps.ravel(), masks.ravel()
    candidates = np.sort(values[labels])
    hits = candidates.size - np.searchsorted(candidates, candidates)
    flagged = values.size - np.searchsorted(np.sort(values), candidates)
    best = float(np.max(2 * hits / (flagged + candidates.size)))
    chosen = values >= threshold
    assert 2 * np.sum(chosen & labels) / (chosen.sum() + candidates.size) >= best - 0.001
    flags = backend.threshold.flag(backend.asarray(maps, dtype), threshold)
    assert backend.to_numpy(flags).sum() == chosen.sum()


@pytest.mark.clause("T5", "T3")
def test_t5_normals_alone_are_never_flagged(backend: Backend, dtype: str) -> None:
    for values in ([0.0, 0.0], [-5.0, -2.0], [-0.5, -0.25], [0.25, 6.5], [-0.0, 6e-8], [-math.inf, -1.0]):
        scores = backend.asarray(values, dtype)
        record = backend.threshold.update(backend.threshold.init(), scores)
        for threshold in (
            backend.threshold.streamed_normal_quantile(record),
            backend.threshold.streamed_adaptive(record),
        ):
            assert not backend.to_numpy(backend.threshold.flag(scores, threshold)).any()
            largest = float(backend.to_numpy(scores).max())
            # The edge of the next bin: 2^-9 of the value, or a subnormal number's bin.
            assert number(backend, threshold) <= largest + max(abs(largest) * 2.0**-9, 2.0**-134 + 2.0**-24)


@pytest.mark.clause("T5")
@pytest.mark.parametrize("share", [0.0, 0.07, 0.5, 0.99, 1.0])
def test_t5_quantiles(backend: Backend, dtype: str, share: float) -> None:
    maps, masks = maps_and_masks(dtype, 3)
    record = backend.threshold.update(
        backend.threshold.init(), backend.asarray(maps, dtype), backend.asarray(masks, "bool")
    )
    exact = oracle.quantile(maps.ravel().tolist(), Fraction(str(share)))
    found = number(backend, backend.threshold.streamed_quantile(record, share))
    assert exact - abs(exact) * 2.0**-8 - 1e-30 <= found <= exact
    normal = oracle.quantile(maps[~masks].tolist(), Fraction(str(share)))
    above = number(backend, backend.threshold.streamed_normal_quantile(record, share))
    assert normal < above <= normal + abs(normal) * 2.0**-8 + 1e-30


@pytest.mark.clause("T5", "S1")
def test_t5_record_is_an_algebra(backend: Backend) -> None:
    maps, masks = maps_and_masks("float32", 5)
    maps[0, 0, 0, :3] = math.nan, math.inf, -math.inf
    dtype = backend.usual_dtype
    arrays = [(backend.asarray(maps[i], dtype), backend.asarray(masks[i], "bool")) for i in range(5)]
    parts = [backend.threshold.update(backend.threshold.init(), *array) for array in arrays]
    whole = backend.threshold.update(
        backend.threshold.init(), backend.asarray(maps, dtype), backend.asarray(masks, "bool")
    )

    def same(a: object, b: object) -> bool:
        pairs = zip(a, b, strict=True)  # type: ignore[call-overload]
        return all(np.array_equal(backend.to_numpy(x), backend.to_numpy(y)) for x, y in pairs)

    left = right = backend.threshold.init()
    for part in parts:
        left = backend.threshold.merge(left, part)
    for part in reversed(parts):
        right = backend.threshold.merge(part, right)
    assert same(left, whole)
    assert same(right, whole)
    assert same(backend.threshold.merge(whole, backend.threshold.init()), whole)
    assert backend.count(whole.invalid) == 1
    assert backend.count(whole.normal) + backend.count(whole.anomalous) == maps.size - 1
    assert backend.count(whole.anomalous) == int((masks & ~np.isnan(maps)).sum())


@pytest.mark.clause("T5", "S5")
def test_t5_record_does_not_grow(backend: Backend) -> None:
    dtype = backend.usual_dtype
    empty = backend.threshold.init()
    record = empty
    for scale in (1e-30, 1.0, 1e30, -1.0):
        record = backend.threshold.update(record, backend.asarray(np.full((4, 8, 8), scale), dtype))
    assert [backend.describe(field) for field in record] == [backend.describe(field) for field in empty]


@pytest.mark.clause("T5")
def test_t5_counts_past_32_bits(backend: Backend) -> None:
    dtype = backend.usual_dtype
    record = backend.threshold.update(
        backend.threshold.init(),
        backend.asarray([0.0] * 7 + [3.0, 2.0, 2.5], dtype),
        backend.asarray([0] * 7 + [1, 1, 0], "int32"),
    )
    for _ in range(34):
        record = backend.threshold.merge(record, record)
    assert backend.count(record.normal) == 8 * 2**34
    assert number(backend, backend.threshold.streamed_adaptive(record)) == 2.0  # F1 4/5; 2/3 at 3, 4/12 at 0
    assert number(backend, backend.threshold.streamed_quantile(record, 0.5)) == 0.0


@pytest.mark.clause("T5", "T3")
def test_t5_few_among_very_many_count(backend: Backend) -> None:
    dtype = backend.usual_dtype
    merge, init = backend.threshold.merge, backend.threshold.init

    def counted(value: float, label: int, size: int) -> Any:
        labels = backend.asarray([label] * size, "int32")
        return backend.threshold.update(init(), backend.asarray([value] * size, dtype), labels)

    many = counted(1.0, 0, 1)
    for _ in range(33):
        many = merge(many, many)
    anomalies = merge(counted(2.0, 1, 15), counted(3.0, 1, 96))
    assert number(backend, backend.threshold.streamed_adaptive(merge(many, anomalies))) == 2.0
    # One anomaly far down flags everything, and is not worth it.
    low = merge(anomalies, counted(0.5, 1, 1))
    assert number(backend, backend.threshold.streamed_adaptive(merge(many, low))) == 2.0
    one_above = merge(many, counted(5.0, 0, 1))
    assert number(backend, backend.threshold.streamed_normal_quantile(one_above)) > 5.0
    assert number(backend, backend.threshold.streamed_quantile(one_above, 1.0)) == 5.0


@pytest.mark.clause("T5")
def test_t5_labels_and_selection(backend: Backend) -> None:
    dtype = backend.usual_dtype
    maps = backend.asarray(np.arange(24.0).reshape(2, 1, 3, 4) + 1, dtype)
    update, init = backend.threshold.update, backend.threshold.init
    masks = np.zeros((2, 3, 4), dtype=bool)
    masks[0, 0, 0] = True
    for shape in ((2, 3, 4), (2, 1, 3, 4)):
        record = update(init(), maps, backend.asarray(masks.reshape(shape), "bool"))
        assert (backend.count(record.normal), backend.count(record.anomalous)) == (23, 1)
    by_sample = update(init(), maps, backend.asarray([0, 1], "int32"))
    assert (backend.count(by_sample.normal), backend.count(by_sample.anomalous)) == (12, 12)
    chosen = update(init(), maps, backend.asarray(masks, "bool"), where=backend.asarray([True, False], "bool"))
    assert (backend.count(chosen.normal), backend.count(chosen.anomalous)) == (11, 1)
    for wrong in (np.zeros((2, 4, 3)), np.zeros(3), np.zeros((1, 1, 3, 4))):
        with pytest.raises(ValueError, match="labels of shape"):
            update(init(), maps, backend.asarray(wrong, "bool"))


@pytest.mark.clause("T5", "T3")
def test_t5_nothing_counted_is_an_error_and_anomalies_alone_a_warning(backend: Backend) -> None:
    empty = backend.threshold.init()
    for finalize in (backend.threshold.streamed_adaptive, backend.threshold.streamed_normal_quantile):
        with pytest.raises(NotFittedError):
            finalize(empty)
    with pytest.raises(NotFittedError, match="pixel-level"):
        backend.threshold.streamed_quantile(empty, 0.5)
    values = backend.asarray([4.0, 2.0], backend.usual_dtype)
    record = backend.threshold.update(empty, values, backend.asarray([1, 1], "int32"))
    with pytest.warns(ThresholdWarning, match="smallest of 2 anomalous"):
        assert number(backend, backend.threshold.streamed_adaptive(record)) == 2.0


@pytest.mark.clause("T5")
def test_t5_a_threshold_that_could_be_notably_better_is_reported(backend: Backend) -> None:
    # Everything lies in one bin.
    dtype = backend.usual_dtype
    values = backend.asarray([1000.0, 1000.25, 1000.5, 1000.75], dtype)
    record = backend.threshold.update(backend.threshold.init(), values, backend.asarray([0, 0, 1, 1], "int32"))
    with pytest.warns(ThresholdWarning, match="close together"):
        backend.threshold.streamed_adaptive(record)
    apart = backend.threshold.update(
        backend.threshold.init(),
        backend.asarray([1.0, 1.25, 1.5, 1.75], dtype),
        backend.asarray([0, 0, 1, 1], "int32"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert number(backend, backend.threshold.streamed_adaptive(apart)) == 1.5
