"""Clause S4 at its full length in float32, in one compiled scan."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_core.checks import Counts
from anomnorm_jax import _counter, cdf, min_max

pytestmark = pytest.mark.usefixtures("optimized")

BATCHES = 100_000


@pytest.mark.clause("S4", "S3")
@pytest.mark.parametrize(("center", "ratio"), [(5.0, 1e3), (-5.0, 1e3), (5.0, 1.0), (0.0, math.inf)], ids=str)
@pytest.mark.parametrize("shape", [(), (2, 1)], ids=["image", "pixel"])
def test_mean_and_std_stay_within_1e5_over_many_batches(center: float, ratio: float, shape: tuple[int, ...]) -> None:
    std = abs(center) / ratio if center else 0.01
    draws = np.random.default_rng(12).normal(center, std, size=(BATCHES, 3, *shape))
    scores = np.exp(draws).astype(np.float32)
    scores[::100, 0] = np.nan
    scores[7::100, 2] = 0.0

    record, _ = jax.lax.scan(lambda r, batch: (cdf.update(r, batch), None), cdf.init(shape), jnp.asarray(scores))
    assert record.mean.dtype == jnp.float32
    assert np.all(np.asarray(record.count) == 3 * BATCHES - 2 * BATCHES // 100)
    assert np.all(np.asarray(record.zeros) == BATCHES // 100)
    pixels = math.prod(shape)
    assert _counter.counts_of(record)[1:] == (pixels * BATCHES // 100, 0, pixels * BATCHES // 100, 0)
    mean, spread = (np.asarray(value) for value in cdf.mean_std(record))
    for index in np.ndindex(shape):
        pixel = scores[(..., *index)].astype(np.float64)
        logs = np.log(pixel[pixel > 0])
        exact_mean = math.fsum(logs) / logs.size
        exact_std = math.sqrt(math.fsum((logs - exact_mean) ** 2) / (logs.size - 1))
        # relative to the mean or, where that is about zero, to the deviation
        assert mean[index] == pytest.approx(exact_mean, rel=1e-5, abs=1e-5 * std)
        assert spread[index] == pytest.approx(exact_std, rel=1e-5)


@pytest.mark.clause("S4", "S3")
def test_merging_many_parts_in_a_tree_equals_streaming() -> None:
    scores = np.exp(np.random.default_rng(13).normal(5.0, 5e-3, size=(2**16, 2))).astype(np.float32)
    parts = jax.vmap(cdf.update, in_axes=(None, 0))(cdf.init(), jnp.asarray(scores))
    while parts.count.size > 1:
        halves = [jax.tree.map(lambda leaf, start=start: leaf[start::2], parts) for start in (0, 1)]
        parts = jax.vmap(cdf.merge)(*halves)
    record = jax.tree.map(lambda leaf: leaf[0], parts)
    logs = np.log(scores.astype(np.float64))
    assert int(record.count) == 2**17
    np.testing.assert_allclose(cdf.mean_std(record), [logs.mean(), logs.std(ddof=1)], rtol=1e-5)


@pytest.mark.clause("S2", "S3")
def test_range_and_counts_are_exact_over_many_batches() -> None:
    scores = np.random.default_rng(14).normal(size=(BATCHES, 4)).astype(np.float32)
    scores[::1000, 0] = np.inf
    record, _ = jax.lax.scan(lambda r, batch: (min_max.update(r, batch), None), min_max.init(), jnp.asarray(scores))
    finite = scores[np.isfinite(scores)]
    assert [float(value) for value in min_max.bounds(record)] == [float(finite.min()), float(finite.max())]
    assert _counter.counts_of(record) == Counts(4 * BATCHES - 100, infinite=100)
    assert finite.size == 4 * BATCHES - 100


@pytest.mark.clause("S3", "S6")
@pytest.mark.parametrize("where", [None, [False, True, True, True]], ids=str)
@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)], ids=str)
@pytest.mark.parametrize("first", [2e-38, 1e30])
def test_the_first_value_of_all_does_not_spoil_the_rest(
    first: float, shape: tuple[int, ...], where: list[bool] | None
) -> None:
    x = np.float32([first, 1, 2, 3]).reshape(shape)
    record = cdf.update(cdf.init(shape[1:]), x, where=None if where is None else np.array(where))
    exact = np.log(x.astype("f8"))[0 if where is None else 1 :]
    mean, std = cdf.mean_std(record)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, exact.std(0, ddof=1), rtol=1e-5)
