"""The file of a fitted normalizer, which every package writes and reads (clauses P1, P3).

A safetensors file: the parameters and thresholds are its tensors, everything else is one JSON text in its metadata.
Nothing in it is ever executed. docs/reference/specification.md has the layout.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from anomnorm_core._schema import DAMAGED, FORMAT_VERSION, LARGEST_MAP, METADATA_KEY, Description, header_size, parse
from anomnorm_core.errors import AnomnormError, FileFormatError, OptionError
from anomnorm_core.fit import SPECIFICATION_VERSION, Fit, LevelFit, Threshold
from anomnorm_core.method import Method
from anomnorm_core.methods import METHODS
from anomnorm_core.options import LEVELS, Origin, Transform, Units
from anomnorm_core.threshold.false_alarms import Normals


def describe(fit: Fit) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A complete fit as what JSON can hold, and arrays by name: of a file, and of a module's state dict.

    Raises:
        NotFittedError: it is not complete.
    """
    tensors: dict[str, np.ndarray] = {}
    levels: dict[str, Any] = {}
    for level in LEVELS if fit.pixel is not None else LEVELS[:1]:
        fitted, threshold = fit.level(level), fit.threshold(level)
        tensors |= {f"{level}_{name}": a for name, a in zip(fit.method.parameters, fitted.parameters, strict=True)}
        tensors[f"{level}_threshold"] = threshold.raw
        if fit.method.positive:
            tensors[f"{level}_zeros"] = fitted.known_zeros.astype(fitted.parameters[0].dtype)
        normals = None if fitted.normals is None else fitted.normals._asdict()
        levels[level] = {
            "valid": fitted.valid,
            "invalid": fitted.invalid,
            "sigmas": threshold.sigmas,
            "origin": str(threshold.origin),
            "fixed": str(threshold.fixed),
            "false_alarm_rate": threshold.false_alarm_rate,
            "guaranteed": threshold.guaranteed,
            "normals": normals if normals is None else normals | {"transform": str(normals["transform"])},
        }
    package, version = fit.fitted_with
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "specification_version": SPECIFICATION_VERSION,
        "method": fit.method.name,
        "method_package": fit.method.package,
        "options": dict(fit.options),
        "levels": levels,
        "fitted_with": {"package": package, "version": version},
        "dtype": str(fit.level("image").parameters[0].dtype),
    }
    return about, tensors


def write(path: str | os.PathLike[str], fit: Fit) -> None:
    """Save ``fit``. The file appears complete or not at all, and an old one stays until then.

    Args:
        path: ends in ``.safetensors`` by custom. A link is followed.
        fit: what to save; complete.

    Raises:
        NotFittedError: it is not complete.
        OptionError: a map of more than 2^26 pixels, which `read` would refuse.
        OSError: the folder does not exist, cannot be written to, or is full; or ``path`` is a pipe or device.
    """
    about, tensors = describe(fit)
    if any(array.size > LARGEST_MAP for array in tensors.values()):
        raise OptionError(f"the maps have more than {LARGEST_MAP} pixels, which no reader would take.")
    contiguous = {name: np.array(tensors[name], order="C") for name in sorted(tensors)}
    text = json.dumps(about | {"digest": _digest(about, contiguous)})
    with replacing(path) as file:
        file.write(save(contiguous, metadata={METADATA_KEY: text}))


def target_of(path: str | os.PathLike[str]) -> Path:
    """Where a file of this path is, links followed, if one can be there.

    Raises:
        OSError: the folder does not exist, or ``path`` is a pipe or device.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder to save to does not exist", str(target.parent))
    if target.exists() and not (target.is_file() or target.is_dir()):  # it would be gone afterwards
        raise OSError(errno.EINVAL, "not a regular file, which a save would replace", str(target))
    return target


def _digest(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of everything in the file, against damage (not against intent)."""
    digest = hashlib.sha256(json.dumps({**about, "digest": None}, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, which appears at ``path`` when the block ends without an error; an old one stays until then.

    Raises:
        OSError: as `write`.
    """
    target = target_of(path)
    # Written beside its place and moved there, which on one file system happens at once.
    unfinished = target.with_name(f".anomnorm-{uuid.uuid4().hex}.tmp")
    try:
        with unfinished.open("xb") as file:
            with contextlib.suppress(FileNotFoundError):
                unfinished.chmod(stat.S_IMODE(target.stat().st_mode))  # as the old file had it
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def read(path: str | os.PathLike[str]) -> Fit:
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
            description = parse(text)
            arrays = load(start + text + file.read(description.size + 1))  # safetensors checks that this is the end
        if _digest(description.about, arrays) != description.about["digest"]:
            raise FileFormatError(
                "the file is damaged, or was edited: its contents do not match its digest. Copy it again, or load what "
                "it was saved from and change that (with_threshold)."
            )
        return (
            _fit_of_version_1(description, arrays) if description.version == 1 else compose(description.about, arrays)
        )
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from None
    except AnomnormError as error:
        raise FileFormatError(f"{path}: the file holds values that no fit can have: {error}") from error
    except SafetensorError as error:
        raise FileFormatError(f"{path}: {DAMAGED} ({error}).") from error


def compose(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Fit:
    """The fit of which `describe` gave these.

    Raises:
        OptionError: they are of no fit, or of a method that is unknown here.
        NotFittedError: a parameter is not finite.
    """
    method = METHODS[about["method"]].method
    levels = {}
    for level, facts in about["levels"].items():
        raw = np.asarray(arrays[f"{level}_threshold"], np.float64)
        promise = facts["false_alarm_rate"], facts["guaranteed"]
        threshold = Threshold(raw, facts["sigmas"], Origin(facts["origin"]), Units(facts["fixed"]), *promise)
        normals = facts["normals"]
        if normals is not None:
            normals = Normals(**normals | {"transform": Transform(normals["transform"])})
        fitted = _level(method, level, arrays, threshold, facts["valid"], facts["invalid"])
        levels[level] = replace(fitted, zeros=arrays.get(f"{level}_zeros"), normals=normals)
    maker = about["fitted_with"]
    return Fit(method, **levels, options=about["options"], fitted_with=(maker["package"], maker["version"]))


def _fit_of_version_1(description: Description, arrays: Mapping[str, np.ndarray]) -> Fit:
    """A fit of a file that had thresholds in raw units under min-max and, mostly, in sigmas under the CDF."""
    about = description.about
    levels = {}
    for level in description.levels:
        counts = about["counts"].get(level, {"valid": 0, "invalid": 0})
        levels[level] = _level(description.method, level, arrays, None, counts["valid"], counts["invalid"])
    maker = about["fitted_with"]
    fit = Fit(description.method, **levels, options=about["options"], fitted_with=(maker["package"], maker["version"]))
    raw = "image_raw_threshold" in arrays
    value = arrays["image_raw_threshold" if raw else "image_threshold"]
    fit = fit.placed("image", value, Units.RAW if raw else None, Origin.UNKNOWN)
    if fit.pixel is None:
        return fit
    if "pixel_threshold" not in arrays:
        return fit.following()
    return fit.placed("pixel", arrays["pixel_threshold"], None, Origin.UNKNOWN)


def _level(
    method: Method,
    level: str,
    arrays: Mapping[str, np.ndarray],
    threshold: Threshold | None,
    valid: int,
    invalid: int,
) -> LevelFit:
    parameters = tuple(arrays[f"{level}_{name}"] for name in method.parameters)
    return LevelFit(parameters, threshold, valid, invalid)
