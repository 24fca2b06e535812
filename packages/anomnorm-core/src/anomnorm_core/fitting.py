"""A normalizer of scores that are there already, in one place or on many machines (clauses S1, S2, L8, T1).

A record of each part, `record`; the records of all parts as one, `merge`; and what comes of it, `normalizer`::

    parts = [fitting.record(np.load(path), labels) for path, labels in files]
    normalizer = fitting.normalizer(functools.reduce(fitting.merge, parts), threshold="false_alarm_rate")

Parts may be merged in any order, as a tree for example.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from anomnorm_core.checks import label_axes
from anomnorm_core.errors import NotFittedError, OptionError
from anomnorm_core.fields import MAPS, SCORES
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.methods import METHODS
from anomnorm_core.normalizer import Normalizer, raw_values
from anomnorm_core.options import (
    OnInvalid,
    Rules,
    ThresholdRule,
    Units,
    parse_first_units,
    parse_threshold_option,
    require_rule,
)
from anomnorm_core.threshold.choice import ANOMALOUS, IGNORED, NORMAL, Gathered, choose, conclude, transform_of


@dataclass(frozen=True, eq=False)
class Record:
    """What a normalizer needs of some samples. Made by `record`, and put together by `merge`.

    Laws: ``merge`` is associative and commutative, exactly but for the moments of maps, which are so up to rounding;
    the record of a concatenation equals the merged records of its parts. 9 bytes for each float64 image score, which
    thresholds are found among, and under the CDF 32 for each pixel of one map.
    """

    method: str  #: its name
    scores: tuple[np.ndarray, ...] = ()  #: of each part (N,): raw image scores, float64 or float32
    labels: tuple[np.ndarray, ...] = ()  #: of each part (N,) uint8: NORMAL, ANOMALOUS or IGNORED
    pixel: Any = None  #: the method's record of the maps, with sigmas of the normal ones; None: there are none


def record(
    pred_scores: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    anomaly_maps: ArrayLike | None = None,
    *,
    method: str = "cdf",
) -> Record:
    """The record of some samples, of one file for example.

    Args:
        pred_scores: raw image scores of shape (B,) or (B, 1), larger where more anomalous; without them, the maximum of
            each map's pixels that are not NaN.
        labels: of shape (B,): 0 for normal samples, above 0 for anomalous ones; samples with one below 0, or NaN, are
            ignored. None: all are normal.
        anomaly_maps: raw maps of shape (B, H, W), (B, 1, H, W) or (B, H, W, 1).
        method: ``"cdf"``, the log-normal CDF; ``"normal"``, the same without the logarithm; ``"min-max"``,
            ``"two-slope"`` or that of a registered one.

    Raises:
        OutputError: neither scores nor maps are given, or their shapes are wrong.
        OptionError: the method is unknown.
        ValueError: the labels do not belong to the scores.
        TypeError: the labels are words.
    """
    kernels = METHODS[method]
    values = raw_values(pred_scores, anomaly_maps)
    scores = values[SCORES].reshape(-1)
    scores = scores if scores.dtype in (np.float32, np.float64) else scores.astype(np.float64)
    kinds = _kinds(labels, scores.shape)
    pixel = None
    if MAPS in values:
        maps = values[MAPS]
        where = kinds == NORMAL if kernels.method.sigmas else None
        pixel = kernels.update(kernels.init(maps.shape[-2:]), maps, where=where)
    return Record(method, (scores,), (kinds,), pixel)


def merge(a: Record, b: Record) -> Record:
    """The record of the samples of both.

    Raises:
        OptionError: the records are for different methods.
        ResolutionError: the maps have another height or width (clause S8).
    """
    if a.method != b.method:
        raise OptionError(f"records for the methods {a.method!r} and {b.method!r} cannot be merged; use one method.")
    pixel = a.pixel if b.pixel is None else b.pixel
    if a.pixel is not None and b.pixel is not None:
        pixel = METHODS[a.method].merge(a.pixel, b.pixel)
    return Record(a.method, a.scores + b.scores, a.labels + b.labels, pixel)


def normalizer(
    record: Record,
    *,
    threshold: SupportsFloat | str | None = None,
    pixel_threshold: SupportsFloat | str | None = None,
    normal_quantile: float = 1.0,
    false_alarm_rate: float = 0.01,
    confidence: float | None = None,
    units: Units | str | None = None,
    options: Mapping[str, Any] | None = None,
    on_invalid: OnInvalid | str = OnInvalid.WARN,
) -> Normalizer:
    """The normalizer of all samples of a record: what a callback or hook makes of a validation run.

    A method with sigmas is fitted on the normal samples, any other one on all. What is fitted of the image scores, and
    their threshold, depend on the scores alone, not on how they came in parts: they are sorted first. A threshold in
    sigmas is worth as much as the scores are distributed as the method supposes; a warning says where they are not
    (`check` says it under other thresholds).

    Args:
        record: of `record` and `merge`.
        threshold: of the image scores: a number, in ``units``; or how it is found among the samples. ``"adaptive"``
            (or None): the one of the best F1. ``"normal_quantile"``: just above the normal samples.
            ``"false_alarm_rate"``: where a given share of new ones is expected to reach it. See `threshold.adaptive`,
            `threshold.normal_quantile` and `threshold.false_alarm_rate`.
        pixel_threshold: of the maps: a number, in the same units; ``"image"`` (or None) takes that of the images. To
            find one among pixels, count them in a second pass with `threshold.update`, and give the normalizer what
            `threshold.streamed_adaptive` or its twins say, by `Normalizer.with_threshold`.
        normal_quantile: which share of the normal samples must not be flagged, under ``"normal_quantile"`` and where
            ``"adaptive"`` finds no anomaly.
        false_alarm_rate, confidence: of ``"false_alarm_rate"``: which share of new normal samples may be flagged, and
            in which share of samples that shall hold; None: it holds on average.
        units: of thresholds that are numbers: ``"raw"`` or, where the method has them, ``"sigmas"``, which are the
            default then.
        options: of the method, by name.
        on_invalid: ``"warn"``: scores that cannot enter the statistics are left out, and a warning counts them;
            ``"raise"``: they are an error.

    Raises:
        NotFittedError, InsufficientDataError: there are too few valid values, or none to place a threshold by.
        InvalidScoreError: too much was left out (clause S6), or anything under ``on_invalid="raise"``.
        OptionError: an option has a value that is not allowed.
    """
    kernels, rules = METHODS[record.method], Rules(normal_quantile, false_alarm_rate, confidence)
    scale = parse_first_units(units) or kernels.method.units
    given = {
        "image": parse_threshold_option(threshold, "threshold"),
        "pixel": parse_threshold_option("image" if pixel_threshold is None else pixel_threshold, "pixel_threshold"),
    }
    require_rule(rules, *given.values())
    if isinstance(given["pixel"], ThresholdRule) and given["pixel"] is not ThresholdRule.IMAGE:
        raise OptionError(
            f'pixel_threshold="{given["pixel"]}": a record holds no single pixels to find a threshold among. Give a '
            'number or "image" here, find it in a second pass with threshold.update and threshold.streamed_adaptive '
            "(or its twins), and give it to with_threshold(pixel_threshold=...)."
        )
    scores, labels = (np.concatenate(parts) if parts else np.zeros(0) for parts in (record.scores, record.labels))
    fitted = scores[labels == NORMAL] if kernels.method.sigmas else scores
    if labels.size and not fitted.size:
        raise NotFittedError(
            f"of {labels.size} samples none is normal: each is labelled anomalous (above 0) or ignored (below 0, or "
            "NaN). Label normal samples 0; where all are normal, give no labels."
        )
    image = kernels.update(kernels.init(()), np.sort(fitted))  # moments that do not depend on the order of the parts
    parsed = kernels.method.parse_options(options or {})
    if parsed.get("shared_range") and record.pixel is not None:
        image = record.pixel
    fit = Normalizer.fitted(record.method, image, record.pixel, options=parsed, on_invalid=on_invalid)
    choices = {level: choice._replace(units=scale) for level, choice in choose(given, fit).items()}
    fit = conclude(fit, choices, rules, Gathered(scores, labels), where="the labels", unseen=False)
    found = Normalizer.from_fit(fit)
    if not fit.report_rate() and fit.threshold("image").fixed is Units.SIGMAS:
        check(record, found).report(transform_of(fit.method))
    return found


def check(record: Record, normalizer: Normalizer) -> FitCheck:
    """Whether the normal samples of a record are distributed as a method with sigmas supposes (clause S9)."""
    normals = [scores[labels == NORMAL] for scores, labels in zip(record.scores, record.labels, strict=True)]
    return FitCheck.of_scores(normalizer.to_fit(), np.sort(np.concatenate(normals)), unseen=False)


def _kinds(labels: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """NORMAL, ANOMALOUS or IGNORED for each sample."""
    marks = np.zeros(shape) if labels is None else np.asarray(labels)
    marks = marks.reshape(label_axes(marks.shape, shape))
    try:
        kinds = np.where(marks > 0, ANOMALOUS, np.where(marks == 0, NORMAL, IGNORED))
    except TypeError:
        raise TypeError(
            f"labels must be numbers or booleans, found dtype {marks.dtype}. Words become such by a comparison, "
            "labels != 'good' for example."
        ) from None
    return kinds.astype(np.uint8)
