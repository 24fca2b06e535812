"""Clauses P1, P2 and T5 between the packages: one file, the same labels and thresholds, nearly the same scores."""

import math
import subprocess
import sys
import textwrap
from itertools import permutations
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import anomnorm_core
import anomnorm_jax
import anomnorm_torch

MAKE: dict[str, Any] = {"core": np.asarray, "torch": torch.from_numpy, "jax": jnp.asarray}
PACKAGES: dict[str, Any] = {"core": anomnorm_core, "torch": anomnorm_torch, "jax": anomnorm_jax}
PAIRS = pytest.mark.parametrize(("writer", "reader"), list(permutations(PACKAGES, 2)))

GOLDEN = sorted((Path(__file__).parent.parent / "core" / "golden").glob("*.safetensors"))
RNG = np.random.default_rng(23)
TRAIN_MAPS = np.exp(RNG.normal(0.3, 0.4, size=(50, 1, 16, 12))).astype(np.float32)
TRAIN = TRAIN_MAPS.reshape(50, -1).max(axis=1)
TEST_MAPS = np.exp(RNG.normal(0.8, 0.9, size=(300, 1, 16, 12))).astype(np.float32)
LABELS = np.concatenate([RNG.random(280) < 0.4, np.zeros(20, dtype=bool)]).astype(np.int32)
TEST = np.concatenate([np.exp(RNG.normal(1.2 + 0.7 * LABELS[:280], 0.4)), TRAIN[:20]]).astype(np.float32)


KINDS = ["min-max", "two-slope", "cdf", "cdf-raw", "cdf-pixel", "normal-pixel"]


def scores_of(kind: str, *values: np.ndarray) -> list[np.ndarray]:
    """Scores of any sign for the method that takes them so."""
    return [np.log(each) - 3 for each in values] if kind.startswith("normal") else list(values)


def fitted(package: str, kind: str) -> Any:
    library, asarray = PACKAGES[package], MAKE[package]
    method = kind.removesuffix("-raw").removesuffix("-pixel")
    kernels = library.methods.METHODS[method]
    train, train_maps, test = map(asarray, scores_of(kind, TRAIN, TRAIN_MAPS, TEST))
    image = kernels.update(kernels.init(()), train)
    pixel = kernels.update(kernels.init((16, 12)), train_maps)
    units = None if kind in ("cdf", "cdf-pixel", "normal-pixel") else "raw"
    threshold = library.threshold.adaptive(test, asarray(LABELS)) if units else 2.0
    options = {"center": "pixel" if "pixel" in kind else "image"} if kernels.method.sigmas else {}
    made = library.Normalizer.of(method, image, pixel, threshold=threshold, units=units, options=options)
    return made.with_threshold(pixel_threshold=2.5)


@pytest.mark.clause("P1", "P2")
@PAIRS
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_same_labels_and_scores_in_another_package(
    writer: str, reader: str, kind: str, tmp_path: Path
) -> None:
    normalizer = fitted(writer, kind)
    normalizer.save(tmp_path / "n.safetensors")
    loaded = PACKAGES[reader].Normalizer.load(tmp_path / "n.safetensors")
    assert loaded.summary() == normalizer.summary()
    extra = ["z"] if kind.startswith(("cdf", "normal")) else ["margin"]
    test = scores_of(kind, TEST, TEST_MAPS)
    own = normalizer(*map(MAKE[writer], test), extras=extra)
    other = loaded(*map(MAKE[reader], test), extras=extra)
    assert set(own) == set(other)
    for name in ("pred_scores", "anomaly_maps"):
        difference = np.abs(np.asarray(own[name], np.float64) - np.asarray(other[name], np.float64))
        assert difference.max() <= 2 * 2.0**-23
    for name in ("pred_labels", "pred_masks"):
        labels = np.asarray(own[name])
        assert labels.any()
        assert not labels.all()
        assert np.array_equal(labels, np.asarray(other[name]))
    # On again, and back: nothing is lost on the way but what the reader's floats cannot hold.
    loaded.save(tmp_path / "again.safetensors")
    again = PACKAGES[writer].Normalizer.load(tmp_path / "again.safetensors")
    back = again(*map(MAKE[writer], test))
    for name, value in back.items():
        assert np.array_equal(np.asarray(value), np.asarray(own[name])), name
    fit, first = again.to_fit(), normalizer.to_fit()
    assert fit.fitted_with == (f"anomnorm-{writer}", PACKAGES[writer].__version__)
    for level in ("image", "pixel"):
        one, two = fit.level(level), first.level(level)
        assert (one.valid, one.invalid) == (two.valid, two.invalid)
        assert one.threshold.origin == two.threshold.origin
    assert again.thresholds["pixel"].origin == "manual"


@pytest.mark.clause("P2", "T2", "N4")
@pytest.mark.parametrize("kind", ["min-max", "two-slope", "cdf-raw"])
def test_the_fitted_sample_that_defines_an_adaptive_threshold_stays_on_its_side(kind: str, tmp_path: Path) -> None:
    thresholds = set()
    for writer in PACKAGES:
        fitted(writer, kind).save(tmp_path / writer)
        thresholds.add(float(anomnorm_core.Normalizer.load(tmp_path / writer).thresholds["image"].raw))
        for reader, library in PACKAGES.items():
            labels = library.Normalizer.load(tmp_path / writer)(MAKE[reader](TEST))["pred_labels"]
            (t,) = thresholds
            assert np.array_equal(np.asarray(labels), np.float32(t) <= TEST)
    assert thresholds <= set(TEST.astype(np.float64).tolist())


@pytest.mark.clause("P1", "P2")
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_are_readable_in_every_package(package: str, path: Path) -> None:
    normalizer = PACKAGES[package].Normalizer.load(path)
    t = np.float32(normalizer.thresholds["image"].raw)
    scores = np.array([t, np.nextafter(t, np.float32(0)), 99.0], dtype=np.float32)
    result = normalizer(MAKE[package](scores))
    assert np.asarray(result["pred_labels"]).tolist() == [True, False, True]
    assert float(result["pred_scores"][0]) == 0.5
    assert normalizer.summary() == anomnorm_core.Normalizer.load(path).summary()


@pytest.mark.clause("T5")
@pytest.mark.parametrize("package", PACKAGES)
def test_streamed_pixel_threshold_over_200_maps(package: str) -> None:
    library, asarray = PACKAGES[package], MAKE[package]
    rng = np.random.default_rng(9)
    record = library.threshold.init()
    values, anomalous = [], []
    for _ in range(10):
        masks = rng.random((20, 256, 256), dtype=np.float32) < 0.02
        maps = np.exp(0.6 * rng.standard_normal(masks.shape, dtype=np.float32) + 1.1 * masks)
        record = library.threshold.update(record, asarray(maps), asarray(masks))
        values.append(maps.ravel())
        anomalous.append(masks.ravel())
    assert sum(np.asarray(field).nbytes for field in record) <= 16e6
    threshold = float(library.threshold.streamed_adaptive(record))
    x, y = np.concatenate(values), np.concatenate(anomalous)
    del values, anomalous
    anomalies, everything = np.sort(x[y]), np.sort(x)
    hits = anomalies.size - np.arange(anomalies.size)
    flagged = everything.size - np.searchsorted(everything, anomalies)
    best = float(np.max(2 * hits / (flagged + anomalies.size)))
    chosen = everything.size - np.searchsorted(everything, np.float32(threshold))
    right = anomalies.size - np.searchsorted(anomalies, np.float32(threshold))
    assert 2 * right / (chosen + anomalies.size) >= best - 0.001
    q = float(library.threshold.streamed_quantile(record, 0.995))
    exact = float(everything[math.ceil(0.995 * everything.size) - 1])
    assert exact * (1 - 2.0**-8) <= q <= exact


@pytest.mark.clause("P1")
def test_serving_needs_nothing_but_core(tmp_path: Path) -> None:
    fitted("torch", "cdf").save(tmp_path / "n.safetensors")
    np.save(tmp_path / "maps.npy", TEST_MAPS)
    program = """
        import sys
        import numpy as np
        from anomnorm_core import Normalizer
        normalizer = Normalizer.load(sys.argv[1])
        print(int(normalizer(anomaly_maps=np.load(sys.argv[2]))["pred_masks"].sum()))
        assert not {"torch", "jax", "pytorch_lightning", "torchmetrics", "flax"} & set(sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), "n.safetensors", "maps.npy"]
    served = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    result = anomnorm_torch.Normalizer.load(tmp_path / "n.safetensors")(anomaly_maps=torch.from_numpy(TEST_MAPS))
    assert int(served) == int(result["pred_masks"].sum())
