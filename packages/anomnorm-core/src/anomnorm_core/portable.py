"""The file of a fitted normalizer, which every package writes and reads (clauses P1, P3).

A safetensors file: the statistics and thresholds are its tensors, everything else is one JSON text in its metadata.
Nothing in it is ever executed. docs/specification.md has the layout.
"""

import contextlib
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from anomnorm_core.errors import AnomnormError, FileFormatError
from anomnorm_core.fitted_state import LEVELS, SPECIFICATION_VERSION, STATISTICS, FittedState
from anomnorm_core.policy import Center, Method

FORMAT_VERSION = 1
_KEY = "anomnorm"  # of the JSON text in the metadata
_FIELDS = {"format_version", "specification_version", "method", "options", "counts", "fitted_with", "dtype", "digest"}
_DTYPES = {"F32": "float32", "F64": "float64"}


def write(path: str | os.PathLike[str], fit: FittedState) -> None:
    """Save ``fit``. The file appears complete or not at all, and an old one stays until then.

    Args:
        path: ends in ``.safetensors`` by custom. A link is followed.
        fit: what to save.

    Raises:
        OSError: the folder does not exist, cannot be written to, or is full.
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
    contiguous = {name: np.array(tensors[name], order="C") for name in sorted(tensors)}
    text = json.dumps(about | {"digest": _digest(about, contiguous)})
    _replace(Path(os.path.realpath(path)), save(contiguous, metadata={_KEY: text}))


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
    """Load what `write` saved, and check all of it.

    Raises:
        FileFormatError: the file is damaged, foreign, or of a newer format; the message names it and the reason.
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
        raise FileFormatError(f"{path}: not a file that could be read twice.")  # opening it might wait for ever
    with path.open("rb"):  # an error of the system is better told by the system
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            about = _about((file.metadata() or {}).get(_KEY))
            names = set(file.keys())
            expected = _expected(about, names)
            for name in sorted(names):
                found = file.get_slice(name)
                _check_tensor(name, found.get_dtype(), tuple(found.get_shape()), about)
            arrays = {name: file.get_tensor(name) for name in sorted(names)}
        if _digest(about, arrays) != about["digest"]:
            raise FileFormatError("the file is damaged: its digest is another. Copy it again, or save it again.")
        return _fit(about, expected, arrays)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except AnomnormError as error:
        raise FileFormatError(f"{path}: the file holds values that no fit can have: {error}") from error
    except SafetensorError as error:
        raise FileFormatError(
            f"{path}: not a safetensors file, or a truncated or damaged one ({error}). Copy it again, or save the "
            "normalizer again."
        ) from error


def _about(text: str | None) -> dict[str, Any]:
    """The JSON text, checked field by field."""
    if text is None:
        raise FileFormatError(
            "a safetensors file, but without a normalizer in it; save one with normalizer.save(path)."
        )
    try:
        about = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"its description is damaged ({error}).") from None
    if not isinstance(about, dict):
        raise FileFormatError("its description is damaged (not a JSON object).")
    version = about.get("format_version")
    if type(version) is not int or version < 1:
        raise FileFormatError(f"format_version={version!r} is none; it is a number from 1 on.")
    if version > FORMAT_VERSION:
        raise FileFormatError(
            f"format_version={version}, but this anomnorm-core reads up to {FORMAT_VERSION}: the file was written by a "
            "newer version. Run pip install --upgrade anomnorm-core."
        )
    if about.keys() != _FIELDS:
        odd = sorted(about.keys() ^ _FIELDS)
        raise FileFormatError(f"its description has the wrong fields ({', '.join(odd)}).")
    if about["method"] not in tuple(Method):
        raise FileFormatError(f"method={about['method']!r} is unknown; there are {', '.join(Method)}.")
    options = {"center"} if about["method"] == Method.CDF else set()
    if not isinstance(about["options"], dict) or about["options"].keys() != options:
        raise FileFormatError(f"options={about['options']!r} are not those of {about['method']}.")
    if options and about["options"]["center"] not in tuple(Center):
        raise FileFormatError(f"center={about['options']['center']!r} is unknown.")
    if not _is_text(about["fitted_with"], {"package", "version"}):
        raise FileFormatError(f"fitted_with={about['fitted_with']!r} is not a package and its version.")
    counts = about["counts"]
    if not (isinstance(counts, dict) and counts.keys() <= set(LEVELS) and all(map(_is_count, counts.values()))):
        raise FileFormatError(f"counts={counts!r} are not counts of valid and invalid values of levels.")
    if about["dtype"] not in _DTYPES.values():
        raise FileFormatError(f"dtype={about['dtype']!r} is unknown; there are {', '.join(_DTYPES.values())}.")
    if not isinstance(about["specification_version"], str):
        raise FileFormatError(f"specification_version={about['specification_version']!r} is not a text.")
    return about


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_text(value: Any, keys: set[str]) -> bool:
    return isinstance(value, dict) and value.keys() == keys and all(isinstance(text, str) for text in value.values())


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
            f"{odd or 'none'}."
        )
    return tensors


def _check_tensor(name: str, dtype: str, shape: tuple[int, ...], about: Mapping[str, Any]) -> None:
    allowed = "float64" if name.endswith("threshold") else about["dtype"]
    if _DTYPES.get(dtype) != allowed:
        raise FileFormatError(f"{name} has dtype {dtype}; {allowed} is needed.")
    per_pixel = about["method"] == Method.CDF and name in ("pixel_mean", "pixel_std")
    if len(shape) != (2 if per_pixel else 0):
        raise FileFormatError(f"{name} has shape {shape}; {'(H, W)' if per_pixel else '()'} is needed.")


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
