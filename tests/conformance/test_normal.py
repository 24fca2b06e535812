"""Clause N3b: the CDF without its logarithm, of scores of any sign. What holds for every method is tested elsewhere."""

import math
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest

from anomnorm_core import InsufficientDataError, NotFittedError, ResolutionError
from anomnorm_core.checks import Counts
from conformance import oracle
from conformance.assertions import assert_close, assert_order, evaluate, neighbours, random_values
from conformance.backend import Backend

# Means and deviations: those of log-likelihoods, narrow and wide ones, the smallest and the largest.
MOMENTS = [
    (0.0, 1.0),
    (-1200.0, 12.0),
    (1.5, 3.5e-4),
    (-3.0, 80.0),
    (-1e6, 3.0),
    (0.1, 1e-20),
    (-2e30, 3e30),
    (3e38, 3e37),
    (-2e38, 2.5e38),
    (0.0, 2.0**-100),
]


def _kept(dtype: str, *values: float) -> list[float]:
    return [oracle.rounded(value, oracle.arithmetic(dtype)) for value in values]


def _scores(at: float, std: float, dtype: str) -> list[float]:
    """Next to a raw score and around it, far from it, and over the whole range; none of them subnormal."""
    draws = [*at + std * np.linspace(-9, 9, 61), *np.random.default_rng(2).normal(at, 2 * std, size=60)]
    draws += [at + sign * std * 2.0**-e for e in range(1, 40) for sign in (-1, 1)]
    draws += [sign * m * 2.0**e for e in range(-126, 128, 14) for m in (1.0, 1.99) for sign in (-1, 1)]
    values = [*random_values(dtype, np.array(draws)), *neighbours(at, dtype, 3), 0.0, -0.0]
    least, most = oracle.smallest_normal(dtype), oracle.largest(oracle.arithmetic(dtype))
    return [x for x in values if x == 0 or least <= abs(x) <= min(most, oracle.largest(dtype))]


@pytest.mark.clause("N3b", "N13")
def test_n3b_z_scores(backend: Backend, dtype: str) -> None:
    for given in MOMENTS:
        mean, std = _kept(dtype, *given)
        for center in (None, 0.0, -mean):  # None is at the mean; 0.0 is a center like any other
            at = mean if center is None else center
            if oracle.is_constant(mean, std, at, 2.0**-126):
                continue
            scores = _scores(at, std, dtype)
            exact = [oracle.raw_z_score(x, at, std) for x in scores]
            finite = [i for i, z in enumerate(exact) if abs(z) < oracle.largest(oracle.arithmetic(dtype)) / 2]
            parameters = (mean, std) if center is None else (mean, std, at)
            found = evaluate(backend, backend.normal.standardize, dtype, [scores[i] for i in finite], *parameters)
            bounds = [oracle.raw_z_bound(exact[i], std, dtype) for i in finite]
            assert_close(backend, found, [float(exact[i]) for i in finite], bounds, [scores[i] for i in finite])
            order = np.argsort([scores[i] for i in finite], kind="stable")
            assert np.all(np.diff(np.array(found)[order]) >= 0)


@pytest.mark.clause("N3b", "N13", "N4", "N5")
def test_n3b_normalized_scores(backend: Backend, dtype: str) -> None:
    for given in MOMENTS:
        mean, std = _kept(dtype, *given)
        for sigmas in (0.0, 2.5, -1.5):
            (threshold,) = _kept(dtype, min(mean + std * sigmas, oracle.largest("float32")))
            scores = _scores(threshold, std, dtype)
            found = evaluate(backend, backend.normal.normalize, dtype, scores, threshold, mean, std)
            expected = [oracle.normal(x, threshold, std) for x in scores]
            bound = oracle.unit_bound(dtype) + oracle.smallest_normal(oracle.arithmetic(dtype)) / std
            assert_close(backend, found, expected, bound, scores)
            assert_order(backend, dtype, scores, found)
            assert [u >= 0.5 for u in found] == [x >= threshold for x in scores]


@pytest.mark.clause("N3b")
def test_n3b_sigmas_and_raw_thresholds_are_one(backend: Backend) -> None:
    # T = center + std t, so that u = Phi(z - t).
    dtype, (mean, std, center) = backend.usual_dtype, (-3.5, 0.25, -2.75)
    for sigmas in (0.0, 2.5, -1.0):
        for at in (mean, center):
            threshold = oracle.raw_threshold_of_raw_scores(sigmas, mean, std, at)  # exact, in float32 too
            scores = _scores(threshold, std, dtype)
            found = evaluate(backend, backend.normal.normalize, dtype, scores, threshold, mean, std, at)
            expected = [oracle.phi(oracle.raw_z_score(x, at, std) - sigmas) for x in scores]
            assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)


@pytest.mark.clause("N3b", "S8")
def test_n3b_each_pixel_has_its_own(backend: Backend, dtype: str) -> None:
    # Height and width equal the batch size: a wrong broadcast would go unnoticed otherwise.
    rng, kept = np.random.default_rng(3), oracle.arithmetic(dtype)
    maps = np.reshape(random_values(dtype, rng.normal(-1.0, 0.5, size=27)), (3, 1, 3, 3))
    mean, std, threshold, center = (
        np.reshape(random_values(kept, draws), (3, 3))
        for draws in (rng.normal(-1, 0.1, 9), rng.uniform(0.2, 0.6, 9), rng.normal(-0.5, 0.1, 9), rng.normal(0, 1, 9))
    )
    std[1, 1] = 0.0
    given = {name: backend.asarray(value, kept) for name, value in (("m", mean), ("s", std), ("t", threshold))}
    values = [(float(x), *divmod(i % 9, 3)) for i, x in enumerate(maps.ravel())]
    array = backend.asarray(maps, dtype)
    found = backend.normal.normalize(array, given["t"], given["m"], given["s"])
    assert backend.describe(found).shape == (3, 1, 3, 3)
    expected = [oracle.normal(x, float(threshold[i, j]), float(std[i, j])) for x, i, j in values]
    assert_close(backend, found, expected, oracle.unit_bound(dtype), values)
    z = backend.normal.standardize(array, given["m"], given["s"], backend.asarray(center, kept))
    exact = [
        float(oracle.raw_z_score(x, float(center[i, j]), float(std[i, j])))
        if std[i, j]
        else math.copysign(math.inf, x - float(center[i, j]))
        for x, i, j in values
    ]
    bounds = [oracle.raw_z_bound(value, 0.2, dtype) if math.isfinite(value) else 0.0 for value in exact]
    assert_close(backend, z, exact, bounds, values)
    wrong = backend.asarray(np.ones((3, 1)), kept)
    for function in (backend.normal.standardize, partial(backend.normal.normalize, array), backend.normal.denormalize):
        with pytest.raises(ResolutionError, match=r"3, 3.*\(3, 1\)"):
            function(array, wrong, given["s"], given["m"])


@pytest.mark.clause("N7", "N3b")
def test_n7_constant_populations_of_any_sign(backend: Backend, dtype: str) -> None:
    kept = oracle.arithmetic(dtype)
    for constant in (0.0, -20.0, 20.0, -3e8, 2.0**-120):
        at = oracle.rounded(constant, dtype)
        for mean, std in ((at, 0.0), (oracle.next_up(at, kept) if at else at, abs(at) * 2.0**-22)):
            aside = [at - 0.01 * abs(at) - 1e-30, at + 0.01 * abs(at) + 1e-30]
            scores = [*random_values(dtype, np.array(aside)), at, math.inf, -math.inf, math.nan]
            z = evaluate(backend, backend.normal.standardize, dtype, scores, mean, std)
            inf, nan = math.inf, math.nan
            if scores[0] < at < scores[1]:  # a half type has nothing there
                assert_close(backend, z, [-inf, inf, 0.0, inf, -inf, nan], 0.0, scores)
            for threshold in (at, *(_kept(dtype, aside[1]))):
                values = [*scores, *neighbours(threshold, dtype, 2)]
                u = evaluate(backend, backend.normal.normalize, dtype, values, threshold, mean, std)
                assert_close(backend, u, [oracle.normal(x, threshold, 0.0) for x in values], 0.0, values)


@pytest.mark.clause("N7", "N3b")
def test_n7_where_a_deviation_of_scores_begins(backend: Backend, dtype: str) -> None:
    kept = oracle.arithmetic(dtype)
    # 2^-21 of the larger of mean and center; around zero the smallest normal number of float32.
    for mean, center, floor in ((0.125, -64.0, 2.0**-15), (-64.0, 0.0, 2.0**-15), (0.0, 0.0, 2.0**-126)):
        for std in (floor, oracle.next_up(floor, kept)):
            flat = std == floor
            assert flat == oracle.is_constant(mean, std, center, 2.0**-126)
            scores = random_values(dtype, np.array([center - 4 * floor, center + 4 * floor, -1.0, 1.0]))
            z = evaluate(backend, backend.normal.standardize, dtype, scores, mean, std, center)
            exact = [float(oracle.raw_z_score(x, center, std)) for x in scores]
            for x, value, wanted in zip(scores, z, exact, strict=True):
                far = abs(x - center) > floor
                assert (math.isinf(value) if flat and far else value == pytest.approx(wanted, rel=1e-6)) or not far


@pytest.mark.clause("N8", "N3b")
def test_n8_unfitted_moments_of_scores_are_never_a_number(backend: Backend, dtype: str) -> None:
    scores, nan = [0.0, -1.0, 0.5, math.inf], math.nan
    for statistics in ((nan, nan), (0.0, nan), (nan, 1.0), (nan, 1.0, 0.0)):
        for function in (
            backend.normal.standardize,
            lambda x, *given: backend.normal.normalize(x, -2.0, *given),
            lambda u, *given: backend.normal.denormalize(u, -2.0, *given),
        ):
            assert all(map(math.isnan, evaluate(backend, function, dtype, scores, *statistics)))


@pytest.mark.clause("N11", "N3b")
def test_n11_normal(backend: Backend, dtype: str) -> None:
    units = [0.5, *random_values(dtype, np.linspace(0.001, 0.999, 80))]
    for threshold, std in ((1.0, 1.0), (-300.0, 0.02), (0.1, 5.0)):
        t, std = _kept(dtype, threshold, std)
        exact = [float(t + std * oracle.normal_quantile(u)) for u in units]
        # The inverse CDF is good to 2^-20 in float32.
        tolerance = 32 * std * oracle.ulp(1.0, oracle.arithmetic(dtype)) + 4 * oracle.ulp(t, oracle.arithmetic(dtype))
        found = evaluate(backend, backend.normal.denormalize, dtype, units, t, 0.25, std)
        assert_close(backend, found, exact, tolerance, units)
        assert found[0] == t
    units, inf, nan = [0.0, 1.0, -0.25, 1.5, math.nan, math.inf], math.inf, math.nan
    for std, ends in ((1.0, [-inf, inf]), (0.0, [-2.0, -2.0])):
        found = evaluate(backend, backend.normal.denormalize, dtype, units, -2.0, 1.0, std)
        assert_close(backend, found, [*ends, nan, nan, nan, nan], 0.0, units)


@pytest.mark.clause("S3", "S4", "S1", "N3b")
@pytest.mark.dtypes(("float64", "float32"))
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["image", "pixel"])
def test_s3_moments_of_scores_of_any_sign(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    update, merge, init = (getattr(backend.normal, name) for name in ("update", "merge", "init"))
    rng, rtol = np.random.default_rng(5), backend.moments_rtol
    # The last one has a deviation far below its mean: what a difference of squares would lose.
    for mean, std in ((0.0, 1.0), (-3.0, 10.0), (-12000.0, 1.2)):
        batches = np.reshape(random_values(dtype, rng.normal(mean, std, size=60 * math.prod(shape))), (12, 5, *shape))
        stream, total = init(shape), init(shape)
        for batch in batches:
            array = backend.asarray(batch, dtype)
            stream, total = update(stream, array), merge(update(init(shape), array), total)
        everything = batches.reshape(60, -1)
        expected = np.array([oracle.raw_moments(column) for column in everything.T.tolist()])
        for record in (stream, total, merge(stream, init(shape)), merge(init(shape), stream)):
            assert backend.counts(record) == Counts(batches.size)
            location, spread = (backend.to_numpy(value).ravel() for value in backend.normal.mean_std(record))
            assert np.all(np.abs(location - expected[:, 0]) <= rtol * np.maximum(np.abs(expected[:, 0]), std))
            np.testing.assert_allclose(spread, expected[:, 1], rtol=rtol)
    for other in ((4, 4), (1, 1)):
        with pytest.raises(ResolutionError, match="cannot merge"):
            merge(stream, init(other))


@pytest.mark.clause("S6", "S7", "N8", "N3b")
@pytest.mark.parametrize("shape", [(), (1, 2)], ids=["image", "pixel"])
def test_s6_zeros_and_negative_scores_are_fitted(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    update, init, pixels = backend.normal.update, backend.normal.init, math.prod(shape)
    scores = np.array([0.0, math.nan, -3.0, math.inf, 2.5, -0.0, -math.inf, math.inf, -1.5])

    def updated(record: Any, scores: np.ndarray, where: Any) -> Any:
        maps = np.reshape(scores, (-1, *(1 for _ in shape))) + np.zeros(shape)
        return update(record, backend.asarray(maps, dtype), where=backend.asarray(np.asarray(where), "bool"))

    record = updated(init(shape), scores, [True, True, True, True, True, False, True, False, True])
    assert backend.counts(record) == Counts(*(pixels * n for n in Counts(4, nan=1, infinite=2)))
    everything = updated(record, scores, [True] * 9)
    assert backend.counts(everything) == Counts(*(pixels * n for n in Counts(9, nan=2, infinite=5)))
    assert backend.count(record.zeros) == 0
    expected = oracle.raw_moments([0.0, -3.0, 2.5, -1.5])
    for found, wanted in zip(backend.normal.mean_std(record), expected, strict=True):
        np.testing.assert_allclose(backend.to_numpy(found), np.full(shape, wanted), rtol=backend.moments_rtol)
    with pytest.raises(NotFittedError, match="have seen no value"):
        backend.normal.mean_std(init(shape))
    with pytest.raises(InsufficientDataError, match="1 valid value and need at least 2"):
        backend.normal.mean_std(updated(init(shape), scores, np.arange(9) == 2))
    zeros = updated(init(shape), 0 * np.ones(9), [True] * 9)
    assert all(not np.any(backend.to_numpy(value)) for value in backend.normal.mean_std(zeros))


def test_the_oracle_is_that_of_the_textbook() -> None:
    assert oracle.normal(-1.0, -3.0, 2.0) == pytest.approx(float(mpmath.ncdf(1)), abs=1e-15)
    assert oracle.raw_threshold_of_raw_scores(2.0, 0.5, 0.25, -1.0) == -0.5
    assert oracle.raw_threshold_of_raw_scores(2.0, 0.0, 0.0, -8.0) == -8.0 * (1 - 2.0**-21) + 2.0**-21
