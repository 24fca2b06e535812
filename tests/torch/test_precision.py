"""Half precision and double: statistics and outputs in float32 or wider (clauses L9, N9)."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from expected import best_threshold
from scripted_module import ScriptedModule, loader, parameters, samples, trainer

from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

pytestmark = pytest.mark.clause("L9", "N9")

RNG = np.random.default_rng(47)
LABELS = np.array([0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0])
WEIGHTS = np.exp(RNG.normal(size=(12, 4)) + LABELS[:, None]).astype("f4")
DATA = samples(np.ones(12), WEIGHTS.reshape(12, 2, 2), LABELS)
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
PRECISIONS = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "16-true": torch.float16}
PRECISIONS |= {"16-mixed": torch.float16, "64-true": torch.float64, "32-true": torch.float32}


class Layered(ScriptedModule):
    """Scores come from a layer, so that autocast gives them its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)
        self.raw: list[torch.Tensor] = []
        self.collected: list[torch.Tensor] = []

    def outputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scores = self.layer(batch["map"].flatten(1).to(self.layer.weight.dtype))[:, 0].detach()
        self.raw.append(scores)
        return {"pred_scores": scores, "label": batch["label"]}

    def predict_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        return self.outputs(batch)


@KINDS
@pytest.mark.parametrize("precision", PRECISIONS)
def test_statistics_and_thresholds_of_what_the_step_gave(kind: Any, precision: str) -> None:
    callback, module = kind(), Layered()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*16-mixed.*not supported on CPU.*")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        run = trainer(callback, precision=precision, num_sanity_val_steps=0)
        run.fit(module, loader(DATA), loader(DATA, 12))
    raw = module.raw[-1]
    dtype = torch.bfloat16 if precision == "16-mixed" and raw.dtype == torch.bfloat16 else PRECISIONS[precision]
    assert raw.dtype == dtype
    values = raw.double().numpy()
    wanted = [values.min(), values.max()]
    if kind is CdfNormalizationCallback:
        logs = np.log(values[LABELS == 0])
        wanted = [logs.mean(), logs.std(ddof=1)]
    for found, expected in zip(parameters(module), wanted, strict=True):
        assert found.dtype in (np.float32, np.float64)
        assert found.item() == pytest.approx(expected, rel=1e-6)

    module.raw.clear()
    outputs: Any = run.predict(module, loader(DATA, 12))[0]
    raw = module.raw[0].double().numpy()
    assert outputs["pred_scores"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The threshold is the raw score of an anomaly, in whatever dtype: that one is flagged, and labels agree with 0.5.
    truth = LABELS == 1
    threshold = best_threshold(raw, truth)
    assert outputs["pred_labels"].tolist() == (raw >= threshold).tolist()
    assert (outputs["pred_scores"] >= 0.5).tolist() == outputs["pred_labels"].tolist()
    unit = outputs["pred_scores"].double().numpy()[raw == threshold]
    assert (unit == 0.5).all()
