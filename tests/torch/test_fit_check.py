"""The check of a CDF fit on normal validation samples, in real trainers (clause S9)."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expected import fit_check
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


def standardized(scores: np.ndarray, fit: np.ndarray) -> np.ndarray:
    logs = np.log(fit.astype("f8"))
    return (np.log(scores.astype("f8")) - logs.mean()) / logs.std(ddof=1)  # type: ignore[no-any-return]


def assert_checked(check: FitCheck | None, scores: np.ndarray) -> None:
    assert check is not None
    assert asdict(check) == pytest.approx(fit_check(standardized(scores[~LABELS], TRAIN_SCORES), 60), rel=1e-6)


def test_a_fit_that_does_not_hold_is_warned_about_once_with_both_numbers() -> None:
    messages, module, _ = fit(UNSEEN, LABELS.astype(int), epochs=3)
    check = module.normalization_metrics.fit_check
    # Three epochs raise all scores alike.
    assert_checked(check, UNSEEN)
    assert len(messages) == 1
    assert f"{check.share_above_2:.1%} lie above z = 2 and {check.share_above_3:.1%} above z = 3" in messages[0]
    assert 'source="validation"' in messages[0]


def test_a_fit_that_holds_is_not_and_the_numbers_stay_readable() -> None:
    messages, module, _ = fit(SEEN, LABELS.astype(int))
    assert messages == []
    assert_checked(module.normalization_metrics.fit_check, SEEN)


def test_anomalous_samples_do_not_count() -> None:
    scores = SEEN.copy()
    scores[LABELS] = 1e6
    messages, module, _ = fit(scores, LABELS.astype(int))
    assert messages == []
    assert_checked(module.normalization_metrics.fit_check, SEEN)


@pytest.mark.parametrize("labels", [False, np.ones(40, int)])
def test_without_labelled_normals_there_is_no_check(labels: Any) -> None:
    messages, module, _ = fit(UNSEEN, labels)
    assert messages == []
    assert module.normalization_metrics.fit_check is None


def test_the_numbers_are_not_in_the_checkpoint_and_those_of_another_run_do_not_stay(tmp_path: Path) -> None:
    _, module, run = fit(UNSEEN, LABELS.astype(int))
    assert_checked(module.normalization_metrics.fit_check, UNSEEN)
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
    assert_checked(module.normalization_metrics.fit_check, UNSEEN)
    # A run without normals has no check, also where the statistics stay.
    trainer(CdfNormalizationCallback(1.0)).validate(module, loader(unlabelled), verbose=False)
    assert module.normalization_metrics.fit_check is None


def test_a_mean_that_no_count_shows_is_found() -> None:
    scores = np.exp(RNG.normal(1.1, 0.8, size=40)).astype("f4")
    messages, module, _ = fit(scores, LABELS.astype(int))
    check = module.normalization_metrics.fit_check
    assert_checked(check, scores)
    assert not FitCheck(60, 30, check.above_2, check.above_3, check.below_2, check.below_3).surprising
    assert len(messages) == 1
    assert f"mean {check.mean:.2g}, deviation {check.std:.2g}" in messages[0]


@pytest.mark.parametrize("skewed", [False, True])
def test_a_fit_to_the_validation_normals_is_checked_for_their_shape(skewed: bool) -> None:
    # The largest of many, as the maximum of a map is, has an exponential tail above.
    logs = RNG.gumbel(size=240) if skewed else RNG.normal(size=240)
    scores, normal = np.exp(logs).astype("f4"), np.arange(240) % 4 != 3
    messages, module, _ = fit(scores, (~normal).astype(int), source="validation")
    check = module.normalization_metrics.fit_check
    z = standardized(scores[normal], scores[normal])
    assert asdict(check) == pytest.approx(fit_check(z, 180, unseen=False), rel=1e-6, abs=1e-9)
    assert len(messages) == skewed
    if skewed:
        assert "more false alarms than they say. The scores are not distributed as the method supposes" in messages[0]
        assert 'threshold="false_alarm_rate"' in messages[0]
        assert "source=" not in messages[0]
