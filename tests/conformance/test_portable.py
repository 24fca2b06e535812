"""Clauses P1 and P2: a file of the reference gives the reference's results, and the other way round."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomnorm_core import Normalizer
from conformance import oracle
from conformance.assertions import neighbours, random_values
from conformance.backend import Backend
from conformance.test_normalizer import KINDS, fitted, sample

pytestmark = pytest.mark.needs("normalizer")

GOLDEN = sorted((Path(__file__).parent.parent / "core" / "golden").glob("*.safetensors"))


def assert_same_results(backend: Backend, one: Normalizer, other: object, dtype: str) -> None:
    """``one`` in NumPy, ``other`` in the backend: the same labels, scores within both bounds."""
    scores, maps = sample(dtype)
    for level in one.thresholds.values():  # and around every threshold
        near = neighbours(float(level.raw.ravel()[0]), oracle.arithmetic(dtype), 8)
        scores = [*scores, *random_values(dtype, np.array(near))]
    shape = one.to_fit().resolution or (2, 3)
    kept = "float32" if dtype == "bfloat16" else dtype  # NumPy has none
    for start in range(0, len(scores), 16):  # batches of one size, for compilers
        part = np.resize(scores[start:], 16)
        part_maps = np.resize(np.append(part, maps), (16, 1, *shape))
        expected = one(part.astype(kept), part_maps.astype(kept))
        found = backend.score(other, backend.asarray(part, dtype), backend.asarray(part_maps, dtype))
        _compare(backend, found, expected, dtype)


def _compare(backend: Backend, found: dict[str, Any], expected: dict[str, np.ndarray], dtype: str) -> None:
    for unit, flagged in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
        values, wanted = backend.to_numpy(found[unit]), expected[unit].astype(np.float64)
        assert np.array_equal(np.isnan(values), np.isnan(wanted))
        assert np.nanmax(np.abs(values - wanted)) <= 2 * oracle.unit_bound(dtype)
        assert np.array_equal(backend.to_numpy(found[flagged]), expected[flagged])


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
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_p1_a_golden_file_is_read_by_the_backend(backend: Backend, path: Path) -> None:
    reference, normalizer = Normalizer.load(path), backend.normalizer.load(path)
    assert normalizer.summary() == reference.summary()
    assert_same_results(backend, reference, normalizer, backend.usual_dtype)
