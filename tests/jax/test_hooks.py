"""The hooks over whole life cycles: z-scores, normalized scores, labels and masks against NumPy in float64."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import best_threshold, moments

from anomnorm_core import (
    AnomnormError,
    Center,
    FitWarning,
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    OnInvalid,
    OptionError,
    OutputError,
    ResolutionError,
)
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook, Normalizer

Outputs = dict[str, Any]
Hook = NormalizationHook
SIZE = (2, 3)
UNIT = 2.0**-23  # clause N13
FULL = pytest.mark.full
HOOKS = pytest.mark.parametrize("hook_type", [MinMaxNormalizationHook, CdfNormalizationHook])


def _steps(seed: int, shift: float = 1.0, batches: int = 3) -> list[Outputs]:
    """What a detector returns over an epoch: float32 scores that are not the maxima of their maps."""
    rng = np.random.default_rng(seed)
    return [
        {
            "pred_scores": (shift * np.exp(rng.normal(0.5, 0.25, size=size))).astype(np.float32),
            "anomaly_maps": (shift * np.exp(rng.normal(-0.5, 0.3, size=(size, 1, *SIZE)))).astype(np.float32),
        }
        for size in (3, 3, 3)[:batches]  # every size is compiled
    ]


def _all(steps: list[Outputs], name: str) -> np.ndarray:
    return np.concatenate([step[name] for step in steps]).astype(np.float64)


def _without(steps: list[Outputs], name: str) -> list[Outputs]:
    return [{key: value for key, value in step.items() if key != name} for step in steps]


def _run(hook: Hook, steps: list[Outputs], run: Any = None) -> Any:
    """A run that validates with the steps it was fitted on."""
    run = hook.on_validation_epoch_start(hook.setup(steps[0]) if run is None else run, lambda step: step, steps)
    for outputs in steps:
        run, seen = hook.on_validation_batch_end(run, outputs)
        assert (seen is outputs) is (not isinstance(hook, CdfNormalizationHook))
    return run


def _fitted(hook: Hook, steps: list[Outputs]) -> Any:
    return hook.on_validation_epoch_end(_run(hook, steps))


def _parameters(normalizer: Normalizer, level: str = "image") -> list[Any]:
    return [np.asarray(value) for value in getattr(normalizer, level).parameters]


def _min_max(x: np.ndarray, t: float, low: float, high: float) -> np.ndarray:
    return np.clip((x - np.float32(t)) / (high - low) + 0.5, 0.0, 1.0)


def _phi(z: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2.0)), otypes=[float])(z)


def _assert_near(found: Any, expected: np.ndarray, rtol: float = 0.0, atol: float = UNIT) -> None:
    assert isinstance(found, jax.Array)
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=rtol, atol=atol)


def _assert_z(found: Any, expected: np.ndarray) -> None:
    _assert_near(found, expected, rtol=1e-5, atol=1e-5)  # moments are within 1e-5 (clause S4)


@pytest.mark.clause("N3b", "L3", "L4", "T2")
@pytest.mark.parametrize("by_name", [False, True])
def test_log_likelihoods_from_validation_to_labels(by_name: bool) -> None:
    """The negative log-likelihood of a Gaussian is a score of any sign: here it is negative throughout."""

    def score(x: np.ndarray) -> np.ndarray:
        return (0.5 * (x**2).sum(-1) + 8 * math.log(math.sqrt(2 * math.pi) * 1e-3)).astype(np.float32)

    rng, labels = np.random.default_rng(8), np.repeat([0, 1], [6, 3])
    train = [{"pred_scores": score(rng.normal(size=(3, 8)))} for _ in range(4)]
    scores = np.concatenate([score(rng.normal(size=(6, 8))), score(2 * rng.normal(size=(3, 8)))])
    steps = [
        {"pred_scores": part, "label": truth}
        for part, truth in zip(scores.reshape(3, 3), labels.reshape(3, 3), strict=True)
    ]
    assert max(_all(train, "pred_scores").max(), scores.max()) < 0
    options = {"progress": False, "capacity": 9}
    hook = NormalizationHook("normal", **options) if by_name else CdfNormalizationHook(transform="identity", **options)
    run = hook.on_validation_epoch_start(hook.setup(steps[0]), dict, train)
    mean, std = _all(train, "pred_scores").mean(), _all(train, "pred_scores").std(ddof=1)
    for outputs in steps:
        run, seen = hook.on_validation_batch_end(run, outputs)
        _assert_z(seen["pred_scores"], (outputs["pred_scores"] - mean) / std)
    normalizer = hook.on_validation_epoch_end(run)
    np.testing.assert_allclose(_parameters(normalizer), [mean, std], rtol=1e-5)
    t = best_threshold(scores, labels == 1)
    for outputs in steps:
        found = hook.on_predict_batch_end(normalizer, outputs)
        assert found["pred_labels"].tolist() == (outputs["pred_scores"] >= t).tolist()
        _assert_near(found["pred_scores"], _phi((outputs["pred_scores"] - t) / std), atol=1e-5)
    with pytest.raises(AnomnormError, match="a normalizer of this hook"):
        CdfNormalizationHook(**options).on_predict_batch_end(normalizer, steps[0])


# Min-max


@pytest.mark.clause("L1", "N1", "N4")
@pytest.mark.parametrize("pixel_threshold", [None, 0.625])
def test_min_max_statistics_are_those_of_the_last_epoch_at_both_levels(pixel_threshold: float | None) -> None:
    hook = MinMaxNormalizationHook(threshold=1.5, pixel_threshold=pixel_threshold)
    steps = _steps(1)
    run = hook.setup(steps[0])
    for seed, shift in ((2, 100.0), (1, 1.0)):  # an earlier, wider epoch would survive in a maximum
        run = _run(hook, _steps(seed, shift), run)
    normalizer = hook.on_validation_epoch_end(run)
    x, maps = _all(steps, "pred_scores"), _all(steps, "anomaly_maps")
    assert _parameters(normalizer) == [x.min(), x.max()]
    assert _parameters(normalizer, "pixel") == [maps.min(), maps.max()]
    fit = normalizer.to_fit()
    assert [(fit.level(level).valid, fit.level(level).invalid) for level in ("image", "pixel")] == [
        (x.size, 0),
        (maps.size, 0),
    ]

    t_pixel = 1.5 if pixel_threshold is None else pixel_threshold
    for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
        for outputs in _steps(3):
            x_new, maps_new = (outputs[name].astype(np.float64) for name in ("pred_scores", "anomaly_maps"))
            found = stage(normalizer, outputs)
            assert set(found) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
            _assert_near(found["pred_scores"], _min_max(x_new, 1.5, x.min(), x.max()))
            _assert_near(found["anomaly_maps"], _min_max(maps_new, t_pixel, maps.min(), maps.max()))
            assert found["pred_labels"].tolist() == (x_new >= 1.5).tolist()
            assert found["pred_masks"].tolist() == (maps_new >= t_pixel).tolist()


@pytest.mark.clause("N1")
@pytest.mark.parametrize("method", ["min-max", "two-slope"])
@pytest.mark.parametrize("maps", [True, False])
def test_a_shared_range_is_that_of_the_maps_where_there_are_any(method: str, maps: bool) -> None:
    hook = NormalizationHook(method, 0.75, options={"shared_range": True})
    steps = _steps(4) if maps else _without(_steps(4), "anomaly_maps")
    normalizer = _fitted(hook, steps)
    values = _all(steps, "anomaly_maps" if maps else "pred_scores")
    assert _parameters(normalizer) == [values.min(), values.max()]
    if method == "min-max":
        one_range = MinMaxNormalizationHook(0.75, shared_range=True)
        found = one_range.on_test_batch_end(_fitted(one_range, steps), steps[0])
        for name in ("pred_scores", "anomaly_maps")[: 1 + maps]:
            x = steps[0][name].astype(np.float64)
            _assert_near(found[name], _min_max(x, 0.75, values.min(), values.max()))


@pytest.mark.clause("N1")
def test_the_generic_hook_normalizes_with_two_slopes() -> None:
    hook = NormalizationHook("two-slope", threshold=1.5)
    steps = _steps(4)
    found = hook.on_predict_batch_end(_fitted(hook, steps), steps[0])
    for name, values in ((name, _all(steps, name)) for name in ("pred_scores", "anomaly_maps")):
        x, low, high = steps[0][name].astype(np.float64), values.min(), values.max()
        width = np.where(x < 1.5, 1.5 - low, high - 1.5)  # each side is longer than 5 percent
        _assert_near(found[name], np.clip(0.5 + (x - 1.5) / (2 * width), 0, 1))
    assert found["pred_labels"].tolist() == (steps[0]["pred_scores"] >= 1.5).tolist()


@pytest.mark.clause("L3", "S6")
def test_min_max_statistics_take_labelled_anomalies_in() -> None:
    outputs = {"pred_scores": np.float32([1.0, 9.0]), "label": np.array([0, 1])}
    assert _parameters(_fitted(MinMaxNormalizationHook(threshold=1.5), [outputs])) == [1.0, 9.0]


@pytest.mark.clause("N7")
def test_min_max_of_one_constant_value_steps_at_the_threshold() -> None:
    hook = MinMaxNormalizationHook(threshold=2.0)
    normalizer = _fitted(hook, [{"pred_scores": np.full(4, 5.0, np.float32)}])
    below = np.nextafter(np.float32(2), np.float32(0))
    found = hook.on_predict_batch_end(normalizer, {"pred_scores": np.float32([0.0, below, 2.0, 5.0])})
    assert found["pred_scores"].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert found["pred_labels"].tolist() == [False, False, True, True]


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
    training, run = _steps(5), hook.setup(_steps(5)[0])
    for seed, shift in ((6, 50.0), (5, 1.0)):
        run = hook.on_validation_epoch_start(run, dict, _steps(seed, shift))
        for outputs in _steps(7):
            run, _ = hook.on_validation_batch_end(run, outputs)
        normalizer = hook.on_validation_epoch_end(run)
    mean, std = moments(_all(training, "pred_scores"))
    pixel_mean, pixel_std = moments(_all(training, "anomaly_maps")[:, 0])
    for level, expected in (("image", (mean, std)), ("pixel", (pixel_mean, pixel_std))):
        for found, wanted in zip(_parameters(normalizer, level), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert normalizer.to_fit().level(level).valid == 9

    t_pixel = 1.25 if pixel_threshold is None else pixel_threshold
    at = mean if center == "image" else pixel_mean
    for outputs in _steps(8, shift=1.5):
        x, maps = (outputs[name].astype(np.float64) for name in ("pred_scores", "anomaly_maps"))
        z, z_maps = (np.log(x) - mean) / std, (np.log(maps) - at) / pixel_std
        _, validated = hook.on_validation_batch_end(run, outputs)
        assert set(validated) == {"pred_scores", "anomaly_maps"}
        _assert_z(validated["pred_scores"], z)
        _assert_z(validated["anomaly_maps"], z_maps)
        for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
            found = stage(normalizer, outputs)
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
    kept = np.concatenate([step["pred_scores"][[0, 2]] for step in training])
    kept_maps = np.concatenate([step["anomaly_maps"][[0, 2], 0] for step in training])
    labelled = [
        {**step, name: labels, "pred_scores": step["pred_scores"] * np.float32([1.0, 100.0, 1.0])} for step in training
    ]
    run = hook.on_validation_epoch_start(hook.setup(labelled[0]), dict, labelled)
    normalizer = hook.on_validation_epoch_end(run)
    for level, expected in (("image", kept), ("pixel", kept_maps)):
        for found, wanted in zip(_parameters(normalizer, level), moments(expected.astype("f8")), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
        fitted = normalizer.to_fit().level(level)
        assert (fitted.valid, fitted.invalid) == (4, 0)  # left out by label is not invalid


@pytest.mark.clause("L3")
def test_cdf_prefers_label_to_gt_label_and_takes_missing_labels_for_normal() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    scores = np.float32([1.0, 2.0, 4.0])
    both = {"pred_scores": scores, "label": np.array([0, 1, 0]), "gt_label": np.array([1, 0, 0])}
    for outputs, mean in ((both, math.log(4.0) / 2), ({"pred_scores": scores, "label": None}, math.log(8.0) / 3)):
        run = hook.on_validation_epoch_start(hook.setup(outputs), dict, [outputs])
        assert float(hook.on_validation_epoch_end(run).image.parameters[0]) == pytest.approx(mean, rel=1e-6)


@pytest.mark.clause("L3", "N8", "S7")
@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ({"pred_scores": np.float32([1.0, 2.0]), "label": np.array([1, 1])}, NotFittedError, "none of 2 samples"),
        ({"pred_scores": np.float32([1.0])}, InsufficientDataError, "1 valid value"),
    ],
    ids=["anomalies", "one"],
)
def test_cdf_on_too_little_is_an_error_where_the_pass_ends(outputs: Any, error: type[Exception], message: str) -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    with pytest.raises(error, match=message):
        hook.on_validation_epoch_start(hook.setup(outputs), dict, [outputs])


@pytest.mark.clause("L3", "N8")
def test_a_pass_that_finds_nothing_says_why() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    step = {"pred_scores": np.float32([1.0, 2.0, 4.0]), "label": np.array([0, 0, 0]), "valid": np.ones(3, bool)}
    once = iter([step])
    run = hook.on_validation_epoch_start(hook.setup(step), dict, once)
    cases: list[tuple[Any, Any, str]] = [
        (dict, once, "^batches is an iterator that gives nothing any more.*a function that returns a new iterator"),
        (dict, lambda: once, "^batches is an iterator that gives nothing any more"),
        (dict, [], "^batches is empty"),
        (lambda _: None, [step, step], "^predict returned None for all of 2 batches"),
        (dict, [{**step, "label": np.array([1, -1, 2])}] * 2, "^none of 6 samples that predict has scored is a normal"),
        (dict, [{**step, "valid": np.zeros(3, bool)}], "^none of 3 samples .* they only pad"),
    ]
    for predict, batches, message in cases:
        with pytest.raises(NotFittedError, match=message) as caught:
            hook.on_validation_epoch_start(run, predict, batches)
        assert "trainer" not in str(caught.value)
    for _ in range(2):  # a function gives them anew
        run = hook.on_validation_epoch_start(run, dict, lambda: iter([step, step]))
    assert hook.on_validation_epoch_end(run).to_fit().level("image").valid == 6


@pytest.mark.clause("N8")
def test_cdf_batches_before_a_fit_are_an_error_that_no_fitted_run_pays_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    steps = _without(_steps(12), "anomaly_maps")
    run = hook.setup(steps[0])
    for unfitted in (run, hook.emptied(run)):
        with pytest.raises(NotFittedError, match=r"this run is not: call run = hook\.on_validation_epoch_start"):
            hook.on_validation_batch_end(unfitted, steps[0])
    _, traced = jax.jit(hook.on_validation_batch_end)(run, steps[0])
    assert np.isnan(traced["pred_scores"]).all()
    run = hook.on_validation_epoch_start(run, dict, steps)
    read: list[Any] = []
    monkeypatch.setattr("anomnorm_jax.hook.to_host", lambda value: read.append(value) or np.asarray(value))
    for outputs in steps:
        run, _ = hook.on_validation_batch_end(run, outputs)
    assert not read  # nobody waits for the device
    moved = jax.tree.map(jnp.array, run)  # as it comes out of jit, or from another place
    for outputs in steps:
        moved, _ = hook.on_validation_batch_end(moved, outputs)
    assert len(read) == 1


@pytest.mark.clause("L3", "L5")
def test_cdf_predicts_each_training_batch_once_reads_any_iterable_and_skips_none() -> None:
    hook = CdfNormalizationHook(threshold=3.0, progress=False)
    seen: list[float] = []

    def predict(batch: float) -> Outputs | None:
        seen.append(batch)
        return None if batch == 2.0 else {"pred_scores": jnp.asarray([1.0, 2.0]) * batch}

    def batches() -> Iterator[float]:
        yield from (1.0, 2.0, 3.0)

    run = hook.on_validation_epoch_start(hook.setup(predict(0.0)), predict, batches())
    assert seen == [0.0, 1.0, 2.0, 3.0]
    after, nothing = hook.on_validation_batch_end(run, None)
    assert after is run
    assert nothing is None
    normalizer = hook.on_validation_epoch_end(run)
    assert normalizer.to_fit().level("image").valid == 4
    assert hook.on_test_batch_end(normalizer, None) is None


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
    run = _run(hook, _without(_steps(11), "anomaly_maps"))
    outputs = {"pred_scores": np.float32([0.0, -1.0, np.nan, np.inf])}
    normalizer = hook.on_validation_epoch_end(run)
    _, validated = hook.on_validation_batch_end(run, outputs)
    np.testing.assert_array_equal(np.asarray(validated["pred_scores"]), [-np.inf, -np.inf, np.nan, np.inf])
    found = hook.on_test_batch_end(normalizer, outputs)
    np.testing.assert_array_equal(np.asarray(found["pred_scores"]), [0.0, 0.0, np.nan, 1.0])
    assert found["pred_labels"].tolist() == [False, False, False, True]


@pytest.mark.clause("N7")
@pytest.mark.parametrize(
    ("sigmas", "units", "flags"),
    [(0.0, [0.0, 0.5, 1.0], [False, True, True]), (3.0, [0.0, 0.0, 1.0], [False, False, True])],
)
def test_cdf_of_a_constant_population_steps_at_its_value(sigmas: float, units: Any, flags: Any) -> None:
    hook = CdfNormalizationHook(threshold=sigmas, progress=False)
    with pytest.warns(FitWarning, match="all 10 image scores that were fitted are equal"):
        normalizer = _fitted(hook, [{"pred_scores": np.full(5, 1.0, np.float32)}] * 2)
    found = hook.on_test_batch_end(normalizer, {"pred_scores": np.float32([0.9, 1.0, 1.1])})
    assert found["pred_scores"].tolist() == units
    assert found["pred_labels"].tolist() == flags


# What a step may return


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
    # one batch without maps, at a normalizer that knows maps
    found = hook.on_test_batch_end(_fitted(hook, steps), bare[0])
    assert set(found) == {"pred_scores", "pred_labels"}


@pytest.mark.clause("L5")
@HOOKS
def test_scores_with_an_axis_of_one_keep_it(hook_type: type[Hook]) -> None:
    hook = hook_type(progress=False) if hook_type is CdfNormalizationHook else hook_type()
    steps = [{**step, "label": np.arange(len(step["pred_scores"])) % 2 == 1} for step in _steps(13)]
    columns = [{**step, "pred_scores": step["pred_scores"][:, None]} for step in steps]
    expected = hook.on_test_batch_end(_fitted(hook, steps), steps[0])
    run = _run(hook, columns)
    found = hook.on_test_batch_end(hook.on_validation_epoch_end(run), columns[0])
    for name in ("pred_scores", "pred_labels"):
        assert found[name].shape == (3, 1)
        assert found[name][:, 0].tolist() == expected[name].tolist()
    assert hook.on_validation_batch_end(run, columns[0])[1]["pred_scores"].shape == (3, 1)


@pytest.mark.clause("L4", "L5")
@HOOKS
def test_other_entries_pass_through_untouched(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = [
        {**step, "image_path": [f"{i}.png" for i in range(len(step["pred_scores"]))], "extra": object()}
        for step in _steps(14)
    ]
    run = _run(hook, steps)
    normalizer = hook.on_validation_epoch_end(run)
    outputs = {**steps[0], "mask": np.ones((3, *SIZE)), "label": np.zeros(3)}
    before = dict(outputs)
    results: list[Mapping[str, Any]] = [
        hook.on_test_batch_end(normalizer, outputs),
        hook.on_predict_batch_end(normalizer, outputs),
        hook.on_validation_batch_end(run, outputs)[1],
    ]
    for found in results:
        for name in ("image_path", "extra", "mask", "label"):
            assert found[name] is outputs[name]
    assert list(outputs) == list(before)
    assert all(outputs[name] is before[name] for name in before)  # a new dict; the old one is as it was


@dataclasses.dataclass(frozen=True)
class Result:
    pred_score: Any
    anomaly_map: Any = None
    gt_label: Any = None
    valid: Any = None
    pred_label: Any = None
    pred_mask: Any = None


class Pair(NamedTuple):
    pred_score: Any
    anomaly_map: Any = None
    pred_label: Any = None
    pred_mask: Any = None


@pytest.mark.clause("L4", "L5")
@HOOKS
@pytest.mark.parametrize("kind", [Result, Pair, SimpleNamespace])
def test_objects_with_attributes_come_back_as_new_ones(hook_type: type[Hook], kind: Any) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(15)
    objects = [kind(pred_score=step["pred_scores"], anomaly_map=step["anomaly_maps"]) for step in steps]
    run = _run(hook, objects)
    found = hook.on_test_batch_end(hook.on_validation_epoch_end(run), objects[0])
    expected = hook.on_test_batch_end(_fitted(hook, steps), steps[0])
    assert type(found) is kind
    names = {"pred_score": "pred_scores", "anomaly_map": "anomaly_maps", "pred_label": "pred_labels"}
    for name, other in (names | {"pred_mask": "pred_masks"}).items():
        assert getattr(found, name).tolist() == expected[other].tolist()
    assert objects[0].pred_score is steps[0]["pred_scores"]
    z = hook.on_validation_batch_end(run, objects[0])[1]
    assert (z.pred_score is objects[0].pred_score) is (hook_type is MinMaxNormalizationHook)


@pytest.mark.clause("L5")
def test_an_object_without_a_place_for_the_results_is_an_error() -> None:
    class Bare(NamedTuple):
        pred_score: Any

    hook, outputs = MinMaxNormalizationHook(threshold=1.0), Bare(np.float32([1.0, 2.0]))
    with pytest.raises(OutputError, match=r"type Bare, which has no place for .*pred_label"):
        hook.on_test_batch_end(_fitted(hook, [outputs]), outputs)


@pytest.mark.clause("L5", "S1")
@HOOKS
@pytest.mark.parametrize("threshold", [None, "normal_quantile"])
def test_what_only_pads_a_batch_is_left_out_of_all_but_the_scores(hook_type: type[Hook], threshold: Any) -> None:
    hook = hook_type(threshold)
    steps = [{**step, "label": np.arange(len(step["pred_scores"])) % 2} for step in _steps(16)]
    for step in steps:
        step["mask"] = np.broadcast_to(step["label"][:, None, None] != 0, (len(step["label"]), *SIZE))
    padded = []
    for step in steps:
        filling = 5 - len(step["pred_scores"])
        # Normal, and above all others: it would take the range, the moments and the thresholds with it.
        filler = {"pred_scores": 77, "anomaly_maps": 77, "label": 0, "mask": 0}
        more = {
            name: np.concatenate([np.full((filling, *part.shape[1:]), filler[name], part.dtype), part])
            for name, part in step.items()
        }
        padded.append({**more, "valid": np.arange(5) >= filling})
    run, expected_run = _run(hook, padded), _run(hook, steps)
    found, expected = hook.on_validation_epoch_end(run), hook.on_validation_epoch_end(expected_run)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert hook.fit_check(run) == hook.fit_check(expected_run)
    assert int(run.seen) == int(expected_run.seen) == 9
    outputs = hook.on_test_batch_end(found, padded[0])
    assert not outputs["pred_labels"][:2].any()
    assert not outputs["pred_masks"][:2].any()
    assert (outputs["pred_scores"][:2] == 1).all()  # normalized nevertheless
    assert outputs["pred_labels"][2:].tolist() == hook.on_test_batch_end(expected, steps[0])["pred_labels"].tolist()
    with pytest.raises(OutputError, match=r"^'valid' has shape \(2,\) and there are 5 image scores"):
        hook.on_validation_batch_end(run, {**padded[0], "valid": np.array([True, False])})


@pytest.mark.clause("L9", "N9")
@HOOKS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.full)])
def test_half_precision_outputs_give_float32_beside_float32_statistics(hook_type: type[Hook], dtype: Any) -> None:
    hook = hook_type(threshold=1.0)
    steps = [{name: jnp.asarray(value, dtype=dtype) for name, value in step.items()} for step in _steps(15)]
    normalizer = _fitted(hook, steps)
    x = np.concatenate([np.asarray(step["pred_scores"], dtype=np.float64) for step in steps])
    if isinstance(hook, MinMaxNormalizationHook):
        expected = _min_max(x[:3], 1.0, x.min(), x.max())
    else:
        mean, std = moments(x)
        np.testing.assert_allclose(_parameters(normalizer)[0], mean, rtol=1e-6)
        expected = _phi((np.log(x[:3]) - mean) / std - 1.0)
    found = hook.on_test_batch_end(normalizer, steps[0])
    assert found["pred_scores"].dtype == found["anomaly_maps"].dtype == jnp.float32
    assert found["pred_labels"].dtype == found["pred_masks"].dtype == bool
    _assert_near(found["pred_scores"], expected, atol=2e-6)


@pytest.mark.clause("L5")
@HOOKS
def test_outputs_without_scores_are_an_error_that_lists_what_was_found_and_needed(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    run = _run(hook, _steps(16))
    normalizer = hook.on_validation_epoch_end(run)
    wrong = {"scores": np.ones(2), "label": np.zeros(2), "pred_scores": None}
    calls = [lambda: hook.setup(wrong), lambda: hook.empty(wrong), lambda: hook.on_test_batch_end(normalizer, wrong)]
    calls += [lambda: hook.on_predict_batch_end(normalizer, wrong), lambda: hook.on_validation_batch_end(run, wrong)]
    for call in calls:
        with pytest.raises(OutputError) as caught:
            call()
        message = str(caught.value)
        assert "(dict) hold 'label', 'pred_scores', 'scores'" in message
        for needed in (
            "'pred_scores' of shape (B,)",
            "'anomaly_maps' of shape (B, 1, H, W), (B, H, W) or (B, H, W, 1)",
            "return a dict",
        ):
            assert needed in message
    assert issubclass(OutputError, TypeError)


@pytest.mark.clause("L5")
@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (None, "are of type NoneType, which holds no names"),
        (np.ones(3), "(ndarray) do not say which of them are scores"),
        ([{"pred_scores": np.ones(3)}], "(list) do not say which of them are scores"),
        (SimpleNamespace(score=1, image=2), "(SimpleNamespace) hold 'image', 'score'"),
        ({}, "are of type dict, which holds no names"),
    ],
    ids=["None", "array", "list", "object", "empty"],
)
def test_outputs_that_hold_no_scores_are_an_error(outputs: Any, found: str) -> None:
    for hook in (MinMaxNormalizationHook(1.0), CdfNormalizationHook(1.0)):
        with pytest.raises(OutputError) as caught:
            hook.setup(outputs)
        assert found in str(caught.value)


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
def test_labels_that_are_no_array_are_an_error(hook_type: type[Hook]) -> None:
    hook = hook_type()
    steps = _steps(17)
    run = hook.on_validation_epoch_start(hook.setup(steps[0]), dict, steps)
    with pytest.raises(OutputError, match=r"^'label' in the step's outputs .* list; .*an array"):
        hook.on_validation_batch_end(run, {**steps[0], "label": [0, 1, 0]})


@pytest.mark.clause("L5")
@HOOKS
def test_setup_reads_shapes_as_well_as_arrays(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    outputs = _steps(18)[0]
    shapes = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in outputs.items()}
    for make in (hook.setup, hook.empty):
        for a, b in zip(jax.tree.leaves(make(shapes)), jax.tree.leaves(make(outputs)), strict=True):
            assert (a.shape, a.dtype, a.tolist()) == (b.shape, b.dtype, b.tolist())


@pytest.mark.clause("L5")
def test_shapes_that_no_detector_means_are_refused() -> None:
    hook = MinMaxNormalizationHook(threshold=1.0)
    for outputs, message in (
        ({"pred_scores": np.ones((3, 2), "f4")}, r"shape \(3, 2\); one score for each image"),
        ({"anomaly_maps": np.ones((3, 4, 4, 3), "f4")}, "Reduce several channels to one"),
        ({"pred_scores": np.ones(2, "f4"), "anomaly_maps": np.ones((3, 4, 4), "f4")}, "2 image scores but 3"),
    ):
        with pytest.raises(OutputError, match=message):
            hook.setup(outputs)


# Runs and normalizers that do not fit


@pytest.mark.clause("N8")
@HOOKS
def test_an_empty_normalizer_is_an_error_that_says_what_to_run_and_traced_nan(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=-5.0)
    outputs = _steps(19)[0]
    empty = hook.empty(outputs)
    for call in (
        lambda: hook.on_test_batch_end(empty, outputs),
        lambda: hook.on_predict_batch_end(empty, outputs),
        lambda: hook.on_test_start(empty),
        lambda: hook.on_predict_start(empty),
        lambda: hook.with_threshold(empty, 1.0),
        lambda: empty(outputs["pred_scores"]),
        lambda: empty.denormalize(np.float32([0.5])),
    ):
        with pytest.raises(NotFittedError, match=r"normalizer = hook.on_validation_epoch_end\(run\)"):
            call()
    with pytest.raises(NotFittedError):
        empty.save("nowhere")
    assert repr(empty) == f"Normalizer(method={hook.method!r}, maps='none')"
    found = jax.jit(hook.on_test_batch_end)(empty, outputs)
    again = jax.jit(lambda normalizer: normalizer(outputs["pred_scores"], threshold=1e-9))(empty)
    for result in (found, again):
        assert np.isnan(result["pred_scores"]).all()
        assert not result["pred_labels"].any()
    assert not found["pred_masks"].any()


@pytest.mark.clause("N8")
@HOOKS
def test_ending_a_run_that_saw_nothing_is_an_error(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    cdf = hook_type is CdfNormalizationHook
    unseen = r"call run = hook\.on_validation_epoch_start\(run, predict" if cdf else "has seen no sample.*that only pad"
    with pytest.raises(NotFittedError, match=unseen):
        hook.on_validation_epoch_end(hook.setup(_steps(21)[0]))
    without = "all of 1 batches are of no sample" if cdf else unseen
    with pytest.raises(NotFittedError, match=without):
        _fitted(hook, [{"pred_scores": np.empty(0, np.float32)}])


@pytest.mark.clause("L5", "N8")
@HOOKS
def test_maps_at_a_run_set_up_without_them_are_an_error(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(23)
    run = _run(hook, _without(steps, "anomaly_maps"))
    with pytest.raises(NotFittedError, match=r"set up from outputs without them.*hook\.setup\(outputs\)"):
        hook.on_validation_batch_end(run, steps[0])
    for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
        with pytest.raises(NotFittedError, match="the pixel-level statistics have seen no value"):
            stage(hook.on_validation_epoch_end(run), steps[0])
    if isinstance(hook, CdfNormalizationHook):
        with pytest.raises(NotFittedError, match="set up from outputs without them"):
            hook.on_validation_epoch_start(run, dict, steps)


@pytest.mark.clause("L5", "N8")
@HOOKS
def test_maps_that_the_fit_never_saw_are_an_error_and_scores_alone_are_not(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _steps(31)
    bare = _without(steps, "anomaly_maps")
    normalizer = hook.on_validation_epoch_end(_run(hook, bare, hook.setup(steps[0])))
    assert jax.tree.structure(normalizer) == jax.tree.structure(hook.empty(steps[0]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(normalizer))
    traced = jax.jit(hook.on_validation_epoch_end)(_run(hook, bare, hook.setup(steps[0])))
    for each in (normalizer, traced, hook.with_threshold(normalizer, 0.5), jax.tree.map(jnp.array, normalizer)):
        assert hook.on_test_batch_end(each, bare[0])["pred_labels"].shape == (3,)
        for stage in (hook.on_test_batch_end, hook.on_predict_batch_end):
            with pytest.raises(NotFittedError, match="the pixel-level statistics have seen no value"):
                stage(each, steps[0])


@pytest.mark.clause("S8")
@pytest.mark.parametrize("shape", [(3, 1, 3, 2), (3, 2, 1), (3, 1, 1, 3), (3, 1, 4, 6)], ids=str)
def test_cdf_maps_of_another_resolution_are_an_error_naming_both_shapes(shape: tuple[int, ...]) -> None:
    hook = CdfNormalizationHook(threshold=1.0, progress=False)
    run = _run(hook, _steps(24))
    normalizer = hook.on_validation_epoch_end(run)
    outputs = {"anomaly_maps": np.ones(shape, np.float32)}
    height, width = shape[-2:]
    for stage, given in (
        (hook.on_validation_batch_end, run),
        (hook.on_test_batch_end, normalizer),
        (hook.on_predict_batch_end, normalizer),
    ):
        with pytest.raises(ResolutionError, match=rf"{height}, {width}\).*\(2, 3\)"):
            stage(given, outputs)
    with pytest.raises(ResolutionError, match=rf"\(2, 3\).*{height}, {width}\)"):
        hook.on_validation_epoch_start(run, dict, [outputs])


@pytest.mark.clause("N8")
def test_what_is_no_run_or_normalizer_of_the_hook_is_an_error() -> None:
    steps = _steps(40)
    hooks = (
        MinMaxNormalizationHook(1.0),
        CdfNormalizationHook(1.0, progress=False),
        NormalizationHook("two-slope", 1.0),
    )
    runs = [_run(hook, steps) for hook in hooks]
    normalizers = [hook.on_validation_epoch_end(run) for hook, run in zip(hooks, runs, strict=True)]
    for hook, other in zip(hooks, (1, 2, 0), strict=True):
        for wrong, found in ((None, "NoneType"), ((runs[other], 1), "tuple"), (runs[other], hooks[other].method)):
            calls: list[Any] = [
                hook.on_validation_epoch_end,
                hook.fit_check,
                hook.emptied,
                hook.on_validation_epoch_start,
            ]
            calls += [lambda run, hook=hook: hook.on_validation_batch_end(run, steps[0])]
            calls += [lambda run, hook=hook: hook.merge(run, run)]
            for call in calls:
                with pytest.raises(AnomnormError, match=f"must be a run of this hook, found .*{found}"):
                    call(wrong)
        own = runs[hooks.index(hook)]
        for wrong, found in ((None, "NoneType"), (own, "Run"), (normalizers[other], hooks[other].method)):
            calls = [
                hook.on_test_start,
                hook.on_predict_start,
                lambda n, hook=hook: hook.on_test_batch_end(n, steps[0]),
            ]
            calls += [lambda n, hook=hook: hook.with_threshold(n, 1.0)]
            if wrong is not None:
                calls += [lambda n, hook=hook, own=own: hook.on_validation_epoch_end(own, n)]
            for call in calls:
                with pytest.raises(AnomnormError, match=f"a normalizer of this hook .* found .*{found}"):
                    call(wrong)
    shared = MinMaxNormalizationHook(1.0, shared_range=True)
    with pytest.raises(AnomnormError, match=r"'shared_range': True.*'shared_range': False"):
        shared.on_test_start(normalizers[0])


# Invalid scores


def _with_invalid(steps: list[Outputs]) -> list[Outputs]:
    """One NaN image score, an infinite one, and one NaN pixel, in two different batches."""
    steps = [{name: value.copy() for name, value in step.items()} for step in steps]
    steps[0]["pred_scores"][1] = np.nan
    steps[2]["pred_scores"][0] = np.inf
    steps[1]["anomaly_maps"][2, 0, 1, 2] = np.nan
    return steps


@pytest.mark.clause("S6")
@HOOKS
def test_invalid_scores_warn_once_per_fit_and_stay_out_of_the_statistics(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0)
    steps = _with_invalid(_steps(25))
    for _ in range(2):  # a second fit warns again
        with pytest.warns(InvalidScoreWarning) as caught:
            normalizer = _fitted(hook, steps)
        (warning,) = caught
        expected = "of 9 image-level values 1 is NaN and 1 infinite; of 54 pixel-level values 1 is NaN. They were left"
        assert str(warning.message).startswith(expected)
        assert warning.filename == __file__
    x, maps = _all(steps, "pred_scores"), _all(steps, "anomaly_maps")
    x = x[np.isfinite(x)]
    if isinstance(hook, MinMaxNormalizationHook):
        assert _parameters(normalizer) == [x.min(), x.max()]
        assert _parameters(normalizer, "pixel") == [np.nanmin(maps), np.nanmax(maps)]
    else:
        np.testing.assert_allclose(_parameters(normalizer), moments(x), rtol=1e-6)
        np.testing.assert_allclose(_parameters(normalizer, "pixel"), moments(maps[:, 0]), rtol=1e-6, atol=1e-7)


@pytest.mark.clause("S6")
def test_scores_without_a_logarithm_are_invalid_for_the_cdf_only() -> None:
    outputs = {"pred_scores": np.float32([0.0, -1.0, 1.0, 2.0])}
    with pytest.warns(InvalidScoreWarning, match='^of 4 .* 1 is zero and 1 negative.*source="validation"') as caught:
        _fitted(CdfNormalizationHook(threshold=1.0, progress=False), [outputs])
    assert len(caught) == 1
    normalizer = _fitted(MinMaxNormalizationHook(threshold=1.0), [outputs])  # any warning would be an error
    assert _parameters(normalizer) == [-1.0, 2.0]


@pytest.mark.clause("S6")
def test_what_cannot_be_fitted_is_named_with_what_follows_and_what_helps() -> None:
    scores = np.exp(np.random.default_rng(48).normal(size=100)).astype("f4")

    def fitted(hook: Hook, *left_out: float) -> Any:
        outputs = {"pred_scores": np.concatenate([scores[: 100 - len(left_out)], np.float32(left_out)])}
        return _fitted(hook, [{**outputs, "label": np.zeros(100)}])

    cdf, unseen = (CdfNormalizationHook(1.0, source=source, progress=False) for source in ("train", "validation"))
    zeros, negative = [0.0] * 60, [-1.0] * 20
    lost = r"^of 100 image-level values 60 are zero and 20 negative.*normalized to 0 and never flagged.*zeros for those"
    with pytest.warns(
        InvalidScoreWarning, match=rf'{lost}: fit .* with source="validation".*use min-max normalization'
    ):
        assert fitted(cdf, *zeros, *negative).to_fit().level("image").invalid == 80
    with pytest.warns(
        InvalidScoreWarning, match=rf"{lost}: find the threshold with .false_alarm_rate., which counts zeros"
    ):
        fitted(unseen, *zeros, *negative)
    with pytest.raises(InvalidScoreError, match=r"^60 of 100 .* \(60 are negative\): what is left does not describe"):
        fitted(cdf, *[-1.0] * 60)
    with pytest.raises(NotFittedError, match=r'^none of 100 .*: 100 are zero\. .* with source="validation"'):
        fitted(cdf, *[0.0] * 100)
    with pytest.raises(InvalidScoreError, match=r"^40 of 100 .* \(40 are NaN\).*division by zero"):
        fitted(MinMaxNormalizationHook(1.0), *[np.nan] * 40)
    fitted(MinMaxNormalizationHook(1.0), *zeros, *negative)  # any warning would be an error


@pytest.mark.clause("S6")
@HOOKS
def test_invalid_scores_are_an_error_with_level_and_count_under_raise(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=1.0, on_invalid="raise")
    steps = _steps(26)
    invalid = _with_invalid(steps)
    with pytest.raises(InvalidScoreError, match=r"^of 9 image-level values 1 is NaN and 1 infinite"):
        _fitted(hook, invalid)
    for step, valid in zip(invalid, steps, strict=True):
        step["pred_scores"] = valid["pred_scores"]
    with pytest.raises(InvalidScoreError, match=r"^of 54 pixel-level values 1 is NaN"):
        _fitted(hook, invalid)
    _fitted(hook, steps)


@pytest.mark.clause("S6", "N8")
@HOOKS
def test_nothing_but_invalid_scores_is_an_error(hook_type: type[Hook]) -> None:
    outputs = {"pred_scores": np.float32([np.nan, np.inf, -np.inf])}
    with pytest.raises(NotFittedError, match=r"^none of 3 image-level values can be fitted: 1 is NaN and 2 infinite"):
        _fitted(hook_type(threshold=1.0), [outputs])
    with pytest.raises(InvalidScoreError, match=r"^3 of 3 image-level"):
        _fitted(hook_type(threshold=1.0, on_invalid="raise"), [outputs])


@pytest.mark.clause("N6")
@HOOKS
def test_nan_scores_stay_nan_and_are_never_flagged(hook_type: type[Hook]) -> None:
    hook = hook_type(threshold=-80.0)
    steps = _steps(27)
    normalizer = _fitted(hook, steps)
    found = hook.on_test_batch_end(normalizer, _with_invalid(steps)[0])
    assert np.isnan(np.asarray(found["pred_scores"])).tolist() == [False, True, False]
    assert found["pred_labels"].tolist() == [True, False, True]
    found = hook.on_test_batch_end(normalizer, _with_invalid(steps)[1])
    assert np.isnan(np.asarray(found["anomaly_maps"])).sum() == 1
    np.testing.assert_array_equal(np.asarray(found["pred_masks"]), ~np.isnan(np.asarray(found["anomaly_maps"])))


# Options


@pytest.mark.clause("T4", "N4")
def test_the_score_at_the_threshold_is_flagged_and_gets_one_half() -> None:
    hook = MinMaxNormalizationHook(threshold=0.0)
    steps = _steps(29)
    exact = steps[0]["pred_scores"][0]
    normalizer = hook.with_threshold(_fitted(hook, steps), exact)
    around = np.float32([np.nextafter(exact, np.float32(0)), exact, np.nextafter(exact, np.float32(9))])
    found = hook.on_test_batch_end(normalizer, {"pred_scores": around})
    assert found["pred_labels"].tolist() == [False, True, True]
    assert found["pred_scores"][1] == 0.5
    assert (found["pred_scores"] >= 0.5).tolist() == [False, True, True]


@pytest.mark.clause("T4")
@HOOKS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0, "capacity": 0}, "capacity=0 is no number of images"),
        ({"threshold": 1.0, "capacity": True}, "capacity=True is no number of images"),
        ({"capacity": 1e6}, "capacity=1000000.0 is no number of images"),
        ({"normal_quantile": 2.0}, "normal_quantile=2.0 is not a quantile"),
        ({"threshold": math.nan}, "threshold=nan is not finite"),
        ({"threshold": "high"}, "threshold='high' is not an option; give a finite number or one of 'adaptive', "),
        ({"threshold": "image"}, "threshold='image' is not an option"),
        ({"threshold": 1.0, "pixel_threshold": math.inf}, "pixel_threshold=inf is not finite"),
        (
            {"threshold": 1.0, "on_invalid": "ignore"},
            "on_invalid='ignore' is not an option; use one of 'warn', 'raise'",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_an_error_where_the_hook_is_made(
    hook_type: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        hook_type(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CdfNormalizationHook(1.0, center="corner"),
            "center='corner' is not an option; use one of 'image', 'pixel'",
        ),
        (lambda: CdfNormalizationHook(source="test"), "source='test' is not an option"),
        (lambda: CdfNormalizationHook(source="auto"), 'say what they are, "train" or "validation"'),
        (lambda: CdfNormalizationHook(progress="no"), "progress='no' is not an option; use True or False"),
        (lambda: MinMaxNormalizationHook(shared_range=1), "shared_range=1 is not an option; use one of False, True"),
        (lambda: NormalizationHook("three-slope"), "method='three-slope' is unknown; there are 'min-max', 'two-slope'"),
        (lambda: NormalizationHook("cdf", options={"range": 1}), "range=1 is not an option of cdf normalization"),
    ],
    ids=["center", "source", "auto", "progress", "shared_range", "method", "options"],
)
def test_a_wrong_option_of_a_method_is_an_error(make: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert message in str(caught.value)


@HOOKS
def test_hooks_of_equal_options_are_equal_and_hash_alike(hook_type: Any) -> None:
    hook = hook_type(threshold=1.0)
    same = hook_type(threshold=np.array(1.0), pixel_threshold=None, on_invalid=OnInvalid.WARN)
    assert hook == same == hook_type(1.0, on_invalid="warn")
    assert hash(hook) == hash(same)
    assert len({hook, same}) == 1
    others = [hook_type(2.0), hook_type(1.0, pixel_threshold=1.0), hook_type(1.0, on_invalid="raise")]
    assert hook not in others
    with pytest.raises(AttributeError):
        hook.threshold = 2.0


def test_hooks_of_other_options_and_types_differ() -> None:
    assert MinMaxNormalizationHook(1.0) != MinMaxNormalizationHook(1.0, shared_range=True)
    assert CdfNormalizationHook(1.0) != CdfNormalizationHook(1.0, center="pixel")
    assert CdfNormalizationHook(1.0, center="pixel") == CdfNormalizationHook(1.0, center=Center.PIXEL)
    assert MinMaxNormalizationHook(1.0) != CdfNormalizationHook(1.0)
    assert CdfNormalizationHook(1.0) == CdfNormalizationHook(1.0, transform="log")
    assert CdfNormalizationHook(1.0) != CdfNormalizationHook(1.0, transform="identity")


@pytest.mark.clause("N9")
@HOOKS
@pytest.mark.parametrize(
    "dtype",
    ["float32", pytest.param("float16", marks=pytest.mark.full), pytest.param("bfloat16", marks=pytest.mark.full)],
)
def test_other_scores_than_float64_give_the_same_with_x64_on(hook_type: type[Hook], dtype: str) -> None:
    def run() -> list[np.ndarray]:
        steps = [{name: jnp.asarray(value, dtype) for name, value in step.items()} for step in _steps(44)]
        hook = hook_type(threshold=1.0)
        outputs = hook.on_predict_batch_end(_fitted(hook, steps), steps[0])
        assert outputs["pred_scores"].dtype == outputs["anomaly_maps"].dtype == jnp.float32
        return [np.asarray(outputs[name]).astype(np.float64) for name in ("pred_scores", "anomaly_maps")]

    plain = run()
    with jax.enable_x64(True):
        wide = run()
    for a, b in zip(plain, wide, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
