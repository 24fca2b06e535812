"""Clause N9: dtype, shape and device are kept, and inputs are left alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import assert_described
from conformance.backend import Backend, Description

SHAPES = [(5,), (3, 1, 4, 6), (3, 4, 6), (0,), (0, 1, 4, 6), ()]


def _functions(backend: Backend) -> dict[str, Callable[[Any], Any]]:
    return {
        "min_max.normalize": lambda x: backend.min_max.normalize(x, 0.5, 0.0, 2.0),
        "cdf.standardize": lambda x: backend.cdf.standardize(x, 0.5, 0.25),
        "cdf.standardize centred": lambda x: backend.cdf.standardize(x, 0.5, 0.25, center_at=0.125),
        "cdf.normalize": lambda z: backend.cdf.normalize(z, 0.5),
        "min_max.margin": lambda x: backend.min_max.margin(x, 0.5, 0.0, 2.0),
        "min_max.denormalize": lambda u: backend.min_max.denormalize(u, 0.5, 0.0, 2.0),
        "cdf.standardize_around": lambda x: backend.cdf.standardize_around(x, 0.6, 0.5, 0.25)[0],
        "cdf.denormalize": lambda u: backend.cdf.denormalize(u, 0.5, 0.5, 0.25),
    }


FUNCTIONS = pytest.mark.parametrize(
    "function",
    [
        "min_max.normalize",
        "min_max.margin",
        "min_max.denormalize",
        "cdf.standardize",
        "cdf.standardize centred",
        "cdf.standardize_around",
        "cdf.normalize",
        "cdf.denormalize",
    ],
)


@pytest.mark.clause("N9")
@FUNCTIONS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_n9_dtype_shape_and_device_are_kept(
    backend: Backend, dtype: str, function: str, shape: tuple[int, ...]
) -> None:
    array = backend.asarray(np.full(shape, 0.75), dtype)
    device = backend.describe(array).device
    assert_described(backend, _functions(backend)[function](array), Description(dtype, shape, device))
    flags = backend.threshold.flag(array, 0.5)
    assert_described(backend, flags, Description("bool", shape, device))


@pytest.mark.clause("N9")
@FUNCTIONS
@pytest.mark.parametrize("integer", ["int32", "bool"])
def test_n9_integers_give_the_default_float(backend: Backend, function: str, integer: str) -> None:
    array = backend.asarray([0, 1, 1], integer)
    found = _functions(backend)[function](array)
    assert_described(backend, found, Description(backend.default_dtype(), (3,), backend.describe(array).device))
    same = _functions(backend)[function](backend.asarray([0.0, 1.0, 1.0], backend.default_dtype()))
    assert backend.to_numpy(found).tolist() == backend.to_numpy(same).tolist()


@pytest.mark.clause("N9")
@FUNCTIONS
def test_n9_inputs_are_left_alone(backend: Backend, dtype: str, function: str) -> None:
    values = [0.25, 0.5, 0.75, 2.0, -1.0]
    array = backend.asarray(values, dtype)
    _functions(backend)[function](array)
    assert backend.to_numpy(array).tolist() == values


@pytest.mark.clause("N12", "S1")
@pytest.mark.dtypes(("float32",))
@pytest.mark.parametrize(
    "layout", [lambda a: a[::2, :], lambda a: a.mT, lambda a: a[1:3, 2]], ids=["rows", "mT", "column"]
)
def test_n12_any_layout_in_memory(backend: Backend, dtype: str, layout: Callable[[Any], Any]) -> None:
    values = np.reshape(np.linspace(0.125, 1.875, 24), (4, 6))
    view = layout(backend.asarray(values, dtype))
    copied = backend.asarray(np.ascontiguousarray(layout(values)), dtype)
    for function in ("min_max.normalize", "cdf.standardize", "cdf.normalize"):
        found, expected = (backend.to_numpy(_functions(backend)[function](array)) for array in (view, copied))
        assert np.max(np.abs(found - expected)) <= backend.batch_slack * oracle.ulp(np.max(np.abs(expected)), dtype)
    if view.ndim > 1:  # image scores have one axis
        view, copied = view[:, 1], copied[:, 1]
    for module in (backend.min_max, backend.cdf):
        found, expected = (module.update(module.init(), array) for array in (view, copied))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(backend.to_numpy(one), backend.to_numpy(other), rtol=1e-6)


@pytest.mark.clause("N9", "S1")
def test_n9_update_leaves_record_and_scores_alone(backend: Backend, dtype: str) -> None:
    array = backend.asarray([0.25, 0.5, -1.0], dtype)
    for module in (backend.min_max, backend.cdf):
        first = module.update(module.init(), array)
        before = [backend.to_numpy(field).tolist() for field in first]
        module.update(first, array)
        module.merge(first, first)
        assert [backend.to_numpy(field).tolist() for field in first] == before
    assert backend.to_numpy(array).tolist() == [0.25, 0.5, -1.0]
