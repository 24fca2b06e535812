"""The check of a CDF fit on normal validation samples, in real trainers (clause S9)."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_module import ScriptedModule, loader, samples, trainer

from anomnorm_core import FitCheck, FitWarning
from anomnorm_torch import CdfNormalizationCallback

pytestmark = pytest.mark.clause("S9")

RNG = np.random.default_rng(37)
TRAIN_SCORES = np.exp(RNG.normal(size=60)).astype("f4")
LABELS = np.arange(40) % 4 == 3
SEEN = np.exp(RNG.normal(size=40)).astype("f4")  # as the training data
UNSEEN = np.exp(RNG.normal(1.5, 1.5, size=40)).astype("f4")  # as data that the detector has not seen


def fit(scores: np.ndarray, labels: Any, *, epochs: int = 1, **options: Any) -> tuple[list[str], Any, Any]:
    module, run = ScriptedModule(), trainer(CdfNormalizationCallback(1.0, **options), max_epochs=epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, loader(samples(TRAIN_SCORES)), loader(samples(scores, None, labels)))
    return [str(each.message) for each in caught if each.category is FitWarning], module, run


def expected(scores: np.ndarray) -> FitCheck:
    logs = np.log(TRAIN_SCORES.astype("f8"))
    z = (np.log(scores[~LABELS].astype("f8")) - logs.mean()) / logs.std(ddof=1)
    beyond = (z > 2, z > 3, z < -2, z < -3)
    return FitCheck(60, int((~LABELS).sum()), *(int(each.sum()) for each in beyond))


def test_a_fit_that_does_not_hold_is_warned_about_once_with_both_numbers() -> None:
    messages, module, _ = fit(UNSEEN, LABELS.astype(int), epochs=3)
    check = expected(UNSEEN)
    assert module.normalization_metrics.fit_check == check
    assert len(messages) == 1
    assert f"{check.share_above_2:.1%} lie above z = 2 and {check.share_above_3:.1%} above z = 3" in messages[0]
    assert 'source="validation"' in messages[0]


def test_a_fit_that_holds_is_not_and_the_numbers_stay_readable() -> None:
    messages, module, _ = fit(SEEN, LABELS.astype(int))
    assert messages == []
    assert module.normalization_metrics.fit_check == expected(SEEN)


def test_anomalous_samples_do_not_count() -> None:
    scores = SEEN.copy()
    scores[LABELS] = 1e6
    messages, module, _ = fit(scores, LABELS.astype(int))
    assert messages == []
    assert module.normalization_metrics.fit_check == expected(SEEN)


@pytest.mark.parametrize(("labels", "options"), [(False, {}), (np.ones(40, int), {}), (None, {"source": "validation"})])
def test_without_unseen_normals_there_is_no_check(labels: Any, options: Any) -> None:
    messages, module, _ = fit(UNSEEN, labels, **options)
    assert messages == []
    assert module.normalization_metrics.fit_check is None


def test_the_numbers_are_not_in_the_checkpoint_and_those_of_another_run_do_not_stay(tmp_path: Path) -> None:
    _, module, run = fit(UNSEEN, LABELS.astype(int))
    assert module.normalization_metrics.fit_check == expected(UNSEEN)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again, callback = ScriptedModule(), CdfNormalizationCallback()
    trainer(callback).predict(again, loader(samples(SEEN)), ckpt_path=tmp_path / "a.ckpt")
    assert callback.fit_check is None
    run.predict(module, loader(samples(SEEN)), ckpt_path=tmp_path / "a.ckpt")
    assert module.normalization_metrics.fit_check is None


def test_the_labelled_normals_beside_an_unlabelled_loader_are_checked() -> None:
    module = ScriptedModule()
    labelled, unlabelled = samples(UNSEEN, None, LABELS.astype(int)), samples(SEEN, None, False)
    with pytest.warns(FitWarning):
        trainer(CdfNormalizationCallback(1.0)).fit(
            module, loader(samples(TRAIN_SCORES)), [loader(labelled), loader(unlabelled)]
        )
    assert module.normalization_metrics.fit_check == expected(UNSEEN)
    # A run without normals has no check, also where the statistics stay.
    trainer(CdfNormalizationCallback(1.0)).validate(module, loader(unlabelled), verbose=False)
    assert module.normalization_metrics.fit_check is None
