"""The file of a fitted normalizer, which every package writes and reads (clauses P1, P3).

A safetensors file: the statistics and thresholds are its tensors, everything else is one JSON text in its metadata.
Nothing in it is ever executed. docs/specification.md has the layout.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from anomnorm_core._claims import (
    DAMAGED,
    FORMAT_VERSION,
    LARGEST_MAP,
    METADATA_KEY,
    header_size,
    parse_header,
    tensor_size,
    tensors_by_level,
)
from anomnorm_core.errors import AnomnormError, FileFormatError, OptionError
from anomnorm_core.fitted_state import LEVELS, SPECIFICATION_VERSION, STATISTICS, FittedState
from anomnorm_core.policy import Center, Method


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
    _replace(target, save(contiguous, metadata={METADATA_KEY: text}))


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
            text = file.read(header_size(start))
            about, claims = parse_header(text)
            tensors = tensors_by_level(about, set(claims))
            size = sum(tensor_size(name, claims[name], about) for name in sorted(claims))
            arrays = load(start + text + file.read(size + 1))  # safetensors checks that this is the end
        if _digest(about, arrays) != about["digest"]:
            raise FileFormatError(
                "the file is damaged, or was edited: its contents do not match its digest. Copy it again, or load what "
                "it was saved from and change that (with_threshold)."
            )
        return _fit(about, tensors, arrays)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except AnomnormError as error:
        raise FileFormatError(f"{path}: the file holds values that no fit can have: {error}") from error
    except SafetensorError as error:
        raise FileFormatError(f"{path}: {DAMAGED} ({error}).") from error


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
