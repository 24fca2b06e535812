"""Clauses N9 and N12: dtypes, shapes and devices of results, inputs that are left alone, and any batch and layout."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conformance import oracle
from conformance.assertions import assert_described, random_values
from conformance.backend import Backend, Description


def _functions(backend: Backend) -> dict[str, Callable[[Any], Any]]:
    return {
        "min_max.normalize": lambda x: backend.min_max.normalize(x, 0.5, 0.0, 2.0),
        "min_max.margin": lambda x: backend.min_max.margin(x, 0.5, 0.0, 2.0),
        "min_max.denormalize": lambda u: backend.min_max.denormalize(u, 0.5, 0.0, 2.0),
        "two_slope.normalize": lambda x: backend.two_slope.normalize(x, 0.5, 0.0, 2.0),
        "two_slope.denormalize": lambda u: backend.two_slope.denormalize(u, 0.5, 0.0, 2.0),
        "cdf.standardize": lambda x: backend.cdf.standardize(x, 0.5, 0.7),
        "cdf.standardize centred": lambda x: backend.cdf.standardize(x, 0.5, 0.7, center_at=0.125),
        "cdf.normalize": lambda x: backend.cdf.normalize(x, 0.6, 0.5, 0.7),
        "cdf.normalize_standardized": lambda z: backend.cdf.normalize_standardized(z, 0.5),
        "cdf.denormalize": lambda u: backend.cdf.denormalize(u, 0.6, 0.5, 0.7),
        "normal.standardize": lambda x: backend.normal.standardize(x, 0.5, 0.7, center_at=-0.125),
        "normal.normalize": lambda x: backend.normal.normalize(x, 0.6, 0.5, 0.7),
        "normal.denormalize": lambda u: backend.normal.denormalize(u, 0.6, 0.5, 0.7),
    }


@pytest.mark.clause("N9", "N4", "S1")
def test_n9_dtype_device_and_inputs(backend: Backend, dtype: str) -> None:
    values = random_values(dtype, np.array([0.3, 0.5, 0.75, 2.1, -1.0]))
    array, kept = backend.asarray(values, dtype), oracle.arithmetic(dtype)
    device = backend.describe(array).device
    for function in _functions(backend).values():
        found = function(array)
        assert_described(backend, found, Description(kept, (5,), device))
        if kept != dtype:  # half types give what float32 gives: their own steps are 0.4 percent of a score, or 0.05
            same = backend.to_numpy(function(backend.asarray(values, kept)))
            assert np.array_equal(backend.to_numpy(found), same, equal_nan=True)
    assert_described(backend, backend.threshold.flag(array, 0.5), Description("bool", (5,), device))
    for module in (backend.min_max, backend.cdf, backend.normal):
        first = module.update(module.init(), array)
        before = [backend.to_numpy(field).tolist() for field in first]
        module.update(first, array)
        module.merge(first, first)
        assert [backend.to_numpy(field).tolist() for field in first] == before
    assert backend.to_numpy(array).tolist() == values


@pytest.mark.clause("N9")
@pytest.mark.parametrize("shape", [(3, 1, 4, 6), (0,), ()], ids=str)
def test_n9_any_shape(backend: Backend, shape: tuple[int, ...]) -> None:
    array = backend.asarray(np.full(shape, 0.75), backend.usual_dtype)
    given = backend.describe(array)
    for function in _functions(backend).values():
        assert_described(backend, function(array), given)
    assert_described(backend, backend.threshold.flag(array, 0.5), given._replace(dtype="bool"))


@pytest.mark.clause("N9")
@pytest.mark.parametrize("integer", ["int32", "bool"])
def test_n9_integers_give_the_default_float(backend: Backend, integer: str) -> None:
    array = backend.asarray([0, 1, 1, 0, 1], integer)
    same = backend.asarray([0.0, 1.0, 1.0, 0.0, 1.0], backend.default_dtype())
    expected = Description(backend.default_dtype(), (5,), backend.describe(array).device)
    for function in _functions(backend).values():
        found = function(array)
        assert_described(backend, found, expected)
        assert backend.to_numpy(found).tolist() == backend.to_numpy(function(same)).tolist()


VALUES = (
    "min_max.normalize",
    "two_slope.normalize",
    "cdf.standardize",
    "cdf.normalize",
    "normal.standardize",
    "normal.normalize",
)


def _spread(dtype: str, name: str, size: float) -> float:
    """Clause N12: how far apart two values for one score may be."""
    if name == "normal.standardize":
        return oracle.raw_z_bound(size, 0.7, dtype)
    return oracle.z_bound(size, 0.7, dtype, 4.0) if name == "cdf.standardize" else oracle.unit_bound(dtype) / 2


@pytest.mark.clause("N12")
@pytest.mark.parametrize("name", VALUES)
def test_n12_a_value_does_not_depend_on_its_batch(backend: Backend, dtype: str, name: str) -> None:
    values = random_values(dtype, np.abs(np.random.default_rng(8).normal(0.5, 0.5, size=61)) + 0.01)
    function = _functions(backend)[name]
    whole = backend.to_numpy(function(backend.asarray(values, dtype))).tolist()
    backwards = backend.to_numpy(function(backend.asarray(values[::-1], dtype))).tolist()[::-1]
    found: list[float] = []
    while len(found) < len(values):
        size = 5 if found else 1
        found += backend.to_numpy(function(backend.asarray(values[len(found) : len(found) + size], dtype))).tolist()
    for x, *results in zip(values, whole, backwards, found, strict=True):
        apart = max(results) - min(results)
        assert apart <= _spread(dtype, name, max(map(abs, results))), f"{name}: {x!r} gave {results}"


@pytest.mark.clause("N12", "S1")
@pytest.mark.dtypes(("float32",))
@pytest.mark.parametrize("layout", [lambda a: a[::2, :], lambda a: a.mT], ids=["rows", "columns"])
def test_n12_any_layout_in_memory(backend: Backend, dtype: str, layout: Callable[[Any], Any]) -> None:
    values = np.reshape(np.linspace(0.125, 1.875, 24), (4, 6))
    view = layout(backend.asarray(values, dtype))
    copied = backend.asarray(np.ascontiguousarray(layout(values)), dtype)
    for name in VALUES:
        found, expected = (backend.to_numpy(_functions(backend)[name](array)) for array in (view, copied))
        assert np.max(np.abs(found - expected)) <= _spread(dtype, name, float(np.max(np.abs(expected))))
    view, copied = view[:, 1], copied[:, 1]  # image scores have one axis
    for module in (backend.min_max, backend.cdf, backend.normal):
        found, expected = (module.update(module.init(), array) for array in (view, copied))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(backend.to_numpy(one), backend.to_numpy(other), rtol=1e-6)
