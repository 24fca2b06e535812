"""The decision rule."""

import jax
from jax import Array
from jax.typing import ArrayLike

from anomnorm_jax._arrays import arithmetic, parameter


@jax.jit
def flag(scores: ArrayLike, threshold: ArrayLike) -> Array:
    """Decide which scores are anomalous: ``scores >= threshold`` (clause N4). See `anomnorm_core.threshold.flag`.

    Args:
        scores: real array of any shape: raw scores. Subnormal ones may count as zero, as XLA on CPU has it.
        threshold: in raw units; a number or array that broadcasts against ``scores``, rounded to float32 unless
            ``scores`` is float64.

    Returns:
        Boolean array of the shape of ``scores``. NaN is never flagged (clause N6).
    """
    x = arithmetic(scores)
    return x >= parameter(threshold, x)
