"""Clauses N4, N5 and N6: the unit score and the decision agree to the last bit, and the unit score is in order."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import order_slack
from conformance.backend import Backend

# 0.1 and pi are numbers of no binary type, and are rounded to float32 (float64 for float64 scores) on every backend.
THRESHOLDS = [0.0, 0.1, -0.1, 0.5, 1.0, -3.0, math.pi, 13.6, 1000.0]
Normalize = Callable[[Any, float], Any]


def _min_max(backend: Backend) -> Normalize:
    return lambda scores, threshold: backend.min_max.normalize(scores, threshold, -7.0, 50.0)


def _cdf(backend: Backend) -> Normalize:
    return lambda z, threshold: backend.cdf.normalize(z, threshold)


METHODS = pytest.mark.parametrize("method", [_min_max, _cdf], ids=["min_max", "cdf"])


def _check(backend: Backend, normalize: Normalize, values: list[float], threshold: float, dtype: str) -> None:
    rounded = oracle.rounded(threshold, oracle.arithmetic(dtype))
    array = backend.asarray(values, dtype)
    u = backend.to_numpy(normalize(array, threshold)).tolist()
    flags = backend.to_numpy(backend.threshold.flag(array, threshold)).tolist()
    wrong = []
    for x, unit, flagged in zip(values, u, flags, strict=True):
        if flagged != (x >= rounded) or (unit >= 0.5) != (x >= rounded) or (x == rounded and unit != 0.5):
            wrong.append(f"x={x!r} t={rounded!r}: unit score {unit!r}, flagged {flagged}")
    assert not wrong, f"{backend.id}: {len(wrong)} of {len(values)} decisions differ\n" + "\n".join(wrong[:5])


@pytest.mark.clause("N4")
@METHODS
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_n4_neighbours_of_the_threshold(
    backend: Backend, dtype: str, method: Callable[[Backend], Normalize], threshold: float
) -> None:
    center = oracle.rounded(oracle.rounded(threshold, oracle.arithmetic(dtype)), dtype)
    values = [center]
    for _ in range(20):
        values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
    # and further out, in every binade that matters
    values += [center + sign * 2.0**-e for e in range(60) for sign in (-1, 1)]
    _check(backend, method(backend), [oracle.rounded(x, dtype) for x in values], threshold, dtype)


@pytest.mark.clause("N4", "N5")
@METHODS
@pytest.mark.dtypes(("float16", "bfloat16"))
@pytest.mark.parametrize("threshold", [0.1, -3.0])
def test_n4_every_number_of_a_half_type(
    backend: Backend, dtype: str, method: Callable[[Backend], Normalize], threshold: float
) -> None:
    values = oracle.all_16_bit(dtype)
    _check(backend, method(backend), values, threshold, dtype)
    _check_order(backend, method(backend), values, threshold, dtype)


@pytest.mark.clause("N4")
@METHODS
def test_n4_threshold_as_an_array(backend: Backend, dtype: str, method: Callable[[Backend], Normalize]) -> None:
    # A module's own threshold is an array, and in another dtype than the scores.
    for threshold_dtype in {"float32", "float64"}.intersection(backend.dtypes):
        threshold = backend.asarray(0.1, threshold_dtype)
        if backend.describe(threshold).dtype != threshold_dtype:
            continue  # JAX has float64 only in the context of tests about it
        exact = oracle.rounded(oracle.rounded(0.1, threshold_dtype), oracle.arithmetic(dtype))
        values = [oracle.rounded(exact + k * oracle.ulp(exact, dtype), dtype) for k in range(-3, 4)]
        array = backend.asarray(values, dtype)
        u = backend.to_numpy(method(backend)(array, threshold)).tolist()
        flags = backend.to_numpy(backend.threshold.flag(array, threshold)).tolist()
        assert flags == [x >= exact for x in values]
        assert [unit >= 0.5 for unit in u] == flags


def _check_order(backend: Backend, normalize: Normalize, values: list[float], threshold: float, dtype: str) -> None:
    u = backend.to_numpy(normalize(backend.asarray(values, dtype), threshold))
    assert np.all((u >= 0) & (u <= 1))
    falls = u[:-1] - u[1:]
    slack = np.array([order_slack(backend, float(value), dtype) for value in u[:-1]])
    worst = int(np.argmax(falls - slack))
    assert np.all(falls <= slack), f"{backend.id}: {values[worst]!r} -> {u[worst]!r}, next -> {u[worst + 1]!r}"


@pytest.mark.clause("N5")
@METHODS
@pytest.mark.parametrize("start", [-9.0, -5.5, -2.0, -1.0, -0.5, -1e-3, 0.0, 1.0, 2.5, 3.7, 4.0, 5.3])
def test_n5_in_order_among_neighbours(
    backend: Backend, dtype: str, method: Callable[[Backend], Normalize], start: float
) -> None:
    values = [oracle.rounded(start, dtype)]
    for _ in range(2000 if dtype in ("float32", "float64") else 50):
        values.append(oracle.next_up(values[-1], dtype))
    _check_order(backend, method(backend), values, 0.25, dtype)


@pytest.mark.clause("N5")
@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_n5_where_it_falls_most(backend: Backend, dtype: str, threshold: float) -> None:
    # The largest falls that a search among millions of neighbours found, in float64; specification, N5.
    for start in (1.6976370810858132 - 3.0, -1.389483417560953, -1.41421356):
        values = [oracle.rounded(start + threshold, dtype)]
        for _ in range(200):
            values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
        _check_order(backend, backend.cdf.normalize, values, threshold, dtype)


@pytest.mark.clause("N5")
@METHODS
def test_n5_in_order_across_the_range(backend: Backend, dtype: str, method: Callable[[Backend], Normalize]) -> None:
    draws = np.random.default_rng(4).normal(0, 20, size=4000)
    values = sorted({oracle.rounded(float(x), dtype) for x in draws})
    _check_order(backend, method(backend), [-math.inf, *values, math.inf], 1.0, dtype)


@pytest.mark.clause("N6")
@METHODS
def test_n6_special_values(backend: Backend, dtype: str, method: Callable[[Backend], Normalize]) -> None:
    array = backend.asarray([math.nan, math.inf, -math.inf], dtype)
    u = backend.to_numpy(method(backend)(array, 0.5)).tolist()
    assert math.isnan(u[0])
    assert u[1:] == [1.0, 0.0]
    assert backend.to_numpy(backend.threshold.flag(array, 0.5)).tolist() == [False, True, False]
