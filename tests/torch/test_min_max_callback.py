"""MinMaxNormalizationCallback in real trainers, against NumPy."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, fitted, loader, parameters, predictions, samples, trainer

from anomnorm_core import (
    AnomnormError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    OptionError,
    OutputError,
)
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

RNG = np.random.default_rng(7)
TRAIN = samples(RNG.uniform(1, 2, size=6), RNG.uniform(1, 2, size=(6, 2, 2)))
SCORES, MAPS = RNG.uniform(1, 9, size=8).astype("f4"), RNG.uniform(2, 7, size=(8, 2, 2)).astype("f4")
VALIDATION = samples(SCORES, MAPS)
TEST_SCORES, TEST_MAPS = RNG.uniform(0, 12, size=5).astype("f4"), RNG.uniform(0, 9, size=(5, 2, 2)).astype("f4")
TEST = samples(TEST_SCORES, TEST_MAPS)


def unit(x: np.ndarray, threshold: float, low: float, high: float) -> np.ndarray:
    return np.clip((x.astype("f8") - threshold) / (high - low) + 0.5, 0, 1)


def fit(callback: MinMaxNormalizationCallback, **options: Any) -> tuple[Any, ScriptedModule]:
    module, run = ScriptedModule(), trainer(callback, **options)
    run.fit(module, loader(TRAIN), loader(VALIDATION))
    return run, module


@pytest.mark.clause("L1", "L2")
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_statistics_are_those_of_the_last_epoch_only(sanity_steps: int) -> None:
    _, module = fit(MinMaxNormalizationCallback(5.0), max_epochs=2, num_sanity_val_steps=sanity_steps)
    # Validation of the second epoch runs before on_train_epoch_end: gain is 2 there, and was 1 in the first.
    assert parameters(module) == [2 * SCORES.min(), 2 * SCORES.max()]
    assert parameters(module, "pixel") == [2 * MAPS.min(), 2 * MAPS.max()]
    assert fitted(module).valid == len(SCORES)
    assert fitted(module, "pixel").valid == MAPS.size


@pytest.mark.clause("L2")
@pytest.mark.parametrize("callback", [MinMaxNormalizationCallback(5.0), CdfNormalizationCallback(1.0)])
def test_the_sanity_check_leaves_no_trace(callback: Any) -> None:
    class StopsAfterTheSanityCheck(ScriptedModule):
        def on_train_start(self) -> None:
            self.trainer.should_stop = True
            raise KeyboardInterrupt

    module = StopsAfterTheSanityCheck()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(SystemExit):
        trainer(callback, num_sanity_val_steps=2).fit(module, loader(TRAIN), loader(VALIDATION))
    assert module.normalization_metrics.fit.image is None
    assert module.normalization_metrics.fit.pixel is None
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


@pytest.mark.clause("L1")
def test_several_validation_loaders_are_pooled() -> None:
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(5.0))
    run.validate(module, [loader(VALIDATION[:4]), loader(VALIDATION[4:])], verbose=False)
    assert parameters(module) == [SCORES.min(), SCORES.max()]


@pytest.mark.clause("N1", "L4")
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_unit_scores_labels_and_masks(stage: str) -> None:
    run, module = fit(MinMaxNormalizationCallback(5.0, pixel_threshold=4.0))
    gain = module.gain.item()
    found: dict[str, np.ndarray] = {}
    if stage == "predict":
        found = predictions(run, module, loader(TEST, 2))
    else:
        collected: list[dict[str, torch.Tensor]] = []
        module.on_test_batch_end = lambda outputs, *_: collected.append(outputs)  # type: ignore[method-assign]
        run.test(module, loader(TEST, 2), verbose=False)
        found = {name: torch.cat([entry[name] for entry in collected]).numpy() for name in collected[0]}
    raw, raw_maps = gain * TEST_SCORES, gain * TEST_MAPS[:, None]
    # Fitted in the first epoch's validation, when the gain was 1.
    np.testing.assert_allclose(found["pred_scores"], unit(raw, 5.0, SCORES.min(), SCORES.max()), atol=2.0**-23)
    np.testing.assert_allclose(found["anomaly_maps"], unit(raw_maps, 4.0, MAPS.min(), MAPS.max()), atol=2.0**-23)
    assert found["pred_labels"].tolist() == (raw >= 5.0).tolist()
    assert found["pred_masks"].tolist() == (raw_maps >= 4.0).tolist()


@pytest.mark.clause("L4")
def test_validation_leaves_raw_scores() -> None:
    _, module = fit(MinMaxNormalizationCallback(5.0))
    emitted = torch.cat([outputs["pred_scores"] for outputs in module.emitted]).numpy()
    assert emitted.tolist() == SCORES.tolist()


@pytest.mark.clause("N1")
def test_shared_range_is_that_of_the_maps() -> None:
    run, module = fit(MinMaxNormalizationCallback(5.0, shared_range=True))
    low, high = float(MAPS.min()), float(MAPS.max())
    for level in ("image", "pixel"):
        assert parameters(module, level) == [low, high]
    found = predictions(run, module, loader(TEST))
    gain = module.gain.item()
    np.testing.assert_allclose(found["pred_scores"], unit(gain * TEST_SCORES, 5.0, low, high), atol=2.0**-23)


@pytest.mark.clause("L5")
def test_missing_scores_are_the_maximum_of_the_map() -> None:
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(5.0))
    run.validate(module, loader(samples(None, MAPS)), verbose=False)
    peaks = MAPS.max(axis=(1, 2))
    assert parameters(module)[0] == peaks.min()
    found = predictions(run, module, loader(samples(None, TEST_MAPS)))
    expected = unit(TEST_MAPS.max(axis=(1, 2)), 5.0, peaks.min(), peaks.max())
    np.testing.assert_allclose(found["pred_scores"], expected, atol=2.0**-23)


@pytest.mark.clause("L5")
def test_missing_maps_are_no_fault() -> None:
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(5.0))
    run.validate(module, loader(samples(SCORES)), verbose=False)
    found = predictions(run, module, loader(samples(TEST_SCORES)))
    assert set(found) == {"pred_scores", "pred_labels", "label"}
    with pytest.raises(NotFittedError, match="pixel-level statistics have seen no value"):
        predictions(run, module, loader(TEST))


@pytest.mark.clause("T1", "T6")
def test_the_modules_own_thresholds_are_used() -> None:
    module, run = ScriptedModule(threshold=3.0, pixel_threshold=6.0), trainer(MinMaxNormalizationCallback())
    run.validate(module, loader(VALIDATION), verbose=False)
    found = predictions(run, module, loader(TEST))
    assert found["pred_labels"].tolist() == (TEST_SCORES >= 3.0).tolist()
    assert found["pred_masks"].tolist() == (TEST_MAPS[:, None] >= 6.0).tolist()
    module.image_threshold.value = torch.tensor(8.0)  # moved after fitting
    assert predictions(run, module, loader(TEST))["pred_labels"].tolist() == (TEST_SCORES >= 8.0).tolist()


@pytest.mark.clause("T4", "T6")
def test_a_number_wins_over_the_modules_own_and_serves_both_levels() -> None:
    module, run = ScriptedModule(threshold=3.0, pixel_threshold=6.0), trainer(MinMaxNormalizationCallback(5.0))
    run.validate(module, loader(VALIDATION), verbose=False)
    found = predictions(run, module, loader(TEST))
    assert found["pred_labels"].tolist() == (TEST_SCORES >= 5.0).tolist()
    assert found["pred_masks"].tolist() == (TEST_MAPS[:, None] >= 5.0).tolist()


@pytest.mark.clause("S6")
def test_invalid_scores_are_left_out_counted_and_warned_about_once() -> None:
    scores = SCORES.copy()
    scores[[1, 4]] = [math.nan, math.inf]
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(5.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.validate(module, loader(samples(scores)), verbose=False)
    messages = [str(warning.message) for warning in caught if warning.category is InvalidScoreWarning]
    assert len(messages) == 1
    assert messages[0].startswith("of 8 image-level values 1 is NaN and 1 infinite. ")
    valid = np.delete(SCORES, [1, 4])
    assert parameters(module) == [valid.min(), valid.max()]
    assert fitted(module).invalid == 2


@pytest.mark.clause("S6")
def test_on_invalid_raise_stops_at_the_first_one() -> None:
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(5.0, on_invalid="raise"))
    with pytest.raises(InvalidScoreError, match="of 3 image-level values 1 is NaN: "):
        run.validate(module, loader(samples([1.0, math.nan, 2.0, math.nan])), verbose=False)


@pytest.mark.clause("N7")
def test_a_constant_population() -> None:
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(50.0))
    run.validate(module, loader(samples([50.0, 50.0])), verbose=False)
    with pytest.warns(InvalidScoreWarning, match="1 image scores of this run are NaN"):
        found = predictions(run, module, loader(samples([20.0, 50.0, 80.0, math.nan])))
    np.testing.assert_array_equal(found["pred_scores"], [0.0, 0.5, 1.0, math.nan])
    assert found["pred_labels"].tolist() == [False, True, True, False]


@pytest.mark.clause("N8")
@pytest.mark.parametrize("callback", [MinMaxNormalizationCallback(5.0), CdfNormalizationCallback(5.0)])
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_unfitted_statistics_are_an_error_before_the_first_batch(callback: Any, stage: str) -> None:
    run = trainer(callback)
    with pytest.raises(NotFittedError, match="nothing has been fitted yet: run a validation first"):
        getattr(run, stage)(ScriptedModule(), loader(TEST))


@pytest.mark.parametrize("second", [MinMaxNormalizationCallback(6.0), CdfNormalizationCallback(1.0)])
def test_one_normalization_callback_per_trainer(second: Any) -> None:
    with pytest.raises(AnomnormError, match=r"2 normalization callbacks \(MinMax.*; use one"):
        trainer(MinMaxNormalizationCallback(5.0), second).fit(ScriptedModule(), loader(TRAIN), loader(VALIDATION))


def test_the_other_method_on_a_fitted_module_is_refused() -> None:
    _, module = fit(MinMaxNormalizationCallback(5.0))
    with pytest.raises(AnomnormError, match=r"delete module.normalization_metrics first"):
        trainer(CdfNormalizationCallback(1.0)).predict(module, loader(TEST))


@pytest.mark.clause("T1")
def test_a_callback_without_a_number_leaves_the_module_its_own_threshold() -> None:
    module, run = ScriptedModule(threshold=3.0), trainer(MinMaxNormalizationCallback(5.0))
    run.validate(module, loader(VALIDATION), verbose=False)
    found = predictions(trainer(MinMaxNormalizationCallback()), module, loader(TEST))
    assert found["pred_labels"].tolist() == (TEST_SCORES >= 3.0).tolist()


def test_training_without_validation_is_warned_about() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(MinMaxNormalizationCallback(5.0)).fit(ScriptedModule(), loader(TRAIN))
    assert any("fits its statistics in validation runs, and this" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": math.nan}, "threshold=nan is not finite"),
        ({"threshold": "high"}, "threshold='high' is not an option; give a finite number or one of 'adaptive', "),
        ({"pixel_threshold": math.inf}, "pixel_threshold=inf is not finite"),
        ({"normal_quantile": 1.5}, "normal_quantile=1.5 is not a quantile"),
        (
            {"threshold": 1.0, "on_invalid": "ignore"},
            "on_invalid='ignore' is not an option; use one of 'warn', 'raise'",
        ),
    ],
)
def test_wrong_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MinMaxNormalizationCallback(**options)


@pytest.mark.clause("L7")
def test_thresholds_of_test_metrics_lie_just_below_one_half() -> None:
    from torchmetrics import MetricCollection
    from torchmetrics.classification import BinaryAUROC, BinaryF1Score

    run, module = fit(MinMaxNormalizationCallback(5.0))
    module.image_metrics = MetricCollection([BinaryF1Score(threshold=0.9), BinaryAUROC()])
    module.pixel_metrics = None
    run.test(module, loader(TEST), verbose=False)
    assert module.image_metrics["BinaryF1Score"].threshold == float(np.nextafter(np.float32(0.5), np.float32(0)))


@pytest.mark.clause("L5")
def test_outputs_without_scores_are_an_error_that_lists_what_was_found() -> None:
    class Wrong(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return {"loss": torch.zeros(()), "image_path": ["a.png"]}

    with pytest.raises(OutputError, match=r"dict\) hold 'image_path', 'loss', but normalization needs 'pred_scores'"):
        trainer(MinMaxNormalizationCallback(5.0)).validate(Wrong(), loader(VALIDATION), verbose=False)
