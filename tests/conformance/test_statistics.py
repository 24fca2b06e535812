"""Clauses S1 to S8: the algebra of statistics, their accuracy, and what is left out of them."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from anomnorm_core import InsufficientDataError, NotFittedError, ResolutionError
from anomnorm_core.checks import Counts
from conformance import oracle
from conformance.assertions import evaluate, random_values
from conformance.backend import Backend


def _scores(dtype: str, shape: tuple[int, ...], seed: int = 5, mean: float = 1.0, std: float = 0.5) -> np.ndarray:
    draws = np.exp(np.random.default_rng(seed).normal(mean, std, size=math.prod(shape)))
    return np.reshape(random_values(dtype, draws), shape)


def _bounds(backend: Backend, record: Any) -> list[float]:
    return [backend.to_numpy(value).item() for value in backend.min_max.bounds(record)]


def _moments(backend: Backend, record: Any, level: str = "image") -> list[Any]:
    return [backend.to_numpy(value).tolist() for value in backend.cdf.mean_std(record, level=level)]


def _assert_pixels(backend: Backend, record: Any, maps: np.ndarray) -> np.ndarray:
    """Compare the moments of pixels with what ``maps``, (B, 2, 3), have them; return the deviations."""
    mean, std = (np.array(value) for value in _moments(backend, record, level="pixel"))
    assert mean.shape == std.shape == (2, 3)
    columns = [[score for score in maps[:, i, j].tolist() if score > 0] for i, j in np.ndindex(2, 3)]
    own = [oracle.moments(column) for column in columns]
    np.testing.assert_allclose(mean.ravel(), [value for value, _ in own], rtol=backend.moments_rtol)
    expected = oracle.shrunk([value for _, value in own], [len(column) for column in columns])
    np.testing.assert_allclose(std.ravel(), expected, rtol=backend.moments_rtol)
    return std


def _fields(backend: Backend, record: Any) -> list[Any]:
    return [backend.to_numpy(field).tolist() for field in record]


@pytest.mark.clause("S1", "S2")
def test_s1_min_max_algebra_is_exact(backend: Backend, dtype: str) -> None:
    parts = [_scores(dtype, (4,), seed) for seed in range(3)]
    a, b, c = (backend.min_max.update(backend.min_max.init(), backend.asarray(part, dtype)) for part in parts)
    merge, empty = backend.min_max.merge, backend.min_max.init()
    both = backend.min_max.update(empty, backend.asarray(np.concatenate(parts[:2]), dtype))
    whole = backend.min_max.update(both, backend.asarray(parts[2], dtype))
    expected = _fields(backend, whole)
    assert _fields(backend, merge(both, c)) == expected
    assert _fields(backend, merge(merge(a, b), c)) == expected
    assert _fields(backend, merge(a, merge(b, c))) == expected
    assert _fields(backend, merge(c, merge(b, a))) == expected
    for identity in (merge(a, empty), merge(empty, a)):
        assert _fields(backend, identity) == _fields(backend, a)
    assert _bounds(backend, whole) == [float(np.concatenate(parts).min()), float(np.concatenate(parts).max())]


@pytest.mark.clause("S1", "S3")
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["image", "pixel"])
def test_s1_distribution_algebra(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    parts = [_scores(dtype, (4, *shape), seed) for seed in range(3)]
    empty = backend.cdf.init(shape)
    a, b, c = (backend.cdf.update(empty, backend.asarray(part, dtype)) for part in parts)
    merge = backend.cdf.merge
    both = backend.cdf.update(empty, backend.asarray(np.concatenate(parts[:2]), dtype))
    whole = backend.cdf.update(both, backend.asarray(parts[2], dtype))
    expected = _moments(backend, whole)
    for other in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a)), merge(both, c)):
        assert backend.count(other.count) == backend.count(whole.count)
        for found, wanted in zip(_moments(backend, other), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=backend.moments_rtol)
    for identity in (merge(a, empty), merge(empty, a)):
        assert _fields(backend, identity) == _fields(backend, a)


@pytest.mark.clause("S1")
def test_s1_empty_batches_change_nothing(backend: Backend, dtype: str) -> None:
    for module in (backend.min_max, backend.cdf, backend.normal):
        filled = module.update(module.init(), backend.asarray([1.0, 2.0, 0.5, 4.0], dtype))
        assert _fields(backend, module.update(filled, backend.asarray([], dtype))) == _fields(backend, filled)


@pytest.mark.clause("S1")
def test_s1_where_selects_samples(backend: Backend, dtype: str) -> None:
    where = backend.asarray([True, False, True, False], "bool")
    scores = backend.asarray([1.0, 100.0, 2.0, -5.0], dtype)
    assert _bounds(backend, backend.min_max.update(backend.min_max.init(), scores, where=where)) == [1.0, 2.0]
    record = backend.cdf.update(backend.cdf.init(), scores, where=where)
    assert backend.counts(record) == Counts(2)
    np.testing.assert_allclose(_moments(backend, record), oracle.moments([1.0, 2.0]), rtol=backend.moments_rtol)
    maps = np.reshape(np.arange(1.0, 25.0), (4, 1, 2, 3))
    record = backend.cdf.update(backend.cdf.init((2, 3)), backend.asarray(maps, dtype), where=where)
    assert backend.count(record.count) == 12
    _assert_pixels(backend, record, maps[::2, 0])


@pytest.mark.clause("S3")
def test_s3_moments_of_the_logarithm_with_ddof_1(backend: Backend, dtype: str) -> None:
    scores = _scores(dtype, (8,))
    record = backend.cdf.update(backend.cdf.init(), backend.asarray(scores, dtype))
    expected = oracle.moments(scores.tolist())
    np.testing.assert_allclose(_moments(backend, record), expected, rtol=backend.moments_rtol)
    assert backend.count(record.count) == 8


@pytest.mark.clause("S3")
@pytest.mark.parametrize("channel", [True, False])
def test_s3_pixel_level_has_moments_of_every_pixel(backend: Backend, dtype: str, channel: bool) -> None:
    maps = _scores(dtype, (4, 2, 3))
    array = backend.asarray(maps[:, None] if channel else maps, dtype)
    record = backend.cdf.update(backend.cdf.init((2, 3)), array)
    _assert_pixels(backend, record, maps)


@pytest.mark.clause("S3")
@pytest.mark.parametrize(("differ", "spread"), [(0.0, False), (2.0, True)], ids=["alike", "unlike"])
def test_s3_deviations_of_pixels_are_shrunk_toward_the_typical_one(
    backend: Backend, dtype: str, differ: float, spread: bool
) -> None:
    draws = np.random.default_rng(6).normal(size=(5, 2, 3)) * np.exp(differ * np.linspace(-1.0, 1.0, 6).reshape(2, 3))
    draws[3:, 0, 0] = draws[4, 1] = -np.inf  # zeros: pixels differ in how many images they have seen
    maps = np.reshape(random_values(dtype, np.exp(0.3 * draws.ravel())), draws.shape)
    record = backend.cdf.update(backend.cdf.init((2, 3)), backend.asarray(maps, dtype))
    std = _assert_pixels(backend, record, maps)
    assert (np.ptp(std) > 0) == spread
    # Deviations as they are, where the level is not said to be that of pixels.
    plain = np.array(_moments(backend, record)[1])
    for i, j in np.ndindex(2, 3):
        expected = oracle.moments(maps[maps[:, i, j] > 0, i, j].tolist())[1]
        np.testing.assert_allclose(plain[i, j], expected, rtol=backend.moments_rtol)


@pytest.mark.clause("S3", "N7")
def test_s3_a_constant_pixel_stays_constant_and_out_of_the_others(backend: Backend, dtype: str) -> None:
    maps = _scores(dtype, (5, 2, 3))
    maps[:, 0, 0], maps[:, 1, 2] = 20.0, 1.0
    if dtype in ("float64", "float32"):  # rounding, that of a mean and that of a logarithm near 0
        maps[3:, 0, 0], maps[4, 1, 2] = oracle.rounded(20.0 * (1.0 + 1.5e-6), "float32"), oracle.next_up(1.0, "float32")
    record = backend.cdf.update(backend.cdf.init((2, 3)), backend.asarray(maps, dtype))
    mean, std = backend.cdf.mean_std(record, level="pixel")
    for i, j in ((0, 0), (1, 2)):
        score = float(maps[0, i, j])
        given = [backend.to_numpy(value)[i, j].item() for value in (mean, std)]
        z = evaluate(backend, backend.cdf.standardize, dtype, [0.75 * score, score, 1.25 * score], *given)
        assert z == [-math.inf, 0.0, math.inf]
    own = [oracle.moments(maps[:, i, j].tolist())[1] for i, j in ((0, 1), (0, 2), (1, 0), (1, 1))]
    found = backend.to_numpy(std).ravel()[1:5]
    np.testing.assert_allclose(found, oracle.shrunk(own, [5] * 4), rtol=backend.moments_rtol)


@pytest.mark.clause("S3", "N7")
def test_s3_maps_of_constant_pixels_are_fitted(backend: Backend) -> None:
    maps = np.full((3, 2, 3), 20.0)
    record = backend.cdf.update(backend.cdf.init((2, 3)), backend.asarray(maps, backend.usual_dtype))
    mean, std = (np.array(value) for value in _moments(backend, record, level="pixel"))
    np.testing.assert_allclose(mean, np.log(maps[0]), rtol=backend.moments_rtol)
    assert np.all((std >= 0) & (std <= 2.0**-21))


@pytest.mark.clause("S4")
@pytest.mark.dtypes(("float64", "float32"))
@pytest.mark.parametrize("ratio", [1.0, 1e3])
def test_s4_accuracy_over_many_batches(backend: Backend, dtype: str, ratio: float) -> None:
    # 10^5 batches are streamed in tests/jax and tests/core; operation by operation that would take minutes.
    batches = _scores(dtype, (400, 8), mean=5.0, std=5.0 / ratio)
    record = backend.cdf.init()
    for batch in batches:
        record = backend.cdf.update(record, backend.asarray(batch, dtype))
    expected = oracle.moments(batches.ravel().tolist())
    np.testing.assert_allclose(_moments(backend, record), expected, rtol=backend.moments_rtol)


@pytest.mark.clause("S5")
def test_s5_records_do_not_grow(backend: Backend) -> None:
    for module, record, batch in (
        (backend.min_max, backend.min_max.init(), np.ones((4,))),
        (backend.cdf, backend.cdf.init(), np.ones((4,))),
        (backend.cdf, backend.cdf.init((2, 3)), np.ones((4, 1, 2, 3))),
        (backend.normal, backend.normal.init(), np.ones((4,))),
    ):
        shapes = [backend.describe(field).shape for field in record]
        for _ in range(3):
            record = module.update(record, backend.asarray(batch, backend.usual_dtype))
        assert [backend.describe(field).shape for field in record] == shapes


# Five of a positive kind, two zeros, four negative, one NaN, three infinite.
_OF_ALL_KINDS = (1.0, math.nan, 4.0, math.inf, 2.0, -math.inf, 0.0, -3.0, -0.0, -0.5, 0.5, math.inf, -1.0, 8.0, -2.0)


@pytest.mark.clause("S6", "S1", "S2", "S3")
def test_s6_what_is_left_out_is_counted_by_its_kind(backend: Backend, dtype: str) -> None:
    range_, moments = Counts(11, nan=1, infinite=3), Counts(5, zeros=2, negative=4, nan=1, infinite=3)
    array, where = backend.asarray(_OF_ALL_KINDS, dtype), np.arange(15) < 8
    for module, expected in ((backend.min_max, range_), (backend.cdf, moments)):
        first, second = (
            module.update(module.init(), array, where=backend.asarray(mask, "bool")) for mask in (where, ~where)
        )
        whole = module.update(module.init(), array)
        streamed = module.update(first, array, where=backend.asarray(~where, "bool"))
        for record in (whole, streamed, module.merge(first, second), module.merge(second, first)):
            assert backend.counts(record) == expected
        assert backend.counts(module.merge(whole, whole)) == Counts(*(2 * count for count in expected))
        assert backend.counts(second) == Counts(*(a - b for a, b in zip(expected, backend.counts(first), strict=True)))
    assert backend.counts(first) == Counts(3, zeros=1, negative=1, nan=1, infinite=2)
    assert _bounds(backend, backend.min_max.update(backend.min_max.init(), array)) == [-3.0, 8.0]
    expected_moments = oracle.moments([1.0, 4.0, 2.0, 0.5, 8.0])
    np.testing.assert_allclose(_moments(backend, streamed), expected_moments, rtol=backend.moments_rtol)


@pytest.mark.clause("S6", "S3")
@pytest.mark.parametrize("axes", [(4, 2, 3), (4, 1, 2, 3), (4, 2, 3, 1)], ids=str)
def test_s6_zeros_are_counted_where_they_are(backend: Backend, dtype: str, axes: tuple[int, ...]) -> None:
    maps = np.full((4, 2, 3), 2.0)
    maps[:, 0, 0] = [1.0, 0.0, 4.0, 2.0]
    maps[:, 0, 1] = [2.0, math.inf, -0.0, 0.0]
    maps[1:3, 1, 2] = math.nan, -1.0
    record = backend.cdf.update(backend.cdf.init((2, 3)), backend.asarray(maps.reshape(axes), dtype))
    assert backend.to_numpy(record.count).tolist() == [[3, 1, 4], [4, 4, 2]]
    assert backend.to_numpy(record.zeros).tolist() == [[1, 2, 0], [0, 0, 0]]
    assert backend.counts(record) == Counts(18, zeros=3, negative=1, nan=1, infinite=1)
    mean, std = _moments(backend, record, level="pixel")
    wanted, own = oracle.moments([1.0, 4.0, 2.0])
    expected = [wanted, *oracle.shrunk([own], [3])]  # the only pixel that varies
    np.testing.assert_allclose([mean[0][0], std[0][0]], expected, rtol=backend.moments_rtol)


@pytest.mark.clause("S6", "N13")
@pytest.mark.dtypes(("float64", "float32"))
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["image", "pixel"])
def test_s6_a_subnormal_score_counts_or_is_left_out(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    least = oracle.ulp(0.0, dtype)
    scores = [-least, least, 1.0, 2.0, 4.0]
    array = np.reshape(scores, (-1, *(1 for _ in shape))) + np.zeros(shape)
    record = backend.cdf.update(backend.cdf.init(shape), backend.asarray(array, dtype))
    counts = Counts(*(count // math.prod(shape) for count in backend.counts(record)))
    assert counts in (Counts(4, negative=1), Counts(3, zeros=2))
    expected = oracle.moments(scores[-counts.valid :])
    for found, wanted in zip(backend.cdf.mean_std(record), expected, strict=True):
        np.testing.assert_allclose(backend.to_numpy(found), np.full(shape, wanted), rtol=backend.moments_rtol)


@pytest.mark.clause("S6")
def test_s6_a_pixel_without_valid_values_takes_the_pooled_moments(backend: Backend, dtype: str) -> None:
    maps = _scores(dtype, (4, 2, 3))
    maps[:, 0, 0] = 0.0
    maps[1:, 0, 1] = 0.0  # one value has no deviation
    record = backend.cdf.update(backend.cdf.init((2, 3)), backend.asarray(maps, dtype))
    mean, std = _moments(backend, record, level="pixel")
    others = [oracle.moments(maps[:, i, j].tolist()) for i, j in ((0, 2), (1, 0), (1, 1), (1, 2))]
    for j in (0, 1):
        assert mean[0][j] == pytest.approx(np.mean([m for m, _ in others]), rel=10 * backend.moments_rtol)
        assert std[0][j] == pytest.approx(np.sqrt(np.mean([d**2 for _, d in others])), rel=10 * backend.moments_rtol)


@pytest.mark.clause("S4", "S6")
@pytest.mark.dtypes(("float64", "float32"))
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["image", "pixel"])
def test_s4_the_first_scores_may_be_invalid(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    # The deviation is a thousandth of the mean: logarithms must keep their digits without a first score to start from.
    first, second = oracle.rounded(8488197554176000.0, dtype), oracle.rounded(8956955116699648.0, dtype)
    mean, std = oracle.moments([first, second])
    streams = (
        [[0.0, math.nan, first, second], [-1.0] * 4],
        [[-1.0, 0.0, 0.0, first], [math.inf, second, 0.0, math.nan]],
        [[0.0] * 4, [0.0, math.nan, first, second]],
    )
    for batches in streams:
        record = backend.cdf.init(shape)
        for values in batches:
            array = np.reshape(values, (-1,) + (1,) * len(shape)) + np.zeros(shape)
            record = backend.cdf.update(record, backend.asarray(array, dtype))
        for found, expected in zip(backend.cdf.mean_std(record), (mean, std), strict=True):
            np.testing.assert_allclose(backend.to_numpy(found), np.full(shape, expected), rtol=backend.moments_rtol)


@pytest.mark.clause("S6", "N8")
def test_s6_nothing_but_invalid_values_is_an_error(backend: Backend) -> None:
    scores = backend.asarray([math.nan, math.inf, -math.inf], backend.usual_dtype)
    message = "none of 3 image-level values can be fitted: 1 is NaN and 2 infinite"
    with pytest.raises(NotFittedError, match=message):
        backend.min_max.bounds(backend.min_max.update(backend.min_max.init(), scores))
    with pytest.raises(NotFittedError, match=message):
        backend.cdf.mean_std(backend.cdf.update(backend.cdf.init(), scores))
    zeros = backend.cdf.update(backend.cdf.init((1, 2)), backend.asarray(np.zeros((3, 1, 2)), backend.usual_dtype))
    with pytest.raises(NotFittedError, match="none of 6 pixel-level values can be fitted: 6 are zero"):
        backend.cdf.mean_std(zeros, level="pixel")


@pytest.mark.clause("N8")
def test_n8_finalizing_unfitted_statistics_is_an_error(backend: Backend) -> None:
    for finalize in (
        lambda: backend.min_max.bounds(backend.min_max.init()),
        lambda: backend.cdf.mean_std(backend.cdf.init()),
    ):
        with pytest.raises(NotFittedError, match="have seen no value"):
            finalize()
    with pytest.raises(NotFittedError, match="pixel-level"):
        backend.cdf.mean_std(backend.cdf.init((2, 2)), level="pixel")


@pytest.mark.clause("S7")
def test_s7_one_value_has_no_deviation(backend: Backend) -> None:
    for shape in ((), (2, 2)):
        record = backend.cdf.update(backend.cdf.init(shape), backend.asarray(np.ones((1, *shape)), backend.usual_dtype))
        with pytest.raises(InsufficientDataError, match="1 valid value and need at least 2"):
            backend.cdf.mean_std(record)
    record = backend.min_max.update(backend.min_max.init(), backend.asarray([3.0], backend.usual_dtype))
    assert _bounds(backend, record) == [3.0, 3.0]


@pytest.mark.clause("S7", "N7")
def test_s7_a_constant_population_is_fitted(backend: Backend, dtype: str) -> None:
    record = backend.cdf.init()
    for size in (4, 1, 8):
        record = backend.cdf.update(record, backend.asarray(np.full((size,), 20.0), dtype))
    mean, std = backend.cdf.mean_std(record)
    given = [backend.to_numpy(value).item() for value in (mean, std)]
    z = evaluate(backend, backend.cdf.standardize, dtype, [19.0, 20.0, 21.0], *given)
    assert z == [-math.inf, 0.0, math.inf]
    assert evaluate(backend, backend.cdf.normalize, dtype, [19.0, 20.0, 21.0], 20.0, *given) == [0.0, 0.5, 1.0]


@pytest.mark.clause("S8")
@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 5, 4), (2, 3, 4, 4), (4, 4)], ids=str)
def test_s8_other_resolution_is_an_error(backend: Backend, shape: tuple[int, ...]) -> None:
    for module in (backend.cdf, backend.normal):
        with pytest.raises(ResolutionError, match=r"\(4, 4\)"):
            module.update(module.init((4, 4)), backend.asarray(np.ones(shape), backend.usual_dtype))


@pytest.mark.clause("S2")
def test_s2_the_empty_range_is_the_identity(backend: Backend) -> None:
    record = backend.min_max.init()
    low, high = (backend.to_numpy(field).item() for field in record[:2])
    assert low > high  # infinite, or the largest numbers where states are finite
    assert backend.counts(record) == Counts(0)


@pytest.mark.clause("S3")
@pytest.mark.dtypes(("float32",))
def test_s3_not_the_difference_of_squares(backend: Backend, dtype: str) -> None:
    # E[x^2] - E[x]^2 in float32 gives a negative variance here
    scores = random_values(dtype, np.exp(np.linspace(49.99, 50.01, 64)))
    record = backend.cdf.init()
    for start, stop in pairwise(range(0, 65, 8)):
        record = backend.cdf.update(record, backend.asarray(scores[start:stop], dtype))
    np.testing.assert_allclose(_moments(backend, record), oracle.moments(scores), rtol=1e-5)


@pytest.mark.clause("S8")
@pytest.mark.parametrize("shapes", [((4, 4), (4, 1)), ((), (4, 4)), ((1, 1), (4, 4))], ids=str)
def test_s8_records_of_other_maps_do_not_merge(
    backend: Backend, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    a, b = (backend.cdf.init(shape) for shape in shapes)
    with pytest.raises(ResolutionError, match="cannot merge"):
        backend.cdf.merge(a, b)
