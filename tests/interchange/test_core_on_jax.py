"""The specification runs on JAX arrays, with JAX's own special functions."""

import jax
import numpy as np
import pytest

from anomnorm_core import cdf, min_max, two_slope

SCORES = np.exp(np.random.default_rng(6).normal(1.0, 0.5, size=50))


@pytest.mark.clause("N1", "N1b", "N2", "N3", "N9")
def test_the_functions_are_those_of_jax() -> None:
    with jax.enable_x64(True):
        x = jax.numpy.asarray(SCORES)
        for function in (
            lambda x: min_max.normalize(x, 2.0, 0.5, 9.0),
            lambda x: two_slope.normalize(x, 2.0, 0.5, 9.0),
            lambda x: cdf.normalize(x, 2.0, 1.0, 0.5),
            lambda x: cdf.standardize(x, 1.0, 0.5),
        ):
            found = jax.jit(function)(x)  # another library's functions would not take a traced array
            np.testing.assert_allclose(np.asarray(found), function(SCORES), rtol=1e-13)
