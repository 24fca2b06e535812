"""The methods in PyTorch: one file each, and where they are found by name."""

from anomnorm_core.method import Registry
from anomnorm_torch.methods import cdf, min_max, normal, two_slope

#: The methods of this package, and registered ones, by name: `Kernels` in PyTorch.
METHODS = Registry("anomnorm_torch.methods", (min_max.KERNELS, two_slope.KERNELS, cdf.KERNELS, normal.KERNELS))
register = METHODS.register

__all__ = ["METHODS", "cdf", "min_max", "normal", "register", "two_slope"]
