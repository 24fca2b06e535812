"""Statistics and thresholds travel in the module's state dict (clause L6)."""

import copy
import json
import pickle  # noqa: TID251  # what spawned processes do with a module
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, numbers, parameters, predictions, samples, trainer

from anomnorm_core import AnomnormError, NotFittedError
from anomnorm_torch import (
    CdfNormalizationCallback,
    MinMaxNormalizationCallback,
    NormalizationCallback,
    NormalizationMixin,
    Normalizer,
)
from anomnorm_torch.slot import Slot

RNG = np.random.default_rng(13)
SCORES, MAPS = np.exp(RNG.normal(size=9)).astype("f4"), np.exp(RNG.normal(size=(9, 2, 3))).astype("f4")
DATA = samples(SCORES, MAPS)
ABOUT = "load_with_anomnorm_torch_NormalizationMixin"  # the key of everything that is no array
CALLBACKS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])


def saved(path: Path, *callbacks: Any) -> tuple[ScriptedModule, dict[str, np.ndarray]]:
    module, run = ScriptedModule(), trainer(*callbacks)
    run.fit(module, loader(DATA), loader(DATA))
    run.save_checkpoint(path)
    return module, predictions(run, module, loader(DATA))


@pytest.mark.clause("L6")
@CALLBACKS
@pytest.mark.parametrize("stage", ["predict", "fit"])
def test_a_checkpoint_restores_statistics_and_thresholds(kind: Any, stage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    _, expected = saved(path, kind(1.5, pixel_threshold=2.0))
    callback = kind(1.5) if stage == "fit" else kind()
    module, run = ScriptedModule(), trainer(callback, max_epochs=1)
    if stage == "fit":
        run.fit(module, loader(DATA), loader(DATA), ckpt_path=path)  # nothing left to train
        assert module.normalization_metrics.is_complete
        return
    outputs: Any = run.predict(module, loader(DATA), ckpt_path=path)
    for name, values in expected.items():
        found = torch.cat([entry[name] for entry in outputs]).numpy()
        assert found.tolist() == values.tolist(), name


@pytest.mark.clause("L6")
@pytest.mark.parametrize(
    ("kind", "option", "other"),
    [
        (MinMaxNormalizationCallback, {"shared_range": True}, "shared_range=True"),
        (CdfNormalizationCallback, {"center": "pixel"}, "center='pixel'"),
    ],
)
def test_a_checkpoint_says_what_its_numbers_mean(kind: Any, option: Any, other: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    _, expected = saved(path, kind(1.5, pixel_threshold=0.5, **option))
    module, run = ScriptedModule(), trainer(kind())
    with pytest.raises(AnomnormError, match=f"fitted with {other} and this callback has"):
        run.predict(module, loader(DATA), ckpt_path=path)
    module = ScriptedModule()
    found = predictions(trainer(kind(**option)), module, loader(DATA), ckpt_path=path)
    for name, values in expected.items():
        assert found[name].tolist() == values.tolist(), name

    # Without a callback, the statistics have the option of the checkpoint.
    class Detector(NormalizationMixin, ScriptedModule): ...

    loaded = Detector.load_from_checkpoint(path)
    raw = [torch.from_numpy(values) * loaded.gain.detach() for values in (SCORES, MAPS)]
    result = loaded.normalization_metrics.normalizer(*raw)
    for name in ("pred_scores", "anomaly_maps", "pred_masks"):
        assert result[name].squeeze().tolist() == expected[name].squeeze().tolist(), name


@pytest.mark.clause("L6")
@CALLBACKS
def test_the_file_needs_no_unpickling_and_loads_strictly(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    module, _ = saved(path, kind(1.5))
    state = torch.load(path, weights_only=True)["state_dict"]
    assert any(name.startswith("normalization_metrics.") for name in state)
    fresh = ScriptedModule()
    kind(1.5).setup(trainer(), fresh, "predict")
    result = fresh.load_state_dict(state, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    for level in ("image", "pixel"):
        np.testing.assert_array_equal(parameters(fresh, level), parameters(module, level))


@pytest.mark.clause("T4")
@CALLBACKS
def test_a_number_given_by_hand_wins_over_the_checkpoint(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    _, before = saved(path, kind(1.5))
    callback = kind(0.25)
    module, run = ScriptedModule(), trainer(callback)
    outputs: Any = run.predict(module, loader(DATA), ckpt_path=path)
    after = torch.cat([entry["pred_scores"] for entry in outputs]).numpy()
    assert numbers(callback)["image"] == 0.25
    assert (after >= before["pred_scores"]).all()
    assert (after > before["pred_scores"]).any()


@pytest.mark.clause("T4")
@CALLBACKS
def test_a_restored_threshold_can_be_moved_and_saved_again(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    saved(path, kind(1.5))
    callback = kind()
    module, run = ScriptedModule(), trainer(callback)
    run.predict(module, loader(DATA), ckpt_path=path)
    callback.with_threshold(module, 0.5)
    moved = predictions(run, module, loader(DATA))
    raw = SCORES.astype("f8")
    if kind is CdfNormalizationCallback:
        mean, std = parameters(module)
        raw = (np.log(raw * module.gain.item()) - mean) / std
    else:
        raw = raw * module.gain.item()
    assert moved["pred_labels"].tolist() == (raw >= 0.5).tolist()
    run.save_checkpoint(path)
    again: Any = trainer(kind()).predict(ScriptedModule(), loader(DATA), ckpt_path=path)
    assert torch.cat([entry["pred_scores"] for entry in again]).numpy().tolist() == moved["pred_scores"].tolist()


@pytest.mark.clause("L6")
@CALLBACKS
def test_a_checkpoint_of_a_run_without_normalization_loads(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    module, run = ScriptedModule(), trainer()
    run.fit(module, loader(DATA), loader(DATA))
    run.save_checkpoint(path)
    with pytest.raises(NotFittedError):  # loads, and then has no statistics to predict with
        trainer(kind(1.5)).predict(ScriptedModule(), loader(DATA), ckpt_path=path)
    resumed, run = ScriptedModule(), trainer(kind(1.5), max_epochs=2)
    run.fit(resumed, loader(DATA), loader(DATA), ckpt_path=path)
    assert resumed.normalization_metrics.is_complete


IDENTITY = partial(CdfNormalizationCallback, transform="identity")


@pytest.mark.clause("L6")
@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (MinMaxNormalizationCallback, CdfNormalizationCallback, "min-max normalization, and this run uses cdf"),
        (CdfNormalizationCallback, MinMaxNormalizationCallback, "cdf normalization, and this run uses min-max"),
        (CdfNormalizationCallback, IDENTITY, "cdf normalization, and this run uses normal"),
        (IDENTITY, CdfNormalizationCallback, "normal normalization, and this run uses cdf"),
    ],
)
def test_a_checkpoint_of_the_other_method_is_a_clear_error(first: Any, second: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    saved(path, first(1.5))
    with pytest.raises(RuntimeError, match=f"holds the statistics of {name}"):
        trainer(second(1.5)).predict(ScriptedModule(), loader(DATA), ckpt_path=path)


def loaded(state: dict[str, torch.Tensor], slot: Slot | None = None) -> Slot:
    slot = slot or Slot()
    slot.load_state_dict(state, strict=True)
    return slot


@pytest.mark.clause("L6")
def test_checkpoints_of_anomalib_0_3_load() -> None:
    fit = loaded({"min": torch.tensor(1.0), "max": torch.tensor(9.0)}).fit
    assert (fit.method.name, [float(x) for x in (*fit.image.parameters, *fit.pixel.parameters)]) == (
        "min-max",
        [1, 9, 1, 9],
    )
    two_slope = Slot(type(fit)(NormalizationCallback("two-slope").method))  # the same statistics serve it
    assert loaded({"min": torch.tensor(1.0), "max": torch.tensor(9.0)}, two_slope).fit.method.name == "two-slope"

    image = {"image_mean": torch.tensor(1.5), "image_std": torch.tensor(0.75)}
    border = {"pixel_mean": torch.tensor([[1.0, 2.0, -torch.inf]]), "pixel_std": torch.tensor([[0.5, 0.25, torch.nan]])}
    fit = loaded(image | border).fit
    assert [float(x) for x in fit.image.parameters] == [1.5, 0.75]
    mean, std = fit.pixel.parameters
    assert mean.tolist() == [[1.0, 2.0, 1.5]]  # the border gets what the others have
    np.testing.assert_allclose(std, [[0.5, 0.25, np.sqrt((0.5**2 + 0.25**2) / 2)]])
    assert fit.image.threshold is None
    assert Slot(fit).state_dict() == {}  # not complete
    empty = {name: torch.empty(0) for name in border}
    assert loaded(image | empty).fit.pixel is None
    assert loaded({"min": torch.tensor(torch.inf), "max": torch.tensor(-torch.inf)}).fit.image is None


@pytest.mark.clause("L6", "N8")
@CALLBACKS
def test_the_state_dict_holds_a_complete_fit_and_nothing_else(kind: Any, tmp_path: Path) -> None:
    class Watching(ScriptedModule):
        seen: list[set[str]] = []  # noqa: RUF012

        def on_validation_epoch_end(self) -> None:
            self.seen.append(self.state_dict().keys() - {"gain"})

    Watching.seen = []
    module, run = Watching(), trainer(kind(1.5), max_epochs=2, num_sanity_val_steps=2)
    run.fit(module, loader(DATA), loader(DATA))
    names = [
        f"{level}_{name}" for level in ("image", "pixel") for name in module.normalization_metrics.fit.method.parameters
    ]
    keys = {*names, "image_threshold", "pixel_threshold", ABOUT}
    if module.normalization_metrics.fit.method.positive:
        keys |= {"image_zeros", "pixel_zeros"}
    # The callback's hook of the same name runs before the module's: only after the sanity check there is none.
    assert Watching.seen[0] == set()
    assert Watching.seen[1:] == [{f"normalization_metrics.{key}" for key in keys}] * 2
    assert not list(module.normalization_metrics.parameters())
    assert not list(module.normalization_metrics.buffers())


@pytest.mark.clause("L6", "T1")
@CALLBACKS
def test_origins_counts_and_options_are_in_the_checkpoint(kind: Any, tmp_path: Path) -> None:
    labels = np.arange(9) % 3 == 1
    data = samples(SCORES, MAPS, labels.astype(int), MAPS > 1.5)
    callback, module = kind("normal_quantile", pixel_threshold="adaptive"), ScriptedModule()
    run = trainer(callback)
    run.fit(module, loader(DATA), loader(data))
    callback.with_threshold(module, pixel_threshold=1.25)
    run.save_checkpoint(tmp_path / "a.ckpt")

    class Detector(NormalizationMixin, ScriptedModule): ...

    fit = Detector.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).normalization_metrics.fit
    expected = module.normalization_metrics.fit
    assert [fit.threshold(level).origin for level in ("image", "pixel")] == ["normal_quantile", "manual"]
    for level in ("image", "pixel"):
        mine, theirs = fit.level(level), expected.level(level)
        assert (mine.valid, mine.invalid) == (theirs.valid, theirs.invalid)
        assert mine.threshold.sigmas == theirs.threshold.sigmas
        assert mine.threshold.fixed == theirs.threshold.fixed
        assert mine.threshold.raw.tolist() == theirs.threshold.raw.tolist()
    assert fit.options == expected.options
    assert fit.fitted_with == expected.fitted_with == ("anomnorm-torch", expected.fitted_with[1])


@pytest.mark.clause("L6", "L9")
@CALLBACKS
def test_copies_and_conversions_of_a_module_keep_its_fit(kind: Any, tmp_path: Path) -> None:
    module, _ = saved(tmp_path / "model.ckpt", kind(1.5))
    expected = module.normalization_metrics.normalizer(torch.from_numpy(SCORES), torch.from_numpy(MAPS))
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).to(torch.bfloat16)]
    copies.append(torch.optim.swa_utils.AveragedModel(module, use_buffers=True).module)
    for each in copies:
        found = each.normalization_metrics.normalizer(torch.from_numpy(SCORES), torch.from_numpy(MAPS))
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    # A copy goes its own way.
    kind().with_threshold(copies[0], 3.0)
    assert numbers_of(module) == 1.5
    assert numbers_of(copies[0]) == 3.0
    assert module.to("meta").normalization_metrics.normalizer.image_threshold.device.type == "meta"


def numbers_of(module: Any) -> float:
    return float(module.normalization_metrics.fit.threshold("image").value)


@CALLBACKS
def test_a_normalizer_that_is_set_is_the_modules(kind: Any, tmp_path: Path) -> None:
    module, _ = saved(tmp_path / "model.ckpt", kind(1.5))
    slot = module.normalization_metrics
    names = module.state_dict().keys()
    slot.normalizer = slot.normalizer.with_threshold(2.5)
    assert isinstance(slot.normalizer, Normalizer)
    assert numbers_of(module) == 2.5
    assert module.state_dict().keys() == names  # and no submodule
    module.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    assert numbers_of(module) == 2.5  # it was set here
    slot.normalizer = slot.normalizer.without_manual_threshold()
    module.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    assert numbers_of(module) == 1.5


@pytest.mark.clause("L6")
def test_unknown_and_damaged_keys_are_reported(tmp_path: Path) -> None:
    module, _ = saved(tmp_path / "model.ckpt", MinMaxNormalizationCallback(1.5))
    state = module.normalization_metrics.state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*median"):
        loaded({**state, "median": torch.tensor(1.0)})
    with pytest.raises(RuntimeError, match="cannot be used: 'image_max'"):
        loaded({name: value for name, value in state.items() if name != "image_max"})
    with pytest.raises(RuntimeError, match="image_min is not finite"):
        loaded({**state, "image_min": torch.tensor(torch.nan)})
    with pytest.raises(RuntimeError, match="its keys median are those of no method"):
        loaded({"median": torch.tensor(1.0)})


@pytest.mark.clause("L6", "P3")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "the file was written by a newer version"),
        ({"method": "elsewhere", "method_package": "anomnorm-elsewhere"}, "It comes from 'anomnorm-elsewhere'"),
        ({"levels": None}, "levels=None is not counts and thresholds of levels"),
        (None, "not a JSON object"),
    ],
)
def test_a_state_dict_that_says_something_else_is_refused_with_the_reason(change: Any, message: str) -> None:
    module, run = ScriptedModule(), trainer(MinMaxNormalizationCallback(1.5))
    run.validate(module, loader(DATA), verbose=False)
    state = module.state_dict()
    key = f"normalization_metrics.{ABOUT}"
    about = json.loads(bytes(state[key].tolist()))
    text = json.dumps([] if change is None else about | change).encode()
    state[key] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(state)


@pytest.mark.clause("L6")
@CALLBACKS
def test_the_error_of_a_module_without_the_mixin_says_what_to_add(kind: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a.ckpt", kind(1.5))
    with pytest.raises(RuntimeError, match=rf"Unexpected key\(s\).*normalization_metrics\.{ABOUT}"):
        ScriptedModule.load_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.clause("L6", "N8")
@CALLBACKS
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_fitted_module_that_is_used_without_the_callback_says_that_its_scores_are_raw(
    kind: Any, stage: str, tmp_path: Path
) -> None:
    class Base(ScriptedModule):
        def on_test_model_eval(self) -> None:
            self.called = True
            super().on_test_model_eval()

        def on_predict_model_eval(self) -> None:
            self.called = True
            super().on_predict_model_eval()

    class Detector(NormalizationMixin, Base): ...

    saved(tmp_path / "a.ckpt", kind(1.5))
    module = Detector.load_from_checkpoint(tmp_path / "a.ckpt").train()
    name = module.normalization_metrics.fit.method.name
    with pytest.warns(UserWarning, match=rf'the scores of Detector stay raw .* Add NormalizationCallback\("{name}"\)'):
        getattr(trainer(), stage)(module, loader(DATA))
    assert module.called
    assert module.training  # as before: the hooks of Lightning did their work
    for run, other in ((trainer(kind(1.5)), module), (trainer(), Detector())):
        getattr(run, stage)(other, loader(DATA))  # without a warning
