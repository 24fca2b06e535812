"""What compiled programs move and compute for each pixel: counts, which are the same on any processor of a kind."""

from typing import Any

import jax
import numpy as np
import pytest

from anomnorm_jax import Normalizer

MAPS = np.random.default_rng(0).uniform(0.5, 1.5, size=(64, 32, 32)).astype(np.float32)
PIXELS = np.zeros((32, 32), np.float32), np.full((32, 32), 0.3, np.float32)
NORMALIZERS = {
    "min-max": Normalizer.min_max((0.0, 2.0), (0.0, 2.0), threshold=1.0),
    "two-slope": Normalizer.of("two-slope", (0.0, 2.0), (0.0, 2.0), threshold=0.9),
    "CDF": Normalizer.cdf((0.0, 0.3), PIXELS, threshold=1.0),
}


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("method", "operations", "logarithms", "moved"),
    [("min-max", 20, 0, 14), ("two-slope", 26, 0, 26), ("CDF", 90, 1, 44)],
)
def test_no_pixel_is_computed_twice(method: str, operations: int, logarithms: int, moved: int) -> None:
    """By pixel, of scores, masks and maps together: masks that were made of scores would cost as much again."""
    normalizer = NORMALIZERS[method]
    compiled = jax.jit(lambda fitted, *given: fitted(*given)).lower(normalizer, MAPS.max((1, 2)), MAPS).compile()
    found: Any = compiled.cost_analysis()
    assert operations / 2 < found["flops"] / MAPS.size <= operations
    assert found.get("transcendentals", 0.0) / MAPS.size <= logarithms + 0.01
    assert found["bytes accessed"] / MAPS.size <= moved
