"""The normal distribution and the logarithm in float32, in operations that PyTorch's compiler vectorizes."""

import math

import torch
from torch import Tensor

from anomnorm_torch._tensors import is_differentiated
from anomnorm_torch._tiles import is_compiled

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
    # Comparisons and choices: on GPUs, minima and maxima that keep NaN are four operations each.
    size = torch.where(y > 0, y, -y)  # the derivative of abs is 0 at 0
    size = torch.where(size > 16.0, 16.0, size)  # where it is 0, and an infinite number has a fraction
    s = size / (2.0 + size)
    tail = (s * _series(_TAIL, s) + 0.5) * torch.exp2(size * size * -_LOG2_E)
    below = 0.5 - torch.finfo(z.dtype).eps / 4  # 1 - below is 1/2
    limited = torch.where(tail > below, below, tail)
    tail = tail + (limited - tail).detach() if is_differentiated(tail) else limited  # its derivative stays
    return torch.where(y > 0, tail, 1.0 - tail)


def _series(coefficients: tuple[float, ...], s: Tensor) -> Tensor:
    """The polynomial, as two of ``s^2``: a sum that waits for the one before takes longer than a product more."""
    w = s * s
    even, odd = (_horner(part, w) for part in (coefficients[::2], coefficients[1::2]))
    return s * odd + even


def _horner(coefficients: tuple[float, ...], w: Tensor) -> Tensor:
    p = w * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        p = w * p + coefficient
    return p


def log_ratio(x: Tensor, t: Tensor) -> Tensor:
    """``log(x / t)`` for ``t > 0``, relatively accurate near ``t`` too; -inf for ``x`` at or below zero (clause N3).

    Its derivatives, 1 / x and -1 / t, are those of ``log x - log t``; ``x`` has to be positive and finite for them.
    """
    if not is_differentiated(x, t):
        return _log_ratio(x, t)
    difference = x.log() - t.log()
    return _log_ratio(x.detach(), t.detach()) + (difference - difference.detach())


def _log_ratio(x: Tensor, t: Tensor) -> Tensor:
    # For CPUs, PyTorch's compiler (2.13) reads bits one by one: 7.9 ms instead of 2.8.
    if x.dtype == torch.float32 and x.device.type != "cpu" and is_compiled():
        return _log_ratio_of_bits(x, t)
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


def _log_ratio_of_bits(x: Tensor, t: Tensor) -> Tensor:
    # x / t = 2^k y / t with y / t in [2/3, 3/2), by integers: a float's bits grow by 2^23 where it doubles. So the
    # digits of x - t stay near t, and nothing leaves the range of normal numbers away from it.
    start = t.view(torch.int32)
    above = x.view(torch.int32) - (start - _HALF_A_DOUBLING)
    k = above >> 23
    one = (start & _DIGITS) | _ONE  # t scaled to [1, 2), so that no step is subnormal
    y = ((above & _DIGITS) + (one - _HALF_A_DOUBLING)).view(torch.float32)
    scale = one.view(torch.float32)
    s = (y - scale) / (y + scale)
    w = s * s
    p = (w * _ATANH[2] + _ATANH[1]) * w + _ATANH[0]
    value = k.to(torch.float32) * _LOG_2 + (s * (w * p) + s) * 2.0
    # Numbers below the smallest normal one count as zero (clause N13).
    return torch.where(x < math.inf, torch.where(x < _TINY, -math.inf, value), x)


# atanh(s) = s (1 + w P(w)) with w = s^2, to 2^-28.4 relative up to s = 1/5: a fit of minimal largest error.
_ATANH = (0.3333347454096629, 0.1997882553535425, 0.15182159162050055)
_LOG_2, _LOG2_E, _TINY = math.log(2.0), 1.0 / math.log(2.0), torch.finfo(torch.float32).smallest_normal
_ONE, _DIGITS, _HALF_A_DOUBLING = 127 << 23, (1 << 23) - 1, 1 << 22
_SCALES = (2.0**64, 2.0**-64), (2.0**-64, 2.0**64)  # of t and of x, where x / t is large or small
_LOG_2_128 = 88.722839111672999628
