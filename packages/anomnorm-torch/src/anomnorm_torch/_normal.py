"""The normal distribution and the logarithm in float32, in operations that PyTorch's compiler vectorizes."""

import math

import torch
from torch import Tensor

from anomnorm_torch._tensors import is_differentiated

# P with P(s(y)) = exp(y^2) erfc(y) / 2 and s = y / 2 / (1 + y / 2), to 2^-29 absolute after the exponential: a weighted
# least-squares fit of degree 9. Written around s = 0, where it is 1/2 exactly, because that is where errors count.
_TAIL = (
    -1.128378987312317,
    0.8716074228286743,
    -0.13712117075920105,
    -0.1580083668231964,
    0.01688539981842041,
    0.000552055484149605,
    0.09288550913333893,
    -0.075115866959095,
    0.0166768841445446,
)


def ndtr(z: Tensor) -> Tensor:
    """The standard normal distribution function, within 0.75 x 2^-23, non-decreasing up to an ulp; 1/2 exactly at 0.

    ``erfc(-z / sqrt 2) / 2``, which unlike ``(1 + erf) / 2`` keeps the lower tail. In traced programs it is written out
    for float32: Inductor has no vectorized ``erfc``, and ONNX has none at all.
    """
    y = z * -(0.5**0.5)
    if z.dtype == torch.float64 or not torch.compiler.is_compiling():
        lower: Tensor = torch.special.erfc(y) * 0.5
        return lower
    size = torch.where(y > 0, y, -y)  # the derivative of abs is 0 at 0
    s = 0.5 * size / (1.0 + 0.5 * size)
    # The fraction of an infinite number is none.
    s = torch.where(size < 1e8, s, 1.0)
    p = s * _TAIL[-1] + _TAIL[-2]
    for coefficient in reversed(_TAIL[:-2]):
        p = s * p + coefficient
    tail = (s * p + 0.5) * torch.exp(-(size * size))
    # On the right side of 1/2, whatever rounding did.
    return torch.where(y > 0, tail.clamp(max=0.5 - torch.finfo(z.dtype).eps / 4), 1.0 - tail.clamp(max=0.5))


def log_ratio(x: Tensor, t: Tensor) -> Tensor:
    """``log(x / t)`` for ``t > 0``, relatively accurate near ``t`` too; -inf for ``x`` at or below zero (clause N3).

    Its derivatives, 1 / x and -1 / t, are those of ``log x - log t``; ``x`` has to be positive and finite for them.
    """
    if not is_differentiated(x, t):
        return _log_ratio(x, t)
    difference = x.log() - t.log()
    return _log_ratio(x.detach(), t.detach()) + (difference - difference.detach())


def _log_ratio(x: Tensor, t: Tensor) -> Tensor:
    # Near t it is log1p((x - t) / t), as log(1 + r) and what rounding took from 1 + r; elsewhere the logarithm of the
    # quotient or, where that leaves the range of normal numbers, of one that is 2^128 nearer to 1.
    x = torch.where(x < 0, 0.0, x)  # a clamp without a maximum has one in onnxruntime: the largest finite number
    r = (x - t) / t
    near = r.abs() < 0.5
    u = 1.0 + r
    large, small = (x * 2.0**-100 > t) & (x < math.inf), t * 2.0**-100 > x
    up, down = (torch.where(large, a, torch.where(small, b, 1.0)).to(x.dtype) for a, b in _SCALES)
    quotient = (x * down) / (t * up)
    shift = (large.to(x.dtype) - small.to(x.dtype)) * _LOG_2_128
    correction = torch.where(near, (r - (u - 1.0)) * (2.0 - u), shift)
    return torch.log(torch.where(near, u, quotient)) + correction


_SCALES = (2.0**64, 2.0**-64), (2.0**-64, 2.0**64)  # of t and of x, where x / t is large or small
_LOG_2_128 = 88.722839111672999628
