"""What a validation run shows of scores beside their ground truth, and its thresholds (clauses T2, T3, T5)."""

import warnings

import torch
from torch import Tensor

from anomnorm_core.errors import ThresholdWarning
from anomnorm_core.policy import ThresholdRule
from anomnorm_torch import threshold
from anomnorm_torch._tensors import arithmetic, wide
from anomnorm_torch.life_cycle.processes import concatenated, distributed, total
from anomnorm_torch.outputs import GroundTruth


class Column:
    """The values of all batches in one tensor, which grows by doubling.

    A tensor for each batch would be small and stay: scattered over the heap between the maps that come and go, such
    tensors keep the allocator from using the room of one map for the next (measured: 5 MB more for each batch).
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._values = torch.empty(0, dtype=dtype, device=device)
        self._count = 0

    def add(self, values: Tensor) -> None:
        """Copy ``values`` of shape (B,), on whichever device the first ones were."""
        old, end = self._values, self._count + values.numel()
        dtype = torch.promote_types(old.dtype, values.dtype) if self._count else values.dtype
        if end > old.numel() or dtype != old.dtype:
            device = old.device if self._count else values.device
            self._values = torch.empty(max(2 * end, 1024), dtype=dtype, device=device)
            self._values[: self._count] = old[: self._count]
        self._values[self._count : end] = values
        self._count = end

    def values(self) -> Tensor:
        """All of them, shape (N,)."""
        return self._values[: self._count]


class ValidationRun:
    """The raw image scores of a run with their labels, and its pixels in a histogram of fixed size.

    Samples without a label count as normal; a warning says how many they were, where that matters.

    Args:
        device: where the histogram is.
        pixels: whether a pixel threshold is wanted.
    """

    def __init__(self, device: torch.device, *, pixels: bool) -> None:
        self._scores = Column(torch.float32, device)
        self._anomalous = Column(torch.bool, device)
        self._unlabelled = 0  # samples
        self._masked = 0  # samples with a mask
        self._pixels = threshold.init(device=device) if pixels else None

    def add(self, scores: Tensor, maps: Tensor | None, truth: GroundTruth) -> None:
        """Add a batch: raw image scores (B,), maps in decision space, labels and masks. No host synchronization."""
        anomalous, masks = truth
        self._scores.add(scores.detach())
        if anomalous is None:
            self._unlabelled += scores.numel()
            anomalous = torch.zeros_like(scores, dtype=torch.bool)
        self._anomalous.add(anomalous)
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
        self._scores, self._anomalous = (Column(torch.float32, scores.device) for _ in range(2))
        self._scores.add(columns[0].to(torch.float64 if double else torch.float32))
        self._anomalous.add(columns[1] != 0)
        if self._pixels is not None:
            self._pixels = threshold.ScoreHistogram(*map(total, self._pixels))

    def scores(self) -> Tensor:
        """The raw image scores so far, shape (N,)."""
        return self._scores.values()

    def anomalous(self) -> Tensor:
        """Which of the `scores` are of anomalous images, shape (N,)."""
        return self._anomalous.values().to(self.scores().device)

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
        scores, anomalous = arithmetic(self.scores())[0], self.anomalous()
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
