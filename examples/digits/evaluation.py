"""Thresholds, metrics, and the agreement of the two backends."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

import anomnorm_jax
import anomnorm_torch


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold that maximizes F1 with the rule ``score >= threshold``; among equals, the largest."""
    precision, recall, thresholds = precision_recall_curve(labels.ravel(), scores.ravel())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.flatnonzero(f1[:-1] == f1[:-1].max())[-1]])


@dataclass(frozen=True)
class Result:
    """What a detector with one normalization made of the test data."""

    framework: str
    method: str
    fields: dict[str, np.ndarray]  # the concatenated outputs
    thresholds: np.ndarray  # (2,) float32: image, pixel
    statistics: list[list[np.ndarray]]  # image, pixel: (min, max) or (mean, std)

    def rows(self) -> list[dict[str, object]]:
        """One row of the table for each level."""
        fields, known = self.fields, self.fields["has_mask"]
        return [
            self._row(0, fields["label"], fields["raw_scores"], fields["pred_scores"]),
            self._row(1, fields["mask"][known], fields["raw_maps"][known], fields["anomaly_maps"][known]),
        ]

    def _row(self, level: int, truth: np.ndarray, raw: np.ndarray, unit: np.ndarray) -> dict[str, object]:
        truth, difference = truth.ravel(), np.abs(self._unit("torch", level, raw) - self._unit("jax", level, raw))
        labels = self._flags("torch", level, raw) != self._flags("jax", level, raw)
        return {
            "level": ("image", "pixel")[level],
            "method": self.method,
            "detector": self.framework,
            "threshold": float(self.thresholds[level]),
            "AUROC raw": roc_auc_score(truth, raw.ravel()),
            "AUROC unit": roc_auc_score(truth, unit.ravel()),
            "F1 raw": f1_score(truth, (raw >= self.raw_threshold(level)).ravel()),
            "F1 unit": f1_score(truth, unit.ravel() >= 0.5),
            "max difference": float(difference.max()),
            "labels differ": int(labels.sum()),
        }

    def raw_threshold(self, level: int) -> np.ndarray:
        """The threshold in raw units; under the CDF each pixel has its own."""
        if self.method == "min-max":
            return self.thresholds[level]
        image_mean, std = self.statistics[0][0].astype(float), self.statistics[level][1].astype(float)
        return np.exp(image_mean + self.thresholds[level] * std)

    def _decision_values(self, backend: str, level: int, raw: np.ndarray) -> Any:
        module = {"torch": anomnorm_torch, "jax": anomnorm_jax}[backend]
        values = torch.tensor(raw) if backend == "torch" else raw
        if self.method == "min-max":
            return module, values
        mean, std = (self._array(backend, value) for value in self.statistics[level])
        return module, module.cdf.standardize(values, mean, std, center_at=float(self.statistics[0][0]))

    def _array(self, backend: str, value: np.ndarray) -> Any:
        return torch.tensor(value) if backend == "torch" else value

    def _unit(self, backend: str, level: int, raw: np.ndarray) -> np.ndarray:
        module, values = self._decision_values(backend, level, raw)
        threshold = float(self.thresholds[level])
        if self.method == "min-max":
            return np.asarray(module.min_max.normalize(values, threshold, *map(float, self.statistics[level])))
        return np.asarray(module.cdf.normalize(values, threshold))

    def _flags(self, backend: str, level: int, raw: np.ndarray) -> np.ndarray:
        module, values = self._decision_values(backend, level, raw)
        return np.asarray(module.threshold.flag(values, float(self.thresholds[level])))
