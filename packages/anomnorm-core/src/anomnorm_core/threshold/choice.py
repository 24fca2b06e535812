"""Which number is the threshold of a level, where several may be given (clauses T1, T6, T7): for all packages."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, SupportsFloat

import numpy as np

from anomnorm_core.checks import (
    report_bounded_scores,
    report_fitted_pixels,
    report_ignored,
    report_inverted,
    report_unknown_pixels,
    report_unlabelled,
    require_labelled,
)
from anomnorm_core.fit import Fit
from anomnorm_core.method import Method
from anomnorm_core.options import LEVELS, Origin, Rules, ThresholdRule, Transform, Units
from anomnorm_core.threshold.false_alarms import normals_of
from anomnorm_core.threshold.histogram import ScoreHistogram
from anomnorm_core.threshold.search import (
    Found,
    adaptive,
    false_alarm_rate,
    normal_quantile,
    streamed_adaptive,
    streamed_false_alarm_rate,
    streamed_normal_quantile,
)

NORMAL, ANOMALOUS, UNLABELLED, IGNORED = 0, 1, 2, 3
Option = float | ThresholdRule | None


class Choice(NamedTuple):
    """Where the threshold of a level comes from: a number, or a rule by which a validation run finds one."""

    origin: Origin
    value: float | np.ndarray | None = None
    units: Units | None = None  # None: the method's own

    @property
    def is_searched(self) -> bool:
        """Whether it has to be found in a validation run."""
        return self.origin in (Origin.ADAPTIVE, Origin.NORMAL_QUANTILE, Origin.FALSE_ALARM_RATE)


def choose(
    options: Mapping[str, Option], fit: Fit, own: Callable[[str], SupportsFloat | None] = lambda _: None
) -> dict[str, Choice]:
    """The owner of each level's threshold: *manual, else the option, else the module's own, else the default rule*.

    Args:
        options: by level, what a callback or hook was given.
        fit: with the manual thresholds, if there are any.
        own: the module's own threshold of a level, in the method's units.
    """
    return {level: _choice(level, options, fit, own) for level in LEVELS}


def _choice(level: str, options: Mapping[str, Option], fit: Fit, own: Callable[[str], SupportsFloat | None]) -> Choice:
    fitted = fit.image if level == "image" else fit.pixel
    present = None if fitted is None else fitted.threshold
    if present is not None and present.origin is Origin.MANUAL:
        return Choice(Origin.MANUAL, present.value, present.fixed)
    option = options[level]
    if option is None and level == "pixel":
        # Without one of its own, the pixel level does as the image level does.
        option = ThresholdRule.IMAGE if isinstance(options["image"], float) else options["image"]
    if isinstance(option, float):
        return Choice(Origin.OPTION, option)
    if option is not None:
        return Choice(Origin(option))
    value = own(level)
    return Choice(Origin.ADAPTIVE) if value is None else Choice(Origin.MODULE, float(value))


def place(fit: Fit, choices: Mapping[str, Choice], found: Mapping[str, Found] | None = None) -> Fit:
    """``fit`` with its thresholds where ``choices`` have them.

    Args:
        fit: with parameters.
        choices: by level.
        found: by level, what a validation run has found: raw scores, or pixels in the method's units. None: no run has
            ended, and what is there stays.
    """
    for level in LEVELS:
        choice, present = choices[level], fit.image if level == "image" else fit.pixel
        if present is None or choice.origin is Origin.IMAGE:
            continue
        if choice.value is not None:
            rounded = choice.origin is Origin.MODULE and fit.method.sigmas
            fit = fit.placed(level, choice.value, choice.units, choice.origin, found=rounded)
        elif found is not None and level in found:
            value, units = float(found[level].threshold), fit.method.units if level == "pixel" else Units.RAW
            rounded = units is Units.SIGMAS and choice.origin is Origin.ADAPTIVE
            above = units is Units.SIGMAS and not rounded
            if above:
                # No normal at or below the quantile may be flagged, however its z-score was rounded (clause T3).
                value += abs(value) * 2.0**-20 + 2.0**-18
            _, rate, sure = found[level]
            fit = fit.placed(level, value, units, choice.origin, found=rounded, above=above, rate=rate, guaranteed=sure)
    if choices["pixel"].origin is Origin.IMAGE or (
        found is not None and choices["pixel"].is_searched and "pixel" not in found
    ):
        return fit.following()
    return fit


class Gathered(NamedTuple):
    """What a validation run has gathered of scores and their ground truth, on the host."""

    scores: np.ndarray  # (N,) raw image scores
    labels: np.ndarray  # (N,) NORMAL, ANOMALOUS, UNLABELLED or IGNORED
    pixels: ScoreHistogram | None = None  # of the pixels whose ground truth is known, in the method's units
    images: int = 0  # how many images those are of
    maxima: np.ndarray | None = None  # (N,) largest pixel of each map, in the method's units; NaN where there is none


def labels_of(marks: np.ndarray) -> np.ndarray | None:
    """What a run has noted of its samples, as the labels that functions take.

    Args:
        marks: (N,) NORMAL, ANOMALOUS, UNLABELLED or IGNORED.

    Returns:
        (N,): 0 for normal, and for what has no label as it counts as normal; 1 for anomalous; -1 for what is ignored.
        None where no sample has a label.
    """
    if np.all(marks == UNLABELLED):
        return None
    return np.select([marks == ANOMALOUS, marks == IGNORED], [1, -1], 0)


def conclude(
    fit: Fit,
    choices: Mapping[str, Choice],
    rules: Rules,
    gathered: Gathered | None,
    *,
    where: str,
    unseen: bool = True,
) -> Fit:
    """The fit of a validation run with its thresholds, and with what the run says about normal samples.

    Args:
        fit: with parameters.
        choices: by level; thresholds that `Choice.is_searched` are looked for.
        rules: the numbers of the rules.
        gathered: from the whole run; None where it has kept nothing, because nothing is searched.
        where: in which outputs labels were looked for, for a warning.
        unseen: whether the run's normal samples are others than those that were fitted.

    Raises:
        NotFittedError: there is no valid score to go by.
    """
    if gathered is None:
        return place(fit, choices, {})
    _report_inverted(gathered)
    found = search(gathered, choices, rules, method=fit.method, where=where)
    if not unseen and fit.method.per_pixel and "pixel" in found and found["pixel"].guaranteed:
        # Each pixel's own parameters are of these images, whose z-scores new ones do not exchange with.
        found["pixel"] = found["pixel"]._replace(guaranteed=False)
        if choices["pixel"].origin is Origin.FALSE_ALARM_RATE:
            report_fitted_pixels()
    if not fit.method.sigmas and fit.image is not None:
        normals = normals_of(gathered.scores[gathered.labels == NORMAL], None)
        fit = replace(fit, image=replace(fit.image, normals=normals if normals.valued > 1 else None))
    placed = place(fit, choices, found)
    if fit.method.sigmas:
        _report_bounded(placed, gathered)
    return placed


def _report_inverted(gathered: Gathered) -> None:
    """Warn where the ranks of anomalous samples are lower than chance allows (the test of Mann and Whitney)."""
    valid = ~np.isnan(gathered.scores)
    normal, positive = (np.sort(gathered.scores[valid & (gathered.labels == kind)]) for kind in (NORMAL, ANOMALOUS))
    n, m = positive.size, normal.size
    if not n or not m:
        return
    # Of each anomalous sample, how many normal ones are below it; those with the same score count half.
    below, not_above = (np.searchsorted(normal, positive, side) for side in ("left", "right"))
    auroc = (int(below.sum()) + int(not_above.sum())) / (2 * n * m)
    if auroc < _INVERTED and (0.5 - auroc) / np.sqrt((n + m + 1) / (12 * n * m)) > _SIGMAS:
        report_inverted(auroc)


_SIGMAS = 4.0  # one side: a chance of 3 in 100,000
_INVERTED = 0.2  # a detector that has not learned yet may be somewhat below 1/2
_SURPRISING = 1e-3  # a probability
_SCALE = 0.25  # a share


def _report_bounded(fit: Fit, gathered: Gathered) -> None:
    """Warn where no score of the run reaches the threshold, and the scores seem to end below it."""
    threshold = fit.image.threshold if fit.image is not None else None
    scores = gathered.scores[np.isfinite(gathered.scores)]
    normals = int(np.sum(gathered.labels == NORMAL))
    if threshold is None or not normals or not scores.size or scores.max() >= threshold.raw:
        return
    if threshold.origin not in (Origin.MANUAL, Origin.OPTION, Origin.MODULE):  # it was found among the scores
        return
    beyond = float(fit.false_alarm_rate(scores.max()))
    # Where many should lie beyond, the fit is of another scale, which the fit check says (clause S9).
    if beyond < _SCALE and (1 - beyond) ** normals < _SURPRISING:
        report_bounded_scores(float(scores.max()), float(threshold.raw), beyond * normals, normals)


def search(
    gathered: Gathered, choices: Mapping[str, Choice], rules: Rules, *, method: Method, where: str
) -> dict[str, Found]:
    """The thresholds that nobody gave: of the images in raw units, of the pixels in the method's. See `conclude`."""
    found: dict[str, Found] = {}
    if choices["image"].is_searched:
        found["image"] = _image_threshold(method, gathered, choices["image"].origin, rules, where)
    if choices["pixel"].is_searched and gathered.pixels is not None:
        pixel = _pixel_threshold(method, gathered, choices["pixel"].origin, rules)
        found |= {} if pixel is None else {"pixel": pixel}
    return found


def transform_of(method: Method) -> Transform | None:
    """What a prediction from normal scores takes as normally distributed; None: what suits the scores."""
    return Transform.LOG if method.positive else Transform.IDENTITY if method.sigmas else None


def _image_threshold(method: Method, gathered: Gathered, rule: Origin, rules: Rules, where: str) -> Found:
    taken = gathered.labels != IGNORED
    scores, labels = gathered.scores[taken], gathered.labels[taken]
    anomalous, ignored = labels == ANOMALOUS, gathered.labels.size - labels.size
    require_labelled(gathered.labels.size, ignored)
    values = np.where(scores <= 0, -np.inf, scores).astype(scores.dtype) if method.positive else scores
    if rule is Origin.ADAPTIVE:
        if not np.any(labels == NORMAL):
            report_ignored(ignored)
        report_unlabelled(int((labels == UNLABELLED).sum()), scores.size, where)
        found = Found(adaptive(values, anomalous, normal_quantile=rules.normal_quantile))
    elif rule is Origin.NORMAL_QUANTILE:
        found = normal_quantile(values, rules.normal_quantile, labels=anomalous)
    else:
        rate, transform = rules.false_alarm_rate, transform_of(method)
        found = false_alarm_rate(values, rate, labels=anomalous, confidence=rules.confidence, transform=transform)
    # Just above a score without a logarithm there is none either.
    least = np.finfo(np.float32).tiny if method.positive else -np.inf
    return found._replace(threshold=np.maximum(found.threshold, least))


def _pixel_threshold(method: Method, gathered: Gathered, rule: Origin, rules: Rules) -> Found | None:
    record, quantile, rate = gathered.pixels, rules.normal_quantile, rules.false_alarm_rate
    if record is None or not any(np.any(counts) for counts in record):
        report_unknown_pixels(normals_alone=rule is Origin.FALSE_ALARM_RATE)
        return None
    if rule is Origin.NORMAL_QUANTILE:
        return streamed_normal_quantile(record, quantile)
    if rule is Origin.ADAPTIVE:
        return Found(streamed_adaptive(record, normal_quantile=quantile))
    # In the method's units: logarithms were taken, where they are.
    transform = Transform.IDENTITY if method.sigmas else None
    if gathered.maxima is None:
        return streamed_false_alarm_rate(record, rate, gathered.images, transform=transform)
    normal = (gathered.labels == NORMAL) | (gathered.labels == UNLABELLED)
    maxima = gathered.maxima[normal & ~np.isnan(gathered.maxima)]
    return false_alarm_rate(maxima, rate, confidence=rules.confidence, transform=transform)
