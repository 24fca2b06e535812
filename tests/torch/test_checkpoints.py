"""Statistics and thresholds travel in the module's state dict (clause L6)."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, predictions, samples, trainer

from anomnorm_core import AnomnormError, NotFittedError
from anomnorm_torch import (
    AnomalyScoreDistribution,
    CdfNormalizationCallback,
    MinMax,
    MinMaxNormalizationCallback,
    NormalizationMixin,
)

RNG = np.random.default_rng(13)
SCORES, MAPS = np.exp(RNG.normal(size=9)).astype("f4"), np.exp(RNG.normal(size=(9, 2, 3))).astype("f4")
DATA = samples(SCORES, MAPS)
CALLBACKS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])


def saved(path: Path, *callbacks: Any) -> tuple[ScriptedModule, dict[str, np.ndarray]]:
    module, run = ScriptedModule(), trainer(*callbacks)
    run.fit(module, loader(DATA), loader(DATA))
    run.save_checkpoint(path)
    return module, predictions(run, module, loader(DATA))


@pytest.mark.clause("L6")
@CALLBACKS
@pytest.mark.parametrize("stage", ["predict", "fit"])
def test_a_checkpoint_restores_statistics_and_thresholds(kind: Any, stage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    _, expected = saved(path, kind(1.5, pixel_threshold=2.0))
    module, run = ScriptedModule(), trainer(kind(1.5) if stage == "fit" else kind(), max_epochs=1)
    if stage == "fit":
        run.fit(module, loader(DATA), loader(DATA), ckpt_path=path)  # nothing left to train
        assert module.normalization_metrics.seen("image")
        return
    outputs: Any = run.predict(module, loader(DATA), ckpt_path=path)
    for name, values in expected.items():
        found = torch.cat([entry[name] for entry in outputs]).numpy()
        assert found.tolist() == values.tolist(), name


@pytest.mark.clause("L6")
@pytest.mark.parametrize(
    ("kind", "option", "other"),
    [
        (MinMaxNormalizationCallback, {"shared_range": True}, "shared_range=True"),
        (CdfNormalizationCallback, {"center": "pixel"}, 'center="pixel"'),
    ],
)
def test_a_checkpoint_says_what_its_numbers_mean(kind: Any, option: Any, other: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    _, expected = saved(path, kind(1.5, pixel_threshold=0.5, **option))
    module, run = ScriptedModule(), trainer(kind())
    with pytest.raises(AnomnormError, match=f"fitted with {other} and this callback has"):
        run.predict(module, loader(DATA), ckpt_path=path)
    module = ScriptedModule()
    found = predictions(trainer(kind(**option)), module, loader(DATA), ckpt_path=path)
    for name, values in expected.items():
        assert found[name].tolist() == values.tolist(), name

    # Without a callback, the statistics have the option of the checkpoint.
    class Detector(NormalizationMixin, ScriptedModule): ...

    loaded = Detector.load_from_checkpoint(path)
    raw = [torch.from_numpy(values) * loaded.gain.detach() for values in (SCORES, MAPS)]
    result = loaded.normalization_metrics.normalizer(1.5, 0.5)(*raw)
    for name in ("pred_scores", "anomaly_maps", "pred_masks"):
        assert result[name].squeeze().tolist() == expected[name].squeeze().tolist(), name


@pytest.mark.clause("L6")
@CALLBACKS
def test_the_file_needs_no_unpickling_and_loads_strictly(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    module, _ = saved(path, kind(1.5))
    state = torch.load(path, weights_only=True)["state_dict"]
    assert any(name.startswith("normalization_metrics.") for name in state)
    fresh = ScriptedModule()
    kind(1.5).setup(trainer(), fresh, "predict")
    result = fresh.load_state_dict(state, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    for level in ("image", "pixel"):
        pairs = zip(
            fresh.normalization_metrics.statistics(level), module.normalization_metrics.statistics(level), strict=True
        )
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.clause("T4")
@CALLBACKS
def test_a_number_given_by_hand_wins_over_the_checkpoint(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    _, before = saved(path, kind(1.5))
    module, run = ScriptedModule(), trainer(kind(0.25))
    outputs: Any = run.predict(module, loader(DATA), ckpt_path=path)
    after = torch.cat([entry["pred_scores"] for entry in outputs]).numpy()
    assert module.normalization_metrics.image_threshold == 0.25
    assert (after >= before["pred_scores"]).all()
    assert (after > before["pred_scores"]).any()


@pytest.mark.clause("T4")
@CALLBACKS
def test_a_restored_threshold_can_be_moved_and_saved_again(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    saved(path, kind(1.5))
    module, run = ScriptedModule(), trainer(kind())
    run.predict(module, loader(DATA), ckpt_path=path)
    module.normalization_metrics.set_threshold("image", 0.5)
    moved = predictions(run, module, loader(DATA))
    raw = SCORES.astype("f8")
    if kind is CdfNormalizationCallback:
        mean, std = (value.item() for value in module.normalization_metrics.statistics("image"))
        raw = (np.log(raw * module.gain.item()) - mean) / std
    else:
        raw = raw * module.gain.item()
    assert moved["pred_labels"].tolist() == (raw >= 0.5).tolist()
    run.save_checkpoint(path)
    again: Any = trainer(kind()).predict(ScriptedModule(), loader(DATA), ckpt_path=path)
    assert torch.cat([entry["pred_scores"] for entry in again]).numpy().tolist() == moved["pred_scores"].tolist()


@pytest.mark.clause("L6")
@CALLBACKS
def test_a_checkpoint_of_a_run_without_normalization_loads(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    module, run = ScriptedModule(), trainer()
    run.fit(module, loader(DATA), loader(DATA))
    run.save_checkpoint(path)
    with pytest.raises(NotFittedError):  # loads, and then has no statistics to predict with
        trainer(kind(1.5)).predict(ScriptedModule(), loader(DATA), ckpt_path=path)
    resumed, run = ScriptedModule(), trainer(kind(1.5), max_epochs=2)
    run.fit(resumed, loader(DATA), loader(DATA), ckpt_path=path)
    assert resumed.normalization_metrics.seen("image")


@pytest.mark.clause("L6")
@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (MinMaxNormalizationCallback, CdfNormalizationCallback, "MinMaxNormalizationCallback"),
        (CdfNormalizationCallback, MinMaxNormalizationCallback, "CdfNormalizationCallback"),
    ],
)
def test_a_checkpoint_of_the_other_method_is_a_clear_error(first: Any, second: Any, name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    saved(path, first(1.5))
    with pytest.raises(RuntimeError, match=f"holds the statistics of the other normalization.*Use {name}"):
        trainer(second(1.5)).predict(ScriptedModule(), loader(DATA), ckpt_path=path)


@pytest.mark.clause("L6")
def test_founding_checkpoints_load() -> None:
    state = {
        "min": torch.tensor(1.0),
        "max": torch.tensor(9.0),
    }
    metric = MinMax()
    metric.load_state_dict(state)
    assert [value.item() for value in (*metric.statistics("image"), *metric.statistics("pixel"))] == [1, 9, 1, 9]

    mean, std = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    distribution = AnomalyScoreDistribution()
    distribution.load_state_dict(
        {"image_mean": torch.tensor(1.5), "image_std": torch.tensor(0.75), "pixel_mean": mean, "pixel_std": std}
    )
    assert [value.item() for value in distribution.statistics("image")] == [1.5, 0.75]
    assert torch.equal(torch.stack(distribution.statistics("pixel")), torch.stack([mean, std]).double())
    empty = torch.empty(0)
    image_only = AnomalyScoreDistribution()
    image_only.load_state_dict(
        {"image_mean": torch.tensor(1.5), "image_std": torch.tensor(0.75), "pixel_mean": empty, "pixel_std": empty}
    )
    assert not image_only.seen("pixel")


@pytest.mark.clause("L6")
def test_founding_key_names_are_in_the_state_dict() -> None:
    metric = MinMax()
    metric.update(torch.tensor([2.0, 4.0]))
    assert (metric.state_dict()["min"], metric.state_dict()["max"]) == (2.0, 4.0)
    distribution = AnomalyScoreDistribution()
    scores, maps = torch.exp(torch.tensor([0.0, 2.0])), torch.ones(2, 1, 2, 2)
    distribution.update(scores, maps)
    state = distribution.state_dict(prefix="normalization_metrics.")
    assert state["normalization_metrics.image_mean"].item() == pytest.approx(1.0)
    assert state["normalization_metrics.image_std"].item() == pytest.approx(math.sqrt(2.0))
    assert state["normalization_metrics.pixel_mean"].shape == (2, 2)
    assert state["normalization_metrics.pixel_std"].shape == (2, 2)


@pytest.mark.clause("L6")
def test_unknown_keys_are_reported() -> None:
    metric = MinMax()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*median"):
        metric.load_state_dict({**metric.state_dict(), "median": torch.tensor(1.0)})


@pytest.mark.clause("T4")
def test_a_number_given_by_hand_is_not_taken_for_a_restored_one() -> None:
    metric = MinMax()
    metric.set_threshold("image", 2.0)
    metric.load_state_dict({"min": torch.tensor(1.0), "max": torch.tensor(9.0)})  # without thresholds
    metric.set_threshold("image", None)
    assert metric.image_threshold.isnan()
