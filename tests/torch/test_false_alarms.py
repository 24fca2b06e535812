"""Clauses T7 and S10 in the callbacks: what a run gathers for a false-alarm rate, against core's functions."""

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scripted_module import ScriptedModule, fitted, loader, parameters, samples, trainer

from anomnorm_core import Normalizer as CoreNormalizer
from anomnorm_core import NotFittedError, OptionError
from anomnorm_core.threshold import false_alarm_rate, init, streamed_false_alarm_rate, update
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback, NormalizationCallback, Normalizer

RNG = np.random.default_rng(17)
LABELS = np.arange(60) % 3 == 1
SCORES = np.exp(RNG.normal(size=60) + LABELS).astype("f4")
MASKS = (RNG.random((60, 3, 4)) < 0.3) & LABELS[:, None, None]
MAPS = np.exp(RNG.normal(size=(60, 3, 4)) + MASKS).astype("f4")
TRAIN = samples(np.exp(RNG.normal(size=50)).astype("f4"), np.exp(RNG.normal(size=(50, 3, 4))).astype("f4"))
VALIDATION = samples(SCORES, MAPS, LABELS.astype(int), MASKS)
pytestmark = pytest.mark.clause("T7")


def run(callback: Any, train: Any = TRAIN, data: Any = VALIDATION) -> Any:
    module = ScriptedModule()
    trainer(callback).fit(module, loader(train, 7), loader(data, 7))
    return module


@pytest.mark.parametrize("per", ["pixel", "image"])
@pytest.mark.parametrize("method", ["min-max", "two-slope", "cdf"])
def test_callbacks_find_what_core_finds(method: str, per: str, tmp_path: Any) -> None:
    callback = NormalizationCallback(method, "false_alarm_rate", false_alarm_rate=0.05, per=per)
    module = run(callback)
    normal = MAPS[~LABELS]
    units = normal
    if method == "cdf":
        mean, std = (fitted(module, level).parameters for level in ("image", "pixel"))
        units = ((np.log(normal.astype("f8")) - mean[0]) / std[1]).astype("f4")
    if per == "image":
        wanted = false_alarm_rate(units.max((1, 2)), 0.05)
    else:
        wanted = streamed_false_alarm_rate(update(init(), units), 0.05, len(normal))
    image, pixel = callback.thresholds["image"], callback.thresholds["pixel"]
    assert float(image.raw) == float(false_alarm_rate(SCORES[~LABELS], 0.05).threshold)
    assert (image.false_alarm_rate, image.guaranteed) == (2 / 41, True)
    found = pixel.sigmas if method == "cdf" else float(pixel.raw)
    assert found == pytest.approx(float(wanted.threshold), rel=2e-6 if method == "cdf" else 0, abs=1e-5)
    assert pixel.false_alarm_rate == pytest.approx(wanted.false_alarm_rate, rel=1e-9)
    assert (image.origin, pixel.origin) == ("false_alarm_rate", "false_alarm_rate")
    # It is in the file and the state dict, with what is known of the normals.
    normalizer = callback.normalizer(module)
    normalizer.save(tmp_path / "n")
    for loaded in (Normalizer.load(tmp_path / "n"), CoreNormalizer.load(tmp_path / "n")):
        assert loaded.summary().split("\n")[1:] == normalizer.summary().split("\n")[1:]
        assert loaded.false_alarm_rate(1.5) == normalizer.false_alarm_rate(1.5)
    restored = ScriptedModule()
    other = NormalizationCallback(method, "false_alarm_rate", false_alarm_rate=0.05, per=per)
    other.setup(trainer(other), restored)
    restored.load_state_dict(module.state_dict())
    assert repr(other.normalizer(restored).thresholds) == repr(normalizer.thresholds)


def test_the_rate_holds_for_new_samples() -> None:
    rng, reached = np.random.default_rng(3), []
    for _ in range(12):
        data = samples(np.exp(rng.normal(size=99)).astype("f4"))
        callback = MinMaxNormalizationCallback("false_alarm_rate", false_alarm_rate=0.05)
        run(callback, data=data)
        reached.append(np.mean(np.exp(rng.normal(size=4000)) >= callback.thresholds["image"].raw))
    assert np.mean(reached) < 0.05 + 4 * np.std(reached) / np.sqrt(12)
    assert max(reached) < 0.15


@pytest.mark.clause("S10")
def test_shares_of_zeros_are_fitted() -> None:
    scores = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 3.0, 1.5, 0.25], "f4")
    maps = np.where(np.arange(96).reshape(8, 3, 4) % 5 == 0, 0.0, np.exp(RNG.normal(size=(8, 3, 4)))).astype("f4")
    callback = CdfNormalizationCallback(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = run(callback, samples(scores, maps))
    assert float(fitted(module).zeros) == 0.25
    np.testing.assert_allclose(fitted(module, "pixel").zeros, (maps == 0).mean(0), rtol=1e-7)
    mean, std = (float(value) for value in parameters(module))
    at = callback.normalizer(module).false_alarm_rate(np.exp(mean + std))
    assert float(at) == pytest.approx(0.75 * stats.t.sf(1 / np.sqrt(1 + 1 / 6), 5), rel=1e-5)


def test_what_is_logged_and_shown() -> None:
    logged: dict[str, float] = {}

    class Reading(ScriptedModule):
        def on_validation_end(self) -> None:
            logged.update({name: float(value) for name, value in self.trainer.callback_metrics.items()})

    module, callback = Reading(), CdfNormalizationCallback(2.0)
    trainer(callback).fit(module, loader(TRAIN, 7), loader(VALIDATION, 7))
    expected = callback.thresholds["image"].false_alarm_rate
    assert logged["normalization/image_false_alarm_rate"] == pytest.approx(expected, rel=1e-6)
    assert f"expected false alarms {100 * expected:.2g}%" in callback.normalizer(module).summary()
    assert "false_alarm_rate=" in repr(callback)
    text = bytes(module.state_dict()["normalization_metrics.load_with_anomnorm_torch_NormalizationMixin"])
    assert json.loads(text)["levels"]["image"]["false_alarm_rate"] is None  # that of the fit is computed anew


def test_few_normals_warn_in_a_training_and_sigmas_that_say_too_little() -> None:
    with pytest.warns(UserWarning, match="8 normal validation samples cannot guarantee a false-alarm rate of 0.01"):
        run(MinMaxNormalizationCallback("false_alarm_rate"), data=samples(SCORES[:12], None, LABELS[:12].astype(int)))
    with pytest.warns(UserWarning, match="a threshold of 3 sigmas says 0.0013 of the normals") as caught:
        trainer(CdfNormalizationCallback(3.0), max_epochs=3).fit(
            ScriptedModule(), loader(TRAIN[:10], 5), loader(VALIDATION, 7)
        )
    assert len([each for each in caught if "sigmas says" in str(each.message)]) == 1


def test_the_threshold_of_pixels_that_are_normal_in_anomalous_images_do_not_count() -> None:
    maps = MAPS.copy()
    maps[LABELS] += 100.0  # spills over into pixels that the masks call normal
    callback = MinMaxNormalizationCallback("false_alarm_rate", false_alarm_rate=0.05)
    run(callback, data=samples(SCORES, maps, LABELS.astype(int), MASKS))
    assert float(callback.thresholds["pixel"].raw) < 100
    assert torch.isfinite(torch.as_tensor(callback.thresholds["pixel"].raw))


def test_pixels_that_were_fitted_on_the_same_images_have_no_guarantee() -> None:
    callback = CdfNormalizationCallback("false_alarm_rate", false_alarm_rate=0.05, source="validation")
    with pytest.warns(UserWarning, match="the false-alarm rate of the pixels is not guaranteed"):
        run(callback)
    assert [threshold.guaranteed for threshold in callback.thresholds.values()] == [True, False]


def test_too_few_normals_for_auto_and_no_training_data_say_so() -> None:
    callback = CdfNormalizationCallback(1.0, source="auto")
    with pytest.raises(
        NotFittedError, match='source="auto": fewer than 10 validation samples are labelled normal, and'
    ):
        trainer(callback).validate(ScriptedModule(), loader(VALIDATION[:9], 3), verbose=False)


def test_a_source_that_was_changed_afterwards_is_checked() -> None:
    callback = CdfNormalizationCallback(1.0)
    callback.source = "trian"  # type: ignore[assignment]
    with pytest.raises(OptionError, match="source='trian' is not an option"):
        run(callback)
    callback.source = "train"  # type: ignore[assignment]
    assert fitted(run(callback)).valid == len(TRAIN)
    assert callback.fitted_source == "train"
