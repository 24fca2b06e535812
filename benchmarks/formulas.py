"""The formulas of anomalib 0.3, each with the comparison that decides: what the programs here compare with."""

import torch
from torch import Tensor


def min_max(x: Tensor, threshold: float, low: float, high: float) -> Tensor:
    """Normalized scores, as its ``normalize`` of min-max normalization has them."""
    normalized = ((x - threshold) / (high - low)) + 0.5
    normalized = torch.minimum(normalized, torch.tensor(1))
    return torch.maximum(normalized, torch.tensor(0))


def standardize(x: Tensor, mean: Tensor | float, std: Tensor | float, center: Tensor | float | None = None) -> Tensor:
    """z-scores, as its ``standardize`` has them."""
    standardized = (torch.log(x) - mean) / std
    if center is not None:
        standardized -= (center - mean) / std
    return standardized


def cdf(z: Tensor, threshold: float, *, validate: bool = True) -> Tensor:
    """Normalized scores of z-scores, as its ``normalize`` of CDF normalization has them.

    ``validate`` looks at every number before it computes, as `torch.distributions` does by default. Compiled, this is a
    break in the program: there it is left out.
    """
    standard = torch.distributions.Normal(torch.zeros(1), torch.ones(1), validate_args=None if validate else False)
    return standard.cdf(z - threshold)


def min_max_and_masks(x: Tensor, threshold: float, low: float, high: float) -> tuple[Tensor, Tensor]:
    return min_max(x, threshold, low, high), x >= threshold


def cdf_and_masks(
    x: Tensor, threshold: float, mean: Tensor, std: Tensor, center: float, *, validate: bool = True
) -> tuple[Tensor, Tensor]:
    """The threshold is in sigmas."""
    z = standardize(x, mean, std, center)
    return cdf(z, threshold, validate=validate), z >= threshold
