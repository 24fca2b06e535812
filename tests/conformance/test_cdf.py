"""Clauses N2 and N3: z-scores, and the CDF from raw scores."""

import math
from functools import lru_cache, partial

import mpmath
import numpy as np
import pytest

from anomnorm_core import ResolutionError
from conformance import oracle
from conformance.assertions import arrays, assert_close, evaluate, neighbours, random_values
from conformance.backend import Backend

# Means and deviations of log scores: clause N13 names the smallest and the largest deviation.
MOMENTS = [(0.0, 1.0), (1.5, 0.3), (-4.0, 0.02), (0.35, 3.5e-4), (20.0, 5e-3), (-70.0, 0.7), (0.1, 6.0), (2.0, 80.0)]


@lru_cache
def scores_around(mean: float, std: float, at: float, dtype: str) -> list[float]:
    """Next to a raw score and around it, far from it, where logarithms are switched, and over the whole range."""
    rng = np.random.default_rng(2)
    kept = "float32" if dtype == "float64" else dtype  # wherever a threshold can be
    with np.errstate(over="ignore", under="ignore"):
        draws = [
            *np.exp(np.clip(rng.normal(mean, 3 * std, size=60), -87, 88)),
            *at * np.exp(np.clip(std * np.linspace(-9, 9, 61), -80, 80)),
            *(at * (1 + sign * 2.0**-e) for e in range(1, 24) for sign in (-1, 1)),
        ]
    values = random_values(dtype, np.array(draws)) + [v for m in (0.5, 1.5) for v in neighbours(m * at, dtype, 6)]
    values += [oracle.rounded(m * 2.0**e, dtype) for e in range(-126, 128, 14) for m in (1.0, 1.4142, 1.99)]
    values += neighbours(at, dtype, 3)
    return [x for x in values if oracle.smallest_normal(kept) <= x <= oracle.largest(kept)]


@pytest.mark.clause("N2", "N13")
@pytest.mark.parametrize(("mean", "std"), MOMENTS)
def test_n2_accuracy(backend: Backend, dtype: str, mean: float, std: float) -> None:
    kept = oracle.arithmetic(dtype)
    mean, std = oracle.rounded(mean, kept), oracle.rounded(std, kept)
    for center in (None, 0.0, 1.25, -mean):  # None is at the mean; 0.0 is a centre like any other
        at = oracle.rounded(mean if center is None else center, kept)
        scores = scores_around(mean, std, oracle.rounded(math.exp(at), "float32"), dtype)
        exact = [oracle.z_score(x, at, std) for x in scores]
        tolerance = [
            oracle.z_bound(z, std, dtype, max(abs(math.log(x)), abs(at))) for x, z in zip(scores, exact, strict=True)
        ]
        if center is None:
            found = evaluate(backend, backend.cdf.standardize, dtype, scores, mean, std)
        else:
            found = evaluate(backend, backend.cdf.standardize, dtype, scores, mean, std, at)
        assert_close(backend, found, [float(z) for z in exact], tolerance, scores)


@pytest.mark.clause("N3", "N13")
@pytest.mark.parametrize(("mean", "std"), MOMENTS)
def test_n3_accuracy(backend: Backend, dtype: str, mean: float, std: float) -> None:
    kept = oracle.arithmetic(dtype)
    mean, std = oracle.rounded(mean, kept), oracle.rounded(std, kept)
    for sigmas in (0.0, 3.0, -1.5):
        threshold = oracle.rounded(math.exp(min(mean + std * sigmas, 88.0)), kept)
        scores = scores_around(mean, std, threshold, dtype)
        found = evaluate(backend, backend.cdf.normalize, dtype, scores, threshold, mean, std)
        expected = [oracle.cdf(x, threshold, std) for x in scores]
        assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)


@pytest.mark.clause("N3", "N13")
def test_n3_quotients_beyond_all_numbers(backend: Backend, dtype: str) -> None:
    tiny, huge = 2.0**-126, oracle.largest("float32")
    for threshold in (tiny, 2.0**-100, 1.0, 2.0**100, huge):
        for std in (3.5e-4, 5.0, 80.0):
            std = oracle.rounded(std, oracle.arithmetic(dtype))
            scores = scores_around(0.0, std, threshold, dtype)
            found = evaluate(backend, backend.cdf.normalize, dtype, scores, threshold, 0.0, std)
            expected = [oracle.cdf(x, threshold, std) for x in scores]
            assert_close(backend, found, expected, oracle.unit_bound(dtype), scores)


@pytest.mark.clause("N3")
def test_n3_sigmas_and_raw_thresholds_are_one(backend: Backend) -> None:
    # T = exp(center + std t), so that u = Phi(z - t).
    dtype, (mean, std, center) = backend.usual_dtype, (1.5, 0.25, 0.75)
    for sigmas in (0.0, 2.5, -1.0):
        for at in (None, center):
            at_center = mean if at is None else at
            threshold = oracle.rounded(oracle.raw_threshold(sigmas, mean, std, at_center), dtype)
            given = (threshold, mean, std) if at is None else (threshold, mean, std, at)
            scores = scores_around(at_center, std, threshold, dtype)
            found = evaluate(backend, backend.cdf.normalize, dtype, scores, *given)
            # The threshold is rounded to float32, which is half an ulp of its logarithm over the deviation.
            expected = [oracle.phi(oracle.z_score(x, at_center, std) - sigmas) for x in scores]
            assert_close(backend, found, expected, oracle.unit_bound(dtype) + 0.4 * 2.0**-24 / std, scores)


@pytest.mark.clause("N3", "N2")
def test_n3_each_pixel_has_its_own(backend: Backend, dtype: str) -> None:
    # Height and width equal the batch size: a wrong broadcast would go unnoticed otherwise.
    rng, kept = np.random.default_rng(3), oracle.arithmetic(dtype)
    maps = np.reshape(random_values(dtype, np.exp(rng.normal(1.0, 0.5, size=27))), (3, 1, 3, 3))
    mean, std, threshold, center = (
        np.reshape(random_values(kept, draws), (3, 3))
        for draws in (rng.normal(1.0, 0.1, 9), rng.uniform(0.2, 0.6, 9), rng.uniform(2, 4, 9), rng.normal(1.0, 0.3, 9))
    )
    statistics = [backend.asarray(value, kept) for value in (mean, std)]
    values = [(float(x), *divmod(i % 9, 3)) for i, x in enumerate(maps.ravel())]
    (one,) = arrays(backend, dtype, 1.25)
    for shape in ((3, 1, 3, 3), (3, 3, 3)):
        array = backend.asarray(maps.reshape(shape), dtype)
        found = backend.cdf.normalize(array, backend.asarray(threshold, kept), *statistics)
        assert backend.describe(found).shape == shape
        expected = [oracle.cdf(x, float(threshold[i, j]), float(std[i, j])) for x, i, j in values]
        assert_close(backend, found, expected, oracle.unit_bound(dtype), values)
        if len(shape) == 3:
            continue
        for given, at in ((None, mean), (one, np.full((3, 3), 1.25)), (backend.asarray(center, kept), center)):
            z = backend.cdf.standardize(array, *statistics, given)
            exact = [oracle.z_score(x, float(at[i, j]), float(std[i, j])) for x, i, j in values]
            tolerance = [oracle.z_bound(value, 0.2, dtype, 3.0) for value in exact]
            assert_close(backend, z, [float(value) for value in exact], tolerance, values)


@pytest.mark.clause("N6")
def test_n6_scores_without_a_logarithm_are_its_limit(backend: Backend, dtype: str) -> None:
    scores = [0.0, -0.0, -1.0, -math.inf, math.inf, math.nan]
    for std in (0.5, 0.0):
        z = evaluate(backend, backend.cdf.standardize, dtype, scores, 1.0, std)
        assert_close(backend, z, [-math.inf] * 4 + [math.inf, math.nan], 0.0, scores)
        u = evaluate(backend, backend.cdf.normalize, dtype, scores, 2.0, 1.0, std)
        assert_close(backend, u, [0.0] * 4 + [1.0, math.nan], 0.0, scores)


@pytest.mark.clause("N7")
@pytest.mark.parametrize("std", [0.0, 2.0**-25, 1e-6])
def test_n7_constant_population(backend: Backend, dtype: str, std: float) -> None:
    # The mean of a constant population is its logarithm up to rounding, and so is the score itself.
    kept = oracle.arithmetic(dtype)
    center = oracle.rounded(math.log(20.0), kept)
    scores = [1.0, 19.875, 20.0, 20.125, 1000.0, 0.0, math.nan]
    for mean in (center, oracle.next_up(center, kept)):
        z = evaluate(backend, backend.cdf.standardize, dtype, scores, mean, std)
        expected = [-math.inf, -math.inf, 0.0, math.inf, math.inf, -math.inf, math.nan]
        assert_close(backend, z, expected, 0.0, scores)
        for threshold in (20.0, 19.9, 5.0):
            given = oracle.rounded(threshold, kept)
            u = evaluate(backend, backend.cdf.normalize, dtype, scores, given, mean, std)
            assert_close(backend, u, [oracle.cdf(x, given, 0.0) for x in scores], 0.0, scores)


@pytest.mark.clause("N7")
def test_n7_where_a_deviation_begins(backend: Backend, dtype: str) -> None:
    kept = oracle.arithmetic(dtype)
    # 2^-21 of the larger of mean and centre, or 2^-24.
    for mean, center, floor in (
        (0.125, 64.0, 2.0**-15),
        (-64.0, 0.125, 2.0**-15),
        (0.0, 0.0, 2.0**-24),
        (8, 8, 2**-18),
    ):
        threshold = oracle.rounded(math.exp(center), kept)
        for std in (floor, oracle.next_up(floor, kept)):
            flat = oracle.is_constant(mean, std, center)
            assert flat == (std == floor)
            scores = [oracle.rounded(threshold * (1 + k * 2.0**-23), dtype) for k in (-9, 7)]
            scores = [x for x in scores if x != threshold]  # the next of a half type is far
            u = evaluate(backend, backend.cdf.normalize, dtype, scores, threshold, mean, std, center)
            expected = [oracle.cdf(x, threshold, 0.0 if flat else std) for x in scores]
            assert_close(backend, u, expected, oracle.unit_bound(dtype), scores)
            z = evaluate(backend, backend.cdf.standardize, dtype, [threshold / 8, threshold * 8], mean, std, center)
            assert all(map(math.isinf, z)) == flat


@pytest.mark.clause("N7")
def test_n7_one_constant_pixel(backend: Backend, dtype: str) -> None:
    kept = oracle.arithmetic(dtype)
    maps = backend.asarray([[[1.0, 1.0], [2.0, 2.0]]], dtype)
    std = backend.asarray([[0.0, 1.0], [0.0, 1.0]], kept)
    mean, threshold = (backend.asarray(np.full((2, 2), value), kept) for value in (0.0, 1.0))
    z = backend.to_numpy(backend.cdf.standardize(maps, mean, std)).ravel().tolist()
    assert z == [0.0, 0.0, math.inf, pytest.approx(math.log(2), rel=2.0**-21)]
    u = backend.to_numpy(backend.cdf.normalize(maps, threshold, mean, std)).ravel().tolist()
    assert u == [0.5, 0.5, 1.0, pytest.approx(oracle.phi(math.log(2)), abs=2.0**-23)]


@pytest.mark.clause("N8")
def test_n8_unfitted_is_never_a_number(backend: Backend, dtype: str) -> None:
    scores, nan = [0.0, 1.0, 2.0, 5.0, math.inf], math.nan
    for statistics in ((nan, nan), (0.0, nan), (nan, 1.0), (nan, 1.0, 0.0)):
        for function in (
            backend.cdf.standardize,
            lambda x, *given: backend.cdf.normalize(x, 2.0, *given),
            lambda u, *given: backend.cdf.denormalize(u, 2.0, *given),
        ):
            assert all(map(math.isnan, evaluate(backend, function, dtype, scores, *statistics)))


@pytest.mark.clause("S8")
@pytest.mark.parametrize("fitted", [(1, 4), (4, 1), (2, 2), (1, 1)])
def test_s8_other_resolution_is_an_error(backend: Backend, fitted: tuple[int, int]) -> None:
    maps = backend.asarray(np.ones((4, 1, 4, 4)), backend.usual_dtype)
    wrong = backend.asarray(np.ones(fitted), backend.usual_dtype)
    message = r"4, 4.*\(" + f"{fitted[0]}, {fitted[1]}"
    threshold = partial(backend.cdf.normalize, maps)
    for function, count in ((partial(backend.cdf.standardize, maps), 3), (threshold, 4)):
        for place in range(count):
            given = [1.0] * count
            given[place] = wrong
            with pytest.raises(ResolutionError, match=message):
                function(*given)
    with pytest.raises(ResolutionError, match=message):
        backend.cdf.denormalize(maps, 1.0, wrong, wrong)


def test_the_oracle_is_that_of_the_textbook() -> None:
    assert oracle.cdf(math.e, 1.0, 1.0) == pytest.approx(float(mpmath.ncdf(1)), abs=1e-15)
    assert oracle.raw_threshold(2.0, 0.5, 0.25, 1.0) == math.exp(1.5)
