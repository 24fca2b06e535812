"""Clauses T7 and S10 in the hooks: what a run gathers for a false-alarm rate, against core's functions."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from anomnorm_core import Normalizer as CoreNormalizer
from anomnorm_core import OptionError, OutputError
from anomnorm_core.threshold import false_alarm_rate, init, streamed_false_alarm_rate, update
from anomnorm_jax import CdfNormalizationHook, NormalizationHook, Normalizer

RNG = np.random.default_rng(17)
LABELS = np.arange(60) % 3 == 1
SCORES = np.exp(RNG.normal(size=60) + LABELS).astype("f4")
MASKS = (RNG.random((60, 3, 4)) < 0.3) & LABELS[:, None, None]
MAPS = np.exp(RNG.normal(size=(60, 3, 4)) + MASKS).astype("f4")
MAPS[LABELS] += 100.0  # spills over into pixels that the masks call normal
TRAIN = np.exp(RNG.normal(size=50)).astype("f4"), np.exp(RNG.normal(size=(50, 3, 4))).astype("f4")
pytestmark = pytest.mark.clause("T7")


def batches(*arrays: Any, size: int = 7) -> list[dict[str, Any]]:
    names = ("pred_scores", "anomaly_maps", "label", "mask")
    count = len(arrays[0])
    return [
        {name: jnp.asarray(each[i : i + size]) for name, each in zip(names, arrays, strict=False)}
        for i in range(0, count, size)
    ]


VALIDATION = batches(SCORES, MAPS, LABELS.astype("i4"), MASKS)


def ended(hook: Any, *, traced: bool = False, train: Any = TRAIN) -> Any:
    run = hook.setup(VALIDATION[0])
    run = hook.on_validation_epoch_start(run, lambda batch: batch, batches(*train))
    for batch in VALIDATION:
        run, _ = hook.on_validation_batch_end(run, batch)
    return jax.jit(hook.on_validation_epoch_end)(run) if traced else hook.on_validation_epoch_end(run)


@pytest.mark.parametrize("per", ["pixel", "image"])
@pytest.mark.parametrize("method", ["min-max", "cdf"])
def test_hooks_find_what_core_finds(method: str, per: str, tmp_path: Any) -> None:
    hook = NormalizationHook(method, "false_alarm_rate", false_alarm_rate=0.05, per=per, progress=False)
    normalizer = ended(hook)
    units = MAPS[~LABELS]
    if method == "cdf":
        fit = normalizer.to_fit()
        mean, std = fit.level("image").parameters[0], fit.level("pixel").parameters[1]
        units = ((np.log(units.astype("f8")) - mean) / std).astype("f4")
    if per == "image":
        wanted = false_alarm_rate(units.max((1, 2)), 0.05)
    else:
        wanted = streamed_false_alarm_rate(update(init(), units), 0.05, len(units))
    image, pixel = normalizer.thresholds["image"], normalizer.thresholds["pixel"]
    assert float(image.raw) == float(false_alarm_rate(SCORES[~LABELS], 0.05).threshold)
    assert (image.false_alarm_rate, image.guaranteed) == (2 / 41, True)
    found = pixel.sigmas if method == "cdf" else float(pixel.raw)
    assert found == pytest.approx(float(wanted.threshold), rel=2e-6 if method == "cdf" else 0, abs=1e-5)
    assert pixel.false_alarm_rate == pytest.approx(wanted.false_alarm_rate, rel=1e-9)
    assert (image.origin, pixel.origin) == ("false_alarm_rate", "false_alarm_rate")
    # Files and checkpoints of arrays have it, and so has the compiled end of a run.
    normalizer.save(tmp_path / "n")
    restored = jax.tree.unflatten(jax.tree.structure(hook.empty(VALIDATION[0])), jax.tree.leaves(normalizer))
    traced = ended(hook, traced=True)
    for other in (Normalizer.load(tmp_path / "n"), CoreNormalizer.load(tmp_path / "n"), restored, traced):
        assert other.summary() == normalizer.summary().replace("Normalizer", type(other).__name__)
        assert other.false_alarm_rate(1.5) == normalizer.false_alarm_rate(1.5)
    for leaf in jax.tree.leaves(normalizer):
        assert np.all(np.isfinite(leaf))


@pytest.mark.clause("S10")
def test_shares_of_zeros_are_fitted() -> None:
    scores = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 3.0, 1.5, 0.25], "f4")
    maps = np.where(np.arange(96).reshape(8, 3, 4) % 5 == 0, 0.0, np.exp(RNG.normal(size=(8, 3, 4)))).astype("f4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ended(CdfNormalizationHook(1.0, progress=False), train=(scores, maps)).to_fit()
    assert float(fit.level("image").zeros) == 0.25
    np.testing.assert_allclose(fit.level("pixel").zeros, (maps == 0).mean(0), rtol=1e-7)
    mean, std = (float(value) for value in fit.level("image").parameters)
    at = fit.false_alarm_rate(np.exp(mean + std))
    assert float(at) == pytest.approx(0.75 * stats.t.sf(1 / np.sqrt(1 + 1 / 6), 5), rel=1e-5)


def test_workers_and_a_number_for_the_images() -> None:
    hook = NormalizationHook("min-max", 2.0, "false_alarm_rate", false_alarm_rate=0.05, per="image")
    run = hook.on_validation_epoch_start(hook.setup(VALIDATION[0]))
    parts = [hook.emptied(run), hook.emptied(run)]
    for index, batch in enumerate(VALIDATION):
        parts[index % 2], _ = hook.on_validation_batch_end(parts[index % 2], batch)
    normalizer = hook.on_validation_epoch_end(hook.merge(*parts))
    wanted = false_alarm_rate(MAPS[~LABELS].max((1, 2)), 0.05)
    assert float(normalizer.thresholds["pixel"].raw) == float(wanted.threshold)
    assert "false_alarm_rate=0.05, per='image'" in repr(hook)
    with pytest.raises(OptionError, match="false_alarm_rate=2 is no share"):
        NormalizationHook("min-max", false_alarm_rate=2)
    with pytest.raises(OutputError, match="each needs its map"):
        hook.on_validation_batch_end(run, {"pred_scores": jnp.ones(3), "label": jnp.zeros(3, int)})
    with pytest.raises(OptionError, match='give threshold="false_alarm_rate" too'):
        NormalizationHook("min-max", confidence=0.9)


def test_pixels_that_were_fitted_on_the_same_images_have_no_guarantee() -> None:
    hook = CdfNormalizationHook("false_alarm_rate", false_alarm_rate=0.05, source="validation", progress=False)
    run = hook.on_validation_epoch_start(hook.setup(VALIDATION[0]), lambda batch: batch, VALIDATION)
    for batch in VALIDATION:
        run, _ = hook.on_validation_batch_end(run, batch)
    with pytest.warns(UserWarning, match="the false-alarm rate of the pixels is not guaranteed"):
        normalizer = hook.on_validation_epoch_end(run)
    assert [threshold.guaranteed for threshold in normalizer.thresholds.values()] == [True, False]
