"""Which number is the threshold of a level, where several may be given (clauses T1, T6): for all packages."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, SupportsFloat

import numpy as np

from anomnorm_core.checks import report_ignored, report_unknown_pixels, report_unlabelled, require_labelled
from anomnorm_core.fit import Fit
from anomnorm_core.options import LEVELS, Origin, ThresholdRule, Units
from anomnorm_core.threshold.histogram import ScoreHistogram
from anomnorm_core.threshold.search import adaptive, normal_quantile, streamed_adaptive, streamed_normal_quantile

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
        return self.origin in (Origin.ADAPTIVE, Origin.NORMAL_QUANTILE)


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


def place(fit: Fit, choices: Mapping[str, Choice], found: Mapping[str, float] | None = None) -> Fit:
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
            value, units = found[level], fit.method.units if level == "pixel" else Units.RAW
            rounded = units is Units.SIGMAS and choice.origin is Origin.ADAPTIVE
            above = units is Units.SIGMAS and not rounded
            if above:
                # No normal at or below the quantile may be flagged, however its z-score was rounded (clause T3).
                value += abs(value) * 2.0**-20 + 2.0**-18
            fit = fit.placed(level, value, units, choice.origin, found=rounded, above=above)
    if choices["pixel"].origin is Origin.IMAGE or (
        found is not None and choices["pixel"].is_searched and "pixel" not in found
    ):
        return fit.following()
    return fit


class Gathered(NamedTuple):
    """What a validation run has gathered of scores and their ground truth, on the host."""

    scores: np.ndarray  # (N,) raw image scores
    labels: np.ndarray  # (N,) NORMAL, ANOMALOUS, UNLABELLED or IGNORED
    pixels: ScoreHistogram | None  # of the pixels whose ground truth is known, in the method's units


def search(
    gathered: Gathered, choices: Mapping[str, Choice], quantile: float, *, positive: bool, where: str
) -> dict[str, float]:
    """The thresholds that nobody gave: of the images in raw units, of the pixels in the method's.

    Args:
        gathered: from the whole run.
        choices: by level; others than those that `Choice.is_searched` are left out.
        quantile: share of the normals that is not flagged, where those alone decide.
        positive: whether a score that is not positive cannot be flagged.
        where: in which outputs labels were looked for, for a warning.

    Raises:
        NotFittedError: there is no valid score to go by.
    """
    found: dict[str, float] = {}
    taken = gathered.labels != IGNORED
    scores, labels = gathered.scores[taken], gathered.labels[taken]
    anomalous = labels == ANOMALOUS
    image, pixel = (choices[level].origin for level in LEVELS)
    if choices["image"].is_searched:
        require_labelled(gathered.labels.size, gathered.labels.size - labels.size)
        values = np.where(scores <= 0, -np.inf, scores).astype(scores.dtype) if positive else scores
        if image is Origin.ADAPTIVE:
            if not np.any(labels == NORMAL):
                report_ignored(gathered.labels.size - labels.size)
            report_unlabelled(int((labels == UNLABELLED).sum()), scores.size, where)
            threshold = adaptive(values, anomalous, normal_quantile=quantile)
        else:
            threshold = normal_quantile(values, quantile, labels=anomalous)
        # Just above a score without a logarithm there is none either.
        found["image"] = max(float(threshold), float(np.finfo(np.float32).tiny)) if positive else float(threshold)
    record = gathered.pixels
    if choices["pixel"].is_searched and record is not None:
        if not any(np.any(counts) for counts in record):
            report_unknown_pixels()
        elif pixel is Origin.NORMAL_QUANTILE:
            found["pixel"] = float(streamed_normal_quantile(record, quantile))
        else:
            found["pixel"] = float(streamed_adaptive(record, normal_quantile=quantile))
    return found
