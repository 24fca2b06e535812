"""Clauses T7, T3 and S10: thresholds for a false-alarm rate, and the rate that is expected of a threshold."""

import math
import warnings
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conformance import oracle
from scipy import stats

from anomnorm_core import (
    Fit,
    FitWarning,
    LevelFit,
    Normalizer,
    NotFittedError,
    OptionError,
    Origin,
    ThresholdWarning,
    cdf,
)
from anomnorm_core.methods import METHODS
from anomnorm_core.options import Rules, ThresholdRule, Transform, require_rule
from anomnorm_core.threshold import (
    false_alarm_rate,
    init,
    normal_quantile,
    streamed_false_alarm_rate,
    streamed_normal_quantile,
    update,
)
from anomnorm_core.threshold.choice import ANOMALOUS, NORMAL, UNLABELLED, Gathered, choose, conclude
from anomnorm_core.threshold.false_alarms import Normals, allowed, least_rate, needed, normals_of

RNG = np.random.default_rng(41)
FEW = pytest.mark.filterwarnings("ignore:.*cannot guarantee:anomnorm_core.ThresholdWarning")


def ranked(scores: Any, rate: Fraction) -> float | None:
    """The ceil((n + 1)(1 - rate))-th smallest score, with what is no number first; None: there is no such rank."""
    ordered = sorted(-math.inf if math.isnan(x) else x for x in np.asarray(scores).tolist())
    rank = math.ceil((len(ordered) + 1) * (1 - rate))
    return ordered[rank - 1] if rank <= len(ordered) else None


@pytest.mark.clause("T7")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@FEW
def test_it_is_just_above_the_rank_that_holds_for_new_samples(dtype: str) -> None:
    for size in (9, 19, 20, 99, 100, 140):
        scores = RNG.normal(size=size).astype(dtype)
        scores[3] = scores[5]  # a tie
        for rate in (Fraction(1, 10), Fraction(5, 100), Fraction(1, 100), Fraction(7, 100), Fraction(1, 2)):
            wanted = ranked(scores, rate)
            found = false_alarm_rate(scores, float(rate))
            assert found.guaranteed == (wanted is not None)
            if wanted is None:
                continue
            assert float(found.threshold) == oracle.next_up(wanted, dtype)
            assert found.threshold.dtype == dtype
            above = int(np.sum(scores >= found.threshold))
            assert found.false_alarm_rate == (above + 1) / (size + 1) <= float(rate)


@pytest.mark.clause("T7", "N6", "S10")
def test_all_normals_count_as_smallest_or_largest_where_they_have_no_place() -> None:
    odd = [math.nan, -math.inf, -1.0, 0.0, 0.0]
    scores = np.array([*odd, *range(1, 15)])  # 19 of them: the largest is the threshold's for 5%
    found = false_alarm_rate(scores, 0.05, transform="log")
    assert float(found.threshold) == oracle.next_up(14.0, "float64")
    assert false_alarm_rate(scores, 0.1, transform="log").threshold == oracle.next_up(13.0, "float64")
    # Ignored and anomalous samples are no normal ones.
    labels = np.array([0] * 19 + [1, -1, 2])
    with_others = np.append(scores, [50.0, 60.0, 70.0])
    assert false_alarm_rate(with_others, 0.05, labels=labels, transform="log") == found
    # What has no logarithm is not flagged, and neither is a rate that all scores above zero may have.
    assert false_alarm_rate(scores, 0.8, transform="log").threshold == np.finfo(np.float64).smallest_normal
    assert false_alarm_rate(np.zeros(30, np.float32), 0.05, transform="log").threshold == 2.0**-126
    with pytest.warns(ThresholdWarning, match=r"2 of 39 normal validation scores are \+inf.*0.05 cannot be kept"):
        infinite = false_alarm_rate(np.append(np.ones(37), [math.inf] * 2), 0.05)
    assert not infinite.guaranteed
    assert infinite.false_alarm_rate == 3 / 40
    assert np.isfinite(infinite.threshold)
    assert false_alarm_rate(np.append(np.ones(38), [math.inf]), 0.05).threshold == oracle.next_up(1.0, "float64")
    few = np.append(np.zeros(18), [1.0, 3.0])  # of which a tenth has a logarithm, and 10.9% is what 20 can guarantee
    with pytest.warns(ThresholdWarning, match="0.109 is the smallest"):
        above = false_alarm_rate(few, 0.105, confidence=0.9, transform="log")
    assert float(above.threshold) == oracle.next_up(3.0, "float64")
    with pytest.raises(NotFittedError, match="needs normal scores"):
        false_alarm_rate([1.0, 2.0], 0.5, labels=[1, 1])


@pytest.mark.clause("T7")
def test_confidence_is_that_of_the_beta_distribution() -> None:
    for size in (30, 45, 100, 300):
        scores = np.sort(RNG.normal(size=size))
        for rate, confidence in ((0.05, 0.9), (0.1, 0.95), (0.02, 0.5)):
            # The share of new samples above the m + 1 largest is Beta(m + 1, n - m).
            sure = [m for m in range(size) if stats.beta.cdf(rate, m + 1, size - m) >= confidence]
            assert allowed(rate, size, confidence) == max(sure, default=-1)
            assert (needed(rate, confidence) <= size) == bool(sure)
            assert stats.beta.cdf(least_rate(size, confidence), 1, size) == pytest.approx(confidence, rel=1e-12)
            if sure:
                found = false_alarm_rate(scores, rate, confidence=confidence)
                assert float(found.threshold) == oracle.next_up(float(scores[-1 - max(sure)]), "float64")
    assert (needed(0.01, None), needed(0.05, None), least_rate(99, None)) == (99, 19, 0.01)
    assert stats.beta.cdf(0.01, 1, 99) == pytest.approx(0.63, abs=0.001)  # 37% of samples of 99 exceed 1%


@pytest.mark.clause("T7", "S10")
@pytest.mark.parametrize("transform", ["log", "identity"])
@pytest.mark.parametrize("zeros", [0, 3])
def test_too_few_normals_are_predicted_from_their_moments(transform: str, zeros: int) -> None:
    draws = np.exp(RNG.normal(1.0, 0.7, 9)) ** 1.5
    scores = np.append(draws, np.zeros(zeros)) if transform == "log" else np.append(draws, -draws[:zeros])
    values = np.log(draws) if transform == "log" else scores
    share = len(values) / len(scores)  # the others count as smallest
    n, mean, std = len(values), values.mean(), values.std(ddof=1)
    g = stats.skew(values) * n / (n + 20)
    for rate in (0.02, 0.001):
        with pytest.warns(ThresholdWarning, match="cannot guarantee a false-alarm rate of") as caught:
            found = false_alarm_rate(scores, rate, transform=transform)
        t = stats.t.isf(rate / share, n - 1)
        z = t + g * (t * t - 1) / 6
        wanted = mean + std * math.sqrt(1 + 1 / n) * z
        wanted = math.exp(wanted) if transform == "log" else wanted
        assert wanted > scores.max()
        assert float(found.threshold) == pytest.approx(wanted, rel=1e-12)
        assert (found.false_alarm_rate, found.guaranteed) == (rate, False)
        text = str(caught[0].message)
        assert f"{len(scores)} normal validation samples" in text
        assert f"{1 / (len(scores) + 1):.3g} is the smallest" in text
        assert f"it takes {math.ceil(1 / rate) - 1} of them" in text
    with pytest.warns(ThresholdWarning, match="with a confidence of 0.9: 0.226|with a confidence of 0.9: 0.175"):
        sure = false_alarm_rate(scores, 0.01, transform=transform, confidence=0.9)
    k = stats.nct.ppf(0.9, n - 1, stats.norm.isf(0.01 / share) * math.sqrt(n)) / math.sqrt(n)
    wanted = mean + std * (k + g * (k * k - 1) / 6)
    assert float(sure.threshold) == pytest.approx(math.exp(wanted) if transform == "log" else wanted, rel=1e-9)


@pytest.mark.clause("T7")
@FEW
def test_the_threshold_never_falls_as_the_rate_falls() -> None:
    rates = np.logspace(math.log10(0.97), -8, 80)
    kinds: list[Any] = [
        lambda n: RNG.normal(size=n),
        lambda n: np.exp(2 * RNG.normal(size=n)),
        lambda n: -np.exp(2 * RNG.normal(size=n)),  # skewed to the other side
        lambda n: np.where(RNG.random(n) < 0.5, 0.0, RNG.random(n)),
        lambda n: np.append(np.full(n - 1, -1.0), -9.0),
        lambda n: np.ones(n),
    ]
    for size in (1, 2, 3, 5, 12, 40):
        for kind in kinds:
            scores = kind(size)
            for transform in ("log", "identity", None):
                for confidence in (None, 0.9):
                    found = [
                        float(false_alarm_rate(scores, rate, transform=transform, confidence=confidence).threshold)
                        for rate in rates
                    ]
                    assert np.all(np.diff(found) >= 0), (size, transform, confidence, scores)
                    if not np.any(scores >= found[-1]):
                        continue
                    assert transform == "log", scores  # whose scores below zero are never flagged


@pytest.mark.clause("T7")
@FEW
def test_skewness_moves_it_to_the_side_of_the_longer_tail() -> None:
    scores = np.array([1.0, 1.1, 1.2, 1.3, 1.9])
    right, left = (false_alarm_rate(x, 0.01, transform="identity") for x in (scores, -scores))
    spread = scores.std(ddof=1) * math.sqrt(1.2) * stats.t.isf(0.01, 4)
    assert float(right.threshold) > scores.mean() + spread
    assert float(left.threshold) < -scores.mean() + spread


@pytest.mark.clause("T7")
def test_the_rate_of_a_score_is_the_inverse() -> None:
    for size, transform in ((2, Transform.IDENTITY), (5, Transform.LOG), (60, Transform.LOG), (9, Transform.IDENTITY)):
        draws = RNG.normal(size=size) ** 3
        normals = normals_of(np.append(np.exp(draws) if transform is Transform.LOG else draws, math.nan), transform)
        assert (normals.samples, normals.valued) == (size + 1, size)
        for rate in (0.6, 0.2, 0.01, 1e-4):
            at = normals.threshold(rate)
            if at < 1e300:
                assert float(normals.rate(at)) == pytest.approx(rate, rel=1e-7)
    constant = Normals(4, 4, 1.0, 0.0, 0.0, Transform.IDENTITY)
    assert constant.rate(np.array([0.5, 1.0, 1.5])).tolist() == [1.0, 1.0, 0.0]
    logs = Normals(8, 6, 0.0, 1.0, 0.0, Transform.LOG)
    assert logs.rate(np.array([-1.0, 0.0])).tolist() == [1.0, 1.0]
    assert float(logs.rate(1.0)) == pytest.approx(0.75 * 0.5)


# Pixels.


@pytest.mark.clause("T7", "T5")
@FEW
def test_pixels_count_their_images() -> None:
    images, pixels = 39, 50
    maps = np.float32(np.exp(RNG.normal(size=(images, pixels)) + RNG.normal(size=(images, 1))))
    maps[0, :20] = math.nan  # smallest
    record = update(init(), maps)
    for rate in (0.3, 0.1, 0.03, 0.025):
        found = streamed_false_alarm_rate(record, rate, images)
        above = int(np.sum(maps >= found.threshold))
        promised = (above + pixels) / ((images + 1) * pixels)
        assert found == (found.threshold, promised, True)
        assert promised <= rate
        # The edge below would be too low.
        edge = found.threshold * np.float32(1 - 2.0**-8)
        assert (int(np.sum(maps >= edge)) + pixels) / ((images + 1) * pixels) > rate
    with pytest.warns(
        ThresholdWarning, match="39 normal validation images cannot guarantee a false-alarm rate of 0.01"
    ):
        few = streamed_false_alarm_rate(record, 0.01, images)
    assert float(few.threshold) > float(np.nanmax(maps))
    logs = np.log(maps[~np.isnan(maps)].astype(np.float64))
    g, share = stats.skew(logs) * 39 / 59, logs.size / maps.size
    t = stats.t.isf(0.01 / share, 38)
    wanted = math.exp(logs.mean() + logs.std() * math.sqrt(1 + 1 / 39) * (t + g * (t * t - 1) / 6))
    assert float(few.threshold) == pytest.approx(max(wanted, float(np.nanmax(maps))), rel=0.01)
    lower = [float(streamed_false_alarm_rate(record, rate, images).threshold) for rate in np.logspace(-0.1, -6, 60)]
    assert np.all(np.diff(lower) >= 0)


@pytest.mark.clause("T7", "T5")
def test_infinite_pixels_are_the_largest() -> None:
    maps = np.ones((100, 4), np.float32)
    maps[:3, 0] = math.inf
    found = streamed_false_alarm_rate(update(init(), maps), 0.05, 100)  # (3 + 4) / (101 * 4) is less
    assert (float(found.threshold) < 1.01, found.guaranteed) == (True, True)
    maps[:40, 0] = math.inf
    with pytest.warns(ThresholdWarning, match=r"40 of 400 normal validation scores are \+inf"):
        found = streamed_false_alarm_rate(update(init(), maps), 0.05, 100)
    assert found[1:] == (44 / 404, False)
    assert streamed_normal_quantile(update(init(), maps), images=100).false_alarm_rate == 44 / 404
    with pytest.raises(NotFittedError, match="needs normal scores"):
        streamed_false_alarm_rate(update(init(), maps * math.nan), 0.05, 100)


@pytest.mark.clause("T7")
def test_numbers_that_float32_or_a_cube_does_not_hold() -> None:
    large = np.append(np.ones(30), [1e39] * 9)
    with pytest.warns(ThresholdWarning, match=r"9 of 39 normal validation scores are \+inf"):
        assert false_alarm_rate(large, 0.05)[1:] == (10 / 40, False)
    with pytest.warns(ThresholdWarning, match="cannot guarantee"):
        assert np.isfinite(false_alarm_rate(-np.arange(1.0, 9) * 1e150, 0.01, transform="identity").threshold)
    with pytest.raises(NotFittedError, match="needs normal scores"):
        false_alarm_rate([math.nan] * 30, 0.05)
    # Of one that has a value nothing is predicted: it lies just above all of them.
    with pytest.warns(ThresholdWarning, match="just above all of them, as fewer than two have a value"):
        assert false_alarm_rate([3.0], 0.01)[1:] == (1 / 2, False)


@pytest.mark.clause("T7")
def test_scores_of_the_wrong_direction_are_noticed() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3 // 2
    base = fitted("min-max")
    choices = choose({"image": None, "pixel": None}, base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(200):
            conclude(base, choices, Rules(), Gathered(rng.normal(size=60), labels), where="")
        conclude(
            base, choices, Rules(), Gathered(np.ones(60), np.sort(labels)[::-1]), where=""
        )  # equal ones say nothing
    with pytest.warns(ThresholdWarning, match=r"smaller scores than the normal ones \(AUROC 0.0\d"):
        conclude(base, choices, Rules(), Gathered(rng.normal(size=60) - 3 * labels, labels), where="")


@pytest.mark.clause("T3", "T7")
def test_the_quantile_says_what_it_promises() -> None:
    scores = np.arange(1.0, 21.0)
    assert normal_quantile(scores)[1:] == (1 / 21, True)
    assert normal_quantile(scores, 0.9)[1:] == (3 / 21, True)
    record = update(init(), np.float32(scores.reshape(5, 4)))
    assert streamed_normal_quantile(record, images=5)[1:] == (1 / 6, True)
    assert streamed_normal_quantile(record)[1:] == (None, False)


# In a validation run.


def fitted(method: str, n: int = 0) -> Fit:
    levels = {"min-max": ((0.0, 4.0), (-1.0, 9.0)), "two-slope": ((0.0, 4.0), (-1.0, 9.0))}
    image, pixel = levels.get(method, ((0.5, 0.25), (np.zeros((1, 2)), np.ones((1, 2)))))
    return Fit(METHODS[method].method, *(LevelFit(tuple(map(np.float64, each)), valid=n) for each in (image, pixel)))


@pytest.mark.clause("T7", "T6")
@pytest.mark.parametrize("method", ["min-max", "two-slope", "cdf"])
@pytest.mark.parametrize("per", ["pixel", "image"])
def test_a_run_places_it_at_both_levels(method: str, per: str) -> None:
    scores = np.float32(np.exp(RNG.normal(size=60)))
    labels = np.arange(60) % 3  # normal, anomalous, unlabelled
    labels[labels == 2] = UNLABELLED
    normal = labels != ANOMALOUS
    maps = np.float32(RNG.normal(size=(60, 2)))  # in the method's units
    record = update(init(), maps[normal])
    gathered = Gathered(scores, labels, record, 40, maps.max(1) if per == "image" else None)
    base = fitted(method)
    choices = choose({"image": Origin.FALSE_ALARM_RATE, "pixel": None}, base)
    fit = conclude(base, choices, Rules(false_alarm_rate=0.05, per=per), gathered, where="")
    image, pixel = fit.threshold("image"), fit.threshold("pixel")
    wanted = false_alarm_rate(scores[normal], 0.05)
    assert (float(image.raw), image.origin) == (float(wanted.threshold), "false_alarm_rate")
    assert (image.false_alarm_rate, image.guaranteed) == (2 / 41, True)
    assert f"threshold {float(image.raw):.6g}" in fit.summary()
    assert "expected false alarms 4.9% at most" in fit.summary()
    in_units = false_alarm_rate(maps.max(1)[normal], 0.05) if per == "image" else None
    in_units = streamed_false_alarm_rate(record, 0.05, 40) if in_units is None else in_units
    at = float(in_units.threshold)
    raw = pixel.sigmas if method == "cdf" else float(pixel.raw)
    assert raw == pytest.approx(at + (abs(at) * 2.0**-20 + 2.0**-18) * (method == "cdf"), rel=1e-12)
    assert (pixel.origin, pixel.guaranteed) == ("false_alarm_rate", True)
    assert pixel.false_alarm_rate == in_units.false_alarm_rate
    # What the run says about normal samples stays, where the parameters do not.
    normals = fit.level("image").normals
    assert (normals is None) == (method == "cdf")
    if normals is not None:
        assert normals == normals_of(scores[labels == NORMAL], None)
        assert Normalizer(fit).false_alarm_rate(1.7) == normals.rate(1.7)


@pytest.mark.clause("T7", "S10")
@pytest.mark.parametrize("n", [0, 5, 400])
def test_the_rate_of_a_score_under_the_cdf(n: int) -> None:
    zeros = np.array([[0.0, 0.5]])
    base = fitted("cdf", n)
    image, pixel = base.level("image"), base.level("pixel")
    base = replace(base, image=replace(image, zeros=np.float64(0.25)), pixel=replace(pixel, zeros=zeros))
    normalizer = Normalizer(base.placed("image", 2.0, "sigmas", Origin.OPTION).following())
    distribution = stats.t(n - 1, scale=math.sqrt(1 + 1 / n)) if n else stats.norm()
    x = np.array([-1.0, 0.0, 0.5, 1.7, 4.0])
    z = (np.log(x[2:]) - 0.5) / 0.25
    np.testing.assert_allclose(normalizer.false_alarm_rate(x), [1, 1, *(0.75 * distribution.sf(z))], rtol=1e-10)
    assert normalizer.false_alarm_rate(2.0, "sigmas") == pytest.approx(0.75 * distribution.sf(2.0), rel=1e-10)
    at_half = normalizer.false_alarm_rate(0.5, "normalized")
    assert at_half == pytest.approx(normalizer.thresholds["image"].false_alarm_rate, rel=1e-10)
    found = normalizer.false_alarm_rate(1.7, level="pixel")
    np.testing.assert_allclose(found, (1 - zeros) * distribution.sf(np.log(1.7)), rtol=1e-10)
    assert f"false_alarm_rate={float(at_half):.3g}" in repr(normalizer.thresholds["image"])


@pytest.mark.clause("T7")
def test_without_normal_samples_nothing_is_known() -> None:
    normalizer = Normalizer.min_max((0.0, 1.0), threshold=0.5)
    assert normalizer.thresholds["image"].false_alarm_rate is None
    with pytest.raises(NotFittedError, match="nothing is known about the image-level scores of normal samples"):
        normalizer.false_alarm_rate(0.7)


@pytest.mark.clause("S10", "S2")
def test_the_share_of_zeros_comes_from_the_record() -> None:
    maps = np.array([[[1.0, 0.0]], [[2.0, 0.0]], [[3.0, 4.0]], [[0.0, 5.0]]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixel = cdf.update(cdf.init((1, 2)), maps)
        normalizer = Normalizer.cdf(cdf.update(cdf.init(), np.array([1.0, 2.0, 0.0, 4.0])), pixel, threshold=1.0)
    fit = normalizer.to_fit()
    assert float(fit.level("image").zeros) == 0.25
    assert fit.level("pixel").zeros.tolist() == [[0.25, 0.5]]


@pytest.mark.clause("T7")
def test_sigmas_that_say_less_than_half_of_what_is_expected_warn() -> None:
    def warned(n: int, threshold: float, units: str = "sigmas") -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            record = cdf.update(cdf.init(), np.exp(RNG.normal(size=n)))
            Normalizer.cdf(record, threshold=threshold, units=units)
        return [str(each.message) for each in caught if each.category is FitWarning]

    for n, threshold in ((5, 2.0), (20, 3.0), (40, 3.0), (20, 2.0), (4, 1.0)):
        expected = stats.t.sf(threshold / math.sqrt(1 + 1 / n), n - 1)
        assert bool(warned(n, threshold)) == (expected > 2 * stats.norm.sf(threshold))
    (text,) = warned(5, 2.0)
    assert text.startswith("a threshold of 2 sigmas says 0.023 of the normals")
    assert "of 5 values are uncertain: 0.071 of new normal samples" in text
    assert 'threshold="false_alarm_rate"' in text
    assert not warned(5, 40.0, "raw")
    assert not warned(1000, 8.0)  # of which nobody counts any


@pytest.mark.clause("N7", "T7")
def test_a_constant_population_has_a_sentence_of_its_own() -> None:
    record = cdf.update(cdf.init(), np.full(30, 0.7))
    with pytest.warns(FitWarning, match="all 30 image scores that were fitted are equal, up to rounding") as caught:
        normalizer = Normalizer.cdf(record, threshold=5.0, units="raw")
    assert len(caught) == 1
    for c in (1.0, 6.0, 1e-3, 123.0):  # no sample reaches a threshold above it, and all of them reach it
        flat = Fit(cdf.METHOD, LevelFit((np.log(np.float64(c)), np.float64(0.0)), valid=9))
        placed = Normalizer(flat.placed("image", 2.0, "sigmas", Origin.OPTION))
        assert placed.thresholds["image"].false_alarm_rate == 0.0
        assert placed.false_alarm_rate(c) == 1.0
        assert "expected false alarms below 0.0001%" in placed.summary()
    equal = normals_of(np.full(10, np.float32(0.7)), None)
    assert equal.rate(np.array([0.7, 0.70001], np.float32)).tolist() == [1.0, 0.0]
    spread = Fit(METHODS["normal"].method, LevelFit((np.float64(0.0), np.float64(1e-9)), valid=99))
    assert not spread.is_constant
    for text in (normalizer.summary(), repr(normalizer.thresholds)):
        assert "threshold 5" in text or "raw=5" in text
        assert "e+38" not in text


@pytest.mark.clause("S9", "T7")
def test_scores_with_an_upper_bound_below_the_threshold_have_a_sentence_of_their_own() -> None:
    rng = np.random.default_rng(7)

    def concluded(scores: np.ndarray, labels: np.ndarray, t: float = 2.0) -> Fit:
        logs = np.log(scores[labels == NORMAL])
        base = Fit(cdf.METHOD, LevelFit((logs.mean(), logs.std(ddof=1)), valid=logs.size))
        gathered = Gathered(scores.astype(np.float32), labels)
        return conclude(base, choose({"image": t, "pixel": None}, base), Rules(), gathered, where="")

    labels = np.arange(80) % 4 // 3  # normal, and a quarter anomalous
    uniform = np.where(labels == ANOMALOUS, 0.9 + 0.1 * rng.random(80), rng.random(80))
    with pytest.warns(FitWarning, match="no score of this validation run reaches the image threshold") as caught:
        concluded(uniform, labels)
    assert "seem to have an upper bound" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(50):  # of scores without a bound it says nothing, nor of few
            concluded(np.exp(rng.normal(size=80)), np.zeros(80, int), 4.0)
            concluded(rng.random(5) + 1e-3, np.zeros(5, int))
        # And where all lie low, the fit is of another scale.
        base = Fit(cdf.METHOD, LevelFit((np.float64(5.0), np.float64(1.0)), valid=99))
        conclude(base, choose({"image": 2.0, "pixel": None}, base), Rules(), Gathered(uniform, 0 * labels), where="")


@pytest.mark.clause("T7")
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan, "x", True, None])
def test_rates_between_0_and_1(value: Any) -> None:
    with pytest.raises(OptionError, match="rate"):
        false_alarm_rate([1.0], value)
    with pytest.raises(OptionError, match="false_alarm_rate"):
        Rules(false_alarm_rate=value)
    if value is not None:
        with pytest.raises(OptionError, match="confidence"):
            Rules(confidence=value)
    with pytest.raises(OptionError, match="per="):
        Rules(per="pixels")
    with pytest.raises(OptionError, match=r"false_alarm_rate=5 .*, 0.05 for 5%"):
        Rules(false_alarm_rate=5)
    for given in ({"false_alarm_rate": 0.02}, {"confidence": 0.9}, {"per": "image"}):
        with pytest.raises(OptionError, match='give threshold="false_alarm_rate" too'):
            require_rule(Rules(**given), None, 3.0)
        require_rule(Rules(**given), 3.0, ThresholdRule.FALSE_ALARM_RATE)


@pytest.mark.clause("T7", "T4")
def test_a_moved_threshold_expects_nothing_that_the_rule_has_refuted() -> None:
    """Scores with a tail that the method does not suppose: it expects less than the rule has observed."""
    scores = np.exp(np.random.default_rng(3).gumbel(size=300))
    logs = np.log(scores)
    base = Fit(cdf.METHOD, LevelFit((logs.mean(), logs.std(ddof=1)), valid=logs.size))
    rules = Rules(false_alarm_rate=0.02)
    gathered = Gathered(scores, np.zeros(scores.size, np.uint8))
    fit = conclude(
        base, choose({"image": ThresholdRule.FALSE_ALARM_RATE, "pixel": None}, base), rules, gathered, where=""
    )
    ruled = fit.threshold("image")
    supposed = float(fit.false_alarm_rate(0.95 * ruled.raw))
    assert supposed < ruled.false_alarm_rate <= 0.02
    lower, same, far = (fit.with_threshold(share * ruled.raw, units="raw") for share in (0.95, 1.0, 0.1))
    assert lower.thresholds["image"].false_alarm_rate == ruled.false_alarm_rate
    assert not lower.thresholds["image"].guaranteed
    assert same.thresholds["image"].false_alarm_rate == ruled.false_alarm_rate
    assert far.thresholds["image"].false_alarm_rate == float(fit.false_alarm_rate(0.1 * ruled.raw))
    generous = replace(fit, image=replace(fit.level("image"), threshold=replace(ruled, false_alarm_rate=1e-9)))
    assert generous.with_threshold(1.01 * ruled.raw, units="raw").thresholds["image"].false_alarm_rate == 1e-9
