"""Clause S4 at its full length through the NumPy reference."""

import math

import numpy as np
import pytest
from expected import shrunk

from anomnorm_core import cdf
from anomnorm_core.checks import Counts, counts_of

BATCHES = 100_000
MEAN, STD = 5.0, 5e-3  # |mean| / std = 1000


def _exact(scores: np.ndarray) -> tuple[float, float]:
    """Two passes over extended precision logarithms, exactly summed."""
    logs = np.log(scores.astype(np.longdouble))
    heads = logs.astype(np.float64)
    mean = (math.fsum(heads) + math.fsum((logs - heads).astype(np.float64))) / logs.size
    return mean, math.sqrt(math.fsum(((logs - mean) ** 2).astype(np.float64)) / (logs.size - 1))


@pytest.mark.clause("S4", "S3")
@pytest.mark.parametrize("level", ["image", "pixel"])
def test_mean_and_std_stay_exact_over_many_batches(level: str) -> None:
    # Images go through the same lines as pixels; a tenth of the batches is enough to see that.
    shape, batches = ((), BATCHES // 10) if level == "image" else ((1, 2), BATCHES)
    scores = np.exp(np.random.default_rng(11).normal(MEAN, STD, size=(batches, 2, *shape)))
    scores[::1000, 1] = np.nan  # left out, and counted
    record = cdf.init(shape)
    for batch in scores:
        record = cdf.update(record, batch)
    assert np.all(record.count == 2 * batches - batches // 1000)
    assert counts_of(record) == Counts(int(record.count.sum()), nan=math.prod(shape) * batches // 1000)
    mean, std = cdf.mean_std(record, level=level)
    pixels = [scores[(..., *index)] for index in np.ndindex(shape)]
    exact = np.reshape([_exact(pixel[np.isfinite(pixel)]) for pixel in pixels], (*shape, 2))
    wanted = exact[..., 1] if level == "image" else shrunk(exact[..., 1], record.count - 1)
    np.testing.assert_allclose(mean, exact[..., 0], rtol=1e-6, atol=0)
    np.testing.assert_allclose(std, wanted, rtol=1e-6, atol=0)


@pytest.mark.clause("S3")
def test_counts_are_exact_past_32_bits() -> None:
    record = cdf.update(cdf.init(), np.array([1.0, 2.0, 0.0, -3.0, -4.0, math.nan, math.inf]))
    for _ in range(40):
        record = cdf.merge(record, record)
    assert counts_of(record) == Counts(2**41, zeros=2**40, negative=2**41, nan=2**40, infinite=2**40)
    mean, std = cdf.mean_std(record)
    assert mean == pytest.approx(math.log(2.0) / 2, rel=1e-12)
    assert std == pytest.approx(math.log(2.0) / 2, rel=1e-12)  # half of all are 0, half are log 2
