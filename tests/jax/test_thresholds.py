"""Thresholds that the hooks find in validation runs, against an exhaustive search in NumPy (clauses T1 to T6, S9)."""

import math
import warnings
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import best_threshold, f1, fit_check, moments

from anomnorm_core import (
    AnomnormError,
    FitWarning,
    NotFittedError,
    OptionError,
    OutputError,
    ThresholdWarning,
)
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, Normalizer, threshold

RNG = np.random.default_rng(23)
TRAIN_SCORES = np.exp(RNG.normal(size=24)).astype("f4")
TRAIN_MAPS = np.exp(RNG.normal(size=(24, 4, 4))).astype("f4")
LABELS = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0])
SCORES = np.exp(RNG.normal(size=12) + LABELS).astype("f4")
MASKS = RNG.random((12, 4, 4)) < 0.3 * LABELS[:, None, None]
MAPS = np.exp(RNG.normal(size=(12, 4, 4)) + 1.5 * MASKS).astype("f4")
DATA = {"pred_scores": SCORES, "anomaly_maps": MAPS, "label": LABELS, "mask": MASKS}
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationHook, CdfNormalizationHook])


def decided(kind: Any, level: str, values: np.ndarray) -> np.ndarray:
    """Values in the method's units: raw, or z-scores with the image-level mean as center."""
    if kind is MinMaxNormalizationHook:
        return values.astype("f8")
    mean, std = moments(TRAIN_SCORES)
    return (np.log(values.astype("f8")) - mean) / (std if level == "image" else moments(TRAIN_MAPS)[1])


def batches(data: dict[str, np.ndarray], size: int = 4) -> list[dict[str, np.ndarray]]:
    count = len(next(iter(data.values())))
    return [{name: part[i : i + size] for name, part in data.items()} for i in range(0, count, size)]


def validated(hook: Any, data: dict[str, np.ndarray], before: Normalizer | None = None) -> Any:
    run = hook.setup({"anomaly_maps": MAPS} | batches(data)[0])
    return hook.on_validation_epoch_end(ran(hook, run, data), before)


def ran(hook: Any, run: Any, data: dict[str, np.ndarray]) -> Any:
    training = {"pred_scores": TRAIN_SCORES} | ({} if run.pixel is None else {"anomaly_maps": TRAIN_MAPS})
    run = hook.on_validation_epoch_start(run, dict, batches(training))
    for outputs in batches(data):
        run, _ = hook.on_validation_batch_end(run, outputs)
    return run


def options(kind: Any, *values: Any, **more: Any) -> Any:
    return kind(*values, **more, **({"progress": False} if kind is CdfNormalizationHook else {}))


def numbers(normalizer: Normalizer) -> dict[str, float]:
    """The thresholds in the method's units."""
    found = normalizer.thresholds
    return {level: float(each.raw if each.sigmas is None else each.sigmas) for level, each in found.items()}


def origins(normalizer: Normalizer) -> list[str]:
    return [str(each.origin) for each in normalizer.thresholds.values()]


@pytest.mark.clause("T1", "T2", "T5", "P2")
@KINDS
@pytest.mark.parametrize("option", [None, pytest.param("adaptive", marks=pytest.mark.full)])
def test_the_threshold_of_the_best_f1_is_found_at_both_levels(kind: Any, option: str | None) -> None:
    hook = options(kind, option)
    normalizer = validated(hook, DATA)
    truth = LABELS == 1
    best = np.float32(best_threshold(SCORES, truth))
    found = normalizer.thresholds
    assert found["image"].raw == best
    assert origins(normalizer) == ["adaptive", "adaptive"]
    assert numbers(normalizer)["image"] == pytest.approx(float(decided(kind, "image", best)), rel=2e-6)
    z = decided(kind, "pixel", MAPS)
    optimum = f1(z >= best_threshold(z, MASKS), MASKS)
    assert f1(z >= numbers(normalizer)["pixel"], MASKS) >= optimum - 1e-3
    result = hook.on_predict_batch_end(normalizer, DATA)
    assert result["pred_labels"].tolist() == (best <= SCORES).tolist()
    assert result["pred_scores"][best == SCORES] == 0.5
    assert result["pred_masks"].tolist() == (found["pixel"].raw <= MAPS).tolist()
    for name, values in normalizer(SCORES, MAPS).items():
        assert values.tolist() == result[name].tolist(), name


@pytest.mark.clause("N4")
def test_the_pixel_that_defines_a_threshold_in_sigmas_is_flagged() -> None:
    hook = options(CdfNormalizationHook, 1.0, pixel_threshold="adaptive")
    labels, maps = np.array([0, 1]), np.exp(RNG.normal(size=(2, 4, 4))).astype("f4")
    maps[1, 2, 3] = 50.0
    masks = maps == 50.0
    normalizer = validated(hook, {"pred_scores": SCORES[:2], "anomaly_maps": maps, "label": labels, "mask": masks})
    found = hook.on_predict_batch_end(normalizer, {"anomaly_maps": maps})
    assert np.array_equal(found["pred_masks"], masks)


@pytest.mark.clause("T3")
@KINDS
@pytest.mark.parametrize(
    ("given", "quantile"),
    [
        ({}, 1.0),
        ({"threshold": "normal_quantile"}, 0.6),
        pytest.param({}, 0.6, marks=pytest.mark.full),
        pytest.param({"threshold": "normal_quantile"}, 1.0, marks=pytest.mark.full),
    ],
)
def test_normals_alone_place_the_threshold_above_their_quantile(kind: Any, given: Any, quantile: float) -> None:
    hook = options(kind, **given, normal_quantile=quantile)
    normalizer = validated(hook, DATA | {"label": 0 * LABELS, "mask": 0 * MASKS})
    found = hook.on_predict_batch_end(normalizer, DATA)
    allowed = math.floor((1 - quantile) * len(SCORES) + 1e-9)
    assert set(np.flatnonzero(found["pred_labels"])) == set(np.argsort(SCORES)[len(SCORES) - allowed :])
    assert found["pred_masks"].sum() == math.floor((1 - quantile) * MAPS.size + 1e-9)


@pytest.mark.clause("T3", "T6")
@KINDS
def test_incomplete_ground_truth(kind: Any) -> None:
    scores = {"pred_scores": SCORES, "anomaly_maps": MAPS}
    hook = options(kind)
    with pytest.warns(ThresholdWarning, match="12 of 12 validation samples have no 'label'"):
        normalizer = validated(hook, scores)
    assert not hook.on_predict_batch_end(normalizer, DATA)["pred_labels"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validated(options(kind, "normal_quantile"), scores)
        # Without masks, the pixels of normal images are known, and none of those is flagged.
        normalizer = validated(hook, scores | {"label": LABELS})
    assert origins(normalizer) == ["adaptive", "adaptive"]
    masks = hook.on_predict_batch_end(normalizer, DATA)["pred_masks"]
    assert not masks[LABELS == 0].any()
    assert masks[LABELS == 1].any()
    anomalies = {name: part[LABELS == 1] for name, part in (scores | {"label": LABELS}).items()}
    with pytest.warns(ThresholdWarning) as caught:  # nothing is known of any pixel: they follow the images
        normalizer = validated(hook, anomalies)
    assert any("nothing is known about any pixel" in str(each.message) for each in caught)
    assert origins(normalizer)[1] == "image"
    assert numbers(normalizer)["pixel"] == numbers(normalizer)["image"]
    masked, labelled = validated(hook, scores | {"mask": MASKS}), validated(hook, DATA | {"label": MASKS.any((1, 2))})
    assert numbers(masked) == numbers(labelled)
    with pytest.raises(OutputError, match=r"'mask' .* \(12, 2, 2\) .* \(12, 4, 4\)"):
        hook.on_validation_batch_end(ran(hook, hook.setup(DATA), DATA), DATA | {"mask": MASKS[:, :2, :2]})


@pytest.mark.clause("T1", "T4", "T6")
@KINDS
def test_levels_are_set_separately_and_manual_numbers_stay(kind: Any) -> None:
    hook = options(kind)
    normalizer = validated(hook, DATA)
    expected = numbers(normalizer)
    for given, wanted, come in (
        ({"pixel_threshold": 2.5}, {"image": expected["image"], "pixel": 2.5}, ["adaptive", "option"]),
        (
            {"threshold": 1.5, "pixel_threshold": "adaptive"},
            {"image": 1.5, "pixel": expected["pixel"]},
            ["option", "adaptive"],
        ),
        ({"threshold": 1.5}, {"image": 1.5, "pixel": 1.5}, ["option", "image"]),
        ({"pixel_threshold": "image"}, {"image": expected["image"], "pixel": expected["image"]}, ["adaptive", "image"]),
    ):
        other = options(kind, **given)
        assert numbers(validated(other, DATA)) == pytest.approx(wanted)
        assert origins(validated(other, DATA)) == come
    manual = hook.with_threshold(normalizer, 0.25, 0.5)
    assert numbers(manual) == {"image": 0.25, "pixel": 0.5}
    again = validated(hook, DATA, manual)  # and stays through another run
    assert numbers(again) == {"image": 0.25, "pixel": 0.5}
    assert origins(again) == ["manual", "manual"]
    assert (
        numbers(validated(hook, DATA)) == numbers(validated(hook, DATA, again.without_manual_threshold())) == expected
    )
    for level, given in (("image", (0.25, None)), ("pixel", (None, 0.25))):  # the other one stays and is searched
        moved = hook.with_threshold(normalizer, *given)
        assert numbers(moved) == expected | {level: 0.25}
        assert numbers(validated(hook, DATA, moved)) == expected | {level: 0.25}
    assert numbers(normalizer) == expected  # the old one is as it was


@pytest.mark.clause("T4", "T6")
@KINDS
def test_a_manual_threshold_in_any_units(kind: Any) -> None:
    hook = options(kind, 1.0)
    normalizer = validated(hook, DATA)
    for units, number in (
        ("raw", 1.25),
        ("normalized", 0.7),
        *([("sigmas", 0.75)] if kind is CdfNormalizationHook else []),
    ):
        moved = hook.with_threshold(normalizer, number, units=units)
        assert origins(moved) == ["manual", "image"]  # one number for both moves both
        raw = normalizer.raw_threshold(number, units)
        assert float(moved.thresholds["image"].raw) == pytest.approx(float(raw), rel=1e-6)
        result = hook.on_predict_batch_end(moved, DATA)
        assert result["pred_labels"].tolist() == (np.float32(raw) <= SCORES).tolist()
        direct = normalizer(SCORES, threshold=raw)
        assert direct["pred_labels"].tolist() == result["pred_labels"].tolist()
        if kind is MinMaxNormalizationHook:
            assert moved.thresholds["pixel"].raw == moved.thresholds["image"].raw
        else:
            assert moved.thresholds["pixel"].sigmas == moved.thresholds["image"].sigmas
    for value, message in ((math.nan, "not finite"), (np.ones(3), r"shape \(3,\); one number"), (None, "are None")):
        with pytest.raises(OptionError, match=message):
            hook.with_threshold(normalizer, value)
    with pytest.raises(OptionError, match="not finite"):
        hook.with_threshold(normalizer, 1.0, math.inf)


@pytest.mark.clause("T1", "L6")
@KINDS
def test_a_hooks_own_numbers_are_resolved_where_a_stage_starts(kind: Any) -> None:
    searching = options(kind)
    restored = validated(searching, DATA)
    expected = numbers(restored)
    assert searching.on_test_start(restored) is restored
    image, pixel = options(kind, 1.5, pixel_threshold="adaptive"), options(kind, pixel_threshold=1.5)
    assert numbers(image.on_test_start(restored)) == {"image": 1.5, "pixel": expected["pixel"]}
    assert numbers(pixel.on_predict_start(restored)) == {"image": expected["image"], "pixel": 1.5}
    both = options(kind, 1.5)
    assert origins(both.on_test_start(restored)) == ["option", "image"]
    manual = searching.with_threshold(restored, 2.0)
    assert numbers(both.on_test_start(manual))["image"] == 2.0  # what was set by a person wins
    assert numbers(validated(both, DATA, manual))["image"] == 2.0


@pytest.mark.clause("T5")
@KINDS
def test_more_images_than_there_is_room_for_are_an_error_and_as_many_are_not(kind: Any) -> None:
    assert numbers(validated(options(kind, capacity=12), DATA)) == numbers(validated(options(kind), DATA))
    with pytest.raises(AnomnormError, match=r"had 12 images, and the hook keeps the scores of 11 .* capacity=12"):
        validated(options(kind, capacity=11), DATA)


@pytest.mark.clause("N6", "T2", "T3")
@pytest.mark.parametrize(
    ("rule", "scores", "labels", "flagged"),
    [
        ("adaptive", [0, 0, 1, 2, 3], [1, 1, 0, 1, 1], [3, 4]),
        ("normal_quantile", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1], [7]),
    ],
)
def test_scores_without_a_logarithm_are_never_flagged(rule: str, scores: Any, labels: Any, flagged: list[int]) -> None:
    hook = options(CdfNormalizationHook, rule)
    outputs = {"pred_scores": np.float32(scores), "label": np.array(labels)}
    normalizer = hook.on_validation_epoch_end(ran(hook, hook.setup({"pred_scores": outputs["pred_scores"]}), outputs))
    assert np.flatnonzero(hook.on_predict_batch_end(normalizer, outputs)["pred_labels"]).tolist() == flagged
    normalizer.to_fit()  # can be saved


@pytest.mark.clause("T2", "T5")
@KINDS
@pytest.mark.filterwarnings("ignore:the scores lie so close together")
def test_a_whole_validation_step_compiles_once_over_epochs(kind: Any) -> None:
    hook = options(kind)
    traces = 0

    @jax.jit
    def step(run: Any, gain: jax.Array, outputs: dict[str, jax.Array]) -> Any:
        nonlocal traces
        traces += 1
        scaled = {name: gain * outputs[name] for name in ("pred_scores", "anomaly_maps")}
        return hook.on_validation_batch_end(run, outputs | scaled)[0]

    run, normalizer = hook.setup(DATA), hook.empty(DATA)
    for epoch in range(3):
        run = hook.on_validation_epoch_start(
            run, dict, batches({"pred_scores": TRAIN_SCORES, "anomaly_maps": TRAIN_MAPS})
        )
        for outputs in batches({name: part[:8] for name, part in DATA.items()}):
            run = step(run, jnp.float32(1 + epoch), outputs)
        normalizer = hook.on_validation_epoch_end(run, normalizer)
    assert traces == 1
    expected = best_threshold(3 * SCORES[:8], LABELS[:8] == 1)
    assert numbers(normalizer)["image"] == pytest.approx(decided(kind, "image", np.float32(expected)), rel=2e-6)


@pytest.mark.clause("S9")
def test_the_fit_check_counts_warns_once_and_stays_readable() -> None:
    hook = options(CdfNormalizationHook, 1.0)
    labels = np.arange(40) % 4 == 3
    unseen = np.exp(RNG.normal(1.5, 1.5, size=40)).astype("f4")
    training = np.exp(RNG.normal(size=60)).astype("f4")
    run = hook.setup({"pred_scores": unseen})
    caught: list[Any] = []
    for _ in range(3):
        run = hook.on_validation_epoch_start(run, dict, [{"pred_scores": training}])
        assert hook.fit_check(run) is None  # of a run that has shown nothing yet
        for outputs in batches({"pred_scores": unseen, "label": labels}):
            run, _ = hook.on_validation_batch_end(run, outputs)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            hook.on_validation_epoch_end(run)
        caught += [each for each in found if each.category is FitWarning]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    mean, std = moments(training)
    z = (np.log(unseen[~labels].astype("f8")) - mean) / std
    assert asdict(hook.fit_check(run)) == pytest.approx(fit_check(z, 60), rel=1e-5)


@pytest.mark.clause("S9")
def test_the_fit_check_looks_at_both_sides_and_at_what_has_a_logarithm() -> None:
    hook = options(CdfNormalizationHook, 1.0)
    training = np.exp(RNG.normal(size=60)).astype("f4")
    unseen = np.exp(RNG.normal(size=40)).astype("f4") / 100  # validated on another scale
    unseen[[0, 1]] = [0.0, np.nan]
    outputs = {"pred_scores": unseen, "label": np.arange(40) % 4 - 1}
    run = hook.on_validation_epoch_start(hook.setup({"pred_scores": unseen}), dict, [{"pred_scores": training}])
    run, _ = hook.on_validation_batch_end(run, outputs)
    mean, std = moments(training)
    normals = unseen[(outputs["label"] == 0) & (unseen > 0)]
    z = (np.log(normals.astype("f8")) - mean) / std
    with pytest.warns(FitWarning, match=r"100\.0% lie below z = -2"):
        hook.on_validation_epoch_end(run)
    assert asdict(hook.fit_check(run)) == pytest.approx(fit_check(z, 60), rel=1e-5)


@pytest.mark.clause("S9", "L3")
def test_source_validation_needs_labels_and_checks_their_shape() -> None:
    hook = options(CdfNormalizationHook, 1.0, source="validation")
    run = hook.setup({"pred_scores": SCORES})
    with pytest.raises(NotFittedError, match="the outputs have no 'label' or 'gt_label'"):
        hook.on_validation_epoch_start(run, dict, [{"pred_scores": SCORES}])
    data = {"pred_scores": SCORES, "label": LABELS}
    run = hook.on_validation_epoch_start(run, dict, [data])
    run, _ = hook.on_validation_batch_end(run, data)
    mean, std = moments(SCORES[LABELS == 0])
    z = (np.log(SCORES[LABELS == 0].astype("f8")) - mean) / std
    found = asdict(hook.fit_check(run))
    assert found == pytest.approx(fit_check(z, (LABELS == 0).sum(), unseen=False), rel=1e-5, abs=1e-6)
    assert hook.on_validation_epoch_end(run).to_fit().level("image").valid == (LABELS == 0).sum()
    skewed = {"pred_scores": np.exp(RNG.gumbel(size=240)).astype("f4"), "label": np.zeros(240, int)}
    run = hook.on_validation_epoch_start(hook.setup({"pred_scores": SCORES}), dict, [skewed])
    run, _ = hook.on_validation_batch_end(run, skewed)
    with pytest.warns(FitWarning, match='of 240 .* not distributed as the method supposes: .*"false_alarm_rate"'):
        hook.on_validation_epoch_end(run)


@pytest.mark.clause("S1", "L8")
@KINDS
def test_runs_of_workers_merge(kind: Any) -> None:
    hook = options(kind)
    training = batches({"pred_scores": TRAIN_SCORES, "anomaly_maps": TRAIN_MAPS})
    start = hook.on_validation_epoch_start(hook.setup(DATA), dict, training)
    parts = [start, hook.emptied(start)]
    for index, outputs in enumerate(batches(DATA)):
        parts[index % 2], _ = hook.on_validation_batch_end(parts[index % 2], outputs)
    merged = hook.merge(*parts)
    expected = validated(hook, DATA)
    assert numbers(hook.on_validation_epoch_end(merged)) == numbers(expected)
    assert numbers(hook.on_validation_epoch_end(hook.merge(merged, hook.emptied(start)))) == numbers(expected)
    if kind is CdfNormalizationHook:
        double = [{"pred_scores": 2 * TRAIN_SCORES, "anomaly_maps": TRAIN_MAPS}]
        with pytest.raises(AnomnormError, match="a finished fit is not merged"):
            hook.merge(start, hook.on_validation_epoch_start(start, dict, double))


@KINDS
@pytest.mark.parametrize("x64", [pytest.param(False, marks=pytest.mark.full), True])
def test_hooks_that_search_work_under_strict_promotion_and_x64(kind: Any, x64: bool) -> None:
    hook = options(kind)
    expected = numbers(validated(hook, DATA))
    boolean = DATA | {"label": LABELS == 1}
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = numbers(validated(hook, boolean))
        wide = {name: part.astype("f8") for name, part in DATA.items() if part.dtype == np.float32}
        doubled = numbers(validated(hook, boolean | wide)) if x64 else expected
    assert found == pytest.approx(expected, rel=2e-6)
    assert doubled == pytest.approx(expected, rel=2e-6)


@pytest.mark.clause("T3")
def test_just_above_a_float32_score_is_a_float32_number_under_x64_too() -> None:
    with jax.enable_x64(True):
        hook = options(MinMaxNormalizationHook, "normal_quantile")
        normalizer = validated(hook, {"pred_scores": SCORES, "anomaly_maps": MAPS})
        assert not hook.on_predict_batch_end(normalizer, DATA)["pred_labels"].any()


@pytest.mark.clause("L5")
@KINDS
def test_batches_without_maps_without_scores_and_without_samples(kind: Any) -> None:
    hook = options(kind)
    parts = [{"pred_scores": SCORES[:4], "label": LABELS[:4]}, {"anomaly_maps": MAPS[4:8], "label": LABELS[4:8]}]
    empty = {name: part[:0] for name, part in DATA.items()}
    training = batches({"pred_scores": TRAIN_SCORES, "anomaly_maps": TRAIN_MAPS})
    run = hook.on_validation_epoch_start(hook.setup(DATA), dict, training)
    for outputs in (parts[0], empty, parts[1]):
        run, _ = hook.on_validation_batch_end(run, outputs)
    scores = np.concatenate([SCORES[:4], MAPS[4:8].max((1, 2))])
    raw = np.float32(best_threshold(scores, LABELS[:8] == 1))
    assert hook.on_validation_epoch_end(run).thresholds["image"].raw == raw


@KINDS
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.full), "int32"])
@pytest.mark.filterwarnings("ignore:.*not positive where a logarithm", "ignore:the scores lie so close")
def test_scores_of_other_dtypes(kind: Any, dtype: str) -> None:
    hook = options(kind)
    scores = jnp.asarray(10 * SCORES).astype(dtype)
    data = {"pred_scores": scores, "label": LABELS}
    run = hook.on_validation_epoch_start(hook.setup(data), dict, [{"pred_scores": jnp.asarray(10 * TRAIN_SCORES + 1)}])
    run, _ = hook.on_validation_batch_end(run, data)
    found = hook.on_predict_batch_end(hook.on_validation_epoch_end(run), {"pred_scores": scores})
    raw = np.asarray(scores.astype("float32"))
    assert found["pred_labels"].tolist() == (raw >= best_threshold(raw, LABELS == 1)).tolist()
    assert found["pred_labels"].tolist() == (found["pred_scores"] >= 0.5).tolist()


@pytest.mark.clause("T4", "L4")
@KINDS
def test_masks_that_no_threshold_is_looked_for_in_are_not_looked_at(kind: Any) -> None:
    validated(options(kind, 1.0), DATA | {"mask": np.zeros((12, 8, 8))})


@pytest.mark.clause("T2", "T3", "T5")
def test_the_search_takes_arrays_and_histograms_of_this_package_outside_of_jit() -> None:
    scores, labels = jnp.asarray(SCORES), jnp.asarray(LABELS)
    assert threshold.adaptive(scores, labels) == np.float32(best_threshold(SCORES, LABELS == 1))
    assert threshold.normal_quantile(scores, labels=labels).threshold == np.nextafter(
        SCORES[LABELS == 0].max(), np.float32(99)
    )
    record = threshold.update(threshold.init(), jnp.asarray(MAPS), jnp.asarray(MASKS))
    found = threshold.streamed_adaptive(record)
    assert f1(found <= MAPS, MASKS) >= f1(best_threshold(MAPS, MASKS) <= MAPS, MASKS) - 1e-3
    assert not (threshold.streamed_normal_quantile(record).threshold <= MAPS[~MASKS]).any()
    assert threshold.streamed_quantile(record, 0.5) == pytest.approx(
        np.quantile(MAPS, 0.5, method="inverted_cdf"), rel=0.005
    )
    with pytest.raises(TypeError, match=r"inside of jax\.jit there are none"):
        jax.jit(threshold.adaptive)(scores, labels)


@pytest.mark.clause("T2", "T3")
@KINDS
def test_warnings_point_at_the_line_that_led_to_them(kind: Any) -> None:
    hook = options(kind)
    run = ran(hook, hook.setup({"pred_scores": SCORES}), {"pred_scores": SCORES})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hook.on_validation_epoch_end(run)
    assert [warning.filename for warning in caught] == [__file__]
