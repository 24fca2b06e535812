"""Which data ``source="auto"`` fits on, in real trainers (clause L3)."""

import logging
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from expected import moments
from scripted_module import ScriptedModule, fitted, loader, parameters, samples, trainer

from anomnorm_core import NotFittedError, OptionError
from anomnorm_torch import CdfNormalizationCallback
from anomnorm_torch.normal_data import ENOUGH_NORMALS

pytestmark = pytest.mark.clause("L3")

RNG = np.random.default_rng(41)
TRAINING = np.exp(RNG.normal(size=30)).astype("f4")
VALIDATION = np.exp(RNG.normal(size=16)).astype("f4")


def labels(normals: int) -> np.ndarray:
    return (np.arange(len(VALIDATION)) >= normals).astype(int)


class Validated(ScriptedModule):
    """Validates with other data in each epoch, which are labelled or not."""

    def __init__(self, *epochs: Any) -> None:
        super().__init__()
        self.epochs = epochs
        self.fits: list[tuple[int, list[np.ndarray]]] = []

    def val_dataloader(self) -> Any:
        given = self.epochs[min(self.current_epoch, len(self.epochs) - 1)]
        return [loader(samples(VALIDATION, None, each)) for each in (given if isinstance(given, list) else [given])]

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.fits.append((fitted(self).valid, parameters(self)))


def fit(module: Validated, **options: Any) -> CdfNormalizationCallback:
    callback = CdfNormalizationCallback(1.0, source="auto", **options)
    run = trainer(callback, max_epochs=len(module.epochs), reload_dataloaders_every_n_epochs=1)
    run.fit(module, loader(samples(TRAINING)))
    return callback


def assert_fits(module: Validated, *scores: np.ndarray) -> None:
    assert len(module.fits) == len(scores)
    for epoch, ((valid, found), expected) in enumerate(zip(module.fits, scores, strict=True)):
        assert valid == len(expected)
        # Each training epoch adds one to the factor of all scores.
        np.testing.assert_allclose(found, moments((1 + epoch) * expected), rtol=1e-6, atol=1e-6)


def test_enough_labelled_normals_are_what_is_fitted_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anomnorm_torch")
    module = Validated(labels(ENOUGH_NORMALS))
    callback = fit(module)
    assert_fits(module, VALIDATION[:ENOUGH_NORMALS])
    assert callback.fitted_source == "validation"
    assert "source='auto', fitted_source='validation'" in repr(callback)
    assert "10 validation samples are labelled normal, and statistics need 10" in caplog.text
    assert "they are fitted on the validation data" in caplog.text
    assert callback.fit_check is not None
    assert not callback.fit_check.unseen


@pytest.mark.parametrize("given", [labels(ENOUGH_NORMALS - 1), False], ids=["too few", "none"])
def test_without_them_the_training_data_are(given: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "anomnorm_torch")
    module = Validated(given)
    callback = fit(module)
    assert_fits(module, TRAINING)
    assert callback.fitted_source == "train"
    assert f"{0 if given is False else 9} validation samples are labelled normal" in caplog.text
    assert "on the training data" in caplog.text


@pytest.mark.parametrize(("first", "expected"), [(12, "validation"), (4, "train")])
def test_what_the_first_validation_run_decides_stays(first: int, expected: str) -> None:
    module = Validated(labels(first), labels(16 - first))
    callback = fit(module)
    scores = [VALIDATION[:first], VALIDATION[: 16 - first]] if expected == "validation" else [TRAINING, TRAINING]
    assert_fits(module, *scores)
    assert callback.fitted_source == expected
    # Each training decides anew.
    later = Validated(labels(16 - first))
    trainer(callback).fit(later, loader(samples(TRAINING)))
    assert callback.fitted_source == ("train" if expected == "validation" else "validation")


def test_loaders_without_labels_are_left_alone_beside_those_with_some() -> None:
    module = Validated([False, labels(12)], [labels(12), False])
    callback = fit(module)
    assert_fits(module, VALIDATION[:12], VALIDATION[:12])
    assert callback.fitted_source == "validation"


def test_data_without_labels_are_not_read_to_their_end() -> None:
    class Counting(Validated):
        scored: ClassVar[list[int]] = []  # of the module and of its duplicates

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.scored.append(len(batch["score"]))
            return super().validation_step(batch, batch_idx, dataloader_idx)

    module = Counting(False)
    callback = CdfNormalizationCallback(1.0, source="auto")
    run = trainer(callback, num_sanity_val_steps=0)
    run.fit(module, loader(samples(TRAINING), 30))
    # A batch of either on trial, one of the validation data, all training data, and the validation itself.
    assert sum(module.scored) == 3 + 30 + 3 + 30 + 16


def test_validation_normals_are_enough_where_there_are_no_training_data() -> None:
    callback = CdfNormalizationCallback(1.0, source="auto")
    module = ScriptedModule()
    trainer(callback).validate(module, loader(samples(VALIDATION, None, labels(12))), verbose=False)
    assert fitted(module).valid == 12
    with pytest.raises(NotFittedError, match=r'this run has none.*source="validation"'):
        trainer(CdfNormalizationCallback(1.0, source="auto")).validate(
            ScriptedModule(), loader(samples(VALIDATION, None, labels(4))), verbose=False
        )


def test_fitted_source_says_what_other_options_fit_on() -> None:
    for options, expected in (
        ({}, "train"),
        ({"source": "validation"}, "validation"),
        ({"calibration_loader": loader(samples(TRAINING))}, None),
    ):
        callback = CdfNormalizationCallback(1.0, **options)  # type: ignore[arg-type]
        assert callback.fitted_source is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(callback).fit(ScriptedModule(), loader(samples(TRAINING)), loader(samples(VALIDATION)))
        assert callback.fitted_source == expected
        assert "fitted_source" not in repr(callback)


def test_two_sources_are_refused() -> None:
    with pytest.raises(OptionError, match='calibration_loader and source="auto" are two sources'):
        CdfNormalizationCallback(source="auto", calibration_loader=[])
