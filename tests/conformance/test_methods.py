"""What every registered method has to do, whatever its formula: a new one is tested without an edit."""

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest

from anomnorm_core import OptionError
from anomnorm_core.checks import Counts
from conformance import oracle
from conformance.assertions import SIZE, assert_order, assert_sides, neighbours, random_values
from conformance.backend import Backend

pytestmark = pytest.mark.needs("normalizer")

NORMALS = random_values("float32", np.exp(np.random.default_rng(3).normal(0.5, 0.4, size=48)))
SHAPE = (2, 3)
_KEPT: dict[tuple[str, str], Any] = {}


def fitted(backend: Backend, registered: str) -> Any:
    """A normalizer of image scores and maps, from records that were updated and merged."""
    if (backend.id, registered) not in _KEPT:
        kernels, dtype = backend.methods[registered], backend.usual_dtype
        levels = []
        for shape, batches in (((), np.reshape(NORMALS, (6, 8))), (SHAPE, np.reshape(NORMALS, (2, 4, *SHAPE)))):
            first, *others = (kernels.update(kernels.init(shape), backend.asarray(b, dtype)) for b in batches)
            levels.append(reduce(kernels.merge, others, first))
        threshold = 1.5 if kernels.method.sigmas else float(np.quantile(NORMALS, 0.7))
        _KEPT[backend.id, registered] = backend.normalizer.of(registered, *levels, threshold=threshold)
    return _KEPT[backend.id, registered]


def normalized(
    backend: Backend, registered: str, values: Any, dtype: str, **given: Any
) -> tuple[list[float], list[bool]]:
    padded = list(values) + [1.0] * (-len(values) % SIZE)  # batches of one size, for compilers
    result = fitted(backend, registered)(backend.asarray(padded, dtype), **given)
    units, flags = (backend.to_numpy(result[name]).tolist() for name in ("pred_scores", "pred_labels"))
    return units[: len(values)], flags[: len(values)]


def image_threshold(backend: Backend, registered: str, dtype: str) -> float:
    return oracle.rounded(float(fitted(backend, registered).thresholds["image"].raw), oracle.arithmetic(dtype))


def spread(dtype: str) -> list[float]:
    values = np.append(np.linspace(-2.0, 12.0, 150), 2.0 ** np.arange(-20, 60, 0.5))
    return [*random_values(dtype, values), math.inf, -math.inf]


@pytest.mark.clause("N4", "N5", "N6", "N9")
def test_n4_sides_order_and_special_values(backend: Backend, registered: str) -> None:
    for dtype in {backend.usual_dtype, backend.dtypes[-1]}:
        t = image_threshold(backend, registered, dtype)
        values = neighbours(t, dtype, 40) + spread(dtype)
        units, flags = normalized(backend, registered, values, dtype)
        assert_sides(backend, values, units, flags, t)
        assert_order(backend, dtype, values, units)
        units, flags = normalized(backend, registered, [math.nan, math.inf, -math.inf], dtype)
        assert math.isnan(units[0])
        assert (units[1:], flags) == ([1.0, 0.0], [False, True, False])


@pytest.mark.clause("N9", "L5")
def test_n9_shapes_and_dtypes(backend: Backend, registered: str) -> None:
    for dtype, axes in ((backend.usual_dtype, (1, *SHAPE)), (backend.dtypes[-1], SHAPE)):
        maps = backend.asarray(np.resize(NORMALS, (5, *axes)), dtype)
        before = backend.to_numpy(maps).copy()
        extras = (*backend.methods[registered].method.extras, "raw")
        result = fitted(backend, registered)(anomaly_maps=maps, extras=extras)
        given = backend.describe(maps)
        kept = given._replace(dtype=oracle.arithmetic(dtype))
        for name in ("anomaly_maps", *(f"anomaly_maps_{each}" for each in extras if each != "raw")):
            assert backend.describe(result[name]) == kept
            assert np.all(np.isfinite(backend.to_numpy(result[name])))
        assert backend.describe(result["pred_masks"]) == given._replace(dtype="bool")
        assert backend.describe(result["anomaly_maps_raw"]) == given
        assert np.array_equal(backend.to_numpy(maps), before)
        for name in result:
            if name.startswith("pred_scores"):
                assert backend.describe(result[name]).shape == (5,)


@pytest.mark.clause("N11")
def test_n11_there_and_back(backend: Backend, registered: str) -> None:
    dtype, normalizer = backend.usual_dtype, fitted(backend, registered)
    t = image_threshold(backend, registered, dtype)
    given = [0.05, 0.3, 0.5, 0.6, 0.9]
    values = normalizer.denormalize(backend.asarray(given, dtype))["pred_scores"]
    assert backend.to_numpy(values).tolist()[2] == pytest.approx(t, rel=oracle.ulp(1.0, dtype))
    units = backend.to_numpy(normalizer(values)["pred_scores"]).tolist()
    assert units == pytest.approx(given, abs=1e-5)
    wrong = normalizer.denormalize(backend.asarray([-0.25, 1.5, math.nan], dtype))["pred_scores"]
    assert np.all(np.isnan(backend.to_numpy(wrong)))


@pytest.mark.clause("N12")
def test_n12_any_batch(backend: Backend, registered: str) -> None:
    dtype = backend.usual_dtype
    values = spread(dtype)[:40]
    whole, _ = normalized(backend, registered, values, dtype)
    parts: list[float] = []
    for size in (1, 39):
        batch = backend.asarray(values[len(parts) : len(parts) + size], dtype)
        parts += backend.to_numpy(fitted(backend, registered)(batch)["pred_scores"]).tolist()
    assert np.max(np.abs(np.array(whole) - parts)) <= oracle.unit_bound(dtype) / 2


@pytest.mark.clause("T4", "P1", "P2")
def test_t4_moved_saved_and_loaded(backend: Backend, registered: str, tmp_path: Any) -> None:
    dtype, normalizer = backend.usual_dtype, fitted(backend, registered)
    values = [2.9, 3.0, 3.1]
    moved = normalizer.with_threshold(3.0, units="raw")
    moved.save(tmp_path / "n.safetensors")
    loaded = backend.normalizer.load(tmp_path / "n.safetensors")
    for each in (moved, loaded):
        result = each(backend.asarray(values, dtype))
        assert backend.to_numpy(result["pred_labels"]).tolist() == [False, True, True]
        assert backend.to_numpy(result["pred_scores"]).tolist()[1] == 0.5
    assert loaded.summary() == moved.summary()
    assert registered in repr(loaded)
    called = backend.asarray(3.0, dtype)
    assert normalized(backend, registered, values, dtype, threshold=called)[1] == [False, True, True]
    with pytest.raises(OptionError, match="has no 'nothing'"):
        normalizer(backend.asarray(values, dtype), extras=["nothing"])
    for name, allowed in backend.methods[registered].method.options:
        assert normalizer.to_fit().options[name] == allowed[0]


@pytest.mark.clause("S1", "S6", "N8")
def test_s1_records(backend: Backend, registered: str) -> None:
    kernels, dtype = backend.methods[registered], backend.usual_dtype
    for shape in ((), SHAPE):
        array = backend.asarray(np.resize(NORMALS, (4, *shape)), dtype)
        bad = np.resize(NORMALS, (8, *shape))
        bad[3:] = np.reshape([math.nan, math.inf, -math.inf, 0.0, -1.0], (5, *(1 for _ in shape)))
        some = kernels.update(kernels.init(shape), backend.asarray(bad, dtype))
        one = kernels.update(kernels.init(shape), array)
        where = backend.asarray(np.arange(4) < 4, "bool")
        for same in (
            kernels.merge(one, kernels.init(shape)),
            kernels.merge(kernels.init(shape), one),
            kernels.update(kernels.init(shape), array, where=where),
        ):
            found, expected = (kernels.finalize(record, level="image") for record in (same, one))
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(backend.to_numpy(a), backend.to_numpy(b), rtol=backend.moments_rtol)
        finite = Counts(3, zeros=1, negative=1) if kernels.method.positive else Counts(5)
        expected = finite._replace(nan=1, infinite=2)
        assert backend.counts(some) == Counts(*(count * math.prod(shape) for count in expected))
        with pytest.raises(Exception, match="seen no value"):
            kernels.finalize(kernels.init(shape), level="image")
