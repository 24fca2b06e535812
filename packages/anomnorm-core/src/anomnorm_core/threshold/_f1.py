"""Which of many thresholds has the largest F1, compared exactly."""

from anomnorm_core._arrays import Array, Namespace

_LARGE = 2**30


def best(true_positives: Array, flagged: Array, positives: Array, xp: Namespace) -> tuple[Array, Array]:
    """The last candidate among those with the largest ``F1 = 2 true_positives / (positives + flagged)``.

    Ratios of integers are compared as such, because floats would take different ratios for equal and equal ones, after
    rounding, for different: half of F1 is written down to 62 binary places, which no two ratios of 31-bit integers
    share. Counts past 2^30 are compared in float64.

    Args:
        true_positives, flagged: int64 arrays of shape (N,): anomalies and samples at or above each candidate.
        positives: int64, shape (): anomalies in all; at least one.

    Returns:
        The position, and whether its F1 is above zero.
    """
    denominator = flagged + positives
    if int(xp.max(denominator)) < _LARGE:
        numerator = true_positives * 2**31
        upper = numerator // denominator
        half_f1 = upper * 2**31 + (numerator - upper * denominator) * 2**31 // denominator
    else:
        half_f1 = xp.astype(true_positives, xp.float64) / xp.astype(denominator, xp.float64)
    last = half_f1.shape[0] - 1 - xp.argmax(xp.flip(half_f1))
    return last, xp.max(half_f1) > 0
