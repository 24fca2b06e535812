"""Clauses N10 to N12: extras that keep their order, the way back to raw scores, independence of the batch."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest

from anomnorm_core import ResolutionError
from conformance import oracle
from conformance.assertions import assert_close, random_values
from conformance.backend import Backend

# threshold, min, max
RANGES = [(1.5, 0.25, 4.0), (-3.0, -7.0, 50.0), (0.1, 0.0, 1e-3), (1000.0, 999.0, 1001.5)]


def resolution(value: float, dtype: str) -> float:
    """Half a unit in the last place of a half type, into which results are rounded at the end."""
    return 0.0 if dtype in ("float32", "float64") else oracle.ulp(value, dtype) / 2


@pytest.mark.clause("N10")
@pytest.mark.parametrize(("threshold", "low", "high"), RANGES)
def test_n10_margin(backend: Backend, dtype: str, threshold: float, low: float, high: float) -> None:
    arithmetic = oracle.arithmetic(dtype)
    t, low, high = (oracle.rounded(value, arithmetic) for value in (threshold, low, high))
    draws = np.random.default_rng(1).normal(threshold, 3 * (high - low), size=200)
    scores = [x for x in random_values(dtype, draws) if math.isfinite(x)]
    exact = [float((Fraction(x) - Fraction(t)) / (Fraction(high) - Fraction(low))) for x in scores]
    exact = [oracle.rounded(value, dtype) for value in exact]
    found = backend.min_max.margin(backend.asarray(scores, dtype), t, low, high)
    # one rounding each of the range, the difference, and the quotient
    tolerance = [3 * oracle.ulp(value, arithmetic) + 2 * resolution(value, dtype) for value in exact]
    assert_close(backend, found, exact, tolerance, scores)


@pytest.mark.clause("N10", "N6", "N7", "N8")
def test_n10_margin_of_special_values_and_ranges(backend: Backend, dtype: str) -> None:
    scores = [math.nan, math.inf, -math.inf, 0.5, 0.25, 0.75]
    array = backend.asarray(scores, dtype)
    inf, nan = math.inf, math.nan
    assert_close(backend, backend.min_max.margin(array, 0.5, 0.0, 1.0), [nan, inf, -inf, 0, -0.25, 0.25], 0.0, scores)
    assert_close(backend, backend.min_max.margin(array, 0.5, 2.0, 2.0), [nan, inf, -inf, 0, -inf, inf], 0.0, scores)
    assert_close(backend, backend.min_max.margin(array, 0.5, inf, -inf), [nan] * 6, 0.0, scores)
    for low, high in ((0.0, -0.0), (-0.0, 0.0)):
        assert_close(
            backend, backend.min_max.margin(array, 0.5, low, high), [nan, inf, -inf, 0, -inf, inf], 0.0, scores
        )
        assert_close(backend, backend.min_max.normalize(array, 0.5, low, high), [nan, 1, 0, 0.5, 0, 1], 0.0, scores)


@pytest.mark.clause("N10")
def test_n10_margin_keeps_the_order_that_the_unit_score_loses(backend: Backend, dtype: str) -> None:
    values = [oracle.rounded(2.0, dtype)]
    while len(values) < 40:
        values.append(oracle.next_up(values[-1], dtype))
    array = backend.asarray(values, dtype)
    unit = backend.to_numpy(backend.min_max.normalize(array, 0.5, 0.0, 1.0))
    assert set(unit.tolist()) == {1.0}
    margin = backend.to_numpy(backend.min_max.margin(array, 0.5, 0.0, 1.0))
    assert np.all(np.diff(margin) >= 0)
    assert np.all(margin[3:] > margin[:-3])  # further apart than a few ulp


@pytest.mark.clause("N11")
@pytest.mark.parametrize(("threshold", "low", "high"), RANGES)
def test_n11_min_max(backend: Backend, dtype: str, threshold: float, low: float, high: float) -> None:
    arithmetic = oracle.arithmetic(dtype)
    t, low, high = (oracle.rounded(value, arithmetic) for value in (threshold, low, high))
    units = random_values(dtype, np.concatenate([[0.0, 0.5, 1.0], np.linspace(0.001, 0.999, 50)]))
    exact = [float((Fraction(u) - Fraction(1, 2)) * (Fraction(high) - Fraction(low)) + Fraction(t)) for u in units]
    found = backend.min_max.denormalize(backend.asarray(units, dtype), t, low, high)
    largest = max(abs(t), high - low)
    tolerance = [2 * oracle.ulp(largest, arithmetic) + 2 * resolution(value, dtype) for value in exact]
    assert_close(backend, found, [oracle.rounded(value, dtype) for value in exact], tolerance, units)
    at_half = backend.min_max.denormalize(backend.asarray([0.5], dtype), t, low, high)
    assert backend.to_numpy(at_half).tolist() == [oracle.rounded(t, dtype)]


@pytest.mark.clause("N11")
@pytest.mark.parametrize(("mean", "std", "threshold"), [(0.0, 1.0, 0.0), (1.5, 0.3, 3.0), (-4.0, 0.02, 2.0)])
@pytest.mark.parametrize("center", [None, 0.0, 1.25])
def test_n11_cdf(backend: Backend, dtype: str, mean: float, std: float, threshold: float, center: float | None) -> None:
    arithmetic = oracle.arithmetic(dtype)
    mean, std = oracle.rounded(mean, arithmetic), oracle.rounded(std, arithmetic)
    units = [u for u in random_values(dtype, np.linspace(0.001, 0.999, 80)) if 0 < u < 1]
    exact, tolerance = [], []
    for u in units:
        z = oracle.normal_quantile(u)
        x = float(mpmath.exp((mean if center is None else center) + std * (z + threshold)))
        exact.append(oracle.rounded(x, dtype))
        exponent = abs(mean if center is None else center) + std * (abs(float(z)) + threshold)
        # exp turns the rounding of its argument into a relative error; the inverse CDF is good to 2^-20 in float32.
        relative = (8 * exponent + 4) * oracle.ulp(1.0, arithmetic) + 32 * std * oracle.ulp(1.0, arithmetic)
        tolerance.append(x * relative + 2 * resolution(x, dtype))
    found = backend.cdf.denormalize(backend.asarray(units, dtype), threshold, mean, std, center_at=center)
    assert_close(backend, found, exact, tolerance, units)


@pytest.mark.clause("N11")
def test_n11_limits_and_what_is_no_unit_score(backend: Backend, dtype: str) -> None:
    units = [0.0, 1.0, -0.25, 1.5, math.nan, math.inf]
    array = backend.asarray(units, dtype)
    found = backend.cdf.denormalize(array, 2.0, 1.0, 0.5)
    assert_close(backend, found, [0.0, math.inf] + [math.nan] * 4, 0.0, units)
    found = backend.min_max.denormalize(array, 2.0, 1.0, 3.0)
    assert_close(backend, found, [1.0, 3.0] + [math.nan] * 4, 0.0, units)
    for unfitted in (
        backend.cdf.denormalize(array, 2.0, math.nan, 0.5),
        backend.cdf.denormalize(array, 2.0, 1.0, math.nan),
        backend.min_max.denormalize(array, 2.0, math.inf, -math.inf),
    ):
        assert_close(backend, unfitted, [math.nan] * 6, 0.0, units)
    constant = backend.to_numpy(backend.cdf.denormalize(backend.asarray([0.0, 0.5, 1.0], dtype), 2.0, 1.0, 0.0))
    assert constant == pytest.approx(math.e, rel=2 * oracle.ulp(1.0, dtype))


@pytest.mark.clause("N11", "S8")
def test_n11_other_resolution_is_an_error(backend: Backend) -> None:
    maps = backend.asarray(np.full((2, 1, 4, 4), 0.5), backend.usual_dtype)
    statistics = backend.asarray(np.ones((1, 4)), backend.usual_dtype)
    with pytest.raises(ResolutionError, match=r"4, 4.*\(1, 4"):
        backend.cdf.denormalize(maps, 0.0, statistics, statistics)


@pytest.mark.clause("N4", "P2")
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-4.0, 0.02), (0.35, 3.5e-4), (0.1, 6.0), (2.0, 80.0), (0.0, 2.0**16)]
)
@pytest.mark.parametrize("threshold", [3.3, 1e-3, 4000.0, 1.0])
def test_n4_decided_on_raw_scores(backend: Backend, dtype: str, mean: float, std: float, threshold: float) -> None:
    t = oracle.rounded(threshold, oracle.arithmetic(dtype))
    values = [oracle.rounded(t, dtype)]
    for _ in range(30):
        values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
    values += [oracle.rounded(t * factor, dtype) for factor in (0.2, 0.9, 1.1, 7.0)]
    array = backend.asarray(values, dtype)
    z, z_threshold = backend.cdf.standardize_around(array, t, mean, std)
    limit = float(backend.to_numpy(z_threshold))
    assert math.isfinite(limit)
    assert backend.describe(z) == backend.describe(array)
    assert backend.describe(z_threshold).dtype == dtype
    flags = backend.to_numpy(backend.threshold.flag(z, z_threshold)).tolist()
    units = backend.to_numpy(backend.cdf.normalize(z, z_threshold)).tolist()
    for x, flagged, unit, each in zip(values, flags, units, backend.to_numpy(z).tolist(), strict=True):
        assert flagged == (x >= t) == (unit >= 0.5), f"{backend.id}: x={x!r} t={t!r} z={each!r} u={unit!r}"
        assert x != t or (unit == 0.5 and each == limit)
    units_up = [unit for _, unit in sorted(zip(values, units, strict=True))]
    assert all(a <= b + 8 * oracle.ulp(a, dtype) for a, b in pairwise(units_up))
    # It moves by no more than what keeps the sides apart.
    plain = backend.to_numpy(backend.cdf.standardize(array, mean, std))
    for moved, each in zip(backend.to_numpy(z).tolist(), plain.tolist(), strict=True):
        assert math.isinf(each) or abs(moved - each) <= 3 * oracle.ulp(each, dtype)  # an infinite threshold is none


@pytest.mark.clause("N4", "N6", "N7")
@pytest.mark.parametrize("threshold", [1.0, 20.0, 300.0])
def test_n4_decided_on_raw_scores_of_a_constant_population(backend: Backend, dtype: str, threshold: float) -> None:
    scores = [0.5, 19.875, 20.0, 20.125, 299.0, 301.0, threshold, 0.0, -1.0, math.inf, -math.inf, math.nan]
    array = backend.asarray(scores, dtype)
    z, z_threshold = backend.cdf.standardize_around(array, threshold, math.log(20.0), 0.0)
    unit = backend.cdf.normalize(z, z_threshold)
    rounded = [oracle.rounded(x, dtype) for x in scores]
    expected = [math.nan if math.isnan(x) else 0.5 if x == threshold else float(x > threshold) for x in rounded]
    flags = backend.to_numpy(backend.threshold.flag(z, z_threshold)).tolist()
    assert flags == [x >= threshold for x in rounded]
    found = backend.to_numpy(unit).tolist()
    for x, u, wanted in zip(rounded, found, expected, strict=True):
        assert math.isnan(wanted) == math.isnan(u)
        assert math.isnan(u) or u == wanted, f"{backend.id}: {x!r} gave {u!r}"


Function = Callable[[Backend, Any], Any]
FUNCTIONS: dict[str, Function] = {
    "min_max.normalize": lambda backend, x: backend.min_max.normalize(x, 1.25, -1.0, 4.0),
    "min_max.margin": lambda backend, x: backend.min_max.margin(x, 1.25, -1.0, 4.0),
    "cdf.standardize": lambda backend, x: backend.cdf.standardize(x, 0.3, 0.7),
    "cdf.normalize": lambda backend, x: backend.cdf.normalize(x, 1.25),
}


@pytest.mark.clause("N12")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_n12_a_value_does_not_depend_on_its_batch(backend: Backend, dtype: str, function: str) -> None:
    values = random_values(dtype, np.abs(np.random.default_rng(8).normal(1.0, 2.0, size=67)) + 0.01)
    whole = backend.to_numpy(FUNCTIONS[function](backend, backend.asarray(values, dtype))).tolist()
    reversed_ = backend.to_numpy(FUNCTIONS[function](backend, backend.asarray(values[::-1], dtype))).tolist()[::-1]
    batches = [whole, reversed_]
    for size in (1, 3, 16):
        found: list[float] = []
        for i in range(0, len(values), size):
            batch = backend.asarray(values[i : i + size], dtype)
            found += backend.to_numpy(FUNCTIONS[function](backend, batch)).tolist()
        batches.append(found)
    for x, *results in zip(values, *batches, strict=True):
        spread = max(results) - min(results)
        allowed = backend.batch_slack * oracle.ulp(max(map(abs, results)), dtype)
        # Compilers take different code for the rest of a batch, and each stays within its accuracy: where that is more
        # than an ulp, so is the difference.
        if function == "cdf.standardize" and dtype == "float64":
            allowed += 2 * oracle.ulp(math.log(x), dtype) / 0.7
        assert spread <= allowed, f"{backend.id}: {x!r} gave {sorted(set(results))}"
