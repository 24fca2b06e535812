"""Clauses T1, T4, T6 and N4a: who owns a threshold, what a search finds, and where it is placed."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conformance import oracle
from expected import best_threshold

from anomnorm_core import Fit, LevelFit, NotFittedError, OptionError, Origin, ThresholdRule, ThresholdWarning, Units
from anomnorm_core.methods import METHODS
from anomnorm_core.options import Rules
from anomnorm_core.threshold import Found, init, update
from anomnorm_core.threshold.choice import ANOMALOUS, IGNORED, NORMAL, UNLABELLED, Gathered, choose, place, search

RNG = np.random.default_rng(31)
MEAN = np.linspace(-0.5, 0.5, 6).reshape(2, 3)
STD = np.linspace(0.25, 0.75, 6).reshape(2, 3)


def fit(method: str = "min-max", **options: Any) -> Fit:
    """Without thresholds, as in the middle of a validation run."""
    if method in ("cdf", "normal"):
        levels = LevelFit((np.float64(0.5), np.float64(0.25))), LevelFit((MEAN, STD))
    else:
        levels = LevelFit((np.float64(0.0), np.float64(4.0))), LevelFit((np.float64(-1.0), np.float64(9.0)))
    return Fit(METHODS[method].method, *levels, options=options)


def options(image: Any = None, pixel: Any = None) -> dict[str, Any]:
    return {"image": image, "pixel": pixel}


# Who owns it.

MANUAL = fit().placed("image", 1.5, None, Origin.MANUAL).placed("pixel", 2.5, None, Origin.MANUAL)
FOUND = fit().placed("image", 1.5, None, Origin.ADAPTIVE).following()


@pytest.mark.clause("T1", "T6")
@pytest.mark.parametrize(
    ("present", "given", "own", "image", "pixel"),
    [
        # manual, else the option, else the module's own, else the default rule
        (MANUAL, options(3.0, 4.0), 9.0, (Origin.MANUAL, 1.5), (Origin.MANUAL, 2.5)),
        (fit(), options(3.0, 4.0), 9.0, (Origin.OPTION, 3.0), (Origin.OPTION, 4.0)),
        (fit(), options(), 9.0, (Origin.MODULE, 9.0), (Origin.MODULE, 9.0)),
        (FOUND, options(), None, (Origin.ADAPTIVE, None), (Origin.ADAPTIVE, None)),
        # a rule by name comes before the module's own
        (FOUND, options(ThresholdRule.ADAPTIVE), 9.0, (Origin.ADAPTIVE, None), (Origin.ADAPTIVE, None)),
        # pixels do as the images do, and follow a number that those were given
        (fit(), options(ThresholdRule.NORMAL_QUANTILE), 9.0, *[(Origin.NORMAL_QUANTILE, None)] * 2),
        (fit(), options(3.0), 9.0, (Origin.OPTION, 3.0), (Origin.IMAGE, None)),
        (fit(), options(None, ThresholdRule.IMAGE), None, (Origin.ADAPTIVE, None), (Origin.IMAGE, None)),
        (fit(), options(3.0, ThresholdRule.ADAPTIVE), 9.0, (Origin.OPTION, 3.0), (Origin.ADAPTIVE, None)),
        (Fit(METHODS["min-max"].method), options(), None, (Origin.ADAPTIVE, None), (Origin.ADAPTIVE, None)),
    ],
)
def test_precedence(present: Fit, given: Any, own: float | None, image: Any, pixel: Any) -> None:
    choices = choose(given, present, lambda level: own)
    assert [(choice.origin, choice.value) for choice in choices.values()] == [image, pixel]
    assert [choice.is_searched for choice in choices.values()] == [
        origin in ("adaptive", "normal_quantile") for origin, _ in (image, pixel)
    ]


@pytest.mark.clause("T1")
def test_released_thresholds_are_replaced() -> None:
    released = MANUAL.released()
    assert [released.threshold(level).origin for level in ("image", "pixel")] == ["unknown"] * 2
    assert float(released.threshold("image").raw) == 1.5
    assert choose(options(), released)["image"].origin == Origin.ADAPTIVE
    assert FOUND.released().threshold("image").origin == Origin.ADAPTIVE


# What is found.


def gathered(scores: Any, labels: Any, pixels: Any = None, truth: Any = None) -> Gathered:
    record = None
    if pixels is not None:
        record = init() if len(pixels) == 0 else update(init(), np.float32(pixels), np.array(truth))
    return Gathered(np.float32(scores), np.array(labels), record)


def searched(
    given: Gathered, image: Any = None, pixel: Any = None, *, method: str = "min-max", **numbers: Any
) -> Mapping[str, float]:
    choices = choose(options(image, pixel), fit())
    found = search(given, choices, Rules(**numbers), method=METHODS[method].method, where="the batch")
    return {level: float(each.threshold) for level, each in found.items()}


@pytest.mark.clause("L5")
@pytest.mark.parametrize("image", [None, "normal_quantile"])
def test_ignored_samples_decide_nothing(image: str | None) -> None:
    scores, labels = [1.0, 2.0, 8.0, 9.0], [NORMAL, NORMAL, ANOMALOUS, ANOMALOUS]
    expected = searched(gathered(scores, labels), image)
    found = searched(gathered([*scores, 5.0, 99.0, math.nan], [*labels, IGNORED, IGNORED, IGNORED]), image)
    assert found == expected
    with pytest.raises(NotFittedError, match="all 2 of this validation run have a label below 0"):
        searched(gathered([5.0, 99.0], [IGNORED, IGNORED]), image)


@pytest.mark.clause("L5")
def test_labels_of_scikit_learn_are_noticed() -> None:
    with pytest.warns(ThresholdWarning) as caught:
        searched(gathered([1.0, 2.0, 8.0], [ANOMALOUS, IGNORED, IGNORED]))
    (ignored,) = [str(each.message) for each in caught if "ignored" in str(each.message)]
    assert ignored.startswith("no sample is labelled 0, normal, and 2 are labelled below 0")
    assert "(label == -1)" in ignored


@pytest.mark.clause("T1", "T2", "T3", "T5")
def test_search_by_rule() -> None:
    scores = np.round(RNG.normal(size=40) + 2 * (np.arange(40) % 2), 1)
    labels = np.arange(40) % 2
    given = gathered(scores, labels, scores, labels)
    found = searched(given)
    best = best_threshold(np.float32(scores), labels == 1)
    assert found["image"] == best
    assert best * (1 - 2.0**-8) <= found["pixel"] <= best
    quantile = searched(given, ThresholdRule.NORMAL_QUANTILE, normal_quantile=0.9)
    at = oracle.quantile(np.float32(scores[labels == 0]).tolist(), 9 * oracle.Fraction(1, 10))
    assert quantile["image"] == oracle.next_up(at, "float32")
    assert at < quantile["pixel"] <= at + abs(at) * 2.0**-7
    assert set(searched(given, 3.0)) == set()
    assert set(searched(given, None, ThresholdRule.IMAGE)) == {"image"}
    assert set(searched(given._replace(pixels=None))) == {"image"}


@pytest.mark.clause("T1", "T2")
def test_unlabelled_samples_count_as_normal_with_a_warning() -> None:
    given = gathered([1.0, 2.0, 3.0, 4.0], [NORMAL, UNLABELLED, ANOMALOUS, UNLABELLED])
    with pytest.warns(ThresholdWarning, match=r"2 of 4 validation samples have no 'label' or 'gt_label' in the batch"):
        assert searched(given) == {"image": 3.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = searched(given, ThresholdRule.NORMAL_QUANTILE)  # where they are normal by the user's word
    assert found["image"] == oracle.next_up(4.0, "float32")


@pytest.mark.clause("T2", "N6")
def test_what_has_no_logarithm_defines_no_threshold() -> None:
    given = gathered([0.0, -1.0, 2.0, 3.0], [ANOMALOUS, NORMAL, NORMAL, ANOMALOUS])
    assert searched(given, method="cdf")["image"] == 3.0
    assert searched(gathered([-2.0, -1.0], [0, 0]), method="cdf")["image"] == 2.0**-126
    assert searched(gathered([-2.0, -1.0], [0, 0]))["image"] == oracle.next_up(-1.0, "float32")


@pytest.mark.clause("T6")
def test_without_a_known_pixel_the_threshold_follows_with_a_warning() -> None:
    given = gathered([1.0, 2.0], [NORMAL, ANOMALOUS], [], [])
    with pytest.warns(ThresholdWarning, match="nothing is known about any pixel"):
        found = search(given, choose(options(), fit()), Rules(), method=fit().method, where="")
    assert set(found) == {"image"}
    for method in ("min-max", "cdf"):
        placed = place(fit(method), choose(options(), fit(method)), found)
        assert placed.threshold("pixel").origin == Origin.IMAGE


@pytest.mark.clause("T3", "N8")
def test_nothing_to_search_is_an_error() -> None:
    with pytest.raises(NotFittedError, match="a threshold needs scores"):
        searched(gathered([math.nan], [NORMAL]))


# Where it is placed.


@pytest.mark.clause("T1", "T6", "T4", "N4a")
def test_what_was_found_is_placed_in_the_units_that_it_has() -> None:
    choices = choose(options(), fit())
    placed = place(fit(), choices, {"image": Found(np.float32(1.25)), "pixel": Found(np.float32(3.5))})
    assert [(float(placed.threshold(level).raw), placed.threshold(level).origin) for level in ("image", "pixel")] == [
        (1.25, "adaptive"),
        (3.5, "adaptive"),
    ]
    cdf = place(
        fit("cdf"), choices, {"image": Found(np.float32(1.25)), "pixel": Found(np.float32(2.0))}
    )  # a raw score, and sigmas
    image, pixel = cdf.threshold("image"), cdf.threshold("pixel")
    assert float(image.raw) == 1.25
    assert image.sigmas == pytest.approx((math.log(1.25) - 0.5) / 0.25, rel=1e-14)
    assert (image.fixed, pixel.fixed, pixel.sigmas) == (Units.RAW, Units.SIGMAS, 2.0)
    np.testing.assert_allclose(pixel.raw, np.exp(0.5 + STD * 2.0), rtol=1e-6)
    # Anomalies whose z-scores were rounded up to the edge of the bin are flagged (clause N4a).
    below = np.nextafter(np.exp(0.5 + STD * 2.0).astype(np.float32), np.float32(0))
    assert np.all(below >= pixel.raw)
    assert place(cdf, choices) is cdf  # no run has ended: what is there stays
    with pytest.raises(NotFittedError, match="no image-level threshold"):
        place(fit(), choices).threshold("image")


@pytest.mark.clause("T1", "T6")
def test_statistics_change_and_what_was_given_stays() -> None:
    wider = LevelFit((np.float64(0.75), np.float64(0.5)))
    for units, value in (("raw", 2.0), ("sigmas", 3.0)):
        first = fit("cdf").placed("image", value, units, Origin.MANUAL).following()
        again = place(replace(fit("cdf"), image=wider), choose(options(), first))
        threshold = again.threshold("image")
        assert (threshold.origin, threshold.fixed) == ("manual", units)
        raw = 2.0 if units == "raw" else math.exp(0.75 + 0.5 * 3.0)
        assert float(threshold.raw) == pytest.approx(raw, rel=1e-14)
        # The pixels follow: the same sigmas about the new mean of the images.
        given = (
            place(replace(fit("cdf"), image=wider), choose(options(value), fit("cdf"))) if units == "sigmas" else None
        )
        if given is not None:
            np.testing.assert_allclose(given.threshold("pixel").raw, np.exp(0.75 + STD * value), rtol=1e-14)
            assert given.threshold("pixel").origin == "image"
            moved = given.with_threshold(1.0)
            np.testing.assert_allclose(moved.threshold("pixel").raw, np.exp(0.75 + STD), rtol=1e-14)


@pytest.mark.clause("T6")
def test_pixels_follow_the_images() -> None:
    for method, value, pixel in (("min-max", 1.5, 1.5), ("two-slope", 1.5, 1.5), ("cdf", 2.0, np.exp(0.5 + STD * 2.0))):
        one = place(fit(method), choose(options(value), fit(method)))
        np.testing.assert_allclose(one.threshold("pixel").raw, pixel, rtol=1e-14)
        own = one.with_threshold(pixel_threshold=0.5).with_threshold(3.0)
        assert own.threshold("pixel").origin == "manual"
        assert own.threshold("pixel").value == 0.5
    # Of a raw image threshold, its sigmas.
    raw = fit("cdf").placed("image", 3.0, "raw", Origin.OPTION).following()
    sigmas = (math.log(3.0) - 0.5) / 0.25
    np.testing.assert_allclose(raw.threshold("pixel").raw, np.exp(0.5 + STD * sigmas), rtol=1e-12)


@pytest.mark.clause("N4a")
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (1.5, 0.3), (-4.0, 0.02), (0.35, 3.5e-4), (2.0, 80.0), (-60.0, 5.0)]
)
def test_the_sample_that_defines_found_sigmas_is_flagged(mean: float, std: float) -> None:
    """Whichever package rounded its z-score, within the bound of clause N13."""
    level = LevelFit((np.float64(mean), np.float64(std)))
    base = Fit(METHODS["cdf"].method, level)
    draws = np.exp(np.clip(RNG.normal(mean, 3 * std, 200), -80, 80)).astype(np.float32)
    for x in draws.astype(np.float64).tolist():
        exact = oracle.z_score(x, mean, std)
        bound = oracle.z_bound(exact, std, "float32", 0.0)
        for share in (-0.99, 0.0, 0.99):
            z = oracle.rounded(float(exact + share * bound), "float32")
            if abs(z - float(exact)) > bound:
                continue
            t = float(base.placed("image", z, "sigmas", Origin.MODULE, found=True).threshold("image").raw)
            assert t <= x, (x, z)
            # It is the smallest of the float32 that may have this z-score.
            below = float(oracle.z_score(oracle.next_down(t, "float32"), mean, std))
            assert below < z - oracle.z_bound(z, std, "float32", 0.0) + 1e-9 * (1 + abs(z))
            plain = base.placed("image", z, "sigmas", Origin.OPTION).threshold("image")
            assert float(plain.raw) == pytest.approx(math.exp(mean + std * z), rel=1e-12)


NARROW = [(0.0, 1.0), (4.1, 0.3), (-1200.3, 12.1), (1e6 / 3, 3.3), (-0.7, 1e3)]


@pytest.mark.clause("N4a", "T3", "N3b")
@pytest.mark.parametrize(("mean", "std"), NARROW)
@pytest.mark.parametrize("method", ["cdf", "normal"])
def test_parameters_of_float32_keep_samples_on_their_side(method: str, mean: float, std: float) -> None:
    """Scores of float32 are standardized with parameters of float32, and thresholds placed with those of float64."""
    if method == "cdf" and abs(mean) + 4 * std > 80:
        pytest.skip("no logarithms of float32")
    raw, kept = RNG.normal(mean, std, 40), [oracle.rounded(value, "float32") for value in (mean, std)]
    draws = (raw if method == "normal" else np.exp(raw)).astype(np.float32).astype(np.float64).tolist()
    base = Fit(METHODS[method].method, LevelFit((np.float64(mean), np.float64(std))))
    exact = oracle.raw_z_score if method == "normal" else oracle.z_score
    for x in draws:
        z = oracle.rounded(float(exact(x, *kept)), "float32")
        at = base.placed("image", z, "sigmas", Origin.MODULE, found=True).threshold("image").raw
        assert np.float32(at) <= x, (x, z)
        assert float(exact(float(at), mean, std)) == pytest.approx(z, abs=1e-6 * abs(z) + 2.0**-22 * abs(mean) / std)
        pixels = replace(base, pixel=LevelFit(tuple(np.full((1, 1), value) for value in (mean, std))))
        choices = choose(options(0.0, ThresholdRule.NORMAL_QUANTILE), pixels)
        above = place(pixels, choices, {"pixel": Found(np.float32(z))}).threshold("pixel")
        assert np.float32(above.raw) > x, (x, z)
        assert float(exact(float(above.raw[0, 0]), mean, std)) == pytest.approx(
            z, abs=1e-5 + 2.0**-21 * abs(mean) / std
        )


@pytest.mark.clause("T3", "N3b")
def test_a_threshold_above_zero_is_no_subnormal_number() -> None:
    base = Fit(METHODS["normal"].method, LevelFit((np.float64(0.0), np.float64(1.0))))
    found = base.placed("image", 0.0, "sigmas", Origin.NORMAL_QUANTILE, above=True).threshold("image")
    assert float(found.raw) == 2.0**-126


@pytest.mark.clause("N3b", "T1", "T2", "T3")
def test_a_search_among_scores_of_any_sign() -> None:
    scores = np.append(RNG.normal(-1200, 10, 40), [-1185.0, -1170.0, -1160.0])
    labels = np.repeat([NORMAL, ANOMALOUS], [40, 3])
    z = np.linspace(-4.0, 3.0, 200)
    gathered = Gathered(scores, labels, update(init(), z))
    for rule in (ThresholdRule.ADAPTIVE, ThresholdRule.NORMAL_QUANTILE):
        choices = choose(options(rule), fit("normal"))
        placed = place(
            fit("normal"), choices, search(gathered, choices, Rules(), method=fit("normal").method, where="")
        )
        t = float(placed.threshold("image").raw)
        if rule is ThresholdRule.ADAPTIVE:
            assert t == best_threshold(scores, labels == ANOMALOUS)
        else:
            assert t == np.nextafter(scores[:40].max(), np.inf)
        assert np.all(placed.threshold("pixel").raw > 0.5 + STD * 3.0)


@pytest.mark.clause("N3b", "N7")
def test_raw_thresholds_of_scores_of_any_sign() -> None:
    kernels = METHODS["normal"]
    assert kernels.raw_threshold is not None
    for mean in (0.0, -1.5, 2.0**-130, -1200.0, 3e7):
        for std in (0.0, 2.0**-130, 1e-30, abs(mean) * 2.0**-21, 0.3, 80.0):
            for center in (mean, -0.25):
                for sigmas in (-3.0, -1e-3, 0.0, 0.1, 2.5):
                    given = [np.float64(value) for value in (mean, std, center)]
                    found = float(kernels.raw_threshold(sigmas, *given))
                    wanted = oracle.raw_threshold_of_raw_scores(sigmas, mean, std, center)
                    if abs(wanted) < 2.0**-126:  # which some devices take for zero
                        wanted = 2.0**-126 if wanted > 0 else 0.0
                    assert found == pytest.approx(wanted, rel=1e-15, abs=0.0)
                    assert found == 0 or abs(found) >= 2.0**-126


@pytest.mark.clause("N4a", "T1")
def test_a_module_s_own_sigmas_count_as_found() -> None:
    x = oracle.rounded(2.7, "float32")
    z = oracle.rounded((math.log(x) - 0.5) / 0.25 + 2.0**-22, "float32")  # rounded up
    for origin, flagged in (("module", True), ("option", False)):
        choices = choose(options(z if origin == "option" else None), fit("cdf"), lambda level: z)
        threshold = place(fit("cdf"), choices).threshold("image")
        assert (threshold.origin, threshold.sigmas) == (origin, z)
        assert (x >= float(threshold.raw)) == flagged
    # Under min-max a module's threshold is a raw score, which is not rounded.
    assert float(place(fit(), choose(options(), fit(), lambda level: 1.1)).threshold("image").raw) == 1.1


@pytest.mark.clause("N3", "N7")
def test_raw_thresholds_of_all_deviations() -> None:
    kernels = METHODS["cdf"]
    assert kernels.raw_threshold is not None
    for mean in (0.0, 1.5, -4.0, 20.0, -70.0, 0.3):
        for std in (0.0, 2.0**-25, 2.0**-24, 1e-5, 3.5e-4, 0.3, 6.0):
            for center in (mean, 0.25):
                for sigmas in (-3.0, -1e-3, 0.0, 0.1, 2.5):
                    found = float(kernels.raw_threshold(sigmas, *map(np.float64, (mean, std, center))))
                    wanted = oracle.raw_threshold(sigmas, mean, std, center)
                    exact = oracle.is_constant(mean, std, center) and sigmas != 0
                    assert found == wanted if exact else found == pytest.approx(wanted, rel=1e-13)


@pytest.mark.clause("N3", "T4")
def test_thresholds_beyond_all_scores_are_refused_or_clipped() -> None:
    for wrong, units in ((400.0, "sigmas"), (-400.0, "sigmas"), (0.0, "raw"), (-1.0, "raw"), (1e-40, "raw")):
        with pytest.raises(OptionError, match=r"is the raw score .* no score could be on either side"):
            fit("cdf").placed("image", wrong, units, Origin.OPTION)
    clipped = fit("cdf").placed("pixel", 200.0, "sigmas", Origin.OPTION).threshold("pixel").raw
    assert clipped.max() == oracle.largest("float32")
    assert clipped.min() == pytest.approx(math.exp(0.5 + 0.25 * 200), rel=1e-12)
    for wrong in (1e39, math.inf, math.nan, None, "x", [1.0, 2.0]):
        with pytest.raises(OptionError, match="threshold"):
            fit().placed("image", wrong, None, Origin.OPTION)


@pytest.mark.clause("N8")
def test_a_fit_may_be_empty_or_lack_thresholds() -> None:
    empty = Fit(METHODS["cdf"].method)
    assert place(empty, choose(options(3.0), empty)).image is None
    with pytest.raises(NotFittedError, match="image-level statistics have seen no value"):
        empty.threshold("image")
    with pytest.raises(NotFittedError, match="there is no pixel-level threshold"):
        fit().threshold("pixel")
    assert "no threshold yet" in fit().summary()
    assert "not fitted" in empty.summary()


# What a user may give.


@pytest.mark.clause("N3", "T4")
def test_raw_thresholds_that_no_score_could_be_flagged_by_are_refused_for_pixels_too() -> None:
    present = place(fit("cdf"), choose(options(2.0), fit("cdf")))
    for value in (-5.0, np.full((2, 3), -5.0)):
        with pytest.raises(OptionError, match="is the raw score -5, which is not a positive normal number"):
            present.with_threshold(pixel_threshold=value, units="raw")
    with pytest.raises(OptionError, match="level='pixels' is not a level"):
        present.raw_threshold(1.0, "raw", "pixels")


@pytest.mark.clause("T4", "N7")
def test_constant_pixels_do_not_say_how_far_a_normalized_score_is() -> None:
    std = np.array([[0.0, 0.0, 0.25], [0.0, 0.0, 0.5]])
    some = Fit(METHODS["cdf"].method, LevelFit((np.float64(0.5), np.float64(0.25))), LevelFit((MEAN, std)))
    some = place(some, choose(options(2.0), some))
    moved = some.with_threshold(pixel_threshold=0.9, units="normalized").threshold("pixel")
    assert moved.sigmas == pytest.approx(2.0 + 1.2815515655446004, rel=1e-9)
    none = Fit(METHODS["cdf"].method, LevelFit((np.float64(0.5), np.float64(0.0))))
    none = none.placed("image", 5.0, Units.RAW, Origin.ADAPTIVE)
    kept = none.with_threshold(0.9, units="normalized").threshold("image")
    assert (float(kept.raw), kept.origin) == (5.0, Origin.MANUAL)


@pytest.mark.clause("T3")
def test_no_normal_pixel_at_the_quantile_is_flagged_however_its_z_score_was_rounded() -> None:
    z = 1.9999999  # just below the edge of its bin
    gathered = Gathered(np.array([1.0]), np.array([NORMAL]), update(init(), np.array([z])))
    choices = choose(options(ThresholdRule.NORMAL_QUANTILE), fit("cdf"))
    placed = place(fit("cdf"), choices, search(gathered, choices, Rules(), method=METHODS["cdf"].method, where=""))
    assert np.all(np.exp(0.5 + STD * z) < placed.threshold("pixel").raw)


@pytest.mark.clause("N9")
def test_masked_arrays_are_refused() -> None:
    masked = np.ma.MaskedArray([1.0, 300.0], mask=[False, True])
    for kernels in METHODS.values():
        with pytest.raises(TypeError, match="masked arrays are not understood"):
            kernels.update(kernels.init(), masked)
