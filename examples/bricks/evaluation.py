"""Metrics on raw and on normalized scores, and the agreement of the two frameworks."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from data import Patches
from sklearn.metrics import f1_score, roc_auc_score

import anomnorm_jax
import anomnorm_torch

LEVELS = (("image", "pred_scores", "pred_labels"), ("pixel", "anomaly_maps", "pred_masks"))
COLUMNS = {
    "level": "{}",
    "method": "{}",
    "package": "{}",
    "threshold": "{}",
    "sigmas": "{}",
    "AUROC raw": "{:.3f}",
    "AUROC norm.": "{:.3f}",
    "F1 raw": "{:.3f}",
    "F1 norm.": "{:.3f}",
    "false alarms": "{:.1%}",
    "labels differ": "{}",
    "differ by": "{:.0e}",
}


@dataclass(frozen=True)
class Result:
    """What a detector with one normalization made of the test data."""

    framework: str
    method: str
    normalizer: Any  # of the framework that the detector was trained in
    fields: dict[str, np.ndarray]  # the concatenated outputs, maps of shape (N, 96, 96)
    test: Patches

    def rows(self) -> list[dict[str, Any]]:
        """One row of the table for each level, image and pixel."""
        torch_result, jax_result = self._both_frameworks()
        found = []
        for level, scores, labels in LEVELS:
            truth = (self.test.label if level == "image" else self.test.mask).ravel()
            raw, normalized, flagged = (self.fields[name].ravel() for name in (f"{scores}_raw", scores, labels))
            assert (flagged == (normalized >= 0.5)).all()
            threshold = self.normalizer.thresholds[level]
            decided = (self.fields[f"{scores}_raw"] >= np.float32(threshold.raw)).ravel()
            low, high = (f"{value:.4f}" for value in (np.min(threshold.raw), np.max(threshold.raw)))
            row = {
                "level": level,
                "method": self.method,
                "package": self.framework,
                "threshold": low if low == high else f"{low} to {high}",
                "sigmas": "-" if threshold.sigmas is None else f"{threshold.sigmas:.2f}",
                "AUROC raw": roc_auc_score(truth, raw),
                "AUROC norm.": roc_auc_score(truth, normalized),
                "F1 raw": f1_score(truth, decided),
                "F1 norm.": f1_score(truth, normalized >= 0.5),
                "false alarms": flagged[truth == 0].mean(),
                "labels differ": int((torch_result[labels] != jax_result[labels]).sum()),
                "differ by": float(np.abs(torch_result[scores] - jax_result[scores]).max()),
            }
            found.append({name: form.format(row[name]) for name, form in COLUMNS.items()})
        return found

    def _both_frameworks(self) -> list[dict[str, np.ndarray]]:
        """What PyTorch and JAX make of the same raw scores with the same file."""
        results = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detector.safetensors"
            self.normalizer.save(path)
            for package, asarray in ((anomnorm_torch, torch.tensor), (anomnorm_jax, jnp.asarray)):
                raw = (asarray(self.fields[name]) for name in ("pred_scores_raw", "anomaly_maps_raw"))
                result = package.Normalizer.load(path)(*raw)
                results.append({name: np.asarray(value) for name, value in result.items()})
        return results


def table(results: list[Result]) -> str:
    """The rows of all results, image level first."""
    rows = sorted((row for result in results for row in result.rows()), key=lambda row: row["level"])
    cells = [list(COLUMNS), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
