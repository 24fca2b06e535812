"""Thresholds that the callbacks find in validation runs, against an exhaustive search in NumPy (clauses T1 to T6)."""

import csv
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from expected import best_threshold, f1, moments
from scripted_module import ScriptedModule, fitted, loader, numbers, predictions, samples, trainer

from anomnorm_core import NotFittedError, OptionError, OutputError, ThresholdWarning
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

RNG = np.random.default_rng(23)
TRAIN_SCORES = np.exp(RNG.normal(size=24)).astype("f4")
TRAIN_MAPS = np.exp(RNG.normal(size=(24, 4, 4))).astype("f4")
TRAIN = samples(TRAIN_SCORES, TRAIN_MAPS)
LABELS = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1])
SCORES = np.exp(RNG.normal(size=11) + LABELS).astype("f4")
MASKS = RNG.random((11, 4, 4)) < 0.3 * LABELS[:, None, None]
MAPS = np.exp(RNG.normal(size=(11, 4, 4)) + 1.5 * MASKS).astype("f4")
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])


def decided(kind: Any, level: str, values: np.ndarray) -> np.ndarray:
    """Values in the method's units: raw, or z-scores with the image-level mean as center."""
    if kind is MinMaxNormalizationCallback:
        return values.astype("f8")
    mean, std = moments(TRAIN_SCORES)
    return (np.log(values.astype("f8")) - mean) / (std if level == "image" else moments(TRAIN_MAPS)[1])


def validated(callback: Any, data: Any, module: ScriptedModule | None = None, **options: Any) -> tuple[Any, Any]:
    """One epoch of training without change and one validation run."""
    module, run = module or ScriptedModule(), trainer(callback, **options)
    run.fit(module, loader(TRAIN), loader(data, 4))
    with torch.no_grad():
        module.gain.fill_(1.0)  # as it was in the validation
    return run, module


@pytest.mark.clause("T1", "T2", "T5", "P2")
@KINDS
@pytest.mark.parametrize("option", [None, "adaptive"])
def test_the_threshold_of_the_best_f1_is_found_at_both_levels(kind: Any, option: str | None) -> None:
    callback = kind(option)
    run, module = validated(callback, samples(SCORES, MAPS, LABELS, MASKS))
    truth = LABELS == 1
    threshold = best_threshold(SCORES, truth)
    expected = float(decided(kind, "image", np.float32([threshold]))[0])
    assert numbers(callback)["image"] == pytest.approx(expected, rel=1e-12)
    # The pixel threshold is the edge of a bin.
    z = decided(kind, "pixel", MAPS)
    optimum = f1(z >= best_threshold(z, MASKS), MASKS)
    assert f1(z >= numbers(callback)["pixel"], MASKS) >= optimum - 1e-3

    found = predictions(run, module, loader(samples(SCORES, MAPS, LABELS, MASKS)))
    assert found["pred_labels"].tolist() == (threshold <= SCORES).tolist()
    assert found["pred_labels"][np.float32(threshold) == SCORES].all()  # the one that defines it
    assert found["pred_scores"][np.float32(threshold) == SCORES] == 0.5
    assert found["pred_masks"][:, 0].tolist() == (z >= numbers(callback)["pixel"]).tolist()
    normalizer = callback.normalizer(module)
    again = normalizer(torch.tensor(SCORES), torch.tensor(MAPS)[:, None])
    for name, values in again.items():
        assert values.numpy().tolist() == found[name].tolist(), name


@pytest.mark.clause("T3")
@KINDS
@pytest.mark.parametrize("options", [{}, {"threshold": "normal_quantile"}])
@pytest.mark.parametrize("quantile", [1.0, 0.6])
def test_normals_alone_place_the_threshold_above_their_quantile(kind: Any, options: Any, quantile: float) -> None:
    callback = kind(**options, normal_quantile=quantile)
    run, module = validated(callback, samples(SCORES, MAPS))
    found = predictions(run, module, loader(samples(SCORES, MAPS)))
    allowed = math.floor((1 - quantile) * len(SCORES) + 1e-9)
    assert found["pred_labels"].sum() == allowed
    assert set(np.flatnonzero(found["pred_labels"])) == set(np.argsort(SCORES)[len(SCORES) - allowed :])
    flagged = found["pred_masks"].sum()  # a bin is 0.4 percent wide: here it holds no other pixel
    assert flagged == math.floor((1 - quantile) * MAPS.size + 1e-9)


@pytest.mark.clause("T3")
@KINDS
def test_a_normal_quantile_looks_at_the_normals_among_anomalies(kind: Any) -> None:
    run, module = validated(kind("normal_quantile"), samples(SCORES, MAPS, LABELS))
    found = predictions(run, module, loader(samples(SCORES, MAPS)))
    normal = LABELS == 0
    assert found["pred_labels"].tolist() == (SCORES.max(where=normal, initial=0) < SCORES).tolist()
    assert not found["pred_masks"][normal].any()


@pytest.mark.clause("T3")
@KINDS
def test_anomalies_alone_place_it_at_the_smallest_and_a_warning_says_so(kind: Any) -> None:
    with pytest.warns(ThresholdWarning, match="the smallest of 11 anomalous scores"):
        run, module = validated(kind(), samples(SCORES, labels=[1] * 11))
    assert predictions(run, module, loader(samples(SCORES)))["pred_labels"].all()
    assert not predictions(run, module, loader(samples(SCORES * 0.999 * SCORES.min() / SCORES)))["pred_labels"].any()


@pytest.mark.clause("T3")
@KINDS
def test_samples_without_labels_count_as_normal_and_a_warning_counts_them(kind: Any) -> None:
    data = samples(SCORES, labels=False)
    with pytest.warns(ThresholdWarning, match="11 of 11 validation samples have no 'label' or 'gt_label'"):
        run, module = validated(kind(), data)
    assert not predictions(run, module, loader(data))["pred_labels"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ThresholdWarning)
        validated(kind("normal_quantile"), data)


@pytest.mark.clause("T6")
@KINDS
def test_without_masks_the_pixels_of_normal_images_place_the_pixel_threshold(kind: Any) -> None:
    callback = kind()
    run, module = validated(callback, samples(SCORES, MAPS, LABELS))
    assert callback.thresholds["pixel"].origin == "adaptive"
    found = predictions(run, module, loader(samples(SCORES, MAPS)))["pred_masks"][:, 0]
    normal, z = LABELS == 0, decided(kind, "pixel", MAPS)
    assert not found[normal].any()
    # A bin is 0.4 percent wide; what lies further above all normals is flagged.
    assert found[z > z[normal].max() + 0.01 * np.abs(z[normal].max())].all()
    assert found.any()


@pytest.mark.clause("T6")
@KINDS
def test_the_pixel_threshold_follows_the_images_where_no_pixel_is_known_or_the_user_says_so(kind: Any) -> None:
    unknown, asked = kind(), kind(pixel_threshold="image")
    with pytest.warns(ThresholdWarning, match="nothing is known about any pixel|is the smallest of 4 anomalous"):
        run, module = validated(unknown, samples(SCORES[LABELS == 1], MAPS[LABELS == 1], [1] * 4))
    validated(asked, samples(SCORES, MAPS, LABELS, MASKS))
    for callback in (unknown, asked):
        assert callback.thresholds["pixel"].origin == "image"
        assert numbers(callback)["pixel"] == numbers(callback)["image"]
    found = predictions(run, module, loader(samples(SCORES, MAPS)))
    z = decided(kind, "pixel", MAPS)
    assert found["pred_masks"][:, 0].tolist() == (z >= numbers(unknown)["image"]).tolist()
    unknown.with_threshold(module, 0.75)  # and moves with it
    assert numbers(unknown) == {"image": 0.75, "pixel": 0.75}


@pytest.mark.clause("T6")
@KINDS
def test_images_without_a_mask_take_part_where_their_pixels_are_known(kind: Any) -> None:
    # Two loaders: masks only for the anomalous images. Normal images have no anomalous pixel.
    anomalous = LABELS == 1
    with_masks = samples(SCORES[anomalous], MAPS[anomalous], LABELS[anomalous], MASKS[anomalous])
    without = samples(SCORES[~anomalous], MAPS[~anomalous], LABELS[~anomalous])
    unknown = samples(SCORES[anomalous], 100 * MAPS[anomalous], LABELS[anomalous])  # of anomalous images they are not
    callback, whole, more = kind(), kind(), kind()
    trainer(callback).fit(ScriptedModule(), loader(TRAIN), [loader(with_masks), loader(without)])
    trainer(more).fit(ScriptedModule(), loader(TRAIN), [loader(with_masks), loader(without), loader(unknown)])
    validated(whole, samples(SCORES, MAPS, LABELS, MASKS))
    assert numbers(callback) == numbers(whole)
    assert numbers(more)["pixel"] == numbers(whole)["pixel"]


@pytest.mark.clause("L5")
@KINDS
def test_a_mask_is_a_label_where_there_is_none(kind: Any) -> None:
    callback, labelled = kind(), kind()
    marked = MASKS.any((1, 2)).astype(int)
    data = samples(SCORES, MAPS, False, MASKS)
    validated(callback, data)
    validated(labelled, samples(SCORES, MAPS, marked, MASKS))
    assert numbers(callback) == numbers(labelled)


@pytest.mark.clause("L5")
@pytest.mark.parametrize("names", [("gt_label", "gt_mask"), ("label", "mask")])
@pytest.mark.parametrize("where", ["outputs", "batch", "attributes"])
def test_ground_truth_is_found_under_either_name_in_outputs_and_batch(names: tuple[str, str], where: str) -> None:
    class Elsewhere(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            result: Any = {"pred_scores": batch["score"], "anomaly_maps": batch["map"]}
            if where == "attributes":
                result = SimpleNamespace(pred_score=batch["score"], anomaly_map=batch["map"])
            if where != "batch":
                for name in names:
                    vars(result).update({name: batch[name]}) if where == "attributes" else result.update(
                        {name: batch[name]}
                    )
            return result

    data = [
        {"score": each["score"], "map": each["map"], names[0]: each["label"], names[1]: each["mask"]}
        for each in samples(SCORES, MAPS, LABELS, MASKS)
    ]
    callback, plain = MinMaxNormalizationCallback(), MinMaxNormalizationCallback()
    module, run = Elsewhere(), trainer(callback)
    module.on_validation_batch_end = lambda *_: None  # type: ignore[method-assign]
    run.validate(module, loader(data), verbose=False)
    trainer(plain).validate(ScriptedModule(), loader(samples(SCORES, MAPS, LABELS, MASKS)), verbose=False)
    assert numbers(callback) == numbers(plain)


@pytest.mark.clause("T1")
@KINDS
def test_the_modules_own_threshold_is_used_where_it_has_one(kind: Any) -> None:
    callback = kind()
    validated(callback, samples(SCORES, MAPS, LABELS, MASKS), ScriptedModule(threshold=0.75))
    assert numbers(callback)["image"] == 0.75
    # It has none for the maps, so that is found.
    found = kind()
    validated(found, samples(SCORES, MAPS, LABELS, MASKS))
    assert numbers(callback)["pixel"] == numbers(found)["pixel"]
    both = kind()
    validated(both, samples(SCORES, MAPS, LABELS, MASKS), ScriptedModule(threshold=0.75, pixel_threshold=1.25))
    assert numbers(both) == {"image": 0.75, "pixel": 1.25}
    asked = kind("adaptive")  # said outright, it wins over the module's
    validated(asked, samples(SCORES, MAPS, LABELS, MASKS), ScriptedModule(threshold=0.75, pixel_threshold=1.25))
    assert numbers(asked) == numbers(found)


@pytest.mark.clause("T1")
@KINDS
@pytest.mark.parametrize("own", [0.75, torch.tensor(0.75), np.float32(0.75), torch.tensor([0.75]), 1], ids=repr)
def test_a_modules_own_threshold_may_be_a_plain_number(kind: Any, own: Any) -> None:
    module, callback = ScriptedModule(), kind()
    module.image_threshold = own
    validated(callback, samples(SCORES, None, LABELS), module)
    assert numbers(callback)["image"] == float(own)
    assert callback.thresholds["image"].origin == "module"
    outputs = {"pred_scores": torch.tensor([0.1, 1e3])}
    kind._standardize_batch(outputs, module) if callback.method.sigmas else None
    kind._normalize_batch(outputs, module)
    assert outputs["pred_labels"].tolist() == [False, True]


class Method(ScriptedModule):
    def image_threshold(self) -> float:
        return 0.75


@pytest.mark.clause("T1")
@KINDS
@pytest.mark.parametrize(
    ("own", "where"),
    [
        ("high", "image_threshold"),
        ("0.5", "image_threshold"),
        (True, "image_threshold"),
        (torch.tensor(True), "image_threshold"),
        (torch.nn.Identity(), "image_threshold"),
        (torch.ones(3), "image_threshold"),
        (SimpleNamespace(value="0.5"), "image_threshold.value"),
        (None, "image_threshold"),
    ],
    ids=["text", "number in a text", "bool", "bool tensor", "module", "three", "text in a value", "method"],
)
def test_a_threshold_without_a_number_is_not_used_and_a_warning_says_so_once(kind: Any, own: Any, where: str) -> None:
    module, callback, plain = ScriptedModule() if own is not None else Method(), kind(), kind()
    if own is not None:
        module.image_threshold = own
    data = samples(SCORES, None, LABELS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, _ = validated(callback, data, module, max_epochs=2)
        run.test(module, loader(data), verbose=False)
    found = [str(each.message) for each in caught if each.category is ThresholdWarning]
    assert len(found) == 1
    assert f"{where} is not used: it is of type" in found[0]
    validated(plain, data, max_epochs=2)
    assert numbers(callback) == numbers(plain)
    unset = ScriptedModule()  # which is no mistake
    unset.image_threshold = SimpleNamespace(value=None)
    validated(kind(), data, unset)


@pytest.mark.clause("T6")
@KINDS
def test_images_with_labels_alone_have_no_flagged_pixel_where_their_score_is_a_mean(kind: Any) -> None:
    scores = MAPS.mean((1, 2))
    callback = kind()
    run, module = validated(callback, samples(scores, MAPS, LABELS))
    found = predictions(run, module, loader(samples(scores, MAPS)))
    quiet = (LABELS == 0) & ~found["pred_labels"]
    assert quiet.any()
    assert not found["pred_masks"][quiet].any()
    # The image threshold would flag some.
    assert (MAPS[quiet] >= callback.thresholds["image"].raw).any()


@pytest.mark.clause("T4")
@KINDS
def test_levels_are_set_separately(kind: Any) -> None:
    data = samples(SCORES, MAPS, LABELS, MASKS)
    found = kind()
    validated(found, data)
    for options, expected in (
        ({"pixel_threshold": 2.5}, {"image": numbers(found)["image"], "pixel": 2.5}),
        ({"threshold": 1.5, "pixel_threshold": "adaptive"}, {"image": 1.5, "pixel": numbers(found)["pixel"]}),
        ({"threshold": 1.5}, {"image": 1.5, "pixel": 1.5}),
        ({"threshold": 1.5, "pixel_threshold": 2.5}, {"image": 1.5, "pixel": 2.5}),
    ):
        callback = kind(**options)
        validated(callback, data)
        assert numbers(callback) == expected
    mixed = kind("normal_quantile", pixel_threshold="adaptive")
    validated(mixed, data)
    assert numbers(mixed)["pixel"] == numbers(found)["pixel"]


@pytest.mark.clause("T4")
@KINDS
def test_a_number_wins_over_a_checkpoint_and_none_keeps_it_until_the_next_validation(kind: Any, tmp_path: Path) -> None:
    data = samples(SCORES, MAPS, LABELS, MASKS)
    first = kind()
    run, module = validated(first, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    expected = predictions(run, module, loader(data))
    for callback, same in ((kind(), True), (kind("adaptive"), True), (kind(0.05, pixel_threshold=0.1), False)):
        outputs: Any = trainer(callback).predict(ScriptedModule(), loader(data), ckpt_path=tmp_path / "a.ckpt")
        for name in ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks"):
            found = torch.cat([entry[name] for entry in outputs]).numpy()
            assert (found.tolist() == expected[name].tolist()) is same, name
        assert numbers(callback) == (numbers(first) if same else {"image": 0.05, "pixel": pytest.approx(0.1)})


@pytest.mark.clause("T1", "T4")
@KINDS
def test_a_manual_threshold_survives_checkpoints_and_validations(kind: Any, tmp_path: Path) -> None:
    data = samples(SCORES, MAPS, LABELS, MASKS)
    first = kind()
    run, module = validated(first, data)
    found = numbers(first)
    first.with_threshold(module, 0.4)
    run.save_checkpoint(tmp_path / "a.ckpt")
    # Over rules, numbers and the module's own.
    for again, other in (
        (kind(), ScriptedModule()),
        (kind(0.6), ScriptedModule(threshold=0.9)),
        (kind("adaptive"), None),
    ):
        loaded = other or ScriptedModule()
        run = trainer(again)
        run.predict(loaded, loader(data), ckpt_path=tmp_path / "a.ckpt")
        assert numbers(again)["image"] == 0.4
        run.validate(loaded, loader(data), verbose=False)
        assert numbers(again)["image"] == 0.4
        assert again.thresholds["image"].origin == "manual"
    # Released, it is what the next validation finds.
    slot = loaded.normalization_metrics
    slot.normalizer = slot.normalizer.without_manual_threshold()
    trainer(again).validate(loaded, loader(data), verbose=False)
    assert numbers(again) == pytest.approx(found, rel=1e-12)


@pytest.mark.clause("T4")
@KINDS
@pytest.mark.parametrize("units", ["raw", "sigmas", "normalized"])
def test_manual_thresholds_in_every_unit_decide_and_stay(kind: Any, units: str, tmp_path: Path) -> None:
    data = samples(SCORES, MAPS, LABELS, MASKS)
    callback = kind()
    run, module = validated(callback, data)
    before = predictions(run, module, loader(data))
    if units == "sigmas" and kind is not CdfNormalizationCallback:
        with pytest.raises(OptionError, match=r'units="sigmas": .* has none'):
            callback.with_threshold(module, 1.0, units=units)
        return
    image, pixel = {"raw": (1.5, 2.0), "sigmas": (0.5, 1.25), "normalized": (0.6, 0.75)}[units]
    callback.with_threshold(module, image, pixel, units=units)
    expected = {
        "raw": (SCORES >= 1.5, MAPS >= 2.0),
        "sigmas": (decided(kind, "image", SCORES) >= 0.5, decided(kind, "pixel", MAPS) >= 1.25),
        "normalized": (before["pred_scores"] >= 0.6, before["anomaly_maps"][:, 0] >= 0.75),
    }[units]
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = kind()
    loaded = ScriptedModule()
    outputs = predictions(trainer(again), loaded, loader(data), ckpt_path=tmp_path / "a.ckpt")
    for result in (predictions(run, module, loader(data)), outputs):
        assert result["pred_labels"].tolist() == expected[0].tolist()
        assert result["pred_masks"][:, 0].tolist() == expected[1].tolist()
    assert {each.origin for each in again.thresholds.values()} == {"manual"}
    # What was given in sigmas stays so when the statistics change, a raw number stays raw.
    wide = samples(TRAIN_SCORES**2, TRAIN_MAPS**2)
    trainer(again).fit(loaded.train(), loader(wide), loader(samples(SCORES**2, MAPS**2, LABELS, MASKS)))
    kept = again.thresholds["image"]
    if units == "raw":
        assert kept.raw == 1.5
    elif units == "sigmas":
        assert (kept.sigmas, again.thresholds["pixel"].sigmas) == (0.5, 1.25)


@pytest.mark.clause("L1")
@KINDS
def test_each_validation_finds_its_own(kind: Any) -> None:
    class Changing(ScriptedModule):
        seen: list[dict[str, float]] = []  # noqa: RUF012

        def on_validation_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.seen.append(numbers(callback))

    callback, module = kind(), Changing()
    module.seen = []
    trainer(callback, max_epochs=3).fit(module, loader(TRAIN), loader(samples(SCORES, MAPS, LABELS, MASKS), 4))
    raw = best_threshold(SCORES, LABELS == 1)
    assert len(module.seen) == 3
    for epoch, thresholds in enumerate(module.seen):
        # Scores grow with the gain; z-scores do not, because training scores grow with them.
        factor = epoch + 1 if kind is MinMaxNormalizationCallback else 1
        expected = factor * decided(kind, "image", np.float32([raw]))[0]
        assert thresholds["image"] == pytest.approx(expected, rel=1e-6)


def logged(callback: Any, module: Any, path: Path, data: Any, **options: Any) -> list[dict[str, str]]:
    """The rows that a training of two epochs has logged at its validations."""
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(path)
    trainer(callback, logger=logger, max_epochs=2, **options).fit(module, loader(TRAIN), loader(data, 4))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["gain"]]


class Logging(ScriptedModule):
    def on_validation_epoch_end(self) -> None:
        self.log("gain", self.gain.item())
        self.log("image_threshold", 7.0)  # names of its own


@pytest.mark.clause("T1", "S6", "S9")
@KINDS
@pytest.mark.filterwarnings("ignore:of 11 image-level values 1 is NaN")
def test_a_validation_logs_its_numbers_under_one_prefix(kind: Any, tmp_path: Path) -> None:
    scores = SCORES.copy()
    scores[2] = np.nan
    callback, module = kind(), Logging()
    rows = logged(callback, module, tmp_path, samples(scores, MAPS, LABELS, MASKS))
    assert [(row["epoch"], row["gain"]) for row in rows] == [("0", "1.0"), ("1", "2.0")]
    assert {float(row["image_threshold"]) for row in rows} == {7.0}
    found = {
        name.removeprefix("normalization/"): float(value)
        for name, value in rows[-1].items()
        if name.startswith("normalization/")
    }
    image, pixel = (callback.thresholds[level] for level in ("image", "pixel"))
    expected = {"image_threshold": image.raw, **dict(zip(NAMES[kind], fitted(module).parameters, strict=True))}
    expected["image_false_alarm_rate"] = callback.normalizer(module).false_alarm_rate(image.raw)
    if kind is MinMaxNormalizationCallback:
        expected |= {"pixel_threshold": pixel.raw, "image_left_out": 1.0}
        expected |= dict(zip(("pixel_min", "pixel_max"), fitted(module, "pixel").parameters, strict=True))
    else:
        expected |= {"image_threshold_sigmas": image.sigmas, "pixel_threshold_sigmas": pixel.sigmas}
        rate = callback.normalizer(module).false_alarm_rate(pixel.sigmas, "sigmas", "pixel")
        expected["pixel_false_alarm_rate"] = rate.mean()
        check = callback.fit_check
        for side in ("above", "below"):
            for limit in (2, 3):
                expected[f"normals_{side}_{limit}"] = getattr(check, f"share_{side}_{limit}")
        expected |= {f"normals_{name}": getattr(check, name) for name in ("mean", "std", "skewness")}
    assert found == {name: pytest.approx(float(value), rel=1e-6) for name, value in expected.items()}


NAMES = {MinMaxNormalizationCallback: ("image_min", "image_max"), CdfNormalizationCallback: ("image_mean", "image_std")}


@KINDS
def test_what_is_logged_can_be_named_otherwise_or_not_logged(kind: Any, tmp_path: Path) -> None:
    class Own(ScriptedModule):
        computes = False

        def on_validation_epoch_end(self) -> None:
            self.log("gain", self.gain.item())
            if self.computes:  # after the callback has logged
                self.image_threshold = 0.5 + self.current_epoch

    data = samples(SCORES, None, LABELS)
    for prefix, options in (("", {}), ("a", {}), ("b", {"threshold": 1.5}), ("c", {}), (None, {})):
        module = Own()
        module.computes = prefix == "c"
        row = logged(kind(log_prefix=prefix, **options), module, tmp_path / f"{prefix}", data)[-1]
        names = {name for name in row.keys() - {"gain", "epoch", "step"} if not name.endswith(("_sigmas", "_rate"))}
        names = {name for name in names if "normals_" not in name}
        expected = {*NAMES[kind], *(() if prefix == "c" else ("image_threshold",))}
        assert names == (set() if prefix is None else {f"{prefix}/{name}".lstrip("/") for name in expected})
    with pytest.raises(OptionError, match="log_prefix=3 is no text"):
        kind(log_prefix=3)
    bare = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None}
    trainer(kind(), barebones=True, **bare).fit(ScriptedModule(), loader(TRAIN), loader(data))


@KINDS
def test_nobody_is_told_to_log_in_another_way_under_several_processes(kind: Any) -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    # In one process of a group of one, where Lightning gives the same advice.
    module = ScriptedModule()
    stop = EarlyStopping("normalization/image_threshold", patience=5)
    run = trainer(kind(), stop, strategy="ddp", devices=1)
    try:
        run.fit(module, loader(TRAIN), loader(samples(SCORES, None, LABELS)))
        assert torch.distributed.is_initialized()
        assert stop.best_score == pytest.approx(float(fitted(module).threshold.raw), rel=1e-6)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@KINDS
@pytest.mark.filterwarnings("ignore:of 24 image-level values 13 are zero")
def test_integer_scores(kind: Any) -> None:
    class Whole(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return {"pred_scores": batch["score"].to(torch.int64), "label": batch["label"]}

    module, run = Whole(), trainer(kind())
    scores, labels = np.array([1, 5, 2, 7, 3, 0]), [0, 1, 0, 1, 0, 0]
    run.fit(module, loader(TRAIN), loader(samples(scores, None, labels)))
    assert predictions(run, module, loader(samples(scores)))["pred_labels"].tolist() == (scores >= 5).tolist()


@pytest.mark.clause("L4", "T1")
def test_a_module_may_still_compute_its_own_from_the_outputs() -> None:
    class Owner(ScriptedModule):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                z = torch.cat([entry["pred_scores"] for entry in self.emitted])
                self.image_threshold = SimpleNamespace(value=z.max())
                self.emitted.clear()

    callback = CdfNormalizationCallback()
    _, module = validated(callback, samples(SCORES, None, LABELS), Owner())
    assert numbers(callback)["image"] == pytest.approx(decided(type(callback), "image", SCORES).max(), rel=1e-6)
    assert numbers(callback)["image"] == module.image_threshold.value


@pytest.mark.clause("N6", "T2")
def test_scores_without_a_logarithm_are_never_flagged() -> None:
    # Without zeros the best threshold would flag everything, as these anomalies have small scores.
    scores = np.float32([0.0, 0.0, 1.0, 2.0, 3.0])
    callback = CdfNormalizationCallback()
    run, module = validated(callback, samples(scores, None, [1, 1, 0, 1, 1]))
    found = predictions(run, module, loader(samples(scores)))
    assert found["pred_labels"].tolist() == [False, False, False, True, True]
    assert found["pred_scores"][:2].tolist() == [0.0, 0.0]


@pytest.mark.clause("N6", "T3")
def test_normals_without_a_logarithm_are_not_flagged_either() -> None:
    scores = np.float32([0, 0, 0, 0, 0, 0, 0, 1])
    callback = CdfNormalizationCallback("normal_quantile")
    run, module = validated(callback, samples(scores, None, np.arange(8) == 7))
    assert predictions(run, module, loader(samples(scores)))["pred_labels"].tolist() == [False] * 7 + [True]
    callback.normalizer(module).to_fit()  # can be saved


@pytest.mark.clause("T2")
def test_no_valid_score_is_an_error() -> None:
    with pytest.raises(NotFittedError, match="all 3 scores are NaN"):
        validated(CdfNormalizationCallback(), samples([math.nan] * 3))


@pytest.mark.clause("T4")
@KINDS
def test_a_manual_threshold_wins_over_a_checkpoint_that_is_loaded_later(kind: Any, tmp_path: Path) -> None:
    data = samples(SCORES, MAPS, LABELS, MASKS)
    callback = kind()
    run, module = validated(callback, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    callback.with_threshold(module, 0.123)
    run.predict(module, loader(data), ckpt_path=tmp_path / "a.ckpt")
    assert numbers(callback)["image"] == 0.123
    # What another process set gives way to the next checkpoint.
    run.save_checkpoint(tmp_path / "b.ckpt")
    again = ScriptedModule()
    trainer(callback).predict(again, loader(data), ckpt_path=tmp_path / "b.ckpt")
    assert numbers(callback)["image"] == 0.123
    trainer(callback).predict(again, loader(data), ckpt_path=tmp_path / "a.ckpt")
    assert numbers(callback)["image"] != 0.123


@pytest.mark.clause("T4")
@KINDS
def test_a_number_that_is_no_longer_given_stays_until_the_next_validation(kind: Any) -> None:
    data = samples(SCORES, MAPS, LABELS, MASKS)
    _, module = validated(kind(0.5), data)
    callback, found = kind(), kind()
    trainer(callback).predict(module, loader(data))
    assert numbers(callback) == {"image": 0.5, "pixel": 0.5}
    validated(found, data)
    trainer(callback).fit(module.train(), loader(TRAIN), loader(data))
    assert numbers(callback) == numbers(found)


@pytest.mark.parametrize("truth", [{"label": ["good", "bad", "good"]}, {"mask": torch.zeros(3, 2, 2)}])
def test_ground_truth_that_nobody_needs_is_not_looked_at(truth: Any) -> None:
    class Foreign(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return {"pred_scores": batch["score"], "anomaly_maps": batch["map"]} | truth

    data = samples(SCORES[:9], MAPS[:9])
    validated(MinMaxNormalizationCallback(0.5), data, Foreign())
    if "mask" in truth:  # of another size than the maps, and the CDF needs labels alone
        for options in ({"threshold": 0.5}, {"threshold": "adaptive", "pixel_threshold": 0.5}):
            module, run = Foreign(), trainer(CdfNormalizationCallback(**options))
            run.fit(module, loader(TRAIN), loader(data))


@pytest.mark.clause("L5")
@KINDS
@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"label": torch.zeros(2)}, r"2 labels .* 3"),
        ({"mask": torch.zeros(3, 2, 2)}, r"'mask' .* \(3, 2, 2\) .* \(3, 1, 4, 4\)"),
        ({"label": ["good", "bad", "good"]}, "'label' in the step's outputs is of type list"),
    ],
)
def test_ground_truth_that_does_not_belong_is_refused(kind: Any, truth: Any, message: str) -> None:
    class Wrong(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.outputs(batch) | truth

    module = Wrong()
    with pytest.raises(OutputError, match=message):
        trainer(kind(), num_sanity_val_steps=0).fit(module, loader(TRAIN), loader(samples(SCORES, MAPS, LABELS), 3))
