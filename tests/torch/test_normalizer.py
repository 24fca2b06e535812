"""The normalizer as a module, from callbacks, and exported."""

import copy
import io
import pickle  # noqa: TID251  # what spawned processes do with a module
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from scripted_module import ScriptedModule, loader, predictions, samples, trainer
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from anomnorm_core import AnomnormError, NotFittedError, OptionError, OutputError
from anomnorm_torch import (
    CdfNormalizationCallback,
    MinMaxNormalizationCallback,
    NormalizationCallback,
    Normalizer,
)

G = torch.Generator().manual_seed(4)
SCORES = torch.randn(32, generator=G).exp()
MAPS = torch.randn(32, 1, 4, 5, generator=G).exp()
MEAN, STD = torch.randn(4, 5, generator=G) * 0.1, torch.rand(4, 5, generator=G) * 0.5 + 0.3


def normalizers() -> dict[str, Normalizer]:
    return {
        "min-max": Normalizer.min_max((0.1, 4.0), (0.0, 6.0), threshold=1.5),
        "two slopes": Normalizer.of("two-slope", (0.1, 4.0), (0.0, 6.0), threshold=1.5, pixel_threshold=2.5),
        "cdf": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, pixel_threshold=1.0),
        "cdf pixel": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, units="raw", center="pixel"),
        "normal": Normalizer.cdf((0.9, 0.4), (MEAN + 1, STD), threshold=1.5, transform="identity"),
    }


KINDS = pytest.mark.parametrize("kind", normalizers())


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@KINDS
def test_it_is_a_module_without_parameters_that_copies_and_restores(kind: str) -> None:
    normalizer = normalizers()[kind]
    assert not list(normalizer.parameters())
    expected = normalizer(SCORES, MAPS)
    assert_same(copy.deepcopy(normalizer)(SCORES, MAPS), expected)
    assert_same(normalizer.eval()(SCORES, MAPS), expected)
    stored = io.BytesIO()
    torch.save(normalizer.state_dict(), stored)
    stored.seek(0)
    other = normalizers()[kind].with_threshold(7.0, 8.0, units="raw")
    assert not torch.equal(other(SCORES, MAPS)["pred_scores"], expected["pred_scores"])
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert_same(other(SCORES, MAPS), expected)
    stored.seek(0)
    torch.save(normalizer, stored)
    stored.seek(0)
    assert_same(torch.load(stored, weights_only=False)(SCORES, MAPS), expected)


@pytest.mark.parametrize("largest", [6.0, 3e38])
def test_one_that_was_used_can_be_sent_to_another_process(largest: float) -> None:
    # A range that no faster function is made for has the general one.
    normalizer = Normalizer.min_max((-largest, largest), (-largest, largest), threshold=1.5)
    expected = normalizer(SCORES, MAPS)
    assert_same(pickle.loads(pickle.dumps(normalizer))(SCORES, MAPS), expected)


@pytest.mark.clause("N9", "N13")
@KINDS
def test_what_is_kept_of_integers_is_not_taken_for_float64(kind: str) -> None:
    normalizer = normalizers()[kind]
    torch.set_default_dtype(torch.float64)
    try:
        normalizer(torch.tensor([1, 2, 3]))  # float64, with the statistics in float32
    finally:
        torch.set_default_dtype(torch.float32)
    scores = SCORES.double()
    assert_same(normalizer(scores), normalizers()[kind](scores))


@pytest.mark.clause("N9")
@KINDS
def test_outputs_stay_on_a_device_that_the_normalizer_is_not_on(kind: str) -> None:
    normalizer = normalizers()[kind]
    with FakeTensorMode(allow_non_fake_inputs=True):  # which has a GPU, as far as shapes and devices go
        found = normalizer(torch.ones(32, device="cuda"), torch.ones(32, 1, 4, 5, device="cuda"))
    assert {value.device.type for value in found.values()} == {"cuda"}


@pytest.mark.clause("T1", "T4")
@KINDS
def test_a_state_dict_brings_thresholds_of_unknown_origin(kind: str) -> None:
    given = normalizers()[kind]
    other = normalizers()[kind].with_threshold(3.0)
    assert other.thresholds["image"].origin == "manual"
    other.load_state_dict(given.state_dict())
    for level, threshold in other.thresholds.items():
        known = given.thresholds[level]
        assert threshold.raw.tolist() == known.raw.tolist()
        assert threshold.origin == "unknown"
        if level == "image":
            assert threshold.sigmas == (None if known.sigmas is None else pytest.approx(known.sigmas, abs=1e-12))
    # What follows the other one's images is not known either.
    x = torch.full((1, 4, 5), 2.0)
    own = given(anomaly_maps=x)["anomaly_maps"]
    assert torch.equal(other(anomaly_maps=x, threshold=0.25)["anomaly_maps"], own)
    # Saved, it is what it computes.
    again = Normalizer.from_fit(other.to_fit())
    assert_same(again(SCORES, MAPS), given(SCORES, MAPS))


@pytest.mark.clause("T1")
def test_a_state_dict_of_the_same_numbers_changes_nothing() -> None:
    normalizer = normalizers()["cdf"].with_threshold(3.0)
    before = normalizer.to_fit()
    normalizer.load_state_dict(copy.deepcopy(normalizer.state_dict()))
    assert normalizer.to_fit() is before
    half = normalizer.bfloat16()
    assert half.thresholds["image"].origin == "manual"


@pytest.mark.clause("T1", "N3")
def test_other_statistics_are_other_sigmas() -> None:
    normalizer = Normalizer.cdf((0.1, 0.4), threshold=2.0)
    other = Normalizer.cdf((0.5, 0.2), threshold=1.0)
    raw = float(other.thresholds["image"].raw)
    state = other.state_dict() | {"image_std": torch.tensor(0.1, dtype=torch.float64)}
    normalizer.load_state_dict(state)
    assert normalizer.thresholds["image"].raw == raw
    assert normalizer.thresholds["image"].sigmas == pytest.approx((np.log(raw) - 0.5) / 0.1)
    moved = normalizer.with_threshold(2.0, units="sigmas")
    assert float(moved.thresholds["image"].raw) == pytest.approx(np.exp(0.5 + 0.1 * 2.0))


def test_a_state_dict_that_no_fit_can_have_is_refused() -> None:
    normalizer = normalizers()["cdf"]
    model = nn.Sequential(nn.Identity(), normalizer)
    for name, value in (("image_std", -1.0), ("image_mean", np.nan), ("image_threshold", 0.0)):
        state = model.state_dict() | {f"1.{name}": torch.tensor(value, dtype=torch.float64)}
        with pytest.raises(RuntimeError, match=rf"1: the state dict cannot be used: .*{name[6:]}"):
            copy.deepcopy(model).load_state_dict(state)


@pytest.mark.clause("L9")
@KINDS
def test_statistics_and_thresholds_keep_their_dtype_in_a_half_precision_model(kind: str) -> None:
    normalizer = normalizers()[kind]
    expected = normalizer(SCORES, MAPS)
    model = nn.Sequential(nn.Linear(2, 2), normalizer).bfloat16()
    assert next(model.parameters()).dtype == torch.bfloat16
    assert {buffer.dtype for buffer in normalizer.buffers()} <= {torch.float64, torch.float32}
    assert_same(normalizer.half()(SCORES, MAPS), expected)


def test_it_moves_with_its_model() -> None:
    moved = normalizers()["cdf"].to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
    assert moved(SCORES.to("meta"), MAPS.to("meta"))["anomaly_maps"].device.type == "meta"


@pytest.mark.clause("N8", "T4")
@KINDS
def test_a_call_does_not_wait_for_the_device(kind: str) -> None:
    # Reading a value of a tensor without data is an error.
    normalizer = normalizers()[kind].to("meta")
    names = ("z", "raw") if normalizer.method.sigmas else ("margin", "raw")
    threshold = torch.zeros((), device="meta")
    result = normalizer(SCORES.to("meta"), MAPS.to("meta"), threshold=threshold, extras=names)
    assert len(result) == 4 + 2 * len(names)
    normalizer.denormalize(result["pred_scores"], result["anomaly_maps"])


@pytest.mark.clause("L5")
@KINDS
def test_what_only_pads_a_batch_is_never_flagged(kind: str) -> None:
    normalizer, valid = normalizers()[kind].with_threshold(0.5, 0.5, units="raw"), torch.arange(32) % 3 != 0
    plain = normalizer(SCORES, MAPS)
    found = normalizer(SCORES, MAPS, valid=valid)
    assert plain["pred_labels"][~valid].any()
    assert plain["pred_masks"][~valid].any()
    for name in ("pred_scores", "anomaly_maps"):
        assert torch.equal(found[name], plain[name])
    assert torch.equal(found["pred_labels"], plain["pred_labels"] & valid)
    assert torch.equal(found["pred_masks"], plain["pred_masks"] & valid[:, None, None, None])
    for wrong in (valid[:1], valid[:, None], valid[:31]):
        with pytest.raises(ValueError, match=r"valid must have shape \(32,\)"):
            normalizer(SCORES, MAPS, valid=wrong)


@pytest.mark.clause("L5", "N9")
@KINDS
def test_a_column_of_scores_stays_one(kind: str) -> None:
    normalizer, valid = normalizers()[kind], torch.arange(32) % 3 != 0
    flat, column = normalizer(SCORES, MAPS, valid=valid), normalizer(SCORES[:, None], MAPS[:, 0], valid=valid)
    for name, value in flat.items():
        expected = value[:, None] if name.startswith("pred_") and name != "pred_masks" else value[:, 0]
        assert torch.equal(column[name], expected), name
    back = normalizer.denormalize(column["pred_scores"])["pred_scores"]
    assert back.shape == (32, 1)


@pytest.mark.clause("T4")
def test_compiled_calls_take_numbers_and_tensors() -> None:
    normalizer = normalizers()["cdf"]
    call = torch.compile(normalizer, fullgraph=True, backend="aot_eager")
    for t in (0.5, 1.5, 2.5):
        expected = normalizer(SCORES, threshold=t)
        for given in (t, torch.tensor(t)):
            assert torch.equal(call(SCORES, threshold=given)["pred_labels"], expected["pred_labels"])


@pytest.mark.clause("T4")
def test_compiled_calls_flag_every_score_at_a_threshold_without_a_logarithm() -> None:
    normalizer = normalizers()["cdf"]
    found = torch.compile(normalizer, fullgraph=True)(SCORES, threshold=torch.tensor(1e-40))
    assert torch.all(found["pred_labels"])
    smallest = torch.tensor([torch.finfo(torch.float32).smallest_normal])
    found = torch.compile(normalizer, fullgraph=True)(smallest, threshold=torch.tensor(1e-40))
    assert float(found["pred_scores"]) == float(normalizer(smallest, threshold=torch.tensor(0.0))["pred_scores"]) == 1


@pytest.mark.clause("N3", "T4")
@KINDS
def test_thresholds_that_no_score_could_have_are_refused(kind: str) -> None:
    normalizer = normalizers()[kind]
    for wrong in (torch.nan, torch.inf, 1e39, "high", *([0.0, -1.0, 1e-39] if "cdf" in kind else [])):
        with pytest.raises(OptionError, match="threshold="):
            normalizer(SCORES, threshold=wrong)
        with pytest.raises(OptionError, match="pixel_threshold="):
            normalizer(SCORES, MAPS, pixel_threshold=wrong)
    with pytest.raises(OptionError, match="threshold has shape"):
        normalizer(SCORES, threshold=torch.ones(32))


def test_lists_and_unreadable_values_have_a_message() -> None:
    normalizer = normalizers()["min-max"]
    with pytest.raises(OutputError, match="a tensor"):
        normalizer([1.0, 2.0])
    with pytest.raises(OptionError, match="in a tuple, found float"):
        Normalizer.min_max(3.0, threshold=1.0)
    normalizer.image_threshold.fill_(torch.nan)
    assert "cannot be read" in repr(normalizer)
    assert "cannot be read" in repr(normalizers()["cdf"].to("meta"))


def test_its_repr_and_summary_are_readable() -> None:
    normalizer = normalizers()["cdf pixel"]
    sigmas = "threshold_sigmas=1.48287, pixel_threshold_sigmas=1.48287"  # of the images, each with its own center
    assert repr(normalizer) == f"Normalizer(method='cdf', {sigmas}, maps='4x5')"
    assert repr(normalizers()["two slopes"]) == (
        "Normalizer(method='two-slope', threshold=1.5, pixel_threshold=2.5, maps='any')"
    )
    text = normalizer.summary()
    assert "log-normal CDF, center pixel; fitted with anomnorm-torch" in text
    assert "image level: log scores with mean 0.1, std 0.4; threshold 2 (1.48287 sigmas), option" in text
    assert "0.5 is 2," in text


# Callbacks.

CALLBACKS: dict[str, Any] = {
    "min-max": lambda: MinMaxNormalizationCallback(1.5),
    "two slopes": lambda: NormalizationCallback("two-slope", 1.5),
    "min-max pixel": lambda: MinMaxNormalizationCallback(1.5, pixel_threshold=2.5),
    "min-max shared": lambda: MinMaxNormalizationCallback(1.5, shared_range=True),
    "cdf": lambda: CdfNormalizationCallback(1.0, source="validation"),
    "cdf pixel": lambda: CdfNormalizationCallback(1.0, pixel_threshold=0.5, center="pixel", source="validation"),
    "normal": lambda: CdfNormalizationCallback(1.0, source="validation", transform="identity"),
}


@pytest.mark.clause("P1", "T1", "T6")
@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize("maps", [True, False])
def test_a_callbacks_normalizer_gives_what_its_steps_give(kind: str, maps: bool, tmp_path: Path) -> None:
    callback = CALLBACKS[kind]()
    module, run = ScriptedModule(), trainer(callback)
    data = samples(SCORES.tolist(), **({"maps": MAPS[:, 0].numpy()} if maps else {}), labels=[0] * 32)
    run.validate(module, loader(data), verbose=False)
    normalizer = callback.normalizer(module)
    test_scores, test_maps = SCORES * 1.1, MAPS * 1.1
    test = samples(test_scores.tolist(), **({"maps": test_maps[:, 0].numpy()} if maps else {}))
    found = predictions(run, module, loader(test))
    expected = normalizer(test_scores, test_maps if maps else None)
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), value), name
    normalizer.save(tmp_path / "n")
    loaded = Normalizer.load(tmp_path / "n")
    assert_same(loaded(test_scores, test_maps if maps else None), expected)
    assert loaded.to_fit().fitted_with[0] == "anomnorm-torch"
    origins = {level: str(threshold.origin) for level, threshold in loaded.thresholds.items()}
    expected_origins = {"image": "option"} | (
        {"pixel": "option" if "pixel" in kind else "image"} if maps or "shared" in kind else {}
    )
    assert origins == expected_origins


@pytest.mark.clause("T1", "T6")
def test_a_normalizer_takes_the_modules_own_thresholds_and_does_not_change_with_them() -> None:
    callback = MinMaxNormalizationCallback()
    module, run = ScriptedModule(), trainer(callback)
    module.image_threshold = nn.Module()
    module.image_threshold.register_buffer("value", torch.tensor(1.25))
    run.validate(module, loader(samples(SCORES.tolist())), verbose=False)
    normalizer = callback.normalizer(module)
    assert float(normalizer.thresholds["image"].raw) == 1.25
    assert normalizer.thresholds["image"].origin == "module"
    assert list(normalizer.thresholds) == ["image"]
    module.image_threshold.value.fill_(3.0)
    assert float(normalizer.thresholds["image"].raw) == 1.25
    assert float(callback.normalizer(module).thresholds["image"].raw) == 3.0


@pytest.mark.clause("N3", "N1")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        tuple(CdfNormalizationCallback(1.0, center=center, source="validation") for center in ("image", "pixel")),
        (MinMaxNormalizationCallback(1.5), MinMaxNormalizationCallback(1.5, shared_range=True)),
    ],
    ids=["center", "shared_range"],
)
def test_another_callback_with_other_options_has_to_validate_first(first: Any, second: Any) -> None:
    module, data = ScriptedModule(), samples(SCORES.tolist(), maps=MAPS[:, 0].numpy(), labels=[0] * 32)
    run = trainer(first)
    run.validate(module, loader(data), verbose=False)
    before = predictions(run, module, loader(data))
    run = trainer(second)
    with pytest.raises(AnomnormError, match=r"fitted with (center='image'|shared_range=False) and this callback has"):
        run.predict(module, loader(data))
    run.validate(module, loader(data), verbose=False)
    after = predictions(run, module, loader(data))
    assert not all(np.array_equal(before[name], after[name]) for name in ("pred_scores", "anomaly_maps"))
    assert_same(
        {"anomaly_maps": second.normalizer(module)(SCORES, MAPS)["anomaly_maps"]},
        {"anomaly_maps": torch.as_tensor(after["anomaly_maps"])},
    )


@pytest.mark.clause("N8")
def test_a_callback_hands_out_no_normalizer_before_a_fit() -> None:
    callback = MinMaxNormalizationCallback(1.0)
    with pytest.raises(NotFittedError, match="normalization_metrics"):
        callback.normalizer(ScriptedModule())


# Exports.


class Detector(nn.Module):
    """From images to a map and its maximum."""

    def __init__(self, *, outputs: str = "dict") -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.outputs = outputs

    def forward(self, images: Tensor) -> Any:
        maps = self.convolution(images).exp()
        scores = maps.flatten(1).amax(1)
        return RETURNED[self.outputs](scores, maps)


class _Scored(NamedTuple):
    """As models of anomalib 2 return it."""

    pred_score: Tensor | None = None
    pred_label: Tensor | None = None
    anomaly_map: Tensor | None = None


class _Pair(NamedTuple):
    score: Tensor
    heatmap: Tensor


# What models return, in the order scores, maps.
RETURNED: dict[str, Any] = {
    "dict": lambda scores, maps: {"pred_scores": scores, "anomaly_maps": maps},
    "dict of the other spelling": lambda scores, maps: {"pred_score": scores, "anomaly_map": maps, "features": [maps]},
    "object": lambda scores, maps: SimpleNamespace(pred_scores=scores, anomaly_maps=maps),
    "object of the other spelling": lambda scores, maps: SimpleNamespace(pred_score=scores, anomaly_map=maps),
    "named tuple": lambda scores, maps: _Scored(scores, None, maps),
    "named tuple of other names": _Pair,
    "tuple": lambda scores, maps: (scores, maps),
    "turned round": lambda scores, maps: [maps, scores],
    "column": lambda scores, maps: (None, maps, scores[:, None]),
    "scores": lambda scores, maps: scores,
    "one score": lambda scores, maps: (scores,),
    "maps": lambda scores, maps: maps,
    "maps without a channel": lambda scores, maps: maps[:, 0],
    "maps in a named tuple": lambda scores, maps: _Scored(None, None, maps),
}


IMAGES = torch.randn(6, 1, 4, 5, generator=G)


@pytest.mark.clause("P4")
@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("min-max", "named tuple"), ("two slopes", "tuple"), ("cdf pixel", "maps"), ("cdf", "scores")],
)
def test_appended_to_a_model_and_exported_to_onnx(kind: str, outputs: str, tmp_path: Path) -> None:
    model = normalizers()[kind].append_to(Detector(outputs=outputs)).eval()
    batch = torch.export.Dim("batch")
    names = ["pred_scores", "pred_labels"] if outputs == "scores" else list(model(IMAGES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.onnx.export(
            model,
            (IMAGES[:2],),
            kwargs={"threshold": torch.tensor(1.0)},
            dynamic_shapes={"inputs": ({0: batch},), "threshold": {}},
            output_names=names,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    assert {node.domain for node in program.model.graph} == {""}  # no operator of ours, nor of torch's
    program.save(tmp_path / "detector.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    images, threshold = (node.name for node in session.get_inputs())
    assert threshold == "threshold"
    found_labels = []
    for t in (1e-30 if "cdf" in kind else -50.0, 1.0, 50.0):
        feed = {images: IMAGES.numpy(), threshold: np.asarray(t, dtype=np.float32)}
        found = dict(zip(names, session.run(names, feed), strict=True))
        with torch.no_grad():
            expected = model(IMAGES, threshold=torch.tensor(t))
        for name, value in expected.items():
            assert found[name].shape == tuple(value.shape)
            if value.dtype == torch.bool:
                # the convolution itself is summed in another order
                assert np.array_equal(found[name], value.numpy())
            else:
                np.testing.assert_allclose(found[name], value.numpy(), atol=2e-5)
        assert np.array_equal(found["pred_scores"] >= 0.5, found["pred_labels"])
        found_labels.append(found["pred_labels"].tolist())
    assert all(found_labels[0])
    assert not any(found_labels[2])


@pytest.mark.clause("L5")
@pytest.mark.parametrize("outputs", RETURNED)
def test_a_model_may_return_scores_and_maps_in_any_usual_way(outputs: str) -> None:
    normalizer, detector = normalizers()["cdf"], Detector(outputs=outputs)
    model = normalizer.append_to(detector)
    maps = detector.convolution(IMAGES).exp()
    scores = maps.flatten(1).amax(1)
    expected = normalizer(scores, None if outputs in ("scores", "one score") else maps)
    found = model(IMAGES)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        mine = found[name]
        assert mine.ndim == (
            2 if outputs == "column" and value.ndim == 1 else value.ndim - ("without" in outputs) * (value.ndim == 4)
        )
        assert torch.equal(mine.reshape(value.shape), value), name


@pytest.mark.clause("L5", "P4")
@pytest.mark.parametrize("outputs", ["named tuple", "named tuple of other names", "turned round", "maps"])
def test_such_models_export(outputs: str) -> None:
    model = normalizers()["min-max"].append_to(Detector(outputs=outputs))
    exported = torch.export.export(model, (IMAGES[:2],), dynamic_shapes={"inputs": ({0: torch.export.Dim("batch")},)})
    with torch.no_grad():
        found, expected = exported.module()(IMAGES), model(IMAGES)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # the convolution is summed in another order
        torch.testing.assert_close(found[name], value, rtol=0, atol=2.0**-22)


@pytest.mark.clause("L5")
@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda images: (images, images), r"returns a tuple that reads as anomaly_maps, anomaly_maps .* Return a dict"),
        (lambda images: (images, {"features": images}), "'part 1' in the tuple that the model returns is of type dict"),
        (lambda images: (), "returns a tuple that reads as nothing"),
        (lambda images: images[:, 0, 0], r"the image scores have shape \(6, 5\)"),
        (lambda images: {"features": images}, r"outputs \(dict\) hold 'features', but normalization needs"),
        (lambda images: None, r"outputs are of type NoneType, which holds no names"),
        (lambda images: (images, torch.ones(5)), "5 image scores but 6 anomaly maps"),
    ],
    ids=["two maps", "dict in a tuple", "empty", "matrix", "features", "nothing", "two batches"],
)
def test_a_model_that_returns_nothing_to_normalize_is_refused(returned: Any, message: str) -> None:
    class Model(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return returned(images)

    with pytest.raises(OutputError, match=message):
        normalizers()["cdf"].append_to(Model())(IMAGES)


@pytest.mark.clause("L5", "N10", "N11")
@KINDS
def test_maps_with_channels_last_stay_so(kind: str) -> None:
    normalizer = normalizers()[kind]
    name = "z" if normalizer.method.sigmas else "margin"
    given = {"threshold": 1.25, "extras": (name, "raw", "invalid"), "valid": torch.arange(32) < 30}
    first, last = (normalizer(SCORES, maps, **given) for maps in (MAPS, MAPS.movedim(1, -1)))
    assert first.keys() == last.keys()
    for key, value in first.items():
        is_map = "map" in key or "mask" in key
        assert last[key].shape == ((32, 4, 5, 1) if is_map else (32,)), key
        assert torch.equal(last[key].movedim(-1, 1) if is_map else last[key], value), key
    back = normalizer.denormalize(anomaly_maps=last["anomaly_maps"])["anomaly_maps"]
    assert torch.equal(back.movedim(-1, 1), normalizer.denormalize(anomaly_maps=first["anomaly_maps"])["anomaly_maps"])
    scores = normalizer(anomaly_maps=MAPS.movedim(1, -1))["pred_scores"]
    assert torch.equal(scores, normalizer(anomaly_maps=MAPS)["pred_scores"])


@pytest.mark.clause("N6", "N10", "L5")
@KINDS
def test_the_extra_invalid_marks_images_without_a_score(kind: str) -> None:
    normalizer = normalizers()[kind]
    scores = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, torch.nan])
    expected = [False, True, False, False, True]
    for column in (scores, scores[:, None]):
        assert normalizer(column, extras="invalid")["invalid"].tolist() == expected
    valid = torch.tensor([True, True, True, True, False])
    assert normalizer(scores, valid=valid, extras="invalid")["invalid"].tolist() == [*expected[:4], False]
    maps = MAPS[:5].clone()
    maps[2] = torch.nan
    maps[3, 0, 0, 0] = torch.nan
    assert normalizer(anomaly_maps=maps, extras=["invalid"])["invalid"].tolist() == [False, False, True, False, False]


@pytest.mark.clause("P4")
def test_an_exported_program_can_be_saved(tmp_path: Path) -> None:
    normalizer = normalizers()["cdf"]
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        normalizer,
        (SCORES[:2], MAPS[:2]),
        {"threshold": torch.tensor(1.0)},
        dynamic_shapes={"pred_scores": {0: batch}, "anomaly_maps": {0: batch}, "threshold": {}},
    )
    assert {str(node.target).split(".")[0] for node in exported.graph.nodes if node.op == "call_function"} == {"aten"}
    torch.export.save(exported, tmp_path / "n.pt2")
    loaded = torch.export.load(tmp_path / "n.pt2").module()
    for t in (0.5, 2.5):
        threshold = torch.tensor(t)
        found, expected = (call(SCORES, MAPS, threshold=threshold) for call in (loaded, normalizer))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if value.dtype is torch.bool:
                assert torch.equal(found[name], value), name
            else:
                torch.testing.assert_close(found[name], value, rtol=0, atol=2.0**-22)


class _Fields(NamedTuple):
    pred_score: Tensor
    anomaly_map: Tensor
    valid: Tensor


@pytest.mark.clause("L5")
@KINDS
def test_a_model_may_return_an_object_and_say_what_pads_its_batch(kind: str) -> None:
    class Model(nn.Module):
        def forward(self, maps: Tensor) -> _Fields:
            return _Fields(SCORES, maps, torch.arange(32) < 30)

    found = normalizers()[kind].append_to(Model())(MAPS)
    assert_same(found, normalizers()[kind](SCORES, MAPS, valid=torch.arange(32) < 30))
    assert not found["pred_labels"][30:].any()
