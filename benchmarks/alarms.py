"""False alarms on held-out normals, image level: what each rule promises, and what is observed."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from detectors import Scores
from scipy.stats import beta, betabinom, norm

from anomnorm_core import AnomnormError, Normalizer, cdf, normal, threshold

METHODS = {"log": cdf, "identity": normal}
SIZES = (5, 10, 20, 50, 99)  # normals that a threshold is found on; "all" is half of those that were not trained on
ALL = "all"
TWO_SIGMAS, THREE_SIGMAS = (float(norm.sf(sigmas)) for sigmas in (2, 3))
RATES = (0.3, 0.1, 0.05, TWO_SIGMAS, 0.01, 0.005, THREE_SIGMAS)
QUANTILES = (1.0, 0.95)
CONFIDENCE, CONFIDENT_RATES = 0.9, (0.05, 0.01)
REDRAWS = 5  # validation samples of one split


class Row(NamedTuple):
    """Whose false-alarm rate it is."""

    rule: str  # "sigmas", "false_alarm_rate", "confidence" or "quantile"
    transform: str  # "log", "identity" or, of rules that have none, ""
    rate: float  # what was asked for; of "quantile" the quantile
    fitted_on: str  # "training", "crossed" or "validation"
    size: int | str  # how many normals, or ALL


class Alarms(NamedTuple):
    """Of several samples (R,) of one split."""

    observed: np.ndarray  # (R,) share of the held-out normals that are flagged; NaN where there is no threshold
    found: np.ndarray  # (R,) share of the anomalies that are flagged
    exceeding: np.ndarray  # (R,) by ranks: the probability of a larger share than asked among so many held-out normals
    exceeding_all: np.ndarray  # (R,) the same among all normals that there could ever be
    promised: np.ndarray  # (R,) what the rule says for so many normals
    guaranteed: bool  # whether it says that this is a guarantee


class Placed(NamedTuple):
    """Where a rule puts the threshold."""

    threshold: float
    promised: float
    guaranteed: bool = False


NOWHERE = Placed(math.nan, math.nan)


def half_of_unseen(normals: int) -> int:
    """How many ALL are, where a third was trained on."""
    return (normals - normals // 3) // 2


def sigmas(x: np.ndarray, rate: float, transform: str) -> Placed:
    """So many deviations above the mean that a normal distribution has ``rate`` above them."""
    number, method = float(norm.isf(rate)), METHODS[transform]
    record = method.update(method.init(), x)
    mean, std = method.mean_std(record)
    raw = float(method.raw_threshold(number, mean, std, mean))
    if rate not in (TWO_SIGMAS, THREE_SIGMAS):
        return Placed(raw, rate)
    normalizer = Normalizer.cdf(record, threshold=number, transform=transform)
    return Placed(raw, float(normalizer.false_alarm_rate(raw)))


def quantile(x: np.ndarray, share: float) -> Placed:
    """Just above a quantile of the normals."""
    return Placed(*threshold.normal_quantile(x, share))


def false_alarm_rate(x: np.ndarray, rate: float, transform: str, confidence: float | None = None) -> Placed:
    """The rule of clause T7."""
    found = threshold.false_alarm_rate(x, rate, confidence=confidence, transform=transform)
    return Placed(float(found.threshold), float(found.false_alarm_rate), found.guaranteed)


def rules(positive: bool) -> dict[tuple[str, str, float], Callable[[np.ndarray], Placed]]:
    """All rules by name, transform and rate, for scores that have logarithms or not."""
    found: dict[tuple[str, str, float], Callable[[np.ndarray], Placed]] = {}
    for transform in ("log", "identity") if positive else ("identity",):
        for rate in RATES:
            found["sigmas", transform, rate] = partial(sigmas, rate=rate, transform=transform)
            found["false_alarm_rate", transform, rate] = partial(false_alarm_rate, rate=rate, transform=transform)
        for rate in CONFIDENT_RATES:
            found["confidence", transform, rate] = partial(
                false_alarm_rate, rate=rate, transform=transform, confidence=CONFIDENCE
            )
    for share in QUANTILES:
        found["quantile", "", share] = partial(quantile, share=share)
    return found


def alarms(
    of: Scores, rng: np.random.Generator, sizes: Sequence[int] = SIZES, redraws: int = REDRAWS
) -> dict[Row, Alarms]:
    """Of one detector and one split, by row."""
    half = of.pool.size // 2
    draws = [rng.permutation(of.pool) for _ in range(redraws)]
    samples: dict[tuple[str, int | str], list[tuple[np.ndarray, np.ndarray]]] = {
        ("validation", size): [(x[:size], x[size:]) for x in draws] for size in sizes if size <= half
    }
    samples["validation", ALL] = [(x[:half], x[half:]) for x in draws]
    samples["training", ALL], samples["crossed", ALL] = [(of.train, of.pool)], [(of.crossed, of.pool)]
    found = {}
    for (rule, transform, rate), place in rules(positive=bool(np.all(of.pool >= 0))).items():
        for (fitted_on, size), pairs in samples.items():
            row = Row(rule, transform, rate, fitted_on, size)
            found[row] = _counted([(_placed(place, x), x, held_out) for x, held_out in pairs], of.anomalous, rate)
    return found


def _placed(place: Callable[[np.ndarray], Placed], normals: np.ndarray) -> Placed:
    try:
        return place(normals)
    except AnomnormError:  # fewer than two scores have a logarithm
        return NOWHERE


def _counted(samples: list[tuple[Placed, np.ndarray, np.ndarray]], anomalous: np.ndarray, rate: float) -> Alarms:
    observed, found, exceeding, exceeding_all = [], [], [], []
    for placed, normals, held_out in samples:
        known = not math.isnan(placed.threshold)
        observed.append(np.mean(held_out >= placed.threshold) if known else math.nan)
        found.append(np.mean(anomalous >= placed.threshold) if known else math.nan)
        above = int(np.sum(normals >= placed.threshold))
        ranked = placed.guaranteed and rate in CONFIDENT_RATES
        law = above + 1, normals.size - above
        exceeding.append(betabinom.sf(math.floor(rate * held_out.size), held_out.size, *law) if ranked else math.nan)
        exceeding_all.append(beta.sf(rate, *law) if ranked else math.nan)
    places = [placed for placed, *_ in samples]
    return Alarms(
        np.asarray(observed),
        np.asarray(found),
        np.asarray(exceeding),
        np.asarray(exceeding_all),
        promised=np.asarray([placed.promised for placed in places]),
        guaranteed=all(placed.guaranteed for placed in places),
    )
