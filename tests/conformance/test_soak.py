"""A long run: flat memory, exact counts, no drift. ``--deep``: 100,000 batches, 3.3 thousand million pixels."""

import gc
import math
from pathlib import Path

import numpy as np
import pytest

from anomnorm_core.checks import Counts
from conformance.backend import Backend

SHAPE = (32, 1, 32, 32)
STATUS = Path("/proc/self/status")


def _resident() -> int:
    """Bytes of memory of this process, after what is garbage has gone; 0 where the system does not say."""
    gc.collect()
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.clause("S5", "S1", "S3", "S4")
@pytest.mark.dtypes(("float32",))
def test_s5_a_long_run(backend: Backend, dtype: str, request: pytest.FixtureRequest) -> None:
    rounds = 25_000 if request.config.getoption("--deep") else 50
    rng = np.random.default_rng(97)
    # The deviation is a thousandth of the mean: what a naive accumulator loses first.
    draws = [np.exp(rng.normal(8.0, 0.008, size=SHAPE)).astype(np.float32) for _ in range(4)]
    draws[3][5, 0, 7, 9] = math.nan
    given = [backend.asarray(values, dtype) for values in draws]
    ranges, moments = backend.min_max.init(), backend.cdf.init(SHAPE[-2:])
    before = 0
    for turn in range(rounds):
        for array in given:
            ranges = backend.min_max.update(ranges, array)
            moments = backend.cdf.update(moments, array)
        if turn == rounds // 10:
            backend.to_numpy(moments.mean)
            before = _resident()
    count = rounds * (4 * math.prod(SHAPE) - 1)
    for record in (ranges, moments):
        assert backend.counts(record) == Counts(count, nan=rounds)
    low, high = (backend.to_numpy(value).item() for value in backend.min_max.bounds(ranges))
    assert (low, high) == (min(map(np.nanmin, draws)), max(map(np.nanmax, draws)))
    logs = np.log(np.concatenate(draws)[:, 0].astype(np.float64))
    mean = np.nanmean(logs, axis=0)
    kept = rounds * np.sum(~np.isnan(logs), axis=0)
    std = np.sqrt(rounds * np.nansum((logs - mean) ** 2, axis=0) / (kept - 1))
    found, spread = (backend.to_numpy(value) for value in backend.cdf.mean_std(moments))
    np.testing.assert_allclose(found, mean, rtol=backend.moments_rtol)
    np.testing.assert_allclose(spread, std, rtol=backend.moments_rtol)
    assert _resident() - before < 16 * 2**20
