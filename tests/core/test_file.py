"""Clauses P1 and P3: the file of a normalizer, and what is refused."""

import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from anomnorm_core import (
    FileFormatError,
    Fit,
    LevelFit,
    Normalizer,
    Origin,
    Transform,
    Units,
    __version__,
    cdf,
    file,
    min_max,
    normal,
)
from anomnorm_core.methods import METHODS
from anomnorm_core.threshold.false_alarms import Normals

pytestmark = pytest.mark.filterwarnings("ignore:.*left out of the statistics")  # counts are in the files

RNG = np.random.default_rng(12)
SCORES = np.exp(RNG.normal(size=40)).astype(np.float32)
MAPS = np.exp(RNG.normal(size=(40, 3, 4))).astype(np.float32)


def min_max_normalizer(**options: Any) -> Normalizer:
    image = min_max.update(min_max.init(), np.append(SCORES, np.float32(np.nan)))
    return Normalizer.min_max(image, min_max.update(min_max.init(), MAPS), **({"threshold": 1.5} | options))


def cdf_normalizer(**options: Any) -> Normalizer:
    image = cdf.update(cdf.init(), np.append(SCORES, np.float32(0.0)))
    return Normalizer.cdf(image, cdf.update(cdf.init((3, 4)), MAPS), **({"threshold": 2.0} | options))


MADE: dict[str, Callable[[], Normalizer]] = {
    "min-max": min_max_normalizer,
    "min-max own pixel threshold": lambda: min_max_normalizer(pixel_threshold=3.25),
    "cdf": cdf_normalizer,
    "cdf raw threshold": lambda: cdf_normalizer(threshold=4.0, units="raw", pixel_threshold=1.0),
    "cdf threshold per pixel": lambda: cdf_normalizer().with_threshold(None, 1.0 + MAPS[0], units="raw"),
    "cdf pixel center": lambda: cdf_normalizer(center="pixel"),
    "cdf of images": lambda: Normalizer.cdf((0.25, 0.5), threshold=2.0),
    "cdf of mixed dtypes": lambda: Normalizer.cdf((0.25, 0.5), (MAPS[0], MAPS[1]), threshold=2.0),
    "normal": lambda: Normalizer.cdf(
        normal.update(normal.init(), np.append(-SCORES, np.float32(np.inf))),
        normal.update(normal.init((3, 4)), 2 - MAPS),
        threshold=-1.5,
        transform="identity",
    ),
    "min-max of float32": lambda: Normalizer.min_max((np.float32(0.1), np.float32(2.7)), threshold=0.3),
    "two slopes": lambda: Normalizer.of("two-slope", (0.1, 2.7), (0.0, 3.0), threshold=0.3).with_threshold(0.4),
    "shared range": lambda: Normalizer.of("min-max", (0, 3), (0, 3), threshold=1, options={"shared_range": True}),
}


@pytest.mark.clause("P1", "T1")
@pytest.mark.parametrize("kind", MADE)
def test_a_saved_normalizer_is_the_same_when_loaded(kind: str, tmp_path: Path) -> None:
    normalizer = MADE[kind]()
    normalizer.save(tmp_path / "n.safetensors")
    loaded = Normalizer.load(tmp_path / "n.safetensors")
    assert loaded.summary() == normalizer.summary()
    assert repr(loaded) == repr(normalizer)
    old, new = normalizer.to_fit(), loaded.to_fit()
    assert old.method == new.method
    assert old.options == new.options
    assert old.fitted_with == new.fitted_with == ("anomnorm-core", __version__)
    maps = None if old.pixel is None else MAPS
    for name, value in normalizer(SCORES, maps).items():
        np.testing.assert_array_equal(loaded(SCORES, maps)[name], value)
    for level in ("image", "pixel"):
        if getattr(old, level) is None:
            assert getattr(new, level) is None
            continue
        assert_same_level(old.level(level), new.level(level))


def assert_same_level(one: LevelFit, other: LevelFit) -> None:
    """Bit for bit, where a share of zeros that is not known is none."""
    assert (one.valid, one.invalid, one.normals) == (other.valid, other.invalid, other.normals)
    t, u = one.threshold, other.threshold
    assert t is not None
    assert u is not None
    for name in ("sigmas", "origin", "fixed", "false_alarm_rate", "guaranteed"):
        assert getattr(t, name) == getattr(u, name)
    for a, b in zip((*one.parameters, t.raw), (*other.parameters, u.raw), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    mine, its = (np.zeros(one.parameters[0].shape) if each.zeros is None else each.zeros for each in (one, other))
    np.testing.assert_array_equal(mine, its)


NOTHING_KNOWN = {"false_alarm_rate": None, "guaranteed": False, "normals": None}


@pytest.mark.clause("P1", "T1", "T4")
def test_the_file_is_what_the_specification_says(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    cdf_normalizer(threshold=4.0, units="raw").with_threshold(pixel_threshold=1.0).save(path)
    tensors = load_file(path)
    assert {name: (str(array.dtype), array.shape) for name, array in tensors.items()} == {
        "image_mean": ("float64", ()),
        "image_std": ("float64", ()),
        "image_threshold": ("float64", ()),
        "image_zeros": ("float64", ()),
        "pixel_mean": ("float64", (3, 4)),
        "pixel_std": ("float64", (3, 4)),
        "pixel_threshold": ("float64", (3, 4)),
        "pixel_zeros": ("float64", (3, 4)),
    }
    logs = np.log(SCORES.astype(np.float64))
    assert float(tensors["image_mean"]) == pytest.approx(logs.mean(), rel=1e-12)
    assert float(tensors["image_std"]) == pytest.approx(logs.std(ddof=1), rel=1e-12)
    assert float(tensors["image_threshold"]) == 4.0
    np.testing.assert_allclose(tensors["pixel_threshold"], np.exp(logs.mean() + tensors["pixel_std"]), rtol=1e-12)
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + size])
    about = json.loads(header["__metadata__"]["anomnorm"])
    assert len(bytes.fromhex(about.pop("digest"))) == 32
    sigmas = about["levels"]["image"].pop("sigmas")
    assert sigmas == pytest.approx((np.log(4.0) - logs.mean()) / logs.std(ddof=1), rel=1e-12)
    assert about == {
        "format_version": 2,
        "specification_version": "2",
        "method": "cdf",
        "method_package": "anomnorm-core",
        "options": {"center": "image"},
        "levels": {
            "image": {"valid": 40, "invalid": 1, "origin": "option", "fixed": "raw"} | NOTHING_KNOWN,
            "pixel": {"valid": 40, "invalid": 0, "sigmas": 1.0, "origin": "manual", "fixed": "sigmas"} | NOTHING_KNOWN,
        },
        "fitted_with": {"package": "anomnorm-core", "version": __version__},
        "dtype": "float64",
    }


@pytest.mark.clause("P1")
def test_equal_normalizers_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cdf_normalizer().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Refusals.


NORMALS = {"samples": 9, "valued": 7, "mean": 0.5, "std": 0.25, "skewness": -0.1, "transform": "log"}


def image_level(**changes: Any) -> dict[str, Any]:
    facts = {"valid": 5, "invalid": 0, "sigmas": 3.0, "origin": "option", "fixed": "sigmas"} | NOTHING_KNOWN
    return {"image": facts | changes}


def about(**changes: Any) -> dict[str, Any]:
    return {
        "format_version": 2,
        "specification_version": "2",
        "method": "cdf",
        "method_package": "anomnorm-core",
        "options": {"center": "image"},
        "levels": image_level(),
        "fitted_with": {"package": "anomnorm-core", "version": "0.1.0"},
        "dtype": "float64",
    } | changes


def about_1(**changes: Any) -> dict[str, Any]:
    """Of version 1 of the format."""
    fields = {name: value for name, value in about().items() if name not in ("method_package", "levels")}
    counts = {"counts": {"image": {"valid": 5, "invalid": 0}}}
    return fields | {"format_version": 1, "specification_version": "1"} | counts | changes


def tensors(**changes: Any) -> dict[str, np.ndarray]:
    arrays = {"image_mean": 0.5, "image_std": 0.25, "image_threshold": 3.0, "image_zeros": 0.0} | changes
    return {
        name: np.array(value, dtype=getattr(value, "dtype", np.float64))
        for name, value in arrays.items()
        if value is not None
    }


def write(path: Path, description: Any = None, **changes: Any) -> None:
    text, arrays = description, tensors(**changes)
    if not isinstance(description, str):
        text = about() if description is None else description
        if isinstance(text, dict) and text:
            if any(name.startswith("pixel") for name in changes) and "levels" in text:
                text = text | {"levels": text["levels"] | {"pixel": image_level()["image"]}}
            text = text | {"digest": file._digest(text, arrays)}
        text = json.dumps(text)
    path.write_bytes(save(arrays, metadata={"anomnorm": text}))


@pytest.mark.clause("P3")
@pytest.mark.parametrize("description", [about(), about_1()], ids=["version 2", "version 1"])
def test_the_files_that_the_refused_ones_deviate_from_are_accepted(description: Any, tmp_path: Path) -> None:
    first = "levels" not in description
    old: dict[str, Any] = {"image_zeros": None} if first else {}
    of_version_1 = {"pixel_threshold": 1.0, "pixel_zeros": None} if first else {}
    for pixel in ({}, MAPS_OF | of_version_1):
        write(tmp_path / "n", description, **pixel, **old)
        thresholds = Normalizer.load(tmp_path / "n").thresholds
        assert list(thresholds) == ["image", "pixel"][: 1 + bool(pixel)]
        # In version 2 raw, in version 1 in sigmas.
        expected = 3.0 if "levels" in description else np.exp(0.5 + 0.25 * 3.0)
        assert float(thresholds["image"].raw) == pytest.approx(expected, rel=1e-15)
        assert thresholds["image"].sigmas == 3.0


MAP = np.ones((2, 3))
MAPS_OF = {"pixel_mean": MAP, "pixel_std": MAP, "pixel_threshold": MAP, "pixel_zeros": MAP}
BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"image_std": None}, "missing.*image_std"),
    "no threshold": ({"image_threshold": None}, "missing.*image_threshold"),
    "unknown": ({"surprise": 1.0}, "unknown.*surprise"),
    "of another method": ({"image_min": 0.0, "image_max": 1.0}, "unknown.*image_max"),
    "half a level": ({"pixel_mean": MAP}, "missing.*pixel_std"),
    "two thresholds": ({"image_raw_threshold": 1.0}, "unknown.*image_raw_threshold"),
    "NaN mean": ({"image_mean": np.nan}, "image_mean is not finite"),
    "infinite std": ({"image_std": np.inf}, "image_std is not finite"),
    "mean beyond float32": ({"image_mean": 1e300}, "image_mean is infinite in float32"),
    "negative std": ({"image_std": -0.5}, "std is negative"),
    "NaN threshold": ({"image_threshold": np.nan}, "image_threshold is no normal number"),
    "infinite threshold": ({"image_threshold": np.inf}, "image_threshold is no normal number"),
    "threshold without a logarithm": ({"image_threshold": -1.0}, "image_threshold is no normal number"),
    "threshold too large for float32": ({"image_threshold": 1e300}, "image_threshold is no normal number"),
    "vector for a number": ({"image_mean": np.ones(3)}, r"image_mean has shape \(3,\)"),
    "vector for a threshold": ({"image_threshold": np.ones(2)}, r"image_threshold has shape \(2,\)"),
    "number for a map": (MAPS_OF | {"pixel_mean": 1.0, "pixel_std": 1.0}, r"pixel_mean has shape \(\)"),
    "number for a map of thresholds": (MAPS_OF | {"pixel_threshold": 1.0}, r"pixel_threshold has shape \(\)"),
    "maps of two resolutions": (MAPS_OF | {"pixel_std": MAP.T}, r"\(2, 3\).*\(3, 2\)"),
    "thresholds of another resolution": (MAPS_OF | {"pixel_threshold": MAP.T}, r"shape \(3, 2\); \(2, 3\)"),
    "one pixel without a threshold": (MAPS_OF | {"pixel_threshold": MAP * [0, 1, 1]}, "pixel_threshold is no normal"),
    "empty maps": (dict.fromkeys(MAPS_OF, MAP[:0]), r"\(0, 3\)"),
    "negative pixel std": (MAPS_OF | {"pixel_std": -MAP}, "pixel level: std is negative"),
    "too many zeros": ({"image_zeros": 1.5}, r"image_zeros are no shares of shape \(\), from 0 to 1"),
    "NaN zeros": (MAPS_OF | {"pixel_zeros": MAP * np.nan}, r"pixel_zeros are no shares of shape \(2, 3\)"),
    "integers": ({"image_mean": np.int64(1)}, "image_mean has dtype I64"),
    "half": ({"image_mean": np.float16(1)}, "image_mean has dtype F16"),
    "other dtype than said": ({"image_mean": np.float32(1)}, "image_mean has dtype F32; float64"),
    "threshold of float32": ({"image_threshold": np.float32(1)}, "image_threshold has dtype F32"),
}


@pytest.mark.clause("P3")
@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_wrong_tensors_are_refused(fault: str, tmp_path: Path) -> None:
    changes, reason = BAD_TENSORS[fault]
    write(tmp_path / "n.safetensors", **changes)
    with pytest.raises(FileFormatError, match=reason) as caught:
        Normalizer.load(tmp_path / "n.safetensors")
    assert str(tmp_path / "n.safetensors") in str(caught.value)


BAD_DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    "newer": (about(format_version=3), "newer version"),
    "version 0": (about(format_version=0), "format_version=0"),
    "version true": (about(format_version=True), "format_version=True"),
    "version text": (about(format_version="1"), "format_version='1'"),
    "no version": ({}, "format_version=None"),
    "a list": ([1], "not a JSON object"),
    "no JSON": ("{", "damaged"),
    "NaN": ('{"format_version": NaN}', "NaN is not JSON"),
    "deep": ("[" * 20_000, "damaged"),
    "larger than any": (" " * 70_000, "header of"),
    "twice": ('{"method": "cdf", "method": "min_max"}', "twice"),
    "half a letter": (about(fitted_with={"package": "\ud800", "version": "1"}), "fitted_with="),
    "control characters": (about(fitted_with={"package": "\x1b[2J", "version": "1"}), r"\\x1b"),
    "long name": (about(fitted_with={"package": "x" * 100, "version": "1"}), "fitted_with="),
    "odd field": (about(**{"\ud800\x1b": 1}), r"\\x1b"),
    "long method": (about(method="x" * 20_000), r"method='x{70,80}\.\.\. is"),
    "long number": ('{"format_version": ' + "9" * 10_000 + "}", "damaged|newer"),
    "other method": (about(method="magic"), "method='magic' is unknown; there are min-max, two-slope, cdf, normal"),
    "method of another package": (about(method="magic", method_package="anomnorm-magic"), "'anomnorm-magic': pip inst"),
    "package of odd name": (about(method="magic", method_package="\x1b[2J"), r"method_package='\\x1b"),
    "method list": (about(method=[]), "method=\\[\\]"),
    "no options": (about(options={}), "options=\\{\\} are not those of cdf"),
    "center nowhere": (about(options={"center": "nowhere"}), "center='nowhere'"),
    "center list": (about(options={"center": []}), "center=\\[\\]"),
    "more fields": (about(more=1), "wrong fields.*more"),
    "fields of version 1": (about(counts={}), "wrong fields.*counts"),
    "version 1 with fields of 2": (about_1(levels={}), "wrong fields.*levels"),
    "version 1 of two slopes": (about_1(method="two-slope", options={}), "options=.* are not those of two-slope"),
    "negative count": (about(levels=image_level(valid=-1)), "levels="),
    "fractional count": (about(levels=image_level(invalid=1.5)), "levels="),
    "no level": (about(levels={}), "levels="),
    "level of nothing": (about(levels=image_level() | {"voxel": image_level()["image"]}), "levels="),
    "a level's field is missing": (about(levels={"image": {"valid": 1, "invalid": 0}}), "levels="),
    "NaN sigmas": (json.dumps(about(levels=image_level(sigmas=float("nan")))), "NaN is not JSON"),
    "huge sigmas": (json.dumps(about(digest="")).replace("3.0", "1e999"), "levels="),
    "sigmas text": (about(levels=image_level(sigmas="3")), "levels="),
    "unknown origin": (about(levels=image_level(origin="magic")), "levels="),
    "fixed in normalized units": (about(levels=image_level(fixed="normalized")), "levels="),
    "counts of version 1": (about_1(counts={"image": {"valid": -1, "invalid": 0}}), "counts="),
    "count of nothing": (about_1(counts={"voxel": {"valid": 1, "invalid": 0}}), "counts="),
    "fitted with nothing": (about(fitted_with=None), "fitted_with=None"),
    "dtype": (about(dtype="float16"), "dtype='float16'"),
    "dtype list": (about(dtype=[]), "dtype=\\[\\]"),
    "specification": (about(specification_version=1), "specification_version=1"),
}


@pytest.mark.clause("P3")
@pytest.mark.parametrize("fault", BAD_DESCRIPTIONS)
def test_wrong_descriptions_are_refused(fault: str, tmp_path: Path) -> None:
    description, reason = BAD_DESCRIPTIONS[fault]
    write(tmp_path / "n", description)
    with pytest.raises(FileFormatError, match=reason) as caught:
        Normalizer.load(tmp_path / "n")
    assert str(tmp_path / "n") in str(caught.value)


@pytest.mark.clause("P3")
def test_a_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n"
    cdf_normalizer().save(path)
    content = path.read_bytes()
    for size in [*range(0, len(content), 3), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(FileFormatError, match="n: "):
            Normalizer.load(path)


@pytest.mark.clause("P3")
def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "n"
    Normalizer.cdf((0.25, 0.5), threshold=2.0).save(path)
    content = path.read_bytes()
    for position in range(0, 8 * len(content), 3):  # each of the eight in turn
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError):
            Normalizer.load(path)


@pytest.mark.clause("P3")
@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04\x95", b"PK\x03\x04" + bytes(100), struct.pack("<Q", 2**62) + b"{}", bytes(64), b"\xff" * 64],
    ids=["empty", "pickle", "zip", "claims exabytes", "zeros", "ones"],
)
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(content)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        Normalizer.load(tmp_path / "n")


@pytest.mark.clause("P3")
def test_safetensors_without_a_normalizer_are_refused(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        (tmp_path / "n").write_bytes(save({"weight": np.ones(3)}, metadata=metadata))
        with pytest.raises(FileFormatError, match="without a normalizer"):
            Normalizer.load(tmp_path / "n")


@pytest.mark.clause("P3")
@pytest.mark.parametrize("shape", [[0, 2**62], [2**63, 0], [2**20, 2**20], [2**64, 1], [-1, -1], ["1", 1], [1.0, 1], 4])
def test_odd_and_huge_maps_are_refused_before_they_are_read(shape: Any, tmp_path: Path) -> None:
    path = tmp_path / "n"
    write(path, **MAPS_OF)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name in MAPS_OF:
        header[name]["shape"] = shape
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    os.truncate(path, 2**42)  # there, but empty
    with pytest.raises(FileFormatError, match="pixel_mean has shape"):
        Normalizer.load(path)


@pytest.mark.clause("P3")
def test_bytes_after_the_end_are_refused(tmp_path: Path) -> None:
    cdf_normalizer().save(tmp_path / "n")
    os.truncate(tmp_path / "n", 2**42)
    with pytest.raises(FileFormatError, match="damaged"):
        Normalizer.load(tmp_path / "n")


READER = """
import sys
from anomnorm_core import FileFormatError, Normalizer

print("reading", flush=True)
while True:
    try:
        Normalizer.load(sys.argv[1])
    except FileFormatError:
        pass
"""


@pytest.mark.clause("P3")
def test_a_plain_copy_over_the_file_does_not_kill_readers(tmp_path: Path) -> None:
    large = Normalizer.cdf((0.0, 1.0), (np.ones((900, 900)), np.ones((900, 900))), threshold=2.0)
    large.save(tmp_path / "new")
    large.save(tmp_path / "n")
    command = [sys.executable, "-c", READER, str(tmp_path / "n")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        try:
            reader.stdout.readline()
            for _ in range(60):
                shutil.copyfile(tmp_path / "new", tmp_path / "n")  # cuts the file off, and fills it again
            assert reader.poll() is None
        finally:
            reader.kill()


@pytest.mark.clause("P3")
def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Normalizer.load(tmp_path / "nowhere")
    with pytest.raises(OSError, match=tmp_path.name):
        Normalizer.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(FileFormatError, match="not a regular file"):
            Normalizer.load(tmp_path / "fifo")
        with pytest.raises(OSError, match="not a regular file"):
            cdf_normalizer().save(tmp_path / "fifo")
        assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    with pytest.raises(OSError, match="no_folder"):
        cdf_normalizer().save(tmp_path / "no_folder" / "n")


# Saving.


@pytest.mark.clause("P3")
def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n"
    cdf_normalizer().save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        min_max_normalizer().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["n"]


_SAVER = """
import sys
import numpy as np
from anomnorm_core import Normalizer
maps = np.full((400, 400), float(sys.argv[2]))
normalizer = Normalizer.cdf((0.0, 1.0), (maps, maps), threshold=float(sys.argv[2]))
print("ready", flush=True)
while True:
    normalizer.save(sys.argv[1])
"""


@pytest.mark.clause("P3")
@pytest.mark.skipif(os.name != "posix", reason="kills processes")
def test_a_killed_save_and_concurrent_readers_see_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "n"
    maps = np.full((400, 400), 1.0)
    Normalizer.cdf((0.0, 1.0), (maps, maps), threshold=1.0).save(path)
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            fit = Normalizer.load(path).to_fit()
            if not np.all(fit.level("pixel").parameters[0] == fit.threshold("image").sigmas):
                failures.append(fit)

    reader = threading.Thread(target=read)
    reader.start()
    for value in (2.0, 3.0, 4.0):
        saver = subprocess.Popen(
            [sys.executable, "-c", _SAVER, str(path), str(value)], stdout=subprocess.PIPE, text=True
        )
        assert saver.stdout is not None
        assert saver.stdout.readline() == "ready\n"
        time.sleep(0.2)
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        fit = Normalizer.load(path).to_fit()
        assert np.all(fit.level("pixel").parameters[0] == fit.threshold("image").sigmas)
    stop.set()
    reader.join()
    assert not failures


@pytest.mark.clause("P3")
@pytest.mark.skipif(os.name != "posix", reason="about permissions and links")
def test_saving_follows_links_and_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "n")
    cdf_normalizer().save(link)
    assert link.is_symlink()
    (tmp_path / "real" / "n").chmod(0o600)
    cdf_normalizer().save(link)
    assert stat.S_IMODE((tmp_path / "real" / "n").stat().st_mode) == 0o600
    (tmp_path / "real" / "n").unlink()
    cdf_normalizer().save(link)
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    mode = stat.S_IMODE((tmp_path / "real" / "n").stat().st_mode)
    assert mode == stat.S_IMODE(ordinary.stat().st_mode)
    assert Normalizer.load(link).thresholds["image"].sigmas == 2.0


# The golden files: written once, readable for ever. Never change them; a new format gets new ones.

GOLDEN = Path(__file__).parent / "golden"
GRID = np.exp(np.random.default_rng(4).normal(0.7, 0.9, size=(400, 2, 3)))


@pytest.mark.clause("P1", "P2")
@pytest.mark.parametrize("name", ["min_max_v1", "cdf_v1"])
def test_version_1_files_have_the_labels_that_they_had(name: str) -> None:
    arrays = load_file(GOLDEN / f"{name}.safetensors")
    normalizer = Normalizer.load(GOLDEN / f"{name}.safetensors")
    # What version 1 decided on: raw scores under min-max, and in these files raw scores and the z-scores of pixels
    # under the CDF, about the mean of the images.
    scores = np.append(GRID[:, 0, 0], [float(arrays.get("image_raw_threshold", arrays.get("image_threshold")))])
    maps = np.append(GRID, np.full((1, 2, 3), 3.25), axis=0)
    if name == "min_max_v1":
        labels, masks = scores >= arrays["image_threshold"], maps >= arrays["pixel_threshold"]
    else:
        z = (np.log(maps) - arrays["image_mean"]) / arrays["pixel_std"]
        labels, masks = scores >= arrays["image_raw_threshold"], z >= arrays["pixel_threshold"]
        assert np.abs(z - arrays["pixel_threshold"]).min() > 1e-6  # whose side no rounding decides
    result = normalizer(scores, maps)
    assert 0 < labels.sum() < labels.size
    assert 0 < masks.sum() < masks.size
    assert np.array_equal(result["pred_labels"], labels)
    assert np.array_equal(result["pred_masks"], masks)
    assert {str(threshold.origin) for threshold in normalizer.thresholds.values()} == {"unknown"}
    fit = normalizer.to_fit()
    counts = [(fitted.valid, fitted.invalid) for fitted in (fit.level("image"), fit.level("pixel"))]
    assert counts == ([(40, 1), (40, 0)] if name == "cdf_v1" else [(32, 0), (2097152, 3)])


@pytest.mark.clause("P1")
def test_version_1_scores() -> None:
    result = Normalizer.load(GOLDEN / "min_max_v1.safetensors")(
        np.array([0.25, 1.5, 2.0, 9.0]), np.full((4, 2, 2), 3.25)
    )
    assert result["pred_scores"].tolist() == [0.1875, 0.5, 0.625, 1.0]
    assert set(result["anomaly_maps"].ravel().tolist()) == {0.5}
    result = Normalizer.load(GOLDEN / "cdf_v1.safetensors")(np.array([1.0, 4.0, 5.0]), np.ones((3, 2, 3)))
    phi = NormalDist().cdf
    # z = log(x) / 0.5 against the z-score of 4; maps have z = 0 everywhere, and the threshold 1
    assert result["pred_scores"] == pytest.approx([phi(-np.log(4) / 0.5), 0.5, phi(np.log(1.25) / 0.5)], rel=1e-12)
    assert result["anomaly_maps"].ravel() == pytest.approx(phi(-1), rel=1e-12)


def with_a_rate(method: str, image: LevelFit, pixel: LevelFit) -> Normalizer:
    """A normalizer whose image threshold keeps a false-alarm rate."""
    fit = Fit(METHODS[method].method, image, pixel, fitted_with=Normalizer._package)
    placed = fit.placed("image", 1.75, Units.RAW, Origin.FALSE_ALARM_RATE, rate=2 / 41, guaranteed=True)
    return Normalizer(placed.placed("pixel", 2.0, None, Origin.OPTION))


def numbers(*values: float) -> tuple[np.ndarray, ...]:
    return tuple(np.array(value) for value in values)


VERSION_2: dict[str, Callable[[], Normalizer]] = {
    "min_max_v2": lambda: Normalizer.of("min-max", (0.25, 4.0), (-1.0, 6.5), threshold=1.5),
    "two_slope_v2": lambda: Normalizer.of("two-slope", (0.25, 4.0), (-1.0, 6.5), threshold=3.5).with_threshold(
        None, 2.0
    ),
    "cdf_v2": lambda: Normalizer.cdf((0.5, 0.25), (MAP / 2, MAP / [2, 4, 8]), threshold=2.0, center="pixel"),
    "normal_v2": lambda: Normalizer.cdf(
        (1.5, 0.25), (MAP / 2, MAP / [2, 4, 8]), threshold=2.0, center="pixel", transform="identity"
    ),
    "rate_v2": lambda: with_a_rate(
        "min-max",
        LevelFit(numbers(0.25, 4.0), None, 40, 2, None, Normals(40, 38, 0.5, 0.25, -0.125, Transform.LOG)),
        LevelFit(numbers(-1.0, 6.5), None, 480),
    ),
    "zeros_v2": lambda: with_a_rate(
        "cdf",
        LevelFit(numbers(0.5, 0.25), None, 30, 10, np.array(0.25)),
        LevelFit((MAP / 2, MAP / [2, 4, 8]), None, 30, 12, np.broadcast_to([0.0, 0.25, 0.5], MAP.shape).copy()),
    ),
}


@pytest.mark.clause("P1", "T1")
@pytest.mark.parametrize("name", VERSION_2)
def test_version_2_files(name: str) -> None:
    normalizer, same = Normalizer.load(GOLDEN / f"{name}.safetensors"), VERSION_2[name]()
    assert normalizer.summary() == same.summary()
    assert repr(normalizer) == repr(same)
    for field, value in same(GRID[:, 0, 0], GRID).items():
        np.testing.assert_array_equal(normalizer(GRID[:, 0, 0], GRID)[field], value)
    assert repr(normalizer.thresholds) == repr(same.thresholds)
    for level in ("image", "pixel"):
        assert_same_level(normalizer.to_fit().level(level), same.to_fit().level(level))
    if name in ("rate_v2", "zeros_v2"):
        assert normalizer.thresholds["image"].guaranteed
        return
    origins = [str(threshold.origin) for threshold in normalizer.thresholds.values()]
    assert origins == ["option", "manual" if name == "two_slope_v2" else "image"]
    moved = normalizer.with_threshold(1.75)
    pixel = moved.thresholds["pixel"]
    assert pixel.value == (2.0 if name == "two_slope_v2" else 1.75)
    labels = normalizer(np.array([3.49, 3.5, 9.0]))["pred_labels"].tolist()
    assert labels == [name != "two_slope_v2", True, True]
