"""Clauses N10 and N11: extras that keep their order, and the way back to raw scores."""

import math
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import assert_close, evaluate, random_values
from conformance.backend import Backend

# threshold, min, max
RANGES = [(1.5, 0.25, 4.0), (-3.0, -7.0, 50.0), (0.1, 0.0, 1e-3), (1000.0, 999.0, 1001.5), (49.0, -7.0, 50.0)]


@pytest.mark.clause("N10")
@pytest.mark.parametrize(("threshold", "low", "high"), RANGES)
def test_n10_margin(backend: Backend, dtype: str, threshold: float, low: float, high: float) -> None:
    kept = oracle.arithmetic(dtype)
    t, low, high = (oracle.rounded(value, kept) for value in (threshold, low, high))
    scores = random_values(dtype, np.random.default_rng(1).normal(threshold, 3 * (high - low), size=200))
    exact = [float((Fraction(x) - Fraction(t)) / (Fraction(high) - Fraction(low))) for x in scores]
    # one rounding each of the range, the difference, and the quotient
    tolerance = [3 * oracle.ulp(value, kept) for value in exact]
    for module in (backend.min_max, backend.two_slope):
        found = evaluate(backend, module.margin, dtype, scores, t, low, high)
        assert_close(backend, found, exact, tolerance, scores)


@pytest.mark.clause("N10", "N6", "N7", "N8")
def test_n10_margin_of_special_values_and_ranges(backend: Backend, dtype: str) -> None:
    scores = [math.nan, math.inf, -math.inf, 0.5, 0.25, 0.75]
    inf, nan = math.inf, math.nan
    for low, high, finite in (
        (0.0, 1.0, [0, -0.25, 0.25]),
        (2.0, 2.0, [0, -inf, inf]),
        (0.0, -0.0, [0, -inf, inf]),
        (-0.0, 0.0, [0, -inf, inf]),
        (inf, -inf, None),
    ):
        found = evaluate(backend, backend.min_max.margin, dtype, scores, 0.5, low, high)
        assert_close(backend, found, [nan] * 6 if finite is None else [nan, inf, -inf, *finite], 0.0, scores)


@pytest.mark.clause("N10")
def test_n10_margin_keeps_the_order_that_the_normalized_score_loses(backend: Backend, dtype: str) -> None:
    values = [2.0]
    while len(values) < 60:
        values.append(oracle.next_up(values[-1], dtype))
    assert set(evaluate(backend, backend.min_max.normalize, dtype, values, 0.5, 0.0, 1.0)) == {1.0}
    margin = np.array(evaluate(backend, backend.min_max.margin, dtype, values, 0.5, 0.0, 1.0))
    assert np.all(np.diff(margin) >= 0)
    assert np.all(margin[4:] > margin[:-4])  # further apart than a few ulp


@pytest.mark.clause("N10", "N13")
def test_n10_z_keeps_the_order_of_the_scores(backend: Backend, dtype: str) -> None:
    rng = np.random.default_rng(9)
    for mean, std in ((0.0, 1.0), (1.5, 0.25), (-4.0, 0.02), (2.0, 80.0)):
        std = oracle.rounded(std, oracle.arithmetic(dtype))
        with np.errstate(over="ignore"):
            draws = np.exp(np.clip(rng.normal(mean, 5 * std, 400), -80, 80))
        scores = np.sort(random_values(dtype, draws))
        z = np.array(evaluate(backend, backend.cdf.standardize, dtype, scores.tolist(), mean, std))
        assert np.all(np.diff(z)[np.diff(scores) > 0] >= 0)
        exact = [oracle.z_score(x, mean, std) for x in scores.tolist()]
        bound = [2 * oracle.z_bound(value, std, dtype, abs(mean) + 7 * std) for value in exact]
        apart = np.array([float(b - a) for a, b in pairwise(exact)]) > np.array(bound[1:])
        assert np.all(np.diff(z)[apart] > 0)


def _width(u: float, t: float, low: float, high: float, two: bool) -> Fraction:
    span = Fraction(high) - Fraction(low)
    side = Fraction(t) - Fraction(low) if u < 0.5 else Fraction(high) - Fraction(t)
    return 2 * side if two and side > 0 and 20 * side >= span else span


@pytest.mark.clause("N11")
@pytest.mark.parametrize(("threshold", "low", "high"), RANGES)
def test_n11_min_max(backend: Backend, dtype: str, threshold: float, low: float, high: float) -> None:
    kept = oracle.arithmetic(dtype)
    t, low, high = (oracle.rounded(value, kept) for value in (threshold, low, high))
    units = random_values(dtype, np.concatenate([[0.0, 0.5, 1.0], np.linspace(0.001, 0.999, 50)]))
    for two, module in enumerate((backend.min_max, backend.two_slope)):
        exact = [
            float((Fraction(u) - Fraction(1, 2)) * _width(u, t, low, high, bool(two)) + Fraction(t)) for u in units
        ]
        found = evaluate(backend, module.denormalize, dtype, units, t, low, high)
        tolerance = 4 * oracle.ulp(max(abs(t), 2 * (high - low)), kept)
        assert_close(backend, found, exact, tolerance, units)
        assert found[1] == t


@pytest.mark.clause("N11")
@pytest.mark.parametrize("std", [1.0, 0.3, 0.02, 5.0])
def test_n11_cdf(backend: Backend, dtype: str, std: float) -> None:
    kept = oracle.arithmetic(dtype)
    std = oracle.rounded(std, kept)
    units = [0.5, *random_values(dtype, np.linspace(0.001, 0.999, 80))]
    for threshold in (1.0, 0.01, 3.0):
        t = oracle.rounded(threshold, kept)
        exact = [float(t * mpmath.exp(std * oracle.normal_quantile(u))) for u in units]
        # exp turns the rounding of its argument into a relative error; the inverse CDF is good to 2^-20 in float32.
        relative = (32 * std + 8) * oracle.ulp(1.0, kept)
        found = evaluate(backend, backend.cdf.denormalize, dtype, units, t, 0.25, std)
        assert_close(backend, found, exact, [x * relative for x in exact], units)
        assert found[0] == t


@pytest.mark.clause("N11", "N7", "N8")
def test_n11_limits_and_what_is_no_normalized_score(backend: Backend, dtype: str) -> None:
    units, nan = [0.0, 1.0, -0.25, 1.5, math.nan, math.inf], math.nan
    cdf, min_max, two_slope = (m.denormalize for m in (backend.cdf, backend.min_max, backend.two_slope))
    for function, parameters, ends in (
        (cdf, (2.0, 1.0, 0.5), [0.0, math.inf]),
        (cdf, (2.0, 1.0, 0.0), [2.0, 2.0]),
        (min_max, (2.0, 1.0, 3.0), [1.0, 3.0]),
        (two_slope, (2.0, 1.0, 6.0), [1.0, 6.0]),
        (two_slope, (2.0, 2.0, 2.0), [2.0, 2.0]),
        (min_max, (2.0, math.inf, -math.inf), [nan, nan]),
    ):
        found = evaluate(backend, function, dtype, units, *parameters)
        assert_close(backend, found, [*ends, *[nan] * 4], 0.0, units)
