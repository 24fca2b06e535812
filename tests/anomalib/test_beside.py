"""Callbacks of this package beside anomalib 2: given to its Engine, for models without a post-processor."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib_models import SIZE, made, raw_outputs
from code_blocks import ROOT, programs
from scipy.special import ndtr

from anomnorm_core import AnomnormError
from anomnorm_torch import NormalizationMixin, from_anomalib
from anomnorm_torch.anomalib import CdfPostProcessor, MinMaxPostProcessor
from anomnorm_torch.lightning import CdfNormalizationCallback, MinMaxNormalizationCallback

# Validation images are others than those that were trained on, which the fit check tells.
pytestmark = pytest.mark.filterwarnings("ignore:.*normal validation samples.*:anomnorm_core.FitWarning")


def raw(model: Any, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps of the model alone on what its transform makes of the images, without trainer and callbacks."""
    scores, maps = raw_outputs(model, dataset)
    return scores.double().numpy(), maps.double().numpy()


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = scores[labels][:, None] - scores[~labels]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def f1(flagged: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * np.sum(flagged & labels) / (flagged.sum() + labels.sum()))


def joined(outputs: Any, name: str) -> np.ndarray:
    return torch.cat([getattr(batch, name) for batch in outputs]).numpy()


@pytest.mark.clause("L3", "L4", "L5", "L7", "N4")
@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
@pytest.mark.parametrize("name", ["Padim", "Patchcore"])  # whose scores are (B, 1) and (B,)
def test_fit_test_and_predict_give_normalized_scores_to_the_metrics_of_the_model(
    name: str, kind: Any, data: Any, engine: Any
) -> None:
    module, callback, images = made(name, post_processor=False), kind(), data()
    run = engine(callbacks=[callback])
    run.fit(module, datamodule=images)
    fit = module.normalization_metrics.fit
    # The statistics are those of what validation scores: with the transform of the pre-processor.
    if kind is CdfNormalizationCallback:
        scores, maps = (np.log(each) for each in raw(module, images.train_data))
        bounds = scores.mean(), scores.std(ddof=1)
        np.testing.assert_allclose(fit.pixel.parameters[0], maps.mean(0), atol=1e-3)
    else:
        bounds, of_maps = ((each.min(), each.max()) for each in raw(module, images.val_data))
        np.testing.assert_allclose(fit.pixel.parameters, of_maps, rtol=1e-4)
    np.testing.assert_allclose(fit.image.parameters, bounds, rtol=1e-3)

    metrics = run.test(module, datamodule=images, verbose=False)[0]
    outputs = run.predict(module, images.test_dataloader())
    assert outputs[0].pred_score.shape == ((8, 1) if name == "Padim" else (8,))
    assert outputs[0].pred_label.shape == (8,)
    assert outputs[0].anomaly_map.shape == outputs[0].pred_mask.shape == (8, SIZE, SIZE)
    scores, maps = raw(module, images.test_data)
    threshold = float(fit.image.threshold.raw)
    if kind is CdfNormalizationCallback:
        unit = ndtr(np.log(scores / threshold) / bounds[1])
    else:
        unit = np.clip((scores - threshold) / (bounds[1] - bounds[0]) + 0.5, 0, 1)
    found, flagged = joined(outputs, "pred_score").reshape(-1), joined(outputs, "pred_label")
    np.testing.assert_allclose(found, unit, atol=2e-3)
    assert flagged.tolist() == (scores >= threshold).tolist() == (found >= 0.5).tolist()
    masks = joined(outputs, "pred_mask")
    assert np.mean(masks == (maps >= fit.pixel.threshold.raw)) > 0.999  # but where rounding decides
    assert np.array_equal(masks, joined(outputs, "anomaly_map") >= 0.5)
    # The model's evaluator comes after the callback, so that it sees these scores, labels and masks.
    labels, marks = joined(outputs, "gt_label") > 0, joined(outputs, "gt_mask") > 0
    assert metrics["image_AUROC"] == pytest.approx(auroc(found, labels), abs=1e-5)
    assert metrics["image_F1Score"] == pytest.approx(f1(flagged, labels), abs=1e-5)
    assert metrics["pixel_F1Score"] == pytest.approx(f1(masks, marks), abs=1e-5)
    assert metrics["image_AUROC"] > 0.7


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        (True, r"PostProcessor\) normalizes the scores and makes labels .*post_processor=False"),
        (PostProcessor(enable_normalization=False), r"PostProcessor\) makes labels by thresholds of its own"),
    ],
)
def test_a_post_processor_that_does_the_same_is_refused(
    post_processor: Any, message: str, data: Any, engine: Any
) -> None:
    with pytest.raises(AnomnormError, match=message):
        engine(callbacks=[MinMaxNormalizationCallback()]).fit(made("Padim", post_processor), datamodule=data())


def test_one_that_does_nothing_is_not(data: Any, engine: Any) -> None:
    module = made("Padim", PostProcessor(enable_normalization=False, enable_thresholding=False))
    run, images = engine(callbacks=[MinMaxNormalizationCallback()]), data()
    run.fit(module, datamodule=images)
    outputs = run.predict(module, images.val_dataloader())
    assert joined(outputs, "pred_label").tolist() == (joined(outputs, "pred_score").reshape(-1) >= 0.5).tolist()


@pytest.mark.clause("L6")
def test_one_of_this_package_is_refused_even_if_it_does_nothing(data: Any, engine: Any) -> None:
    module = made("Padim", MinMaxPostProcessor(enable_normalization=False, enable_thresholding=False))
    with pytest.raises(AnomnormError, match=r"post-processor \(MinMaxPostProcessor\) .*post_processor=False"):
        engine(callbacks=[CdfNormalizationCallback()]).fit(module, datamodule=data())


@pytest.mark.parametrize("of_the_model", [False, True, MinMaxPostProcessor()])
def test_a_post_processor_belongs_to_the_model(of_the_model: Any, data: Any, engine: Any) -> None:
    with pytest.raises(AnomnormError, match=r"CdfPostProcessor that is not the post_processor .* give it to the model"):
        engine(callbacks=[CdfPostProcessor()]).fit(made("Padim", of_the_model), datamodule=data())


class Loadable(NormalizationMixin, Padim):
    pass


@pytest.mark.clause("L6")
def test_checkpoints_restore_it_through_an_engine_and_with_the_mixin(data: Any, engine: Any) -> None:
    module, images = made("Padim", post_processor=False), data()
    run = engine(callbacks=[CdfNormalizationCallback()])
    run.fit(module, datamodule=images)
    expected, path = joined(run.predict(module, images.test_dataloader()), "pred_score"), run.best_model_path

    def scores(other: Any, **more: Any) -> np.ndarray:
        again = engine(callbacks=[CdfNormalizationCallback()])
        return joined(again.predict(other, images.test_dataloader(), **more), "pred_score")

    assert np.array_equal(scores(made("Padim", post_processor=False), ckpt_path=path), expected)
    loaded = Loadable.load_from_checkpoint(path)  # weights only; nothing about components is given
    assert loaded.post_processor is None
    assert np.array_equal(scores(loaded), expected)
    with pytest.raises(RuntimeError, match=r"normalization_metrics\.load_with_anomnorm_torch_NormalizationMixin"):
        Padim.load_from_checkpoint(path)


READ = """
import sys
sys.modules["torch"] = sys.modules["anomalib"] = None  # as if they were not installed
import numpy as np
from anomnorm_core import Normalizer
found = Normalizer.load("stock.safetensors")(*(np.load(f"{name}.npy") for name in ("scores", "maps")))
np.savez("found.npz", **found)
"""


@pytest.mark.clause("P2", "L6")
def test_a_run_of_anomalib_alone_becomes_a_file_that_numpy_serves(data: Any, engine: Any, tmp_path: Path) -> None:
    module, run, images = made("Padim"), engine(), data()
    run.fit(module, datamodule=images)
    stock = run.predict(module, images.test_dataloader())
    from_anomalib(torch.load(run.best_model_path, weights_only=True)).save(tmp_path / "stock.safetensors")
    for name, values in zip(("scores", "maps"), raw(module, images.test_data), strict=True):
        np.save(tmp_path / f"{name}.npy", values.astype("f4"))
    subprocess.run([sys.executable, "-c", READ], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    scores, maps = joined(stock, "pred_score").reshape(-1), joined(stock, "anomaly_map")
    np.testing.assert_allclose(found["pred_scores"], scores, atol=1e-5)
    np.testing.assert_allclose(found["anomaly_maps"], maps, atol=1e-5)
    decided = np.abs(scores - 0.5) > 1e-5  # at 0.5, anomalib flags nothing
    assert np.array_equal(found["pred_labels"][decided], joined(stock, "pred_label")[decided])


PAGES = [ROOT / "docs" / folder / "anomalib.md" for folder in ("start", "guides")]
SHOWN = [program for page in PAGES for program in programs(page, anomalib=True)]


@pytest.mark.parametrize("program", SHOWN, ids=range(len(SHOWN)))
def test_code_blocks_run_as_pasted(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "anomalib.md", "exec"), {"__name__": "__main__"})
