"""Clauses T2 and T3: the one search in core takes arrays of every library."""

from collections.abc import Callable
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from anomnorm_core.threshold import adaptive, normal_quantile


def _half(array: np.ndarray, half: Callable[[Any], Any], full: Callable[[Any], Any]) -> Any:
    return half(array) if array.dtype.kind == "f" else full(array)


LIBRARIES: dict[str, Callable[[np.ndarray], Any]] = {
    "strict": array_api_strict.asarray,
    "torch": torch.from_numpy,
    "torch bfloat16": lambda a: _half(a, lambda x: torch.from_numpy(x).bfloat16(), torch.from_numpy),
    "torch with gradient": lambda a: _half(a, lambda x: torch.from_numpy(x).requires_grad_(), torch.from_numpy),
    "jax": jnp.asarray,
    "jax bfloat16": lambda a: _half(a, lambda x: jnp.asarray(x, dtype=jnp.bfloat16), jnp.asarray),
}


@pytest.mark.clause("T2", "T3")
@pytest.mark.parametrize("library", LIBRARIES)
def test_arrays_of_any_library(library: str) -> None:
    asarray = LIBRARIES[library]
    scores, labels = np.array([0.5, 2.0, 1.0, 3.0], dtype=np.float32), np.array([0, 1, 0, 1], dtype=np.int32)
    given = asarray(scores), asarray(labels)
    for found, expected in (
        (adaptive(*given), adaptive(scores, labels)),
        (
            normal_quantile(given[0], 0.5, labels=given[1]).threshold,
            normal_quantile(scores, 0.5, labels=labels).threshold,
        ),
    ):
        assert isinstance(found, np.ndarray)
        assert (found.dtype, float(found)) == (np.float32, float(expected))


def test_a_traced_array_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"inside of jax\.jit there are none"):
        jax.jit(lambda x: x + adaptive(x, x > 1))(jnp.ones(3))
