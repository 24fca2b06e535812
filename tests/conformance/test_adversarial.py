"""Inputs that hypothesis makes up to break a clause: ``--deep`` tries many more of them.

All arrays have one size and parameters are arrays too, so that compilers meet nothing new with every example.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anomnorm_core import Normalizer
from conformance import oracle
from conformance.assertions import assert_close, flushed, order_slack, unit_tolerance
from conformance.backend import Backend
from conformance.test_cdf import z_tolerance

SIZE = 6
_WIDTH = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 32}


def numbers(dtype: str) -> st.SearchStrategy[float]:
    """Anything that ``dtype`` holds: the odd ones often."""
    least, tiny = oracle.ulp(0.0, dtype), oracle.smallest_normal(dtype)
    odd = [0.0, least, 3 * least, tiny, oracle.largest(dtype), 1.0, oracle.next_up(1.0, dtype), 0.5, 2.0]
    signed = [value * sign for value in odd for sign in (1.0, -1.0)]
    drawn = st.floats(width=_WIDTH[dtype]).map(lambda value: oracle.rounded(value, dtype))  # type: ignore[arg-type]
    return st.one_of(st.sampled_from([*signed, math.nan, math.inf, -math.inf]), drawn)


def parameters(dtype: str) -> st.SearchStrategy[float]:
    """Finite numbers of the dtype of parameters, not subnormal: no threshold is (specification, N10 and JAX)."""
    kept = oracle.arithmetic(dtype)
    tiny = oracle.smallest_normal(kept)
    return numbers(kept).filter(lambda value: math.isfinite(value) and (value == 0 or abs(value) >= tiny))


def around(threshold: float, dtype: str) -> st.SearchStrategy[float]:
    """Numbers, and the nearest ones to a threshold."""
    at = oracle.rounded(threshold, dtype)
    if not math.isfinite(at):
        return numbers(dtype)
    return st.one_of(st.sampled_from([at, oracle.next_down(at, dtype), oracle.next_up(at, dtype)]), numbers(dtype))


def arrays(backend: Backend, dtype: str, *numbers: float) -> list[Any]:
    """Parameters of shape (), in the dtype in which they are kept."""
    return [backend.asarray(np.float64(number), oracle.arithmetic(dtype)) for number in numbers]


def batch(element: st.SearchStrategy[float]) -> st.SearchStrategy[list[float]]:
    return st.lists(element, min_size=SIZE, max_size=SIZE)


def assert_unit_scores(backend: Backend, dtype: str, found: Any, values: list[float], threshold: float) -> None:
    """Clauses N4, N5, N6, whatever the formula."""
    units = backend.to_numpy(found).tolist()
    for value, unit in zip(values, units, strict=True):
        if math.isnan(value):
            assert math.isnan(unit), value
        else:
            assert 0.0 <= unit <= 1.0, value
            assert (unit >= 0.5) == (value >= threshold), value
            assert value != threshold or unit == 0.5, value
    array = backend.asarray(values, dtype)
    flags = backend.to_numpy(backend.threshold.flag(array, *arrays(backend, dtype, threshold))).tolist()
    assert flags == [value >= threshold for value in values]
    ordered = sorted((value, unit) for value, unit in zip(values, units, strict=True) if not math.isnan(value))
    for (_, lower), (_, upper) in pairwise(ordered):
        assert upper >= lower - order_slack(backend, lower, dtype)


@pytest.mark.clause("N1", "N4", "N5", "N6", "N7", "N13")
@given(data=st.data())
def test_n1_any_scores_threshold_and_range(backend: Backend, dtype: str, data: st.DataObject) -> None:
    threshold = data.draw(parameters(dtype), label="threshold")
    low, high = sorted([data.draw(parameters(dtype), label="a"), data.draw(parameters(dtype), label="b")])
    # JAX takes a range that is subnormal for none at all.
    assume(low == high or high - low >= oracle.smallest_normal(oracle.arithmetic(dtype)))
    scores = data.draw(batch(around(threshold, dtype)), label="scores")
    found = backend.min_max.normalize(backend.asarray(scores, dtype), *arrays(backend, dtype, threshold, low, high))
    assert_unit_scores(backend, dtype, found, scores, threshold)
    expected = [oracle.min_max(x, threshold, low, high) for x in scores]
    tolerance = unit_tolerance(dtype) + flushed(backend, dtype, high - low)
    assert_close(backend, found, expected, tolerance, scores)


@pytest.mark.clause("N3", "N4", "N5", "N6", "N13")
@given(data=st.data())
def test_n3_any_z_and_threshold(backend: Backend, dtype: str, data: st.DataObject) -> None:
    threshold = data.draw(parameters(dtype), label="threshold")
    z = data.draw(batch(around(threshold, dtype)), label="z")
    found = backend.cdf.normalize(backend.asarray(z, dtype), *arrays(backend, dtype, threshold))
    assert_unit_scores(backend, dtype, found, z, threshold)
    assert_close(backend, found, [oracle.cdf(value, threshold) for value in z], unit_tolerance(dtype), z)


@pytest.mark.clause("N1", "N3", "N5")
@given(data=st.data())
def test_n1_a_higher_threshold_lowers_scores(backend: Backend, dtype: str, data: st.DataObject) -> None:
    lower, upper = sorted([data.draw(parameters(dtype), label="a"), data.draw(parameters(dtype), label="b")])
    scores = backend.asarray(data.draw(batch(around(lower, dtype)), label="scores"), dtype)
    for normalize, span in ((backend.min_max.normalize, (-1.0, 2.5)), (backend.cdf.normalize, ())):
        high, low = (
            backend.to_numpy(normalize(scores, *arrays(backend, dtype, threshold, *span)))
            for threshold in (lower, upper)
        )
        assert np.array_equal(np.isnan(high), np.isnan(low))
        slack = [order_slack(backend, float(value), dtype) for value in np.nan_to_num(low)]
        assert np.all((high >= low - slack) | np.isnan(high))


@pytest.mark.clause("N2", "N6", "N13")
@given(data=st.data())
def test_n2_any_scores_and_moments(backend: Backend, dtype: str, data: st.DataObject) -> None:
    kept = oracle.arithmetic(dtype)
    mean = oracle.rounded(data.draw(st.floats(-80, 80), label="mean"), kept)
    std = oracle.rounded(data.draw(st.floats(2.0**-8, 16), label="std"), kept)
    scores = data.draw(batch(around(math.exp(mean), dtype)), label="scores")
    if dtype == "float64":  # JAX: specification, "JAX on CPU and subnormal numbers"
        scores = [0.0 if abs(x) < oracle.smallest_normal(dtype) else x for x in scores]
    exact = [oracle.z_score(x, mean, std) for x in scores]
    assume(all(not abs(z) < math.inf or abs(z) < 0.99 * oracle.largest(dtype) for z in exact))
    logs = [abs(math.log(x)) for x in scores if 0 < x < math.inf]
    size = max(logs, default=0.0) + abs(mean)
    finite = [math.isfinite(float(z)) for z in exact]
    tolerance = [z_tolerance(z, std, size, dtype) if ok else 0.0 for z, ok in zip(exact, finite, strict=True)]
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
    # XLA on a CPU may take a subnormal number for zero when it compares.
    near = 0.0 if backend.subnormal else oracle.smallest_normal(oracle.arithmetic(dtype))
    for record in (stream, total):
        assert backend.count(record.count) == len(valid)
        assert backend.count(record.invalid) == len(taken) - len(valid)
        if valid:
            low, high = (backend.to_numpy(value).item() for value in backend.min_max.bounds(record))
            assert abs(low - min(valid)) <= near
            assert abs(high - max(valid)) <= near


@pytest.mark.clause("S3", "S1", "S4", "S6")
@given(data=st.data())
def test_s3_any_stream_of_moments(backend: Backend, dtype: str, data: st.DataObject) -> None:
    batches = data.draw(st.lists(batch(numbers(dtype)), min_size=1, max_size=4), label="batches")
    if dtype == "float64":
        batches = [[0.0 if abs(x) < oracle.smallest_normal(dtype) else x for x in values] for values in batches]
    update, merge, init = (getattr(backend.cdf, name) for name in ("update", "merge", "init"))
    stream, total = init(), init()
    for values in batches:
        stream = update(stream, backend.asarray(values, dtype))
        total = merge(update(init(), backend.asarray(values, dtype)), total)
    everything = [x for values in batches for x in values]
    valid = [x for x in everything if math.isfinite(x) and x > 0]
    for record in (stream, total):
        assert backend.count(record.count) == len(valid)
        assert backend.count(record.invalid) == len(everything) - len(valid)
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
        assert backend.count(one.count) == backend.count(other.count)
        assert backend.count(one.invalid) == backend.count(other.invalid)
        tolerance = 0.0 if module is backend.min_max else 1e-5
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(backend.to_numpy(a), backend.to_numpy(b), rtol=tolerance, atol=tolerance)


@pytest.mark.clause("P1", "P2")
@pytest.mark.needs("normalizer")
@given(data=st.data())
def test_p1_any_fit_comes_back_from_its_file(backend: Backend, data: st.DataObject, tmp_path: Path) -> None:
    any_number = parameters("float32")
    low, high = sorted([data.draw(any_number, label="a"), data.draw(any_number, label="b")])
    threshold, pixel_threshold = data.draw(any_number, label="t"), data.draw(any_number, label="pixel t")
    distribution = data.draw(st.booleans(), label="CDF")
    if distribution:
        maps = (np.full((2, 3), high), np.full((2, 3), abs(low)))
        made = backend.normalizer.cdf((low, abs(high)), maps, threshold=threshold, pixel_threshold=pixel_threshold)
    else:
        made = backend.normalizer.min_max((low, high), (low, high), threshold=threshold)
    made.save(tmp_path / "any.safetensors")
    expected = made.fitted_state()
    assert [value.item() for value in expected.image] == [low, abs(high) if distribution else high]
    for normalizer in (Normalizer, backend.normalizer):
        found = normalizer.load(tmp_path / "any.safetensors").fitted_state()
        for name in ("method", "threshold", "pixel_threshold"):
            assert getattr(found, name) == getattr(expected, name)
        for one, other in zip((*found.image, *found.pixel), (*expected.image, *expected.pixel), strict=True):
            assert (one.shape, one.tobytes()) == (other.shape, other.tobytes())
