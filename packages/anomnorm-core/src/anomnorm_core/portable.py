"""The file of a fitted normalizer, which every package writes and reads (clauses P1, P3).

A safetensors file: the statistics and thresholds are its tensors, everything else is one JSON text in its metadata.
Nothing in it is ever executed. docs/specification.md has the layout.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from anomnorm_core.errors import AnomnormError, FileFormatError, OptionError
from anomnorm_core.fitted_state import LEVELS, SPECIFICATION_VERSION, STATISTICS, FittedState
from anomnorm_core.policy import Center, Method

FORMAT_VERSION = 1
_KEY = "anomnorm"  # of the JSON text in the metadata
_FIELDS = {"format_version", "specification_version", "method", "options", "counts", "fitted_with", "dtype", "digest"}
_DTYPES = {"F32": "float32", "F64": "float64"}
_DAMAGED = "not a safetensors file, or a truncated or damaged one; copy it again, or save the normalizer again"
_LARGEST_HEADER = 2**16  # bytes; a normalizer's has about one thousand
LARGEST_MAP = 2**26  # pixels, 8192 x 8192: what a file claims is believed so far


def write(path: str | os.PathLike[str], fit: FittedState) -> None:
    """Save ``fit``. The file appears complete or not at all, and an old one stays until then.

    Args:
        path: ends in ``.safetensors`` by custom. A link is followed.
        fit: what to save.

    Raises:
        OptionError: a map of more than 2^26 pixels, which `read` would refuse.
        OSError: the folder does not exist, cannot be written to, or is full; or ``path`` is a pipe or device.
    """
    tensors = {f"{level}_{name}": array for level, name, array in _statistics(fit)}
    tensors["image_raw_threshold" if fit.raw_threshold else "image_threshold"] = np.asarray(fit.threshold, np.float64)
    if fit.pixel_threshold is not None:
        tensors["pixel_threshold"] = np.asarray(fit.pixel_threshold, np.float64)
    package, version = fit.fitted_with
    about = {
        "format_version": FORMAT_VERSION,
        "specification_version": SPECIFICATION_VERSION,
        "method": str(fit.method),
        "options": {"center": str(fit.center)} if fit.method is Method.CDF else {},
        "counts": {
            level: {"valid": valid, "invalid": invalid} for level, (valid, invalid) in sorted(fit.counts.items())
        },
        "fitted_with": {"package": package, "version": version},
        "dtype": str(fit.image[0].dtype),
    }
    if any(array.size > LARGEST_MAP for array in tensors.values()):
        raise OptionError(f"the maps have more than {LARGEST_MAP} pixels, which no reader would take.")
    contiguous = {name: np.array(tensors[name], order="C") for name in sorted(tensors)}
    text = json.dumps(about | {"digest": _digest(about, contiguous)})
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder to save to does not exist", str(target.parent))
    if target.exists() and not (target.is_file() or target.is_dir()):  # it would be gone afterwards
        raise OSError(errno.EINVAL, "not a regular file, which a save would replace", str(target))
    _replace(target, save(contiguous, metadata={_KEY: text}))


def _digest(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of everything in the file, against damage (not against intent)."""
    digest = hashlib.sha256(json.dumps({**about, "digest": None}, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _statistics(fit: FittedState) -> list[tuple[str, str, np.ndarray]]:
    present = [(level, getattr(fit, level)) for level in LEVELS if getattr(fit, level) is not None]
    return [
        (level, name, array)
        for level, arrays in present
        for name, array in zip(STATISTICS[fit.method], arrays, strict=True)
    ]


def _replace(path: Path, content: bytes) -> None:
    # Written beside its place and moved there, which on one file system happens at once.
    unfinished = path.with_name(f".anomnorm-{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):
                unfinished.chmod(stat.S_IMODE(path.stat().st_mode))  # as the old file had it
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def read(path: str | os.PathLike[str]) -> FittedState:
    """Load what `write` saved, and check all of it: each size before as many bytes are read.

    Raises:
        FileFormatError: the file is damaged, foreign, or of a newer format; the message names it and the reason.
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe might wait for ever
        raise FileFormatError(f"{path}: not a regular file.")
    try:
        # Read, not mapped: a file that somebody cuts off below a mapping kills the process.
        with path.open("rb") as file:  # an error of the system, for a folder too, is better told by the system
            start = file.read(8)
            text = file.read(_header_size(start))
            about, claims = _header(text)
            expected = _expected(about, set(claims))
            size = sum(_check_tensor(name, claims[name], about) for name in sorted(claims))
            arrays = load(start + text + file.read(size + 1))  # safetensors checks that this is the end
        if _digest(about, arrays) != about["digest"]:
            raise FileFormatError(
                "the file is damaged, or was edited: its contents do not match its digest. Copy it again, or load what "
                "it was saved from and change that (with_threshold)."
            )
        return _fit(about, expected, arrays)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except AnomnormError as error:
        raise FileFormatError(f"{path}: the file holds values that no fit can have: {error}") from error
    except SafetensorError as error:
        raise FileFormatError(f"{path}: {_DAMAGED} ({error}).") from error


def _header_size(start: bytes) -> int:
    size = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < size <= _LARGEST_HEADER:
        raise FileFormatError(f"{_DAMAGED} (a header of {size} bytes, not 1 to {_LARGEST_HEADER}).")
    return size


def _header(text: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description, checked, and what the header claims of each tensor."""
    try:
        header = _json(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{_DAMAGED} ({error}).") from None
    if not isinstance(header, dict):
        raise FileFormatError(f"{_DAMAGED} (the header is not a JSON object).")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_KEY), str):
        raise FileFormatError(
            "a safetensors file, but without a normalizer in it; save one with normalizer.save(path)."
        )
    return _about(metadata[_KEY]), header


def _json(text: str | bytes) -> Any:
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)


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
    except (ValueError, RecursionError) as error:
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
        raise FileFormatError(f"fitted_with={_shown(about['fitted_with'])} is not a package and its version.")
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


def _expected(about: Mapping[str, Any], names: set[str]) -> dict[str, list[str]]:
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


def _check_tensor(name: str, claim: Any, about: Mapping[str, Any]) -> int:
    """How many bytes a tensor has, after a check that its type and shape are those of a normalizer's."""
    dtype: Any = claim.get("dtype") if isinstance(claim, dict) else None
    claimed: Any = claim.get("shape") if isinstance(claim, dict) else None
    allowed = "float64" if name.endswith("threshold") else about["dtype"]
    if not isinstance(dtype, str) or _DTYPES.get(dtype) != allowed:
        raise FileFormatError(f"{name} has dtype {_shown(dtype)[1:-1]}; {allowed} is needed.")
    per_pixel = about["method"] == Method.CDF and name in ("pixel_mean", "pixel_std")
    shape: tuple[Any, ...] = tuple(claimed) if isinstance(claimed, list) else (claimed,)
    positive = all(type(length) is int and length > 0 for length in shape)
    if not positive or len(shape) != (2 if per_pixel else 0):
        raise FileFormatError(f"{name} has shape {_shown(shape)}; {'(H, W)' if per_pixel else '()'} is needed.")
    if math.prod(shape) > LARGEST_MAP:
        raise FileFormatError(f"{name} has shape {_shown(shape)}; up to {LARGEST_MAP} pixels are read.")
    return int(math.prod(shape)) * np.dtype(allowed).itemsize


def _fit(about: Mapping[str, Any], tensors: Mapping[str, list[str]], arrays: Mapping[str, np.ndarray]) -> FittedState:
    levels = {level: (arrays[names[0]], arrays[names[1]]) for level, names in tensors.items()}
    raw = "image_raw_threshold" in arrays
    return FittedState(
        method=Method(about["method"]),
        image=levels["image"],
        pixel=levels.get("pixel"),
        threshold=float(arrays["image_raw_threshold" if raw else "image_threshold"]),
        pixel_threshold=float(arrays["pixel_threshold"]) if "pixel_threshold" in arrays else None,
        raw_threshold=raw,
        center=Center(about["options"].get("center", Center.IMAGE)),
        counts={level: (number["valid"], number["invalid"]) for level, number in about["counts"].items()},
        fitted_with=(about["fitted_with"]["package"], about["fitted_with"]["version"]),
    )
