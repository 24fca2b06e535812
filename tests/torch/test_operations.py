"""How often eager kernels go through the maps: counts, which are the same on any processor.

A pass takes as long as a comparison of the maps or a few times that, whatever processor it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anomnorm_torch import Normalizer, cdf, min_max, threshold

MAPS = torch.from_numpy(np.random.default_rng(0).uniform(0.5, 1.5, size=(32, 1, 32, 32)).astype(np.float32))
SCORES = MAPS.amax((1, 2, 3))
PIXELS = np.zeros((32, 32), np.float32), np.full((32, 32), 0.3, np.float32)
NORMALIZERS = {
    "min-max": Normalizer.min_max((0.0, 2.0), (0.0, 2.0), threshold=1.0),
    "two-slope": Normalizer.of("two-slope", (0.0, 2.0), (0.0, 2.0), threshold=0.9),
    "CDF": Normalizer.cdf((0.0, 0.3), PIXELS, threshold=1.0),
}


class Passes(TorchDispatchMode):
    """Counts elements that operations read or write, whichever are more; views and new memory cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not (function.is_view or "empty" in str(function)):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.elements += max((tensor.numel() for tensor in tensors), default=0)
        return result


def passes(call: Callable[[], Any]) -> float:
    """Over the maps, in the second call."""
    call()
    with Passes() as counted:
        call()
    return counted.elements / MAPS.numel()


# Comparison, difference, smallest difference, sum, clamp; two slopes are two clamps and a sum more. The CDF has no
# smallest difference, and quotient, clamp, logarithm, product, erfc and half instead of sum and clamp.
@pytest.mark.parametrize(("method", "most"), [("min-max", 5), ("two-slope", 8), ("CDF", 8)])
def test_maps_are_passed_over_few_times(method: str, most: int) -> None:
    assert most - 1 < passes(lambda: NORMALIZERS[method](SCORES, MAPS)) < most + 0.1


def test_records_pass_over_maps_few_times() -> None:
    empty = min_max.init(), cdf.init((32, 32)), threshold.init()
    assert passes(lambda: min_max.update(empty[0], MAPS)) < 1.1
    assert passes(lambda: cdf.update(empty[1], MAPS)) < 9.5  # among them some over one map, here a 32nd each
