"""Fitting, validating, testing and predicting with the engine of anomalib."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib_models import made, raw_outputs
from expected import best_threshold, moments
from lightning.pytorch import Callback
from torch import nn
from torchvision.transforms.v2 import Normalize

from anomnorm_core import AnomnormError, FitWarning, InvalidScoreWarning, NotFittedError, OptionError
from anomnorm_torch.anomalib import CdfPostProcessor, MinMaxPostProcessor, NormalizationPostProcessor
from anomnorm_torch.callback import Normalization
from anomnorm_torch.lightning import MinMaxNormalizationCallback

MODELS = ("Padim", "Patchcore", "Fastflow")


def cdf(name: str, **options: Any) -> CdfPostProcessor:
    """Fastflow's scores are negative."""
    return CdfPostProcessor(transform="identity" if name == "Fastflow" else "log", **options)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_finds_what_that_of_anomalib_finds(name, data, engine):
    results = []
    for post_processor in (True, MinMaxPostProcessor(), cdf(name, center="pixel")):
        model, run = made(name, post_processor), engine()
        run.fit(model, datamodule=data())
        results.append(run.test(model, datamodule=data(), verbose=False)[0])
    stock, min_max, by_cdf = results
    assert 0.55 < stock["pixel_AUROC"] < 0.99
    for level in ("image", "pixel"):
        assert min_max[f"{level}_AUROC"] == pytest.approx(stock[f"{level}_AUROC"], abs=5e-4)
        assert by_cdf[f"{level}_AUROC"] > stock[f"{level}_AUROC"] - 5e-4


class Predictions:
    """What the engine predicts of the test data, and the raw outputs without it."""

    def __init__(self, model: Any, run: Any, datamodule: Any) -> None:
        datamodule.predict_dataloader = datamodule.test_dataloader
        batches = run.predict(model, datamodule=datamodule)
        for field in ("pred_score", "anomaly_map", "pred_label", "pred_mask"):
            found = [getattr(batch, field) for batch in batches]
            setattr(self, field, None if found[0] is None else torch.cat(found).squeeze())
        self.raw_scores, self.raw_maps = raw_outputs(model, datamodule.test_data)
        self.batches = batches


@pytest.mark.clause("N4", "N10")
@pytest.mark.parametrize("make", [MinMaxPostProcessor, CdfPostProcessor])
def test_labels_are_decided_on_raw_scores(make, data, engine):
    model, run = made("Padim", make(extras=["raw"])), engine()
    run.fit(model, datamodule=data())
    found, post_processor = Predictions(model, run, data()), model.post_processor
    assert torch.equal(torch.cat([batch.pred_score_raw for batch in found.batches]).squeeze(), found.raw_scores)
    assert torch.equal(found.pred_label, found.raw_scores >= post_processor.image_threshold)
    assert torch.equal(found.pred_mask, found.raw_maps >= post_processor.pixel_threshold)
    assert torch.equal(found.pred_label, found.pred_score >= 0.5)
    assert torch.equal(found.pred_mask, found.anomaly_map >= 0.5)
    assert 0 < found.pred_label.sum() < len(found.pred_label)


@pytest.mark.clause("T2")
def test_the_image_that_defines_the_threshold_is_flagged(data, engine):
    model, run, datamodule = made("Padim", MinMaxPostProcessor()), engine(), data()
    run.fit(model, datamodule=datamodule)
    scores, _ = raw_outputs(model, datamodule.val_data)
    truth = np.array([item.gt_label for item in datamodule.val_data], bool)
    assert float(model.post_processor.image_threshold) == best_threshold(scores.numpy(), truth)
    flagged = model.post_processor(InferenceBatch(pred_score=scores)).pred_label
    assert flagged[scores == model.post_processor.image_threshold].all()


@pytest.mark.clause("L3")
@pytest.mark.parametrize("name", ["Padim", "Fastflow"])
@pytest.mark.filterwarnings("ignore::anomnorm_core.FitWarning")  # these detectors know their training data
def test_training_data_go_through_the_models_own_pre_processor(name, data, engine):
    model, datamodule = made(name, cdf(name, source="train")), data()
    engine().fit(model, datamodule=datamodule)
    assert model.post_processor.fitted_source == "train"
    scores, maps = (part.numpy().astype("f8") for part in raw_outputs(model, datamodule.train_data))
    if name == "Fastflow":
        scores, maps = np.exp(scores), np.exp(maps)  # `moments` takes logarithms
    fit = model.post_processor.normalizer.to_fit()
    for values, level in ((scores, fit.image), (maps, fit.pixel)):
        for expected, fitted in zip(moments(values), level.parameters, strict=True):
            np.testing.assert_allclose(fitted, expected, rtol=2e-4, atol=1e-5)


class Seen(Callback):
    """Keeps the outputs of validation steps, which later hooks could change in place."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.outputs.append(outputs)


def test_outputs_of_validation_stay_raw(data, engine):
    seen, model, datamodule = Seen(), made("Padim", CdfPostProcessor()), data()
    engine(callbacks=[seen]).fit(model, datamodule=datamodule)
    scores, maps = raw_outputs(model, datamodule.val_data)
    assert torch.equal(torch.cat([each.pred_score for each in seen.outputs]).squeeze(), scores)
    assert torch.equal(torch.cat([each.anomaly_map for each in seen.outputs]).squeeze(), maps)
    assert all(each.pred_label is None for each in seen.outputs)


@pytest.mark.parametrize("name", MODELS)
def test_memory_banks_are_fitted_on_normal_validation_images(name, data, engine, caplog):
    model, datamodule = made(name, cdf(name)), data()
    engine().fit(model, datamodule=datamodule)
    assert ("is fitted on the normal validation images" in caplog.text) == (name != "Fastflow")
    assert model.post_processor.fitted_source == "validation"  # where there are enough, others too
    normals = [int(item.gt_label) for item in datamodule.val_data].count(0)
    assert model.post_processor.normalizer.to_fit().image.valid == normals


@pytest.mark.clause("S9")
def test_a_memory_bank_fitted_on_its_own_images_is_reported(data, engine):
    model = made("Patchcore", CdfPostProcessor(source="train", threshold="false_alarm_rate", false_alarm_rate=0.05))
    with pytest.warns(FitWarning, match='source="validation"'):
        engine().fit(model, datamodule=data())


class Brightness(nn.Module):
    """A detector without training: how far a picture is from grey."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> InferenceBatch:
        maps = (images - 0.5).abs().mean(1, keepdim=True) * self.scale + 0.01
        return InferenceBatch(anomaly_map=nn.functional.avg_pool2d(maps, 9, 1, 4))


class ZeroShot(AnomalibModule):
    """Only validates, as WinCLIP does, and leaves image scores to the post-processor."""

    def __init__(self, post_processor: Any = True) -> None:
        super().__init__(PreProcessor(Normalize([0.1] * 3, [1.0] * 3)), post_processor, visualizer=False)
        self.model = Brightness()

    def validation_step(self, batch, *arguments, **more):
        return batch.update(**self.model(batch.image)._asdict())

    learning_type = LearningType.ZERO_SHOT
    trainer_arguments: dict[str, Any] = {}  # noqa: RUF012  # a property of the class there


@pytest.mark.clause("L5")
@pytest.mark.parametrize("source", [None, "train", "validation"])
def test_models_that_only_validate(source, data, engine):
    model, run, datamodule = ZeroShot(CdfPostProcessor(source=source)), engine(), data()
    run.fit(model, datamodule=datamodule)
    assert model.post_processor.fitted_source == (source or "validation")
    found = Predictions(model, run, datamodule)
    assert torch.equal(found.pred_label, found.raw_maps.amax((1, 2)) >= model.post_processor.image_threshold)
    assert torch.equal(found.pred_mask, found.raw_maps >= model.post_processor.pixel_threshold)


@pytest.mark.clause("T4")
@pytest.mark.parametrize("make", [MinMaxPostProcessor, CdfPostProcessor])
def test_sensitivities_cut_at_a_normalized_score(make, data, engine):
    model, run, datamodule = made("Padim", make(image_sensitivity=0.7, pixel_sensitivity=0.4)), engine(), data()
    run.fit(model, datamodule=datamodule)
    found, fit = Predictions(model, run, datamodule), model.post_processor.normalizer.to_fit()
    scores, maps = found.raw_scores.numpy(), found.raw_maps.numpy()
    image = np.float32(fit.raw_threshold(1 - 0.7, "normalized"))
    pixel = fit.raw_threshold(1 - 0.4, "normalized", "pixel").astype(np.float32)
    np.testing.assert_array_equal(found.pred_label.numpy(), scores >= image)
    np.testing.assert_array_equal(found.pred_mask.numpy(), maps >= pixel)
    assert (found.pred_label == (found.pred_score >= 0.3)).float().mean() > 0.99
    for sensitivity, expected in ((0.0, False), (1.0, True)):
        model.post_processor.image_sensitivity = sensitivity
        assert (model.post_processor(InferenceBatch(pred_score=found.raw_scores)).pred_label == expected).all()


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), None, "high"])
def test_sensitivities_that_are_no_share_are_refused(value):
    with pytest.raises(OptionError, match=r"image_sensitivity=.* is not between 0 and 1"):
        CdfPostProcessor(image_sensitivity=value)
    post_processor = MinMaxPostProcessor()
    with pytest.raises(OptionError, match="pixel_sensitivity"):
        post_processor.pixel_sensitivity = value
    assert post_processor.pixel_sensitivity == 0.5


@pytest.mark.parametrize("make", [MinMaxPostProcessor, CdfPostProcessor])
def test_switched_off_normalization_leaves_raw_scores_with_labels(make, data, engine):
    model, run = made("Padim", make(enable_normalization=False)), engine()
    run.fit(model, datamodule=data())
    found = Predictions(model, run, data())
    assert torch.equal(found.pred_score, found.raw_scores)
    assert torch.equal(found.anomaly_map, found.raw_maps)
    assert torch.equal(found.pred_label, found.raw_scores >= model.post_processor.image_threshold)


def test_switched_off_thresholds_put_the_middle_of_the_range_at_one_half(data, engine):
    found = []
    for post_processor in (True, MinMaxPostProcessor(), CdfPostProcessor()):
        model, run = made("Padim", post_processor), engine()
        model.post_processor.enable_thresholding = False
        run.fit(model, datamodule=data())
        found.append(Predictions(model, run, data()))
        assert found[-1].pred_label is None
        assert found[-1].pred_mask is None
    stock, min_max, by_cdf = found
    torch.testing.assert_close(min_max.pred_score, stock.pred_score, rtol=0, atol=1e-6)
    torch.testing.assert_close(min_max.anomaly_map, stock.anomaly_map, rtol=0, atol=1e-6)
    mean, std = (float(value) for value in model.post_processor.normalizer.to_fit().image.parameters)
    expected = torch.distributions.Normal(0.0, 1.0).cdf((by_cdf.raw_scores.double().log() - mean) / std)
    torch.testing.assert_close(by_cdf.pred_score.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [MinMaxPostProcessor, CdfPostProcessor])
def test_thresholds_that_are_switched_off(make, data, engine):
    model, run, datamodule = made("Padim", make()), engine(), data(masks=False)
    run.fit(model, datamodule=datamodule)
    before = Predictions(model, run, datamodule)
    model.post_processor.enable_thresholding = False  # as in anomalib, scores are the same without labels
    after = Predictions(model, run, datamodule)
    assert after.pred_label is None
    assert torch.equal(after.pred_score, before.pred_score)
    assert torch.equal(after.anomaly_map, before.anomaly_map)
    model.eval()
    x = torch.stack([item.image for item in datamodule.test_data])
    torch.testing.assert_close(model(x).pred_score.squeeze(), before.pred_score, rtol=0, atol=1e-5)
    # A validation run puts the middle in their place, and nothing is logged as a threshold.
    results = run.validate(model, datamodule=datamodule, verbose=False)[0]
    assert not [name for name in results if "threshold" in name]
    fit = model.post_processor.normalizer.to_fit()
    for level in (fit.image, fit.pixel):
        expected = 0.0 if make is CdfPostProcessor else np.float32(sum(map(float, level.parameters)) / 2)
        assert level.threshold.value == pytest.approx(expected, rel=1e-6)
    found = Predictions(model, run, datamodule).pred_score
    torch.testing.assert_close(model(x).pred_score.squeeze(), found, rtol=0, atol=1e-5)


@pytest.mark.clause("L3")
def test_another_step_may_score_the_normal_images(data, engine):
    found = []
    for step in ("validation_step", "predict_step"):
        model = made("Padim", CdfPostProcessor(source="train", step=step))
        with pytest.warns(FitWarning):  # it knows its training data
            engine().fit(model, datamodule=data())
        found.append(model.post_processor.normalizer.to_fit().image.parameters)
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.clause("T6")
@pytest.mark.parametrize("make", [MinMaxPostProcessor, CdfPostProcessor])
def test_without_masks_the_pixels_have_the_images_raw_threshold(make, data, engine):
    """As anomalib matches them, also under the CDF: then a map whose image is flagged has a pixel that is."""
    model, run = made("Padim", make()), engine()
    run.fit(model, datamodule=data(masks=False))

    def is_matched() -> bool:
        return torch.all(model.post_processor.pixel_threshold == model.post_processor.image_threshold)

    assert is_matched()
    found = Predictions(model, run, data())
    assert found.pred_label.any()
    assert torch.equal(found.pred_mask.flatten(1).any(1), found.pred_label)
    model.post_processor.with_threshold(float(found.raw_scores.median()), units="raw")
    assert is_matched()
    run.validate(model, datamodule=data(), verbose=False)  # with masks, pixels have a threshold of their own
    assert not is_matched()
    model = made("Padim", make(enable_threshold_matching=False))
    engine().fit(model, datamodule=data(masks=False))
    assert not is_matched()
    assert str(model.post_processor.normalizer.thresholds["pixel"].origin) == "adaptive"


@pytest.mark.clause("T7")
def test_a_false_alarm_rate_is_a_rule_for_thresholds(data, engine):
    model, datamodule = made("Padim", CdfPostProcessor("false_alarm_rate", false_alarm_rate=0.2)), data()
    engine().fit(model, datamodule=datamodule)
    scores, _ = raw_outputs(model, datamodule.val_data)
    normal = np.sort(scores.numpy()[np.array([item.gt_label for item in datamodule.val_data]) == 0])
    rank = int(np.ceil((len(normal) + 1) * (1 - 0.2)))
    assert normal[rank - 1] < float(model.post_processor.image_threshold) <= normal[rank]


@pytest.mark.clause("N8")
def test_nothing_is_normalized_before_a_validation(data, engine):
    model, datamodule = made("Padim", CdfPostProcessor()), data()
    with pytest.raises(NotFittedError):
        model.post_processor(InferenceBatch(pred_score=torch.ones(2)))
    datamodule.setup()
    with pytest.raises(NotFittedError):
        engine().predict(model, dataloaders=datamodule.test_dataloader())
    with pytest.raises(ValueError, match="At least one"):
        model.post_processor(InferenceBatch())


def test_hooks_of_the_callback_are_those_of_the_post_processor():
    for name in vars(Callback):
        if not name.startswith("_") and hasattr(Normalization, name) and name != "state_key":
            assert name in vars(NormalizationPostProcessor), name


@pytest.mark.clause("N6")
def test_scores_that_are_nan_are_counted(data, engine):
    model, run, datamodule = ZeroShot(CdfPostProcessor()), engine(), data()
    run.fit(model, datamodule=datamodule)
    model.model.scale.data.fill_(torch.nan)
    with pytest.warns(InvalidScoreWarning, match=f"{len(datamodule.test_data)} "):
        run.trainer.predict(model, datamodule.test_dataloader())


@pytest.mark.clause("L3")
def test_what_cannot_be_fitted_is_known_before_the_training(data, engine):
    model = made("Fastflow", cdf("Fastflow", calibration_loader=[{"nothing": torch.ones(2)}]))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(AttributeError, match="in the pass over the normal data"):
        engine().fit(model, datamodule=data())
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict(prefix="model.").items())


def test_labels_that_a_model_has_made_stay(data, engine):
    model, run, datamodule = ZeroShot(MinMaxPostProcessor()), engine(), data()
    run.fit(model, datamodule=datamodule)
    post_processor = model.post_processor
    raw = InferenceBatch(pred_score=torch.tensor([0.1, 0.2, 0.9]), pred_label=torch.tensor([True, False, False]))
    expected = post_processor.normalizer(raw.pred_score)["pred_scores"]
    found = post_processor(raw)
    assert torch.equal(found.pred_label, raw.pred_label)
    assert torch.equal(found.pred_score, expected)
    batch = datamodule.test_data.collate_fn([datamodule.test_data[index] for index in range(3)])
    batch.pred_score = raw.pred_score
    post_processor.normalize_batch(batch)  # and nothing else
    assert torch.equal(batch.pred_score, expected)
    assert batch.pred_label is None


def test_one_normalization_is_enough(data, engine):
    model = made("Padim", CdfPostProcessor())
    with pytest.raises(AnomnormError, match=r"MinMaxNormalizationCallback|CdfPostProcessor"):
        engine(callbacks=[MinMaxNormalizationCallback()]).fit(model, datamodule=data())
