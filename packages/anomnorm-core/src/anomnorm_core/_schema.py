"""What a normalizer's file claims to be, checked before it is believed (clause P3).

The header of a safetensors file names its tensors; its metadata holds the JSON text that `file` writes. One table says
what each field of that text may be, for each version of the format.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from anomnorm_core.errors import FileFormatError, OptionError
from anomnorm_core.method import Method
from anomnorm_core.methods import METHODS
from anomnorm_core.options import LARGEST_FLOAT32, LEVELS, Origin, Transform, Units

FORMAT_VERSION = 2
METADATA_KEY = "anomnorm"  # of the JSON text in the metadata
DAMAGED = "not a safetensors file, or a truncated or damaged one; copy it again, or save the normalizer again"
LARGEST_MAP = 2**26  # pixels, 8192 x 8192: what a file claims is believed so far
_LARGEST_HEADER = 2**16  # bytes; a normalizer's has about one thousand
_DTYPES = {"F32": "float32", "F64": "float64"}


class Description(NamedTuple):
    """What the header says, checked."""

    about: dict[str, Any]  # the JSON text
    version: int  # of the format
    method: Method
    levels: tuple[str, ...]  # that were fitted
    size: int  # of all tensors, in bytes


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 80  # summary() prints it


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _is_number_or_none(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= LARGEST_FLOAT32)


def _is_table(**fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == fields.keys()
            and all(test(value[name]) for name, test in fields.items())
        )

    return check


def _is_by_level(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and value.keys() <= set(LEVELS) and all(map(test, value.values()))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_share_or_none(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 1)


_is_moments = _is_table(
    samples=_is_count,
    valued=lambda value: _is_count(value) and value > 1,
    mean=_is_number_or_none,
    std=lambda value: _is_number(value) and 0 <= value <= LARGEST_FLOAT32,
    skewness=_is_number,
    transform=lambda value: value in tuple(Transform),
)


def _are_normals(value: Any) -> bool:
    return (
        _is_moments(value)
        and value["mean"] is not None
        and value["valued"] <= value["samples"]
        and value["skewness"] ** 2 <= value["valued"]  # as of any so many numbers
    )


_PACKAGE = _is_table(package=_is_text, version=_is_text)
_COUNTS = _is_by_level(_is_table(valid=_is_count, invalid=_is_count))
_LEVELS = _is_by_level(
    _is_table(
        valid=_is_count,
        invalid=_is_count,
        sigmas=_is_number_or_none,
        origin=lambda value: value in tuple(Origin),
        fixed=lambda value: value in (Units.RAW, Units.SIGMAS),
        false_alarm_rate=_is_share_or_none,
        guaranteed=lambda value: type(value) is bool,
        normals=lambda value: value is None or _are_normals(value),
    )
)

# By field: the versions that have it, what it has to pass, and what it is then.
_FIELDS: dict[str, tuple[set[int], Callable[[Any], bool], str]] = {
    "format_version": ({1, 2}, _is_count, "a number from 1 on"),
    "specification_version": ({1, 2}, _is_text, "a version"),
    "method": ({1, 2}, _is_text, "a name"),
    "method_package": ({2}, _is_text, "a name"),
    "options": ({1, 2}, lambda value: isinstance(value, dict), "options of the method"),
    "counts": ({1}, _COUNTS, "counts of valid and invalid values of levels"),
    "levels": ({2}, lambda value: _LEVELS(value) and "image" in value, "counts and thresholds of levels"),
    "fitted_with": ({1, 2}, _PACKAGE, "a package and its version"),
    "dtype": ({1, 2}, lambda value: value in _DTYPES.values(), f"one of {', '.join(_DTYPES.values())}"),
    "digest": ({1, 2}, _is_text, "a text"),
}


def header_size(start: bytes) -> int:
    """How many bytes the header has, by the first eight of the file."""
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= _LARGEST_HEADER:
        raise FileFormatError(f"{DAMAGED} (a header of {size} bytes, not 1 to {_LARGEST_HEADER}).")
    return size


def parse(text: bytes) -> Description:
    """The header's text, checked: the description, and what is claimed of each tensor."""
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
    about, method = _about(metadata[METADATA_KEY])
    tensors = _tensors(about, method, set(header))
    size = sum(_size(name, header[name], per_pixel, about) for name, per_pixel in sorted(tensors.items()))
    levels = tuple(level for level in LEVELS if f"{level}_{method.parameters[0]}" in tensors)
    return Description(about, about["format_version"], method, levels, size)


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name stands there twice")  # readers would differ in which one counts
    return result


def _shown(value: Any) -> str:
    text = ascii(value)  # a terminal would obey control characters
    return text if len(text) <= 80 else f"{text[:77]}..."


def _about(text: str) -> tuple[dict[str, Any], Method]:
    """The JSON text, checked field by field, and the method that it names."""
    try:
        about = _json(text)
    except ValueError as error:
        raise FileFormatError(f"its description is damaged ({error}).") from None
    return about, check_description(about)


def check_description(about: Any) -> Method:
    """Check what a file or state dict says of a fit, field by field, and return the method that it names.

    Raises:
        FileFormatError: a field is missing, unknown or wrong, or a newer version wrote it.
    """
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
    fields = {name: field for name, field in _FIELDS.items() if version in field[0]}
    if about.keys() != fields.keys():
        odd = sorted(about.keys() ^ fields.keys())
        raise FileFormatError(f"its description has the wrong fields ({_shown(odd)}).")
    for name, (_, test, expected) in fields.items():
        if not test(about[name]):
            raise FileFormatError(f"{name}={_shown(about[name])} is not {expected}.")
    return _method(about)


def _method(about: Mapping[str, Any]) -> Method:
    name, package = about["method"], about.get("method_package", "anomnorm-core")
    if name not in METHODS:
        where = "" if package == "anomnorm-core" else f" It comes from {_shown(package)}: pip install it."
        raise FileFormatError(f"method={_shown(name)} is unknown; there are {', '.join(METHODS)}.{where}")
    method = METHODS[name].method
    given = about["options"]
    if about["format_version"] == 1:  # which had no option of min-max
        given = {} if name == "min-max" and not given else given
        if name not in ("min-max", "cdf") or (name == "cdf" and given.keys() != {"center"}):
            raise FileFormatError(f"options={_shown(given)} are not those of {name}.")
    elif given.keys() != dict(method.options).keys():
        raise FileFormatError(f"options={_shown(given)} are not those of {name}.")
    try:
        method.parse_options(given)
    except OptionError as error:
        raise FileFormatError(_shown(str(error))[1:-1]) from None
    return method


def _tensors(about: Mapping[str, Any], method: Method, names: set[str]) -> dict[str, bool]:
    """The tensors by name, and whether they are maps, after a check that there are exactly these."""
    first = about["format_version"] == 1
    pixel = bool(names & {f"pixel_{name}" for name in method.parameters}) if first else "pixel" in about["levels"]
    tensors: dict[str, bool] = {}
    for level in LEVELS if pixel else LEVELS[:1]:
        maps = method.per_pixel and level == "pixel"
        tensors |= {f"{level}_{name}": maps for name in method.parameters}
        tensors |= {} if first else {f"{level}_threshold": maps}
        tensors |= {f"{level}_zeros": maps} if method.positive and not first else {}
    optional = set()
    if first:
        raw = method.sigmas and "image_raw_threshold" in names
        tensors["image_raw_threshold" if raw else "image_threshold"] = False
        optional = {"pixel_threshold"} & names
        tensors |= dict.fromkeys(optional, False)
    missing, odd = sorted(tensors.keys() - names), sorted(names - tensors.keys())
    if missing or odd:
        raise FileFormatError(
            f"the tensors are not those of a {method.name} normalizer: missing {missing or 'none'}, unknown "
            f"{_shown(odd) if odd else 'none'}."
        )
    return tensors


def _size(name: str, claim: Any, maps: bool, about: Mapping[str, Any]) -> int:
    """How many bytes a tensor has, after a check that its type and shape are those of a normalizer's."""
    about_tensor = claim if isinstance(claim, dict) else {}
    dtype, claimed = about_tensor.get("dtype"), about_tensor.get("shape")
    allowed = "float64" if name.endswith("threshold") else about["dtype"]
    if not isinstance(dtype, str) or _DTYPES.get(dtype) != allowed:
        raise FileFormatError(f"{name} has dtype {_shown(dtype)[1:-1]}; {allowed} is needed.")
    shape: tuple[Any, ...] = tuple(claimed) if isinstance(claimed, list) else (claimed,)
    positive = all(type(length) is int and length > 0 for length in shape)
    if not positive or len(shape) != (2 if maps else 0):
        raise FileFormatError(f"{name} has shape {_shown(shape)}; {'(H, W)' if maps else '()'} is needed.")
    values: int = math.prod(shape)
    if values > LARGEST_MAP:
        raise FileFormatError(f"{name} has shape {_shown(shape)}; up to {LARGEST_MAP} pixels are read.")
    return values * np.dtype(allowed).itemsize
