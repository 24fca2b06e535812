"""Heat maps and tables of what test and predict leave in the outputs."""

import csv
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, trainer

import anomnorm_torch
import anomnorm_torch.lightning
from anomnorm_core import AnomnormError, OptionError, OutputError
from anomnorm_torch import HeatMapWriter, MinMaxNormalizationCallback, Normalizer

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(18)
SCORES, MAPS = RNG.uniform(1, 4, size=5).astype("f4"), RNG.uniform(0, 4, size=(5, 1, 4, 6)).astype("f4")
IMAGES = RNG.uniform(0, 1, size=(5, 3, 8, 12)).astype("f4")
DATA: list[dict[str, Any]] = [
    {"score": torch.tensor(SCORES[i]), "map": torch.tensor(MAPS[i]), "image": torch.tensor(IMAGES[i])} for i in range(5)
]
NAMED = [sample | {"image_path": f"/data/{'bad' if i % 2 else 'good'}/00{i}.png"} for i, sample in enumerate(DATA)]


def fitted(callback: Any) -> ScriptedModule:
    module = ScriptedModule()
    trainer(callback).validate(module, loader(DATA), verbose=False)
    return module


def normalization(**options: Any) -> Any:
    return MinMaxNormalizationCallback(2.5, pixel_threshold=2.0, **options)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_stage_leaves_pictures_and_a_table(stage: str, tmp_path: Path) -> None:
    callback = normalization(extras=["raw"])
    module, writer = fitted(callback), HeatMapWriter(tmp_path)
    getattr(trainer(callback, writer), stage)(module, loader(NAMED))
    rows = table(tmp_path / stage)
    low, high = SCORES.min(), SCORES.max()
    assert list(rows[0]) == ["name", "heat_map", "pred_scores_raw", "pred_scores", "pred_labels"]
    assert [row["name"] for row in rows] == [sample["image_path"] for sample in NAMED]
    raw, normalized = (np.array([float(row[name]) for row in rows]) for name in ("pred_scores_raw", "pred_scores"))
    np.testing.assert_array_equal(raw.astype("f4"), SCORES)
    np.testing.assert_allclose(normalized, np.clip((SCORES - 2.5) / (high - low) + 0.5, 0, 1), rtol=1e-5)
    assert [row["pred_labels"] for row in rows] == [str(int(score >= 2.5)) for score in SCORES]
    names = [f"{'bad' if i % 2 else 'good'}_00{i}.png" for i in range(5)]
    assert [row["heat_map"] for row in rows] == names
    assert sorted(path.name for path in (tmp_path / stage).iterdir()) == sorted([*names, "scores.csv"])
    # As the function of core draws them.
    images = [IMAGES[i : i + 1] for i in range(5)]
    reference = callback.normalizer(module)(torch.tensor(SCORES), torch.tensor(MAPS))
    for i, image in enumerate(images):
        one = {name: value[i : i + 1] for name, value in reference.items()}
        (drawn,) = anomnorm_torch.write_heat_maps(tmp_path / f"{i}", image, one)
        assert drawn is not None
        expected, found = (np.asarray(Image.open(path)) for path in (drawn, tmp_path / stage / names[i]))
        assert found.shape == (8, 12, 3)
        np.testing.assert_array_equal(found, expected)


def test_without_paths_the_index_in_the_data_is_the_name(tmp_path: Path) -> None:
    callback = normalization()
    module, order = fitted(callback), [4, 0, 3, 1, 2]
    run = trainer(callback, HeatMapWriter(tmp_path))
    run.predict(module, loader(DATA, sampler=order), return_predictions=False)
    assert [row["name"] for row in table(tmp_path / "predict")] == [f"{i:06d}" for i in order]
    with pytest.raises(FileExistsError, match=r"holds '000000.png' and 5 more"):
        run.predict(module, loader(DATA))
    run = trainer(callback, HeatMapWriter(tmp_path, overwrite=True, names=lambda batch: batch["score"].tolist()))
    run.predict(module, loader(DATA))
    assert [np.float32(row["name"]) for row in table(tmp_path / "predict")] == SCORES.tolist()
    run.test(module, loader(DATA), verbose=False)
    assert len(table(tmp_path / "test")) == 5


def test_several_loaders_and_what_only_pads(tmp_path: Path) -> None:
    class Padded(ScriptedModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return None if dataloader_idx else self.outputs(batch)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.outputs(batch) | {"valid": batch["score"] < SCORES.max()}

    callback = normalization()
    module = Padded()
    trainer(callback).validate(module, loader(DATA), verbose=False)
    run = trainer(callback, HeatMapWriter(tmp_path))
    with pytest.warns(UserWarning, match="predict returned None"):
        run.predict(module, [loader(DATA), loader(DATA)])
    assert [row["name"] for row in table(tmp_path / "predict")] == [f"0-{i:06d}" for i in range(5)]
    run.test(module, [loader(DATA), loader(DATA)], verbose=False)
    kept = [i for i in range(5) if i != SCORES.argmax()]
    assert [row["name"] for row in table(tmp_path / "test")] == [f"{k}-{i:06d}" for k in (0, 1) for i in kept]


@pytest.mark.parametrize(
    "batch",
    [lambda image: image, lambda image: (image, "label"), lambda image: image[:, :1]],
    ids=["tensor", "tuple", "one channel"],
)
def test_images_are_found_in_any_batch(batch: Any) -> None:
    images = torch.tensor(IMAGES)
    found = anomnorm_torch.heat_map_writer._images_of(batch(images))
    assert found is not None
    assert found.shape[0] == 5


def test_images_of_another_kind_are_given_by_a_function(tmp_path: Path) -> None:
    callback = normalization()
    module, many = fitted(callback), [sample | {"image": torch.rand(10, 8, 12)} for sample in DATA]
    with pytest.raises(OptionError, match=r"images have shape \(3, 10, 8, 12\)"):
        trainer(callback, HeatMapWriter(tmp_path / "a")).predict(module, loader(many))
    assert not [*(tmp_path / "a").rglob("*.csv*")]
    writer = HeatMapWriter(tmp_path / "b", images=lambda batch: batch["image"][:, :3])
    trainer(callback, writer).predict(module, loader(many))
    assert len(table(tmp_path / "b" / "predict")) == 5
    with pytest.raises(OptionError, match="names='path' is no function"):
        HeatMapWriter(tmp_path, names="path")  # type: ignore[arg-type]


def test_the_writer_comes_after_the_normalization(tmp_path: Path) -> None:
    callback = normalization()
    module = fitted(callback)
    for stage in ("predict", "test", "fit"):
        with pytest.raises(AnomnormError, match=r"callbacks=\[MinMaxNormalizationCallback\(...\), HeatMapWriter"):
            getattr(trainer(HeatMapWriter(tmp_path), callback), stage)(module, *[loader(DATA)] * (1 + (stage == "fit")))
    with pytest.raises(OutputError, match=r"no 'pred_labels'.*Normalize them first"):
        trainer(HeatMapWriter(tmp_path)).predict(ScriptedModule(), loader(DATA))
    assert not [*tmp_path.rglob("*.*")]


@pytest.mark.parametrize("ours", ["anomnorm_torch", "anomnorm_torch.lightning"])
@pytest.mark.parametrize("theirs", ["pytorch_lightning", "lightning.pytorch"])
def test_either_writer_works_in_either_trainer(ours: str, theirs: str, tmp_path: Path) -> None:
    framework, package = import_module(theirs), import_module(ours)

    class Module(framework.LightningModule):  # type: ignore[misc,name-defined]
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return {"pred_scores": batch["score"], "anomaly_maps": batch["map"]}

        validation_step = predict_step

    callbacks = [package.MinMaxNormalizationCallback(2.0), package.HeatMapWriter(tmp_path)]
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    run, module = framework.Trainer(callbacks=callbacks, **options), Module()
    run.validate(module, loader(DATA), verbose=False)
    run.predict(module, loader(DATA), return_predictions=False)
    assert [row["name"] for row in table(tmp_path / "predict")] == [f"{i:06d}" for i in range(5)]


def test_pictures_of_a_module_are_those_of_its_file(tmp_path: Path) -> None:
    from anomnorm_core import Normalizer as Portable

    callback = MinMaxNormalizationCallback(2.0)
    normalizer = callback.normalizer(fitted(callback))
    assert isinstance(normalizer, Normalizer)
    normalizer.save(tmp_path / "file")
    given = torch.tensor(SCORES, requires_grad=True)
    _, mine = normalizer.plot(given, torch.tensor([0, 1, 0, 1, -1]))
    _, theirs = Portable.load(tmp_path / "file").plot(SCORES, [0, 1, 0, 1, -1])
    for found, expected in zip(mine, theirs, strict=True):
        for line, other in zip(found.lines, expected.lines, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), other.get_xdata())
        for bars, other in zip(found.patches, expected.patches, strict=True):
            np.testing.assert_array_equal(bars.get_xy(), other.get_xy())
    _, cells = anomnorm_torch.plot.maps(normalizer, torch.tensor(IMAGES), torch.tensor(MAPS), index=2)
    np.testing.assert_array_equal(cells[0, 1].images[0].get_array(), MAPS[2, 0])
