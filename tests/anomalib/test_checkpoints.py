"""What a checkpoint has of a post-processor, and who can load it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.models import Padim
from anomalib.post_processing import PostProcessor
from anomalib_models import made, raw_outputs

from anomnorm_core import FitWarning, Normalizer, OptionError
from anomnorm_torch.anomalib import CdfPostProcessor, MinMaxPostProcessor, NormalizationPostProcessor

BUFFERS = {"_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max"}


class Trained:
    """A trained model, its checkpoint, and raw test outputs."""

    def __init__(self, post_processor: Any, engine: Callable[..., Any], data: Callable[..., Any]) -> None:
        self.model, run, datamodule = made("Padim", post_processor), engine(), data()
        run.fit(self.model, datamodule=datamodule)
        self.path, self.engine, self.data = run.best_model_path, run, datamodule
        scores, maps = raw_outputs(self.model, datamodule.test_data)
        self.raw = InferenceBatch(pred_score=scores[:24], anomaly_map=maps[:24, None])

    def same(self, post_processor: Any, *, tolerance: float = 0.0, labels: bool = True) -> bool:
        """Whether another post-processor gives the same."""
        mine, others = self.model.post_processor(self.raw), post_processor(self.raw)
        torch.testing.assert_close(others.pred_score, mine.pred_score, rtol=0, atol=tolerance)
        torch.testing.assert_close(others.anomaly_map, mine.anomaly_map, rtol=0, atol=tolerance)
        return not labels or (
            torch.equal(others.pred_label, mine.pred_label) and torch.equal(others.pred_mask, mine.pred_mask)
        )


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Trains a model with a post-processor, once for all tests that change nothing."""
    from anomalib.engine import Engine
    from lightning import seed_everything

    made_before: dict[str, Trained] = {}

    def train(name: str) -> Trained:
        def engine() -> Engine:
            seed_everything(0, verbose=False)
            root = tmp_path_factory.mktemp(name)
            return Engine(default_root_dir=root, accelerator="cpu", enable_progress_bar=False, logger=False)

        if name not in made_before:
            made_before[name] = Trained(POST_PROCESSORS[name](), engine, data)
        return made_before[name]

    return train


POST_PROCESSORS = {
    "stock": lambda: True,
    "min-max": MinMaxPostProcessor,
    "cdf": lambda: CdfPostProcessor(
        "false_alarm_rate", false_alarm_rate=0.2, center="pixel", transform="identity", image_sensitivity=0.6
    ),
    "two-slope": lambda: NormalizationPostProcessor("two-slope"),
}


@pytest.mark.clause("L6")
def test_min_max_has_the_buffers_of_anomalib_and_nothing_else(trained):
    state = torch.load(trained("min-max").path, weights_only=True)
    assert {key for key in state["state_dict"] if "post_processor" in key} == {
        f"post_processor.{name}" for name in BUFFERS
    }
    assert "PostProcessor" in state["callbacks"]
    post_processor = trained("min-max").model.post_processor
    for name in BUFFERS:
        assert torch.equal(state["state_dict"][f"post_processor.{name}"], getattr(post_processor, name))
        assert getattr(post_processor, name).isfinite()
    assert torch.equal(post_processor._image_threshold, post_processor.image_threshold)
    assert torch.equal(post_processor._pixel_threshold, post_processor.pixel_threshold)


def test_either_class_loads_min_max_of_the_other(trained):
    ours = trained("min-max")
    loaded = Padim.load_from_checkpoint(ours.path).post_processor
    assert type(loaded) is PostProcessor
    # The one that defines the threshold is no anomaly there (preds > threshold).
    assert ours.same(loaded, tolerance=1e-6, labels=False)
    stock = trained("stock")
    loaded = Padim.load_from_checkpoint(stock.path, post_processor=MinMaxPostProcessor()).post_processor
    assert stock.same(loaded, tolerance=1e-6, labels=False)
    assert str(loaded.normalizer.thresholds["image"].origin) == "unknown"
    flagged = loaded(stock.raw).pred_label
    assert torch.equal(flagged, stock.raw.pred_score >= stock.model.post_processor.image_threshold)


@pytest.mark.clause("L6", "T1")
@pytest.mark.parametrize("name", ["min-max", "cdf", "two-slope"])
def test_options_and_origins_come_with_a_checkpoint(name, trained):
    run = trained(name)
    fresh = {"min-max": MinMaxPostProcessor, "cdf": CdfPostProcessor}.get(name, POST_PROCESSORS[name])
    loaded = Padim.load_from_checkpoint(run.path, post_processor=fresh()).post_processor
    assert run.same(loaded)
    before = run.model.post_processor
    assert loaded.normalization == before.normalization
    assert loaded.image_sensitivity == before.image_sensitivity
    mine, others = before.normalizer.thresholds, loaded.normalizer.thresholds
    assert [str(mine[level].origin) for level in mine] == [str(others[level].origin) for level in others]
    np.testing.assert_array_equal(mine["pixel"].raw, others["pixel"].raw)


NAN = float("nan")


@pytest.mark.clause("L6")
@pytest.mark.parametrize("matching", [True, False])
@pytest.mark.parametrize("unknown", ["_image_threshold", "_pixel_threshold", "both"])
def test_thresholds_that_anomalib_has_not_found(matching, unknown):
    numbers = {"_image_threshold": 0.5, "_pixel_threshold": 0.25, "image_min": 0.1, "image_max": 0.8}
    numbers |= {"pixel_min": 0.0, "pixel_max": 0.7}
    numbers |= dict.fromkeys(("_image_threshold", "_pixel_threshold") if unknown == "both" else (unknown,), NAN)
    scores = torch.linspace(0, 1, 41)
    raw = InferenceBatch(pred_score=scores, anomaly_map=scores.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3))
    outputs = []
    for post_processor in (PostProcessor(), MinMaxPostProcessor()):
        post_processor.load_checkpoint_config({"enable_threshold_matching": matching, "image_sensitivity": 0.625})
        post_processor.load_state_dict({name: torch.tensor(value) for name, value in numbers.items()})
        outputs.append(post_processor(raw))
    stock, ours = outputs
    torch.testing.assert_close(ours.pred_score, stock.pred_score, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.anomaly_map, stock.anomaly_map, rtol=0, atol=1e-6)
    clear = (stock.pred_score - 0.375).abs() > 1e-5  # at the threshold itself, anomalib flags nothing
    assert torch.equal(ours.pred_label[clear], stock.pred_label[clear])


class OwnPadim(Padim):
    """Builds the right post-processor by itself."""

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        return CdfPostProcessor()


def test_a_class_may_build_the_post_processor_itself(trained):
    run = trained("cdf")
    assert run.same(OwnPadim.load_from_checkpoint(run.path).post_processor)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cdf", r"load_from_checkpoint\(path, post_processor=CdfPostProcessor\(\)\)"),
        ("two-slope", r"load_from_checkpoint\(path, post_processor=NormalizationPostProcessor\('two-slope'\)\)"),
    ],
)
def test_what_needs_a_post_processor_says_so(name, line, trained):
    run = trained(name)
    with pytest.raises(RuntimeError, match=line):
        Padim.load_from_checkpoint(run.path)
    with pytest.raises(RuntimeError, match=line):
        Padim.load_from_checkpoint(run.path, post_processor=MinMaxPostProcessor())
    with pytest.raises(RuntimeError, match=line):
        run.engine.export(run.model, "torch", ckpt_path=run.path)


def test_anomalibs_own_statistics_are_no_fit_of_another_method(trained, data, tmp_path):
    with pytest.warns(FitWarning, match="validate the model"):
        model = Padim.load_from_checkpoint(trained("stock").path, post_processor=CdfPostProcessor())
    assert model.post_processor.image_min.isnan()
    trained("stock").engine.validate(model, datamodule=data(), verbose=False)
    assert model.post_processor.fitted_source == "validation"


@pytest.mark.clause("T1", "T4")
@pytest.mark.parametrize("name", ["min-max", "cdf"])
def test_what_was_set_by_hand_stays(name, trained, data, tmp_path):
    run = trained(name)
    model = copy.deepcopy(run.model)
    model.post_processor.with_threshold(9.25, 8.5, units="raw")
    assert float(model.post_processor.image_threshold) == 9.25
    assert (model.post_processor.pixel_threshold == 8.5).all()
    assert float(model.post_processor._image_threshold) == 9.25
    run.engine.trainer.strategy.connect(model)
    run.engine.trainer.save_checkpoint(tmp_path / "moved.ckpt")
    loaded = Padim.load_from_checkpoint(
        tmp_path / "moved.ckpt", post_processor=MinMaxPostProcessor() if name == "min-max" else CdfPostProcessor()
    )
    assert str(loaded.post_processor.normalizer.thresholds["image"].origin) == "manual"
    run.engine.validate(loaded, datamodule=data(), verbose=False)
    assert float(loaded.post_processor.image_threshold) == 9.25


@pytest.mark.clause("T4")
def test_options_that_are_given_win_over_a_checkpoint(trained):
    run = trained("cdf")
    given = CdfPostProcessor(threshold=2.5, image_sensitivity=0.4)
    loaded = Padim.load_from_checkpoint(run.path, post_processor=given).post_processor
    assert loaded.image_sensitivity == 0.4
    assert loaded.normalization["method"] == "normal"
    assert loaded.normalizer.thresholds["image"].sigmas == 2.5


@pytest.mark.parametrize("name", ["min-max", "cdf"])
def test_an_engine_restores_a_checkpoint(name, trained, data, engine):
    run = trained(name)
    model = made("Padim", MinMaxPostProcessor() if name == "min-max" else CdfPostProcessor())
    result = engine().test(model, datamodule=data(), ckpt_path=run.path, verbose=False)[0]
    assert result == run.engine.test(run.model, datamodule=data(), verbose=False)[0]
    assert run.same(model.post_processor)


@pytest.mark.parametrize("name", ["min-max", "cdf"])
def test_a_training_goes_on_from_a_checkpoint(name, data, engine):
    kind = MinMaxPostProcessor if name == "min-max" else CdfPostProcessor
    options = {} if name == "min-max" else {"transform": "identity"}
    run, model = engine(max_epochs=1), made("Fastflow", kind(**options))
    run.fit(model, datamodule=data())
    model.post_processor.with_threshold(-0.25, units="raw")
    path = Path(run.best_model_path).with_name("moved.ckpt")
    run.trainer.save_checkpoint(path)
    again = made("Fastflow", kind())
    engine(max_epochs=2).fit(again, datamodule=data(), ckpt_path=path)
    assert float(again.post_processor.image_threshold) == -0.25
    assert str(again.post_processor.normalizer.thresholds["image"].origin) == "manual"


@pytest.mark.clause("P2")
@pytest.mark.parametrize("name", ["min-max", "cdf", "two-slope"])
def test_numpy_serves_what_was_fitted(name, trained, tmp_path):
    run = trained(name)
    run.model.post_processor.normalizer.save(tmp_path / "detector.safetensors")
    scores, maps = run.raw.pred_score.numpy(), run.raw.anomaly_map.numpy()
    served = Normalizer.load(tmp_path / "detector.safetensors")(scores, maps)
    post_processor = copy.deepcopy(run.model.post_processor)
    post_processor.image_sensitivity = 0.5
    found = post_processor(run.raw)
    np.testing.assert_allclose(served["pred_scores"], found.pred_score.numpy(), rtol=0, atol=2**-22)
    np.testing.assert_allclose(served["anomaly_maps"], found.anomaly_map.numpy(), rtol=0, atol=2**-22)
    np.testing.assert_array_equal(served["pred_labels"], found.pred_label.numpy())
    np.testing.assert_array_equal(served["pred_masks"], found.pred_mask.numpy())


def test_a_calibration_loader_is_for_the_post_processor_that_has_it(data, engine):
    datamodule = data()
    datamodule.setup()
    loader = datamodule.train_dataloader()
    model = made("Padim", CdfPostProcessor("false_alarm_rate", false_alarm_rate=0.2, calibration_loader=loader))
    copied = copy.deepcopy(model)
    with pytest.warns(FitWarning, match="A detector often scores the data"):
        engine().fit(model, datamodule=datamodule)
    assert model.post_processor.normalizer.to_fit().image.valid == len(datamodule.train_data)
    with pytest.raises(OptionError, match="left behind"):
        engine().fit(copied, datamodule=datamodule)
