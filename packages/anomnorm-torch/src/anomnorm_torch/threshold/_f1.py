"""Which of many thresholds has the largest F1, compared exactly."""

import torch
from torch import Tensor

from anomnorm_torch._tensors import wide

_LARGE = 2**30


def best(true_positives: Tensor, flagged: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """The last candidate among those with the largest ``F1 = 2 true_positives / (positives + flagged)``.

    Ratios of integers are compared as such, because floats would take different ratios for equal and equal ones, after
    rounding, for different: half of F1 is written down to 62 binary places, which no two ratios of 31-bit integers
    share. Counts past 2^30 are compared in float64.

    Args:
        true_positives, flagged: int64 tensors of shape (N,): anomalies and samples at or above each candidate.
        positives: int64, shape (): anomalies in all; at least one.

    Returns:
        The position, and whether its F1 is above zero.
    """
    denominator = flagged + positives
    if int(denominator.amax()) < _LARGE:
        numerator = true_positives << 31
        upper = numerator // denominator
        half_f1 = (upper << 31) + ((numerator - upper * denominator) << 31) // denominator
    else:
        half_f1 = true_positives.to(wide(flagged.device)) / denominator
    # Of several largest numbers, argmax may take any: their positions say which is the last.
    positions = torch.arange(half_f1.shape[0], device=half_f1.device)
    last = torch.where(half_f1 == half_f1.amax(), positions, -1).amax()
    return last, half_f1.amax() > 0
