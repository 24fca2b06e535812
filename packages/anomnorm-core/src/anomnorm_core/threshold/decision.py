"""The decision rule."""

from anomnorm_core._arrays import Array, array_namespace, parameter, widen


def flag(scores: Array, threshold: Array | float) -> Array:
    """Decide which scores are anomalous: ``scores >= threshold`` (clause N4).

    Labels and masks come from here and never from comparing normalized scores with 0.5; the two agree because every
    method's ``normalize`` sees to it.

    Args:
        scores: real array of any shape: raw scores.
        threshold: in raw units; a number or array that broadcasts against ``scores``, rounded to float32 unless
            ``scores`` is float64, so that every backend decides alike.

    Returns:
        Boolean array of the shape of ``scores``. NaN is never flagged (clause N6).
    """
    xp = array_namespace(scores)
    x, dtype, _ = widen(scores, xp)
    return x >= parameter(threshold, x, dtype, xp)
