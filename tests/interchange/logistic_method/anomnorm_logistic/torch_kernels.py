"""Logistic normalization in PyTorch. See `numpy_kernels`."""

import torch

from anomnorm_core import Kernels
from anomnorm_logistic.numpy_kernels import METHOD, SMALLEST
from anomnorm_torch import min_max, register


def margin(x, t, low, high):
    return (x - t) / torch.clamp(high - low, min=SMALLEST)


def unit(x, t, low, high):
    return torch.sigmoid(4.0 * margin(x, t, low, high))


def inverse(u, t, low, high):
    return t + (high - low) / 4.0 * torch.logit(u)


KERNELS = Kernels(
    METHOD,
    min_max.init,
    min_max.update,
    min_max.merge,
    min_max.bounds,
    unit=unit,
    inverse=inverse,
    extras={"margin": margin},
)
register(KERNELS)
