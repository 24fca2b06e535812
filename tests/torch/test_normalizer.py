"""The normalizer as a module, from callbacks, and exported."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scripted_module import ScriptedModule, loader, predictions, samples, trainer
from torch import Tensor, nn

from anomnorm_core import AnomnormError, NotFittedError, OptionError, OutputError
from anomnorm_torch import (
    AnomalyScoreDistribution,
    CdfNormalizationCallback,
    MinMaxNormalizationCallback,
    Normalizer,
)

G = torch.Generator().manual_seed(4)
SCORES = torch.randn(32, generator=G).exp()
MAPS = torch.randn(32, 1, 4, 5, generator=G).exp()
MEAN, STD = torch.randn(4, 5, generator=G) * 0.1, torch.rand(4, 5, generator=G) * 0.5 + 0.3


def normalizers() -> dict[str, Normalizer]:
    return {
        "min-max": Normalizer.min_max((0.1, 4.0), (0.0, 6.0), threshold=1.5),
        "cdf": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, pixel_threshold=1.0),
        "cdf raw": Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=2.0, units="raw"),
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
    other = normalizers()[kind].with_threshold(7.0)
    if kind == "cdf raw":
        other = other.with_threshold(7.0, units="raw")
    stored = io.BytesIO()
    torch.save(normalizer.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert_same(other(SCORES, MAPS), expected)


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
    names = ("margin", "raw") if kind == "min-max" else ("z", "raw")
    threshold = torch.zeros((), device="meta")
    result = normalizer(SCORES.to("meta"), MAPS.to("meta"), threshold=threshold, extras=names)
    assert len(result) == 4 + 2 * len(names)
    normalizer.denormalize(result["pred_scores"], result["anomaly_maps"])


@pytest.mark.clause("T4")
def test_compiled_calls_take_numbers_and_tensors() -> None:
    normalizer = normalizers()["cdf"]
    call = torch.compile(normalizer, fullgraph=True)
    for t in (0.5, 1.5, 2.5):
        expected = normalizer(SCORES, threshold=t)
        for given in (t, torch.tensor(t)):
            assert torch.equal(call(SCORES, threshold=given)["pred_labels"], expected["pred_labels"])


def test_lists_and_unreadable_values_have_a_message() -> None:
    normalizer = normalizers()["min-max"]
    with pytest.raises(OutputError, match="a tensor"):
        normalizer([1.0, 2.0])
    with pytest.raises(OptionError, match="pair of arrays"):
        Normalizer.min_max(3.0, threshold=1.0)
    normalizer.image_threshold.fill_(torch.nan)
    assert "cannot be read" in repr(normalizer)
    assert "cannot be read" in repr(normalizers()["cdf"].to("meta"))


def test_its_repr_and_summary_are_readable() -> None:
    normalizer = normalizers()["cdf raw"]
    assert (
        repr(normalizer) == "Normalizer(method='cdf', threshold=1.48287, raw_threshold=2, center='image', maps='4x5')"
    )
    text = normalizer.summary()
    assert "log-normal CDF" in text
    assert "mean 0.1, std 0.4; threshold 1.48287 (z), raw 2" in text
    assert "0.5 is 2," in text
    assert "fitted with anomnorm-torch" in text


# Callbacks.

CALLBACKS: dict[str, Any] = {
    "min-max": lambda: MinMaxNormalizationCallback(1.5),
    "min-max pixel": lambda: MinMaxNormalizationCallback(1.5, pixel_threshold=2.5),
    "min-max shared": lambda: MinMaxNormalizationCallback(1.5, shared_range=True),
    "cdf": lambda: CdfNormalizationCallback(1.0, source="validation"),
    "cdf pixel": lambda: CdfNormalizationCallback(1.0, pixel_threshold=0.5, center="pixel", source="validation"),
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
    assert loaded.fitted_state().fitted_with[0] == "anomnorm-torch"
    assert (loaded.fitted_state().pixel_threshold is None) is ("pixel" not in kind)


@pytest.mark.clause("T1", "T6")
def test_a_normalizer_takes_the_modules_own_thresholds_and_does_not_change_with_them() -> None:
    callback = MinMaxNormalizationCallback()
    module, run = ScriptedModule(), trainer(callback)
    module.image_threshold = nn.Module()
    module.image_threshold.register_buffer("value", torch.tensor(1.25))
    run.validate(module, loader(samples(SCORES.tolist())), verbose=False)
    normalizer = callback.normalizer(module)
    assert normalizer.fitted_state().threshold == 1.25
    assert normalizer.fitted_state().pixel_threshold is None
    module.image_threshold.value.fill_(3.0)
    assert normalizer.fitted_state().threshold == 1.25
    assert callback.normalizer(module).fitted_state().threshold == 3.0


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
    with pytest.raises(AnomnormError, match=r"fitted with (center=\"image\"|shared_range=False) and this callback has"):
        run.predict(module, loader(data))
    run.validate(module, loader(data), verbose=False)
    after = predictions(run, module, loader(data))
    assert not all(np.array_equal(before[name], after[name]) for name in ("pred_scores", "anomaly_maps"))
    assert_same(
        {"anomaly_maps": second.normalizer(module)(SCORES, MAPS)["anomaly_maps"]},
        {"anomaly_maps": torch.as_tensor(after["anomaly_maps"])},
    )


@pytest.mark.clause("L6", "S6")
def test_a_founding_checkpoint_with_a_pixel_that_was_always_zero() -> None:
    metrics = AnomalyScoreDistribution()
    mean, std = torch.zeros(2, 3), torch.ones(2, 3)
    mean[0, 0], std[0, 0] = -torch.inf, torch.nan
    state = {"image_mean": torch.tensor(0.5), "image_std": torch.tensor(0.25), "pixel_mean": mean, "pixel_std": std}
    metrics.load_state_dict(state)
    result = metrics.normalizer(2.0)(torch.ones(2), torch.ones(2, 2, 3))
    assert result["anomaly_maps"].isfinite().all()  # the pooled deviation of the others
    assert len(result["anomaly_maps"].unique()) == 1


@pytest.mark.clause("N8")
def test_a_callback_hands_out_no_normalizer_before_a_fit() -> None:
    callback = MinMaxNormalizationCallback(1.0)
    with pytest.raises(NotFittedError, match="normalization_metrics"):
        callback.normalizer(ScriptedModule())


# Exports.


class Detector(nn.Module):
    """From images to a map and its maximum."""

    def __init__(self, *, outputs: str = "both") -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.outputs = outputs

    def forward(self, images: Tensor) -> Any:
        maps = self.convolution(images).exp()
        scores = maps.flatten(1).amax(1)
        if self.outputs == "scores":
            return scores
        return {"pred_scores": scores, "anomaly_maps": maps}


IMAGES = torch.randn(6, 1, 4, 5, generator=G)


@pytest.mark.clause("P4")
@KINDS
@pytest.mark.parametrize("outputs", ["both", "scores"])
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
    program.save(tmp_path / "detector.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    images, threshold = (node.name for node in session.get_inputs())
    assert threshold == "threshold"
    found_labels = []
    for t in (-50.0, 1.0, 50.0):
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


def test_a_model_that_returns_nothing_to_normalize_is_refused() -> None:
    model = normalizers()["cdf"].append_to(nn.Identity())
    with pytest.raises(OutputError, match=r"shape \(6, 1, 4, 5\)"):
        model(IMAGES)
    with pytest.raises(OutputError, match="dict"):
        normalizers()["cdf"].append_to(_Pair())(IMAGES)


class _Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


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
    torch.export.save(exported, tmp_path / "n.pt2")
    loaded = torch.export.load(tmp_path / "n.pt2").module()
    for t in (0.5, 2.5):
        threshold = torch.tensor(t)
        found = loaded(SCORES, MAPS, threshold=threshold)
        assert_same(found, normalizer(SCORES, MAPS, threshold=threshold))
