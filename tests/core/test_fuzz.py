"""Files that hypothesis makes up: an error that names the file, or a normalizer; never anything else (clause P3)."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from anomnorm_core import FileFormatError, Normalizer, portable

pytestmark = pytest.mark.clause("P3")

SCORES = np.array([0.5, 1.0, 2.0])
MAPS = np.ones((3, 2, 2))
ABOUT: dict[str, Any] = {
    "format_version": 1,
    "specification_version": "1",
    "method": "cdf",
    "options": {"center": "image"},
    "counts": {"image": {"valid": 5, "invalid": 0}},
    "fitted_with": {"package": "anomnorm-core", "version": "0.1.0"},
    "dtype": "float64",
}
TENSORS = {
    "image_mean": np.float64(0.25),
    "image_std": np.float64(0.5),
    "image_threshold": np.float64(2.0),
    "pixel_mean": np.zeros((2, 2)),
    "pixel_std": np.ones((2, 2)),
}


def content(about: Any, tensors: dict[str, Any]) -> bytes:
    """A file whose digest is right."""
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}
    if isinstance(about, dict):
        about = about | {"digest": portable._digest(about, arrays)}
    return save(arrays, metadata={"anomnorm": json.dumps(about)})


VALID = content(ABOUT, TENSORS)


def load(path: Path, data: bytes) -> Normalizer | None:
    """What is in the file, or None where it was refused as it should be; what was loaded must work."""
    path.write_bytes(data)
    refused: list[str] = []
    try:
        normalizer = Normalizer.load(path)
    except FileFormatError as error:
        refused.append(str(error))
    if refused:
        assert str(path) in refused[0]
        return None
    resolution = normalizer.fitted_state().resolution
    maps = MAPS if resolution in (None, (2, 2)) else np.ones((3, *resolution))
    result = normalizer(SCORES, None if normalizer.fitted_state().pixel is None else maps)
    assert not np.isnan(result["pred_scores"]).any()
    assert normalizer.summary().encode()
    return normalizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "n.safetensors"


def test_what_is_mutated_loads_unmutated(path: Path) -> None:
    assert load(path, VALID) is not None


@given(st.binary(max_size=400))
def test_any_bytes(path: Path, data: bytes) -> None:
    assert load(path, data) is None


@given(st.integers(0, len(VALID)), st.integers(0, len(VALID)), st.binary(max_size=40))
def test_any_splice(path: Path, start: int, stop: int, new: bytes) -> None:
    data = VALID[: min(start, stop)] + new + VALID[max(start, stop) :]
    assert (load(path, data) is not None) == (data == VALID)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*ABOUT, "digest", "surprise"]), JSON)
def test_any_description(path: Path, field: str, value: Any) -> None:
    if load(path, content(ABOUT | {field: value}, TENSORS)) is not None:
        assert field in ("specification_version", "fitted_with", "counts") or ABOUT.get(field, value) == value
    load(path, content(value, TENSORS))


NUMBERS = st.floats(width=64) | st.sampled_from([5e-324, 1e-310, 3.4e38, 3.5e38, 1e308, -0.0])


@given(st.sampled_from([*TENSORS, "pixel_threshold", "image_min", "../../x"]), st.data())
def test_any_tensor(path: Path, name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?"]))
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    values = data.draw(st.lists(NUMBERS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    with np.errstate(all="ignore"):
        array = np.array(values, dtype="f8").astype(dtype).reshape(shape)
    loaded = load(path, content(ABOUT, TENSORS | {name: array}))
    if loaded is not None:
        assert np.isfinite(array).all()
        assert array.dtype == np.float64
        assert not name.endswith("std") or (array >= 0).all()


@given(st.data())
def test_any_header(path: Path, data: st.DataObject) -> None:
    """Claims of sizes and places that are not there: no allocation follows them."""
    (size,) = struct.unpack("<Q", VALID[:8])
    header = json.loads(VALID[8 : 8 + size])
    claims = st.integers(-1, 2**70) | st.sampled_from([0, 8, 2**31, 2**40, 2**63, 2**64 - 1])
    entry = header[data.draw(st.sampled_from(sorted(TENSORS)))]
    if data.draw(st.booleans()):
        entry["shape"] = data.draw(st.lists(claims, max_size=4))
    else:
        entry["data_offsets"] = data.draw(st.lists(claims, min_size=1, max_size=3))
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), len(text) + 1, 2**40, 2**64 - 1]))
    changed = header != json.loads(VALID[8 : 8 + size]) or length != len(text)
    loaded = load(path, struct.pack("<Q", length) + text + VALID[8 + size :])
    assert (loaded is None) == changed
