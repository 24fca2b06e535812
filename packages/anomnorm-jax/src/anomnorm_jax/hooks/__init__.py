"""The callbacks' life cycle as pure functions ``state -> state``."""

from anomnorm_jax.hooks.cdf_normalization import CdfNormalizationHook
from anomnorm_jax.hooks.min_max_normalization import MinMaxNormalizationHook

__all__ = ["CdfNormalizationHook", "MinMaxNormalizationHook"]
