"""What every normalization callback does alike: any method, padded and skipped batches, cost, faults, anomalib 0.3."""

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import FrameType, MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from expected import best_threshold
from scripted_module import ScriptedModule, fitted, loader, numbers, parameters, predictions, samples, trainer
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryF1Score, BinaryRecall, MulticlassF1Score
from torchmetrics.wrappers import BinaryTargetTransformer, BootStrapper, MetricTracker

from anomnorm_core import InvalidScoreWarning, NotFittedError, OptionError, OutputError
from anomnorm_torch import (
    CdfNormalizationCallback,
    MinMaxNormalizationCallback,
    NormalizationCallback,
    NormalizationMixin,
    Normalizer,
)
from anomnorm_torch.thresholds import set_metric_threshold

RNG = np.random.default_rng(61)
TRAIN_SCORES, TRAIN_MAPS = np.exp(RNG.normal(size=16)).astype("f4"), np.exp(RNG.normal(size=(16, 3, 3))).astype("f4")
TRAIN = samples(TRAIN_SCORES, TRAIN_MAPS)
LABELS = np.array([0, 1, 0, 1, 0, 0, 1, 0, 0])
MASKS = RNG.random((9, 3, 3)) < 0.4 * LABELS[:, None, None]
SCORES = np.exp(RNG.normal(size=9) + LABELS).astype("f4")
MAPS = np.exp(RNG.normal(size=(9, 3, 3)) + MASKS).astype("f4")
DATA = samples(SCORES, MAPS, LABELS, MASKS)
FIELDS = ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks")


class TwoSlopeNormalizationCallback(NormalizationCallback):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__("two-slope", *arguments, **options)


METHODS: dict[str, Any] = {
    "two-slope": TwoSlopeNormalizationCallback,
    "min-max": MinMaxNormalizationCallback,
    "cdf": CdfNormalizationCallback,
}
KINDS = pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)


def trained(callback: Any, module: Any = None, data: Any = DATA, **options: Any) -> tuple[Any, Any]:
    module, run = module or ScriptedModule(), trainer(callback, **options)
    run.fit(module.train(), loader(TRAIN), loader(data))
    with torch.no_grad():
        module.gain.fill_(1.0)  # as it was in the validation
    return run, module


@pytest.mark.clause("N1b", "L4")
def test_two_slopes_by_name_alone() -> None:
    callback = NormalizationCallback("two-slope")
    run, module = trained(callback)
    assert parameters(module) == [SCORES.min(), SCORES.max()]
    assert (
        [emitted["pred_scores"].tolist() for emitted in module.emitted]
        == [  # validation leaves raw scores
            SCORES[start : start + 3].tolist() for start in (0, 3, 6)
        ]
    )
    t = best_threshold(SCORES, LABELS == 1)
    found = predictions(run, module, loader(DATA))
    low, high, x = SCORES.min().astype("f8"), SCORES.max().astype("f8"), SCORES.astype("f8")
    below, above = (2 * side if side >= 0.05 * (high - low) else high - low for side in (t - low, high - t))
    expected = np.clip(np.where(x < t, (x - t) / below, (x - t) / above) + 0.5, 0, 1)
    np.testing.assert_allclose(found["pred_scores"], expected, atol=2.0**-23)
    assert found["pred_labels"].tolist() == (t <= SCORES).tolist()


@pytest.mark.parametrize("method", ["min-max", "cdf"])
def test_the_generic_callback_is_that_of_the_method(method: str, tmp_path: Path) -> None:
    generic, named = NormalizationCallback(method), METHODS[method]()
    run, module = trained(generic)
    expected = predictions(*trained(named), loader(DATA))
    assert numbers(generic) == numbers(named)
    found = predictions(run, module, loader(DATA))
    assert all(found[name].tolist() == expected[name].tolist() for name in FIELDS)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = predictions(trainer(METHODS[method]()), ScriptedModule(), loader(DATA), ckpt_path=tmp_path / "a.ckpt")
    assert again["pred_labels"].shape == (9,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "median"}, "method='median' is unknown; there are 'min-max', 'two-slope', 'cdf', 'normal'"),
        ({"options": {"center": "image"}}, "center='image' is not an option of two-slope normalization"),
        ({"source": "train"}, "source='train': two-slope normalization is fitted by each validation run"),
        ({"method": "cdf", "source": "test"}, "source='test' is not an option; use one of 'train', 'validation'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NormalizationCallback(**{"method": "two-slope"} | arguments)


class Padded(ScriptedModule):
    """Fills its last batch up with a copy of an outlier, and says so."""

    where = "outputs"

    def outputs(self, batch: Any) -> Any:
        result = super().outputs(batch)
        missing = 4 - len(batch["score"])
        if self.where == "nowhere" or missing == 0:
            return result
        filler = {"pred_scores": 1e6, "anomaly_maps": 1e6, "label": 0, "mask": False}
        result = {
            name: torch.cat([value, torch.full_like(value[:1], filler[name]).expand(missing, *value.shape[1:])])
            for name, value in result.items()
        }
        valid = torch.arange(4) < 4 - missing
        (result if self.where == "outputs" else batch)["valid"] = valid
        return result


@pytest.mark.clause("L5")
@KINDS
@pytest.mark.parametrize("where", ["outputs", "batch"])
@pytest.mark.parametrize("source", ["train", "validation"])
def test_what_pads_a_batch_is_fitted_and_counted_nowhere_and_never_flagged(kind: Any, where: str, source: str) -> None:
    options = {"source": source} if kind is CdfNormalizationCallback else {}

    def run(where: str) -> tuple[Any, Any, dict[str, np.ndarray]]:
        module, callback = Padded(), kind(**options)
        module.where = where
        module.on_validation_batch_end = lambda *_: None  # type: ignore[method-assign]
        run = trainer(callback, num_sanity_val_steps=0)
        run.fit(module, loader(TRAIN[:14], 4), loader(DATA, 4))
        outputs: Any = run.predict(module, loader(DATA, 4))
        return callback, module, {name: torch.cat([each[name] for each in outputs]).numpy() for name in FIELDS}

    (callback, module, found), (plain, other, expected) = run(where), run("nowhere")
    for level in ("image", "pixel"):
        np.testing.assert_allclose(parameters(module, level), parameters(other, level), rtol=1e-12)
        assert fitted(module, level).valid == fitted(other, level).valid
    assert numbers(callback) == pytest.approx(numbers(plain), rel=1e-12)
    assert callback.fit_check == plain.fit_check
    for name in FIELDS:
        assert found[name][:9].tolist() == expected[name].tolist(), name
    assert not found["pred_labels"][9:].any()
    assert not found["pred_masks"][9:].any()
    assert (found["pred_scores"][9:] > 0.5).all()  # they are normalized like others


@pytest.mark.clause("N6", "L5")
@KINDS
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_undefined_scores_are_counted_once_at_the_end_of_a_stage(kind: Any, stage: str) -> None:
    class Padded(ScriptedModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self.outputs(batch) | {"valid": torch.arange(len(batch["score"])) < 3}

        test_step = predict_step

    run, module = trained(kind(), Padded())
    broken = np.float32([1, np.nan, 2, np.nan, np.nan, 3, 3, np.nan])  # the last of each four pads
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(run, stage)(module, loader(samples(broken), 4))
        getattr(run, stage)(module, loader(samples(SCORES)))
    messages = [str(each.message) for each in caught if each.category is InvalidScoreWarning]
    assert messages == [
        "2 image scores of this run are NaN; they stay NaN and are not flagged. Look at the detector's raw scores."
    ]


@pytest.mark.clause("L5")
def test_a_wrong_valid_is_refused() -> None:
    class Wrong(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return super().outputs(batch) | {"valid": torch.ones(2, dtype=torch.bool)}

    with pytest.raises(OutputError, match=r"'valid' is of shape \(2,\); it must be a tensor of 3 booleans"):
        trained(MinMaxNormalizationCallback(), Wrong())


@pytest.mark.clause("L5")
@KINDS
@pytest.mark.filterwarnings("ignore:predict returned None")
def test_none_from_a_step_is_a_skipped_batch(kind: Any) -> None:
    class Skipping(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return None if (batch["score"] > 1e5).any() else super().outputs(batch)

    outlier = samples([1e6] * 3, np.full((3, 3, 3), 1e6), [1] * 3)
    callback, plain = kind(), kind()
    module, run = Skipping(), trainer(callback)
    module.on_validation_batch_end = lambda *_: None  # type: ignore[method-assign]
    run.fit(module, loader(TRAIN[:3] + outlier + TRAIN[3:]), loader([*outlier, *DATA, *outlier]))
    _, other = trained(plain)
    np.testing.assert_allclose(parameters(module), parameters(other), rtol=1e-12)
    assert numbers(callback) == pytest.approx(numbers(plain), rel=1e-12)
    run.test(module, loader([*outlier, *DATA]), verbose=False)
    outputs: Any = run.predict(module, loader(DATA))
    assert len(outputs) == 3


@pytest.mark.clause("L5", "L4")
@KINDS
def test_the_first_outputs_are_checked_also_after_a_skipped_batch(kind: Any) -> None:
    class Frozen(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return None if (batch["score"] > 1e5).any() else MappingProxyType(super().outputs(batch))

    skipped = samples([1e6] * 3, np.ones((3, 3, 3)))
    with pytest.raises(OutputError, match="they are updated in place"):
        trained(kind(), Frozen(), [*skipped, *DATA])
    run, module = trained(kind())
    frozen = Frozen()
    frozen.normalization_metrics = module.normalization_metrics
    with pytest.raises(OutputError, match="they are updated in place"):
        run.test(frozen, loader(skipped + DATA), verbose=False)


@pytest.mark.clause("L5")
@KINDS
def test_columns_of_scores_stay_columns(kind: Any) -> None:
    class Column(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            result = super().outputs(batch)
            return result | {"pred_scores": result["pred_scores"][:, None]}

    callback, plain = kind(), kind()
    run, module = trained(callback, Column())
    expected = predictions(*trained(plain), loader(DATA))
    assert numbers(callback) == numbers(plain)
    assert {tuple(each["pred_scores"].shape) for each in module.emitted} == {(3, 1)}
    found = predictions(run, module, loader(DATA))
    for name in ("pred_scores", "pred_labels"):
        assert found[name].shape == (9, 1)
        assert found[name][:, 0].tolist() == expected[name].tolist()


@pytest.mark.clause("L4")
@KINDS
def test_outputs_that_cannot_be_changed_are_refused_at_the_first_batch(kind: Any) -> None:
    class Frozen(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return type("Tuple", (tuple,), {"pred_score": property(lambda _: batch["score"])})()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("the training must not begin")

    with pytest.raises(OutputError, match="they are updated in place"):
        trained(kind(threshold=0.5), Frozen(), num_sanity_val_steps=1)


@pytest.mark.clause("N4a", "T1", "L4")
def test_a_modules_own_threshold_in_sigmas_flags_the_sample_that_defines_it() -> None:
    class Owner(ScriptedModule):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                z = torch.cat([entry["pred_scores"] for entry in self.emitted])
                # The float32 z-score of one sample after the other.
                self.image_threshold = SimpleNamespace(value=z[self.which])
                self.emitted.clear()

    for which in range(9):
        callback, module = CdfNormalizationCallback(), Owner()
        module.which = which
        run, _ = trained(callback, module, samples(SCORES, None, LABELS))
        assert callback.thresholds["image"].origin == "module"
        assert callback.thresholds["image"].sigmas == pytest.approx(module.image_threshold.value.item(), rel=1e-6)
        found = predictions(run, module, loader(samples(SCORES)))
        assert found["pred_labels"].tolist() == (SCORES[which] <= SCORES).tolist()
        assert ((found["pred_scores"] >= 0.5) == found["pred_labels"]).all()


@pytest.mark.clause("N4b")
@KINDS
def test_functions_of_anomalib_0_3_are_called_where_a_subclass_has_its_own(kind: Any) -> None:
    calls: list[str] = []

    class Own(kind):  # type: ignore[misc]
        @staticmethod
        def _standardize_batch(outputs: Any, pl_module: Any) -> None:
            calls.append("standardize")
            kind._standardize_batch(outputs, pl_module)

        @staticmethod
        def _normalize_batch(outputs: Any, pl_module: Any) -> None:
            calls.append("normalize")
            kind._normalize_batch(outputs, pl_module)

    mine, plain = Own(), kind()
    run, module = trained(mine)
    sigmas = kind is CdfNormalizationCallback
    assert calls == ["standardize"] * 3 * sigmas
    other_run, other = trained(plain)
    for emitted, expected in zip(module.emitted, other.emitted, strict=True):
        assert emitted["pred_scores"].tolist() == expected["pred_scores"].tolist()
    calls.clear()
    found, expected = (predictions(*pair, loader(DATA)) for pair in ((run, module), (other_run, other)))
    assert calls == (["standardize", "normalize"] if sigmas else ["normalize"]) * 3
    for name in ("pred_labels", "pred_masks"):
        assert found[name].tolist() == expected[name].tolist(), name
    for name in ("pred_scores", "anomaly_maps"):
        np.testing.assert_allclose(found[name], expected[name], atol=2.0**-20)  # through z-scores
        assert (
            (found[name] >= 0.5) == found[name.replace("scores", "labels").replace("anomaly_maps", "pred_masks")]
        ).all()


@pytest.mark.clause("N4b")
def test_functions_of_anomalib_0_3_read_the_modules_threshold_on_each_call() -> None:
    module = ScriptedModule(threshold=1.5)
    trained(MinMaxNormalizationCallback(), module, samples(SCORES, None, LABELS))
    for threshold in (1.5, 0.75):
        module.image_threshold.value = torch.tensor(threshold)
        outputs = {"pred_scores": torch.tensor(SCORES)}
        MinMaxNormalizationCallback._normalize_batch(outputs, module)
        assert outputs["pred_labels"].tolist() == (threshold <= SCORES).tolist()
    with pytest.raises(NotFittedError, match="A trainer with the callback attaches them"):
        MinMaxNormalizationCallback._normalize_batch(outputs, ScriptedModule())


@pytest.mark.clause("T1", "L8")
@KINDS
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_batch_costs_few_calls(kind: Any, stage: str) -> None:
    hook = f"on_{stage}_batch_end"
    calls: list[int] = []

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and "/anomnorm_" in frame.f_code.co_filename:
            calls[-1] += 1

    class Counted(kind):  # type: ignore[misc]
        pass

    def counted(self: Any, *arguments: Any) -> None:
        calls.append(0)
        sys.setprofile(profile)
        try:
            getattr(kind, hook)(self, *arguments)
        finally:
            sys.setprofile(None)

    setattr(Counted, hook, counted)
    run, module = trained(Counted())
    getattr(run, stage)(module, loader(DATA))
    assert len(calls) == 3
    assert 0 < max(calls) < 40, calls


@pytest.mark.clause("T1")
@KINDS
def test_thresholds_are_resolved_when_a_stage_starts(kind: Any) -> None:
    class Moving(ScriptedModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            if self.trainer.predicting:
                self.image_threshold.value = torch.tensor(5.0)
            return super().predict_step(batch, batch_idx)

    module = Moving(threshold=0.5, pixel_threshold=0.5)
    run, _ = trained(kind(), module)
    assert predictions(run, module, loader(DATA))["pred_labels"].any()
    assert module.image_threshold.value == 5.0


@pytest.mark.clause("L1")
@KINDS
@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_start", "on_validation_batch_end"])
def test_a_run_that_fails_leaves_the_fit_before_it(kind: Any, hook: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("camera unplugged")

    callback = kind()
    run, module = trained(callback)
    before = {name: value.clone() for name, value in module.state_dict().items() if name != "gain"}
    setattr(module, hook, fail)
    other = samples(3 * SCORES, 3 * MAPS, LABELS, MASKS)
    with pytest.raises(RuntimeError, match="camera unplugged"):
        trainer(callback, num_sanity_val_steps=0).fit(module.train(), loader(other), loader(other))
    after = {name: value for name, value in module.state_dict().items() if name != "gain"}
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert module.normalization_metrics.draft is None
    assert predictions(run, module, loader(DATA))["pred_labels"].any()


@KINDS
def test_gradients_run_through_normalized_scores_at_the_threshold_too(kind: Any) -> None:
    callback = kind()
    _, module = trained(callback)
    normalizer = callback.normalizer(module)
    t = normalizer.image_threshold.float()
    x = torch.stack([0.9 * t, t, 1.1 * t]).requires_grad_()
    normalizer(x)["pred_scores"].sum().backward()
    step = 1e-6 * t.item()
    wide = Normalizer(normalizer.to_fit())
    for i, value in enumerate(x.detach().double()):
        up, down = wide(torch.stack([value + step, value - step]))["pred_scores"]
        sides = wide(torch.stack([value + step, value, value - step]))["pred_scores"].diff().neg() / step
        # Two slopes meet at the threshold: there it is one of them.
        assert sides.min() * 0.99 <= x.grad[i].double() <= sides.max() * 1.01, (i, up, down)
        assert x.grad[i] > 0


@pytest.mark.clause("L6")
def test_a_module_that_was_loaded_without_a_trainer_takes_thresholds(tmp_path: Path) -> None:
    class Detector(NormalizationMixin, ScriptedModule): ...

    callback = NormalizationCallback("two-slope")
    run, _ = trained(callback, Detector())
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Detector.load_from_checkpoint(tmp_path / "a.ckpt")
    NormalizationCallback("two-slope").with_threshold(loaded, 0.7, units="normalized")
    before, after = (
        each(torch.tensor(SCORES)) for each in (callback.normalizer(_), loaded.normalization_metrics.normalizer)
    )
    assert after["pred_labels"].tolist() == (before["pred_scores"] >= 0.7).tolist()


@pytest.mark.clause("T1")
@KINDS
def test_the_thresholds_of_a_prediction_are_not_the_modules(kind: Any) -> None:
    _, module = trained(kind())
    found = kind().normalizer(module).thresholds
    other = kind(9.0)
    trainer(other).predict(module, loader(DATA))
    assert other.thresholds["image"].origin == "option"
    after = kind().normalizer(module).thresholds
    for level, threshold in found.items():
        assert after[level].origin == threshold.origin != "option"
        np.testing.assert_array_equal(after[level].raw, threshold.raw)


@pytest.mark.clause("T4")
@KINDS
def test_a_manual_threshold_can_be_released(kind: Any) -> None:
    callback = kind()
    run, module = trained(callback)
    found = callback.normalizer(module).thresholds["image"]
    moved = callback.with_threshold(module, 1.25, units="raw")
    assert moved.thresholds["image"].origin == "manual"
    assert callback.without_manual_threshold(module).thresholds["image"].raw == 1.25
    run.validate(module, loader(DATA), verbose=False)
    assert callback.thresholds["image"].origin == found.origin == "adaptive"
    np.testing.assert_array_equal(callback.thresholds["image"].raw, found.raw)


# Extras and how a callback shows itself.


@pytest.mark.clause("N10", "N6", "L5")
@KINDS
@pytest.mark.parametrize("own", [False, True])
def test_extras_are_those_of_the_normalizer(kind: Any, own: bool) -> None:
    class Own(kind):  # type: ignore[misc]
        @staticmethod
        def _normalize_batch(outputs: Any, pl_module: Any) -> None:
            kind._normalize_batch(outputs, pl_module)

    name = "z" if kind is CdfNormalizationCallback else "margin"
    callback = (Own if own else kind)(extras=(name, "raw", "invalid"))
    run, module = trained(callback)
    broken = SCORES.copy()
    broken[4] = np.nan
    with pytest.warns(InvalidScoreWarning, match="1 image scores") if not own else nullcontext():
        found = predictions(run, module, loader(samples(broken, MAPS)))
    expected = callback.normalizer(module)(
        torch.tensor(broken), torch.tensor(MAPS)[:, None], extras=(name, "raw", "invalid")
    )
    assert found.keys() == {*expected, "label"} - ({"label"} - found.keys())
    for key in (f"pred_scores_{name}", f"anomaly_maps_{name}", "pred_scores_raw", "anomaly_maps_raw", "invalid"):
        np.testing.assert_array_equal(found[key], expected[key].numpy(), err_msg=key)
    assert found["invalid"].tolist() == [False] * 4 + [True] + [False] * 4
    with pytest.raises(OptionError, match="has no 'sigma'"):
        kind(extras="sigma")


def test_a_callback_shows_what_it_was_told_and_what_it_found() -> None:
    callback = CdfNormalizationCallback(3.0, source="validation", center="pixel", extras="z")
    assert repr(callback) == (
        "CdfNormalizationCallback(threshold=3.0, center='pixel', source='validation', extras=('z',))"
    )
    assert repr(CdfNormalizationCallback(transform="identity")) == "CdfNormalizationCallback(transform='identity')"
    assert repr(CdfNormalizationCallback(transform="log")) == "CdfNormalizationCallback()"
    assert repr(MinMaxNormalizationCallback()) == "MinMaxNormalizationCallback()"
    plain = MinMaxNormalizationCallback("adaptive", shared_range=True, log_prefix=None)
    assert repr(plain) == "MinMaxNormalizationCallback(threshold='adaptive', shared_range=True, log_prefix=None)"
    for name, options in (("cdf", {"center": "pixel"}), ("min-max", {})):
        shown = f", options={options!r}" if options else ""
        assert repr(NormalizationCallback(name, options=options)) == f"NormalizationCallback(method={name!r}{shown})"
    assert (
        repr(TwoSlopeNormalizationCallback(1.5)) == "TwoSlopeNormalizationCallback(method='two-slope', threshold=1.5)"
    )
    trained(plain, data=samples(SCORES, None, LABELS))
    t = best_threshold(SCORES, LABELS == 1)
    assert f"log_prefix=None, thresholds={{'image': Threshold(raw={t:.6g}, origin='adaptive', " in repr(plain)


# Trainings that end without a validation.


@pytest.mark.clause("L6")
def test_a_training_that_is_stopped_before_its_first_validation_says_so() -> None:
    class Stopping(ScriptedModule):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = True

    run = trainer(MinMaxNormalizationCallback(), check_val_every_n_epoch=2, max_epochs=4)
    with pytest.warns(UserWarning, match="has ended without a validation run"):
        run.fit(Stopping(), loader(TRAIN), loader(DATA))


@pytest.mark.clause("L6")
@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ({"check_val_every_n_epoch": 3, "max_epochs": 2}, True, None),
        ({"check_val_every_n_epoch": None, "val_check_interval": 20, "max_epochs": 2}, True, None),
        ({"max_steps": 4, "max_epochs": -1}, True, None),
        ({"check_val_every_n_epoch": 2, "max_epochs": 3}, False, "6 optimizer steps younger"),
        ({"val_check_interval": 4}, False, "2 optimizer steps younger"),
        ({"check_val_every_n_epoch": 2, "max_epochs": 2}, False, None),
        ({"val_check_interval": 3}, False, None),
        ({"check_val_every_n_epoch": None, "val_check_interval": 12, "max_epochs": 2}, False, None),
        ({"fast_dev_run": 2}, False, None),
    ],
    ids=str,
)
def test_a_training_whose_final_weights_nobody_validated_says_what_to_do(
    options: Any, start: bool, end: str | None
) -> None:
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(MinMaxNormalizationCallback(), **options)
        run.fit(ScriptedModule(), loader(TRAIN), loader(DATA))
        found = [str(each.message) for each in caught if "trainer.validate(...)" in str(each.message)]
    assert len(found) == start + (end is not None), found
    if start:
        assert "is over before its first validation run" in found[0]
    if end:
        assert end in found[-1]


@pytest.mark.clause("L6")
def test_a_training_that_fails_or_has_no_end_is_not_judged() -> None:
    class Failing(ScriptedModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        trainer(MinMaxNormalizationCallback()).fit(Failing(), loader(TRAIN), loader(DATA))

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(TRAIN[:3])

    stream: Any = torch.utils.data.DataLoader(Stream(), batch_size=3)
    trainer(MinMaxNormalizationCallback(), max_steps=1, max_epochs=-1).fit(ScriptedModule(), stream, loader(DATA))


# Metrics of a test.


@pytest.mark.clause("L7", "N4", "N9")
@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_test_metrics_agree_with_the_labels(kind: Any, dtype: torch.dtype) -> None:
    class Measuring(ScriptedModule):
        def __init__(self) -> None:
            super().__init__()
            self.image_metrics = MetricCollection([BinaryF1Score(), BinaryRecall(), BinaryAUROC()])
            self.pixel_metrics = {"all": [BinaryF1Score()]}
            self.labels = torch.nn.ModuleDict({level: BinaryF1Score() for level in ("image", "pixel")})

        def outputs(self, batch: Any) -> Any:
            result = super().outputs(batch)
            return result | {name: result[name].to(dtype) for name in ("pred_scores", "anomaly_maps")}

        def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.image_metrics.update(outputs["pred_scores"], batch["label"])
            self.pixel_metrics["all"][0].update(outputs["anomaly_maps"], batch["mask"].int())
            self.labels["image"].update(outputs["pred_labels"].int(), batch["label"])
            self.labels["pixel"].update(outputs["pred_masks"].int(), batch["mask"].int())
            self.at_half = (outputs["pred_scores"] == 0.5).any() | (outputs["anomaly_maps"] == 0.5).any()

    # The pixel threshold is that of a pixel, and the data that set the thresholds are tested.
    mine = torch.tensor(MAPS).to(dtype)[torch.tensor(MASKS)].double().median().item()
    callback, module = kind(), Measuring()
    run = trainer(callback)
    run.fit(module, loader(TRAIN), loader(DATA, 9))
    with torch.no_grad():
        module.gain.fill_(1.0)
    callback.with_threshold(module, pixel_threshold=mine, units="raw")
    run.test(module, loader(DATA, 9), verbose=False)
    assert module.at_half
    for level, metric in (("image", module.image_metrics["BinaryF1Score"]), ("pixel", module.pixel_metrics["all"][0])):
        assert metric.compute() == module.labels[level].compute(), level
        below = torch.nextafter(torch.tensor(0.5, dtype=torch.promote_types(dtype, torch.float32)), torch.tensor(0.0))
        assert metric.threshold == below.item()
    assert module.image_metrics["BinaryRecall"].threshold == module.image_metrics["BinaryF1Score"].threshold


@pytest.mark.clause("L7")
def test_thresholds_of_metrics_are_found_wherever_they_are() -> None:
    metrics = [BinaryF1Score() for _ in range(6)]
    wrapped, multiclass = BinaryF1Score(), MulticlassF1Score(3)
    target = BinaryTargetTransformer(wrapped, threshold=0.25)
    unset = BinaryF1Score()
    unset.threshold = None  # type: ignore[assignment]
    own = SimpleNamespace(set_threshold=lambda value: seen.append(value))
    seen: list[float] = []
    set_metric_threshold(
        [
            metrics[0],
            {"a": (metrics[1],), "b": None},
            MetricCollection({"c": metrics[2]}),
            torch.nn.ModuleDict({"d": BootStrapper(metrics[3], num_bootstraps=2), "e": torch.nn.Threshold(0.3, 0.0)}),
            MetricTracker(metrics[4]),
            target,
            multiclass,
            unset,
            own,
        ],
        0.125,
    )
    found = [metric.threshold for metric in metrics[:5]]
    assert found == [0.125] * 3 + [0.5, 0.125]  # the bootstrapper has copies
    assert target.threshold == 0.25
    assert wrapped.threshold == 0.125
    assert unset.threshold is None
    assert seen == [0.125]
    assert metrics[5].threshold == 0.5
