"""The decision rule."""

from torch import Tensor

from anomnorm_torch import _kernels
from anomnorm_torch._tensors import arithmetic, parameter


def flag(scores: Tensor, threshold: Tensor | float) -> Tensor:
    """Decide which scores are anomalous: ``scores >= threshold``. See `anomnorm_core.threshold.flag`.

    Args:
        scores: real tensor of any shape: raw scores.
        threshold: in raw units; a number or tensor that broadcasts against ``scores``.

    Returns:
        Boolean tensor of the shape and device of ``scores``. NaN is never flagged.
    """
    x = arithmetic(scores)
    return _kernels.flag(x, parameter(threshold, x))
