"""Checkpoints in a training: with and without a trainer, weights alone, the best epoch, resuming (clause L6)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from scripted_module import ScriptedModule, loader, numbers, parameters, predictions, samples, trainer

from anomnorm_core import AnomnormError, Fit, LevelFit, NotFittedError, ResolutionError, cdf
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback
from anomnorm_torch.mixin import NormalizationMixin
from anomnorm_torch.slot import Slot

pytestmark = pytest.mark.clause("L6")

RNG = np.random.default_rng(43)
TRAIN_SCORES, TRAIN_MAPS = np.exp(RNG.normal(size=12)).astype("f4"), np.exp(RNG.normal(size=(12, 3, 3))).astype("f4")
TRAIN = samples(TRAIN_SCORES, TRAIN_MAPS)
LABELS = np.array([0, 1, 0, 1, 0, 0, 1, 0, 0])
MASKS = RNG.random((9, 3, 3)) < 0.4 * LABELS[:, None, None]
SCORES = np.exp(RNG.normal(size=9) + LABELS).astype("f4")
MAPS = np.exp(RNG.normal(size=(9, 3, 3)) + MASKS).astype("f4")
DATA = samples(SCORES, MAPS, LABELS, MASKS)
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
FIELDS = ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks")


class Loadable(NormalizationMixin, ScriptedModule):
    pass


def assert_equal(found: Any, expected: Any) -> None:
    for name in FIELDS:
        assert found[name].tolist() == expected[name].tolist(), name


def state(module: Any) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in module.normalization_metrics.state_dict().items()}


def assert_same_state(a: Any, b: Any) -> None:
    for name, value in state(b).items():
        np.testing.assert_array_equal(state(a)[name], value, err_msg=name)


@KINDS
@pytest.mark.parametrize("weights_only", [False, True])
def test_load_from_checkpoint_is_strict_and_complete(kind: Any, weights_only: bool, tmp_path: Path) -> None:
    module, run = Loadable(), trainer(kind())
    run.fit(module, loader(TRAIN), loader(DATA))
    run.save_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    expected = predictions(run, module, loader(DATA))

    loaded = Loadable.load_from_checkpoint(tmp_path / "a.ckpt", strict=True, weights_only=True)
    assert_same_state(loaded, module)
    assert_equal(predictions(trainer(kind()), loaded, loader(DATA)), expected)
    moved = Loadable.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    kind().with_threshold(moved, 20.0 if kind is CdfNormalizationCallback else 1e6)  # and can be moved
    assert not predictions(trainer(kind()), moved, loader(DATA))["pred_labels"].any()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*normalization_metrics"):
        ScriptedModule.load_from_checkpoint(tmp_path / "a.ckpt", strict=True, weights_only=True)


def test_the_mixin_on_any_module_and_inside_of_others() -> None:
    class Part(NormalizationMixin):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

    part = Part()
    moments = np.asarray(1.5), np.asarray(0.5)
    part.normalization_metrics = Slot(Fit(cdf.METHOD, LevelFit(moments)).placed("image", 2.0, "sigmas", "option"))
    fresh = torch.nn.Sequential(Part(), torch.nn.Linear(1, 1))
    fresh.load_state_dict(torch.nn.Sequential(part, torch.nn.Linear(1, 1)).state_dict(), strict=True)
    assert fresh[0].normalization_metrics.fit.image.parameters == moments
    plain = Part()
    plain.load_state_dict({"weight": torch.zeros(2)}, strict=True)  # of a run without normalization
    assert not hasattr(plain, "normalization_metrics")
    range_ = {"normalization_metrics.min": torch.tensor(0.0), "normalization_metrics.max": torch.tensor(1.0)}
    with pytest.raises(RuntimeError, match="holds the statistics of min-max normalization, and this run uses cdf"):
        part.load_state_dict({"weight": torch.zeros(2)} | range_)


@KINDS
def test_statistics_of_the_best_checkpoint_belong_to_its_epoch(kind: Any, tmp_path: Path) -> None:
    class Best(ScriptedModule):
        def on_validation_epoch_end(self) -> None:
            self.log("error", abs(self.gain.item() - 2.0))  # the best epoch is the second

    checkpoint = ModelCheckpoint(tmp_path, monitor="error", save_weights_only=True, save_on_train_epoch_end=False)
    module, callback = Best(), kind()
    run = trainer(callback, checkpoint, max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0)
    run.fit(module, loader(TRAIN), loader(DATA))
    best = Best()
    trainer(kind()).predict(best, loader(DATA), ckpt_path=checkpoint.best_model_path)
    assert best.gain == 2.0
    assert module.gain == 4.0
    once, reference = ScriptedModule(), kind()
    with torch.no_grad():
        once.gain.fill_(2.0)
    trainer(reference).fit(once, loader(TRAIN), loader(DATA))
    assert_same_state(best, once)


@KINDS
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("where", ["between epochs", "within an epoch"])
def test_a_resumed_training_ends_as_an_undisturbed_one(kind: Any, where: str, tmp_path: Path) -> None:
    class Interrupted(ScriptedModule):
        stop = False

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.stop and self.trainer.global_step == (4 if where == "between epochs" else 6):
                raise RuntimeError("power cut")

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            with torch.no_grad():
                self.gain += 0.25
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            pass

    def run(module: Any, folder: str, resume: Any = None) -> None:
        steps = 4 if where == "between epochs" else 2  # an epoch has 4
        checkpoint = ModelCheckpoint(tmp_path / folder, "last", every_n_train_steps=steps, enable_version_counter=False)
        options = {"max_epochs": 3, "enable_checkpointing": True, "val_check_interval": 2}
        trainer(kind(), checkpoint, **options).fit(module, loader(TRAIN), loader(DATA), ckpt_path=resume)

    whole, stopped, resumed = Interrupted(), Interrupted(), Interrupted()
    run(whole, "whole")
    stopped.stop = True
    with pytest.raises(RuntimeError, match="power cut"):
        run(stopped, "stopped")
    run(resumed, "stopped", tmp_path / "stopped" / "last.ckpt")
    assert resumed.gain == whole.gain
    assert_same_state(resumed, whole)


class Holder(torch.nn.Module):
    value: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(0.0))


class Older(ScriptedModule):
    """As anomalib's modules were: thresholds of their own in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.image_threshold, self.pixel_threshold = Holder(), Holder()


@KINDS
def test_a_checkpoint_of_anomalib_0_3(kind: Any, tmp_path: Path) -> None:
    logs = np.log(TRAIN_SCORES.astype("f8")), np.log(TRAIN_MAPS.astype("f8"))
    older = {
        MinMaxNormalizationCallback: {"min": SCORES.min(), "max": SCORES.max()},
        CdfNormalizationCallback: {
            "image_mean": logs[0].mean(),
            "image_std": logs[0].std(ddof=1),
            "pixel_mean": logs[1].mean(0),
            "pixel_std": logs[1].std(0, ddof=1),
        },
    }[kind]
    entries = {f"normalization_metrics.{name}": torch.tensor(value) for name, value in older.items()}
    entries |= {"gain": torch.ones(()), "image_threshold.value": torch.tensor(1.5)}
    entries |= {"pixel_threshold.value": torch.tensor(1.25)}
    torch.save({"state_dict": entries, "pytorch-lightning_version": pl.__version__}, tmp_path / "anomalib.ckpt")

    outputs: Any = trainer(kind()).predict(Older(), loader(DATA), ckpt_path=tmp_path / "anomalib.ckpt")
    found = {name: torch.cat([entry[name] for entry in outputs]).numpy() for name in FIELDS}
    if kind is MinMaxNormalizationCallback:
        decided = SCORES.astype("f8"), MAPS.astype("f8")
        margin = (decided[0] - 1.5) / (SCORES.max() - SCORES.min())
        np.testing.assert_allclose(found["pred_scores"], np.clip(margin + 0.5, 0, 1), atol=2.0**-22)
    else:
        mean, std = older["image_mean"], older["image_std"]
        decided = (np.log(SCORES.astype("f8")) - mean) / std, (np.log(MAPS.astype("f8")) - mean) / older["pixel_std"]
    assert found["pred_labels"].tolist() == (decided[0] >= 1.5).tolist()
    assert found["pred_masks"][:, 0].tolist() == (decided[1] >= 1.25).tolist()


@KINDS
def test_a_checkpoint_of_anomalib_0_3_without_thresholds(kind: Any, tmp_path: Path) -> None:
    names = ("min", "max") if kind is MinMaxNormalizationCallback else ("image_mean", "image_std")
    entries = {names[0]: torch.tensor(0.5), names[1]: torch.tensor(2.0)}
    if kind is CdfNormalizationCallback:
        entries |= {"pixel_mean": torch.zeros(3, 3), "pixel_std": torch.ones(3, 3)}
    state = {f"normalization_metrics.{name}": value for name, value in entries.items()} | {"gain": torch.ones(())}
    torch.save({"state_dict": state, "pytorch-lightning_version": pl.__version__}, tmp_path / "anomalib.ckpt")
    callback, module = kind(), Loadable.load_from_checkpoint(tmp_path / "anomalib.ckpt")
    run = trainer(callback)
    with pytest.raises(NotFittedError, match="there is no image-level threshold to put"):
        run.predict(module, loader(DATA))
    callback.with_threshold(module, 1.25)  # and the pixels follow
    assert numbers(callback) == {"image": 1.25, "pixel": 1.25}
    assert callback.thresholds["pixel"].origin == "image"
    assert predictions(run, module, loader(DATA))["pred_masks"].shape == (9, 1, 3, 3)
    own = Loadable(threshold=1.5)  # of its images alone
    own.load_state_dict(state)
    run.predict(own, loader(DATA))
    assert numbers(callback) == {"image": 1.5, "pixel": 1.5}


def test_another_resolution_is_an_error_in_use_and_none_for_a_new_fit(tmp_path: Path) -> None:
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0))
    run.fit(module, loader(TRAIN), loader(DATA))
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = np.exp(RNG.normal(size=(9, 5, 4))).astype("f4")
    with pytest.raises(ResolutionError, match=r"shape \(3, 1, 5, 4\), but .* \(H, W\) = \(3, 3\)"):
        trainer(CdfNormalizationCallback()).predict(
            ScriptedModule(), loader(samples(SCORES, other)), ckpt_path=tmp_path / "a.ckpt"
        )
    resumed = ScriptedModule()
    larger = trainer(CdfNormalizationCallback(1.0), max_epochs=2)
    training = samples(SCORES, other)
    larger.fit(resumed, loader(training), loader(training), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.normalization_metrics.fit.resolution == (5, 4)


@KINDS
def test_averaged_weights_keep_their_statistics_in_checkpoints(kind: Any, tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import EMAWeightAveraging

    class Trained(ScriptedModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return -self.gain  # grows by the learning rate

    def run(module: Any, epochs: int, resume: Any = None) -> Any:
        callbacks = (EMAWeightAveraging(decay=0.5, use_buffers=False), kind())
        fitted = trainer(*callbacks, max_epochs=epochs)
        fitted.fit(module, loader(TRAIN), loader(DATA), ckpt_path=resume)
        return fitted

    class Watching(Trained):
        validated_with: list[float] = []  # noqa: RUF012

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.validated_with.append(self.gain.item())
            return super().validation_step(batch, batch_idx)

    Watching.validated_with = []
    whole = Watching()
    run(whole, 2).save_checkpoint(tmp_path / "a.ckpt")
    # They were collected with the averaged weights that validation used.
    gain = Watching.validated_with[-1]
    raw = TRAIN_SCORES if kind is CdfNormalizationCallback else SCORES
    found = parameters(whole)[0]
    first = np.log(gain * raw.astype("f8")).mean() if kind is CdfNormalizationCallback else gain * raw.min()
    assert found.item() == pytest.approx(first, rel=1e-6)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    for name, value in whole.normalization_metrics.state_dict().items():
        np.testing.assert_array_equal(state[f"normalization_metrics.{name}"].numpy(), value.numpy(), err_msg=name)
    part, resumed = Trained(), Trained()
    run(part, 1).save_checkpoint(tmp_path / "part.ckpt")
    run(resumed, 2, tmp_path / "part.ckpt")
    assert resumed.normalization_metrics.is_complete


@KINDS
def test_an_average_of_weights_that_comes_too_late_is_refused(kind: Any) -> None:
    from pytorch_lightning.callbacks import EMAWeightAveraging

    with pytest.raises(AnomnormError, match="list EMAWeightAveraging before it"):
        trainer(kind(), EMAWeightAveraging()).fit(ScriptedModule(), loader(TRAIN), loader(DATA))


@KINDS
def test_weights_that_change_after_the_last_validation_are_warned_about(kind: Any) -> None:
    from pytorch_lightning.callbacks import StochasticWeightAveraging

    run = trainer(kind(), StochasticWeightAveraging(swa_lrs=0.1), max_epochs=4)
    with pytest.warns(UserWarning, match="changes the weights after the last validation"):
        run.fit(ScriptedModule(), loader(TRAIN), loader(DATA))


@KINDS
def test_statistics_of_other_weights_do_not_stay(kind: Any) -> None:
    module, run = ScriptedModule(), trainer(kind())
    run.fit(module, loader(TRAIN), loader(DATA))
    with pytest.warns(UserWarning, match="the state dict holds no statistics of the .* belong to other weights"):
        module.load_state_dict(ScriptedModule().state_dict(), strict=False)
    with pytest.raises(NotFittedError, match="nothing has been fitted yet: run a validation"):
        run.predict(module, loader(DATA))
