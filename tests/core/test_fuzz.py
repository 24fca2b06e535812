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

from anomnorm_core import FileFormatError, Normalizer, file

pytestmark = pytest.mark.clause("P3")

SCORES = np.array([0.5, 1.0, 2.0])
MAPS = np.ones((3, 2, 2))
_FACTS: dict[str, Any] = {"valid": 5, "invalid": 0, "sigmas": 2.0, "origin": "option", "fixed": "sigmas"}
_FACTS |= {"false_alarm_rate": 0.125, "guaranteed": True}
_FACTS["normals"] = {"samples": 9, "valued": 7, "mean": 0.5, "std": 0.25, "skewness": -0.1, "transform": "log"}
_COMMON: dict[str, Any] = {
    "method": "cdf",
    "options": {"center": "image"},
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
# Both versions of the format, with what is optional there.
ABOUTS: dict[int, dict[str, Any]] = {
    1: {"format_version": 1, "specification_version": "1", "counts": {"image": {"valid": 5, "invalid": 0}}} | _COMMON,
    2: {
        "format_version": 2,
        "specification_version": "2",
        "method_package": "anomnorm-core",
        "levels": {"image": _FACTS, "pixel": _FACTS | {"origin": "image"}},
    }
    | _COMMON,
}
ZEROS = {"image_zeros": np.float64(0.25), "pixel_zeros": np.full((2, 2), 0.5)}
ALL_TENSORS: dict[int, dict[str, Any]] = {1: TENSORS, 2: TENSORS | ZEROS | {"pixel_threshold": np.full((2, 2), 2.0)}}
VERSIONS = pytest.mark.parametrize("version", [1, 2])
_FREE = ("specification_version", "fitted_with", "counts", "method_package", "levels")


def content(about: Any, tensors: dict[str, Any]) -> bytes:
    """A file whose digest is right."""
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}
    if isinstance(about, dict):
        about = about | {"digest": file._digest(about, arrays)}
    return save(arrays, metadata={"anomnorm": json.dumps(about)})


VALID = content(ABOUTS[2], ALL_TENSORS[2])


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
    fit = normalizer.to_fit()
    maps = MAPS if fit.resolution in (None, (2, 2)) else np.ones((3, *fit.resolution))
    result = normalizer(SCORES, None if fit.pixel is None else maps)
    assert not np.isnan(result["pred_scores"]).any()
    assert normalizer.summary().encode()
    return normalizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "n.safetensors"


@VERSIONS
def test_what_is_mutated_loads_unmutated(path: Path, version: int) -> None:
    assert load(path, content(ABOUTS[version], ALL_TENSORS[version])) is not None


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


@VERSIONS
@given(st.data(), JSON)
def test_any_description(path: Path, version: int, data: st.DataObject, value: Any) -> None:
    about, tensors = ABOUTS[version], ALL_TENSORS[version]
    field = data.draw(st.sampled_from([*about, "digest", "surprise"]))
    if load(path, content(about | {field: value}, tensors)) is not None:
        assert field in _FREE or about.get(field, value) == value
    load(path, content(value, tensors))
    if version == 2:
        name = data.draw(st.sampled_from([*_FACTS, "surprise"]))
        levels = about["levels"] | {"image": _FACTS | {name: value}}
        loaded = load(path, content(about | {"levels": levels}, tensors))
        free = ("valid", "invalid", "sigmas", "false_alarm_rate", "guaranteed", "normals")
        assert loaded is None or name in free or _FACTS[name] == value


NUMBERS = st.floats(width=64) | st.sampled_from([5e-324, 1e-310, 3.4e38, 3.5e38, 1e308, -0.0])


@VERSIONS
@given(st.data())
def test_any_tensor(path: Path, version: int, data: st.DataObject) -> None:
    about, tensors = ABOUTS[version], ALL_TENSORS[version]
    name = data.draw(st.sampled_from([*tensors, "pixel_threshold", "image_min", "../../x"]))
    dtype = data.draw(st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?"]))
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    values = data.draw(st.lists(NUMBERS, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    with np.errstate(all="ignore"):
        array = np.array(values, dtype="f8").astype(dtype).reshape(shape)
    loaded = load(path, content(about, tensors | {name: array}))
    if loaded is not None:
        assert np.isfinite(array).all()
        assert array.dtype == np.float64
        assert not name.endswith("std") or (array >= 0).all()
        assert version == 1 or not name.endswith("threshold") or (array > 0).all()


@given(st.data())
def test_any_header(path: Path, data: st.DataObject) -> None:
    """Claims of sizes and places that are not there: no allocation follows them."""
    (size,) = struct.unpack("<Q", VALID[:8])
    header = json.loads(VALID[8 : 8 + size])
    claims = st.integers(-1, 2**70) | st.sampled_from([0, 8, 2**31, 2**40, 2**63, 2**64 - 1])
    entry = header[data.draw(st.sampled_from(sorted(ALL_TENSORS[2])))]
    if data.draw(st.booleans()):
        entry["shape"] = data.draw(st.lists(claims, max_size=4))
    else:
        entry["data_offsets"] = data.draw(st.lists(claims, min_size=1, max_size=3))
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text), len(text) + 1, 2**40, 2**64 - 1]))
    changed = header != json.loads(VALID[8 : 8 + size]) or length != len(text)
    loaded = load(path, struct.pack("<Q", length) + text + VALID[8 + size :])
    assert (loaded is None) == changed
