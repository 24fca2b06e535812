"""The specification runs on another library's arrays and gives what NumPy gives."""

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

from anomnorm_core import InsufficientDataError, NotFittedError, cdf, min_max, threshold, two_slope

torch = pytest.importorskip("torch")

SCORES = np.exp(np.random.default_rng(6).normal(1.0, 0.5, size=(6, 1, 3, 4)))
SCORES[0, 0, 0, :3] = [np.nan, np.inf, 0.0]
DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])


def _pair(dtype: str, scores: np.ndarray = SCORES) -> tuple[np.ndarray, Any]:
    array = scores.astype(dtype)
    return array, torch.from_numpy(array.copy())


def _assert_equal(found: Any, expected: Any) -> None:
    # A logarithm or erfc in float64 may differ by some ulp between libraries, and by one after rounding to less.
    assert isinstance(found, torch.Tensor)
    values = found.numpy()
    assert values.dtype == expected.dtype
    assert values.shape == expected.shape
    epsilon = np.finfo(expected.dtype).eps if expected.dtype.kind == "f" else 0.0
    np.testing.assert_allclose(values, expected, rtol=8 * epsilon, atol=epsilon)


@pytest.mark.clause("N1", "N1b", "N4", "S1")
@DTYPES
def test_min_max_on_tensors_equals_numpy(dtype: str) -> None:
    array, tensor = _pair(dtype)
    where = np.array([True, True, False, True, True, False])
    records = [
        min_max.update(min_max.init(), array, where=where),
        min_max.update(min_max.init(xp=array_namespace(tensor)), tensor, where=torch.from_numpy(where)),
    ]
    for field, expected in zip(records[1], records[0], strict=True):
        _assert_equal(field, expected)
    for module in (min_max, two_slope):
        expected = module.normalize(array, 2.5, *min_max.bounds(records[0]))
        _assert_equal(module.normalize(tensor, 2.5, *min_max.bounds(records[1])), expected)
    _assert_equal(threshold.flag(tensor, 2.5), array >= 2.5)


@pytest.mark.clause("N2", "N3", "N4", "S1")
@DTYPES
@pytest.mark.parametrize("center", [None, 0.5])
def test_cdf_on_tensors_equals_numpy(dtype: str, center: float | None) -> None:
    array, tensor = _pair(dtype)
    expected_record = cdf.update(cdf.init((3, 4)), array)
    record = cdf.update(cdf.init((3, 4), xp=array_namespace(tensor)), tensor)
    for field, expected in zip(record, expected_record, strict=True):
        _assert_equal(field, expected)
    expected_z = cdf.standardize(array, *cdf.mean_std(expected_record), center_at=center)
    z = cdf.standardize(tensor, *cdf.mean_std(record), center_at=center)
    _assert_equal(z, expected_z)
    u = cdf.normalize(tensor, 2.5, *cdf.mean_std(record), center)
    _assert_equal(u, cdf.normalize(array, 2.5, *cdf.mean_std(expected_record), center))
    assert torch.equal(u >= 0.5, threshold.flag(tensor, 2.5))


@pytest.mark.clause("S1")
def test_merging_records_of_tensors_equals_numpy() -> None:
    array, tensor = _pair("float64")
    for module, shape in ((min_max, ()), (cdf, ((3, 4),))):
        parts = [module.update(module.init(*shape), part) for part in (array[:2], array[2:])]
        xp = array_namespace(tensor)
        torch_parts = [module.update(module.init(*shape, xp=xp), part) for part in (tensor[:2], tensor[2:])]
        for field, expected in zip(module.merge(*torch_parts), module.merge(*parts), strict=True):
            _assert_equal(field, np.asarray(expected))


@pytest.mark.clause("N8", "S7")
def test_finalizers_refuse_empty_records_of_tensors() -> None:
    xp = array_namespace(torch.ones(1))
    with pytest.raises(NotFittedError, match="seen no value"):
        min_max.bounds(min_max.init(xp=xp))
    with pytest.raises(InsufficientDataError, match="1 valid value"):
        cdf.mean_std(cdf.update(cdf.init(xp=xp), torch.ones(1)))


@pytest.mark.clause("N9")
def test_tensors_are_left_alone_and_integers_give_torchs_default_float() -> None:
    scores = torch.tensor([3, 1, 2])
    found = min_max.normalize(scores, 2, 1, 3)
    assert found.dtype == torch.float32
    assert found.tolist() == [1.0, 0.0, 0.5]
    assert scores.tolist() == [3, 1, 2]


def test_a_complex_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be real numbers, found dtype torch\.complex64"):
        threshold.flag(torch.ones(2, dtype=torch.complex64), 0.5)
