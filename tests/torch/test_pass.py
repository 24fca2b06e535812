"""The pass over the normal data: what scores them, when, how many, and what is found out before the training (L3)."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from expected import moments
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import CSVLogger
from scripted_module import ScriptedModule, fitted, loader, parameters, samples, trainer
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torchmetrics.classification import BinaryAUROC

from anomnorm_core import AnomnormError, FitWarning, NotFittedError, OptionError, OutputError
from anomnorm_torch import CdfNormalizationCallback

RNG = np.random.default_rng(73)
SCORES = np.exp(RNG.normal(size=20)).astype("f4")
MAPS = np.exp(RNG.normal(size=(20, 2, 2))).astype("f4")
DATA = samples(SCORES)
VALIDATION = samples(np.exp(RNG.normal(size=7)).astype("f4"))
OURS: Any = object()  # the place of the callback among others
pytestmark = pytest.mark.clause("L3")


def fit(module: Any, *callbacks: Any, data: Any = None, validation: Any = None, **options: Any) -> Any:
    of_the_callback = {name: options.pop(name) for name in OPTIONS & options.keys()}
    callback = CdfNormalizationCallback(1.0, **of_the_callback)
    run = trainer(*(callback if each is OURS else each for each in callbacks or [OURS]), **options)
    run.fit(module, loader(DATA) if data is None else data, loader(VALIDATION) if validation is None else validation)
    return run


OPTIONS = {"step", "limit_batches", "every_n_validations", "calibration_loader", "source"}


def assert_fitted_on(module: Any, scores: np.ndarray, level: str = "image") -> None:
    assert fitted(module, level).valid == len(scores)
    np.testing.assert_allclose(parameters(module, level), moments(scores), rtol=1e-6, atol=1e-7)


# The step.


class OtherScale(ScriptedModule):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.outputs(batch)
        return outputs | {"pred_scores": 100 * outputs["pred_scores"]}


@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"step": "predict_step"}, 100.0)])
@pytest.mark.filterwarnings("ignore:.*below.*sigmas:anomnorm_core.FitWarning")
def test_the_step_is_that_of_validation_unless_another_is_named(options: Any, scale: float) -> None:
    module = OtherScale()
    fit(module, **options)
    assert_fitted_on(module, scale * SCORES)


@pytest.mark.clause("S9")
def test_scores_on_another_scale_than_those_of_validation_do_not_pass_the_fit_check() -> None:
    with pytest.warns(FitWarning):
        fit(OtherScale(), step="predict_step")


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize(
    ("step", "message"),
    [("score", "step='score': Streaming has no step of this name"), ("test_step", "takes a dataloader_iter")],
)
def test_a_step_that_does_not_take_a_batch_is_refused(step: str, message: str) -> None:
    class Streaming(ScriptedModule):
        def test_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            """Takes the batches itself."""

    with pytest.raises(OptionError, match=message):
        fit(Streaming(), step=step)


def test_the_arguments_of_steps_and_hooks_are_those_of_validation() -> None:
    class Asking(ScriptedModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if isinstance(batch, dict):  # and not those of both training loaders together
                return batch | {"score": batch["score"] + 10 * dataloader_idx}
            return batch

        def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            batch["score"] = batch["score"] + batch_idx

        def validation_step(self, batch: Any, batch_idx: int, scale: float = 3.0) -> Any:  # type: ignore[override]
            batch["score"] *= scale  # is not the index of a loader
            return self.outputs(batch)

    module = Asking()
    fit(module, data=[loader(DATA[:6]), loader(DATA[6:10])])
    index = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1])
    assert_fitted_on(module, 3 * (SCORES[:10] + index + 10 * (np.arange(10) >= 6)))
    assert torch.stack([sample["score"] for sample in DATA]).tolist() == SCORES.tolist()


def test_the_module_hooks_of_the_pass_are_those_of_the_duplicate() -> None:
    class Counting(ScriptedModule):
        counts = (0, 0, 0)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            first, *others = self.counts
            self.counts = (first + 1, *others)
            return batch

        def on_validation_batch_start(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.counts = (self.counts[0], self.counts[1] + 1, self.counts[2])

        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.counts = (self.counts[0], self.counts[1], self.counts[2] + 1)

    module = Counting()
    fit(module, num_sanity_val_steps=0)
    assert module.counts == (7 + 3, 3, 3)  # training and validation


def test_plain_objects_of_the_module_belong_to_the_duplicate() -> None:
    class Bank:
        def __init__(self) -> None:
            self.kept: list[float] = []
            self.last = torch.zeros(())

    class Remembering(ScriptedModule):
        def __init__(self) -> None:
            super().__init__()
            self.bank, self.others = Bank(), {"lock": threading.Lock(), "bank": Bank()}

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            for bank in (self.bank, self.others["bank"]):
                bank.kept.extend(batch["score"].tolist())  # type: ignore[union-attr]
                bank.last.fill_(batch["score"][-1])  # type: ignore[union-attr]
            return super().validation_step(batch, batch_idx, dataloader_idx)

    module = Remembering()
    fit(module, num_sanity_val_steps=0)
    expected = [sample["score"].item() for sample in VALIDATION]
    for bank in (module.bank, module.others["bank"]):
        assert (bank.kept, bank.last.item()) == (expected, expected[-1])  # type: ignore[union-attr]
    assert_fitted_on(module, SCORES)


def test_a_step_finds_the_logger_that_the_trainer_has_and_writes_nothing_to_it(tmp_path: Path) -> None:
    class Writing(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            assert isinstance(self.logger, CSVLogger)
            assert Path(self.logger.log_dir).parent.parent == tmp_path
            assert self.trainer.log_dir == self.logger.log_dir
            self.logger.log_metrics({"seen": 77.25})
            return super().validation_step(batch, batch_idx, dataloader_idx)

    logger = CSVLogger(tmp_path)
    fit(Writing(), num_sanity_val_steps=0, logger=logger)
    logger.save()
    assert Path(logger.experiment.metrics_file_path).read_text().count("77.25") == 3  # batches of the validation


def test_metrics_of_the_module_do_not_gather_the_scores_of_the_pass() -> None:
    gathered: list[int] = []

    class Measuring(ScriptedModule):
        def __init__(self) -> None:
            super().__init__()
            self.auroc = BinaryAUROC(thresholds=None)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            if self is not module:
                gathered.append(len(self.auroc.preds))  # type: ignore[arg-type]
            self.auroc.update(batch["score"], batch["label"])
            return self.outputs(batch)

    module = Measuring()
    fit(module, num_sanity_val_steps=0)
    assert set(gathered) == {0}
    assert len(module.auroc.preds) == 3  # type: ignore[arg-type]


# Callbacks of the user's.


class Scaling(pl.Callback):
    """Changes batches, and outputs, as pre- and postprocessors do."""

    def __init__(self, batch: float = 1.0, outputs: float = 1.0, *, inside: bool = False) -> None:
        self.factors, self.inside = (batch, outputs), inside
        self.calls: list[str] = []
        self.metric = BinaryAUROC(thresholds=None)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self.calls.append("start")
        if self.inside:
            batch["score"].mul_(self.factors[0])
        else:
            batch["score"] = batch["score"] * self.factors[0]

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.calls.append("end")
        self.metric.update(outputs["pred_scores"], batch["label"])
        outputs["pred_scores"] = outputs["pred_scores"] * self.factors[1]


@pytest.mark.parametrize(
    ("before", "after", "factor"),
    [
        ([Scaling(2.0)], [], 2.0),
        ([], [Scaling(2.0)], 2.0),
        ([Scaling(2.0, 3.0)], [Scaling(5.0, 7.0)], 30.0),  # what comes later changes the outputs too late
        ([LambdaCallback(on_validation_batch_start=lambda *given: given[2]["score"].mul_(4.0))], [], 4.0),
        ([LambdaCallback(on_train_batch_start=lambda *given: given[2]["score"].mul_(4.0))], [], 1.0),
    ],
)
def test_callbacks_change_batches_and_outputs_of_the_pass_as_those_of_validation(
    before: Any, after: Any, factor: float
) -> None:
    module = ScriptedModule()
    fit(module, *before, OURS, *after, num_sanity_val_steps=0, max_epochs=2)
    assert_fitted_on(module, factor * 2 * SCORES)  # after two epochs
    for callback in (*before, *after):
        if isinstance(callback, Scaling):
            assert callback.calls == ["start", "end"] * 6  # of two validations
            assert len(callback.metric.preds) == 6  # type: ignore[arg-type]


@pytest.mark.clause("L10")
def test_a_batch_that_is_changed_in_place_is_a_copy() -> None:
    data, module = [default_collate(DATA)], ScriptedModule()
    kept = DataLoader(data, batch_size=None)  # type: ignore[arg-type]  # gives the data themselves
    fit(module, Scaling(2.0, inside=True), OURS, data=kept, max_epochs=2)
    assert data[0]["score"].tolist() == SCORES.tolist()
    assert_fitted_on(module, 2 * 2 * SCORES)


def test_a_callback_that_makes_the_scores() -> None:
    @dataclasses.dataclass
    class Outputs:
        features: Any
        pred_score: Any = None

    class Featuring(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return Outputs(batch["score"])

    class Postprocessor(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            outputs.pred_score = outputs.features.square()

    module = Featuring()
    fit(module, Postprocessor(), OURS)
    assert_fitted_on(module, SCORES**2)


@pytest.mark.clause("L10")
def test_a_callback_runs_in_the_pass_and_keeps_nothing_of_it() -> None:
    shared: list[Any] = []

    class Drawing(pl.Callback):
        def __init__(self) -> None:
            self.seen = 0

        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch.rand(3)
            self.seen += 1
            shared.append(pl_module is module)

    drawn = []

    class Random(ScriptedModule):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            drawn.append(torch.rand(()).item())
            return 0.0 * self.gain

    for callbacks in ([Drawing(), OURS], [Drawing()]):
        torch.manual_seed(0)
        module = Random()
        fit(module, *callbacks, num_sanity_val_steps=0, max_epochs=2)
        assert callbacks[0].seen == 6
    assert drawn[:14] == drawn[14:]
    assert shared.count(False) == 1 + 2 * 7  # the trial, and two passes


def test_a_callback_that_changes_later_batches_only_is_asked_again() -> None:
    class Scaling(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx > 0:
                batch["score"] = 10 * batch["score"]

    module = ScriptedModule()
    fit(module, Scaling(), OURS)
    assert_fitted_on(module, np.concatenate([SCORES[:3], 10 * SCORES[3:]]))


def test_a_callback_that_changes_a_later_batch_in_place_leaves_the_data_as_they_are() -> None:
    class Scaling(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx > 0:
                batch["score"].mul_(10)

    module = ScriptedModule()
    batches = [default_collate(DATA[:3]), default_collate(DATA[3:6])]  # the pass reads these very tensors
    fit(module, Scaling(), OURS, calibration_loader=batches, max_epochs=2)
    gain = 2  # of the second epoch
    assert_fitted_on(module, gain * np.concatenate([SCORES[:3], 10 * SCORES[3:6]]))
    np.testing.assert_array_equal(batches[1]["score"], SCORES[3:6])


class Failing(pl.Callback):
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch_idx)  # type: ignore[attr-defined]


def test_a_callback_that_fails_is_named_before_the_training() -> None:
    module = ScriptedModule()
    with pytest.raises(AttributeError, match="seen") as caught:
        fit(module, OURS, Failing(), num_sanity_val_steps=0)
    assert "Failing.on_validation_batch_start, which CdfNormalizationCallback calls" in caught.value.__notes__[0]
    assert module.gain == 1.0


def test_a_callback_that_prepares_itself_when_validation_starts() -> None:
    class Prepared(Failing):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.seen: list[int] = []

        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx)
            batch["score"] = 2 * batch["score"]

    module, callback = ScriptedModule(), Prepared()
    fit(module, OURS, callback, num_sanity_val_steps=0)
    assert_fitted_on(module, 2 * SCORES)
    assert callback.seen == [0, 1, 2]


# How many batches, and when.


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"limit_batches": 2}, 6),
        ({"limit_batches": 0.5}, 9),  # of 7 batches
        ({"limit_batches": 0.01}, 3),
        ({"limit_batches": 4, "limit_train_batches": 1}, 12),
        ({"limit_batches": 1.0, "limit_train_batches": 1}, 20),
        ({"limit_batches": 1, "source": "validation", "limit_val_batches": 2}, 3),
        ({"fast_dev_run": 3, "limit_batches": 1.0}, 9),
        (
            {"calibration_loader": [default_collate(DATA[:3])] * 5, "limit_train_batches": 1},
            15,
        ),  # the limit is about other data
        ({"calibration_loader": [default_collate(DATA[:3])] * 5, "fast_dev_run": 2}, 6),
    ],
)
def test_limits(options: Any, count: int) -> None:
    module = ScriptedModule()
    fit(module, **options)
    assert fitted(module).valid == count


def test_a_share_of_a_stream_is_refused_before_the_training() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(DATA)

    module = ScriptedModule()
    with pytest.raises(OptionError, match=r"limit_batches=0\.5 of a loader without a length"):
        fit(module, data=loader(Stream()), limit_batches=0.5)  # type: ignore[arg-type]
    assert module.gain == 1.0


@pytest.mark.parametrize("limit", [True, 2])
def test_fast_dev_run_with_a_batch_size_of_one(limit: Any) -> None:
    module = ScriptedModule()
    labelled = samples(SCORES[:6], None, [1, 0, 1, 1, 0, 0])
    fit(module, data=loader(labelled, 1), fast_dev_run=limit)
    assert_fitted_on(module, SCORES[[1, 4]])  # more than it asks for: a deviation takes two normal samples


def test_every_nth_validation() -> None:
    class Means(ScriptedModule):
        def __init__(self) -> None:
            super().__init__()
            self.means: list[float] = []

        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.means.append(float(parameters(self)[0] - moments(SCORES)[0]))

    module = Means()
    fit(module, max_epochs=5, every_n_validations=2)
    assert np.exp(module.means) == pytest.approx([1, 1, 3, 3, 5], rel=1e-5)  # the gain grows with each epoch
    # Another training begins with a pass, and outside of one there is always one.
    callback = CdfNormalizationCallback(1.0, every_n_validations=4)
    run = trainer(callback)
    run.fit(module, loader(DATA), loader(VALIDATION))
    module.train_dataloader = lambda: loader(DATA)  # type: ignore[method-assign]
    with torch.no_grad():
        module.gain.fill_(20.0)
    run.validate(module, loader(VALIDATION), verbose=False)
    assert np.exp(module.means[5:]) == pytest.approx([6, 20], rel=1e-5)


# Which samples.


def test_samples_that_are_ignored_or_padding_are_left_out() -> None:
    labels = np.arange(20) % 4 - 1  # -1: ignored
    data = samples(SCORES, MAPS, labels)
    for index, sample in enumerate(data):
        sample["valid"] = torch.tensor(index < 17)
    module = ScriptedModule()
    fit(module, data=loader(data), validation=loader(samples(SCORES[:4], MAPS[:4])))
    own = (labels == 0) & (np.arange(20) < 17)
    assert_fitted_on(module, SCORES[own])
    np.testing.assert_allclose(parameters(module, "pixel"), moments(MAPS[own]), rtol=1e-6, atol=1e-7)


@pytest.mark.clause("L5")
def test_batches_without_outputs_are_skipped() -> None:
    class Skipping(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return None if batch_idx % 2 else self.outputs(batch)

    module = Skipping()
    fit(module)
    assert_fitted_on(module, SCORES[np.arange(20) // 3 % 2 == 0])


class Silent(ScriptedModule):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration_loader": loader([])}, r"its loader \(DataLoader\) gave no batch"),
        ({"calibration_loader": lambda: iter(())}, "is an iterator that has been read to its end"),
        ({"step": "predict_step"}, "predict_step returned None for each of 7 batches"),
        (
            {"calibration_loader": loader(samples(SCORES, None, [1, -1] * 10))},
            "of 20 samples none is normal: every sample is labelled anomalous",
        ),
    ],
)
def test_each_reason_for_having_nothing_to_fit_on_has_its_own_message(options: Any, message: str) -> None:
    nothing = "the pass over the normal data .* CdfNormalizationCallback has nothing to fit on"
    with pytest.raises(NotFittedError, match=f"{nothing}: .*{message}"):
        fit(Silent(), **options)


@pytest.mark.clause("S6")
def test_a_detector_that_knows_its_training_data_is_told_what_to_do() -> None:
    class Neighbour(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            known = torch.tensor(SCORES) if self.trained else torch.zeros(1)
            return {"pred_scores": (batch["score"][:, None] - known).abs().amin(1)}

        trained = True

    with pytest.raises(NotFittedError, match=r'none of 20 .* values can be fitted: 20 are zero.*source="validation"'):
        fit(Neighbour())


# What is found out before the training.


def mislead(kind: str) -> Any:
    class Misleading(ScriptedModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            if kind == "tuple":
                return batch["score"], batch["map"]
            if kind == "bare":
                return {"pred_scores": batch.flatten(1).amax(1)}
            return {"pred_scores": batch["score"]}

    return Misleading()


WHERE = "predict_step in the pass over the normal data that fits the statistics of CdfNormalizationCallback"


@pytest.mark.parametrize("sanity_steps", [0, 2])
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("tuple", OutputError, rf"{WHERE}: .*of type tuple, .*step=.*calibration_loader="),
        ("bare", AttributeError, "flatten"),
        ("without maps", OutputError, f"{WHERE} returns no anomaly maps, but validation_step does"),
    ],
)
def test_outputs_that_cannot_be_fitted_are_found_out_before_the_training(
    kind: str, error: Any, message: str, sanity_steps: int
) -> None:
    module, data = mislead(kind), loader(samples(SCORES, MAPS))
    with pytest.raises(error, match=message) as caught:
        fit(module, data=data, validation=data, step="predict_step", num_sanity_val_steps=sanity_steps)
    assert module.gain == 1.0
    if kind == "bare":
        assert WHERE in caught.value.__notes__[0]


@pytest.mark.parametrize("guarded", [False, True])
def test_a_detector_that_cannot_score_before_it_is_trained(guarded: bool) -> None:
    class Bank(ScriptedModule):
        """Fits itself when validation starts."""

        bank: Any = None

        def on_validation_start(self) -> None:
            if not self.trainer.sanity_checking:
                self.bank = torch.zeros(1)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            if guarded and self.trainer.sanity_checking:
                return None
            return {"pred_scores": batch["score"] + self.bank}

    module = Bank()
    fit(module, num_sanity_val_steps=2 if guarded else 0)
    assert_fitted_on(module, SCORES)


@pytest.mark.clause("L1")
def test_an_error_in_the_middle_of_the_pass_says_where_it_was() -> None:
    class Breaking(ScriptedModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                raise RuntimeError("camera unplugged")
            return self.outputs(batch)

    with pytest.raises(RuntimeError, match="camera unplugged") as caught:
        fit(Breaking(), step="predict_step")
    assert WHERE in caught.value.__notes__[0]


def test_labels_that_source_validation_needs_are_missed_before_the_training() -> None:
    module, unlabelled = ScriptedModule(), loader(samples(SCORES, None, False))
    with pytest.raises(NotFittedError, match=r"validation_step in the pass .* neither the step's outputs nor"):
        fit(module, validation=unlabelled, source="validation")
    assert module.gain == 1.0


def test_validation_data_that_can_be_read_once_are_refused_where_they_are_fitted_on() -> None:
    class Unlimited(ScriptedModule):
        def val_dataloader(self) -> Any:
            return (default_collate(DATA[i : i + 4]) for i in range(0, 20, 4))

    once = Unlimited().val_dataloader()
    with pytest.raises(AnomnormError, match=r"cannot read the validation data .*Let val_dataloader\(\) make"):
        fit(ScriptedModule(), validation=once, source="validation")
    module = Unlimited()
    callback = CdfNormalizationCallback(1.0, source="validation")
    trainer(callback, num_sanity_val_steps=0).fit(module, loader(DATA))
    assert_fitted_on(module, SCORES)
    assert len(module.emitted) == 5


def test_a_training_without_validation_is_not_tried() -> None:
    with pytest.warns(UserWarning, match="this training has none"):
        fit(mislead("tuple"), step="predict_step", limit_val_batches=0)
