"""What a validation run shows of scores beside their ground truth, and its thresholds (clauses T2, T3, T5)."""

import warnings

import torch
from torch import Tensor

from anomnorm_core.errors import ThresholdWarning
from anomnorm_core.policy import ThresholdRule
from anomnorm_torch import threshold
from anomnorm_torch._tensors import wide
from anomnorm_torch.life_cycle.processes import concatenated, distributed, total
from anomnorm_torch.outputs import GroundTruth


class ValidationRun:
    """The raw image scores of a run with their labels, and its pixels in a histogram of fixed size.

    Samples without a label count as normal; a warning says how many they were, where that matters.

    Args:
        device: where the histogram is.
        pixels: whether a pixel threshold is wanted.
    """

    def __init__(self, device: torch.device, *, pixels: bool) -> None:
        self._device = device
        self._scores: list[Tensor] = []  # (B,) each
        self._anomalous: list[Tensor] = []  # (B,) bool each
        self._unlabelled = 0  # samples
        self._masked = 0  # samples with a mask
        self._pixels = threshold.init(device=device) if pixels else None

    def add(self, scores: Tensor, maps: Tensor | None, truth: GroundTruth) -> None:
        """Add a batch: raw image scores (B,), maps in decision space, labels and masks. No host synchronization."""
        anomalous, masks = truth
        # A module may go on to write into the tensors that it returned.
        self._scores.append(scores.detach().clone())
        if anomalous is None:
            self._unlabelled += scores.numel()
            anomalous = torch.zeros_like(scores, dtype=torch.bool)
        self._anomalous.append(anomalous)
        if maps is None or self._pixels is None:
            return
        if masks is None:  # the pixels of an anomalous image are unknown
            self._pixels = threshold.update(self._pixels, maps, where=anomalous.logical_not())
        else:
            self._masked += scores.numel()
            self._pixels = threshold.update(self._pixels, maps, masks)

    def merge_processes(self) -> None:
        """Take over the samples of all processes. Every process has to call it."""
        scores, anomalous = self.scores(), self.anomalous()
        if not distributed():
            return
        precise = wide(scores.device)
        counts = torch.tensor([self._unlabelled, self._masked, scores.dtype == torch.float64], device=scores.device)
        self._unlabelled, self._masked, double = (int(count) for count in total(counts))
        columns = concatenated(torch.stack([scores.to(precise), anomalous.to(precise)]))
        self._scores = [columns[0].to(torch.float64 if double else torch.float32)]
        self._anomalous = [columns[1] != 0]
        if self._pixels is not None:
            self._pixels = threshold.ScoreHistogram(*map(total, self._pixels))

    def scores(self) -> Tensor:
        """The raw image scores so far, shape (N,)."""
        return torch.cat(self._scores) if self._scores else torch.empty(0, device=self._device)

    def anomalous(self) -> Tensor:
        """Which of the `scores` are of anomalous images, shape (N,)."""
        if not self._anomalous:
            return torch.empty(0, dtype=torch.bool, device=self._device)
        return torch.cat([labels.to(self._scores[0].device) for labels in self._anomalous])

    def normal_scores(self) -> Tensor | None:
        """The raw image scores of the samples labelled normal; None if some have no label."""
        return None if self._unlabelled else self.scores()[self.anomalous().logical_not()]

    def image_threshold(self, rule: ThresholdRule, normal_quantile: float, *, positive: bool = False) -> Tensor:
        """The threshold of the raw image scores, shape ().

        Args:
            rule: how to find it.
            normal_quantile: share of the normals that is not flagged, where they alone decide.
            positive: a score that is not positive cannot be flagged.

        Raises:
            NotFittedError: there is no valid score that ``rule`` could go by.
        """
        scores, anomalous = self.scores(), self.anomalous()
        if positive:
            scores = scores.masked_fill(scores <= 0, -torch.inf)
        if rule is ThresholdRule.NORMAL_QUANTILE:
            return threshold.normal_quantile(scores, normal_quantile, labels=anomalous)
        if self._unlabelled:
            warnings.warn(
                f"{self._unlabelled} of {scores.numel()} validation samples have no 'label' or 'gt_label' in the "
                "step's outputs or in the batch; they count as normal for the threshold. Return the labels, or say "
                'that there are only normal samples with threshold="normal_quantile".',
                ThresholdWarning,
                stacklevel=2,
            )
        return threshold.adaptive(scores, anomalous, normal_quantile=normal_quantile)

    def pixel_threshold(self, rule: ThresholdRule, normal_quantile: float, *, searched: bool) -> Tensor | None:
        """The threshold of the maps in decision space, shape (); None to take that of the images (clause T6).

        Args:
            rule, normal_quantile: as in `image_threshold`.
            searched: whether the image threshold was found in this run too.
        """
        record = self._pixels
        if record is None or int(record.normal.sum() + record.anomalous.sum() + record.invalid) == 0:
            return None
        if rule is ThresholdRule.NORMAL_QUANTILE:
            return threshold.streamed_normal_quantile(record, normal_quantile)
        # Without masks, the pixels are known only where every image is normal.
        known = self._masked > 0 or (searched and not bool(self.anomalous().any()))
        return threshold.streamed_adaptive(record, normal_quantile=normal_quantile) if known else None
