"""What steps return: both spellings, shapes, what is ignored and what only pads, through whole life cycles (L5)."""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import best_threshold, f1, fit_check, moments
from flax.core import FrozenDict

from anomnorm_core import FitCheck, OptionError, OutputError, ThresholdWarning
from anomnorm_jax import CdfNormalizationHook, MinMaxNormalizationHook, NormalizationHook, Normalizer, cdf

pytestmark = pytest.mark.clause("L5")

RNG = np.random.default_rng(97)
SIZE = (2, 3)
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationHook, CdfNormalizationHook])

# Three batches of five, in the shapes and with the labels that detectors in the wild have.
# Those that are ignored, with labels below zero, would move the thresholds down as anomalies and up as normals.
LABEL = np.array([[0, 1, -1, 0, 1], [1, 0, -1, -1, 0], [0, 1, 0, -1, 0]])
VALID = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]], dtype=bool)
SCORE = RNG.uniform(0.5, 1.5, size=(3, 5)).astype("f4")
SCORE[VALID & (LABEL == 1)] = [2.0, 4.0, 5.0]
SCORE[LABEL == -1] = [1.9, 3.0, 3.5, 0.1]
SCORE[~VALID] = [0.01, 1e6, 1e6]
MASK = np.where(RNG.random((3, 5, *SIZE)) < 0.5, LABEL[..., None, None], 0)
MASK[LABEL == -1] = -1
MASK[:, :, 1, 2] = np.where(LABEL == 0, -1, MASK[:, :, 1, 2])
MAP = RNG.uniform(0.5, 1.5, size=(3, 5, *SIZE)).astype("f4")
MAP[MASK == 1] += 3
MAP[MASK == -1] *= RNG.choice([1.0, 3.5], size=(MASK == -1).sum())
MAP[~VALID] = 1e6
PADDED = {
    "pred_scores": SCORE[..., None],
    "anomaly_maps": MAP[..., None],
    "label": LABEL[..., None],
    "mask": MASK[..., None],
    "valid": VALID,
}


def made(kind: Any, *values: Any, **more: Any) -> Any:
    return kind(*values, **more, **({"progress": False} if kind is CdfNormalizationHook else {}))


def batches(data: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [{name: part[i] for name, part in data.items()} for i in range(3)]


def validated(hook: NormalizationHook, steps: list[Any]) -> Any:
    run = hook.on_validation_epoch_start(hook.setup(steps[0]), lambda step: step, steps)
    for outputs in steps:
        run, _ = hook.on_validation_batch_end(run, outputs)
    return run


def in_sigmas(values: np.ndarray, level: str) -> np.ndarray:
    """z-scores of the fit on what is normal and no padding, around the mean of the image scores."""
    normal = VALID & (LABEL == 0)
    mean, std = moments(SCORE[normal])
    return (np.log(values.astype("f8")) - mean) / (std if level == "image" else moments(MAP[normal])[1])


# Labels and masks below zero, padding, axes of one


def check_of_padded(kind: Any, normalizer: Normalizer, check: FitCheck | None) -> None:
    """What a run of `PADDED` has to find, in NumPy."""
    known = VALID & (LABEL >= 0)
    best = np.float32(best_threshold(SCORE[known], LABEL[known] == 1))
    assert normalizer.thresholds["image"].raw == best
    pixels = VALID[..., None, None] & (MASK >= 0)
    z = MAP if kind is MinMaxNormalizationHook else in_sigmas(MAP, "pixel")
    found = normalizer.thresholds["pixel"].raw <= MAP
    optimum = best_threshold(z[pixels], MASK[pixels] == 1)
    assert f1(found[pixels], MASK[pixels] == 1) >= f1(z[pixels] >= optimum, MASK[pixels] == 1) - 1e-3
    if kind is MinMaxNormalizationHook:  # ignored samples are scores like any others
        assert [float(x) for x in normalizer.image.parameters] == [SCORE[VALID].min(), SCORE[VALID].max()]
        assert [float(x) for x in normalizer.pixel.parameters] == [MAP[VALID].min(), MAP[VALID].max()]
        assert check is None
        return
    normal = VALID & (LABEL == 0)
    for level, values in (("image", SCORE[normal]), ("pixel", MAP[normal])):
        for x, expected in zip(getattr(normalizer, level).parameters, moments(values), strict=True):
            np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    assert check is not None
    found = fit_check(in_sigmas(SCORE, "image")[normal], normal.sum())
    assert dataclasses.asdict(check) == pytest.approx(found, rel=1e-5, abs=1e-6)


@pytest.mark.clause("L3", "S1", "S9", "T2", "T5")
@KINDS
def test_what_is_ignored_or_only_pads_is_left_out_of_compiled_epochs(kind: Any) -> None:
    hook, traces = made(kind, extras=("raw", "invalid")), []

    @jax.jit
    def epoch(run: Any, normalizer: Normalizer, gain: jax.Array) -> Any:
        traces.append(1)
        data = {**PADDED, **{name: gain * PADDED[name] for name in ("pred_scores", "anomaly_maps")}}

        def collect(records: Any, batch: Any) -> Any:
            where = batch["valid"] & (batch["label"][:, 0] == 0)
            image, pixel = records
            image = cdf.update(image, batch["pred_scores"], where=where)
            return (image, cdf.update(pixel, batch["anomaly_maps"], where=where)), None

        records, _ = jax.lax.scan(collect, (cdf.init(), cdf.init(SIZE)), data)
        run = hook.on_validation_epoch_start(run, statistics=records if hook.method == "cdf" else None)
        run, validation = jax.lax.scan(hook.on_validation_batch_end, run, data)
        normalizer = hook.on_validation_epoch_end(run, normalizer)
        return run, normalizer, validation, hook.on_test_batch_end(normalizer, jax.tree.map(lambda x: x[0], data))

    example = batches(PADDED)[0]
    run, normalizer = hook.setup(example), hook.empty(example)
    assert run.resolution == SIZE
    for gain in (8.0, 1.0):  # what the first epoch leaves behind would be seen in the second
        run, normalizer, validation, found = epoch(run, normalizer, jnp.float32(gain))
    assert len(traces) == 1
    check_of_padded(kind, normalizer, hook.fit_check(run))
    for name in ("pred_scores", "anomaly_maps"):
        assert validation[name].shape == PADDED[name].shape
        assert found[name].shape == PADDED[name][0].shape
    for name, raw, level in (("pred_labels", SCORE, "image"), ("pred_masks", MAP, "pixel")):
        threshold = normalizer.thresholds[level].raw
        valid = VALID.reshape(3, 5, *[1] * (raw.ndim - 2))
        assert found[name].shape == (*raw[0].shape, 1)
        assert found[name][..., 0].tolist() == ((threshold <= raw) & valid)[0].tolist()
    if kind is CdfNormalizationHook:
        np.testing.assert_allclose(validation["anomaly_maps"][..., 0], in_sigmas(MAP, "pixel"), rtol=1e-5, atol=1e-4)
    # The same step by step, outside of jit.
    run = validated(hook, batches(PADDED))
    eager = hook.on_validation_epoch_end(run)
    check_of_padded(kind, eager, hook.fit_check(run))
    again = hook.on_test_batch_end(eager, example)
    assert again["pred_labels"].tolist() == found["pred_labels"].tolist()
    assert again["anomaly_maps_raw"].shape == again["anomaly_maps"].shape == (*MAP[0].shape, 1)
    assert not again["invalid"].any()


@pytest.mark.clause("T6")
def test_pixels_of_ignored_images_and_ignored_training_samples_are_no_normal_ones() -> None:
    hook = made(CdfNormalizationHook, "normal_quantile")
    scores, label = np.float32([1.0, 2.0, 3.0, 90.0]), np.float32([0, 0, 0, np.nan])  # NaN is below zero, for labels
    maps = np.broadcast_to(scores[:, None, None], (4, 2, 2))
    outputs = {"pred_scores": scores, "anomaly_maps": maps, "label": label}
    normalizer = hook.on_validation_epoch_end(validated(hook, [outputs] * 2))
    np.testing.assert_allclose(normalizer.image.parameters[0], np.log([1.0, 2.0, 3.0]).mean(), rtol=1e-6)
    found = hook.on_predict_batch_end(normalizer, outputs)
    assert found["pred_labels"].tolist() == [False, False, False, True]
    assert found["pred_masks"].tolist() == (maps > 50).tolist()


def test_labels_of_scikit_learn_are_asked_about() -> None:
    hook = made(MinMaxNormalizationHook)
    outputs = {"pred_scores": np.float32([1.0, 2.0, 9.0]), "label": np.array([1, 1, -1])}
    with (
        pytest.warns(ThresholdWarning, match=r"1 are labelled below 0.*return \(label == -1\) instead"),
        pytest.warns(ThresholdWarning, match="the threshold is the smallest of 2 anomalous scores"),
    ):
        hook.on_validation_epoch_end(validated(hook, [outputs]))


@KINDS
def test_a_column_of_valid_and_labels_without_maps(kind: Any) -> None:
    hook = made(kind, 1.0)
    names = ("pred_scores", "label", "valid")
    steps = [{name: batch[name].reshape(5, 1) for name in names} for batch in batches(PADDED)]
    normalizer = hook.on_validation_epoch_end(validated(hook, steps))
    found = hook.on_test_batch_end(normalizer, steps[2])
    expected = (np.asarray(normalizer.thresholds["image"].raw) <= SCORE[2]) & VALID[2]
    assert found["pred_labels"][:, 0].tolist() == expected.tolist()


@pytest.mark.clause("N10", "N11")
@pytest.mark.parametrize(
    "normalizer",
    [
        Normalizer.min_max((0.1, 4.0), (0.0, 6.0), threshold=1.5),
        Normalizer.cdf((0.1, 0.4), (np.full(SIZE, 0.2), np.full(SIZE, 0.5)), threshold=1.0, center="pixel"),
    ],
    ids=["min-max", "cdf"],
)
def test_a_normalizer_keeps_the_channel_axis_where_it_is(normalizer: Normalizer) -> None:
    extra = "z" if normalizer.method == "cdf" else "margin"
    scores, maps = SCORE[0], MAP[0]
    plain = normalizer(scores, maps, extras=(extra, "raw"))
    for axis in (1, 3):
        shaped = np.expand_dims(maps, axis)
        found = normalizer(scores, shaped, extras=(extra, "raw"))
        for name, expected in plain.items():
            wanted = np.expand_dims(expected, axis) if name.startswith(("anomaly_maps", "pred_masks")) else expected
            assert found[name].shape == wanted.shape
            assert found[name].tolist() == wanted.tolist(), name
        back = normalizer.denormalize(anomaly_maps=found["anomaly_maps"])["anomaly_maps"]
        assert back.shape == shaped.shape
        inside = np.asarray(found["anomaly_maps"]) % 1 != 0
        np.testing.assert_allclose(back[inside], shaped[inside], rtol=1e-4)
        alone = normalizer(anomaly_maps=shaped)["pred_scores"]
        assert alone.tolist() == normalizer(maps.max((1, 2)))["pred_scores"].tolist()


# Both spellings, in mappings and objects


@flax.struct.dataclass
class Struct:
    pred_score: Any
    anomaly_map: Any = None
    gt_label: Any = None
    pred_label: Any = None
    pred_mask: Any = None
    pred_score_raw: Any = None
    anomaly_map_raw: Any = None
    invalid: Any = None


@dataclasses.dataclass(frozen=True)
class Plural:
    pred_scores: Any = None
    anomaly_maps: Any = None
    label: Any = None
    pred_labels: Any = None
    pred_masks: Any = None
    pred_scores_raw: Any = None
    anomaly_maps_raw: Any = None
    invalid: Any = None


class PluralTuple(NamedTuple):
    pred_scores: Any
    anomaly_maps: Any = None
    label: Any = None
    pred_labels: Any = None
    pred_masks: Any = None
    pred_scores_raw: Any = None
    anomaly_maps_raw: Any = None
    invalid: Any = None


def singular(name: str) -> str:
    spelled = {"pred_scores": "pred_score", "anomaly_maps": "anomaly_map", "label": "gt_label"}
    spelled |= {"pred_labels": "pred_label", "pred_masks": "pred_mask"}
    for plural, other in spelled.items():
        if name.startswith(plural):
            return other + name.removeprefix(plural)
    return name


@pytest.mark.clause("L4", "N10")
@KINDS
@pytest.mark.parametrize(
    "make",
    [dict, OrderedDict, FrozenDict, Struct, SimpleNamespace, Plural, PluralTuple, "singular namespace", "singular"],
)
def test_outputs_come_back_in_the_spelling_that_they_had(kind: Any, make: Any) -> None:
    hook = made(kind, extras=("raw", "invalid"))
    steps = [{"pred_scores": SCORE[i], "anomaly_maps": MAP[i], "label": LABEL[i]} for i in range(3)]
    spelled = singular if make is Struct or "singular" in str(make) else str
    container = {"singular": dict, "singular namespace": SimpleNamespace}.get(make, make)
    given = [container(**{spelled(name): value for name, value in step.items()}) for step in steps]
    fields: Any = (
        dict if issubclass(container, Mapping) else vars if not hasattr(container, "_fields") else lambda t: t._asdict()
    )
    run, expected_run = validated(hook, given), validated(hook, steps)
    found = hook.on_validation_batch_end(run, given[0])[1]
    expected = hook.on_validation_batch_end(expected_run, steps[0])[1]
    results = [(found, expected)]
    normalizers = hook.on_validation_epoch_end(run), hook.on_validation_epoch_end(expected_run)
    results += [(hook.on_test_batch_end(normalizers[0], given[0]), hook.on_test_batch_end(normalizers[1], steps[0]))]
    for result, wanted in results:
        assert type(result) is container
        there = {name: value for name, value in fields(result).items() if value is not None}
        assert there.keys() == {spelled(name) for name in wanted}
        for name, value in wanted.items():
            assert there[spelled(name)].tolist() == value.tolist(), name
    assert len(wanted) == 8  # scores, maps, label, and what was decided; raw values, and what is undefined
    assert fields(given[0])[spelled("pred_scores")] is steps[0]["pred_scores"]  # what was given is as it was


def test_two_spellings_at_once_and_outputs_without_names_are_refused() -> None:
    hook = made(MinMaxNormalizationHook, 1.0)
    scores, maps = SCORE[0], MAP[0]
    for mixed in (
        {"pred_scores": scores, "anomaly_map": maps},
        SimpleNamespace(pred_score=scores, anomaly_maps=maps, pred_scores=None),
    ):
        with pytest.raises(OutputError, match=r"hold 'anomaly_map.*, in two spellings"):
            hook.setup(mixed)
    for unnamed, kind in (((scores, maps), "tuple"), ([scores, maps], "list"), (scores, "ndarray"), (jnp.ones(3), "")):
        with pytest.raises(OutputError, match=rf"{kind}.* do not say which of them are scores .*Return a dict"):
            hook.setup(unnamed)


# Extras


@pytest.mark.clause("N6", "N10")
@KINDS
def test_extras_of_a_hook_are_in_what_tests_and_predictions_return(kind: Any) -> None:
    extra = "z" if kind is CdfNormalizationHook else "margin"
    hook, plain = made(kind, 1.0, extras=[extra, "raw", "invalid"]), made(kind, 1.0)
    steps = [{"pred_scores": SCORE[i], "anomaly_maps": MAP[i]} for i in range(3)]
    normalizer = hook.on_validation_epoch_end(validated(hook, steps))
    scores = np.float32([np.nan, np.inf, 1.0, -np.inf, np.nan])
    outputs = {"pred_scores": scores, "anomaly_maps": MAP[0], "valid": np.arange(5) < 4}
    found = hook.on_predict_batch_end(normalizer, outputs)
    bare = plain.on_predict_batch_end(normalizer, outputs)
    assert set(found) - set(bare) == {
        "invalid",
        *(f"{name}_{each}" for name in ("pred_scores", "anomaly_maps") for each in (extra, "raw")),
    }
    assert found["invalid"].tolist() == [True, False, False, False, False]  # the last one only pads
    for name in bare:
        np.testing.assert_array_equal(found[name], bare[name])
    np.testing.assert_array_equal(found["pred_scores_raw"], scores)
    direct = normalizer(scores, MAP[0], valid=outputs["valid"], extras=(extra, "raw", "invalid"))
    jitted = jax.jit(hook.on_test_batch_end)(normalizer, outputs)
    for name, value in direct.items():
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(jitted[name], value)
    assert normalizer(scores[:, None], extras="invalid")["invalid"].tolist() == np.isnan(scores).tolist()
    assert not normalizer(np.arange(3), extras="invalid")["invalid"].any()
    assert hook != plain
    assert hash(hook) == hash(made(kind, 1.0, extras=(extra, "raw", "invalid", "raw")))
    with pytest.raises(OptionError, match=f"has no 'height'; there are '{extra}', 'raw', 'invalid'"):
        made(kind, extras=("height",))


# What a hook says about itself


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        (MinMaxNormalizationHook(), "MinMaxNormalizationHook()"),
        (MinMaxNormalizationHook(0.5, shared_range=True), "MinMaxNormalizationHook(threshold=0.5, shared_range=True)"),
        (
            CdfNormalizationHook("normal_quantile", 4, center="pixel", progress=False, extras=["z"]),
            "CdfNormalizationHook(threshold='normal_quantile', pixel_threshold=4.0, center='pixel', progress=False, "
            "extras=('z',))",
        ),
        (
            CdfNormalizationHook(source="validation", on_invalid="raise"),
            "CdfNormalizationHook(on_invalid='raise', source='validation')",
        ),
        (NormalizationHook("two-slope", source="train"), "NormalizationHook('two-slope')"),
        (
            NormalizationHook("cdf", capacity=9, options={"center": "pixel"}),
            "NormalizationHook('cdf', capacity=9, options={'center': 'pixel'})",
        ),
        (CdfNormalizationHook(transform="identity"), "CdfNormalizationHook(transform='identity')"),
        (CdfNormalizationHook(transform="log"), "CdfNormalizationHook()"),
    ],
    ids=["defaults", "options of its own", "a rule and a number", "names", "any method", "options", "identity", "log"],
)
def test_a_hook_shows_the_call_that_makes_it(hook: NormalizationHook, text: str) -> None:
    assert repr(hook) == text
    assert eval(text) == hook
