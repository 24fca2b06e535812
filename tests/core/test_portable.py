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
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from anomnorm_core import FileFormatError, Normalizer, cdf, min_max, portable

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
    "cdf pixel centre": lambda: cdf_normalizer(center="pixel"),
    "cdf of images": lambda: Normalizer.cdf((0.25, 0.5), threshold=2.0),
    "cdf of mixed dtypes": lambda: Normalizer.cdf((0.25, 0.5), (MAPS[0], MAPS[1]), threshold=2.0),
    "min-max of float32": lambda: Normalizer.min_max((np.float32(0.1), np.float32(2.7)), threshold=0.3),
}


@pytest.mark.clause("P1")
@pytest.mark.parametrize("kind", MADE)
def test_a_saved_normalizer_is_the_same_when_loaded(kind: str, tmp_path: Path) -> None:
    normalizer = MADE[kind]()
    normalizer.save(tmp_path / "n.safetensors")
    loaded = Normalizer.load(tmp_path / "n.safetensors")
    assert loaded.summary() == normalizer.summary()
    assert repr(loaded) == repr(normalizer)
    old, new = normalizer.fitted_state(), loaded.fitted_state()
    assert (old.threshold, old.pixel_threshold, old.raw_threshold) == (
        new.threshold,
        new.pixel_threshold,
        new.raw_threshold,
    )
    assert dict(old.counts) == dict(new.counts)
    assert old.fitted_with == new.fitted_with == ("anomnorm-core", portable_version())
    maps = None if old.pixel is None else MAPS
    for name, value in normalizer(SCORES, maps).items():
        np.testing.assert_array_equal(loaded(SCORES, maps)[name], value)
    for level in ("image", "pixel"):
        if getattr(old, level) is not None:
            for a, b in zip(old.level(level), new.level(level), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)


def portable_version() -> str:
    from anomnorm_core import __version__

    return __version__


@pytest.mark.clause("P1")
def test_the_file_is_what_the_specification_says(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    cdf_normalizer(threshold=4.0, units="raw", pixel_threshold=1.0).save(path)
    tensors = load_file(path)
    assert {name: (str(array.dtype), array.shape) for name, array in tensors.items()} == {
        "image_mean": ("float64", ()),
        "image_std": ("float64", ()),
        "pixel_mean": ("float64", (3, 4)),
        "pixel_std": ("float64", (3, 4)),
        "image_raw_threshold": ("float64", ()),
        "pixel_threshold": ("float64", ()),
    }
    logs = np.log(SCORES.astype(np.float64))
    assert float(tensors["image_mean"]) == pytest.approx(logs.mean(), rel=1e-12)
    assert float(tensors["image_std"]) == pytest.approx(logs.std(ddof=1), rel=1e-12)
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + size])
    about = json.loads(header["__metadata__"]["anomnorm"])
    assert len(bytes.fromhex(about.pop("digest"))) == 32
    assert about == {
        "format_version": 1,
        "specification_version": "1",
        "method": "cdf",
        "options": {"center": "image"},
        "counts": {"image": {"valid": 40, "invalid": 1}, "pixel": {"valid": 40, "invalid": 0}},
        "fitted_with": {"package": "anomnorm-core", "version": portable_version()},
        "dtype": "float64",
    }


@pytest.mark.clause("P1")
def test_equal_normalizers_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cdf_normalizer().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Refusals.


def about(**changes: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "specification_version": "1",
        "method": "cdf",
        "options": {"center": "image"},
        "counts": {"image": {"valid": 5, "invalid": 0}},
        "fitted_with": {"package": "anomnorm-core", "version": "0.1.0"},
        "dtype": "float64",
    } | changes


def tensors(**changes: Any) -> dict[str, np.ndarray]:
    arrays = {"image_mean": 0.5, "image_std": 0.25, "image_threshold": 3.0} | changes
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
            text = text | {"digest": portable._digest(text, arrays)}
        text = json.dumps(text)
    path.write_bytes(save(arrays, metadata={"anomnorm": text}))


@pytest.mark.clause("P3")
def test_the_file_that_the_refused_ones_deviate_from_is_accepted(tmp_path: Path) -> None:
    write(tmp_path / "n")
    assert Normalizer.load(tmp_path / "n").fitted_state().threshold == 3.0


MAP = np.ones((2, 3))
BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"image_std": None}, "missing.*image_std"),
    "unknown": ({"surprise": 1.0}, "unknown.*surprise"),
    "of the other method": ({"image_min": 0.0, "image_max": 1.0}, "unknown.*image_max"),
    "half a level": ({"pixel_mean": MAP}, "missing.*pixel_std"),
    "two thresholds": ({"image_raw_threshold": 1.0}, "unknown.*image_threshold"),
    "NaN mean": ({"image_mean": np.nan}, "image_mean is not finite"),
    "infinite std": ({"image_std": np.inf}, "image_std is not finite"),
    "mean beyond float32": ({"image_mean": 1e300}, "image_mean is infinite in float32"),
    "negative std": ({"image_std": -0.5}, "image_std is negative"),
    "NaN threshold": ({"image_threshold": np.nan}, "threshold=nan"),
    "infinite threshold": ({"image_threshold": np.inf}, "threshold=inf"),
    "threshold too large for float32": ({"image_threshold": 1e300}, "infinite in float32"),
    "vector for a number": ({"image_mean": np.ones(3)}, r"image_mean has shape \(3,\)"),
    "vector for a threshold": ({"image_threshold": np.ones(2)}, r"image_threshold has shape \(2,\)"),
    "number for a map": ({"pixel_mean": 1.0, "pixel_std": 1.0}, r"pixel_mean has shape \(\)"),
    "maps of two resolutions": ({"pixel_mean": MAP, "pixel_std": MAP.T}, r"\(2, 3\).*\(3, 2\)"),
    "empty maps": ({"pixel_mean": MAP[:0], "pixel_std": MAP[:0]}, r"\(0, 3\)"),
    "negative pixel std": ({"pixel_mean": MAP, "pixel_std": -MAP}, "pixel_std is negative"),
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
    "newer": (about(format_version=2), "newer version"),
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
    "other method": (about(method="magic"), "method='magic'"),
    "method list": (about(method=[]), "method=\\[\\]"),
    "no options": (about(options={}), "options=\\{\\}"),
    "center nowhere": (about(options={"center": "nowhere"}), "center='nowhere'"),
    "center list": (about(options={"center": []}), "center=\\[\\]"),
    "more fields": (about(more=1), "wrong fields.*more"),
    "negative count": (about(counts={"image": {"valid": -1, "invalid": 0}}), "counts="),
    "count of nothing": (about(counts={"voxel": {"valid": 1, "invalid": 0}}), "counts="),
    "fractional count": (about(counts={"image": {"valid": 1.5, "invalid": 0}}), "counts="),
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
def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n"
    cdf_normalizer().save(path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(FileFormatError, match="n: "):
            Normalizer.load(path)


@pytest.mark.clause("P3")
def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "n"
    Normalizer.cdf((0.25, 0.5), threshold=2.0).save(path)
    content = path.read_bytes()
    for position in range(8 * len(content)):
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
    write(path, pixel_mean=MAP, pixel_std=MAP)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name in ("pixel_mean", "pixel_std"):
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

    monkeypatch.setattr(portable.os, "fsync", full)
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
            fit = Normalizer.load(path).fitted_state()
            assert fit.pixel is not None
            if not np.all(fit.pixel[0] == fit.threshold):
                failures.append(fit.threshold)

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
        fit = Normalizer.load(path).fitted_state()
        assert fit.pixel is not None
        assert np.all(fit.pixel[0] == fit.threshold)
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
    assert Normalizer.load(link).fitted_state().threshold == 2.0


# The golden files: written once, readable for ever. Never change them; a new format gets new ones.

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.clause("P1")
def test_golden_min_max_file() -> None:
    normalizer = Normalizer.load(GOLDEN / "min_max_v1.safetensors")
    result = normalizer(np.array([0.25, 1.5, 2.0, 9.0]), np.full((4, 2, 2), 3.25))
    assert result["pred_scores"].tolist() == [0.1875, 0.5, 0.625, 1.0]
    assert result["pred_labels"].tolist() == [False, True, True, True]
    assert set(result["anomaly_maps"].ravel().tolist()) == {0.5}
    assert repr(normalizer) == "Normalizer(method='min-max', threshold=1.5, pixel_threshold=3.25, maps='any')"


@pytest.mark.clause("P1")
def test_golden_cdf_file() -> None:
    normalizer = Normalizer.load(GOLDEN / "cdf_v1.safetensors")
    result = normalizer(np.array([1.0, 4.0, 5.0]), np.ones((3, 2, 3)))
    assert result["pred_scores"][1] == 0.5
    assert result["pred_labels"].tolist() == [False, True, True]
    # z = log(x) / 0.5 against the z-score of 4
    assert result["pred_scores"][0] == pytest.approx(0.5 * (1 + _erf(-np.log(4) / 0.5 / np.sqrt(2))), rel=1e-12)
    # maps centred at the image mean: z = 0 everywhere, threshold 1
    assert result["anomaly_maps"].ravel() == pytest.approx(0.5 * (1 + _erf(-1 / np.sqrt(2))), rel=1e-12)
    assert normalizer.fitted_state().counts == {"image": (40, 1), "pixel": (40, 0)}


def _erf(x: float) -> float:
    import math

    return math.erf(x)
