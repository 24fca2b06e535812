"""CdfNormalizationCallback in real trainers, against NumPy float64 and math.erfc."""

import math
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expected import best_threshold, moments
from scripted_module import ScriptedModule, fitted, loader, parameters, predictions, samples, trainer

from anomnorm_core import InvalidScoreError, InvalidScoreWarning, NotFittedError, ResolutionError
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback, NormalizationCallback

RNG = np.random.default_rng(11)


def draw(count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    scores = np.exp(RNG.normal(shift, 0.5, size=count)).astype("f4")
    return scores, np.exp(RNG.normal(shift, 0.5, size=(count, 2, 3))).astype("f4")


TRAIN_SCORES, TRAIN_MAPS = draw(20)
TRAIN = samples(TRAIN_SCORES, TRAIN_MAPS)
VALIDATION_SCORES, VALIDATION_MAPS = draw(7)
VALIDATION = samples(VALIDATION_SCORES, VALIDATION_MAPS)
TEST_SCORES, TEST_MAPS = draw(6, 1.0)
TEST = samples(TEST_SCORES, TEST_MAPS)
Z_TOLERANCE = 2.0**-20  # a few float32 ulp of |z| < 8


def phi(z: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: math.erfc(-value / math.sqrt(2)) / 2)(z)


def fit(callback: CdfNormalizationCallback, module: ScriptedModule | None = None, **options: Any) -> tuple[Any, Any]:
    module, run = module or ScriptedModule(), trainer(callback, **options)
    run.fit(module, loader(TRAIN), loader(VALIDATION))
    return run, module


@pytest.mark.clause("L1", "L2", "L3", "S3")
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_statistics_come_from_the_training_data_and_the_weights_of_the_last_epoch(sanity_steps: int) -> None:
    _, module = fit(CdfNormalizationCallback(1.0), max_epochs=2, num_sanity_val_steps=sanity_steps)
    # The second epoch's validation ran with a gain of 2.
    for level, values in (("image", TRAIN_SCORES), ("pixel", TRAIN_MAPS)):
        found = parameters(module, level)
        np.testing.assert_allclose(found, moments(2 * values), rtol=1e-6, atol=1e-7)
    assert fitted(module).valid == len(TRAIN)
    assert fitted(module, "pixel").valid == len(TRAIN)


@pytest.mark.clause("L4", "N2", "N3")
@pytest.mark.parametrize("center", ["image", "pixel"])
def test_validation_leaves_z_scores_in_the_outputs(center: str) -> None:
    _, module = fit(CdfNormalizationCallback(1.0, center=center))
    (mean, std), (pixel_mean, pixel_std) = moments(TRAIN_SCORES), moments(TRAIN_MAPS)
    found = {name: torch.cat([entry[name] for entry in module.emitted]).numpy() for name in module.emitted[0]}
    np.testing.assert_allclose(found["pred_scores"], (np.log(VALIDATION_SCORES) - mean) / std, atol=Z_TOLERANCE)
    origin = mean if center == "image" else pixel_mean
    expected = ((np.log(VALIDATION_MAPS) - origin) / pixel_std)[:, None]
    np.testing.assert_allclose(found["anomaly_maps"], expected, atol=Z_TOLERANCE)


@pytest.mark.clause("N3", "N4")
def test_unit_scores_labels_and_masks() -> None:
    run, module = fit(CdfNormalizationCallback(1.5, pixel_threshold=4.0))
    gain = module.gain.item()
    found = predictions(run, module, loader(TEST, 4))
    (mean, std), (_, pixel_std) = moments(TRAIN_SCORES), moments(TRAIN_MAPS)
    z = (np.log(gain * TEST_SCORES.astype("f8")) - mean) / std
    z_maps = ((np.log(gain * TEST_MAPS.astype("f8")) - mean) / pixel_std)[:, None]
    np.testing.assert_allclose(found["pred_scores"], phi(z - 1.5), atol=Z_TOLERANCE)
    np.testing.assert_allclose(found["anomaly_maps"], phi(z_maps - 4.0), atol=Z_TOLERANCE)
    assert found["pred_labels"].tolist() == (z >= 1.5).tolist()
    assert found["pred_masks"].tolist() == (z_maps >= 4.0).tolist()
    assert found["pred_masks"].any()
    assert not found["pred_masks"].all()


@pytest.mark.clause("N3b", "L3", "L4", "T2")
@pytest.mark.parametrize("by_name", [False, True])
def test_log_likelihoods_from_validation_to_labels(by_name: bool, tmp_path: Path) -> None:
    """The negative log-likelihood of a Gaussian is a score of any sign: here it is negative throughout."""

    def score(x: np.ndarray) -> np.ndarray:
        return (0.5 * (x**2).sum(-1) + 8 * math.log(math.sqrt(2 * math.pi) * 1e-3)).astype("f4")  # of 8 variables

    def make(threshold: float | None = None) -> Any:
        if by_name:
            return NormalizationCallback("normal", threshold)
        return CdfNormalizationCallback(threshold, transform="identity")

    rng, labels = np.random.default_rng(8), np.repeat([0, 1], [12, 6])
    train, normal, anomalous = score(rng.normal(size=(30, 8))), rng.normal(size=(12, 8)), 2 * rng.normal(size=(6, 8))
    scores = np.concatenate([score(normal), score(anomalous)])
    assert max(train.max(), scores.max()) < 0
    callback, module = make(), ScriptedModule()
    run = trainer(callback)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InvalidScoreWarning)  # nothing is left out
        run.fit(module, loader(samples(train)), loader(samples(scores, labels=labels)))
    wide = train.astype("f8")
    np.testing.assert_allclose(parameters(module), [wide.mean(), wide.std(ddof=1)], rtol=1e-6)
    z = torch.cat([entry["pred_scores"] for entry in module.emitted]).numpy()
    np.testing.assert_allclose(z, (scores - wide.mean()) / wide.std(ddof=1), atol=Z_TOLERANCE)
    with torch.no_grad():
        module.gain.fill_(1.0)  # as it was in the validation
    found = predictions(run, module, loader(samples(scores)))
    t = best_threshold(scores, labels == 1)
    assert found["pred_labels"].tolist() == (scores >= t).tolist()
    np.testing.assert_allclose(found["pred_scores"], phi((scores - t) / wide.std(ddof=1)), atol=Z_TOLERANCE)
    assert callback.fit_check is not None
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = predictions(trainer(make()), ScriptedModule(), loader(samples(scores)), ckpt_path=tmp_path / "a.ckpt")
    assert again["pred_labels"].shape == scores.shape


@pytest.mark.clause("L3")
def test_samples_labelled_anomalous_are_left_out() -> None:
    labels = [0, 1] * 10
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0))
    run.fit(module, loader(samples(TRAIN_SCORES, TRAIN_MAPS, labels)), loader(VALIDATION))
    found = parameters(module)
    np.testing.assert_allclose(found, moments(TRAIN_SCORES[::2]), rtol=1e-6, atol=1e-7)
    assert fitted(module).invalid == 0


@pytest.mark.clause("L3")
def test_source_validation_fits_on_the_normal_validation_samples() -> None:
    labels = [0, 0, 1, 0, 0, 0, 1]
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0, source="validation"))
    run.validate(module, loader(samples(VALIDATION_SCORES, None, labels)), verbose=False)
    normal = VALIDATION_SCORES[np.array(labels) == 0]
    found = parameters(module)
    np.testing.assert_allclose(found, moments(normal), rtol=1e-6, atol=1e-7)


@pytest.mark.clause("L3")
def test_source_validation_needs_labels() -> None:
    class Unlabelled(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return {"pred_scores": batch}

    run = trainer(CdfNormalizationCallback(1.0, source="validation"))
    with pytest.raises(NotFittedError, match=r"neither the step's outputs nor the batch have a 'label'"):
        run.validate(Unlabelled(), torch.utils.data.DataLoader(torch.ones(4)), verbose=False)


@pytest.mark.clause("L3")
def test_without_training_data_there_is_a_clear_error() -> None:
    with pytest.raises(NotFittedError, match=r'this run has none.*source="validation"'):
        trainer(CdfNormalizationCallback(1.0)).validate(ScriptedModule(), loader(VALIDATION), verbose=False)


@pytest.mark.clause("L3")
def test_without_training_data_fitted_statistics_stay() -> None:
    _, module = fit(CdfNormalizationCallback(1.0))
    before = parameters(module)
    trainer(CdfNormalizationCallback(1.0)).validate(module, loader(VALIDATION), verbose=False)
    assert parameters(module) == before


@pytest.mark.clause("L3")
@pytest.mark.parametrize(("limit", "count"), [(2, 6), (0.5, 9)])  # of 7 batches of 3
def test_limit_train_batches_limits_the_collection(limit: Any, count: int) -> None:
    _, module = fit(CdfNormalizationCallback(1.0), limit_train_batches=limit)
    assert fitted(module).valid == count


@pytest.mark.clause("L3")
def test_the_last_incomplete_batch_counts_although_training_drops_it() -> None:
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0))
    run.fit(module, loader(TRAIN, 6, drop_last=True, shuffle=True), loader(VALIDATION))
    assert fitted(module).valid == len(TRAIN)


class Noisy(ScriptedModule):
    """Everything that a pass over the training data could disturb: dropout, buffers, lists, logs, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.norm = torch.nn.BatchNorm1d(1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.losses: list[float] = []
        self.passed: list[int] = []
        self.features: dict[str, torch.Tensor] = {}
        self.layer[0].register_forward_hook(self._remember())

    def _remember(self) -> Any:
        # As feature extractors do: a closure over self, which a copy of the module would share.
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self.features["first"] = output

        return hook

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = (self.norm(self.layer(batch["score"][:, None])) - torch.rand(()) + np.random.rand()).square().mean()  # noqa: NPY002
        self.losses.append(loss.item())
        return loss

    def outputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.layer(batch["score"][:, None])
        self.steps += 1
        self.passed.append(len(batch["score"]))
        torch.rand(3)
        scores = self.features["first"].abs().sum(1) + 0.1
        self.log("mean_score", scores.mean(), on_step=False, on_epoch=True)
        return {"pred_scores": scores}

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return self.outputs(batch)


def _train_noisy(*callbacks: Any) -> tuple[Noisy, Any]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    module = Noisy()
    generator = torch.Generator().manual_seed(3)
    run = trainer(*callbacks, max_epochs=3, val_check_interval=2)
    run.fit(module, loader(TRAIN, 4, shuffle=True, generator=generator), loader(VALIDATION))
    return module, run


@pytest.mark.clause("L3", "L10")
@pytest.mark.filterwarnings("ignore:the final weights are")
def test_the_collection_leaves_no_trace_in_module_and_training() -> None:
    plain, plain_run = _train_noisy()
    observed, observed_run = _train_noisy(CdfNormalizationCallback(1.0, log_prefix=None))
    assert observed.losses == plain.losses
    assert observed.passed == plain.passed
    assert observed.steps == plain.steps
    assert observed.training == plain.training
    assert observed_run.logged_metrics == plain_run.logged_metrics
    assert observed_run.global_step == plain_run.global_step
    own = {name: value for name, value in observed.state_dict().items() if "normalization_metrics" not in name}
    assert own.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in own.items())


@pytest.mark.clause("L3")
def test_hooks_of_the_duplicate_write_into_the_duplicate() -> None:
    module = Noisy()
    duplicate = CdfNormalizationCallback._create_inference_model(module)
    duplicate.layer(torch.ones(2, 1))
    assert "first" in duplicate.features
    assert "first" not in module.features


@pytest.mark.clause("L3")
def test_the_duplicate_shares_weights_and_nothing_else() -> None:
    module = Noisy().train()
    duplicate = CdfNormalizationCallback._create_inference_model(module)
    assert type(duplicate) is Noisy
    assert duplicate is not module
    for (name, mine), (other, its) in zip(module.named_parameters(), duplicate.named_parameters(), strict=True):
        assert (name, mine.data_ptr()) == (other, its.data_ptr())
    assert not any(part.training for part in duplicate.modules())
    assert all(part.training for part in module.modules())
    duplicate.steps += 5
    duplicate.passed.append(1)
    assert module.steps == 0
    assert module.passed == []
    duplicate.log("anything", 1.0)  # needs a trainer on a module of its own, and does nothing here


@pytest.mark.clause("L3")
@pytest.mark.filterwarnings("ignore:the final weights are")
def test_persistent_workers_of_the_training_loader_are_left_alone() -> None:
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0), val_check_interval=2)
    run.fit(module, loader(TRAIN, 4, num_workers=1, persistent_workers=True), loader(VALIDATION))
    assert run.global_step == 5
    assert fitted(module).valid == len(TRAIN)


@pytest.mark.clause("L3")
def test_no_second_trainer_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_lightning as pl

    monkeypatch.chdir(tmp_path)
    run, module = fit(CdfNormalizationCallback(1.0))
    created: list[Any] = []
    monkeypatch.setattr(pl.Trainer, "__init__", lambda self, *args, **kwargs: created.append(self))
    run.validate(module, loader(VALIDATION), verbose=False)
    assert created == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.clause("L3")
def test_a_progress_bar_shows_the_collection(capfd: pytest.CaptureFixture[str]) -> None:
    fit(CdfNormalizationCallback(1.0), enable_progress_bar=True)
    assert "Collecting normal scores" in capfd.readouterr().err
    fit(CdfNormalizationCallback(1.0), enable_progress_bar=False)
    assert "Collecting normal scores" not in capfd.readouterr().err


@pytest.mark.clause("L1")
def test_an_exception_during_the_collection_leaves_the_old_statistics() -> None:
    class Failing(ScriptedModule):
        fails = False

        def calibration_step(self, batch: Any, batch_idx: int) -> Any:
            if self.fails and batch_idx == 3:
                raise RuntimeError("camera unplugged")
            return self.outputs(batch)

    run, module = fit(CdfNormalizationCallback(1.0), Failing())
    before = {name: value.clone() for name, value in module.normalization_metrics.state_dict().items()}
    module.fails = True
    with pytest.raises(RuntimeError, match="camera unplugged"):
        trainer(CdfNormalizationCallback(1.0, step="calibration_step")).fit(module, loader(TRAIN), loader(VALIDATION))
    for name, value in module.normalization_metrics.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name].numpy())
    module.fails = False
    assert predictions(run, module, loader(TEST))["pred_scores"].shape == (6,)


@pytest.mark.clause("N6", "S6")
def test_zero_and_nan_scores() -> None:
    scores = np.concatenate([TRAIN_SCORES, np.float32([0.0, math.nan])])
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, loader(samples(scores)), loader(samples(VALIDATION_SCORES)))
    messages = [str(warning.message) for warning in caught if warning.category is InvalidScoreWarning]
    (message,) = messages
    assert message.startswith("of 22 image-level values 1 is zero and 1 NaN. They were left out of the statistics; ")
    assert 'source="validation"' in message
    found = parameters(module)
    np.testing.assert_allclose(found, moments(TRAIN_SCORES), rtol=1e-6, atol=1e-7)
    with pytest.warns(InvalidScoreWarning, match="1 image scores of this run are NaN; they stay NaN"):
        unit = predictions(run, module, loader(samples([0.0, math.nan, 1e30])))
    np.testing.assert_array_equal(unit["pred_scores"], [0.0, math.nan, 1.0])
    assert unit["pred_labels"].tolist() == [False, False, True]


@pytest.mark.clause("S8")
def test_other_resolution_is_an_error() -> None:
    run, module = fit(CdfNormalizationCallback(1.0))
    with pytest.raises(ResolutionError, match=r"\(H, W\) = \(2, 3\)"):
        run.predict(module, loader(samples(TEST_SCORES, np.ones((6, 4, 3)))))


@pytest.mark.clause("L3")
def test_plain_iterables_and_iterable_datasets_are_collected_too() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(TRAIN)

    class Batches:
        def __iter__(self) -> Any:
            return (torch.utils.data.default_collate(TRAIN[i : i + 5]) for i in range(0, 20, 5))

    for data in (Batches(), loader(Stream())):  # type: ignore[arg-type]
        module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0))
        run.fit(module, data, loader(VALIDATION))
        assert fitted(module).valid == len(TRAIN)


@pytest.mark.clause("L3", "L10")
@pytest.mark.filterwarnings("ignore:the final weights are")
def test_a_loader_that_is_its_own_iterator_keeps_its_place() -> None:
    class OwnIterator:
        def __iter__(self) -> Any:
            self.position = 0
            return self

        def __len__(self) -> int:
            return 5

        def __next__(self) -> Any:
            if self.position == len(self):
                raise StopIteration
            self.position += 1
            return torch.utils.data.default_collate(TRAIN[4 * self.position - 4 : 4 * self.position])

    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0), val_check_interval=2)
    run.fit(module, OwnIterator(), loader(VALIDATION))
    assert run.global_step == 5
    assert fitted(module).valid == len(TRAIN)


@pytest.mark.clause("L3")
def test_a_stream_without_end_is_read_for_as_many_batches_as_lie_between_validations() -> None:
    class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            while True:
                yield from TRAIN

    options = {"max_steps": 4, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0), **options)
    with pytest.warns(UserWarning, match="reads the first 2 batches of a loader without a length"):
        run.fit(module, loader(Endless(), 4), loader(VALIDATION))  # type: ignore[arg-type]
    assert fitted(module).valid == 8


class Store:
    """A hook that is an object."""

    def __init__(self, features: dict[str, torch.Tensor]) -> None:
        self.features = features

    def __call__(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        self.features["last"] = output


@pytest.mark.clause("L3")
@pytest.mark.parametrize("kind", ["closure", "default", "object", "method", "weakref"])
def test_hooks_of_every_kind_store_where_the_duplicate_looks(kind: str) -> None:
    class Extractor(ScriptedModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 4)
            self.features: dict[str, torch.Tensor] = {}
            reference = weakref.ref(self)
            hooks: dict[str, Any] = {
                "closure": lambda _m, _i, output: self.features.update(last=output),
                "default": lambda _m, _i, output, features=self.features: features.update(last=output),
                "object": Store(self.features),
                "method": self.remember,
                "weakref": lambda _m, _i, output: reference().features.update(last=output),
            }
            self.layer.register_forward_hook(hooks[kind])

        def remember(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self.features["last"] = output

    module = Extractor()
    module.layer(torch.zeros(1, 1))
    before = module.features["last"]
    duplicate = CdfNormalizationCallback._create_inference_model(module)
    output = duplicate.layer(torch.ones(3, 1))
    assert duplicate.features["last"] is output
    assert module.features["last"] is before


@pytest.mark.clause("L3")
def test_steps_may_take_fewer_arguments_or_keywords() -> None:
    class Plain(ScriptedModule):
        def calibration_step(self, batch: Any, *, scale: float = 1.0) -> Any:
            return {"pred_scores": batch["score"] * scale}

    module = Plain()
    trainer(CdfNormalizationCallback(1.0, step="calibration_step")).fit(
        module, loader(TRAIN), loader(samples(VALIDATION_SCORES))
    )
    assert fitted(module).valid == len(TRAIN)


@pytest.mark.clause("L3")
def test_loggers_do_not_see_the_collection(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    class Logging(ScriptedModule):
        def calibration_step(self, batch: Any, batch_idx: int) -> Any:
            self.logger.log_metrics({"from_calibration": 1.0})  # type: ignore[union-attr]
            return self.outputs(batch)

    logger = CSVLogger(tmp_path)
    trainer(CdfNormalizationCallback(1.0, step="calibration_step"), logger=logger).fit(
        Logging(), loader(TRAIN), loader(VALIDATION)
    )
    assert not any("from_calibration" in row for row in logger.experiment.metrics)


@pytest.mark.clause("S6")
def test_training_data_without_a_normal_sample_is_an_error_that_says_so() -> None:
    with pytest.raises(NotFittedError, match="every sample is labelled anomalous"):
        trainer(CdfNormalizationCallback(1.0)).fit(
            ScriptedModule(), loader(samples(TRAIN_SCORES, None, [1] * 20)), loader(VALIDATION)
        )


@pytest.mark.clause("T1")
def test_a_modules_own_threshold_that_is_no_number_is_refused_before_the_first_batch() -> None:
    module = ScriptedModule(threshold=math.nan)
    run = trainer(CdfNormalizationCallback())
    run.fit(module, loader(TRAIN), loader(VALIDATION))
    with pytest.raises(NotFittedError, match="image-level threshold of ScriptedModule is nan"):
        run.predict(module, loader(TEST))


def test_weight_averaging_beside_the_callback() -> None:
    from pytorch_lightning.callbacks import EMAWeightAveraging

    module = ScriptedModule()
    callbacks = (EMAWeightAveraging(use_buffers=False), CdfNormalizationCallback(1.0))
    trainer(*callbacks).fit(module, loader(TRAIN), loader(VALIDATION))
    assert fitted(module).valid == len(TRAIN)


@pytest.mark.clause("S6")
def test_invalid_values_are_warned_about_once_in_a_training() -> None:
    scores = np.concatenate([TRAIN_SCORES, np.float32([0.0])])
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0), max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, loader(samples(scores)), loader(samples(VALIDATION_SCORES)))
    assert len([warning for warning in caught if warning.category is InvalidScoreWarning]) == 1


@pytest.mark.clause("S6", "L1")
@pytest.mark.parametrize("kind", [CdfNormalizationCallback, MinMaxNormalizationCallback])
def test_a_fit_that_loses_more_than_a_third_is_an_error_also_after_a_warning(kind: Any) -> None:
    scores = np.float32([1.0, 2.0, 3.0, 5.0, math.nan, 2e38, 2e38, 2e38, 2e38])  # the gain of the second epoch is 2
    module, run = ScriptedModule(), trainer(kind(0.0), max_epochs=2)
    with (
        pytest.warns(InvalidScoreWarning, match="of 9 image-level values 1 is NaN") as caught,
        pytest.raises(InvalidScoreError, match=r"^5 of 9 image-level values .* \(1 is NaN and 4 infinite\)"),
    ):
        run.fit(module, loader(samples(scores)), loader(samples(scores)))
    assert [each.category for each in caught].count(InvalidScoreWarning) == 1
    assert (fitted(module).valid, fitted(module).invalid) == (8, 1)  # that of the first epoch


@pytest.mark.clause("S6")
@pytest.mark.parametrize("source", ["train", "validation"])
def test_zeros_and_negative_scores_are_counted_apart_and_have_their_remedies(source: str) -> None:
    # 93 of 200 have no logarithm: 60 zeros and 33 negative ones, of the maps two zeros and one NaN at each pixel.
    scores = np.concatenate([np.exp(RNG.normal(size=107)), np.zeros(60), -np.exp(RNG.normal(size=33))]).astype("f4")
    maps = np.resize(TRAIN_MAPS, (200, 2, 3))
    maps[3:5], maps[7] = -0.0, math.nan
    data = samples(scores, maps)
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0, source=source))
    expected = "of 200 image-level values 60 are zero and 33 negative; of 1200 pixel-level values 12 are zero and 6 NaN"
    with pytest.warns(InvalidScoreWarning, match=expected) as caught:
        run.fit(module, loader(data, 50), loader(data, 50))
    (text,) = (str(each.message) for each in caught if "200" in str(each.message))
    assert ("source=" in text) == (source == "train")
    assert [fitted(module, level).invalid for level in ("image", "pixel")] == [93, 18]
    assert [fitted(module, level).valid for level in ("image", "pixel")] == [107, 197]
    more = samples(np.concatenate([scores[:107], scores[107:167], -scores[:84]]))
    with pytest.raises(InvalidScoreError, match=r"^84 of 251 .* exp\(score\) for example"):
        trainer(CdfNormalizationCallback(1.0, source=source)).fit(ScriptedModule(), loader(more, 50), loader(more, 50))


@pytest.mark.clause("L3")
def test_a_failing_train_dataloader_is_named() -> None:
    class Failing(ScriptedModule):
        def train_dataloader(self) -> Any:
            raise AttributeError("no attribute 'training_set'")

    with pytest.raises(NotFittedError, match=r"train_dataloader\(\) failed with AttributeError.*training_set"):
        trainer(CdfNormalizationCallback(1.0)).validate(Failing(), loader(VALIDATION), verbose=False)
