"""The hooks over whole life cycles: statistics, z-scores, unit scores, labels and masks against NumPy in float64."""

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_core import (
    AnomnormError,
    Center,
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    OnInvalid,
    OptionError,
    OutputError,
    ResolutionError,
)
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, _counter, cdf, min_max

Outputs = dict[str, Any]
Hook = MinMaxNormalizationHook | CdfNormalizationHook
SIZE = (2, 3)
UNIT = 2.0**-23  # clause N13
FULL = pytest.mark.full
HOOKS = pytest.mark.parametrize("hook_type", [MinMaxNormalizationHook, CdfNormalizationHook])


def _steps(seed: int, shift: float = 1.0, batches: int = 4) -> list[Outputs]:
    """What a detector returns over an epoch: float32 scores that are not the maxima of their maps."""
    rng = np.random.default_rng(seed)
    return [
        {
            "pred_scores": (shift * np.exp(rng.normal(0.5, 0.25, size=size))).astype(np.float32),
            "anomaly_maps": (shift * np.exp(rng.normal(-0.5, 0.3, size=(size, 1, *SIZE)))).astype(np.float32),
        }
        for size in (3, 6, 1, 3)[:batches]  # every size is compiled
    ]


def _all(steps: list[Outputs], name: str) -> np.ndarray:
    return np.concatenate([step[name] for step in steps]).astype(np.float64)


def _without(steps: list[Outputs], name: str) -> list[Outputs]:
    return [{key: value for key, value in step.items() if key != name} for step in steps]


def _validated(hook: MinMaxNormalizationHook, state: Any, steps: list[Outputs]) -> Any:
    state = hook.on_validation_epoch_start(state)
    for outputs in steps:
        state, unchanged = hook.on_validation_batch_end(state, outputs)
        assert unchanged is outputs
    return hook.on_validation_epoch_end(state)


def _fitted(hook: Hook, steps: list[Outputs]) -> Any:
    state = hook.setup(steps[0])
    if isinstance(hook, MinMaxNormalizationHook):
        return _validated(hook, state, steps)
    return hook.on_validation_epoch_start(state, dict, steps)


def _min_max(x: np.ndarray, t: float, low: float, high: float) -> np.ndarray:
    return np.clip((x - np.float32(t)) / (high - low) + 0.5, 0.0, 1.0)


def _phi(z: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2.0)), otypes=[float])(z)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.log(x).mean(axis=0), np.log(x).std(axis=0, ddof=1)


def _assert_near(found: Any, expected: np.ndarray, rtol: float = 0.0, atol: float = UNIT) -> None:
    assert isinstance(found, jax.Array)
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=rtol, atol=atol)


def _assert_z(found: Any, expected: np.ndarray) -> None:
    _assert_near(found, expected, rtol=1e-5, atol=1e-5)  # moments are within 1e-5 (clause S4)


# Min-max


@pytest.mark.clause("L1", "N1", "N4")
@pytest.mark.parametrize("pixel_threshold", [None, 0.625])
def test_min_max_statistics_are_those_of_the_last_epoch_at_both_levels(pixel_threshold: float | None) -> None:
    hook = MinMaxNormalizationHook(threshold=1.5, pixel_threshold=pixel_threshold)
    steps = _steps(1)
    state = hook.setup(steps[0])
    for seed, shift in ((2, 100.0), (1, 1.0)):  # an earlier, wider epoch would survive in a maximum
        state = _validated(hook, state, _steps(seed, shift))
    x, maps = _all(steps, "pred_scores"), _all(steps, "anomaly_maps")
    assert [float(value) for value in min_max.bounds(state.image)] == [x.min(), x.max()]
    assert [float(value) for value in min_max.bounds(state.pixel)] == [maps.min(), maps.max()]
    assert (_counter.to_int(state.image.count), _counter.to_int(state.pixel.count)) == (x.size, maps.size)

    t_pixel = 1.5 if pixel_threshold is None else pixel_threshold
    for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
        for outputs in _steps(3):
            x_new, maps_new = (outputs[name].astype(np.float64) for name in ("pred_scores", "anomaly_maps"))
            found = stage(state, outputs)
            assert set(found) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
            _assert_near(found["pred_scores"], _min_max(x_new, 1.5, x.min(), x.max()))
            _assert_near(found["anomaly_maps"], _min_max(maps_new, t_pixel, maps.min(), maps.max()))
            assert found["pred_labels"].tolist() == (x_new >= 1.5).tolist()
            assert found["pred_masks"].tolist() == (maps_new >= t_pixel).tolist()


@pytest.mark.clause("N1")
def test_min_max_shared_range_is_that_of_the_maps_at_both_levels() -> None:
    hook = MinMaxNormalizationHook(threshold=0.75, shared_range=True)
    steps = _steps(4)
    found = hook.on_test_batch_end(_fitted(hook, steps), steps[0])
    maps = _all(steps, "anomaly_maps")
    for name in ("pred_scores", "anomaly_maps"):
        x = steps[0][name].astype(np.float64)
        _assert_near(found[name], _min_max(x, 0.75, maps.min(), maps.max()))


@pytest.mark.clause("N1")
def test_min_max_shared_range_is_that_of_the_scores_where_there_are_no_maps() -> None:
    hook = MinMaxNormalizationHook(threshold=1.5, shared_range=True)
    steps = _without(_steps(4), "anomaly_maps")
    found = hook.on_test_batch_end(_fitted(hook, steps), steps[0])
    x = _all(steps, "pred_scores")
    _assert_near(found["pred_scores"], _min_max(steps[0]["pred_scores"].astype(np.float64), 1.5, x.min(), x.max()))


@pytest.mark.clause("L3", "S6")
def test_min_max_statistics_take_labelled_anomalies_in() -> None:
    hook = MinMaxNormalizationHook(threshold=1.5)
    outputs = {"pred_scores": np.float32([1.0, 9.0]), "label": np.array([0, 1])}
    assert [float(value) for value in min_max.bounds(_fitted(hook, [outputs]).image)] == [1.0, 9.0]


@pytest.mark.clause("N7")
def test_min_max_of_one_constant_value_steps_at_the_threshold() -> None:
    hook = MinMaxNormalizationHook(threshold=2.0)
    state = _fitted(hook, [{"pred_scores": np.full(4, 5.0, np.float32)}])
    found = hook.on_predict_batch_end(state, {"pred_scores": np.float32([0.0, 1.9999999, 2.0, 5.0])})
    assert found["pred_scores"].tolist() == [0.0, 0.0 if np.float32(1.9999999) < 2.0 else 0.5, 0.5, 1.0]
    assert found["pred_labels"].tolist() == [False, bool(np.float32(1.9999999) >= 2.0), True, True]


# CDF


@pytest.mark.clause("L1", "L3", "N2", "N3", "N4")
@pytest.mark.parametrize(
    ("center", "pixel_threshold"),
    [
        ("image", None),
        ("pixel", -4.25),
        pytest.param("image", -4.25, marks=FULL),
        pytest.param("pixel", None, marks=FULL),
    ],
)
def test_cdf_life_cycle_of_two_epochs(center: str, pixel_threshold: float | None) -> None:
    hook = CdfNormalizationHook(threshold=1.25, pixel_threshold=pixel_threshold, center=center, progress=False)
    training = _steps(5)
    state = hook.setup(training[0])
    for seed, shift in ((6, 50.0), (5, 1.0)):
        state = hook.on_validation_epoch_start(state, dict, _steps(seed, shift))
        for outputs in _steps(7):
            after, _ = hook.on_validation_batch_end(state, outputs)
            assert jax.tree.structure(after) == jax.tree.structure(state)
        state = hook.on_validation_epoch_end(state)
    mean, std = _moments(_all(training, "pred_scores"))
    pixel_mean, pixel_std = _moments(_all(training, "anomaly_maps")[:, 0])
    for record, expected, level in (
        (state.image, (mean, std), "image"),
        (state.pixel, (pixel_mean, pixel_std), "pixel"),
    ):
        for found, wanted in zip(cdf.mean_std(record, level=level), expected, strict=True):
            _assert_near(found, wanted, rtol=1e-6, atol=0.0)
        assert np.all(np.asarray(record.count) == 13)

    t_pixel = 1.25 if pixel_threshold is None else pixel_threshold
    at = mean if center == "image" else pixel_mean
    for outputs in _steps(8, shift=1.5):
        x, maps = (outputs[name].astype(np.float64) for name in ("pred_scores", "anomaly_maps"))
        z, z_maps = (np.log(x) - mean) / std, (np.log(maps) - at) / pixel_std
        _, validated = hook.on_validation_batch_end(state, outputs)
        assert set(validated) == {"pred_scores", "anomaly_maps"}
        _assert_z(validated["pred_scores"], z)
        _assert_z(validated["anomaly_maps"], z_maps)
        for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
            found = stage(state, outputs)
            assert set(found) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
            _assert_near(found["pred_scores"], _phi(z - 1.25), atol=5e-6)
            _assert_near(found["anomaly_maps"], _phi(z_maps - t_pixel), atol=1e-5)
            assert found["pred_labels"].tolist() == (z >= 1.25).tolist()
            assert found["pred_masks"].tolist() == (z_maps >= t_pixel).tolist()
            assert found["pred_labels"].tolist() == (found["pred_scores"] >= 0.5).tolist()


@pytest.mark.clause("L3")
@pytest.mark.parametrize("name", ["label", "gt_label"])
@pytest.mark.parametrize(
    "labels", [np.array([0, 1, 0]), np.array([[False], [True], [False]]), np.array([0.0, 2.0, 0.0])]
)
def test_cdf_leaves_out_samples_labelled_anomalous(name: str, labels: np.ndarray) -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    training = [step for step in _steps(9, batches=1) for _ in range(2)]
    kept = np.concatenate([step["pred_scores"][[0, 2]] for step in training]).astype(np.float64)
    kept_maps = np.concatenate([step["anomaly_maps"][[0, 2], 0] for step in training]).astype(np.float64)
    labelled = [
        {**step, name: labels, "pred_scores": step["pred_scores"] * np.float32([1.0, 100.0, 1.0])} for step in training
    ]
    state = _fitted(hook, labelled)
    for record, expected in ((state.image, kept), (state.pixel, kept_maps)):
        for found, wanted in zip(cdf.mean_std(record), _moments(expected), strict=True):
            _assert_near(found, wanted, rtol=1e-6, atol=1e-6)
        assert np.all(np.asarray(record.count) == 4)
        assert np.all(np.asarray(record.invalid) == 0)  # left out by label is not invalid


@pytest.mark.clause("L3")
def test_cdf_prefers_label_to_gt_label_and_takes_missing_labels_for_normal() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    scores = np.float32([1.0, 2.0, 4.0])
    both = {"pred_scores": scores, "label": np.array([0, 1, 0]), "gt_label": np.array([1, 0, 0])}
    mean, _ = cdf.mean_std(_fitted(hook, [both]).image)
    assert float(mean) == pytest.approx(math.log(4.0) / 2, rel=1e-6)
    mean, _ = cdf.mean_std(_fitted(hook, [{"pred_scores": scores, "label": None}]).image)
    assert float(mean) == pytest.approx(math.log(8.0) / 3, rel=1e-6)


@pytest.mark.clause("L3", "N8")
def test_cdf_on_anomalies_only_is_an_error() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    with pytest.raises(NotFittedError, match="seen no value"):
        _fitted(hook, [{"pred_scores": np.float32([1.0, 2.0]), "label": np.array([1, 1])}])


@pytest.mark.clause("S7")
def test_cdf_on_a_single_image_is_an_error() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    with pytest.raises(InsufficientDataError, match="1 valid value"):
        _fitted(hook, [{"pred_scores": np.float32([1.0])}])


@pytest.mark.clause("L3")
def test_cdf_predicts_each_training_batch_once_and_reads_any_iterable() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    seen: list[float] = []

    def predict(batch: float) -> Outputs:
        seen.append(batch)
        return {"pred_scores": jnp.asarray([1.0, 2.0]) * batch}

    def batches() -> Iterator[float]:
        yield from (1.0, 2.0, 3.0)

    state = hook.on_validation_epoch_start(hook.setup(predict(0.0)), predict, batches())
    assert seen == [0.0, 1.0, 2.0, 3.0]
    assert int(state.image.count) == 6


@pytest.mark.clause("L3")
@pytest.mark.parametrize("progress", [True, False])
def test_cdf_shows_a_progress_bar_only_if_asked_to(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=progress)
    _fitted(hook, _steps(10))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("Collecting normal scores" in captured.err) is progress
    assert bool(captured.err) is progress


@pytest.mark.clause("N6")
def test_cdf_of_zero_negative_and_nan_scores() -> None:
    hook = CdfNormalizationHook(threshold=-1.0, progress=False)
    state = _fitted(hook, _without(_steps(11), "anomaly_maps"))
    outputs = {"pred_scores": np.float32([0.0, -1.0, np.nan, np.inf])}
    _, validated = hook.on_validation_batch_end(state, outputs)
    np.testing.assert_array_equal(np.asarray(validated["pred_scores"]), [-np.inf, -np.inf, np.nan, np.inf])
    found = hook.on_test_batch_end(state, outputs)
    np.testing.assert_array_equal(np.asarray(found["pred_scores"]), [0.0, 0.0, np.nan, 1.0])
    assert found["pred_labels"].tolist() == [False, False, False, True]


@pytest.mark.clause("N7")
def test_cdf_of_a_constant_population_steps_at_its_value() -> None:
    hook = CdfNormalizationHook(threshold=0.0, progress=False)
    state = _fitted(hook, [{"pred_scores": np.full(5, 20.0, np.float32)}] * 2)
    found = hook.on_test_batch_end(state, {"pred_scores": np.float32([19.0, 20.0, 21.0])})
    assert found["pred_scores"].tolist() == [0.0, 0.5, 1.0]
    assert found["pred_labels"].tolist() == [False, True, True]


# Both hooks: what a step may return


@pytest.mark.clause("L5")
@HOOKS
def test_missing_scores_are_the_maxima_of_the_maps(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(12)
    given = [{**step, "pred_scores": step["anomaly_maps"].max(axis=(1, 2, 3))} for step in steps]
    expected = hook.on_test_batch_end(_fitted(hook, given), given[0])
    for axes in ((), (1,)):  # with and without the channel axis
        bare = [{"anomaly_maps": np.squeeze(step["anomaly_maps"], axis=axes)} for step in steps]
        found = hook.on_test_batch_end(_fitted(hook, bare), bare[0])
        assert found["anomaly_maps"].shape == bare[0]["anomaly_maps"].shape == found["pred_masks"].shape
        assert found["pred_scores"].tolist() == expected["pred_scores"].tolist()
        assert found["pred_labels"].tolist() == expected["pred_labels"].tolist()
        assert found["anomaly_maps"].ravel().tolist() == expected["anomaly_maps"].ravel().tolist()


@pytest.mark.clause("L5", "T6")
@HOOKS
def test_missing_maps_give_no_maps_and_no_masks(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(13)
    with_maps = hook.on_test_batch_end(_fitted(hook, steps), steps[0])
    bare = _without(steps, "anomaly_maps")
    for absent in (bare, [{**step, "anomaly_maps": None} for step in bare]):
        found = hook.on_test_batch_end(_fitted(hook, absent), absent[0])
        assert "pred_masks" not in found
        assert found.get("anomaly_maps") is None
        assert found["pred_scores"].tolist() == with_maps["pred_scores"].tolist()
    # one batch without maps, at a state that knows maps
    found = hook.on_test_batch_end(_fitted(hook, steps), bare[0])
    assert set(found) == {"pred_scores", "pred_labels"}


@pytest.mark.clause("L4", "L5")
@HOOKS
def test_other_entries_pass_through_untouched(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = [
        {
            **step,
            "image_path": [f"{i}.png" for i in range(len(step["pred_scores"]))],
            "split": "test",
            "extra": object(),
        }
        for step in _steps(14)
    ]
    state = _fitted(hook, steps)
    outputs = {**steps[0], "mask": np.ones((3, *SIZE)), "label": np.zeros(3)}
    before = dict(outputs)
    results: list[Mapping[str, Any]] = [
        hook.on_test_batch_end(state, outputs),
        hook.on_predict_batch_end(state, outputs),
    ]
    if isinstance(hook, CdfNormalizationHook):
        results.append(hook.on_validation_batch_end(state, outputs)[1])
    for found in results:
        for name in ("image_path", "split", "extra", "mask", "label"):
            assert found[name] is outputs[name]
    assert list(outputs) == list(before)
    assert all(outputs[name] is before[name] for name in before)  # a new dict; the old one is as it was


@pytest.mark.clause("L9", "N9")
@HOOKS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.full)])
def test_half_precision_outputs_keep_their_dtype_beside_float32_statistics(hook_type: type[Hook], dtype: Any) -> None:
    hook = hook_type(threshold=1.0)
    steps = [{name: jnp.asarray(value, dtype=dtype) for name, value in step.items()} for step in _steps(15)]
    state = _fitted(hook, steps)
    x = np.concatenate([np.asarray(step["pred_scores"], dtype=np.float64) for step in steps])
    if isinstance(hook, MinMaxNormalizationHook):
        expected = _min_max(x[:3], 1.0, x.min(), x.max())
    else:
        mean, std = _moments(x)
        _assert_near(cdf.mean_std(state.image)[0], mean, rtol=1e-6, atol=0.0)
        # z is handed on in half precision between its own float32 arithmetic and that of Phi
        expected = _phi((np.log(x[:3]) - mean) / std - 1.0)
    used = ["float32", "uint32", *(["bool"] if hook_type is CdfNormalizationHook else [])]
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(name) for name in used}
    found = hook.on_test_batch_end(state, steps[0])
    assert found["pred_scores"].dtype == found["anomaly_maps"].dtype == dtype
    assert found["pred_labels"].dtype == found["pred_masks"].dtype == bool
    _assert_near(found["pred_scores"], expected, atol=2.0 * float(jnp.finfo(dtype).eps))


@pytest.mark.clause("L5")
@HOOKS
def test_outputs_without_scores_are_an_error_that_lists_what_was_found_and_needed(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    state = _fitted(hook, _steps(16))
    wrong = {"scores": np.ones(2), "label": np.zeros(2), "pred_scores": None}
    calls = [lambda: hook.setup(wrong), lambda: hook.on_test_batch_end(state, wrong)]
    calls += [lambda: hook.on_predict_batch_end(state, wrong), lambda: hook.on_validation_batch_end(state, wrong)]
    for call in calls:
        with pytest.raises(OutputError) as caught:
            call()
        message = str(caught.value)
        assert "(dict) hold 'label', 'pred_scores', 'scores'" in message
        for needed in ("'pred_scores' of shape (B,)", "'anomaly_maps' of shape (B, 1, H, W) or (B, H, W)", "Return"):
            assert needed in message
    assert issubclass(OutputError, TypeError)


@pytest.mark.clause("L5")
@HOOKS
@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (None, "(NoneType) hold nothing"),
        (np.ones(3), "(ndarray) hold nothing"),
        ([{"pred_scores": np.ones(3)}], "(list) hold nothing"),
        (SimpleNamespace(score=1, image=2), "(SimpleNamespace) hold 'image', 'score'"),
        ({}, "(dict) hold nothing"),
    ],
    ids=["None", "array", "list", "object", "empty"],
)
def test_outputs_that_are_no_mapping_are_an_error(hook_type: type[Hook], outputs: Any, found: str) -> None:
    with pytest.raises(OutputError) as caught:
        hook_type(threshold=1.0).setup(outputs)
    assert found in str(caught.value)


@pytest.mark.clause("L5")
def test_the_error_for_an_object_with_scores_does_not_ask_for_what_was_given() -> None:
    with pytest.raises(OutputError) as caught:
        MinMaxNormalizationHook(threshold=1.0).setup(SimpleNamespace(pred_score=np.ones(3)))  # type: ignore[arg-type]
    assert "attributes" not in str(caught.value)


@pytest.mark.clause("L5")
@HOOKS
@pytest.mark.parametrize(
    ("name", "value"),
    [("pred_scores", [1.0, 2.0, 3.0]), ("anomaly_maps", [[[1.0]]]), ("pred_scores", 1.0)],
    ids=["scores", "maps", "number"],
)
def test_a_field_that_is_no_array_is_an_error_naming_it(hook_type: type[Hook], name: str, value: Any) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(17)
    with pytest.raises(OutputError, match=f"^'{name}' in the step's outputs .* {type(value).__name__}; .*an array"):
        hook.on_test_batch_end(_fitted(hook, steps), {**steps[0], name: value})


@pytest.mark.clause("L5")
@HOOKS
def test_labels_that_are_no_array_are_an_error_where_a_threshold_is_searched(hook_type: type[Hook]) -> None:
    hook = hook_type()
    steps = _steps(17)
    state = hook.setup(steps[0])
    if isinstance(hook, CdfNormalizationHook):
        state = hook.on_validation_epoch_start(state, lambda step: step, steps)
    else:
        state = hook.on_validation_epoch_start(state)
    with pytest.raises(OutputError, match=r"^'label' in the step's outputs .* list; .*an array"):
        hook.on_validation_batch_end(state, {**steps[0], "label": [0, 1, 0]})


@pytest.mark.clause("L5")
@HOOKS
def test_setup_reads_shapes_as_well_as_arrays(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    outputs = _steps(18)[0]
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in outputs.items()}
    for a, b in zip(jax.tree.leaves(hook.setup(shapes)), jax.tree.leaves(hook.setup(outputs)), strict=True):
        assert (a.shape, a.dtype, a.tolist()) == (b.shape, b.dtype, b.tolist())


# Both hooks: states that do not fit


@pytest.mark.clause("N8")
@HOOKS
@pytest.mark.parametrize("jit", [False, True])
def test_an_unfitted_state_is_an_error_that_says_what_to_run(hook_type: type[Hook], jit: bool) -> None:
    hook = hook_type(threshold=1.0)
    outputs = _steps(19)[0]
    state = hook.setup(outputs)
    stages = [hook.on_test_batch_end, hook.on_predict_batch_end]
    if isinstance(hook, CdfNormalizationHook):
        stages.append(hook.on_validation_batch_end)  # type: ignore[arg-type]
    for stage in stages:
        with pytest.raises(NotFittedError, match="on_validation_epoch_end"):
            (jax.jit(stage) if jit else stage)(state, outputs)


@pytest.mark.clause("N8", "L1")
def test_min_max_is_unfitted_again_from_the_start_of_a_validation_run_to_its_end() -> None:
    hook = MinMaxNormalizationHook(threshold=1.0)
    steps = _steps(20)
    state = hook.on_validation_epoch_start(_fitted(hook, steps))
    with pytest.raises(NotFittedError):
        hook.on_test_batch_end(state, steps[0])
    state, _ = hook.on_validation_batch_end(state, steps[0])
    with pytest.raises(NotFittedError):
        hook.on_test_batch_end(state, steps[0])
    hook.on_test_batch_end(hook.on_validation_epoch_end(state), steps[0])


@pytest.mark.clause("N8")
@HOOKS
def test_ending_a_run_that_saw_nothing_is_an_error(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    with pytest.raises(NotFittedError, match="image-level statistics have seen no value"):
        hook.on_validation_epoch_end(hook.setup(_steps(21)[0]))
    with pytest.raises(NotFittedError, match="image-level statistics have seen no value"):
        _fitted(hook, [{"pred_scores": np.empty(0, np.float32)}])


@pytest.mark.clause("L6", "N8")
@HOOKS
def test_arrays_restored_into_a_fresh_state_are_usable_once_checked(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(22)
    state = _fitted(hook, steps)
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    fresh = hook.setup(steps[0])
    restored = jax.tree.unflatten(jax.tree.structure(fresh), saved)
    with pytest.raises(NotFittedError):
        hook.on_test_batch_end(restored, steps[0])
    found = hook.on_test_batch_end(hook.on_validation_epoch_end(restored), steps[0])
    expected = hook.on_test_batch_end(state, steps[0])
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in expected.items()}


@pytest.mark.clause("L5", "N8")
@HOOKS
def test_maps_at_a_state_set_up_without_them_are_an_error(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(23)
    bare = _without(steps, "anomaly_maps")
    state = _fitted(hook, bare)
    begun = hook.on_validation_epoch_start(state) if isinstance(hook, MinMaxNormalizationHook) else state
    for stage, given in (
        (hook.on_test_batch_end, state),
        (hook.on_predict_batch_end, state),
        (hook.on_validation_batch_end, begun),
    ):
        with pytest.raises(NotFittedError, match=r"'anomaly_maps'.*hook\.setup\(outputs\)"):
            stage(given, steps[0])
    if isinstance(hook, CdfNormalizationHook):
        with pytest.raises(NotFittedError, match="set up from outputs without them"):
            hook.on_validation_epoch_start(state, dict, steps)


@pytest.mark.clause("L5", "N8")
@HOOKS
def test_maps_that_the_fit_never_saw_are_an_error_and_scores_alone_are_not(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(31)
    bare = _without(steps, "anomaly_maps")
    state = hook.setup(steps[0])
    if isinstance(hook, MinMaxNormalizationHook):
        state = _validated(hook, state, bare)
    else:
        state = hook.on_validation_epoch_start(state, dict, bare)
    assert hook.on_test_batch_end(state, bare[0])["pred_labels"].shape == (3,)
    for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
        with pytest.raises(NotFittedError, match="the pixel-level statistics of the state have not been fitted"):
            stage(state, steps[0])


@pytest.mark.clause("S8")
@pytest.mark.parametrize("shape", [(3, 1, 3, 2), (3, 2, 1), (3, 1, 1, 3), (3, 1, 4, 6)], ids=str)
def test_cdf_maps_of_another_resolution_are_an_error_naming_both_shapes(shape: tuple[int, ...]) -> None:
    hook = CdfNormalizationHook(threshold=1.0, progress=False)
    steps = _steps(24)
    state = _fitted(hook, steps)
    outputs = {"anomaly_maps": np.ones(shape, np.float32)}
    height, width = shape[-2:]
    for stage in (hook.on_validation_batch_end, hook.on_test_batch_end, hook.on_predict_batch_end):
        with pytest.raises(ResolutionError, match=rf"{height}, {width}\).*\(2, 3\)"):
            stage(state, outputs)
    with pytest.raises(ResolutionError, match=rf"\(2, 3\).*{height}, {width}\)"):
        hook.on_validation_epoch_start(state, dict, [outputs])


# Both hooks: invalid scores


def _with_invalid(steps: list[Outputs]) -> list[Outputs]:
    """One NaN image score, an infinite one, and one NaN pixel, in two different batches."""
    steps = [{name: value.copy() for name, value in step.items()} for step in steps]
    steps[0]["pred_scores"][1] = np.nan
    steps[3]["pred_scores"][0] = np.inf
    steps[1]["anomaly_maps"][4, 0, 1, 2] = np.nan
    return steps


@pytest.mark.clause("S6")
@HOOKS
def test_invalid_scores_warn_once_per_fit_and_stay_out_of_the_statistics(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _with_invalid(_steps(25))
    for _ in range(2):  # a second fit warns again
        with pytest.warns(InvalidScoreWarning) as caught:
            state = _fitted(hook, steps)
        (warning,) = caught
        assert str(warning.message).startswith("2 of 13 image-level values and 1 of 78 pixel-level values are NaN")
    x = _all(steps, "pred_scores")
    maps = _all(steps, "anomaly_maps")
    x = x[np.isfinite(x)]
    if isinstance(hook, MinMaxNormalizationHook):
        assert [float(value) for value in min_max.bounds(state.image)] == [x.min(), x.max()]
        assert [float(value) for value in min_max.bounds(state.pixel)] == [np.nanmin(maps), np.nanmax(maps)]
    else:
        for found, wanted in zip(cdf.mean_std(state.image), _moments(x), strict=True):
            _assert_near(found, wanted, rtol=1e-6, atol=0.0)
        expected = np.nanmean(np.log(maps[:, 0]), axis=0), np.nanstd(np.log(maps[:, 0]), axis=0, ddof=1)
        for found, wanted in zip(cdf.mean_std(state.pixel), expected, strict=True):
            _assert_near(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.clause("S6")
def test_scores_without_a_logarithm_are_invalid_for_the_cdf_only() -> None:
    outputs = {"pred_scores": np.float32([0.0, -1.0, 1.0, 2.0])}
    with pytest.warns(InvalidScoreWarning, match="^2 of 4 image-level") as caught:
        _fitted(CdfNormalizationHook(threshold=1.0, progress=False), [outputs])
    assert len(caught) == 1
    state = _fitted(MinMaxNormalizationHook(threshold=1.0), [outputs])  # any warning would be an error
    assert [float(value) for value in min_max.bounds(state.image)] == [-1.0, 2.0]


@pytest.mark.clause("S6")
@HOOKS
def test_invalid_scores_are_an_error_with_level_and_count_under_raise(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0, on_invalid="raise")
    steps = _steps(26)
    invalid = _with_invalid(steps)
    with pytest.raises(InvalidScoreError, match=r"^2 of 13 image-level values"):
        _fitted(hook, invalid)
    for step, valid in zip(invalid, steps, strict=True):
        step["pred_scores"] = valid["pred_scores"]
    with pytest.raises(InvalidScoreError, match=r"^1 of 78 pixel-level values"):
        _fitted(hook, invalid)
    assert _fitted(hook, steps).fitted


@pytest.mark.clause("S6", "N8")
@HOOKS
def test_nothing_but_invalid_scores_is_an_error(hook_type: type[Hook]) -> None:
    outputs = {"pred_scores": np.float32([np.nan, np.inf, -np.inf])}
    with pytest.raises(NotFittedError, match=r"^all 3 image-level values were invalid"):
        _fitted(hook_type(threshold=1.0), [outputs])
    with pytest.raises(InvalidScoreError, match=r"^3 of 3 image-level"):
        _fitted(hook_type(threshold=1.0, on_invalid="raise"), [outputs])


@pytest.mark.clause("N6")
@HOOKS
def test_nan_scores_stay_nan_and_are_never_flagged(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=-100.0)
    steps = _steps(27)
    found = hook.on_test_batch_end(_fitted(hook, steps), _with_invalid(steps)[0])
    assert np.isnan(np.asarray(found["pred_scores"])).tolist() == [False, True, False]
    assert found["pred_labels"].tolist() == [True, False, True]
    found = hook.on_test_batch_end(_fitted(hook, steps), _with_invalid(steps)[1])
    assert np.isnan(np.asarray(found["anomaly_maps"])).sum() == 1
    np.testing.assert_array_equal(np.asarray(found["pred_masks"]), ~np.isnan(np.asarray(found["anomaly_maps"])))


# Both hooks: thresholds, options, hashing


@pytest.mark.clause("T4", "T6")
@HOOKS
def test_a_threshold_can_be_changed_after_the_fit(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0, pixel_threshold=2.0)
    steps = _steps(28)
    state = _fitted(hook, steps)
    for threshold, pixel_threshold in ((1.5, None), (jnp.float32(0.25), np.float64(0.75))):
        changed = hook.with_threshold(state, threshold, pixel_threshold)
        assert changed.fitted
        assert changed.image is state.image
        assert changed.pixel is state.pixel
        direct = hook_type(threshold=float(threshold), pixel_threshold=float(pixel_threshold or 2.0))
        found = hook.on_test_batch_end(changed, steps[0])
        expected = direct.on_test_batch_end(_fitted(direct, steps), steps[0])
        assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in expected.items()}
    assert float(state.image_threshold) == 1.0  # the old state is as it was
    assert float(state.pixel_threshold) == 2.0


@pytest.mark.clause("T4", "T6")
@HOOKS
def test_a_pixel_threshold_of_its_own_stays_and_one_number_for_both_moves_both(hook_type: type[Hook]) -> None:
    steps = _steps(28)
    both = hook_type(threshold=1.0)
    state = both.with_threshold(_fitted(both, steps), 1.5)
    assert both.thresholds(state) == {"image": 1.5, "pixel": 1.5}
    assert both.thresholds(both.with_threshold(state, pixel_threshold=2.5)) == {"image": 1.5, "pixel": 2.5}
    assert both.thresholds(both.with_threshold(state)) == {"image": 1.0, "pixel": 1.0}
    with pytest.raises(OptionError, match=r"^threshold has shape \(3,\); one number"):
        both.with_threshold(state, jnp.ones(3))
    with pytest.raises(OptionError, match=r"^pixel_threshold has shape \(3,\); one number"):
        both.with_threshold(state, None, np.ones(3))


@pytest.mark.clause("T4")
@HOOKS
@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan")], ids=repr)
def test_a_threshold_changed_to_no_finite_number_is_an_error(hook_type: type[Hook], value: float) -> None:
    hook = hook_type(threshold=1.0)
    state = hook.setup(_steps(32)[0])
    with pytest.raises(OptionError, match=rf"^threshold={value} is not finite"):
        hook.with_threshold(state, value)
    with pytest.raises(OptionError, match=rf"^pixel_threshold={value} is not finite"):
        hook.with_threshold(state, 1.0, value)


@pytest.mark.clause("T4", "N4")
def test_the_score_at_the_threshold_is_flagged_and_gets_one_half() -> None:
    hook = MinMaxNormalizationHook(threshold=0.0)
    steps = _steps(29)
    exact = steps[0]["pred_scores"][0]
    state = hook.with_threshold(_fitted(hook, steps), exact)
    around = np.float32([np.nextafter(exact, np.float32(0)), exact, np.nextafter(exact, np.float32(9))])
    found = hook.on_test_batch_end(state, {"pred_scores": around})
    assert found["pred_labels"].tolist() == [False, True, True]
    assert found["pred_scores"][1] == 0.5
    assert (found["pred_scores"] >= 0.5).tolist() == [False, True, True]


@pytest.mark.clause("T4")
@HOOKS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0, "capacity": 0}, "capacity=0 is no number of images"),
        ({"normal_quantile": 2.0}, "normal_quantile=2.0 is not a quantile"),
        ({"threshold": math.nan}, "threshold=nan is not finite"),
        (
            {"threshold": "high"},
            "threshold='high' is not an option; give a finite number or one of 'adaptive', ",
        ),
        ({"threshold": 1.0, "pixel_threshold": math.inf}, "pixel_threshold=inf is not finite"),
        (
            {"threshold": 1.0, "on_invalid": "ignore"},
            "on_invalid='ignore' is not an option; use one of 'warn', 'raise'",
        ),
    ],
    ids=["capacity", "quantile", "nan", "word", "infinite", "on_invalid"],
)
def test_a_wrong_option_is_an_error_where_the_hook_is_made(
    hook_type: type[Hook], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        hook_type(**options)
    assert message in str(caught.value)


@pytest.mark.clause("T4")
@HOOKS
def test_a_threshold_of_one_number_in_an_array_is_taken_as_that_number(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=np.array(1.5))  # type: ignore[arg-type]
    assert hash(hook) == hash(hook_type(threshold=1.5))
    steps = _steps(30)
    assert _fitted(hook, steps).fitted


def test_a_wrong_center_is_an_error_where_the_hook_is_made() -> None:
    with pytest.raises(OptionError, match="center='corner' is not an option; use one of 'image', 'pixel'"):
        CdfNormalizationHook(threshold=1.0, center="corner")


@HOOKS
def test_hooks_of_equal_options_are_equal_and_hash_alike(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    same = hook_type(threshold=1.0, pixel_threshold=None, on_invalid=OnInvalid.WARN)
    assert hook == same == hook_type(1.0, on_invalid="warn")
    assert hash(hook) == hash(same)
    assert len({hook, same}) == 1
    others = [hook_type(2.0), hook_type(1.0, pixel_threshold=1.0), hook_type(1.0, on_invalid="raise")]
    assert hook not in others
    with pytest.raises(AttributeError):
        hook.threshold = 2.0  # type: ignore[misc]


def test_hooks_of_other_options_and_types_differ() -> None:
    assert MinMaxNormalizationHook(1.0) != MinMaxNormalizationHook(1.0, shared_range=True)
    assert CdfNormalizationHook(1.0) != CdfNormalizationHook(1.0, center="pixel")
    assert CdfNormalizationHook(1.0, center="pixel") == CdfNormalizationHook(1.0, center=Center.PIXEL)
    assert MinMaxNormalizationHook(1.0) != CdfNormalizationHook(1.0)  # type: ignore[comparison-overlap]


@HOOKS
@pytest.mark.parametrize("outputs", [None, [1.0], np.ones(3)], ids=["None", "list", "array"])
def test_outputs_that_are_no_mapping_are_refused_in_every_method(hook_type: type[Hook], outputs: Any) -> None:
    hook = hook_type(threshold=1.0)
    state = _fitted(hook, _steps(40))
    for stage in (hook.on_validation_batch_end, hook.on_test_batch_end, hook.on_predict_batch_end):
        with pytest.raises(OutputError, match="but normalization needs 'pred_scores'"):
            stage(state, outputs)


@pytest.mark.clause("L1")
def test_adding_to_a_finished_fit_is_an_error() -> None:
    hook = MinMaxNormalizationHook(threshold=1.0)
    steps = _steps(41)
    with pytest.raises(AnomnormError, match=r"Begin the next one with state = hook.on_validation_epoch_start\(state\)"):
        hook.on_validation_batch_end(_fitted(hook, steps), steps[0])


@HOOKS
def test_ending_a_fit_inside_jit_is_an_error_that_says_where_to_call_it(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    with pytest.raises(AnomnormError, match=r"a fit ends outside jax.jit"):
        jax.jit(hook.on_validation_epoch_end)(hook.setup(_steps(42)[0]))


@pytest.mark.clause("L5")
def test_shapes_that_no_detector_means_are_refused() -> None:
    hook = MinMaxNormalizationHook(threshold=1.0)
    for outputs, message in (
        ({"pred_scores": np.ones((3, 1), "f4")}, r"shape \(3, 1\); one score for each image"),
        ({"anomaly_maps": np.ones((3, 4, 4, 1), "f4")}, r"maps\[..., 0\]"),
        ({"pred_scores": np.ones(2, "f4"), "anomaly_maps": np.ones((3, 4, 4), "f4")}, "2 image scores but 3"),
    ):
        with pytest.raises(OutputError, match=message):
            hook.setup(outputs)


@HOOKS
def test_a_fresh_state_can_be_donated(hook_type: type[Hook]) -> None:
    hook, steps = hook_type(threshold=1.0), _steps(43)
    state = hook.setup(steps[0])
    if isinstance(hook, MinMaxNormalizationHook):
        state = hook.on_validation_epoch_start(state)
    updated = jax.jit(hook._update, donate_argnums=0)(state, steps[0])
    assert jax.tree.structure(updated) == jax.tree.structure(hook.setup(steps[0]))


@pytest.mark.clause("N9")
@HOOKS
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float16", marks=FULL), pytest.param("bfloat16", marks=FULL)]
)
def test_other_scores_than_float64_give_the_same_with_x64_on(hook_type: type[Hook], dtype: str) -> None:
    def run() -> list[np.ndarray]:
        steps = [{name: jnp.asarray(value, dtype) for name, value in step.items()} for step in _steps(44)]
        hook = hook_type(threshold=1.0)
        outputs = hook.on_predict_batch_end(_fitted(hook, steps), steps[0])
        assert outputs["pred_scores"].dtype == outputs["anomaly_maps"].dtype == jnp.dtype(dtype)
        return [np.asarray(outputs[name]).astype(np.float64) for name in ("pred_scores", "anomaly_maps")]

    plain = run()
    with jax.enable_x64(True):
        wide = run()
    for a, b in zip(plain, wide, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 if dtype == "float32" else 1e-2)


# Both hooks: what is handed to them


@pytest.mark.clause("N8")
@HOOKS
def test_what_is_no_state_of_the_hook_is_an_error(hook_type: type[Hook]) -> None:
    hook, steps = hook_type(threshold=1.0), _steps(40)
    other = (CdfNormalizationHook if hook_type is MinMaxNormalizationHook else MinMaxNormalizationHook)(threshold=1.0)
    pair = other.on_validation_epoch_end(_fitted(other, steps)), steps[0]
    more = (dict, steps) if hook_type is CdfNormalizationHook else ()
    for wrong, found in ((None, "NoneType"), (pair, "tuple"), (pair[0], "another kind of hook")):
        for method in (hook.on_test_batch_end, hook.on_predict_batch_end, hook.on_validation_batch_end):
            with pytest.raises(AnomnormError, match=f"must be a state of this hook, found .*{found}"):
                method(wrong, steps[0])
        calls: list[Any] = [hook.on_validation_epoch_end, hook.on_test_start, hook.on_predict_start, hook.thresholds]
        calls += [hook.normalizer, hook.to_arrays, lambda state: hook.on_validation_epoch_start(state, *more)]
        calls += [lambda state: hook.with_threshold(state, 1.0), lambda state: hook.merge(state, state)]
        for call in (*calls, lambda state: hook.restore(state, {})):
            with pytest.raises(AnomnormError, match="must be a state of this hook"):
                call(wrong)
    with pytest.raises(TypeError, match="dictionary made by to_arrays, found NormalizationState"):
        hook.restore(hook.setup(steps[0]), hook.setup(steps[0]))  # type: ignore[arg-type]


@HOOKS
def test_what_reads_values_says_so_inside_jit(hook_type: type[Hook]) -> None:
    hook, steps = hook_type(threshold=1.0), _steps(41)
    state = _fitted(hook, steps)
    calls: list[Any] = [hook.thresholds, hook.on_test_start, hook.normalizer, lambda state: hook.restore(state, {})]
    if isinstance(hook, CdfNormalizationHook):
        calls.append(hook.fit_check)
    for call in calls:
        with pytest.raises(AnomnormError, match=r"outside jax\.jit"):
            jax.jit(call)(state)


@pytest.mark.clause("L3")
def test_the_pass_over_the_training_data_does_not_begin_inside_jit() -> None:
    hook, steps, seen = CdfNormalizationHook(threshold=1.0), _steps(42), []
    with pytest.raises(AnomnormError, match=r"a fit ends outside jax\.jit"):
        jax.jit(lambda state: hook.on_validation_epoch_start(state, lambda step: seen.append(step) or step, steps))(
            hook.setup(steps[0])
        )
    assert not seen


@HOOKS
@pytest.mark.parametrize("capacity", [0, -1, 1e6, 1.5, True, "a", None], ids=repr)
def test_a_capacity_that_is_no_number_of_images_is_an_error(hook_type: type[Hook], capacity: Any) -> None:
    with pytest.raises(OptionError, match=r"^capacity=.* is no number of images"):
        hook_type(capacity=capacity)


@pytest.mark.parametrize("value", ["no", 1, None], ids=repr)
def test_a_switch_is_true_or_false(value: Any) -> None:
    with pytest.raises(OptionError, match=r"^shared_range=.* True or False"):
        MinMaxNormalizationHook(shared_range=value)
    with pytest.raises(OptionError, match=r"^progress=.* True or False"):
        CdfNormalizationHook(progress=value)


@pytest.mark.clause("L5")
@HOOKS
def test_a_name_of_the_other_layout_is_not_passed_over(hook_type: type[Hook]) -> None:
    outputs = _steps(43)[0]
    with pytest.raises(OutputError, match="hold 'pred_score'; in a dictionary the name is 'pred_scores'"):
        hook_type(threshold=1.0).setup({"pred_score": outputs["pred_scores"], "anomaly_maps": outputs["anomaly_maps"]})
