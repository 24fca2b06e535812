"""What a validation run shows of scores beside their ground truth, and its thresholds (clauses T2, T3, T5)."""

import torch
from torch import Tensor

from anomnorm_core.checks import report_unlabelled
from anomnorm_core.errors import AnomnormError
from anomnorm_core.policy import ThresholdRule
from anomnorm_torch import threshold
from anomnorm_torch._tensors import arithmetic, wide
from anomnorm_torch.life_cycle.processes import concatenated, total
from anomnorm_torch.outputs import GroundTruth

_NORMAL, _ANOMALOUS, _UNLABELLED = 0, 1, 2


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
        self._device = device
        self._scores = Column(torch.float32, device)
        self._labels = Column(torch.uint8, device)
        self._masked = 0  # samples with a mask
        self._pixels = threshold.init(device=device) if pixels else None

    def add(self, scores: Tensor, maps: Tensor | None, truth: GroundTruth) -> None:
        """Add a batch: raw image scores (B,), maps in decision space, labels and masks. No host synchronization."""
        anomalous, masks = truth
        self._scores.add(scores.detach())
        labels = torch.full_like(scores, _UNLABELLED, dtype=torch.uint8) if anomalous is None else anomalous.byte()
        self._labels.add(labels)
        if maps is None or self._pixels is None:
            return
        if masks is None:  # the pixels of an anomalous image are unknown
            self._pixels = threshold.update(self._pixels, maps, where=labels != _ANOMALOUS)
        else:
            self._masked += scores.numel()
            self._pixels = threshold.update(self._pixels, maps, masks)

    def merge_processes(self) -> None:
        """Take over the samples of all processes. Every process has to call it.

        Raises:
            AnomnormError: one process has a pixel threshold to find, and another has not.
        """
        scores, labels = (column.values().to(self._device) for column in (self._scores, self._labels))
        precise = wide(self._device)
        mine = [self._masked, scores.dtype == torch.float64, self._pixels is not None]
        self._masked, double, searching = (int(count) for count in total(torch.tensor(mine, device=self._device)))
        columns = concatenated(torch.stack([scores.to(precise), labels.to(precise)]))
        self._scores, self._labels = Column(torch.float32, self._device), Column(torch.uint8, self._device)
        self._scores.add(columns[0].to(torch.float64 if double else torch.float32))
        self._labels.add(columns[1].byte())
        if searching not in (0, torch.distributed.get_world_size()):
            raise AnomnormError(
                "the module has a pixel threshold of its own in some processes and not in others. Let it have one, "
                "and the same, in all of them."
            )
        if self._pixels is not None:
            self._pixels = threshold.ScoreHistogram(*map(total, self._pixels))

    def scores(self) -> Tensor:
        """The raw image scores so far, shape (N,)."""
        return self._scores.values()

    def labelled(self, label: int) -> Tensor:
        """Which of the `scores` have the label 0 (normal), 1 (anomalous) or 2 (none), shape (N,)."""
        return self._labels.values().to(self.scores().device) == label

    def normal_scores(self) -> Tensor:
        """The raw image scores of the samples labelled normal."""
        return self.scores()[self.labelled(_NORMAL)]

    def image_threshold(self, rule: ThresholdRule, normal_quantile: float, *, positive: bool = False) -> Tensor:
        """The threshold of the raw image scores, shape ().

        Args:
            rule: how to find it.
            normal_quantile: share of the normals that is not flagged, where they alone decide.
            positive: a score that is not positive cannot be flagged.

        Raises:
            NotFittedError: there is no valid score that ``rule`` could go by.
        """
        scores, anomalous = arithmetic(self.scores())[0], self.labelled(_ANOMALOUS)
        if positive:
            scores = scores.masked_fill(scores <= 0, -torch.inf)
        # Just above a score without a logarithm there is none either.
        least = torch.finfo(torch.float32).smallest_normal if positive else -torch.inf
        if rule is ThresholdRule.NORMAL_QUANTILE:
            return threshold.normal_quantile(scores, normal_quantile, labels=anomalous).clamp(min=least)
        unlabelled = int(self.labelled(_UNLABELLED).sum())
        report_unlabelled(unlabelled, scores.numel(), "the step's outputs or in the batch")
        return threshold.adaptive(scores, anomalous, normal_quantile=normal_quantile).clamp(min=least)

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
        known = self._masked > 0 or (searched and not bool(self.labelled(_ANOMALOUS).any()))
        return threshold.streamed_adaptive(record, normal_quantile=normal_quantile) if known else None
