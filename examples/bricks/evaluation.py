"""Metrics on raw and on normalized scores, and the agreement of the two frameworks."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from data import Split
from sklearn.metrics import f1_score, roc_auc_score

import anomnorm_jax
import anomnorm_torch

KEYS = (("image", "pred_scores", "pred_labels"), ("pixel", "anomaly_maps", "pred_masks"))


@dataclass(frozen=True)
class Result:
    """What a detector with one normalization made of the test data."""

    framework: str
    method: str
    normalizer: Any  # of the framework that the detector was trained in
    fields: dict[str, np.ndarray]  # the concatenated outputs
    test: Split

    def rows(self) -> list[dict[str, Any]]:
        """One row of the table for each level, image and pixel."""
        torch_result, jax_result = self._both_frameworks()
        known = len(self.test.masks)
        truth = {"image": self.test.labels, "pixel": self.test.masks}
        raw = {"image": self.fields["raw_scores"], "pixel": self.fields["raw_maps"][:known]}
        found = []
        for level, scores, labels in KEYS:
            normalized, flagged = (self.fields[name][: len(truth[level])].ravel() for name in (scores, labels))
            assert (flagged == (normalized >= 0.5)).all()
            threshold = self.normalizer.thresholds[level]
            actual, decided = truth[level].ravel(), raw[level] >= np.float32(threshold.raw)
            found.append(
                {
                    "level": level,
                    "method": self.method,
                    "trained in": self.framework,
                    "threshold": threshold,
                    "AUROC raw": roc_auc_score(actual, raw[level].ravel()),
                    "AUROC norm.": roc_auc_score(actual, normalized),
                    "F1 raw": f1_score(actual, decided.ravel()),
                    "F1 norm.": f1_score(actual, normalized >= 0.5),
                    "labels differ": int((torch_result[labels] != jax_result[labels]).sum()),
                    "scores differ": float(np.abs(torch_result[scores] - jax_result[scores]).max()),
                }
            )
        return found

    def _both_frameworks(self) -> list[dict[str, np.ndarray]]:
        """What PyTorch and JAX make of the same raw scores with the same file."""
        results = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detector.safetensors"
            self.normalizer.save(path)
            for package, asarray in ((anomnorm_torch, torch.tensor), (anomnorm_jax, jnp.asarray)):
                raw = (asarray(self.fields[name]) for name in ("raw_scores", "raw_maps"))
                result = package.Normalizer.load(path)(*raw)
                results.append({name: np.asarray(value) for name, value in result.items()})
        return results
