"""A method of somebody else: one file for each package, and no edit in any of them (docs/guides/add-a-method.md)."""

import math
import re
import subprocess
import sys
import tomllib
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import anomnorm_core
import anomnorm_jax
import anomnorm_torch
from anomnorm_core import FileFormatError, InvalidScoreError, InvalidScoreWarning

FOLDER = Path(__file__).parent / "logistic_method"
PAGE = FOLDER.parents[2] / "docs" / "guides" / "add-a-method.md"
ARRAYS = {anomnorm_core: np.asarray, anomnorm_torch: torch.as_tensor, anomnorm_jax: jnp.asarray}
PACKAGES = pytest.mark.parametrize("package", ARRAYS, ids=lambda package: package.__name__)
LOW, HIGH, T = 0.5, 3.0, 1.75


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Any:
    sys.path.insert(0, str(FOLDER))
    import anomnorm_logistic.jax_kernels
    import anomnorm_logistic.torch_kernels  # noqa: F401

    yield
    sys.path.remove(str(FOLDER))


def normalizer(package: Any, *ranges: tuple[float, float], threshold: float = T) -> Any:
    return package.Normalizer.of("logistic", *(ranges or ((LOW, HIGH), (LOW, HIGH))), threshold=threshold)


def formula(x: float, threshold: float = T) -> float:
    return 1 / (1 + math.exp(-4 * (x - threshold) / (HIGH - LOW)))


def score(package: Any, fitted: Any, values: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in fitted(ARRAYS[package](values), **options).items()}


def neighbours(value: float) -> np.ndarray:
    middle = np.float32(value)
    return np.array([np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(np.inf))])


@pytest.mark.clause("N4", "N5", "N9", "N10", "N13")
@PACKAGES
def test_values_labels_and_extras_are_those_of_the_formula(package: Any) -> None:
    scores = np.concatenate([np.linspace(-4, 8, 97, dtype=np.float32), neighbours(T)])
    result = score(package, normalizer(package), scores, extras=["margin", "raw"])
    expected = [formula(float(x)) for x in scores]
    assert result["pred_scores"].dtype == np.float32
    assert np.abs(result["pred_scores"] - expected).max() <= 2.0**-23
    assert result["pred_labels"].tolist() == (scores >= T).tolist() == (result["pred_scores"] >= 0.5).tolist()
    assert result["pred_scores"][-2] == 0.5
    np.testing.assert_allclose(result["pred_scores_margin"], (scores - T) / (HIGH - LOW), rtol=1e-6)
    assert (result["pred_scores_raw"] == scores).all()


@pytest.mark.clause("N6", "N7")
@PACKAGES
def test_special_values_and_constant_populations(package: Any) -> None:
    special = score(package, normalizer(package), np.float32([math.nan, math.inf, -math.inf]))
    np.testing.assert_array_equal(special["pred_scores"], [math.nan, 1, 0])
    assert special["pred_labels"].tolist() == [False, True, False]
    constant = normalizer(package, (T, T))
    assert score(package, constant, neighbours(T))["pred_scores"].tolist() == [0.0, 0.5, 1.0]


@pytest.mark.clause("S6")
@PACKAGES
def test_what_it_leaves_out_is_counted_by_its_kind(package: Any) -> None:
    bad = ARRAYS[package](np.float32([LOW, HIGH, 1.0, math.nan, math.inf]))
    kernels = import_module(f"{package.__name__}.methods").METHODS["logistic"]
    record = kernels.merge(kernels.init(()), kernels.update(kernels.init(()), bad))
    with pytest.warns(InvalidScoreWarning, match="of 8 image-level values 1 is NaN and 1 infinite"):
        fitted = package.Normalizer.of("logistic", kernels.update(record, bad[:3]), threshold=T).to_fit()
    assert (fitted.level("image").valid, fitted.level("image").invalid) == (6, 2)
    with pytest.raises(InvalidScoreError, match=r"^2 of 5 image-level values"):
        package.Normalizer.of("logistic", record, threshold=T)


@pytest.mark.clause("N11")
@PACKAGES
def test_there_is_a_way_back(package: Any) -> None:
    units = np.float32([0.0, 0.2, 0.5, 0.9, 1.0])
    raw = np.asarray(normalizer(package).denormalize(ARRAYS[package](units))["pred_scores"])
    assert raw[[0, 2, 4]].tolist() == [-math.inf, T, math.inf]
    assert [formula(float(x)) for x in raw[[1, 3]]] == pytest.approx([0.2, 0.9], abs=1e-6)


def test_derivatives_are_those_of_the_formula() -> None:
    scores = np.float32([1.0, T, 2.5])
    slopes = [formula(float(x)) * (1 - formula(float(x))) * 4 / (HIGH - LOW) for x in scores]
    x = torch.tensor(scores, requires_grad=True)
    normalizer(anomnorm_torch)(x)["pred_scores"].sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, slopes, rtol=1e-5)
    gradient = jax.grad(lambda x: normalizer(anomnorm_jax)(x)["pred_scores"].sum())(jnp.asarray(scores))
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5)


class Detector(pl.LightningModule):
    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        maps = batch["image"].abs()
        return {"pred_scores": maps.amax((1, 2, 3)), "anomaly_maps": maps}

    predict_step = validation_step


class Loadable(anomnorm_torch.NormalizationMixin, Detector):
    pass


@pytest.mark.clause("P1", "P2", "T2", "L6")
def test_a_callback_fits_it_and_every_package_reads_its_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 4, 4, generator=generator)
    images[::4] *= 3  # the anomalies
    samples = [{"image": image, "label": i % 4 == 0} for i, image in enumerate(images)]
    loader = DataLoader(samples, batch_size=8)  # type: ignore[arg-type]
    detector, callback = Detector(), anomnorm_torch.NormalizationCallback("logistic")
    quiet: Any = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(callbacks=[callback], enable_model_summary=False, **quiet)
    trainer.validate(detector, loader, verbose=False)
    predictions = trainer.predict(detector, loader) or []
    found = {name: torch.cat([part[name] for part in predictions]).numpy() for name in predictions[0]}

    threshold = callback.thresholds["image"]
    assert threshold.origin == "adaptive"
    raw = images.abs().amax((1, 2, 3)).double().numpy()
    low, high, t = raw.min(), raw.max(), float(threshold.raw)
    np.testing.assert_allclose(found["pred_scores"], 1 / (1 + np.exp(-4 * (raw - t) / (high - low))), atol=2.0**-23)
    assert found["pred_labels"].tolist() == (raw >= t).tolist()

    callback.normalizer(detector).save(tmp_path / "a.safetensors")
    scores, maps = raw.astype(np.float32), images.abs().numpy()
    for package, asarray in ARRAYS.items():
        result = package.Normalizer.load(tmp_path / "a.safetensors")(asarray(scores), asarray(maps))
        for name in ("pred_labels", "pred_masks"):
            assert np.array_equal(np.asarray(result[name]), found[name]), (package, name)
        for name in ("pred_scores", "anomaly_maps"):
            np.testing.assert_allclose(np.asarray(result[name]), found[name], rtol=0, atol=2.0**-22)

    loaded = Loadable()
    loaded.load_state_dict(detector.state_dict())
    assert torch.equal(
        loaded.normalization_metrics.normalizer(torch.tensor(scores))["pred_labels"], torch.tensor(raw >= t)
    )


@pytest.mark.clause("T3", "N8")
def test_a_hook_fits_it() -> None:
    rows = np.abs(np.random.default_rng(0).normal(size=(3, 16))).astype(np.float32)
    hook = anomnorm_jax.NormalizationHook("logistic", "normal_quantile")
    run = hook.on_validation_epoch_start(hook.setup({"pred_scores": rows[0]}))
    for batch in rows:
        run, _ = hook.on_validation_batch_end(run, {"pred_scores": jnp.asarray(batch)})
    fitted = hook.on_validation_epoch_end(run)
    assert jax.tree.structure(fitted) == jax.tree.structure(hook.empty({"pred_scores": rows[0]}))
    t = np.float32(fitted.thresholds["image"].raw)
    assert np.nextafter(t, np.float32(0)) == rows.max()  # just above the normal samples
    result = hook.on_predict_batch_end(fitted, {"pred_scores": jnp.asarray(rows[0])})
    expected = 1 / (1 + np.exp(-4 * (rows[0] - t) / (rows.max() - rows.min())))
    np.testing.assert_allclose(result["pred_scores"], expected, rtol=0, atol=2.0**-23)
    assert not result["pred_labels"].any()


@pytest.mark.clause("P4", "T4")
def test_it_exports_to_onnx_with_a_movable_threshold(tmp_path: Path) -> None:
    scores = np.concatenate([np.linspace(-4, 8, 21, dtype=np.float32), neighbours(T)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program: Any = torch.onnx.export(
            normalizer(anomnorm_torch),
            (torch.from_numpy(scores),),
            kwargs={"threshold": torch.tensor(T)},
            input_names=["raw_scores", "threshold"],
            output_names=["pred_scores", "pred_labels"],
            dynamo=True,
            verbose=False,
        )
    program.save(tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for t in (0.25, T, 4.0):
        unit, labels = session.run(None, {"raw_scores": scores, "threshold": np.asarray(t, np.float32)})
        np.testing.assert_allclose(unit, [formula(float(x), t) for x in scores], rtol=0, atol=2.0**-22)
        assert labels.tolist() == (scores >= np.float32(t)).tolist() == (unit >= 0.5).tolist()


INSTALLED = """
import sys
import anomnorm_core, anomnorm_jax, anomnorm_torch
for package in (anomnorm_core, anomnorm_torch, anomnorm_jax):
    print(package.Normalizer.load(sys.argv[1]).thresholds["image"].raw)
"""


@pytest.mark.clause("P1", "P3")
def test_installed_it_is_found_by_its_entry_points(tmp_path: Path) -> None:
    normalizer(anomnorm_core).save(tmp_path / "a.safetensors")

    def load(*paths: Path) -> subprocess.CompletedProcess[str]:
        code = f"import sys; sys.path[:0] = {list(map(str, paths))}" + INSTALLED
        command = [sys.executable, "-c", code, str(tmp_path / "a.safetensors")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    # What an installer leaves beside a package.
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = tmp_path / "site" / "anomnorm_logistic-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: anomnorm-logistic\nVersion: 1.0\n")
    groups = project["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{n} = {v}" for n, v in points.items()))]
    (about / "entry_points.txt").write_text("\n".join(lines))

    result = load(FOLDER, about.parent)
    assert result.returncode == 0, result.stderr
    assert [float(line) for line in result.stdout.split()] == [T] * 3
    refused = load()
    assert FileFormatError.__name__ in refused.stderr
    assert "pip install it" in refused.stderr
    assert project["name"] in refused.stderr


def test_the_page_shows_these_files() -> None:
    shown = dict(
        re.findall(r"^`(anomnorm_logistic/\w+\.py)`.*?\n\n```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    )
    files = sorted(FOLDER.glob("anomnorm_logistic/*_kernels.py"))
    assert shown == {f"anomnorm_logistic/{file.name}": file.read_text(encoding="utf-8") for file in files}
