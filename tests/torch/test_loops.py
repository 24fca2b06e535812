"""The callbacks in every kind of loop that a Trainer runs, against NumPy (clauses L1, L2, L4, L5)."""

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from expected import moments
from scripted_module import ScriptedModule, fitted, loader, numbers, parameters, predictions, samples, trainer

from anomnorm_core import OptionError
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

RNG = np.random.default_rng(41)
TRAIN_SCORES, TRAIN_MAPS = np.exp(RNG.normal(size=12)).astype("f4"), np.exp(RNG.normal(size=(12, 3, 3))).astype("f4")
TRAIN = samples(TRAIN_SCORES, TRAIN_MAPS)
LABELS = np.array([0, 1, 0, 1, 0, 0, 1, 0, 0])
MASKS = RNG.random((9, 3, 3)) < 0.4 * LABELS[:, None, None]
SCORES = np.exp(RNG.normal(size=9) + LABELS).astype("f4")
MAPS = np.exp(RNG.normal(size=(9, 3, 3)) + MASKS).astype("f4")
DATA = samples(SCORES, MAPS, LABELS, MASKS)
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])


def expected(kind: Any, gain: float = 1.0, scores: np.ndarray = SCORES, maps: np.ndarray = MAPS) -> list[Any]:
    """The statistics of the image and the pixel level."""
    if kind is MinMaxNormalizationCallback:
        return [(gain * values.min(), gain * values.max()) for values in (scores, maps)]
    return [moments(gain * values.astype("f8")) for values in (TRAIN_SCORES, TRAIN_MAPS)]


def assert_fitted(module: Any, statistics: list[Any]) -> None:
    for level, pair in zip(("image", "pixel"), statistics, strict=True):
        np.testing.assert_allclose(parameters(module, level), pair, rtol=1e-6, atol=1e-7)


@pytest.mark.clause("L1")
@KINDS
def test_several_validation_loaders_are_one_run(kind: Any) -> None:
    whole, parts = kind(), kind()
    trainer(whole).fit(ScriptedModule(), loader(TRAIN), loader(DATA))
    module = ScriptedModule()
    trainer(parts).fit(module, loader(TRAIN), {"good": loader(DATA[:2]), "bad": [loader(DATA[2:3]), loader(DATA[3:])]})
    assert_fitted(module, expected(kind))
    assert numbers(parts) == numbers(whole)


@pytest.mark.clause("L4")
@KINDS
@pytest.mark.parametrize("stage", ["test", "predict"])
def test_several_loaders_are_normalized(kind: Any, stage: str) -> None:
    class Several(ScriptedModule):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.outputs(batch)

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.outputs(batch)

        def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            tested.append(outputs)

    tested: list[Any] = []
    module, run = Several(), trainer(kind())
    run.fit(module, loader(TRAIN), loader(DATA))
    one = predictions(run, module, loader(DATA))
    if stage == "predict":
        outputs: Any = run.predict(module, [loader(DATA[:4]), loader(DATA[4:])])
        tested = [entry for part in outputs for entry in part]
    else:
        run.test(module, [loader(DATA[:4]), loader(DATA[4:])], verbose=False)
    for name in ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks"):
        assert torch.cat([entry[name] for entry in tested]).numpy().tolist() == one[name].tolist(), name


@pytest.mark.clause("L5")
@KINDS
def test_batches_without_maps_or_without_scores(kind: Any) -> None:
    # Scores alone, then maps alone: their scores are the maxima of the maps.
    data = samples(SCORES[:5], None, LABELS[:5]), samples(None, MAPS[5:], LABELS[5:])
    module, run = ScriptedModule(), trainer(kind(0.5))
    run.fit(module, loader(TRAIN), [loader(data[0]), loader(data[1])])
    scores = np.concatenate([SCORES[:5], MAPS[5:].max(axis=(1, 2))])
    assert_fitted(module, expected(kind, scores=scores, maps=MAPS[5:]))
    found = predictions(run, module, loader(data[1]))
    assert found["anomaly_maps"].shape == (4, 1, 3, 3)
    assert "anomaly_maps" not in predictions(run, module, loader(data[0]))


@KINDS
def test_gradient_accumulation(kind: Any) -> None:
    module, run = ScriptedModule(), trainer(kind(), accumulate_grad_batches=3, max_epochs=2)
    run.fit(module, loader(TRAIN), loader(DATA))
    assert run.global_step == 4  # of 8 batches, the last of an epoch always steps
    assert_fitted(module, expected(kind, gain=2.0))


@KINDS
def test_fast_dev_run(kind: Any) -> None:
    callback, module = kind(), ScriptedModule()
    run = trainer(callback, fast_dev_run=2)
    run.fit(module, loader(TRAIN), loader(DATA, 4))
    assert set(callback.thresholds) == {"image", "pixel"}
    count = fitted(module).valid
    assert count == (8 if kind is MinMaxNormalizationCallback else 6)  # two batches
    assert len(run.predict(module, loader(DATA))) == 2


@pytest.mark.clause("L1")
@KINDS
def test_validation_several_times_in_an_epoch(kind: Any) -> None:
    class Growing(ScriptedModule):
        def on_train_batch_end(self, *_: Any) -> None:
            with torch.no_grad():
                self.gain += 1.0

        def on_train_epoch_end(self) -> None:
            pass

        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                assert_fitted(self, expected(kind, gain=self.gain.item()))
                gains.append(self.gain.item())

    gains: list[float] = []
    trainer(kind(), val_check_interval=0.5, max_epochs=2).fit(Growing(), loader(TRAIN), loader(DATA))
    assert gains == [3.0, 5.0, 7.0, 9.0]


@pytest.mark.clause("L1")
@KINDS
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_of_a_validation_leaves_the_state_usable(kind: Any, error: Any) -> None:
    class Failing(ScriptedModule):
        fails = False

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            if self.fails and batch_idx == 2:
                raise error("camera unplugged")
            return super().validation_step(batch, batch_idx, dataloader_idx)

    module, callback = Failing(), kind()
    run = trainer(callback)
    run.fit(module, loader(TRAIN), loader(DATA))
    before, thresholds = predictions(run, module, loader(DATA)), numbers(callback)
    module.fails = True
    other = samples(3 * TRAIN_SCORES, 3 * TRAIN_MAPS)
    with pytest.raises((error, SystemExit)):
        trainer(callback).fit(module.train(), loader(other), loader(DATA[:7]))
    after = predictions(trainer(callback), module, loader(DATA))
    for name, values in before.items():
        assert after[name].tolist() == values.tolist(), name
    assert numbers(callback) == thresholds
    # And a new run starts from nothing.
    module.fails = False
    with torch.no_grad():
        module.gain.fill_(1.0)
    trainer(callback).fit(module.train(), loader(TRAIN), loader(DATA))
    assert_fitted(module, expected(kind))
    assert numbers(callback) == pytest.approx(thresholds, rel=1e-12)


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def train_dataloader(self) -> Any:
        self.asked += 1
        return loader(TRAIN, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Any:
        return loader(DATA)

    def test_dataloader(self) -> Any:
        return loader(DATA)

    predict_dataloader = val_dataloader


@pytest.mark.clause("L3")
@KINDS
def test_a_datamodule(kind: Any) -> None:
    module, run, data = ScriptedModule(), trainer(kind()), Data()
    run.fit(module, datamodule=data)
    assert_fitted(module, expected(kind))
    assert data.asked == 1
    run.test(module, datamodule=data, verbose=False)
    with torch.no_grad():
        module.gain.fill_(4.0)
    run.validate(module, datamodule=data, verbose=False)  # trains nothing, and still fits on the training data
    assert_fitted(module, expected(kind, gain=4.0))


@pytest.mark.clause("L3")
@KINDS
def test_loaders_of_the_module(kind: Any) -> None:
    class Own(ScriptedModule):
        def train_dataloader(self) -> Any:
            return loader(TRAIN)

        def val_dataloader(self) -> Any:
            return loader(DATA)

    module, run = Own(), trainer(kind())
    run.validate(module, verbose=False)
    assert_fitted(module, expected(kind))
    run.fit(module)
    assert_fitted(module, expected(kind))


@pytest.mark.clause("L1", "L3")
@KINDS
def test_limits_and_several_training_loaders(kind: Any) -> None:
    from pytorch_lightning.utilities.combined_loader import CombinedLoader

    class Combined(ScriptedModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return 0.0 * self.gain

    both = CombinedLoader({"a": loader(TRAIN[:5]), "b": [loader(TRAIN[5:])]}, "max_size")
    module = Combined()
    trainer(kind(), limit_val_batches=2).fit(module, both, loader(DATA))
    count = fitted(module).valid
    assert count == (6 if kind is MinMaxNormalizationCallback else len(TRAIN))


@pytest.mark.clause("L3")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_the_share_of_a_stream_that_knows_its_length() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(TRAIN)

        def __len__(self) -> int:
            return len(TRAIN)

    module = ScriptedModule()
    trainer(CdfNormalizationCallback(0.5), limit_train_batches=0.5).fit(module, loader(Stream(), 2), loader(DATA))  # type: ignore[arg-type]
    assert fitted(module).valid == 6


@KINDS
def test_a_threshold_that_is_changed_on_the_callback_counts_from_the_next_stage(kind: Any) -> None:
    module, callback = ScriptedModule(), kind()
    run = trainer(callback)
    run.fit(module, loader(TRAIN), loader(DATA))
    callback.threshold = 1  # an integer, too
    run.predict(module, loader(DATA))
    assert numbers(callback) == {"image": 1.0, "pixel": 1.0}
    callback.threshold = "typo"
    with pytest.raises(OptionError, match="threshold='typo'"):
        run.predict(module, loader(DATA))
