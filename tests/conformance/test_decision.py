"""Clauses N4, N5 and N6: the normalized score and the decision agree to the last bit, and the scores are in order."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import mpmath
import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import assert_order, assert_sides, evaluate, neighbours, random_values
from conformance.backend import Backend

# Numbers of no binary type are rounded to float32, or float64 for float64 scores, on every backend.
POSITIVE = [0.1, 0.5, 1.0, math.pi, 13.6, 1000.0, 2.0**-126, 1.7e38]
ANY = [0.0, -0.1, -3.0, *POSITIVE]
Normalize = Callable[..., Any]  # (scores, threshold, *parameters)


def _decisions(backend: Backend, method: str) -> tuple[Normalize, list[float], list[tuple[float, ...]]]:
    """A function, thresholds, and parameters."""
    ranges = [(-7.0, 50.0), (0.0, 1e-3), (2.0, 2.0), (-3e38, 3e38)]
    moments = [(0.3, 0.7), (1.5, 3.5e-4), (-4.0, 0.02), (2.0, 80.0), (0.0, 2.0**16), (0.0, 0.0)]
    return {
        "min_max": (backend.min_max.normalize, ANY, ranges),
        "two_slope": (backend.two_slope.normalize, ANY, ranges),
        "cdf": (backend.cdf.normalize, POSITIVE, moments),
        "normal": (backend.normal.normalize, ANY[::3], [(0.3, 0.7), (-1200.0, 12.0), (0.0, 2.0**100), (2.0, 0.0)]),
        "sigmas": (backend.cdf.normalize_standardized, ANY, [()]),
    }[method]


METHODS = pytest.mark.parametrize("method", ["min_max", "two_slope", "cdf", "normal"])


def _check(
    backend: Backend, dtype: str, method: str, values: list[float], threshold: float, *parameters: float
) -> None:
    normalize, *_ = _decisions(backend, method)
    kept = oracle.arithmetic(dtype)
    given = [oracle.rounded(value, kept) for value in (threshold, *parameters)]
    units = evaluate(backend, normalize, dtype, values, *given)
    flags = evaluate(backend, backend.threshold.flag, dtype, values, given[0])
    assert_sides(backend, values, units, flags, given[0])


def _around(threshold: float, dtype: str) -> list[float]:
    """Neighbours, and scores further out, in every binade that matters."""
    center = oracle.rounded(threshold, oracle.arithmetic(dtype))
    values = neighbours(center, dtype, 20)
    values += random_values(dtype, np.array([center * (1 + s * 2.0**-e) for e in range(60) for s in (-1, 1)]))
    values += random_values(dtype, np.array([center + s * 2.0**-e for e in range(60) for s in (-1, 1)]))
    least = oracle.smallest_normal(dtype)
    return [x for x in values if x == 0 or abs(x) >= least]


@pytest.mark.clause("N4")
@METHODS
def test_n4_neighbours_of_the_threshold(backend: Backend, dtype: str, method: str) -> None:
    _, thresholds, parameters = _decisions(backend, method)
    for threshold, given in product(thresholds, parameters):
        _check(backend, dtype, method, _around(threshold, dtype), threshold, *given)


@pytest.mark.clause("N4b", "N6")
def test_n4b_decided_on_z_scores(backend: Backend, dtype: str) -> None:
    for threshold in (*ANY, 3.3):
        _check(backend, dtype, "sigmas", _around(threshold, dtype), threshold)
        t = oracle.rounded(threshold, oracle.arithmetic(dtype))
        z = [*random_values(dtype, t + np.linspace(-12, 12, 101)), math.nan, math.inf, -math.inf]
        found = evaluate(backend, backend.cdf.normalize_standardized, dtype, z, t)
        for value, unit in zip(z, found, strict=True):
            exact = oracle.phi(mpmath.mpf(value) - mpmath.mpf(t))
            assert abs(unit - exact) <= oracle.unit_bound(dtype) or (math.isnan(unit) and math.isnan(exact)), value


@pytest.mark.clause("N4", "N5")
@METHODS
@pytest.mark.dtypes(("float16", "bfloat16"))
def test_n4_every_number_of_a_half_type(backend: Backend, dtype: str, method: str) -> None:
    normalize, _, parameters = _decisions(backend, method)
    least = oracle.smallest_normal(dtype)
    values = [x for x in oracle.all_16_bit(dtype) if x == 0 or abs(x) >= least]
    threshold = oracle.rounded(0.1, "float32")
    given = [oracle.rounded(value, "float32") for value in parameters[0]]
    _check(backend, dtype, method, values, threshold, *given)
    units = evaluate(backend, normalize, dtype, values, threshold, *given)
    assert_order(backend, dtype, values, units)


@pytest.mark.clause("N4")
@METHODS
@pytest.mark.dtypes(("float64", "float32"))
def test_n4_threshold_of_another_dtype(backend: Backend, dtype: str, method: str) -> None:
    # A module's own threshold is an array, in another dtype than the scores; a number is one of float64.
    normalize, _, parameters = _decisions(backend, method)
    given: list[tuple[Any, float]] = [(0.1, 0.1)]
    for other in {"float32", "float64"}.intersection(backend.dtypes):
        array = backend.asarray(0.1, other)
        if backend.describe(array).dtype == other:  # JAX has float64 only in the context of tests about it
            given.append((array, oracle.rounded(0.1, other)))
    for threshold, value in given:
        exact = oracle.rounded(value, oracle.arithmetic(dtype))
        values = neighbours(exact, dtype, 4)
        array = backend.asarray(values, dtype)
        units = backend.to_numpy(normalize(array, threshold, *parameters[0])).tolist()
        flags = backend.to_numpy(backend.threshold.flag(array, threshold)).tolist()
        assert_sides(backend, values, units, flags, exact)


@pytest.mark.clause("N5")
@METHODS
def test_n5_in_order_among_neighbours(backend: Backend, dtype: str, method: str) -> None:
    normalize, _, parameters = _decisions(backend, method)
    kept = oracle.arithmetic(dtype)
    for given in parameters[:4]:
        rounded = [oracle.rounded(value, kept) for value in given]
        threshold = oracle.rounded(1.25, kept)
        # In deviations from the threshold under the CDF, also where a logarithm or an erfc takes another form.
        places = [given[1] * z for z in (-5.5, -math.sqrt(2), -1.0, 0.0, 0.5, 1.5, 3.7, 5.3)]
        starts = [threshold * math.exp(place) for place in places] if method == "cdf" else []
        starts += [threshold + place for place in places] if method == "normal" else []
        starts = [x for x in starts if 2.0**-100 < x < 2.0**100] + [0.625, 1.875, 1.25, 40.0, -6.9, 4e-4]
        for start in starts:
            values = neighbours(start, dtype, 250)
            units = evaluate(backend, normalize, dtype, values, threshold, *rounded)
            assert_order(backend, dtype, values, units)


@pytest.mark.clause("N5")
@METHODS
def test_n5_in_order_across_the_range(backend: Backend, dtype: str, method: str) -> None:
    normalize, _, parameters = _decisions(backend, method)
    kept = oracle.arithmetic(dtype)
    draws = np.random.default_rng(4).normal(0, 20, size=500)
    powers = [sign * 2.0**e for e in range(-126, 128, 2) for sign in (-1, 1)]
    values = [*random_values(dtype, np.append(np.append(draws, np.exp(draws)), powers)), math.inf, -math.inf, 0.0]
    for given in parameters:
        rounded = [oracle.rounded(value, kept) for value in given]
        for threshold in (0.1, 1.0, 30.0):
            units = evaluate(backend, normalize, dtype, values, oracle.rounded(threshold, kept), *rounded)
            assert_order(backend, dtype, values, units)


@pytest.mark.clause("N6")
@METHODS
def test_n6_special_values(backend: Backend, dtype: str, method: str) -> None:
    normalize, _, parameters = _decisions(backend, method)
    values = [math.nan, math.inf, -math.inf]
    for given in parameters:
        u = evaluate(backend, normalize, dtype, values, 0.5, *given)
        assert math.isnan(u[0])
        assert u[1:] == [1.0, 0.0]
    assert evaluate(backend, backend.threshold.flag, dtype, values, 0.5) == [False, True, False]


@pytest.mark.clause("N6", "N4")
def test_n6_subnormal_scores_are_themselves_or_zero(backend: Backend, dtype: str) -> None:
    tiny = oracle.smallest_normal(dtype)
    values = [tiny / 2, tiny / 4, -tiny / 2]
    cases: list[tuple[Normalize, Callable[..., float], tuple[float, ...]]] = [
        (backend.min_max.normalize, oracle.min_max, (1.0, -4.0, 4.0)),
        (backend.two_slope.normalize, oracle.two_slope, (-1.0, -4.0, 4.0)),
        (backend.cdf.normalize, lambda x, threshold, _, std: oracle.cdf(x, threshold, std), (1.0, 0.0, 80.0)),
    ]
    for normalize, exact, given in cases:
        for x, unit in zip(values, evaluate(backend, normalize, dtype, values, *given), strict=True):
            assert min(abs(unit - exact(value, *given)) for value in (x, 0.0)) <= oracle.unit_bound(dtype), x
