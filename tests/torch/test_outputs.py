"""Step outputs of either layout are read and updated in place (clauses L4, L5)."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, samples, trainer
from torch import Tensor

from anomnorm_core import NotFittedError, OutputError
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
        (None, r"outputs \(NoneType\) hold nothing, but normalization needs 'pred_scores' of shape \(B,\)"),
        ({"loss": 1}, r"outputs \(dict\) hold 'loss'"),
        ({"pred_scores": None}, r"hold 'pred_scores', but"),
        ({"pred_scores": [1.0]}, "'pred_scores' in the step's outputs is of type list; it must be a tensor"),
        (torch.ones(3), r"outputs \(Tensor\) hold"),
        (Batch(torch.ones(1)), "'pred_score'"),
        ({"pred_scores": torch.ones(2, 2)}, r"shape \(2, 2\); one score for each image is needed, shape \(B,\)"),
        ({"anomaly_maps": torch.ones(2, 8, 8, 1)}, r"maps\[..., 0\]"),
        ({"anomaly_maps": torch.ones(2, 3, 8, 8)}, r"shape \(2, 3, 8, 8\); \(B, 1, H, W\) or \(B, H, W\) is needed"),
        ({"pred_scores": torch.ones(2), "anomaly_maps": torch.ones(3, 8, 8)}, "2 image scores but 3 anomaly maps"),
    ],
    ids=[
        *("None", "no scores", "scores None", "list", "tensor", "empty batch"),
        *("column", "channels last", "channels", "two batches"),
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
    assert StepOutputs({"pred_scores": scores}).ground_truth([torch.ones(1), label], masks=True) == (None, None)


def test_a_module_without_statistics_says_who_attaches_them() -> None:
    with pytest.raises(NotFittedError, match="A trainer with the callback attaches them"):
        MinMaxNormalizationCallback._normalize_batch({"pred_scores": torch.ones(1)}, ScriptedModule())


@pytest.mark.clause("L5")
@pytest.mark.parametrize("name", ["anomaly_map", "pred_score"])
def test_a_dictionary_with_the_names_of_an_object_is_refused(name: str) -> None:
    outputs = {"pred_scores": torch.ones(2), "anomaly_maps": torch.ones(2, 3, 3)}
    outputs[name] = outputs.pop(f"{name}s")
    with pytest.raises(OutputError, match=f"outputs hold '{name}'; in a dictionary the name is '{name}s'"):
        StepOutputs(outputs)


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
