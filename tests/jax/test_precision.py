"""Accuracy of float32 scores and the rule at the threshold, jitted as in a normalizer (clauses N1 to N4, N13)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from anomnorm_jax import Normalizer, cdf, min_max, threshold, two_slope

pytestmark = pytest.mark.usefixtures("optimized")

RNG = np.random.default_rng(101)
STDS = (3.5e-4, 1e-2, 0.1, 0.3, 1.0, 5.0, 80.0)
MEANS = (0.0, 0.35, 5.0, -60.0, -86.0, 80.0, 86.0)
LARGEST, SMALLEST = float(np.finfo("f4").max), float(np.finfo("f4").tiny)
EAGER_AND_JIT = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


def scores(mean: float, std: float, threshold: float) -> np.ndarray:
    """Normal float32: as they come, far out, around the switches of the formula, and next to center and threshold."""
    z = np.concatenate([RNG.normal(0, 2, 1500), RNG.uniform(-12, 12, 1500)])
    with np.errstate(over="ignore", under="ignore"):
        drawn = np.exp(mean + z * std)
        switches = np.outer((math.exp(mean), threshold), np.linspace(0.45, 2.1, 400)).ravel()
        near = np.float32([math.exp(mean), threshold])[:, None] * (1 + np.linspace(-1e-6, 1e-6, 40, dtype="f4"))
        x = np.concatenate([drawn, switches, near.ravel(), 2.0 ** np.arange(-126, 128)]).astype("f4")
    return x[(x >= SMALLEST) & np.isfinite(x)]


@pytest.mark.clause("N2", "N13")
@pytest.mark.parametrize("std", STDS)
def test_z_scores_are_within_four_ulp_and_the_logarithm(std: float) -> None:
    scale = np.float32(std)
    for mean in np.float32(MEANS):
        x = scores(float(mean), std, math.exp(mean))
        found = np.asarray(cdf.standardize(x, mean, scale)).astype("f8")
        exact = (np.log(x.astype("f8")) - float(mean)) / float(scale)
        allowed = 4 * np.spacing(np.abs(exact).astype("f4")).astype("f8") + 2.0**-30 / std
        assert (np.abs(found - exact) <= allowed).all(), (mean, (np.abs(found - exact) / allowed).max())


@pytest.mark.clause("N3", "N4", "N13")
@pytest.mark.parametrize("std", STDS)
def test_normalized_scores_are_within_2_to_the_minus_23(std: float) -> None:
    normalizer_call = jax.jit(lambda normalizer, x: normalizer(x))
    scale = np.float32(std)
    for mean in MEANS:
        raw = np.float32(min(math.exp(min(mean + 1.3 * std, 88.0)), LARGEST))
        normalizer = Normalizer.cdf((np.float32(mean), scale), threshold=float(raw), units="raw")
        x = scores(mean, std, float(raw))
        result = normalizer_call(normalizer, x[:4000])
        u = np.asarray(result["pred_scores"]).astype("f8")
        exact = ndtr(np.log(x[:4000].astype("f8") / float(raw)) / float(scale))
        assert np.abs(u - exact).max() <= 2.0**-23, (mean, np.abs(u - exact).max() * 2.0**23)
        flagged = x[:4000] >= raw
        assert np.array_equal(result["pred_labels"], flagged)
        assert np.array_equal(u >= 0.5, flagged)


def at_threshold(dtype: Any, t: float, count: int = 40) -> np.ndarray:
    """A threshold and its neighbours in a dtype, as float64."""
    kept = np.float64(t) if dtype == jnp.float64 else np.float64(np.float32(t))
    around = [np.asarray(jnp.asarray(kept, dtype=dtype))]
    for side in (-jnp.inf, jnp.inf):
        x = around[0]
        for _ in range(count):
            x = np.nextafter(x, np.asarray(side, dtype=x.dtype))
            around.append(x)
    return np.array([np.float64(x) for x in around])


@pytest.mark.clause("N1", "N3", "N4")
@EAGER_AND_JIT
@pytest.mark.parametrize(
    "dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16], ids=lambda dtype: dtype.__name__
)
def test_the_rule_at_the_threshold_bit_for_bit(dtype: Any, jit: bool) -> None:
    kernels = {
        "min-max": lambda x, t: min_max.normalize(x, t, -3.0, 1000.0),
        "min-max, far": lambda x, t: min_max.normalize(x, t, 1e-4, 2e-4),
        "two-slope": lambda x, t: two_slope.normalize(x, t, -3.0, 1000.0),
        "cdf": lambda x, t: cdf.normalize(x, t, 0.7, 0.3),
        "cdf, wide": lambda x, t: cdf.normalize(x, t, 0.7, 60.0),
        "cdf, constant": lambda x, t: cdf.normalize(x, t, 0.7, 0.0),
    }
    with jax.enable_x64(dtype == jnp.float64):
        for t in (0.1, 1.0, 3.14159, 777.7):
            values = at_threshold(dtype, t)
            x = jnp.asarray(values, dtype=dtype)
            kept = t if dtype == jnp.float64 else float(np.float32(t))
            for name, kernel in kernels.items():
                call = (
                    (lambda x, t, kernel=kernel: (kernel(x, t), threshold.flag(x, t)))
                    if not jit
                    else jax.jit(lambda x, t, kernel=kernel: (kernel(x, t), threshold.flag(x, t)))
                )
                u, flagged = (np.asarray(found) for found in call(x, t))
                assert u.dtype == (np.float64 if dtype == jnp.float64 else np.float32)
                assert np.array_equal(flagged, values >= kept), name
                assert np.array_equal(u >= 0.5, flagged), name
                assert (u[values == kept] == 0.5).all(), name


@pytest.mark.clause("N13")
def test_batches_of_another_size_give_the_same_numbers_within_2_to_the_minus_24() -> None:
    x = scores(0.35, 0.3, 1.7)[:64]
    whole = np.asarray(cdf.normalize(x, 1.7, 0.35, 0.3))
    single = np.concatenate([np.asarray(cdf.normalize(x[i : i + 1], 1.7, 0.35, 0.3)) for i in range(x.size)])
    assert np.abs(whole.astype("f8") - single).max() <= 2.0**-24


@pytest.mark.clause("N4")
def test_a_deviation_of_any_size_leaves_scores_on_their_side() -> None:
    bits = np.float32(2.0).view(np.int32) + np.arange(-5, 6, dtype=np.int32)
    x = bits.view(np.float32)
    for std in (1e20, 1e37):
        statistics = jnp.asarray(0.0), jnp.asarray(std)
        normalizer = Normalizer.cdf(statistics, threshold=2.0, units="raw")
        found = np.asarray(jax.jit(lambda scores, fitted: fitted(scores)["pred_scores"])(x, normalizer))
        np.testing.assert_array_equal(found >= 0.5, x >= 2)
        np.testing.assert_allclose(found, 0.5, rtol=0, atol=2.0**-23)
