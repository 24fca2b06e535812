"""Callbacks that average state dicts or keep the best one, and load them around validations and tests (clause L6)."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from expected import moments
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from scripted_module import ScriptedModule, loader, numbers, parameters, samples, trainer
from torch import Tensor

from anomnorm_core import FitWarning, NotFittedError
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback, NormalizationMixin

RNG = np.random.default_rng(71)
TRAIN_SCORES = np.exp(RNG.normal(size=9)).astype("f4")
SCORES, LABELS = np.exp(RNG.normal(size=9)).astype("f4"), np.arange(9) % 3 == 1
TRAIN, DATA = samples(TRAIN_SCORES), samples(SCORES, None, LABELS.astype(int))
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
State = dict[str, Tensor]


class Averaging(pl.Callback):
    """Validates, tests and predicts with an average of all state dicts of a training: ``"start"`` as of its start."""

    strict = True

    def __init__(self, how: str = "all") -> None:
        self.how = how
        self.average: State = {}
        self.backup: State = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.average = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        for name, value in pl_module.state_dict().items():
            if self.how == "all":  # what comes later is taken in, and integers are averaged too
                old = self.average.setdefault(name, value.clone())
                self.average[name] = (0.9 * old.double() + 0.1 * value.double()).to(value.dtype)
            elif name in self.average and value.is_floating_point():
                self.average[name].mul_(0.9).add_(value, alpha=0.1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            self.backup = {name: value.clone() for name, value in pl_module.state_dict().items()}
            pl_module.load_state_dict(self.average, strict=self.strict)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.backup:
            pl_module.load_state_dict(self.backup, strict=self.strict)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end


class Loose(Averaging):
    strict = False


class Steps(ScriptedModule):
    """Its scores grow with each step of the training; each validation has its ``gain`` in ``gains``."""

    def __init__(self) -> None:
        super().__init__()
        self.gains: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.gain

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.gains.append(self.gain.item())
        return super().validation_step(batch, batch_idx, dataloader_idx)

    def on_train_epoch_end(self) -> None: ...

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.tested = super().test_step(batch, batch_idx)
        return self.tested

    predict_step = test_step


def expected(kind: Any, gain: float) -> list[float]:
    if kind is MinMaxNormalizationCallback:
        return [float(x) for x in (SCORES.min() * gain, SCORES.max() * gain)]
    mean, std = moments(TRAIN_SCORES)
    return [float(mean + np.log(gain)), float(std)]


@pytest.mark.clause("L6", "L1")
@KINDS
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("averaging", [Averaging, Loose], ids=["strict", "loose"])
@pytest.mark.parametrize("how", ["all", "start"])
def test_the_fit_of_averaged_weights_survives_their_exchange(
    kind: Any, first: bool, averaging: Any, how: str, tmp_path: Path
) -> None:
    # Early stopping and checkpoints see it too. (The clause of the best: smaller is better, so the first one is.)
    average, callback = averaging(how), kind()
    name = "normalization/image_threshold"
    others = [EarlyStopping(name, patience=9), ModelCheckpoint(tmp_path, monitor=name, save_last=True, mode="max")]
    run = trainer(*((average, callback) if first else (callback, average)), *others, max_epochs=3, **CHECKPOINTS)
    module = Steps()
    run.fit(module, loader(TRAIN), loader(DATA))  # without a warning
    gain = module.gains[-1]
    assert gain < module.gain.item()  # the average
    np.testing.assert_allclose(parameters(module), expected(kind, gain), rtol=1e-6)
    for path in (others[1].last_model_path, others[1].best_model_path):
        state = torch.load(path, weights_only=True)["state_dict"]
        stored = [float(state[f"normalization_metrics.image_{name}"]) for name in callback.method.parameters]
        np.testing.assert_allclose(stored, expected(kind, gain), rtol=1e-6)
    # A manual threshold survives, and what is tested with the average is normalized by its fit.
    callback.with_threshold(module, 2.0, units="raw")
    run.validate(module, loader(DATA), verbose=False)
    assert callback.thresholds["image"].origin == "manual"
    np.testing.assert_allclose(parameters(module), expected(kind, module.gains[-1]), rtol=1e-6)
    for stage in ("test", "predict"):
        getattr(run, stage)(module, loader(samples(SCORES), 9))
        assert module.tested["pred_labels"].tolist() == (np.float32(module.gains[-1]) * SCORES >= 2.0).tolist()
    assert numbers(callback).keys() == {"image"}


CHECKPOINTS = {"enable_checkpointing": True}


@pytest.mark.clause("L6")
@KINDS
def test_the_best_state_dict_brings_its_own_fit(kind: Any) -> None:
    class KeepsFirst(pl.Callback):
        kept: State | None = None

        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if self.kept is None and not trainer.sanity_checking:
                self.kept = {name: value.clone() for name, value in pl_module.state_dict().items()}

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.load_state_dict(self.kept)

    module = Steps()
    trainer(KeepsFirst(), kind(), max_epochs=2).fit(module, loader(TRAIN), loader(DATA))
    assert module.gains[0] != module.gains[1]
    np.testing.assert_allclose(parameters(module), expected(kind, module.gains[0]), rtol=1e-6)


@pytest.mark.clause("L6", "T1")
@KINDS
def test_a_state_dict_that_a_module_loads_when_its_test_starts_brings_its_own_fit(kind: Any) -> None:
    class Loading(Steps):
        kept: State | None = None

        def on_test_start(self) -> None:
            self.load_state_dict(self.kept)

    callback, module = kind(), Loading()
    run = trainer(callback, max_epochs=1)
    run.fit(module, loader(TRAIN), loader(DATA))
    module.kept = {name: value.clone() for name, value in module.state_dict().items()}
    first = callback.normalizer(module)
    gain = module.gain.item()
    trainer(callback, max_epochs=2).fit(module.train(), loader(TRAIN), loader(DATA))
    assert module.gain.item() != gain
    run.test(module, loader(samples(SCORES), 9), verbose=False)
    assert module.gain.item() == gain
    expected = first(torch.tensor(SCORES) * gain)
    assert torch.equal(module.tested["pred_scores"], expected["pred_scores"])


@pytest.mark.clause("L6")
@KINDS
@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_without_a_fit_still_drops_the_one_that_is_there(
    kind: Any, weights_only: bool, tmp_path: Path
) -> None:
    plain = trainer()
    plain.fit(ScriptedModule(), loader(TRAIN), loader(DATA))
    plain.save_checkpoint(tmp_path / "plain.ckpt", weights_only=weights_only)
    callback, module = kind(1.0), ScriptedModule()
    run = trainer(callback)
    run.fit(module, loader(TRAIN), loader(DATA))
    dropped = pytest.warns(UserWarning, match="belong to other weights and were dropped")
    with dropped, pytest.raises(NotFittedError, match="nothing has been fitted"):
        run.predict(module, loader(DATA), ckpt_path=tmp_path / "plain.ckpt")
    trainer(callback).fit(module.train(), loader(TRAIN), loader(DATA))
    with pytest.warns(UserWarning, match="belong to other weights and were dropped"):
        module.load_state_dict({"gain": torch.ones(())})  # and outside of a run
    assert module.normalization_metrics.fit.image is None


@pytest.mark.clause("L6")
@KINDS
def test_averaged_statistics_are_refused_by_name(kind: Any) -> None:
    module, other = Steps(), Steps()
    for each, data in ((module, DATA), (other, samples(2 * SCORES, None, LABELS.astype(int)))):
        trainer(kind()).fit(each, loader(TRAIN), loader(data))
    states = module.state_dict(), other.state_dict()
    assert {name: value.shape for name, value in states[0].items()} == {
        name: value.shape for name, value in states[1].items()
    }
    mean = {name: (states[0][name].double() + states[1][name]) / 2 for name in states[0]}
    floats = {name: mean[name] if value.is_floating_point() else value for name, value in states[0].items()}
    for state, message in ((mean, "cannot be used"), (floats, "they do not belong together: something has changed")):
        with pytest.raises(RuntimeError, match=message):
            module.load_state_dict({name: value.to(states[0][name].dtype) for name, value in state.items()})
    # Another precision is no average.
    module.load_state_dict({name: value.float() for name, value in states[0].items()})
    module.load_state_dict({name: value.bfloat16() for name, value in states[0].items()})


@pytest.mark.clause("L6")
@KINDS
def test_a_module_with_the_mixin_saves_its_fit_beside_a_callback_that_replaces_the_state_dict(
    kind: Any, tmp_path: Path
) -> None:
    class Replaces(pl.Callback):
        def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
            checkpoint["state_dict"] = {"gain": torch.ones(())}

    class Detector(NormalizationMixin, ScriptedModule): ...

    module, callback = Detector(), kind(1.5)
    run = trainer(callback, Replaces())
    run.fit(module, loader(TRAIN), loader(DATA))
    run.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Detector.load_from_checkpoint(tmp_path / "a.ckpt")
    np.testing.assert_array_equal(parameters(loaded), parameters(module))


@pytest.mark.clause("L3")
def test_weights_that_are_exchanged_after_the_pass_are_noticed() -> None:
    class Late(Averaging):
        on_validation_epoch_start = Averaging.on_validation_start
        on_validation_epoch_end = Averaging.on_validation_end

        def on_validation_start(self, *_: Any) -> None: ...

        def on_validation_end(self, *_: Any) -> None: ...

    with pytest.warns(FitWarning, match="are not those that scored the normal data before the") as caught:
        trainer(CdfNormalizationCallback(), Late("start"), max_epochs=2).fit(Steps(), loader(TRAIN), loader(DATA))
    assert len([each for each in caught if each.category is FitWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", FitWarning)
        trainer(Late("start"), CdfNormalizationCallback()).fit(Steps(), loader(TRAIN), loader(DATA))
