"""Modules written against anomalib 0.3 to 1.x, and what checkpoints of anomalib hold (clauses L6, T1)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from scipy.special import ndtr
from scripted_module import ScriptedModule, loader, parameters, samples, trainer
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryF1Score

import anomnorm_core
from anomnorm_core import AnomnormError, NotFittedError, OptionError
from anomnorm_core.errors import ThresholdWarning
from anomnorm_torch import (
    CdfNormalizationCallback,
    MinMaxNormalizationCallback,
    NormalizationCallback,
    NormalizationMixin,
    from_anomalib,
)

RNG = np.random.default_rng(17)
LABELS = np.arange(12) % 3 == 1
MASKS = np.zeros((12, 4, 5), bool)
MASKS[LABELS, :2] = True
MAPS = np.exp(RNG.normal(size=(12, 4, 5)) + 1.5 * MASKS).astype("f4")
NORMAL = np.exp(RNG.normal(size=(8, 4, 5))).astype("f4")
SCORES = MAPS.max((1, 2))


class AdaptiveThreshold(Metric):
    """As anomalib has it: a metric with the threshold of the best F1 in its persistent state ``value``."""

    value: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("value", torch.tensor(0.5), persistent=True)
        self.add_state("preds", [])
        self.add_state("target", [])

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        self.preds.append(preds.flatten())
        self.target.append(target.flatten())

    def compute(self) -> torch.Tensor:
        preds, target = torch.cat(self.preds), torch.cat(self.target)
        flagged = preds >= preds.unique()[:, None]
        hits = (flagged & (target > 0)).sum(1)
        self.value = preds.unique()[(2 * hits / (flagged.sum(1) + (target > 0).sum())).argmax()]
        return self.value


class Collection(MetricCollection):
    def set_threshold(self, value: float) -> None:
        for metric in self.values():
            metric.threshold = value


class Detector(NormalizationMixin, pl.LightningModule):
    """The contract of anomalib 0.3 to 1.x, with the hooks that Lightning 2 has: what docs/guides/anomalib.md shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.image_threshold, self.pixel_threshold = AdaptiveThreshold(), AdaptiveThreshold()
        self.image_metrics, self.pixel_metrics = Collection([BinaryF1Score()]), Collection([BinaryF1Score()])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]  # of 1.x, with names of classes among the tensors
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not isinstance(value, str)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return 0.0 * self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        outputs = {"image": batch["map"], "label": batch["label"], "mask": batch["mask"]}
        return outputs | {"anomaly_maps": batch["map"], "pred_scores": batch["map"].flatten(1).amax(1)}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return self.predict_step(batch, batch_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        outputs = self.validation_step(batch, batch_idx)
        outputs["pred_labels"] = outputs["pred_scores"] >= self.image_threshold.value  # replaced by the callback
        return outputs

    def on_validation_epoch_start(self) -> None:
        self.image_threshold.reset()
        self.pixel_threshold.reset()

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.image_threshold.update(outputs["pred_scores"], outputs["label"])
        self.pixel_threshold.update(outputs["anomaly_maps"], outputs["mask"])

    def on_validation_epoch_end(self) -> None:
        self.image_threshold.compute()
        self.pixel_threshold.compute()

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.image_metrics.update(outputs["pred_scores"], outputs["label"])
        self.pixel_metrics.update(outputs["anomaly_maps"], outputs["mask"].int())


def data() -> Any:
    return loader(samples(None, MAPS, LABELS.astype(int), MASKS), 4)


def normal() -> Any:
    return loader(samples(None, NORMAL, np.zeros(8, int), np.zeros((8, 4, 5), bool)), 4)


def best(values: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The best F1 and its threshold, by trying all; flagged is what reaches it."""
    found = []
    for threshold in np.unique(values):
        hits = np.sum(truth & (values >= threshold))
        found.append((2 * hits / (np.sum(values >= threshold) + np.sum(truth)), float(threshold)))
    return max(found, key=lambda pair: pair[0])


def predicted(run: pl.Trainer, module: Any, **options: Any) -> dict[str, np.ndarray]:
    outputs: Any = run.predict(module, data(), **options)
    names = ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks")
    return {name: torch.cat([each[name] for each in outputs]).numpy().squeeze() for name in names}


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logs = np.log(values.astype("f8"))
    return logs.mean(0), logs.std(0, ddof=1)


@pytest.mark.clause("T1", "L7", "L4")
@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
def test_a_module_of_anomalib_0_3_keeps_its_thresholds_and_metrics(kind: Any) -> None:
    callback, module = kind(), Detector()
    run = trainer(callback, num_sanity_val_steps=0)
    run.fit(module, normal(), data())
    run.test(module, data(), verbose=False)
    found = predicted(run, module)
    values: Any = (SCORES.astype("f8"), MAPS.astype("f8"))
    if kind is CdfNormalizationCallback:
        mean, std = moments(NORMAL.max((1, 2)))
        pixel_std = parameters(module, "pixel")[1]  # of eight images, from which each pixel's own is uncertain
        values = (np.log(values[0]) - mean) / std, (np.log(values[1]) - mean) / pixel_std
    truths = (LABELS, MASKS)
    names = (("image", "pred_scores", "pred_labels"), ("pixel", "anomaly_maps", "pred_masks"))
    for value, truth, (level, scores, labels) in zip(values, truths, names, strict=True):
        f1, threshold = best(value, truth)
        assert callback.thresholds[level].origin == "module"
        expected = ndtr(value - threshold)
        if kind is MinMaxNormalizationCallback:
            expected = np.clip((value - threshold) / (value.max() - value.min()) + 0.5, 0, 1)
        np.testing.assert_allclose(found[scores], expected, atol=1e-5)
        # The sample that defines the threshold is flagged, as its own float32 z-score was (clause N4a).
        assert found[labels].tolist() == (value >= threshold).tolist()
        metric = getattr(module, f"{level}_metrics").compute()["BinaryF1Score"]
        assert metric.item() == pytest.approx(f1, abs=1e-6)


FOUNDING = {"min": MAPS.min(), "max": MAPS.max()}
MEANS = {
    "image_mean": moments(SCORES[~LABELS])[0],
    "image_std": moments(SCORES[~LABELS])[1],
    "pixel_mean": moments(MAPS[~LABELS])[0],
    "pixel_std": moments(MAPS[~LABELS])[1],
}
LEVELS_1_2 = {
    "anomaly_maps.min": MAPS.min(),
    "anomaly_maps.max": MAPS.max(),
    "box_scores.min": np.inf,
    "box_scores.max": -np.inf,
    "pred_scores.min": SCORES.min(),
    "pred_scores.max": SCORES.max(),
}
CLASSES = {"image_threshold_class": "anomalib.metrics.threshold.f1_adaptive_threshold.F1AdaptiveThreshold"}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "0.3-min-max": (FOUNDING, {}),
    "0.3-cdf": (MEANS, {}),
    "1.0": (FOUNDING, {**CLASSES, "normalization_class": "anomalib.metrics.min_max.MinMax"}),
    "1.2": (LEVELS_1_2, {**CLASSES, "pred_scores_normalization_class": "anomalib.metrics.min_max.MinMax"}),
}
THRESHOLDS = (1.0, 0.75)  # in sigmas


def checkpoint(layout: str, path: Path) -> dict[str, Any]:
    """A Lightning checkpoint as that version of anomalib wrote it, and what it gave for the samples."""
    metrics, classes = LAYOUTS[layout]
    image, pixel = THRESHOLDS if layout == "0.3-cdf" else (float(np.median(SCORES)), 2.0)
    numbers = {f"normalization_metrics.{name}": value for name, value in metrics.items()}
    numbers |= {"image_threshold.value": image, "pixel_threshold.value": pixel}
    state = {name: torch.tensor(np.asarray(value, dtype="f4")) for name, value in numbers.items()}
    state["weight"] = torch.ones(())
    content = {"state_dict": {**state, **classes}, "epoch": 1, "global_step": 3}
    torch.save({**content, "pytorch-lightning_version": pl.__version__}, path)
    if layout == "0.3-cdf":
        scores = ndtr((np.log(SCORES) - metrics["image_mean"]) / metrics["image_std"] - image)
        maps = ndtr((np.log(MAPS) - metrics["image_mean"]) / metrics["pixel_std"] - pixel)
    else:
        low, high = (metrics.get(f"pred_scores.{name}", metrics.get(name)) for name in ("min", "max"))
        scores = np.clip((SCORES - image) / (high - low) + 0.5, 0, 1)
        maps = np.clip((MAPS - pixel) / (MAPS.max() - MAPS.min()) + 0.5, 0, 1)
    return {"pred_scores": scores, "anomaly_maps": maps}


@pytest.mark.clause("L6", "P2")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_versions_before_2_load_and_become_a_file(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    expected = checkpoint(layout, path)
    kind = CdfNormalizationCallback if layout == "0.3-cdf" else MinMaxNormalizationCallback
    found = [predicted(trainer(kind()), Detector(), ckpt_path=path)]
    found += [predicted(trainer(kind()), Detector.load_from_checkpoint(path))]
    from_anomalib(torch.load(path, weights_only=True)).save(tmp_path / "old.safetensors")
    found += [anomnorm_core.Normalizer.load(tmp_path / "old.safetensors")(SCORES, MAPS)]
    for each in found:
        for name, values in expected.items():
            np.testing.assert_allclose(each[name], values, atol=2e-6)
        assert each["pred_labels"].tolist() == (each["pred_scores"] >= 0.5).tolist()
        assert 0 < each["pred_labels"].sum() < len(LABELS)


def test_scores_without_maps_and_other_keys_of_1_2(tmp_path: Path) -> None:
    checkpoint("1.2", tmp_path / "old.ckpt")
    state = torch.load(tmp_path / "old.ckpt", weights_only=True)["state_dict"]
    prefix = "normalization_metrics.anomaly_maps"
    without = {f"{prefix}.min": torch.tensor(np.inf), f"{prefix}.max": torch.tensor(-np.inf)}  # a classifier's
    assert from_anomalib({**state, **without}).to_fit().pixel is None
    with pytest.raises(RuntimeError, match=r"normalization_metrics\.heat_maps\.min"):
        from_anomalib({**state, "normalization_metrics.heat_maps.min": torch.tensor(1.0)})
    del state["normalization_metrics.anomaly_maps.max"]
    with pytest.raises(RuntimeError, match=r"cannot be used: 'anomaly_maps\.max'"):
        from_anomalib(state)


def test_a_module_of_anomalib_1_2_saves_and_restores_what_the_callback_fitted(tmp_path: Path) -> None:
    class Saving(Detector):
        def _save_to_state_dict(self, destination: Any, *arguments: Any) -> None:
            for metric in self.normalization_metrics:  # as AnomalyModule of anomalib 1.2 does
                destination[f"{metric}_normalization_class"] = type(self.normalization_metrics[metric]).__name__
            super()._save_to_state_dict(destination, *arguments)

    module, callback = Saving(), CdfNormalizationCallback()
    run = trainer(callback, num_sanity_val_steps=0)
    run.fit(module, normal(), data())
    callback.with_threshold(module, 0.5, 1.25)  # others than the module's own
    run.save_checkpoint(tmp_path / "new.ckpt")
    expected = predicted(run, module)
    found = predicted(trainer(CdfNormalizationCallback()), Saving(), ckpt_path=tmp_path / "new.ckpt")
    assert all(np.array_equal(found[name], values) for name, values in expected.items())
    state = torch.load(tmp_path / "new.ckpt", weights_only=True)["state_dict"]
    held = {f"post_processor.{key}": value for key, value in state.items()}  # as a post-processor has it
    for each in (state, held | stock(image_min=NAN)):
        again = from_anomalib(each)(torch.from_numpy(SCORES), torch.from_numpy(MAPS))
        assert all(np.array_equal(again[name], values) for name, values in expected.items())


def stock(**changed: float) -> dict[str, torch.Tensor]:
    """The buffers of anomalib 2.x."""
    buffers = {"_image_threshold": 1.5, "_pixel_threshold": 0.75, "image_min": SCORES.min(), "image_max": SCORES.max()}
    buffers |= {"pixel_min": MAPS.min(), "pixel_max": MAPS.max()} | changed
    return {f"post_processor.{name}": torch.tensor(value) for name, value in buffers.items()}


NAN = float("nan")
MIDDLE = [float(values.min() + values.max()) / 2 for values in (SCORES, MAPS)]


@pytest.mark.clause("L6", "P2")
@pytest.mark.parametrize(
    ("changed", "config", "thresholds"),
    [
        ({}, {}, [1.5, 0.75]),
        ({"_image_threshold": NAN}, {}, [0.75, 0.75]),
        ({"_pixel_threshold": NAN}, {"enable_threshold_matching": True}, [1.5, 1.5]),
        ({"_pixel_threshold": NAN}, {"enable_threshold_matching": False}, [1.5, MIDDLE[1]]),
        ({"_image_threshold": NAN, "_pixel_threshold": NAN}, {}, MIDDLE),
    ],
)
def test_the_post_processor_of_anomalib_2_becomes_a_file(
    changed: Any, config: Any, thresholds: list[float], tmp_path: Path
) -> None:
    from_anomalib({"state_dict": stock(**changed), "anomalib_post_processor_config": config}).save(tmp_path / "a.st")
    found = anomnorm_core.Normalizer.load(tmp_path / "a.st")(SCORES, MAPS)
    for name, values, threshold in zip(("pred_scores", "anomaly_maps"), (SCORES, MAPS), thresholds, strict=True):
        expected = np.clip((values - threshold) / (values.max() - values.min()) + 0.5, 0, 1)
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_sensitivities_of_anomalib_2_are_a_threshold_that_the_warning_names() -> None:
    config = {"image_sensitivity": 0.625, "pixel_sensitivity": 0.5}
    with pytest.warns(ThresholdWarning, match=r"scores above 0\.375 .*with_threshold\(threshold=0\.375, units="):
        normalizer = from_anomalib({"state_dict": stock(), "anomalib_post_processor_config": config})
    unit = np.clip((SCORES - 1.5) / (SCORES.max() - SCORES.min()) + 0.5, 0, 1)
    moved = normalizer.with_threshold(threshold=0.375, units="normalized")
    assert moved(torch.from_numpy(SCORES))["pred_labels"].tolist() == (unit > 0.375).tolist()


@pytest.mark.parametrize("sensitivity", [0.0, 1.0])
def test_a_sensitivity_that_no_threshold_has_comes_without_a_line_that_fails(sensitivity: float) -> None:
    config = {"pixel_sensitivity": sensitivity}
    with pytest.warns(ThresholdWarning, match="No threshold flags none or all of them"):
        normalizer = from_anomalib({"state_dict": stock(), "anomalib_post_processor_config": config})
    with pytest.raises(OptionError):
        normalizer.with_threshold(pixel_threshold=1 - sensitivity, units="normalized")


@pytest.mark.parametrize(
    "state",
    [
        {"state_dict": {"model.weight": torch.ones(2)}},
        stock(image_min=NAN, image_max=NAN, pixel_min=NAN, pixel_max=NAN),
        stock(image_min=NAN, image_max=NAN),
    ],
)
def test_a_checkpoint_without_statistics_says_so(state: Any) -> None:
    with pytest.raises(NotFittedError, match=r"neither a number in post_processor\.image_min.* nor norm"):
        from_anomalib(state)


def component(name: str, module: str, **options: Any) -> Any:
    """A callback of a class that has the name and module of one of anomalib."""
    base = type(name, (pl.Callback,), {"__module__": module})
    found = type(f"Special{name}", (base,), {"__module__": "elsewhere"})()
    vars(found).update(options)
    return found


def post_processor(*, normalization: bool, thresholding: bool, module: str = "anomalib.post_processing") -> Any:
    options = {"enable_normalization": normalization, "enable_thresholding": thresholding}
    return component("PostProcessor", module, **options)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("place", ["trainer", "module"])
def test_a_post_processor_of_anomalib_beside_a_callback_is_refused(stage: str, place: str) -> None:
    module, found = ScriptedModule(1.5), post_processor(normalization=True, thresholding=True)
    if place == "module":
        module.post_processor = found
    run = trainer(*([found] if place == "trainer" else []), MinMaxNormalizationCallback())
    message = (
        r"post-processor \(SpecialPostProcessor\) normalizes .* MinMaxNormalizationCallback .*post_processor=False"
    )
    with pytest.raises(AnomnormError, match=message):
        getattr(run, stage)(module, *[data() for _ in range(2 if stage == "fit" else 1)])


def test_one_that_only_makes_labels_is_refused_and_one_that_does_nothing_is_not() -> None:
    callback = NormalizationCallback("two-slope", 1.5)
    labels = post_processor(normalization=False, thresholding=True)
    with pytest.raises(AnomnormError, match="makes labels by thresholds of its own"):
        trainer(callback, labels).validate(ScriptedModule(), data())
    others = [
        post_processor(normalization=False, thresholding=False),
        post_processor(normalization=True, thresholding=True, module="elsewhere.anomalib"),
    ]
    module = ScriptedModule()
    module.post_processor = SimpleNamespace(enable_normalization=True)
    trainer(callback, *others).validate(module, data(), verbose=False)
    assert module.normalization_metrics.is_complete


@pytest.mark.parametrize("name", ["NormalizationCallback", "MinMaxNormalizationCallback", "CdfNormalizationCallback"])
def test_a_normalization_callback_of_anomalib_1_is_refused(name: str) -> None:
    run = trainer(component(name, "anomalib.callbacks.normalization.base"), CdfNormalizationCallback())
    with pytest.raises(AnomnormError, match=r"Engine\(normalization=CdfNormalizationCallback\(\.\.\.\)\)"):
        run.validate(ScriptedModule(), data())
