"""Thresholds that the hooks find in validation runs, against an exhaustive search in NumPy (clauses T1 to T6, S9)."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import best_threshold, f1, moments

from anomnorm_core import AnomnormError, FitCheck, FitWarning, NotFittedError, OutputError, ThresholdWarning
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook

RNG = np.random.default_rng(23)
TRAIN_SCORES = np.exp(RNG.normal(size=24)).astype("f4")
TRAIN_MAPS = np.exp(RNG.normal(size=(24, 4, 4))).astype("f4")
LABELS = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1])
SCORES = np.exp(RNG.normal(size=11) + LABELS).astype("f4")
MASKS = RNG.random((11, 4, 4)) < 0.3 * LABELS[:, None, None]
MAPS = np.exp(RNG.normal(size=(11, 4, 4)) + 1.5 * MASKS).astype("f4")
DATA = {"pred_scores": SCORES, "anomaly_maps": MAPS, "label": LABELS, "mask": MASKS}
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationHook, CdfNormalizationHook])


def decided(kind: Any, level: str, values: np.ndarray) -> np.ndarray:
    """Values in decision space: raw, or z-scores with the image-level mean as centre."""
    if kind is MinMaxNormalizationHook:
        return values.astype("f8")
    mean, std = moments(TRAIN_SCORES)
    return (np.log(values.astype("f8")) - mean) / (std if level == "image" else moments(TRAIN_MAPS)[1])


def batches(data: dict[str, np.ndarray], size: int = 4) -> list[dict[str, np.ndarray]]:
    count = len(next(iter(data.values())))
    return [{name: part[i : i + size] for name, part in data.items()} for i in range(0, count, size)]


def begun(hook: Any, state: Any) -> Any:
    if isinstance(hook, MinMaxNormalizationHook):
        return hook.on_validation_epoch_start(state)
    training = {"pred_scores": TRAIN_SCORES} | ({} if state.pixel is None else {"anomaly_maps": TRAIN_MAPS})
    return hook.on_validation_epoch_start(state, dict, batches(training))


def validated(hook: Any, data: dict[str, np.ndarray], state: Any = None) -> Any:
    setup = hook.setup({"anomaly_maps": MAPS} | batches(data)[0]) if state is None else state
    state = begun(hook, setup)
    for outputs in batches(data):
        state, _ = hook.on_validation_batch_end(state, outputs)
    return hook.on_validation_epoch_end(state)


def options(kind: Any, *values: Any, **more: Any) -> Any:
    return kind(*values, **more, **({"progress": False} if kind is CdfNormalizationHook else {}))


@pytest.mark.clause("T1", "T2", "T5", "P2")
@KINDS
@pytest.mark.parametrize("option", [None, pytest.param("adaptive", marks=pytest.mark.full)])
def test_the_threshold_of_the_best_f1_is_found_at_both_levels(kind: Any, option: str | None) -> None:
    hook = options(kind, option)
    state = validated(hook, DATA)
    truth = LABELS == 1
    threshold = np.float32(best_threshold(SCORES, truth))
    assert hook.thresholds(state)["image"] == pytest.approx(float(decided(kind, "image", threshold)), rel=2e-6)
    z = decided(kind, "pixel", MAPS)
    optimum = f1(z >= best_threshold(z, MASKS), MASKS)
    assert f1(z >= hook.thresholds(state)["pixel"], MASKS) >= optimum - 1e-3
    found = hook.on_predict_batch_end(state, DATA)
    assert found["pred_labels"].tolist() == (threshold <= SCORES).tolist()
    assert found["pred_scores"][threshold == SCORES] == 0.5
    assert found["pred_masks"].tolist() == (z >= hook.thresholds(state)["pixel"]).tolist()
    normalizer = hook.normalizer(state)
    for name, values in normalizer(SCORES, MAPS).items():
        assert values.tolist() == found[name].tolist(), name


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
    state = validated(hook, DATA | {"label": 0 * LABELS, "mask": 0 * MASKS})
    found = hook.on_predict_batch_end(state, DATA)
    allowed = math.floor((1 - quantile) * len(SCORES) + 1e-9)
    assert set(np.flatnonzero(found["pred_labels"])) == set(np.argsort(SCORES)[len(SCORES) - allowed :])
    assert found["pred_masks"].sum() == math.floor((1 - quantile) * MAPS.size + 1e-9)


@pytest.mark.clause("T3", "T6")
@KINDS
def test_incomplete_ground_truth(kind: Any) -> None:
    scores = {"pred_scores": SCORES, "anomaly_maps": MAPS}
    hook = options(kind)
    with pytest.warns(ThresholdWarning, match="11 of 11 validation samples have no 'label'"):
        state = validated(hook, scores)
    assert not hook.on_predict_batch_end(state, DATA)["pred_labels"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validated(options(kind, "normal_quantile"), scores)
    state = validated(hook, scores | {"label": LABELS})  # no masks: the pixel threshold is that of the images
    assert hook.thresholds(state)["pixel"] == hook.thresholds(state)["image"]
    masked, labelled = validated(hook, scores | {"mask": MASKS}), validated(hook, DATA | {"label": MASKS.any((1, 2))})
    assert hook.thresholds(masked) == hook.thresholds(labelled)
    with pytest.raises(OutputError, match=r"'mask' .* \(11, 2, 2\) .* \(11, 4, 4\)"):
        hook.on_validation_batch_end(begun(hook, hook.setup(DATA)), DATA | {"mask": MASKS[:, :2, :2]})


@pytest.mark.clause("T4")
@KINDS
def test_levels_are_set_separately_and_numbers_win(kind: Any) -> None:
    found = options(kind)
    expected = found.thresholds(validated(found, DATA))
    for given, wanted in (
        ({"pixel_threshold": 2.5}, {"image": expected["image"], "pixel": 2.5}),
        ({"threshold": 1.5, "pixel_threshold": "adaptive"}, {"image": 1.5, "pixel": expected["pixel"]}),
        ({"threshold": 1.5}, {"image": 1.5, "pixel": 1.5}),
    ):
        hook = options(kind, **given)
        assert hook.thresholds(validated(hook, DATA)) == wanted
    state = found.with_threshold(validated(found, DATA), 0.25, 0.5)
    assert found.thresholds(state) == {"image": 0.25, "pixel": 0.5}
    state = validated(found, DATA, state)  # and stays through another run
    assert found.thresholds(state) == {"image": 0.25, "pixel": 0.5}
    state = validated(found, DATA, found.with_threshold(state, None))
    assert found.thresholds(state) == expected
    for level, numbers in (("image", (0.25, None)), ("pixel", (None, 0.25))):  # the other one stays and is searched
        moved = found.with_threshold(state, *numbers)
        assert found.thresholds(moved) == expected | {level: 0.25}
        assert found.thresholds(validated(found, DATA, moved)) == expected | {level: 0.25}


@pytest.mark.clause("N8", "T1")
@KINDS
def test_there_is_no_threshold_before_a_validation_run_ends(kind: Any) -> None:
    hook = options(kind)
    state = begun(hook, hook.setup(DATA))
    if kind is CdfNormalizationHook:
        with pytest.raises(NotFittedError, match="they are found when a validation run ends"):
            hook.on_predict_batch_end(state, DATA)
        with pytest.raises(NotFittedError, match="they are found when"):
            hook.on_test_start(state)
    finished = validated(hook, DATA)
    assert hook.on_test_start(finished) is finished
    assert hook.on_predict_start(finished) is finished
    with pytest.raises(NotFittedError, match="threshold of the state is nan"):
        hook.on_test_start(hook.with_threshold(finished, jnp.nan * jnp.ones(())))


@pytest.mark.clause("T5")
@KINDS
def test_more_images_than_there_is_room_for_are_an_error_and_as_many_are_not(kind: Any) -> None:
    hook = options(kind, capacity=11)
    assert hook.thresholds(validated(hook, DATA)) == hook.thresholds(validated(options(kind), DATA))
    with pytest.raises(AnomnormError, match=r"had 11 images, and the hook keeps the scores of 10 .* capacity=11"):
        validated(options(kind, capacity=10), DATA)


@pytest.mark.clause("N6", "T2")
def test_scores_without_a_logarithm_are_never_flagged() -> None:
    hook = options(CdfNormalizationHook)
    scores, labels = np.float32([0.0, 0.0, 1.0, 2.0, 3.0]), np.array([1, 1, 0, 1, 1])
    state = hook.on_validation_epoch_start(hook.setup({"pred_scores": scores}), dict, [{"pred_scores": TRAIN_SCORES}])
    state, _ = hook.on_validation_batch_end(state, {"pred_scores": scores, "label": labels})
    found = hook.on_predict_batch_end(hook.on_validation_epoch_end(state), {"pred_scores": scores})
    assert found["pred_labels"].tolist() == [False, False, False, True, True]


@pytest.mark.clause("T2", "T5")
@KINDS
@pytest.mark.filterwarnings("ignore:the scores lie so close together")
def test_a_whole_validation_step_compiles_once_over_epochs(kind: Any) -> None:
    hook = options(kind)
    traces = 0

    @jax.jit
    def step(state: Any, gain: jax.Array, outputs: dict[str, jax.Array]) -> Any:
        nonlocal traces
        traces += 1
        scaled = {name: gain * outputs[name] for name in ("pred_scores", "anomaly_maps")}
        return hook.on_validation_batch_end(state, outputs | scaled)

    state = hook.setup(DATA)
    for epoch in range(3):
        state = begun(hook, state)
        for outputs in batches({name: part[:8] for name, part in DATA.items()}):
            state, _ = step(state, jnp.float32(1 + epoch), outputs)
        state = hook.on_validation_epoch_end(state)
    assert traces == 1
    expected = best_threshold(3 * SCORES[:8], LABELS[:8] == 1)
    assert hook.thresholds(state)["image"] == pytest.approx(decided(kind, "image", np.float32(expected)), rel=2e-6)


@pytest.mark.clause("S9")
def test_the_fit_check_counts_warns_once_and_stays_readable() -> None:
    hook = options(CdfNormalizationHook, 1.0)
    labels = np.arange(40) % 4 == 3
    unseen = np.exp(RNG.normal(1.5, 1.5, size=40)).astype("f4")
    training = np.exp(RNG.normal(size=60)).astype("f4")
    state = hook.setup({"pred_scores": unseen})
    caught: list[Any] = []
    for _ in range(3):
        state = hook.on_validation_epoch_start(state, dict, [{"pred_scores": training}])
        for outputs in batches({"pred_scores": unseen, "label": labels}):
            state, _ = hook.on_validation_batch_end(state, outputs)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            state = hook.on_validation_epoch_end(state)
        caught += [each for each in found if each.category is FitWarning]
    assert len(caught) == 1
    mean, std = moments(training)
    z = (np.log(unseen[~labels].astype("f8")) - mean) / std
    assert hook.fit_check(state) == FitCheck(60, int((~labels).sum()), int((z > 2).sum()), int((z > 3).sum()))
    state = hook.on_validation_epoch_start(state, dict, [{"pred_scores": training}])
    assert hook.fit_check(state) is None  # of a run that has shown nothing yet


@pytest.mark.clause("S9", "L3")
def test_source_validation_needs_labels_and_checks_nothing() -> None:
    hook = options(CdfNormalizationHook, 1.0, source="validation")
    state = hook.setup({"pred_scores": SCORES})
    with pytest.raises(NotFittedError, match="the outputs have no 'label' or 'gt_label'"):
        hook.on_validation_epoch_start(state, dict, [{"pred_scores": SCORES}])
    data = {"pred_scores": SCORES, "label": LABELS}
    state = hook.on_validation_epoch_start(state, dict, [data])
    assert int(state.image.count) == (LABELS == 0).sum()
    state, _ = hook.on_validation_batch_end(state, data)
    assert hook.fit_check(hook.on_validation_epoch_end(state)) is None


@pytest.mark.clause("L6", "T4")
@KINDS
@pytest.mark.parametrize("maps", [True, False])
def test_arrays_of_a_state_are_restored_into_a_fresh_one(kind: Any, maps: bool) -> None:
    hook = options(kind)
    data = DATA if maps else {name: DATA[name] for name in ("pred_scores", "label")}
    fresh = hook.setup(batches(data)[0])
    state = validated(hook, data, fresh)
    arrays = hook.to_arrays(state)
    assert jax.tree.structure(arrays) == jax.tree.structure(hook.to_arrays(fresh))
    restored = hook.restore(fresh, jax.tree.map(np.asarray, arrays))
    assert hook.thresholds(restored) == hook.thresholds(state)
    for name, value in hook.on_test_batch_end(restored, data).items():
        assert value.tolist() == hook.on_test_batch_end(state, data)[name].tolist(), name
    number = options(kind, 0.75)
    assert number.thresholds(number.restore(number.setup(batches(data)[0]), arrays))["image"] == 0.75
    with pytest.raises(AnomnormError, match=r"do not belong to this state: .*image\."):
        hook.restore(fresh, {**arrays, "image": {}})


@pytest.mark.clause("S1")
@KINDS
def test_states_of_workers_merge(kind: Any) -> None:
    hook = options(kind)
    start = begun(hook, hook.setup(DATA))
    parts = [start, hook.emptied(start)]
    for index, outputs in enumerate(batches(DATA, 3)):
        parts[index % 2], _ = hook.on_validation_batch_end(parts[index % 2], outputs)
    state = hook.on_validation_epoch_end(hook.merge(*parts))
    assert hook.thresholds(state) == hook.thresholds(validated(hook, DATA))


@KINDS
@pytest.mark.parametrize("x64", [pytest.param(False, marks=pytest.mark.full), True])
def test_hooks_that_search_work_under_strict_promotion_and_x64(kind: Any, x64: bool) -> None:
    hook = options(kind)
    expected = hook.thresholds(validated(hook, DATA))
    with (
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        found = hook.thresholds(validated(hook, DATA))
        wide = {name: part.astype("f8") for name, part in DATA.items() if part.dtype == np.float32}
        doubled = hook.thresholds(validated(hook, DATA | wide)) if x64 else expected
    assert found == pytest.approx(expected, rel=2e-6)
    assert doubled == pytest.approx(expected, rel=2e-6)


@pytest.mark.clause("T3")
def test_just_above_a_float32_score_is_a_float32_number_under_x64_too() -> None:
    with jax.enable_x64(True):
        hook = options(MinMaxNormalizationHook, "normal_quantile")
        state = validated(hook, {"pred_scores": SCORES, "anomaly_maps": MAPS})
        assert not hook.on_predict_batch_end(state, DATA)["pred_labels"].any()


@pytest.mark.clause("L8")
@KINDS
def test_no_batch_of_a_search_calls_the_host(kind: Any) -> None:
    hook = options(kind)
    start = begun(hook, hook.setup(DATA))
    text = str(jax.make_jaxpr(hook.on_validation_batch_end)(start, DATA))
    assert "scatter" in text  # what was looked for could be there
    assert not any(word in text for word in ("callback", "infeed", "outfeed", "device_put"))


@pytest.mark.clause("L5")
@KINDS
def test_batches_without_maps_without_scores_and_without_samples(kind: Any) -> None:
    hook = options(kind)
    parts = [{"pred_scores": SCORES[:5], "label": LABELS[:5]}, {"anomaly_maps": MAPS[5:], "label": LABELS[5:]}]
    empty = {name: part[:0] for name, part in DATA.items()}
    state = begun(hook, hook.setup(DATA))
    for outputs in (parts[0], empty, parts[1]):
        state, _ = hook.on_validation_batch_end(state, outputs)
    state = hook.on_validation_epoch_end(state)
    scores = np.concatenate([SCORES[:5], MAPS[5:].max((1, 2))])
    raw = np.float32(best_threshold(scores, LABELS == 1))
    assert hook.thresholds(state)["image"] == pytest.approx(float(decided(kind, "image", raw)), rel=2e-6)


@KINDS
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.full), "int32"])
@pytest.mark.filterwarnings("ignore:.*not positive where a logarithm", "ignore:the scores lie so close")
def test_scores_of_other_dtypes(kind: Any, dtype: str) -> None:
    hook = options(kind)
    scores = jnp.asarray(10 * SCORES).astype(dtype)
    data = {"pred_scores": scores, "label": LABELS}
    state = hook.setup(data)
    state = (
        hook.on_validation_epoch_start(state)
        if kind is MinMaxNormalizationHook
        else hook.on_validation_epoch_start(state, dict, [{"pred_scores": jnp.asarray(10 * TRAIN_SCORES + 1)}])
    )
    state, _ = hook.on_validation_batch_end(state, data)
    found = hook.on_predict_batch_end(hook.on_validation_epoch_end(state), {"pred_scores": scores})
    raw = np.asarray(scores.astype("float32"))
    assert found["pred_labels"].tolist() == (raw >= best_threshold(raw, LABELS == 1)).tolist()
    assert found["pred_labels"].tolist() == (found["pred_scores"] >= 0.5).tolist()


@KINDS
def test_the_state_of_a_run_can_be_donated(kind: Any) -> None:
    hook = options(kind)
    step = jax.jit(lambda state, outputs: hook.on_validation_batch_end(state, outputs)[0], donate_argnums=0)
    state = jax.tree.map(jnp.array, begun(hook, hook.setup(DATA)))
    for outputs in batches(DATA):
        state = step(state, outputs)
    assert hook.thresholds(hook.on_validation_epoch_end(state)) == hook.thresholds(validated(hook, DATA))


@pytest.mark.clause("N6", "T3")
def test_normals_without_a_logarithm_are_not_flagged_either() -> None:
    scores = np.float32([0, 0, 0, 0, 0, 0, 0, 1])
    hook = options(CdfNormalizationHook, "normal_quantile")
    state = hook.on_validation_epoch_start(hook.setup({"pred_scores": scores}), dict, [{"pred_scores": TRAIN_SCORES}])
    state, _ = hook.on_validation_batch_end(state, {"pred_scores": scores, "label": np.arange(8) == 7})
    state = hook.on_validation_epoch_end(state)
    assert hook.on_predict_batch_end(state, {"pred_scores": scores})["pred_labels"].tolist() == [False] * 7 + [True]
    hook.normalizer(state).fitted_state()  # can be saved


@pytest.mark.clause("T4")
@KINDS
def test_numbers_of_a_hook_win_over_a_checkpoint_level_by_level(kind: Any) -> None:
    found = options(kind)
    state = validated(found, DATA)
    expected = found.thresholds(state)
    by_hand = found.with_threshold(state, 2.0)
    image, pixel = options(kind, 1.5, pixel_threshold="adaptive"), options(kind, pixel_threshold=1.5)
    for saved in (state, by_hand):
        arrays = found.to_arrays(saved)
        assert image.thresholds(image.restore(image.setup(DATA), arrays))["image"] == 1.5
        assert pixel.thresholds(pixel.restore(pixel.setup(DATA), arrays))["pixel"] == 1.5
    restored = image.restore(image.setup(DATA), found.to_arrays(by_hand))
    assert image.thresholds(validated(image, DATA, restored)) == {"image": 1.5, "pixel": expected["pixel"]}


@KINDS
def test_thresholds_given_as_arrays_are_copied_and_unneeded_masks_not_looked_at(kind: Any) -> None:
    hook = options(kind, 1.0)
    given = jnp.asarray(0.5)
    state = hook.with_threshold(validated(hook, DATA | {"mask": np.zeros((11, 8, 8))}), given)
    jax.jit(lambda state: state, donate_argnums=0)(state)  # no buffer stands in it twice
    assert float(given) == 0.5  # nor is one of them the caller's
    state = hook.with_threshold(validated(hook, DATA), given)
    assert state.image_threshold is not given
    assert state.image_threshold is not state.pixel_threshold
    with pytest.raises(AnomnormError, match=r"a fit ends outside jax\.jit"):
        jax.jit(hook.on_validation_epoch_end)(state)


def test_a_run_without_batches_leaves_no_nan_behind() -> None:
    hook = options(CdfNormalizationHook, 3.0, pixel_threshold="adaptive")
    state = hook.on_validation_epoch_end(begun(hook, hook.setup(DATA)))
    assert hook.thresholds(state) == {"image": 3.0, "pixel": 3.0}


@pytest.mark.clause("L6", "T4")
@KINDS
def test_a_threshold_by_hand_survives_a_number_for_the_other_level(kind: Any) -> None:
    found, pixel = options(kind), options(kind, pixel_threshold=2.0)
    arrays = found.to_arrays(found.with_threshold(validated(found, DATA), 0.75, 0.875))
    restored = pixel.restore(pixel.setup(DATA), arrays)
    assert pixel.thresholds(restored) == {"image": 0.75, "pixel": 2.0}
    assert pixel.thresholds(validated(pixel, DATA, restored)) == {"image": 0.75, "pixel": 2.0}


@pytest.mark.clause("L6")
def test_a_checkpoint_of_a_hook_with_another_scale_is_an_error() -> None:
    for one, other in (
        (options(MinMaxNormalizationHook), options(MinMaxNormalizationHook, shared_range=True)),
        (options(CdfNormalizationHook), options(CdfNormalizationHook, center="pixel")),
    ):
        with pytest.raises(AnomnormError, match="option center or shared_range is not that of this one"):
            other.restore(other.setup(DATA), one.to_arrays(validated(one, DATA)))


@pytest.mark.clause("L1", "L6")
@KINDS
def test_arrays_put_into_a_fresh_state_by_hand_are_no_validation_run(kind: Any) -> None:
    # Whether a threshold is in raw units, or was set by hand, is not in the leaves.
    hook = options(kind)
    fresh, state = hook.setup(DATA), validated(hook, DATA)
    filled = jax.tree.unflatten(jax.tree.structure(fresh), jax.tree.leaves(state))
    with pytest.raises(NotFittedError, match=r"no outputs came in this validation run.* hook\.restore"):
        hook.on_validation_epoch_end(filled)


@pytest.mark.clause("L1")
def test_a_second_run_with_one_fit_finds_its_own_thresholds() -> None:
    hook = options(CdfNormalizationHook)
    state = validated(hook, DATA)
    half = {name: value[:6] for name, value in DATA.items()}
    state, _ = hook.on_validation_batch_end(state, half)
    once, _ = hook.on_validation_batch_end(begun(hook, hook.setup(DATA)), half)
    found, expected = (hook.thresholds(hook.on_validation_epoch_end(s)) for s in (state, once))
    assert found == expected


@pytest.mark.clause("S1")
@KINDS
def test_states_that_were_fitted_each_on_its_own_are_not_merged(kind: Any) -> None:
    hook = options(kind)
    state = validated(hook, DATA)
    other = validated(hook, DATA | {"pred_scores": 2 * DATA["pred_scores"]})
    if kind is CdfNormalizationHook:
        start = hook.setup(DATA)
        double = [{"pred_scores": 2 * TRAIN_SCORES, "anomaly_maps": TRAIN_MAPS}]
        other = hook.on_validation_epoch_start(start, dict, double)
    with pytest.raises(AnomnormError, match="a finished fit is not merged"):
        hook.merge(state, other)


@pytest.mark.clause("S6", "T3")
@KINDS
def test_warnings_point_at_the_line_that_led_to_them(kind: Any) -> None:
    hook = options(kind, "normal_quantile")
    bad = np.float32([1.0, 2.0, 3.0, np.nan])
    state = hook.setup({"pred_scores": bad})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind is CdfNormalizationHook:
            state = hook.on_validation_epoch_start(state, dict, [{"pred_scores": bad}])
        else:
            state = hook.on_validation_epoch_start(state)
        state, _ = hook.on_validation_batch_end(state, {"pred_scores": bad})
        hook.on_validation_epoch_end(state)
    assert [warning.filename for warning in caught] == [__file__]
