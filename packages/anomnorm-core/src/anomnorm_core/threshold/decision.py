"""The decision rule, and a threshold given by hand."""

from typing import SupportsFloat

from anomnorm_core._arrays import Array, Namespace, array_namespace, parameter, widen
from anomnorm_core.errors import OptionError
from anomnorm_core.policy import parse_threshold


def flag(scores: Array, threshold: Array | float) -> Array:
    """Decide which scores are anomalous: ``scores >= threshold`` (clause N4).

    Labels and masks come from here, in decision space (raw scores under min-max, z-scores under the CDF), and never
    from comparing unit scores with 0.5; the two agree because `min_max.normalize` and `cdf.normalize` see to it.

    Args:
        scores: real array of any shape, in decision space.
        threshold: number or array that broadcasts against ``scores``; rounded to float32 unless ``scores`` is
            float64, so that every backend decides alike.

    Returns:
        Boolean array of the shape of ``scores``. NaN is never flagged (clause N6).
    """
    return _flag(scores, threshold, xp=array_namespace(scores))


def _flag(scores: Array, threshold: Array | float, *, xp: Namespace) -> Array:
    x, dtype, _ = widen(scores, xp)
    return x >= parameter(threshold, x, dtype, xp)


def manual(threshold: SupportsFloat) -> float:
    """A threshold given by hand, checked (clause T4).

    Args:
        threshold: in decision space, or an array of one number.

    Returns:
        The number. It is rounded to the dtype of the scores where it is used, see `flag`.

    Raises:
        OptionError: it is no number, or not finite (in float32, which most scores are).
    """
    number = parse_threshold(threshold, "threshold")
    if number is None:
        raise OptionError("threshold=None is not a number; give a finite float.")
    return number
