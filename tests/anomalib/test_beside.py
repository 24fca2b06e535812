"""Callbacks of this package beside anomalib 2: given to its Engine, for models without a post-processor."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from code_blocks import ROOT, programs
from scipy.special import ndtr
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomnorm_core import AnomnormError
from anomnorm_torch import NormalizationMixin, from_anomalib
from anomnorm_torch.lightning import CdfNormalizationCallback, MinMaxNormalizationCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
    pytest.mark.filterwarnings("ignore:Argument .* is deprecated:DeprecationWarning"),  # anomalib's own
    # Sixteen images are few, and an untrained backbone sees that the validation images are others.
    pytest.mark.filterwarnings("ignore:.*normal validation samples.*:anomnorm_core.FitWarning"),
]


def loader(count: int, seed: int, *, defects: bool) -> Any:
    """Noise of 40x40 pixels, every third image with a bright patch."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for index in range(count):
        image, mask = 0.4 + 0.2 * torch.rand(3, 40, 40, generator=generator), torch.zeros(40, 40, dtype=torch.bool)
        if defects and index % 3 == 0:
            mask[8:20, 12:28] = True
            image = image + 0.4 * mask * torch.rand((), generator=generator)
        label = torch.tensor(int(mask.any()))
        items.append(ImageItem(image=image, gt_label=label, gt_mask=mask, image_path=f"{index}.png"))
    return DataLoader(items, batch_size=8, collate_fn=ImageBatch.collate)  # type: ignore[arg-type]


@pytest.fixture
def train() -> Any:
    return loader(16, 1, defects=False)


@pytest.fixture
def validation() -> Any:
    return loader(16, 2, defects=True)


@pytest.fixture
def test() -> Any:
    return loader(16, 3, defects=True)


def options(post_processor: Any = False) -> dict[str, Any]:
    """Of an untrained model for images of 32x32 pixels, which the pre-processor makes and scales."""
    transform = Compose([Resize((32, 32), antialias=True), Normalize([0.5] * 3, [0.1] * 3)])
    return {
        "backbone": "resnet18",
        "layers": ["layer1", "layer2"],
        "pre_trained": False,
        "pre_processor": PreProcessor(transform),
        "post_processor": post_processor,
        "visualizer": False,
    }


MODELS = {
    "padim": partial(Padim, n_features=20),  # scores of shape (B, 1)
    "patchcore": partial(Patchcore, coreset_sampling_ratio=0.2),  # (B,)
}


def engine(folder: Path, *callbacks: Any) -> Engine:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return Engine(callbacks=list(callbacks), default_root_dir=folder, **quiet)


def raw(model: Any, data: Any, post: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps of the model alone on what its transform makes of the images, without trainer and callbacks."""
    model.eval()
    with torch.no_grad():
        found = [model.model(model.pre_processor.transform(batch.image)) for batch in data]
    scores, maps = (torch.cat([getattr(each, name) for each in found]) for name in ("pred_score", "anomaly_map"))
    return scores.reshape(-1).double().numpy(), maps.squeeze(1).double().numpy()


def truth(data: Any) -> np.ndarray:
    return torch.cat([batch.gt_label for batch in data]).numpy().astype(bool)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = scores[labels][:, None] - scores[~labels]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def f1(flagged: np.ndarray, labels: np.ndarray) -> float:
    return float(2 * np.sum(flagged & labels) / (flagged.sum() + labels.sum()))


def joined(outputs: Any, name: str) -> np.ndarray:
    return torch.cat([getattr(batch, name) for batch in outputs]).numpy()


@pytest.mark.clause("L3", "L4", "L5", "L7", "N4")
@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
@pytest.mark.parametrize("name", MODELS)
def test_fit_test_and_predict_give_normalized_scores_to_the_metrics_of_the_model(
    name: str, kind: Any, train: Any, validation: Any, test: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, callback = MODELS[name](**options()), kind()
    run = engine(tmp_path, callback)
    run.fit(model, train, validation)
    fit = model.normalization_metrics.fit
    # The statistics are those of what validation scores: with the transform of the pre-processor.
    if kind is CdfNormalizationCallback:
        expected = [(np.log(scores).mean(), np.log(scores).std(ddof=1)) for scores in [raw(model, train)[0]]]
        maps = np.log(raw(model, train)[1]).mean(0)
        np.testing.assert_allclose(fit.pixel.parameters[0], maps, atol=1e-4)
    else:
        expected = [(values.min(), values.max()) for values in raw(model, validation)]
        np.testing.assert_allclose(fit.pixel.parameters, expected[1], rtol=1e-5)
    np.testing.assert_allclose(fit.image.parameters, expected[0], rtol=1e-4)

    metrics = run.test(model, test, verbose=False)[0]
    outputs = run.predict(model, test)
    assert outputs[0].pred_score.shape == ((8, 1) if name == "padim" else (8,))
    assert outputs[0].pred_label.shape == (8,)
    assert outputs[0].anomaly_map.shape == outputs[0].pred_mask.shape == (8, 32, 32)
    scores, maps = raw(model, test)
    threshold = float(fit.image.threshold.raw)
    if kind is CdfNormalizationCallback:
        unit = ndtr(np.log(scores / threshold) / expected[0][1])
    else:
        unit = np.clip((scores - threshold) / (expected[0][1] - expected[0][0]) + 0.5, 0, 1)
    found = joined(outputs, "pred_score").reshape(-1)
    np.testing.assert_allclose(found, unit, atol=2e-3)
    flagged, masks = joined(outputs, "pred_label"), joined(outputs, "pred_mask")
    assert flagged.tolist() == (scores >= threshold).tolist() == (found >= 0.5).tolist()
    assert np.mean(masks == (maps >= fit.pixel.threshold.raw)) > 0.999  # but where rounding decides
    assert np.array_equal(masks, joined(outputs, "anomaly_map") >= 0.5)
    # The model's evaluator comes after the callback, so that it sees these scores, labels and masks.
    labels, marks = truth(test), joined(outputs, "gt_mask") > 0
    assert metrics["image_AUROC"] == pytest.approx(auroc(found, labels), abs=1e-5)
    assert metrics["image_F1Score"] == pytest.approx(f1(flagged, labels), abs=1e-5)
    assert metrics["pixel_F1Score"] == pytest.approx(f1(masks, marks), abs=1e-5)
    assert metrics["image_AUROC"] > 0.9


@pytest.mark.parametrize(
    ("post_processor", "message"),
    [
        (True, r"PostProcessor\) normalizes the scores and makes labels .*post_processor=False"),
        (PostProcessor(enable_normalization=False), r"PostProcessor\) makes labels by thresholds of its own"),
    ],
)
def test_a_post_processor_that_does_the_same_is_refused(
    post_processor: Any, message: str, train: Any, validation: Any, tmp_path: Path
) -> None:
    model = MODELS["padim"](**options(post_processor))
    with pytest.raises(AnomnormError, match=message):
        engine(tmp_path, MinMaxNormalizationCallback()).fit(model, train, validation)


def test_one_that_does_nothing_is_not(train: Any, validation: Any, tmp_path: Path) -> None:
    post_processor = PostProcessor(enable_normalization=False, enable_thresholding=False)
    model = MODELS["padim"](**options(post_processor))
    run = engine(tmp_path, MinMaxNormalizationCallback())
    run.fit(model, train, validation)
    outputs = run.predict(model, validation)
    assert joined(outputs, "pred_label").tolist() == (joined(outputs, "pred_score").reshape(-1) >= 0.5).tolist()


class Loadable(NormalizationMixin, Padim):
    pass


@pytest.mark.clause("L6")
def test_checkpoints_restore_it_through_an_engine_and_with_the_mixin(
    train: Any, validation: Any, test: Any, tmp_path: Path
) -> None:
    model, run = Loadable(n_features=20, **options()), engine(tmp_path, CdfNormalizationCallback())
    run.fit(model, train, validation)
    expected = joined(run.predict(model, test), "pred_score")
    path = run.best_model_path
    again = engine(tmp_path, CdfNormalizationCallback()).predict(
        Padim(n_features=20, **options()), test, ckpt_path=path
    )
    assert np.array_equal(joined(again, "pred_score"), expected)
    loaded = Loadable.load_from_checkpoint(path)  # weights only; nothing about components is given
    assert loaded.post_processor is None
    assert np.array_equal(
        joined(engine(tmp_path, CdfNormalizationCallback()).predict(loaded, test), "pred_score"), expected
    )
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
def test_a_run_of_anomalib_alone_becomes_a_file_that_numpy_serves(
    train: Any, validation: Any, test: Any, tmp_path: Path
) -> None:
    model, run = MODELS["padim"](**options(post_processor=True)), engine(tmp_path)
    run.fit(model, train, validation)
    stock = run.predict(model, test)
    from_anomalib(torch.load(run.best_model_path, weights_only=True)).save(tmp_path / "stock.safetensors")
    for name, values in zip(("scores", "maps"), raw(model, test), strict=True):
        np.save(tmp_path / f"{name}.npy", values.astype("f4"))
    subprocess.run([sys.executable, "-c", READ], check=True, cwd=tmp_path)
    found = np.load(tmp_path / "found.npz")
    scores, maps = joined(stock, "pred_score").reshape(-1), joined(stock, "anomaly_map")
    np.testing.assert_allclose(found["pred_scores"], scores, atol=1e-5)
    np.testing.assert_allclose(found["anomaly_maps"], maps, atol=1e-5)
    decided = np.abs(scores - 0.5) > 1e-5  # at 0.5, anomalib flags nothing
    assert np.array_equal(found["pred_labels"][decided], joined(stock, "pred_label")[decided])


PAGE = programs(ROOT / "docs" / "anomalib.md", anomalib=True)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("program", PAGE, ids=range(len(PAGE)))
def test_code_blocks_run_as_pasted(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "docs/anomalib.md", "exec"), {"__name__": "__main__"})
