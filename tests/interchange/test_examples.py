"""What the Flax examples find, PyTorch finds too from the same raw scores (clause P2)."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anomnorm_torch import Normalizer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.clause("P1", "P2")
@pytest.mark.parametrize("name", ["flax_nnx", "flax_linen"])
def test_a_flax_example_agrees_with_torch_on_the_same_raw_scores(name: str, tmp_path: Path) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
    spec: Any = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    normalizer, raw, result = example.main()
    normalizer.save(tmp_path / "a.safetensors")
    scores, maps = (torch.tensor(np.asarray(raw[field])) for field in ("pred_scores", "anomaly_maps"))
    found = Normalizer.load(tmp_path / "a.safetensors")(scores, maps)
    for field in ("pred_labels", "pred_masks"):
        assert found[field].numpy().tolist() == np.asarray(result[field]).tolist(), field
    for field in ("pred_scores", "anomaly_maps"):
        assert np.abs(found[field].numpy() - np.asarray(result[field])).max() <= 2 * 2.0**-23
    # And the detector detects.
    flagged, truth = np.asarray(result["pred_labels"]), np.asarray(raw["label"]) == 1
    assert flagged[truth].mean() - flagged[~truth].mean() > 0.5
