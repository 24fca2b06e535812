"""Clauses P1 and P2: a file of the reference gives the reference's results, and the other way round."""

from pathlib import Path

import numpy as np
import pytest

from anomnorm_core import Normalizer
from conformance import oracle
from conformance.assertions import random_values
from conformance.backend import Backend
from conformance.test_normalizer import KINDS, fitted, sample

pytestmark = pytest.mark.needs("normalizer")

GOLDEN = Path(__file__).parent.parent / "core" / "golden"


def assert_same_results(backend: Backend, one: Normalizer, other: object, dtype: str) -> None:
    """``one`` in NumPy, ``other`` in the backend: the same labels, unit scores within both bounds."""
    scores, maps = sample(dtype)
    resolution = one.fitted_state().resolution or (2, 3)
    maps = np.resize(maps, (16, 1, *resolution))
    kept = "float32" if dtype == "bfloat16" else dtype  # NumPy has none
    expected = one(np.array(scores, dtype=kept), np.array(maps, dtype=kept), extras=["raw"])
    found = backend.score(other, backend.asarray(scores, dtype), backend.asarray(maps, dtype))
    for unit, flagged in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
        values, wanted = backend.to_numpy(found[unit]), expected[unit].astype(np.float64)
        step = oracle.ulp(0.5, dtype) if dtype != "float64" else oracle.ulp(1.0, dtype)
        # 3 x 2^-24 in float32; half types round z to an ulp of its size, here up to 8
        allowed = 3 * 2.0**-24 if dtype == "float32" else 8 * step
        assert np.array_equal(np.isnan(values), np.isnan(wanted))
        assert np.nanmax(np.abs(values - wanted)) <= allowed
        clear = ~(np.abs(wanted - 0.5) < allowed)
        assert np.array_equal(backend.to_numpy(found[flagged])[clear], expected[flagged][clear])


@pytest.mark.clause("P1", "P2")
@KINDS
def test_p1_a_file_of_the_backend_is_read_by_the_reference(
    backend: Backend, dtype: str, kind: str, tmp_path: Path
) -> None:
    normalizer = fitted(backend, dtype, kind)
    normalizer.save(tmp_path / "n.safetensors")
    loaded = Normalizer.load(tmp_path / "n.safetensors")
    assert loaded.summary() == normalizer.summary()
    assert_same_results(backend, loaded, normalizer, dtype)


@pytest.mark.clause("P1", "P2")
@pytest.mark.parametrize("name", ["min_max_v1", "cdf_v1"])
def test_p1_a_golden_file_is_read_by_the_backend(backend: Backend, name: str) -> None:
    dtype = backend.usual_dtype
    path = GOLDEN / f"{name}.safetensors"
    assert_same_results(backend, Normalizer.load(path), backend.normalizer.load(path), dtype)


@pytest.mark.clause("P2")
@pytest.mark.parametrize("kind", ["min-max", "cdf-raw"])
def test_p2_fitted_samples_stay_on_their_side(backend: Backend, dtype: str, kind: str, tmp_path: Path) -> None:
    # Both decide on raw scores: every label agrees, next to the threshold too.
    normalizer = fitted(backend, dtype, kind)
    normalizer.save(tmp_path / "n")
    t = Normalizer.load(tmp_path / "n").fitted_state().threshold
    values = [oracle.rounded(t, dtype)]
    for _ in range(30):
        values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
    values += random_values(dtype, np.random.default_rng(2).normal(t, 0.5, size=40))
    reloaded = backend.normalizer.load(tmp_path / "n")
    maps = backend.asarray(np.ones((len(values), 1, 2, 3)), dtype)
    found = backend.score(reloaded, backend.asarray(values, dtype), maps)
    assert backend.to_numpy(found["pred_labels"]).tolist() == [x >= t for x in values]
