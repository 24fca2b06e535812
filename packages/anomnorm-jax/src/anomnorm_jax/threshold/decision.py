"""The decision rule."""

import jax
from jax import Array
from jax.typing import ArrayLike

from anomnorm_jax._arrays import arithmetic, less, parameter


@jax.jit
def flag(scores: ArrayLike, threshold: ArrayLike) -> Array:
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
    x, _ = arithmetic(scores)
    t = parameter(threshold, x)
    return ~less(x, t) & (x == x) & (t == t)
