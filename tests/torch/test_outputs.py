"""Step outputs of either spelling are read and updated in place (clauses L4, L5)."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, numbers, parameters, predictions, samples, trainer
from torch import Tensor

from anomnorm_core import NotFittedError, OutputError, ThresholdWarning
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback
from anomnorm_torch.outputs import StepOutputs


@dataclass
class Batch:
    """As newer detectors return them."""

    image: Tensor
    pred_score: Tensor | None = None
    anomaly_map: Tensor | None = None
    gt_label: Tensor | None = None
    gt_mask: Tensor | None = None
    pred_label: Tensor | None = None
    pred_mask: Tensor | None = None


def fitted(callback: Any) -> ScriptedModule:
    module = ScriptedModule()
    data = samples(np.arange(1.0, 5.0), np.arange(1.0, 17.0).reshape(4, 2, 2))
    trainer(callback).fit(module, loader(data), loader(data))
    return module


@pytest.mark.clause("L4", "L5")
@pytest.mark.parametrize("callback", [MinMaxNormalizationCallback(2.0), CdfNormalizationCallback(1.0)])
def test_attribute_style_batches_are_updated_in_place_like_dictionaries(callback: Any) -> None:
    module = fitted(callback)
    scores, maps = torch.tensor([1.0, 4.0]), torch.arange(1.0, 9.0).reshape(2, 1, 2, 2)
    batch = Batch(torch.zeros(2), pred_score=scores, anomaly_map=maps)
    mapping = {"pred_scores": scores, "anomaly_maps": maps, "image_path": ["a", "b"]}
    for outputs in (batch, mapping):
        callback.on_predict_batch_end(trainer(), module, outputs, None, 0)
    assert torch.equal(batch.pred_score, mapping["pred_scores"])
    assert torch.equal(batch.anomaly_map, mapping["anomaly_maps"])
    assert torch.equal(batch.pred_label, mapping["pred_labels"])
    assert torch.equal(batch.pred_mask, mapping["pred_masks"])
    assert mapping["image_path"] == ["a", "b"]
    assert 0 <= mapping["pred_scores"].min() <= mapping["pred_scores"].max() <= 1
    # New tensors: what else holds the raw ones keeps them raw.
    assert scores.tolist() == [1.0, 4.0]
    assert maps.flatten().tolist() == list(range(1, 9))


@pytest.mark.clause("L5")
def test_scores_default_to_the_maximum_of_the_map() -> None:
    for shape in ((2, 1, 2, 2), (2, 2, 2)):
        step = StepOutputs({"anomaly_maps": torch.arange(8.0).reshape(shape)})
        assert step.scores.tolist() == [3.0, 7.0]


class Frozen(NamedTuple):
    pred_score: Tensor


@pytest.mark.clause("L5")
@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            None,
            r"outputs are of type NoneType, which holds no names, but .* 'pred_scores' of shape \(B,\)",
        ),
        ({"loss": 1}, r"outputs \(dict\) hold 'loss'"),
        ({"pred_scores": None}, r"hold 'pred_scores', but"),
        ({"pred_scores": [1.0]}, "'pred_scores' in the step's outputs is of type list; it must be a tensor"),
        (torch.ones(3), "outputs are of type Tensor, which holds no names"),
        (Batch(torch.ones(1)), "'pred_score'"),
        ({"pred_scores": torch.ones(2, 2)}, r"shape \(2, 2\); one score for each image is needed, shape \(B,\)"),
        ({"anomaly_maps": torch.ones(2, 8, 8, 3)}, r"shape \(2, 8, 8, 3\); \(B, 1, H, W\), \(B, H, W\) or"),
        ({"anomaly_maps": torch.ones(2, 3, 8, 8)}, r"shape \(2, 3, 8, 8\); .* \(B, H, W, 1\) is needed"),
        ({"pred_scores": torch.ones(2), "anomaly_maps": torch.ones(3, 8, 8)}, "2 image scores but 3 anomaly maps"),
    ],
    ids=[
        *("None", "no scores", "scores None", "list", "tensor", "empty batch"),
        *("two columns", "three channels last", "channels", "two batches"),
    ],
)
def test_anything_else_is_an_error_that_lists_what_was_found(outputs: Any, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        StepOutputs(outputs).scores  # noqa: B018


@pytest.mark.clause("L5")
@pytest.mark.parametrize(
    "outputs", [Frozen(torch.ones(2)), MappingProxyType({"pred_scores": torch.ones(2)})], ids=["tuple", "mapping"]
)
def test_outputs_that_cannot_be_changed_are_refused(outputs: Any) -> None:
    with pytest.raises(OutputError, match="they are updated in place"):
        StepOutputs(outputs).write({"pred_scores": torch.ones(2)})


@pytest.mark.clause("L4")
def test_a_mapping_that_checks_what_it_takes_is_written_item_by_item() -> None:
    class Checked(OrderedDict[str, Tensor]):  # as model outputs of transformers are
        def update(self, *_: Any, **__: Any) -> None:
            raise Exception("you cannot use update")

    class Locked(UserDict[str, Tensor]):  # as a tensordict may be
        def __setitem__(self, key: str, item: Tensor) -> None:
            if self:
                raise RuntimeError("locked")
            super().__setitem__(key, item)

    outputs = Checked(pred_score=torch.ones(2))
    StepOutputs(outputs).write({"pred_scores": torch.zeros(2), "pred_labels": torch.ones(2)})
    assert list(outputs) == ["pred_score", "pred_label"]
    assert outputs["pred_score"].tolist() == [0, 0]
    with pytest.raises(OutputError, match="cannot write 'pred_scores' into the step's outputs"):
        StepOutputs(Locked(pred_scores=torch.ones(2))).require_writable()


@pytest.mark.clause("L3", "L5")
def test_labels_are_found_in_outputs_and_batches() -> None:
    label, scores = torch.tensor([0, 1]), torch.ones(2)
    for outputs, batch in (
        ({"pred_scores": scores, "label": label}, None),
        ({"pred_scores": scores, "gt_label": label}, None),
        ({"pred_scores": scores}, {"label": label}),
        (Batch(torch.ones(1), scores, gt_label=label), None),
        ({"pred_scores": scores}, Batch(torch.ones(1), gt_label=label.bool())),
    ):
        anomalous = StepOutputs(outputs).ground_truth(batch, masks=True).anomalous
        assert anomalous is not None
        assert anomalous.tolist() == [False, True]
    assert StepOutputs({"pred_scores": scores}).ground_truth([torch.ones(1), label], masks=True) == (None, None, None)


def test_a_module_without_statistics_says_who_attaches_them() -> None:
    with pytest.raises(NotFittedError, match="A trainer with the callback attaches them"):
        MinMaxNormalizationCallback._normalize_batch({"pred_scores": torch.ones(1)}, ScriptedModule())


SPELLINGS = {
    "pred_scores": "pred_score",
    "anomaly_maps": "anomaly_map",
    "pred_labels": "pred_label",
    "pred_masks": "pred_mask",
    "pred_scores_raw": "pred_score_raw",
    "anomaly_maps_raw": "anomaly_map_raw",
    "invalid": "invalid",
}


@pytest.mark.clause("L4", "L5", "N10")
@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
def test_results_have_the_spelling_that_the_outputs_have(kind: Any) -> None:
    callback = kind(1.0, extras=("raw", "invalid"))
    module = fitted(callback)
    scores, maps = torch.tensor([1.0, 4.0]), torch.arange(1.0, 9.0).reshape(2, 1, 2, 2)
    found: list[dict[str, Any]] = []
    for make in (dict, SimpleNamespace):
        for names in (("pred_scores", "anomaly_maps"), ("pred_score", "anomaly_map")):
            outputs = make(**dict(zip(names, (scores, maps), strict=True)))
            callback.on_predict_batch_end(trainer(), module, outputs, None, 0)
            found.append(outputs if make is dict else vars(outputs))
    plural, singular, *objects = found
    assert set(plural) == set(SPELLINGS)
    for name, other in SPELLINGS.items():
        assert torch.equal(plural[name], singular[other]), name
        assert torch.equal(plural[name], objects[0][name]), name
        assert torch.equal(plural[name], objects[1][other]), name
    assert set(singular) == set(objects[1]) == set(SPELLINGS.values())


@pytest.mark.clause("L5")
@pytest.mark.parametrize("name", ["anomaly_map", "pred_score"])
def test_a_mixture_of_spellings_is_refused(name: str) -> None:
    outputs = {"pred_scores": torch.ones(2), "anomaly_maps": torch.ones(2, 3, 3)}
    outputs[name] = outputs.pop(f"{name}s")
    for each in (outputs, SimpleNamespace(**outputs)):
        with pytest.raises(OutputError, match=f"'{name}'.* in two spellings"):
            StepOutputs(each)


class Last(ScriptedModule):
    """Maps, and masks where there are any, with their channel axis at the end."""

    def outputs(self, batch: Any) -> Any:
        result = super().outputs(batch)
        last = {name: result[name].movedim(1, -1) for name in ("anomaly_maps", "mask") if name in result}
        return result | last


@pytest.mark.clause("L5")
@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
def test_maps_with_channels_last_are_those_with_channels_first(kind: Any) -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(6) % 2
    masks = rng.random((6, 2, 3)) < 0.5 * labels[:, None, None]
    maps = np.exp(rng.normal(size=(6, 2, 3)) + masks)
    train, data = (loader(samples(None, maps, *truth)) for truth in ((), (labels, masks)))
    found: list[Any] = []
    for module in (ScriptedModule(), Last()):
        callback = kind(extras="raw")
        run = trainer(callback)
        run.fit(module, train, data)
        emitted = module.emitted[0]["anomaly_maps"]
        found.append((numbers(callback), emitted, predictions(run, module, data)))
    (first, emitted, results), (last, emitted_last, results_last) = found
    assert last == first
    assert torch.equal(emitted_last.movedim(-1, 1), emitted)  # z-scores under the CDF
    for name, values in results.items():
        mine = results_last[name]
        if "map" in name or "mask" in name:
            assert mine.shape == (6, 2, 3, 1), name
            mine = np.moveaxis(mine, -1, 1)
        assert np.array_equal(mine, values), name


@pytest.mark.clause("L5")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.float32])
def test_labels_below_zero_are_ignored_ones(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, -1, 2]).to(dtype)
    if dtype.is_floating_point:
        labels = torch.cat([labels, torch.tensor([torch.nan])])
    truth = StepOutputs({"pred_scores": torch.ones(len(labels)), "label": labels}).ground_truth(None, masks=False)
    assert truth.anomalous is not None
    assert truth.normal is not None
    assert truth.anomalous.tolist()[:4] == [False, True, False, True]
    assert truth.normal.tolist() == [True] + [False] * (len(labels) - 1)
    masks = torch.tensor([[[0, -1]], [[-1, 1]]])
    truth = StepOutputs({"anomaly_maps": torch.ones(2, 1, 2), "mask": masks}).ground_truth(None, masks=True)
    assert truth.anomalous is not None
    assert truth.anomalous.tolist() == [False, True]


@pytest.mark.clause("L5", "T2", "S9")
@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
def test_ignored_samples_count_in_ranges_alone(kind: Any) -> None:
    class Ignoring(ScriptedModule):
        def outputs(self, batch: Any) -> Any:
            return super().outputs(batch) | {"label": batch["label"].float()}

    rng = np.random.default_rng(5)
    labels = np.array([0, 0, 0, 1, 1, 0])
    maps = np.exp(rng.normal(size=(6, 2, 2)) + labels[:, None, None])
    train, data = samples(maps.max((1, 2)), maps), samples(maps.max((1, 2)), maps, labels)
    # They would move every threshold, as normals or as anomalies.
    strange = samples([1e3, 1e-3], np.stack([np.full((2, 2), 1e3), np.full((2, 2), 1e-3)]), np.array([-1.0, np.nan]))
    callback, plain = kind(), kind()
    module, other = Ignoring(), Ignoring()
    trainer(callback).fit(module, loader(train + strange), loader(data + strange))
    trainer(plain).fit(other, loader(train), loader(data))
    assert numbers(callback) == numbers(plain)
    assert callback.fit_check == plain.fit_check
    if kind is MinMaxNormalizationCallback:  # a score like any other
        for level in ("image", "pixel"):
            np.testing.assert_allclose(parameters(module, level), [1e-3, 1e3], rtol=1e-6)
    else:
        np.testing.assert_allclose(parameters(module), parameters(other), rtol=1e-12)
    none = pytest.warns(ThresholdWarning, match="no sample is labelled 0, normal, and 1 are labelled below 0")
    with pytest.warns(ThresholdWarning, match="the smallest of 2 anomalous scores"), none:
        trainer(kind(pixel_threshold=1.0)).fit(Ignoring(), loader(train), loader(data[3:5] + strange[:1]))


@pytest.mark.clause("L5")
def test_valid_may_be_of_any_library_and_shape() -> None:
    for value in ([True, False], np.array([1, 0]), torch.tensor([[1.0], [0.0]])):
        step = StepOutputs({"pred_scores": torch.ones(2), "valid": value})
        valid = step.valid(None)
        assert valid is not None
        assert valid.tolist() == [True, False]
    for wrong in ("yes", {"a": True}, [True]):
        with pytest.raises(OutputError, match="it must be a tensor of 2 booleans"):
            StepOutputs({"pred_scores": torch.ones(2)}).valid({"valid": wrong})


@pytest.mark.clause("L5")
@pytest.mark.parametrize("callback", [MinMaxNormalizationCallback(), CdfNormalizationCallback()])
@pytest.mark.parametrize("wrong", [{"score": 1.0}, {"pred_scores": torch.ones(3), "label": torch.ones(2)}])
def test_wrong_outputs_are_found_in_the_sanity_check(callback: Any, wrong: Any) -> None:
    class Wrong(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return wrong

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("the training must not begin")

    data = loader(samples([1.0, 2.0, 3.0]))
    with pytest.raises(OutputError):
        trainer(callback).fit(Wrong(), data, data)
