"""Clauses N2 and N3."""

import math

import mpmath
import numpy as np
import pytest

from anomnorm_core import ResolutionError
from conformance import oracle
from conformance.assertions import assert_close, random_values, unit_tolerance
from conformance.backend import Backend

# mean and std of log scores, up to |mean| / std = 1000 (clause S4 has the same limit)
MOMENTS = [(0.0, 1.0), (1.5, 0.3), (-4.0, 0.02), (0.35, 3.5e-4), (5.0, 5e-3)]


def z_tolerance(z: mpmath.mpf, scale: float, log_size: float, dtype: str) -> float:
    """Clause N13 for z: 1 ulp, beside what the logarithm itself cannot resolve.

    Float32 scores: the logarithm is computed to 2^-34 absolute or better. Float64 scores have no wider type to compute
    in: the logarithm and its distance from the centre are rounded to float64.
    """
    if dtype == "float64":
        return 4 * oracle.ulp(max(log_size, 1.0), dtype) / scale + 2 * oracle.ulp(float(z), dtype)
    return oracle.ulp(float(z), dtype) + 2.0**-34 / scale


@pytest.mark.clause("N2")
@pytest.mark.parametrize(("mean", "std"), MOMENTS)
def test_n2_accuracy(backend: Backend, dtype: str, mean: float, std: float) -> None:
    arithmetic = oracle.arithmetic(dtype)
    mean, std = oracle.rounded(mean, arithmetic), oracle.rounded(std, arithmetic)
    draws = np.exp(np.random.default_rng(2).normal(mean, 3 * std, size=300))
    scores = random_values(dtype, np.concatenate([draws, [2.0**-14, 0.7, 1.0, 1.4, 1000.0]]))
    exact = [oracle.z_score(x, mean, std) for x in scores]
    log_size = max(abs(float(mpmath.log(x))) for x in scores) + abs(mean)
    found = backend.cdf.standardize(
        backend.asarray(scores, dtype), backend.asarray(mean, arithmetic), backend.asarray(std, arithmetic)
    )
    assert_close(
        backend,
        found,
        [oracle.rounded(float(z), dtype) for z in exact],
        [z_tolerance(z, std, log_size, dtype) for z in exact],
        scores,
    )


@pytest.mark.clause("N2")
@pytest.mark.dtypes(("float32",))
def test_n2_whole_range_of_scores(backend: Backend, dtype: str) -> None:
    scores = [oracle.rounded(m * 2.0**e, dtype) for e in range(-148, 128, 3) for m in (1.0, 1.37, 1.4142, 1.99)]
    scores = [x for x in scores if 0 < x < 3.4e38]
    exact = [oracle.z_score(x, 0.0, 1.0) for x in scores]
    found = backend.cdf.standardize(backend.asarray(scores, dtype), 0.0, 1.0)
    expected = [oracle.rounded(float(z), dtype) for z in exact]
    assert_close(backend, found, expected, [z_tolerance(z, 1.0, 200.0, dtype) for z in exact], scores)


@pytest.mark.clause("N2")
@pytest.mark.parametrize("center", [0.0, 1.25, -2.0])
def test_n2_center_is_subtracted_in_one_step(backend: Backend, dtype: str, center: float) -> None:
    mean, std = 1.0, 0.25
    scores = random_values(dtype, np.exp(np.linspace(-3, 3, 50)))
    found = backend.cdf.standardize(backend.asarray(scores, dtype), mean, std, center_at=center)
    exact = [oracle.z_score(x, center, std) for x in scores]
    tolerances = [z_tolerance(z, std, 4.0, dtype) for z in exact]
    assert_close(backend, found, [oracle.rounded(float(z), dtype) for z in exact], tolerances, scores)


@pytest.mark.clause("N3")
@pytest.mark.parametrize("threshold", [0.0, 3.0, -1.5])
def test_n3_accuracy(backend: Backend, dtype: str, threshold: float) -> None:
    z = random_values(dtype, np.concatenate([np.linspace(-12, 12, 601), [-40, 40, 1e-4, -1e-4]]))
    expected = [oracle.cdf(value, threshold) for value in z]
    found = backend.cdf.normalize(backend.asarray(z, dtype), threshold)
    assert_close(backend, found, expected, unit_tolerance(dtype), z)


@pytest.mark.clause("N3", "N5")
@pytest.mark.dtypes(("float64", "float32"))
def test_n3_lower_tail_keeps_its_order(backend: Backend, dtype: str) -> None:
    # (1 + erf) / 2 is 0 below -5.55 in float32
    z = [-9.0, -8.0, -7.0, -6.0, -5.6]
    u = backend.to_numpy(backend.cdf.normalize(backend.asarray(z, dtype), 0.0)).tolist()
    assert all(a < b for a, b in zip([0.0, *u], u, strict=False)), u


@pytest.mark.clause("N3")
def test_n3_pixel_level_is_centred_at_the_image_mean(backend: Backend, dtype: str) -> None:
    # Height and width equal the batch size: a wrong broadcast would go unnoticed otherwise.
    rng = np.random.default_rng(3)
    arithmetic = oracle.arithmetic(dtype)
    maps = np.reshape(random_values(dtype, np.exp(rng.normal(1.0, 0.5, size=18))), (2, 1, 3, 3))
    mean = np.reshape(random_values(arithmetic, rng.normal(1.0, 0.1, size=9)), (3, 3))
    std = np.reshape(random_values(arithmetic, rng.uniform(0.2, 0.6, size=9)), (3, 3))
    image_mean = oracle.rounded(1.1, arithmetic)
    for center, expected_center in ((image_mean, np.full((3, 3), image_mean)), (None, mean)):
        exact = [
            oracle.z_score(float(maps[b, 0, i, j]), float(expected_center[i, j]), float(std[i, j]))
            for b, i, j in np.ndindex(2, 3, 3)
        ]
        for shape in ((2, 1, 3, 3), (2, 3, 3)):
            z = backend.cdf.standardize(
                backend.asarray(maps.reshape(shape), dtype),
                backend.asarray(mean, arithmetic),
                backend.asarray(std, arithmetic),
                center_at=center,
            )
            assert backend.describe(z).shape == shape
            tolerances = [z_tolerance(value, 0.2, 4.0, dtype) for value in exact]
            wanted = [oracle.rounded(float(value), dtype) for value in exact]
            assert_close(backend, z, wanted, tolerances, maps.ravel().tolist())


@pytest.mark.clause("N6")
def test_n6_scores_without_a_logarithm_are_its_limit(backend: Backend, dtype: str) -> None:
    scores = [0.0, -0.0, -1.0, -math.inf, math.inf, math.nan]
    z = backend.cdf.standardize(backend.asarray(scores, dtype), 1.0, 0.5)
    assert_close(backend, z, [-math.inf] * 4 + [math.inf, math.nan], 0.0, scores)
    u = backend.cdf.normalize(z, 2.0)
    assert_close(backend, u, [0.0] * 4 + [1.0, math.nan], 0.0, scores)


@pytest.mark.clause("N7")
@pytest.mark.parametrize("std", [0.0, 1e-9])
def test_n7_constant_population(backend: Backend, dtype: str, std: float) -> None:
    # The mean of a constant population is its logarithm up to rounding, and so is the score itself.
    center = oracle.rounded(math.log(20.0), oracle.arithmetic(dtype))
    scores = [1.0, 19.875, 20.0, 20.125, 1000.0, 0.0, math.nan]
    for mean in (center, oracle.next_up(center, oracle.arithmetic(dtype))):
        z = backend.cdf.standardize(backend.asarray(scores, dtype), mean, std)
        expected = [-math.inf, -math.inf, 0.0, math.inf, math.inf, -math.inf, math.nan]
        assert_close(backend, z, expected, 0.0, scores)
        u = backend.cdf.normalize(z, 0.0)
        assert_close(backend, u, [0, 0, 0.5, 1, 1, 0, math.nan], 0.0, scores)


@pytest.mark.clause("N7")
def test_n7_the_centre_counts_too(backend: Backend, dtype: str) -> None:
    # 2^-16 is a deviation beside the mean, but none beside the centre.
    array = backend.asarray([1.0, 2.0, 30.0], dtype)
    for center, expected in ((64.0, -math.inf), (-64.0, math.inf)):
        z = backend.cdf.standardize(array, 0.125, 2.0**-16, center_at=center)
        assert_close(backend, z, [expected] * 3, 0.0, [1.0, 2.0, 30.0])
    assert np.isfinite(backend.to_numpy(backend.cdf.standardize(array, 0.125, 2.0**-4))).all()


@pytest.mark.clause("N7")
def test_n7_one_constant_pixel(backend: Backend, dtype: str) -> None:
    maps = backend.asarray([[[1.0, 1.0], [math.e, math.e]]], dtype)
    std = backend.asarray([[0.0, 1.0], [0.0, 1.0]], oracle.arithmetic(dtype))
    mean = backend.asarray([[0.0, 0.0], [0.0, 0.0]], oracle.arithmetic(dtype))
    z = backend.to_numpy(backend.cdf.standardize(maps, mean, std)).ravel().tolist()
    assert z[:3] == [0.0, 0.0, math.inf]
    assert z[3] == pytest.approx(1.0, abs=2 * oracle.ulp(1.0, dtype))


@pytest.mark.clause("N8")
def test_n8_unfitted_is_never_a_number(backend: Backend, dtype: str) -> None:
    scores = backend.asarray([0.0, 1.0, 5.0], dtype)
    for mean, std in ((math.nan, math.nan), (0.0, math.nan), (math.nan, 1.0)):
        z = backend.cdf.standardize(scores, mean, std)
        assert_close(backend, z, [math.nan] * 3, 0.0, [0.0, 1.0, 5.0])
    z = backend.cdf.standardize(scores, math.nan, 1.0, center_at=0.0)
    assert_close(backend, z, [math.nan] * 3, 0.0, [0.0, 1.0, 5.0])


@pytest.mark.clause("S8")
@pytest.mark.parametrize("fitted", [(1, 4), (4, 1), (2, 2), (1, 1)])
def test_s8_other_resolution_is_an_error(backend: Backend, fitted: tuple[int, int]) -> None:
    maps = backend.asarray(np.ones((2, 1, 4, 4)), backend.usual_dtype)
    statistics = backend.asarray(np.ones(fitted), backend.usual_dtype)
    with pytest.raises(ResolutionError, match=r"4, 4.*\(" + f"{fitted[0]}, {fitted[1]}"):
        backend.cdf.standardize(maps, statistics, statistics)


@pytest.mark.clause("S8")
def test_s8_every_statistic_has_the_resolution_of_the_maps(backend: Backend) -> None:
    maps = backend.asarray(np.ones((5, 1, 1, 4)), backend.usual_dtype)
    fitted = backend.asarray(np.ones((4, 4)), backend.usual_dtype)
    for mean, std, center in ((fitted, 1.0, None), (0.0, fitted, None), (0.0, 1.0, fitted)):
        with pytest.raises(ResolutionError, match=r"4, 4"):
            backend.cdf.standardize(maps, mean, std, center_at=center)
