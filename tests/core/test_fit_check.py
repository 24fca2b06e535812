"""How surprising it is that normal validation samples are not as the fit expects them (clause S9)."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats

from anomnorm_core import FitCheck, FitWarning, fit_check
from anomnorm_core.errors import AnomnormError
from anomnorm_core.fit_check import counted, moments
from anomnorm_core.options import Transform

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


def checked(z: np.ndarray, fitted_on: int, *, unseen: bool = True) -> FitCheck:
    return FitCheck.of(fitted_on, counted(z), moments(z), unseen=unseen)


def refitted(fit: np.ndarray, new: np.ndarray) -> np.ndarray:
    return (new - fit.mean()) / fit.std(ddof=1)


@pytest.mark.parametrize(("fitted_on", "normals", "above"), [(8, 12, 4), (30, 20, 3), (200, 30, 5)])
def test_the_chance_is_that_of_estimated_moments_and_drawn_samples(fitted_on: int, normals: int, above: int) -> None:
    check = FitCheck(fitted_on, normals, above, 0)
    # The midpoint rule over 512 pieces of each: good for deciding at one in a thousand.
    assert check._chance(2.0, above) == pytest.approx(chance(2.0, fitted_on, normals, above), rel=0.05)


def test_the_moments_are_those_of_the_finite_z_scores() -> None:
    z = np.random.default_rng(3).gumbel(size=40)
    check = checked(np.concatenate([z, [np.inf, -np.inf, np.nan]]), 100)
    assert check.normals == 41  # with the infinite one, which is above all limits
    assert (check.mean, check.std) == pytest.approx((z.mean(), z.std(ddof=1)), rel=1e-12)
    assert check.skewness == pytest.approx(stats.skew(z), rel=1e-12)
    assert np.isfinite(moments(np.array([3e38, -3e38], np.float32))).all()
    one, none = checked(np.array([2.5]), 100), checked(np.array([np.nan]), 100)
    assert (one.mean, math.isnan(one.std), math.isnan(one.skewness)) == (2.5, True, True)
    assert math.isnan(none.mean)
    assert one == checked(np.array([2.5]), 100)
    assert not one.surprising


@pytest.mark.parametrize(("fitted_on", "normals"), [(5, 20), (200, 5), (40, 60)])
def test_the_mean_is_judged_by_the_t_test_of_two_samples(fitted_on: int, normals: int) -> None:
    rng = np.random.default_rng(fitted_on)
    fit, new = rng.normal(size=fitted_on), rng.normal(0.4, 1.5, size=normals)
    check = checked(refitted(fit, new), fitted_on)
    found = fit_check._chance_of_mean(fitted_on, normals, check.mean, check.std)
    assert found == pytest.approx(stats.ttest_ind(fit, new).pvalue, rel=1e-9)


def test_the_skewness_is_judged_as_in_scipy() -> None:
    z = np.random.default_rng(9).gumbel(size=30)
    found = fit_check._chance_of_skewness(30, float(stats.skew(z)))
    assert found == pytest.approx(stats.skewtest(z).pvalue, rel=1e-9)


def test_a_deviation_is_judged_as_that_of_scores_with_exponential_tails() -> None:
    # Of so many scores the variance is as a normal one: the ratio's logarithm has the variance (kurtosis - 1) / n.
    n, m, ratio = 40000, 20000, 1.02
    expected = 2 * stats.norm.sf(math.log(ratio**2) / math.sqrt(5 / n + 5 / m))
    assert fit_check._chance_of_std(n, m, ratio) == pytest.approx(expected, rel=0.03)
    assert fit_check._chance_of_std(n, m, 1 / ratio) == pytest.approx(expected, rel=0.03)


DRAWN: dict[str, Any] = {"normal": np.random.Generator.normal, "laplace": np.random.Generator.laplace}


@pytest.mark.parametrize(("fitted_on", "normals"), [(5, 20), (20, 5), (200, 20), (20, 200)])
def test_each_finding_comes_by_chance_as_often_as_it_may(fitted_on: int, normals: int) -> None:
    rng, runs, level = np.random.default_rng(17), 1500, 0.02
    for name, draw in DRAWN.items():
        fits, news = draw(rng, size=(runs, fitted_on)), draw(rng, size=(runs, normals))
        found = dict.fromkeys(("mean", "std", "skewness"), 0)
        for fit, new in zip(fits, news, strict=True):
            check = checked(refitted(fit, new), fitted_on)
            found["mean"] += fit_check._chance_of_mean(fitted_on, normals, check.mean, check.std) < level
            found["std"] += fit_check._chance_of_std(fitted_on, normals, check.std) < level
            found["skewness"] += fit_check._chance_of_skewness(normals, check.skewness) < level
        most = stats.binom.isf(1e-4, runs, level)
        assert max(found["mean"], found["std"]) <= most
        if name == "normal":
            assert found["skewness"] <= most
            assert found["mean"] >= stats.binom.ppf(1e-4, runs, level)
    assert fit_check._CHANCE * 5 == 1e-3


@pytest.mark.parametrize(("fitted_on", "normals"), [(5, 40), (30, 30)])
def test_a_fit_without_fault_is_hardly_ever_blamed(fitted_on: int, normals: int) -> None:
    rng = np.random.default_rng(31)
    blamed = 0
    for _ in range(100):
        fit, new = rng.normal(size=fitted_on), rng.normal(size=normals)
        blamed += checked(refitted(fit, new), fitted_on).surprising
    assert blamed <= 2  # expected: at most 0.1


def test_a_fit_on_scores_that_the_detector_knows_is_found_out() -> None:
    # The rate measured on real detectors: 37 percent of the normals above z = 2 in place of 2.3.
    check = FitCheck(100, 40, 15, 6)
    assert (check.share_above_2, check.share_above_3) == (15 / 40, 6 / 40)
    with pytest.warns(FitWarning, match=r'of 40 .* 37\.5% lie above z = 2 and 15\.0% above z = 3, .* source="valid'):
        check.report()
    assert issubclass(FitWarning, UserWarning)
    assert not issubclass(FitWarning, AnomnormError)


# What is found, with the other numbers as the fit expects them: 40 normals of a fit to 100, or as many as are named.
TRAINED, SCALE, SHAPE = "trained on lower than new data", "another scale", 'threshold="false_alarm_rate"'
FINDINGS = {
    "higher": ({"mean": 0.9}, "more false alarms", TRAINED),
    "lower": ({"mean": -0.9}, "miss more anomalies", SCALE),
    "wider": ({"std": 2.5, "normals": 400}, "more false alarms", TRAINED),
    "narrower": ({"std": 0.4, "normals": 400}, "miss more anomalies", SCALE),
    "higher, and as much narrower": ({"mean": 0.9, "std": 0.2}, "miss more anomalies", SCALE),
    "of five, whose deviation is not known": ({"mean": -2.5, "std": 3.0, "normals": 5}, "miss more anomalies", SCALE),
    "skewed to the right": ({"skewness": 2.0}, "more false alarms", SHAPE),
    "skewed to the left": ({"skewness": -2.0}, "miss more anomalies", SHAPE),
    "skewed, of a fit to themselves": ({"skewness": 2.0, "unseen": False}, "more false alarms", SHAPE),
    "many above, of a fit to themselves": ({"above_3": 5, "unseen": False, "fitted_on": 40}, "false alarms", SHAPE),
    "many above, of a fit to some": ({"above_3": 9, "unseen": False}, "false alarms", SHAPE),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_is_found_is_said_with_its_consequence_and_its_remedy(name: str) -> None:
    options, consequence, remedy = FINDINGS[name]
    check = expected_one(**options)
    with pytest.warns(FitWarning) as caught:
        assert check.report()
    assert check.surprising
    message = str(caught[0].message)
    assert len(caught) == 1
    assert message.startswith(f"of {check.normals} normal validation samples ")
    assert consequence in message
    assert remedy in message
    assert f"mean {check.mean:.2g}, deviation {check.std:.2g} and skewness {check.skewness:.2g}" in message
    others = {"more false alarms", "miss more anomalies", TRAINED, SCALE, SHAPE} - {consequence, remedy}
    assert not [other for other in others if other in message and consequence not in other]


@pytest.mark.parametrize("transform", [None, *Transform])
def test_the_other_transform_is_suggested_where_the_skewness_is_of_its_side(transform: Transform | None) -> None:
    for skewness, other in ((2.0, Transform.LOG), (-2.0, Transform.IDENTITY)):
        with pytest.warns(FitWarning) as caught:
            expected_one(skewness=skewness).report(transform)
        message = str(caught[0].message)
        suggested = transform is not None and transform is not other
        assert ("transform=" in message) == suggested
        assert (f'transform="{other}"' in message) == suggested


def expected_one(**options: Any) -> FitCheck:
    usual = {"fitted_on": 100, "normals": 40, "above_2": 1, "above_3": 0, "mean": 0.0, "std": 1.0, "skewness": 0.0}
    return FitCheck(**usual | options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mean": 0.2, "normals": 10**5, "fitted_on": 10**5},  # beyond any doubt, and no reason to do anything
        {"skewness": 0.4, "normals": 10**5},
        {"mean": 0.5},
        {"mean": 5.0, "std": 1.0, "normals": 4},  # as one outlier would be
        {"std": 0.0, "mean": 0.3, "normals": 7},
        {"mean": 1.5, "unseen": False},  # which a fit to themselves does not have
        {"std": 0.3, "unseen": False},
        {"skewness": 2.0, "normals": 7},
    ],
)
def test_what_is_chance_or_does_not_matter_is_not_reported(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not expected_one(**options).report()


@pytest.mark.parametrize("limit", [2.0, 3.0])
@pytest.mark.parametrize("normals", [6, 40])
def test_of_normals_that_were_fitted_few_lie_far_from_their_own_mean(limit: float, normals: int) -> None:
    # Of n samples, one is at most (n - 1) / sqrt(n) deviations away; its square over that of this is beta distributed.
    share = limit**2 * normals / (normals - 1) ** 2
    one = stats.beta.sf(min(share, 1.0), 0.5, (normals - 2) / 2) / 2
    check = FitCheck(normals, normals, 1, 1, unseen=False)
    assert check._chance(limit, 1) == pytest.approx(stats.binom.sf(0, normals, one), rel=1e-9, abs=1e-15)
    drawn = np.random.default_rng(5).normal(size=(20000, normals))
    z = (drawn - drawn.mean(1, keepdims=True)) / drawn.std(1, ddof=1, keepdims=True)
    assert (z > limit).mean() == pytest.approx(one, abs=4e-4)
    # Those of another fit are judged as samples that it has not seen, of which more may be there.
    assert FitCheck(normals + 1, normals, 1, 1, unseen=False)._chance(limit, 1) > check._chance(limit, 1)


def test_a_fit_to_the_normals_themselves_finds_what_is_skewed_and_not_what_is_normal() -> None:
    rng = np.random.default_rng(11)
    found = dict.fromkeys(("normal", "gumbel"), 0)
    for name in found:
        for _ in range(50):
            scores = getattr(rng, name)(size=200)
            found[name] += checked(refitted(scores, scores), 200, unseen=False).surprising
    # Gumbel scores, the largest of many each, give 4.2% false alarms at two sigmas and 1.2% at three.
    assert found["normal"] == 0
    assert found["gumbel"] >= 40


def test_training_scores_on_another_scale_are_found_out_below() -> None:
    # A step that gives the training data a hundred times the score: every normal lies at -21 sigmas or so.
    rng = np.random.default_rng(5)
    z = (rng.normal(size=40) * 0.2 - math.log(100)) / 0.2
    check = checked(z, 100)
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
