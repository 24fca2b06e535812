"""The decision rule."""

from torch import Tensor

from anomnorm_torch._tensors import arithmetic, parameter


def flag(scores: Tensor, threshold: Tensor | float) -> Tensor:
    """Decide which scores are anomalous: ``scores >= threshold`` (clause N4).

    Labels and masks come from here, in decision space (raw scores under min-max, z-scores under the CDF), and never
    from comparing unit scores with 0.5; the two agree because `min_max.normalize` and `cdf.normalize` see to it.

    Args:
        scores: real tensor of any shape, in decision space.
        threshold: number or tensor that broadcasts against ``scores``; rounded to float32 unless ``scores`` is
            float64, so that every backend decides alike.

    Returns:
        Boolean tensor of the shape and device of ``scores``. NaN is never flagged (clause N6).
    """
    x, _ = arithmetic(scores)
    return x >= parameter(threshold, x)
