"""``forward``, alone and exported with the model, and post-processors from configuration files."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from anomalib_models import SIZE, made
from torch import nn

from anomnorm_core import Normalizer
from anomnorm_torch.anomalib import CdfPostProcessor, MinMaxPostProcessor

FIELDS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    """Models by method."""
    models = {}
    for name, kind in (("min-max", MinMaxPostProcessor), ("cdf", CdfPostProcessor)):
        models[name] = made("Padim", kind())
        root = tmp_path_factory.mktemp(name)
        engine = Engine(default_root_dir=root, accelerator="cpu", enable_progress_bar=False, logger=False)
        engine.fit(models[name], datamodule=data())
        models[name].eval()
    return models


METHODS = ("min-max", "cdf")


@pytest.mark.clause("L5", "P2", "P4")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scores", [None, (6,), (6, 1)])
@pytest.mark.parametrize("maps", [None, (6, SIZE, SIZE), (6, 1, SIZE, SIZE)])
def test_forward_in_all_shapes(method, scores, maps, fitted, tmp_path):
    if scores is None and maps is None:
        return
    post_processor = fitted[method].post_processor
    given = InferenceBatch(
        pred_score=None if scores is None else 4 + 8 * torch.rand(scores),
        anomaly_map=None if maps is None else 4 + 8 * torch.rand(maps),
    )
    post_processor.normalizer.save(tmp_path / "file.safetensors")
    numpy = [None if each is None else each.numpy() for each in (given.pred_score, given.anomaly_map)]
    expected = Normalizer.load(tmp_path / "file.safetensors")(*numpy)
    batch = torch.export.Dim("batch", min=2)
    shapes = InferenceBatch(*(None if value is None else {0: batch} for value in given))
    exported = torch.export.export(post_processor, (given,), dynamic_shapes=(shapes,)).module()
    for found in (post_processor(given), exported(given)):
        for mine, plural in zip(FIELDS, ("pred_scores", "pred_labels", "anomaly_maps", "pred_masks"), strict=True):
            value = getattr(found, mine)
            assert (value is None) == (plural not in expected)
            if value is not None:
                assert value.shape == expected[plural].shape
                np.testing.assert_allclose(value.numpy(), expected[plural], rtol=0, atol=2**-22)


def images(data) -> torch.Tensor:
    datamodule = data()
    datamodule.setup()
    dataset = datamodule.test_data
    return torch.stack([dataset[index].image for index in range(0, len(dataset), 4)])


def assert_parity(found, model, x: torch.Tensor, *, tolerance: float) -> None:
    with torch.no_grad():
        expected = model(x)
    for name, values in (("pred_label", "pred_score"), ("pred_mask", "anomaly_map")):
        value, reference = np.asarray(found[values]), getattr(expected, values).numpy()
        np.testing.assert_allclose(value.reshape(reference.shape), reference, rtol=0, atol=tolerance)
        flagged = np.asarray(found[name]).reshape(reference.shape)
        np.testing.assert_array_equal(flagged, value.reshape(reference.shape) >= 0.5)
        clear = abs(reference - 0.5) > tolerance  # else features that differ in the last digits may decide
        np.testing.assert_array_equal(flagged[clear], getattr(expected, name).numpy()[clear])


@pytest.mark.clause("P4")
@pytest.mark.parametrize("method", METHODS)
def test_exports_give_what_the_model_gives(method, fitted, data, engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an inferencer puts a cache
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    model, run, x = fitted[method], engine(), images(data)
    newest = {"opset_version": 18}  # of the one that anomalib asks for, ONNX has no converter for all operators

    path = run.export(model, "torch", export_root=tmp_path, input_size=(SIZE, SIZE))
    by_torch = TorchInferencer(path, device="cpu")
    assert_parity(by_torch.model(x)._asdict(), model, x, tolerance=0.0)
    one = by_torch.predict(x[0])
    assert torch.equal(one.pred_score, model(x[:1]).pred_score)

    path = run.export(model, "onnx", export_root=tmp_path, input_size=(SIZE, SIZE), onnx_kwargs=newest)
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"input": x.numpy()}), strict=True))
    assert_parity(found, model, x, tolerance=2e-6 if method == "cdf" else 1e-6)

    path = run.export(model, "openvino", export_root=tmp_path, input_size=(SIZE, SIZE), onnx_kwargs=newest)
    # Some processors compute in half precision where nothing else is said.
    by_openvino = OpenVINOInferencer(path, device="CPU", config={"INFERENCE_PRECISION_HINT": "f32"})
    found = [by_openvino.predict(each.permute(1, 2, 0).numpy()) for each in x[:4]]
    stacked = {name: np.concatenate([getattr(each, name).reshape(1, -1) for each in found]) for name in FIELDS}
    assert_parity(stacked, model, x[:4], tolerance=1e-3)


@pytest.mark.clause("T4")
@pytest.mark.parametrize("method", METHODS)
def test_thresholds_are_moved_before_an_export(method, fitted):
    post_processor = copy.deepcopy(fitted[method].post_processor)
    given = InferenceBatch(pred_score=4 + 8 * torch.rand(64), anomaly_map=4 + 8 * torch.rand(64, 1, SIZE, SIZE))
    for threshold in (6.0, 8.0):
        with torch.inference_mode(threshold == 8.0):  # as predictions and validations without a training run
            post_processor.with_threshold(threshold, threshold + 1, units="raw")
            post_processor(given)
        assert not any(buffer.is_inference() for buffer in post_processor._ready[1].buffers())  # no export takes such
        program = torch.export.export(post_processor, (given,)).run_decompositions()
        found = program.module()(given)
        assert torch.equal(found.pred_label, given.pred_score >= threshold)
        assert torch.equal(found.pred_mask, given.anomaly_map >= threshold + 1)
    post_processor.image_sensitivity = 0.4
    cut = post_processor.normalizer.raw_threshold(1 - 0.4, "normalized")
    found = torch.export.export(copy.deepcopy(post_processor), (given,)).module()(given)
    assert torch.equal(found.pred_label, given.pred_score >= float(np.float32(cut)))


@pytest.mark.clause("T4", "P4")
def test_thresholds_are_inputs_of_an_exported_program(fitted, data):
    # anomalib exports models with one input, the image; the normalizer is appended to one with more.
    model, x = fitted["min-max"], images(data)[:4]
    whole = model.post_processor.normalizer.append_to(nn.Sequential(model.pre_processor, model.model)).eval()
    program = torch.export.export(whole, (x,), {"threshold": torch.tensor(8.0), "pixel_threshold": torch.tensor(7.0)})
    raw = model.model(model.pre_processor(x))
    for threshold in (6.0, 9.0):
        given = {"threshold": torch.tensor(threshold), "pixel_threshold": torch.tensor(threshold - 1)}
        found = program.module()(x, **given)
        assert torch.equal(found["pred_labels"], raw.pred_score >= threshold)
        assert torch.equal(found["pred_masks"], raw.anomaly_map >= threshold - 1)


CONFIGURATION = """
model:
  class_path: anomalib.models.Padim
  init_args:
    backbone: resnet18
    layers: [layer1]
    pre_trained: false
    n_features: 10
    post_processor:
      class_path: anomnorm_torch.anomalib.{name}
      init_args:
        {own}
        false_alarm_rate: 0.05
        threshold: false_alarm_rate
        pixel_threshold: 3.5
        limit_batches: {limit}
        extras: [raw]
        image_sensitivity: 0.6
        enable_threshold_matching: false
"""


@pytest.mark.parametrize(
    ("name", "own", "limit", "method"),
    [
        ("CdfPostProcessor", "transform: identity", 0.5, "normal"),
        ("MinMaxPostProcessor", "on_invalid: raise", "null", "min-max"),
        ("NormalizationPostProcessor", "method: two-slope", "null", "two-slope"),
    ],
)
def test_configuration_files_build_a_post_processor(name, own, limit, method, tmp_path: Path):
    path = tmp_path / "model.yaml"
    path.write_text(CONFIGURATION.format(name=name, own=own, limit=limit))
    found = AnomalibModule.from_config(path).post_processor
    assert type(found).__name__ == name
    options = found.normalization
    assert (options["method"], options["threshold"], options["pixel_threshold"]) == (method, "false_alarm_rate", 3.5)
    assert options["extras"] == ["raw"]
    assert found.image_sensitivity == 0.6
    assert not found.enable_threshold_matching
    assert "threshold='false_alarm_rate', pixel_threshold=3.5, false_alarm_rate=0.05" in repr(found)
