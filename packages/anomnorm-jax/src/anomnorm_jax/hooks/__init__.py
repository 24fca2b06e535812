"""The hooks of the two methods of anomalib 0.3, with their own options as arguments."""

from anomnorm_jax.hooks.cdf_normalization import CdfNormalizationHook
from anomnorm_jax.hooks.min_max_normalization import MinMaxNormalizationHook

__all__ = ["CdfNormalizationHook", "MinMaxNormalizationHook"]
