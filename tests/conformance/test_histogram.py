"""Clauses S1, S5 and T5: the histogram of pixels, in which core finds thresholds (`tests/core/test_search.py`)."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from anomnorm_core.threshold import streamed_adaptive, streamed_normal_quantile, streamed_quantile
from conformance import oracle
from conformance.assertions import random_values
from conformance.backend import Backend

pytestmark = pytest.mark.needs("histogram")


def maps_and_masks(dtype: str, size: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    masks = rng.random((size, 1, 40, 48)) < 0.05
    maps = rng.normal(size=masks.shape) + 2.5 * masks + shift
    return np.reshape(random_values(dtype, maps.ravel()), maps.shape), masks


def counted(backend: Backend, dtype: str, maps: Any, labels: Any = None, kind: str = "bool") -> Any:
    labels = None if labels is None else backend.asarray(labels, kind)
    return backend.threshold.update(backend.threshold.init(), backend.asarray(maps, dtype), labels)


@pytest.mark.clause("T5")
@pytest.mark.parametrize("shift", [0.0, -9.0, 5.0])
def test_t5_the_threshold_in_it_is_nearly_the_best(backend: Backend, dtype: str, shift: float) -> None:
    maps, masks = maps_and_masks(dtype, 8, shift)
    record = backend.threshold.init()
    for part in (slice(0, 4), slice(4, 8)):
        array = backend.asarray(maps[part], dtype)
        record = backend.threshold.update(record, array, backend.asarray(masks[part], "bool"))
    threshold = float(streamed_adaptive(record))
    values, labels = maps.ravel(), masks.ravel()
    candidates = np.sort(values[labels])
    hits = candidates.size - np.searchsorted(candidates, candidates)
    flagged = values.size - np.searchsorted(np.sort(values), candidates)
    best = float(np.max(2 * hits / (flagged + candidates.size)))
    chosen = values >= threshold
    assert 2 * np.sum(chosen & labels) / (chosen.sum() + candidates.size) >= best - 0.001


@pytest.mark.clause("T5", "T3")
def test_t5_normals_alone_are_never_flagged(backend: Backend, dtype: str) -> None:
    for values in ([0.0, 0.0], [-5.0, -2.0], [-0.5, -0.25], [0.25, 6.5], [-0.0, 6e-8], [-math.inf, -1.0]):
        largest = max(oracle.rounded(x, dtype) for x in values)
        record = counted(backend, dtype, values)
        for threshold in (float(streamed_normal_quantile(record).threshold), float(streamed_adaptive(record))):
            # Up to the edge of the next bin: 2^-9 of the value, or a subnormal number's bin.
            assert largest < threshold <= largest + max(abs(largest) * 2.0**-8, 2.0**-126)


@pytest.mark.clause("T5")
def test_t5_quantiles(backend: Backend, dtype: str) -> None:
    maps, masks = maps_and_masks(dtype, 3)
    record = counted(backend, dtype, maps, masks)
    for share in (0.0, 0.07, 0.5, 0.99, 1.0):
        exact = oracle.quantile(maps.ravel().tolist(), Fraction(str(share)))
        assert exact - abs(exact) * 2.0**-8 - 1e-30 <= float(streamed_quantile(record, share)) <= exact
        normal = oracle.quantile(maps[~masks].tolist(), Fraction(str(share)))
        assert (
            normal < float(streamed_normal_quantile(record, share).threshold) <= normal + abs(normal) * 2.0**-8 + 1e-30
        )


@pytest.mark.clause("S1", "T5")
def test_s1_histograms_are_an_algebra(backend: Backend) -> None:
    dtype = backend.usual_dtype
    maps, masks = maps_and_masks("float32", 5)
    maps[0, 0, 0, :3] = math.nan, math.inf, -math.inf
    parts = [counted(backend, dtype, maps[i : i + 1], masks[i : i + 1]) for i in range(5)]
    whole = counted(backend, dtype, maps, masks)
    merge, empty = backend.threshold.merge, backend.threshold.init()

    def same(a: Any, b: Any) -> bool:
        return all(np.array_equal(backend.to_numpy(x), backend.to_numpy(y)) for x, y in zip(a, b, strict=True))

    left = right = empty
    for part in parts:
        left = merge(left, part)
    for part in reversed(parts):
        right = merge(part, right)
    assert same(left, whole)
    assert same(right, whole)
    assert same(merge(whole, empty), whole)
    assert backend.count(whole.invalid) == 1
    assert backend.count(whole.normal) + backend.count(whole.anomalous) == maps.size - 1
    assert backend.count(whole.anomalous) == int((masks & ~np.isnan(maps)).sum())


@pytest.mark.clause("S5", "T5")
def test_s5_histograms_do_not_grow(backend: Backend) -> None:
    empty = record = backend.threshold.init()
    for scale in (1e-30, 1.0, 1e30, -1.0):
        array = backend.asarray(np.full((4, 8, 8), scale), backend.usual_dtype)
        record = backend.threshold.update(record, array)
    assert [backend.describe(field) for field in record] == [backend.describe(field) for field in empty]
    assert sum(backend.to_numpy(field).size for field in record) < 2**21


@pytest.mark.clause("T5")
def test_t5_counts_past_32_bits(backend: Backend) -> None:
    record = counted(backend, backend.usual_dtype, [0.0] * 7 + [3.0, 2.0, 2.5], [0] * 7 + [1, 1, 0], "int32")
    for _ in range(34):
        record = backend.threshold.merge(record, record)
    assert backend.count(record.normal) == 8 * 2**34
    assert float(streamed_adaptive(record)) == 2.0  # F1 4/5; 2/3 at 3, 4/12 at 0
    assert float(streamed_quantile(record, 0.5)) == 0.0


@pytest.mark.clause("T5", "S1")
def test_t5_what_is_labelled_below_zero_is_ignored(backend: Backend) -> None:
    dtype, rng = backend.usual_dtype, np.random.default_rng(8)
    values = np.exp(rng.normal(size=(3, 1, 4, 5)))
    values[0, 0, 0, :2] = math.nan
    signed = rng.permutation(np.resize([-1, 0, 0, 2, -100], values.shape).ravel()).reshape(values.shape)
    signed[0, 0, 0, :2] = -1, 0  # one of two that are NaN
    half = np.where(signed < 0, math.nan, signed / 4)
    mine = signed >= 0

    def seen(record: Any) -> tuple[int, int, int]:
        return backend.count(record.normal), backend.count(record.anomalous), backend.count(record.invalid)

    def same(a: Any, b: Any) -> bool:
        return all(np.array_equal(backend.to_numpy(x), backend.to_numpy(y)) for x, y in zip(a, b, strict=True))

    expected = counted(backend, dtype, values[mine], signed[mine] > 0)
    assert seen(expected) == (23, 12, 1)
    for labels, kind in ((signed, "int32"), (half, dtype)):
        assert same(counted(backend, dtype, values, labels, kind), expected)
        assert same(counted(backend, dtype, values[:, 0, ..., None], labels[:, 0], kind), expected)
    # One label for all pixels of a sample; and what does not take part stays out.
    for labels, kind in (([0, -1, 1], "int32"), ([0.0, math.nan, 1.0], dtype)):
        assert seen(counted(backend, dtype, values, labels, kind)) == (18, 20, 2)
        where, given = backend.asarray([False, True, True], "bool"), backend.asarray(labels, kind)
        record = backend.threshold.update(backend.threshold.init(), backend.asarray(values, dtype), given, where=where)
        assert seen(record) == (0, 20, 0)
    nothing = counted(backend, dtype, values, np.full(3, -1), "int32")
    assert same(nothing, backend.threshold.init())


@pytest.mark.clause("T5")
def test_t5_labels_and_selection(backend: Backend) -> None:
    dtype = backend.usual_dtype
    values = np.arange(24.0).reshape(2, 1, 3, 4) + 1
    maps = backend.asarray(values, dtype)
    update, init = backend.threshold.update, backend.threshold.init
    masks = np.zeros((2, 3, 4), dtype=bool)
    masks[0, 0, 0] = True

    def sizes(record: Any) -> tuple[int, int]:
        return backend.count(record.normal), backend.count(record.anomalous)

    for shape in ((2, 3, 4), (2, 1, 3, 4)):
        assert sizes(counted(backend, dtype, values, masks.reshape(shape))) == (23, 1)
    assert sizes(counted(backend, dtype, values, [0, 1], "int32")) == (12, 12)
    chosen = update(init(), maps, backend.asarray(masks, "bool"), where=backend.asarray([True, False], "bool"))
    assert sizes(chosen) == (11, 1)
    for wrong in (np.zeros((2, 4, 3)), np.zeros(3), np.zeros((1, 1, 3, 4))):
        with pytest.raises(ValueError, match="labels of shape"):
            update(init(), maps, backend.asarray(wrong, "bool"))
