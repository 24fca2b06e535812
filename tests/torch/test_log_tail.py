"""The approximation of the normal distribution's upper tail."""

import math

import mpmath
import numpy as np
import torch

from anomnorm_torch._log_tail import log_survival


def _exact(d: float) -> float:
    tail = mpmath.erfc(mpmath.mpf(abs(d)) / mpmath.sqrt(2)) / 2
    return float(mpmath.log(tail) if d >= 0 else mpmath.log1p(-tail))


def test_the_approximation_keeps_its_error_bound() -> None:
    mpmath.mp.dps = 50
    points = np.concatenate([np.linspace(-30.0, 60.0, 6001), np.logspace(-12, 3, 400)])
    exact = np.array([_exact(float(d)) for d in points])
    found = log_survival(torch.from_numpy(points)).numpy()
    # beside the rounding of d^2 / 2, which float64 has too, and which the exponential below makes relative
    rounding = np.where(points < 0, points**2 * 2.0**-51 * np.abs(exact), 4 * np.spacing(np.abs(exact)))
    assert np.all(np.abs(found - exact) <= 4e-10 * np.minimum(1.0, np.abs(exact) / np.log(2)) + rounding)


def test_special_values() -> None:
    found = log_survival(torch.tensor([0.0, math.inf, math.nan, -math.inf])).tolist()
    assert abs(found[0] + math.log(2)) < 4e-10
    assert found[1] == -math.inf
    assert math.isnan(found[2])
    assert found[3] == 0.0
