"""What a normalizer's file claims to be, checked before it is believed (clause P3).

The header of a safetensors file names its tensors; its metadata holds the JSON text that `portable` writes.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from anomnorm_core.errors import FileFormatError
from anomnorm_core.fitted_state import LEVELS, STATISTICS
from anomnorm_core.policy import Center, Method

FORMAT_VERSION = 1
METADATA_KEY = "anomnorm"  # of the JSON text in the metadata
DAMAGED = "not a safetensors file, or a truncated or damaged one; copy it again, or save the normalizer again"
LARGEST_MAP = 2**26  # pixels, 8192 x 8192: what a file claims is believed so far
_LARGEST_HEADER = 2**16  # bytes; a normalizer's has about one thousand
_FIELDS = {"format_version", "specification_version", "method", "options", "counts", "fitted_with", "dtype", "digest"}
_DTYPES = {"F32": "float32", "F64": "float64"}


def header_size(start: bytes) -> int:
    """How many bytes the header has, by the first eight of the file."""
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= _LARGEST_HEADER:
        raise FileFormatError(f"{DAMAGED} (a header of {size} bytes, not 1 to {_LARGEST_HEADER}).")
    return size


def parse_header(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description, checked, and what the header claims of each tensor."""
    try:
        header = _json(text)
    except ValueError as error:
        raise FileFormatError(f"{DAMAGED} ({error}).") from None
    if not isinstance(header, dict):
        raise FileFormatError(f"{DAMAGED} (the header is not a JSON object).")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA_KEY), str):
        raise FileFormatError(
            "a safetensors file, but without a normalizer in it; save one with normalizer.save(path)."
        )
    return _about(metadata[METADATA_KEY]), header


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name stands there twice")  # readers would differ in which one counts
    return result


def _shown(value: Any) -> str:
    text = ascii(value)  # a terminal would obey control characters
    return text if len(text) <= 80 else f"{text[:77]}..."


def _about(text: str) -> dict[str, Any]:
    """The JSON text, checked field by field."""
    try:
        about = _json(text)
    except ValueError as error:
        raise FileFormatError(f"its description is damaged ({error}).") from None
    if not isinstance(about, dict):
        raise FileFormatError("its description is damaged (not a JSON object).")
    version = about.get("format_version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"format_version={_shown(version)} is none; it is a number from 1 on.")
    if version > FORMAT_VERSION:
        raise FileFormatError(
            f"format_version={version}, but this anomnorm-core reads up to {FORMAT_VERSION}: the file was written by a "
            "newer version. Run pip install --upgrade anomnorm-core."
        )
    if about.keys() != _FIELDS:
        odd = sorted(about.keys() ^ _FIELDS)
        raise FileFormatError(f"its description has the wrong fields ({_shown(odd)}).")
    if about["method"] not in tuple(Method):
        raise FileFormatError(f"method={_shown(about['method'])} is unknown; there are {', '.join(Method)}.")
    options = {"center"} if about["method"] == Method.CDF else set()
    if not isinstance(about["options"], dict) or about["options"].keys() != options:
        raise FileFormatError(f"options={_shown(about['options'])} are not those of {about['method']}.")
    if options and about["options"]["center"] not in tuple(Center):
        raise FileFormatError(f"center={_shown(about['options']['center'])} is unknown.")
    maker = about["fitted_with"]
    named = isinstance(maker, dict) and maker.keys() == {"package", "version"}
    if not named or not all(map(_is_text, maker.values())):
        raise FileFormatError(f"fitted_with={_shown(maker)} is not a package and its version.")
    counts = about["counts"]
    if not (isinstance(counts, dict) and counts.keys() <= set(LEVELS) and all(map(_is_count, counts.values()))):
        raise FileFormatError(f"counts={_shown(counts)} are not counts of valid and invalid values of levels.")
    if about["dtype"] not in _DTYPES.values():
        raise FileFormatError(f"dtype={_shown(about['dtype'])} is unknown; there are {', '.join(_DTYPES.values())}.")
    if not _is_text(about["specification_version"]):
        raise FileFormatError(f"specification_version={_shown(about['specification_version'])} is not a version.")
    return about


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_text(value: Any) -> bool:
    # summary() prints it.
    return isinstance(value, str) and value.isprintable() and len(value) <= 80


def _is_count(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"valid", "invalid"}
        and all(type(number) is int and 0 <= number < 2**64 for number in value.values())
    )


def tensors_by_level(about: Mapping[str, Any], names: set[str]) -> dict[str, list[str]]:
    """The tensors of each level, after a check that there are exactly these and the thresholds."""
    statistics = STATISTICS[Method(about["method"])]
    tensors = {level: [f"{level}_{name}" for name in statistics] for level in LEVELS}
    if not names & set(tensors["pixel"]):
        del tensors["pixel"]
    thresholds = {"image_threshold"}
    if about["method"] == Method.CDF and "image_raw_threshold" in names:
        thresholds = {"image_raw_threshold"}
    needed = thresholds.union(*tensors.values())
    missing, odd = sorted(needed - names), sorted(names - needed - {"pixel_threshold"})
    if missing or odd:
        raise FileFormatError(
            f"the tensors are not those of a {about['method']} normalizer: missing {missing or 'none'}, unknown "
            f"{_shown(odd) if odd else 'none'}."
        )
    return tensors


def tensor_size(name: str, claim: Any, about: Mapping[str, Any]) -> int:
    """How many bytes a tensor has, after a check that its type and shape are those of a normalizer's."""
    about_tensor = claim if isinstance(claim, dict) else {}
    dtype, claimed = about_tensor.get("dtype"), about_tensor.get("shape")
    allowed = "float64" if name.endswith("threshold") else about["dtype"]
    if not isinstance(dtype, str) or _DTYPES.get(dtype) != allowed:
        raise FileFormatError(f"{name} has dtype {_shown(dtype)[1:-1]}; {allowed} is needed.")
    per_pixel = about["method"] == Method.CDF and name in ("pixel_mean", "pixel_std")
    shape: tuple[Any, ...] = tuple(claimed) if isinstance(claimed, list) else (claimed,)
    positive = all(type(length) is int and length > 0 for length in shape)
    if not positive or len(shape) != (2 if per_pixel else 0):
        raise FileFormatError(f"{name} has shape {_shown(shape)}; {'(H, W)' if per_pixel else '()'} is needed.")
    values: int = math.prod(shape)
    if values > LARGEST_MAP:
        raise FileFormatError(f"{name} has shape {_shown(shape)}; up to {LARGEST_MAP} pixels are read.")
    return values * np.dtype(allowed).itemsize
