"""Clauses N1 and N1b: both min-max normalizations."""

import math

import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import assert_close, evaluate, neighbours, random_values
from conformance.backend import Backend

GOLDEN = [
    # scores, threshold, min, max, expected by one slope, by two
    ([20, 40, 60, 80], 50, 0, 100, [0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]),
    ([0, 40, 80, 120], 50, 20, 100, [0, 0.375, 0.875, 1], [0, 1 / 3, 0.8, 1]),
    ([-80, -60, -40, -20], -50, -100, 0, [0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]),
    ([20, 40, 60, 80], 50, 50, 50, [0, 0, 1, 1], [0, 0, 1, 1]),
    # Nothing above the threshold, or too little of it: there the slope is that of the whole range.
    ([0, 50, 100, 130], 100, 0, 100, [0, 0, 0.5, 0.8], [0, 0.25, 0.5, 0.8]),
    ([0, 50, 96, 116], 96, 0, 100, [0, 0.04, 0.5, 0.7], [0, 25 / 96, 0.5, 0.7]),
    ([0, 50, 94, 97], 94, 0, 100, [0, 0.06, 0.5, 0.53], [0, 25 / 94, 0.5, 0.75]),
    # The same below it.
    ([-30, 0, 50, 100], 0, 0, 100, [0.2, 0.5, 1, 1], [0.2, 0.5, 0.75, 1]),
    ([-30, -10, 40, 100], -10, 0, 100, [0.3, 0.5, 1, 1], [0.3, 0.5, 0.5 + 50 / 220, 1]),
]


def _golden(backend: Backend, dtype: str, name: str) -> None:
    for scores, *parameters, one, two in GOLDEN:
        found = evaluate(backend, getattr(backend, name).normalize, dtype, scores, *parameters)
        assert_close(backend, found, two if name == "two_slope" else one, oracle.unit_bound(dtype), scores)


def _check(
    backend: Backend, dtype: str, name: str, scores: list[float], threshold: float, low: float, high: float
) -> None:
    """One of the formulas against the exact one."""
    given = [oracle.rounded(value, oracle.arithmetic(dtype)) for value in (threshold, low, high)]
    expected = [getattr(oracle, name)(x, *given) for x in scores]
    found = evaluate(backend, getattr(backend, name).normalize, dtype, scores, *given)
    assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)


def _accuracy(backend: Backend, dtype: str, name: str, scale: float) -> None:
    rng = np.random.default_rng(1)
    for offset in (0.0, 1.0, -30.0):
        for order in ((0, 1, 2), (1, 0, 2), (0, 2, 1)):  # the threshold inside of the range, below it, above it
            low, threshold, high = np.array(scale * (offset + np.sort(rng.normal(size=3))))[list(order)]
            scores = random_values(dtype, rng.uniform(low - 0.2 * scale, high + 0.2 * scale, size=300))
            _check(backend, dtype, name, scores, threshold, low, high)


SCALES = pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e4, 1e20])


@pytest.mark.clause("N1", "N7")
def test_n1_golden_rows(backend: Backend, dtype: str) -> None:
    _golden(backend, dtype, "min_max")


@pytest.mark.clause("N1b", "N7")
def test_n1b_golden_rows(backend: Backend, dtype: str) -> None:
    _golden(backend, dtype, "two_slope")


@pytest.mark.clause("N1", "N13")
@SCALES
def test_n1_accuracy(backend: Backend, dtype: str, scale: float) -> None:
    _accuracy(backend, dtype, "min_max", scale)


@pytest.mark.clause("N1b", "N13")
@SCALES
def test_n1b_accuracy(backend: Backend, dtype: str, scale: float) -> None:
    _accuracy(backend, dtype, "two_slope", scale)


@pytest.mark.clause("N13", "N1", "N1b")
def test_n13_extreme_ranges(backend: Backend, dtype: str) -> None:
    kept = oracle.arithmetic(dtype)
    largest, least = oracle.largest(kept), oracle.smallest_normal(kept) * 2.0**30
    for low, threshold, high in (
        (-largest, 0.0, largest),
        (-largest, largest, largest),
        (-largest, 0.75 * largest, 0.7 * largest),
        (0.0, least / 2, least),
        (0.0, -least, least),
        (1000.0, 1000.25, 1000.5),
    ):
        places = np.linspace(0.0, 1.0, 61)
        scores = random_values(dtype, np.append(low * (1 - places) + high * places, [1.25 * threshold, -largest]))
        for name in ("min_max", "two_slope"):
            _check(backend, dtype, name, scores, threshold, low, high)


@pytest.mark.clause("N1", "N9")
def test_n1_levels_have_their_own_statistics(backend: Backend) -> None:
    dtype = backend.usual_dtype
    maps = [[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]]
    for shape in ((2, 1, 2, 2), (2, 2, 2)):
        for module in (backend.min_max, backend.two_slope):
            found = module.normalize(backend.asarray(np.reshape(maps, shape), dtype), 4.0, 0.0, 8.0)
            assert backend.describe(found).shape == shape
            expected = [value / 8 for value in range(1, 9)]
            assert_close(backend, found, expected, oracle.unit_bound(dtype), np.ravel(maps).tolist())


@pytest.mark.clause("N7")
def test_n7_constant_population(backend: Backend, dtype: str) -> None:
    for constant, threshold in ((50.0, 50.0), (50.0, -0.125), (-0.0, 0.0), (0.0, -0.0)):
        scores = [*neighbours(threshold, dtype, 2), -1000.0, 1000.0, math.nan, math.inf, -math.inf]
        expected = [oracle.min_max(x, threshold, constant, constant) for x in scores]
        for module in (backend.min_max, backend.two_slope):
            found = evaluate(backend, module.normalize, dtype, scores, threshold, constant, constant)
            assert_close(backend, found, expected, 0.0, scores)


@pytest.mark.clause("N8")
def test_n8_unfitted_is_never_a_number(backend: Backend, dtype: str) -> None:
    for module in (backend.min_max, backend.two_slope):
        record = module.init()
        found = module.normalize(backend.asarray([0.0, 1.0], dtype), 0.5, record.min, record.max)
        assert_close(backend, found, [math.nan, math.nan], 0.0, [0.0, 1.0])
        for function in (module.normalize, module.margin, module.denormalize):
            assert all(map(math.isnan, evaluate(backend, function, dtype, [0.0, 0.5, 1.0], 0.5, 0.75, 0.25)))
