"""The moments of normal z-scores in compiled runs and in parts of one, beside those of SciPy (clause S9)."""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import fit_check, moments

from anomnorm_core.fit_check import moments as of_z
from anomnorm_jax import CdfNormalizationHook, cdf
from anomnorm_jax.run import _together

pytestmark = pytest.mark.clause("S9")

RNG = np.random.default_rng(59)
TRAINING = np.exp(RNG.normal(size=60)).astype("f4")
SCORES = np.exp(RNG.gumbel(0.5, 1.2, size=(8, 15))).astype("f4")
LABELS = RNG.integers(-1, 2, size=(8, 15))
HOOK = CdfNormalizationHook(1.0, progress=False)


def expected() -> Any:
    mean, std = moments(TRAINING)
    return pytest.approx(fit_check((np.log(SCORES[LABELS == 0].astype("f8")) - mean) / std, 60), rel=2e-5)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    z = np.float32(RNG.gumbel(3.0, size=40))
    whole, nothing = of_z(jnp.asarray(z)), jnp.zeros(4, jnp.float32)
    parts = [of_z(jnp.asarray(part)) for part in np.split(z, [1, 14])]
    np.testing.assert_allclose(_together(_together(*parts[:2]), parts[2]), whole, rtol=1e-5)
    np.testing.assert_allclose(_together(parts[0], _together(*parts[1:])), whole, rtol=1e-5)
    for pair in ((whole, nothing), (nothing, whole)):
        np.testing.assert_allclose(_together(*pair), whole, rtol=1e-6)
    assert not _together(nothing, nothing).any()


def test_a_compiled_epoch_and_merged_workers_have_the_moments_of_all_normals() -> None:
    data = {"pred_scores": SCORES, "label": LABELS}
    record = cdf.update(cdf.init(), TRAINING)

    @jax.jit
    def epoch(run: Any) -> Any:
        run = HOOK.on_validation_epoch_start(run, statistics=(record, None))
        workers = [
            jax.lax.scan(HOOK.on_validation_batch_end, HOOK.emptied(run), jax.tree.map(lambda x, p=part: x[p], data))[0]
            for part in (slice(0, 3), slice(3, 8))
        ]
        return HOOK.merge(workers[0], HOOK.merge(HOOK.emptied(run), workers[1]))

    run = HOOK.setup({"pred_scores": SCORES[0]})
    for _ in range(2):  # what an epoch has shown is no part of the next one
        run = epoch(run)
    check = HOOK.fit_check(run)
    assert check is not None
    assert asdict(check) == expected()
