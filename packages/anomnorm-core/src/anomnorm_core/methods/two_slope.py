"""Two-slope min-max normalization: each side of the threshold has its own scale (clause N1b)."""

from anomnorm_core._arrays import Array, array_namespace, evaluated, normalized
from anomnorm_core.method import Kernels, Method
from anomnorm_core.methods.min_max import bounds, check, distance, init, margin, merge, update

__all__ = ["bounds", "denormalize", "init", "margin", "merge", "normalize", "update"]

METHOD = Method(
    name="two-slope",
    parameters=("min", "max"),
    extras=("margin",),
    options=(("shared_range", (False, True)),),
    title="two-slope min-max",
)

# A side shorter than one part in so many of the range has the slope of min-max: it says little about scores out there.
# A whole number, so that no backend rounds the comparison.
PARTS = 20


def normalize(scores: Array, threshold: Array | float, min: Array | float, max: Array | float) -> Array:
    """Map raw scores to [0, 1] with 0.5 at the threshold, ``min`` at 0 and ``max`` at 1.

    Below the threshold ``u = 1/2 + (scores - threshold) / (2 (threshold - min))``, above it
    ``u = 1/2 + (scores - threshold) / (2 (max - threshold))``, clipped to [0, 1] (clause N1b). A side that is missing
    or shorter than 5% of ``max - min`` has the slope ``1 / (max - min)``: after a validation run without anomalies,
    whose threshold is its maximum, nothing is known of the scores above. Where `min_max.normalize` clips half of the
    range if the threshold lies near one of its ends, this keeps all of it apart.

    Args:
        scores, threshold, min, max: as for `min_max.normalize`.

    Returns:
        As `min_max.normalize`, with its special values.
    """
    return normalized(KERNELS, scores, threshold, (min, max))


def denormalize(unit: Array, threshold: Array | float, min: Array | float, max: Array | float) -> Array:
    """The raw score of a normalized score, the inverse of `normalize` (clause N11).

    Args:
        unit: real array of any shape, of the dtypes of `normalize`.
        threshold, min, max: as for `normalize`.

    Returns:
        As `min_max.denormalize`.
    """
    return evaluated(_inverse, unit, threshold, (min, max))


def _unit(x: Array, t: Array, low: Array, high: Array) -> Array:
    xp = array_namespace(x)
    below, above = _widths(t, low, high)
    # Halves and quarters, so that no difference overflows.
    ratio = (0.25 * x - 0.25 * t) / xp.where(x < t, below, above)
    u = xp.clip(ratio + 0.5, 0.0, 1.0)
    u = xp.where(x == t, 0.5 * xp.ones_like(u), u)
    return xp.where(high >= low, u, xp.asarray(xp.nan, dtype=x.dtype))


def _inverse(u: Array, t: Array, low: Array, high: Array) -> Array:
    xp = array_namespace(u)
    below, above = _widths(t, low, high)
    x = ((u - 0.5) * xp.where(u < 0.5, below, above) + 0.25 * t) * 4.0
    return xp.where((u >= 0) & (u <= 1) & (high >= low), x, xp.asarray(xp.nan, dtype=u.dtype))


def _widths(t: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """A quarter of the widths that are mapped to all of [0, 1], by the slope below and by the one above."""
    xp = array_namespace(t, low, high)
    span = xp.abs(0.25 * high - 0.25 * low)  # from 0.0 to -0.0 it is the number -0.0
    sides = (0.25 * t - 0.25 * low, 0.25 * high - 0.25 * t)
    below, above = (xp.where((span > 0) & (PARTS * side >= span), 2 * side, span) for side in sides)
    return below, above


KERNELS = Kernels(
    METHOD, init, update, merge, bounds, unit=_unit, inverse=_inverse, extras={"margin": distance}, check=check
)
