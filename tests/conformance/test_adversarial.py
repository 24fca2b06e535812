"""Inputs that hypothesis makes up to break a clause: ``--deep`` tries many more of them.

All arrays have one size and parameters are arrays too, so that compilers meet nothing new with every example.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anomnorm_core import Normalizer
from anomnorm_core.checks import Counts
from conformance import oracle
from conformance.assertions import arrays, assert_close, assert_order, assert_sides
from conformance.backend import Backend

SIZE = 6
_WIDTH = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 32}


def numbers(dtype: str) -> st.SearchStrategy[float]:
    """Anything that ``dtype`` holds and that is not subnormal (clause N13): the odd ones often."""
    tiny = oracle.smallest_normal(dtype)
    odd = [0.0, tiny, 3 * tiny, oracle.largest(dtype), 1.0, oracle.next_up(1.0, dtype), 0.5, 2.0]
    signed = [value * sign for value in odd for sign in (1.0, -1.0)]
    drawn = st.floats(width=_WIDTH[dtype]).map(lambda value: oracle.rounded(value, dtype))  # type: ignore[arg-type]
    drawn = drawn.filter(lambda value: not 0 < abs(value) < tiny)
    return st.one_of(st.sampled_from([*signed, math.nan, math.inf, -math.inf]), drawn)


def parameters(dtype: str) -> st.SearchStrategy[float]:
    """Finite numbers of the dtype of parameters."""
    return numbers(oracle.arithmetic(dtype)).filter(math.isfinite)


def around(threshold: float, dtype: str) -> st.SearchStrategy[float]:
    """Numbers, and the nearest ones to a threshold."""
    at, tiny = oracle.rounded(threshold, dtype), oracle.smallest_normal(dtype)
    near = [x for x in (at, oracle.next_down(at, dtype), oracle.next_up(at, dtype)) if not 0 < abs(x) < tiny]
    return st.one_of(st.sampled_from(near), numbers(dtype)) if near and math.isfinite(at) else numbers(dtype)


def batch(element: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(element, min_size=SIZE, max_size=SIZE)


def assert_unit_scores(backend: Backend, dtype: str, found: Any, values: list[float], threshold: float) -> None:
    """Clauses N4, N5, N6, whatever the formula."""
    units = backend.to_numpy(found).tolist()
    flags = backend.threshold.flag(backend.asarray(values, dtype), *arrays(backend, dtype, threshold))
    assert_sides(backend, values, units, backend.to_numpy(flags).tolist(), threshold)
    assert_order(backend, dtype, values, units)
    assert [math.isnan(unit) for unit in units] == [math.isnan(x) for x in values]


@pytest.mark.clause("N1", "N1b", "N4", "N5", "N6", "N7", "N13")
@pytest.mark.parametrize("name", ["min_max", "two_slope"])
@given(data=st.data())
def test_n1_any_scores_threshold_and_range(backend: Backend, dtype: str, name: str, data: st.DataObject) -> None:
    threshold = data.draw(parameters(dtype), label="threshold")
    low, high = sorted([data.draw(parameters(dtype), label="a"), data.draw(parameters(dtype), label="b")])
    kept = oracle.arithmetic(dtype)
    # What is lost of numbers that count as zero shows in no range of 2^25 of the smallest.
    least = 2.0**25 * oracle.smallest_normal(kept)
    assume(low == high or high - low >= least)
    if name == "two_slope":
        exact_low, exact_high, t = Fraction(low), Fraction(high), Fraction(threshold)
        for side in (t - exact_low, exact_high - t):  # at 5 percent rounding decides
            assume(low == high or abs(20 * side - (exact_high - exact_low)) > (exact_high - exact_low) / 2**20)
            assume(side <= 0 or side >= least)
    scores = data.draw(batch(around(threshold, dtype)), label="scores")
    normalize = getattr(backend, name).normalize
    found = normalize(backend.asarray(scores, dtype), *arrays(backend, dtype, threshold, low, high))
    assert_unit_scores(backend, dtype, found, scores, threshold)
    expected = [getattr(oracle, name)(x, threshold, low, high) for x in scores]
    assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)


def _moments(data: st.DataObject, dtype: str) -> tuple[float, float]:
    kept = oracle.arithmetic(dtype)
    mean = oracle.rounded(data.draw(st.floats(-80, 80), label="mean"), kept)
    # Clause N13 holds from 3.5e-4 to 80; below 2^-17 of the mean, a deviation is rounding.
    std = math.exp(data.draw(st.floats(math.log(3.5e-4), math.log(80)), label="log std"))
    return mean, oracle.rounded(std, kept)


@pytest.mark.clause("N3", "N4", "N5", "N6", "N13")
@given(data=st.data())
def test_n3_any_scores_and_threshold(backend: Backend, dtype: str, data: st.DataObject) -> None:
    mean, std = _moments(data, dtype)
    sigmas = data.draw(st.floats(-6, 6), label="sigmas")
    threshold = oracle.rounded(math.exp(min(max(mean + std * sigmas, -87.0), 88.0)), oracle.arithmetic(dtype))
    near = st.floats(-9, 9).map(lambda z: oracle.rounded(math.exp(min(max(mean + std * z, -80.0), 80.0)), dtype))
    near = near.filter(lambda x: x == 0 or x >= oracle.smallest_normal(dtype))
    scores = data.draw(batch(st.one_of(around(threshold, dtype), near)), label="scores")
    found = backend.cdf.normalize(backend.asarray(scores, dtype), *arrays(backend, dtype, threshold, mean, std))
    assert_unit_scores(backend, dtype, found, scores, threshold)
    expected = [oracle.cdf(x, threshold, std) for x in scores]
    assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)


@pytest.mark.clause("N3b", "N4", "N5", "N6", "N13")
@given(data=st.data())
def test_n3b_any_scores_and_threshold(backend: Backend, dtype: str, data: st.DataObject) -> None:
    kept = oracle.arithmetic(dtype)
    moderate = st.floats(-(2.0**60), 2.0**60).filter(lambda x: x == 0 or abs(x) >= oracle.smallest_normal("float32"))
    mean, threshold = (oracle.rounded(data.draw(moderate, label=name), kept) for name in ("mean", "threshold"))
    std = oracle.rounded(2.0 ** data.draw(st.floats(-40, 60), label="log2 std"), kept)
    near = st.floats(-9, 9).map(lambda z: oracle.rounded(threshold + std * z, dtype))
    near = near.filter(lambda x: x == 0 or abs(x) >= oracle.smallest_normal(dtype))
    scores = data.draw(batch(st.one_of(around(threshold, dtype), near)), label="scores")
    array, given = backend.asarray(scores, dtype), arrays(backend, dtype, mean, std)
    found = backend.normal.normalize(array, *arrays(backend, dtype, threshold), *given)
    assert_unit_scores(backend, dtype, found, scores, threshold)
    flat = oracle.is_constant(mean, std, mean, 2.0**-126)
    expected = [oracle.normal(x, threshold, 0.0 if flat else std) for x in scores]
    assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)
    if not flat:
        exact = [float(oracle.raw_z_score(x, mean, std)) for x in scores]
        bounds = [oracle.raw_z_bound(z, std, dtype) if math.isfinite(z) else 0.0 for z in exact]
        small = [i for i, z in enumerate(exact) if not oracle.largest(kept) / 2 < abs(z) < math.inf]
        z = backend.to_numpy(backend.normal.standardize(array, *given)).tolist()
        assert_close(backend, *([values[i] for i in small] for values in (z, exact, bounds, scores)))


@pytest.mark.clause("N1", "N1b", "N3", "N5")
@given(data=st.data())
def test_n1_a_higher_threshold_lowers_scores(backend: Backend, dtype: str, data: st.DataObject) -> None:
    draw = st.floats(2.0**-60, 2.0**60)
    lower, upper = sorted([data.draw(draw, label="a"), data.draw(draw, label="b")])
    lower, upper = (oracle.rounded(value, oracle.arithmetic(dtype)) for value in (lower, upper))
    scores = backend.asarray(data.draw(batch(around(lower, dtype)), label="scores"), dtype)
    for normalize, fitted in ((backend.min_max.normalize, (-1.0, 2.5)), (backend.cdf.normalize, (0.5, 1.5))):
        high, low = (
            backend.to_numpy(normalize(scores, *arrays(backend, dtype, threshold, *fitted)))
            for threshold in (lower, upper)
        )
        assert np.array_equal(np.isnan(high), np.isnan(low))
        slack = backend.order_slack.get(oracle.arithmetic(dtype), 0.0) + oracle.unit_bound(dtype) / 4
        assert np.all((high >= low - slack) | np.isnan(high))


@pytest.mark.clause("N2", "N6", "N13")
@given(data=st.data())
def test_n2_any_scores_and_moments(backend: Backend, dtype: str, data: st.DataObject) -> None:
    mean, std = _moments(data, dtype)
    scores = data.draw(batch(around(math.exp(mean), dtype)), label="scores")
    exact = [oracle.z_score(x, mean, std) for x in scores]
    size = max([abs(mean), *(abs(math.log(x)) for x in scores if 0 < x < math.inf)])
    finite = [math.isfinite(float(z)) for z in exact]
    tolerance = [oracle.z_bound(z, std, dtype, size) if ok else 0.0 for z, ok in zip(exact, finite, strict=True)]
    found = backend.cdf.standardize(backend.asarray(scores, dtype), *arrays(backend, dtype, mean, std))
    assert_close(backend, found, [float(z) for z in exact], tolerance, scores)


@pytest.mark.clause("S1", "S2", "S6")
@given(data=st.data())
def test_s1_any_stream_of_ranges(backend: Backend, dtype: str, data: st.DataObject) -> None:
    batches = data.draw(st.lists(batch(numbers(dtype)), min_size=1, max_size=4), label="batches")
    masks = [data.draw(st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)) for _ in batches]
    update, merge, init = (getattr(backend.min_max, name) for name in ("update", "merge", "init"))
    stream, total = init(), init()
    for values, mask in zip(batches, masks, strict=True):
        array, where = backend.asarray(values, dtype), backend.asarray(mask, "bool")
        stream = update(stream, array, where=where)
        total = merge(update(init(), array, where=where), total)
    taken = [x for values, mask in zip(batches, masks, strict=True) for x, ok in zip(values, mask, strict=True) if ok]
    valid = [x for x in taken if math.isfinite(x)]
    for record in (stream, total):
        nan = sum(map(math.isnan, taken))
        assert backend.counts(record) == Counts(len(valid), nan=nan, infinite=len(taken) - len(valid) - nan)
        if valid:
            low, high = (backend.to_numpy(value).item() for value in backend.min_max.bounds(record))
            assert (low, high) == (min(valid), max(valid))


@pytest.mark.clause("S3", "S1", "S4", "S6")
@given(data=st.data())
def test_s3_any_stream_of_moments(backend: Backend, dtype: str, data: st.DataObject) -> None:
    batches = data.draw(st.lists(batch(numbers(dtype)), min_size=1, max_size=4), label="batches")
    update, merge, init = (getattr(backend.cdf, name) for name in ("update", "merge", "init"))
    stream, total = init(), init()
    for values in batches:
        stream = update(stream, backend.asarray(values, dtype))
        total = merge(update(init(), backend.asarray(values, dtype)), total)
    everything = [x for values in batches for x in values]
    finite = [x for x in everything if math.isfinite(x)]
    valid, zeros, nan = [x for x in finite if x > 0], finite.count(0.0), sum(map(math.isnan, everything))
    negative, infinite = len(finite) - len(valid) - zeros, len(everything) - len(finite) - nan
    for record in (stream, total):
        assert backend.counts(record) == Counts(len(valid), zeros, negative, nan, infinite)
        if len(valid) < 2:
            continue
        mean, std = oracle.moments(valid)
        found, spread = (backend.to_numpy(value).item() for value in backend.cdf.mean_std(record))
        rtol = backend.moments_rtol
        assert abs(found - mean) <= rtol * max(abs(mean), std)
        # Clause S4 down to a deviation of a thousandth of the mean; beyond, up to what counts as constant (N7).
        assert abs(spread - std) <= (rtol * std if std > 1e-3 * abs(mean) else 2.0**-21 * abs(mean))


@pytest.mark.clause("N1")
@given(data=st.data())
def test_n1_shift_and_scale_change_nothing(backend: Backend, dtype: str, data: st.DataObject) -> None:
    whole = st.integers(-40, 40)
    scores = data.draw(st.lists(whole, min_size=SIZE, max_size=SIZE), label="scores")
    threshold, low, high = data.draw(whole), data.draw(whole), data.draw(whole)
    low, high = min(low, high), max(low, high)
    shift, scale = data.draw(st.integers(-60, 60), label="shift"), 2.0 ** data.draw(st.integers(-6, 6), label="scale")
    moved = [(value + shift) * scale for value in (*scores, threshold, low, high)]  # exact in every dtype
    found = []
    for values in ([*scores, threshold, low, high], moved):
        array = backend.asarray(np.float64(values[:SIZE]), dtype)
        unit = backend.min_max.normalize(array, *arrays(backend, dtype, *values[SIZE:]))
        found.append(backend.to_numpy(unit).tolist())
    assert found[0] == found[1]


@pytest.mark.clause("N2", "S3")
@given(data=st.data())
def test_n2_powers_change_nothing(backend: Backend, dtype: str, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(1, 15), min_size=SIZE, max_size=SIZE, unique=True), label="scores")
    z = []
    for power in (1, 2):
        array = backend.asarray(np.float64(scores) ** power, dtype)
        mean, std = backend.cdf.mean_std(backend.cdf.update(backend.cdf.init(), array))
        z.append(backend.to_numpy(backend.cdf.standardize(array, mean, std)))
    np.testing.assert_allclose(*z, rtol=0, atol=max(2e-5, 4 * oracle.ulp(2.0, dtype)))


@pytest.mark.clause("S1", "S5")
@given(data=st.data())
def test_s1_order_does_not_matter(backend: Backend, dtype: str, data: st.DataObject) -> None:
    values = data.draw(batch(numbers(dtype)), label="values")
    mixed = data.draw(st.permutations(values), label="mixed")
    for module in (backend.min_max, backend.cdf):
        one, other = (module.update(module.init(), backend.asarray(each, dtype)) for each in (values, mixed))
        assert backend.counts(one) == backend.counts(other)
        tolerance = 0.0 if module is backend.min_max else 1e-5
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(backend.to_numpy(a), backend.to_numpy(b), rtol=tolerance, atol=tolerance)


@pytest.mark.clause("P1", "P2")
@pytest.mark.needs("normalizer")
@given(data=st.data())
def test_p1_any_fit_comes_back_from_its_file(backend: Backend, data: st.DataObject, tmp_path: Path) -> None:
    any_number = parameters("float32")
    low, high = sorted([data.draw(any_number, label="a"), data.draw(any_number, label="b")])
    threshold = data.draw(any_number, label="t")
    if data.draw(st.booleans(), label="CDF"):
        maps = (np.full((2, 3), high), np.full((2, 3), abs(low)))
        threshold = max(abs(threshold), 2.0**-126)
        made = backend.normalizer.cdf((low, abs(high)), maps, threshold=threshold, units="raw")
    else:
        pixel = data.draw(any_number, label="pixel t") if data.draw(st.booleans(), label="own") else None
        made = backend.normalizer.min_max((low, high), (low, high), threshold=threshold, pixel_threshold=pixel)
    made.save(tmp_path / "any.safetensors")
    expected = made.to_fit()
    assert expected.image.parameters[0] == low
    assert float(expected.image.threshold.raw) == threshold
    for normalizer in (Normalizer, backend.normalizer):
        found = normalizer.load(tmp_path / "any.safetensors").to_fit()
        assert found.method == expected.method
        for level in ("image", "pixel"):
            one, other = getattr(found, level), getattr(expected, level)
            for a, b in zip(
                (*one.parameters, one.threshold.raw), (*other.parameters, other.threshold.raw), strict=True
            ):
                assert (a.shape, a.tobytes()) == (b.shape, b.tobytes())
            assert one.threshold.origin == other.threshold.origin
            assert one.threshold.fixed == other.threshold.fixed
