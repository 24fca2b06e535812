"""The decision rule."""

from anomnorm_core._arrays import Array, Namespace, array_namespace, parameter, widen


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
