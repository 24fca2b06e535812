"""Clause N1."""

import math

import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import assert_close, flushed, random_values, unit_tolerance
from conformance.backend import Backend

GOLDEN = [
    # scores, threshold, min, max, expected
    ([20, 40, 60, 80], 50, 0, 100, [0.2, 0.4, 0.6, 0.8]),
    ([0, 40, 80, 120], 50, 20, 100, [0, 0.375, 0.875, 1]),
    ([-80, -60, -40, -20], -50, -100, 0, [0.2, 0.4, 0.6, 0.8]),
    ([20, 40, 60, 80], 50, 50, 50, [0, 0, 1, 1]),
]


@pytest.mark.clause("N1")
@pytest.mark.parametrize(("scores", "threshold", "low", "high", "expected"), GOLDEN)
def test_n1_golden_rows(
    backend: Backend, dtype: str, scores: list[int], threshold: int, low: int, high: int, expected: list[float]
) -> None:
    found = backend.min_max.normalize(backend.asarray(scores, dtype), threshold, low, high)
    assert_close(backend, found, expected, unit_tolerance(dtype), scores)


@pytest.mark.clause("N13", "N1", "N4")
@pytest.mark.dtypes(("float64", "float32", "bfloat16"))
@pytest.mark.parametrize("exponent", [0, 12, 24])
def test_n13_ranges_near_the_smallest_number(backend: Backend, dtype: str, exponent: int) -> None:
    least = oracle.smallest_normal(oracle.arithmetic(dtype))
    span = least * 2.0**exponent
    for threshold in (0.0, least, span):
        scores = random_values(dtype, threshold + span * np.linspace(-0.75, 0.75, 61))
        expected = [oracle.min_max(x, threshold, 0.0, span) for x in scores]
        parameters = [backend.asarray(value, oracle.arithmetic(dtype)) for value in (threshold, 0.0, span)]
        found = backend.min_max.normalize(backend.asarray(scores, dtype), *parameters)
        assert_close(backend, found, expected, unit_tolerance(dtype) + flushed(backend, dtype, span), scores)
        for x, unit in zip(scores, backend.to_numpy(found).tolist(), strict=True):
            assert (unit >= 0.5) == (x >= threshold), x


@pytest.mark.clause("N1", "N4")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_n1_accuracy(backend: Backend, dtype: str, scale: float) -> None:
    rng = np.random.default_rng(1)
    arithmetic = oracle.arithmetic(dtype)
    for offset in (0.0, 1.0, -30.0):
        low, threshold, high = (
            oracle.rounded(value, arithmetic) for value in scale * (offset + np.sort(rng.normal(size=3)))
        )
        scores = random_values(dtype, rng.uniform(low - 0.2 * scale, high + 0.2 * scale, size=300))
        expected = [oracle.min_max(x, threshold, low, high) for x in scores]
        # Statistics may be arrays, as the finalizer returns them, or numbers.
        parameters = [backend.asarray(value, arithmetic) for value in (threshold, low, high)]
        found = backend.min_max.normalize(backend.asarray(scores, dtype), *parameters)
        assert_close(backend, found, expected, unit_tolerance(dtype), scores)


@pytest.mark.clause("N1")
@pytest.mark.dtypes(("float64", "float32"))
def test_n1_range_that_overflows(backend: Backend, dtype: str) -> None:
    largest = oracle.rounded(1.7e308 if dtype == "float64" else 3.4e38, dtype)
    scores = [-largest, -largest / 2, 0.0, largest / 4, largest]
    found = backend.min_max.normalize(backend.asarray(scores, dtype), 0.0, -largest, largest)
    assert_close(backend, found, [0.0, 0.25, 0.5, 0.625, 1.0], unit_tolerance(dtype), scores)


@pytest.mark.clause("N1")
def test_n1_levels_have_their_own_statistics(backend: Backend, dtype: str) -> None:
    maps = [[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]]
    for shape in ((2, 1, 2, 2), (2, 2, 2)):
        array = backend.asarray(np.reshape(maps, shape), dtype)
        found = backend.min_max.normalize(array, 4.0, 0.0, 8.0)
        assert backend.describe(found).shape == shape
        expected = [value / 8 for value in range(1, 9)]
        assert_close(backend, found, expected, unit_tolerance(dtype), np.ravel(maps).tolist())
    image = backend.min_max.normalize(backend.asarray([4.0, 8.0], dtype), 6.0, 4.0, 8.0)
    assert_close(backend, image, [0.0, 1.0], unit_tolerance(dtype), [4.0, 8.0])


@pytest.mark.clause("N7")
def test_n7_constant_population(backend: Backend, dtype: str) -> None:
    for center in (0.0, 50.0, -0.125):
        below, above = oracle.next_down(center, dtype), oracle.next_up(center, dtype)
        scores = [-1000.0, below, center, above, 1000.0, math.nan, math.inf, -math.inf]
        found = backend.min_max.normalize(backend.asarray(scores, dtype), center, 50.0, 50.0)
        assert_close(backend, found, [0, 0, 0.5, 1, 1, math.nan, 1, 0], 0.0, scores)


@pytest.mark.clause("N8")
def test_n8_unfitted_is_never_a_number(backend: Backend, dtype: str) -> None:
    record = backend.min_max.init()
    found = backend.min_max.normalize(backend.asarray([0.0, 1.0], dtype), 0.5, record.min, record.max)
    assert_close(backend, found, [math.nan, math.nan], 0.0, [0.0, 1.0])
    for function in (backend.min_max.normalize, backend.min_max.margin, backend.min_max.denormalize):
        found = function(backend.asarray([0.0, 1.0], dtype), 0.5, 0.75, 0.25)
        assert_close(backend, found, [math.nan, math.nan], 0.0, [0.0, 1.0])
