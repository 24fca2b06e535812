"""On a GPU: the same decisions and the same bounds. Skipped where there is none."""

import jax
import numpy as np
import pytest

from anomnorm_core import Normalizer as Reference
from anomnorm_jax import Normalizer, cdf, min_max

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")

RNG = np.random.default_rng(5)
SHAPE = (16, 24)
MEAN, STD = RNG.normal(0.0, 0.2, SHAPE).astype(np.float32), RNG.uniform(0.05, 1.4, SHAPE).astype(np.float32)
NORMALIZERS = {
    "min-max": lambda: Normalizer.min_max((0.0, 4.0), (-1.0, 5.0), threshold=1.3),
    "two-slope": lambda: Normalizer.of("two-slope", (0.0, 4.0), (-1.0, 5.0), threshold=1.3),
    "cdf": lambda: Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=1.0, center="pixel"),
    "cdf-wide": lambda: Normalizer.cdf((0.1, 30.0), (MEAN, STD * 20), threshold=1.0),
}


@pytest.mark.clause("N4", "N6", "N13")
@pytest.mark.parametrize("kind", NORMALIZERS)
def test_scores_and_decisions_are_those_of_the_reference(kind: str) -> None:
    own = NORMALIZERS[kind]()
    maps = np.exp(RNG.normal(0.2, 0.8, (8, 1, *SHAPE))).astype(np.float32)
    raw = np.broadcast_to(own.thresholds["pixel"].raw.astype(np.float32), SHAPE)
    maps[0], maps[1], maps[2] = raw, np.nextafter(raw, np.float32(-9)), np.nextafter(raw, np.float32(9))
    maps[3, 0, 0, :4] = np.nan, np.inf, -np.inf, 0.0
    scores = maps.reshape(8, -1).max(1)
    expected = Reference.from_fit(own.to_fit())(scores, maps)
    found = {name: np.asarray(value) for name, value in own(scores, maps).items()}
    for name in ("pred_labels", "pred_masks"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name, decision in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1.5 * 2.0**-23)
        np.testing.assert_array_equal(found[name] >= 0.5, found[decision])
    assert np.all(found["anomaly_maps"][0] == 0.5)


@pytest.mark.clause("S2", "S4")
def test_statistics_are_those_of_numpy() -> None:
    maps = np.exp(RNG.normal(5.0, 0.05, (64, 1, *SHAPE))).astype(np.float32)
    low, high = min_max.bounds(min_max.update(min_max.init(), maps))
    assert (float(low), float(high)) == (float(maps.min()), float(maps.max()))
    mean, std = cdf.mean_std(cdf.update(cdf.update(cdf.init(SHAPE), maps[:40]), maps[40:]))
    logs = np.log(maps[:, 0].astype(np.float64))
    np.testing.assert_allclose(mean, logs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, logs.std(0, ddof=1), rtol=1e-4)
