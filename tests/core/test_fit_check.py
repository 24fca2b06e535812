"""How surprising it is that normal validation samples lie far above the fit (clause S9)."""

import math
import warnings

import numpy as np
import pytest

from anomnorm_core import FitCheck, FitWarning
from anomnorm_core.errors import AnomnormError
from anomnorm_core.fit_check import counted

pytestmark = pytest.mark.clause("S9")


def chance(limit: float, fitted_on: int, normals: int, above: int) -> float:
    """The probability of ``above`` or more: a sum over the means and deviations that a fit can find."""
    degrees = fitted_on - 1
    means = np.linspace(-7, 7, 701) / math.sqrt(fitted_on)
    weights = np.exp(-(means**2) * fitted_on / 2)
    total = weight = 0.0
    for deviation in np.linspace(1e-3, 1 + 12 / math.sqrt(fitted_on), 600):
        density = deviation ** (degrees - 1) * math.exp(-degrees * (deviation**2 - 1) / 2)  # chi over its root
        for mean, share in zip(means, weights, strict=True):
            p = math.erfc((mean + limit * deviation) / math.sqrt(2)) / 2
            # All but the terms below ``above``, which are few.
            few = sum(math.comb(normals, k) * p**k * (1 - p) ** (normals - k) for k in range(above))
            total += density * share * (1 - few)
            weight += density * share
    return total / weight


@pytest.mark.parametrize(("fitted_on", "normals", "above"), [(8, 12, 4), (30, 20, 3), (200, 30, 5)])
def test_the_chance_is_that_of_estimated_moments_and_drawn_samples(fitted_on: int, normals: int, above: int) -> None:
    check = FitCheck(fitted_on, normals, above, 0)
    # The midpoint rule over 512 pieces of each: good for deciding at one in a thousand.
    assert check._chance(2.0, above) == pytest.approx(chance(2.0, fitted_on, normals, above), rel=0.05)


@pytest.mark.parametrize(("fitted_on", "normals"), [(5, 40), (30, 30)])
def test_a_fit_without_fault_is_hardly_ever_blamed(fitted_on: int, normals: int) -> None:
    rng = np.random.default_rng(31)
    blamed = 0
    for _ in range(100):
        fit, new = rng.normal(size=fitted_on), rng.normal(size=normals)
        z = (new - fit.mean()) / fit.std(ddof=1)
        blamed += FitCheck(fitted_on, *counted(z)).surprising
    assert blamed <= 2  # expected: at most 0.1


def test_a_fit_on_scores_that_the_detector_knows_is_found_out() -> None:
    # The rate measured on real detectors: 37 percent of the normals above z = 2 in place of 2.3.
    check = FitCheck(100, 40, 15, 6)
    assert (check.share_above_2, check.share_above_3) == (15 / 40, 6 / 40)
    with pytest.warns(FitWarning, match=r'of 40 .* 37\.5% lie above z = 2 and 15\.0% above z = 3, .* source="valid'):
        check.report()
    assert issubclass(FitWarning, UserWarning)
    assert not issubclass(FitWarning, AnomnormError)


def test_training_scores_on_another_scale_are_found_out_below() -> None:
    # A step that gives the training data a hundred times the score: every normal lies at -21 sigmas or so.
    rng = np.random.default_rng(5)
    z = (rng.normal(size=40) * 0.2 - math.log(100)) / 0.2
    check = FitCheck(100, *counted(z))
    assert (check.normals, check.share_below_2, check.share_below_3) == (40, 1.0, 1.0)
    with pytest.warns(
        FitWarning, match=r"100\.0% lie below z = -2 and 100\.0% below z = -3, .* another scale"
    ) as caught:
        assert check.report()
    assert len(caught) == 1
    assert "above" not in str(caught[0].message)


def test_both_sides_share_one_warning() -> None:
    with pytest.warns(FitWarning, match=r"of 40 .* above z = 2 .* below z = -2") as caught:
        assert FitCheck(100, 40, 15, 6, 15, 6).report()
    assert len(caught) == 1


def test_scores_without_a_logarithm_are_no_normals_of_the_check() -> None:
    z = np.array([-np.inf, np.nan, np.inf, 0.0, 2.0, 2.1, 3.1, -2.0, -2.5, -3.5])
    assert counted(z) == (8, 3, 2, 2, 1)


@pytest.mark.parametrize("check", [FitCheck(100, 40, 2, 0), FitCheck(100, 0, 0, 0), FitCheck(1, 5, 5, 5)])
def test_what_is_no_surprise_is_not_reported(check: FitCheck) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check.report()
    assert math.isnan(FitCheck(100, 0, 0, 0).share_above_2)


def test_few_fitted_samples_excuse_much() -> None:
    assert FitCheck(200, 50, 10, 3).surprising
    assert not FitCheck(6, 50, 10, 3).surprising
