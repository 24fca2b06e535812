"""Host-side checks of a fit, on plain integers: shared by all packages so that the same fault has the same words.

They run once per stage, never per batch, so reading the counts off a device is affordable there.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from anomnorm_core.errors import (
    FitWarning,
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    ResolutionError,
    ThresholdWarning,
    warn,
)
from anomnorm_core.method import Method
from anomnorm_core.options import OnInvalid, Source

CAUSES = ("negative", "nan", "infinite")  # why a record's ``invalid`` values were left out, in its order

_LARGEST_SHARE = 1 / 3  # of values that a fit can lose and still describe the detector (clause S6)


class Counts(NamedTuple):
    """How many values of a level entered its statistics, and how many were left out for which reason."""

    valid: int
    zeros: int = 0  # where zeros cannot be fitted
    negative: int = 0  # likewise
    nan: int = 0
    infinite: int = 0

    @property
    def left_out(self) -> int:
        """All that could not be fitted."""
        return self.zeros + self.negative + self.nan + self.infinite

    def described(self) -> str:
        """The causes in words: ``"60 are zero and 33 negative"``."""
        words = ("zero", "negative", "NaN", "infinite")
        (count, word), *others = [each for each in zip(self[1:], words, strict=True) if each[0]]
        *parts, last = f"{count} {'is' if count == 1 else 'are'} {word}", *(f"{more} {what}" for more, what in others)
        return f"{', '.join(parts)} and {last}" if parts else last


def counts_of(record: Any) -> Counts:
    """The counts of a record whose fields are arrays or tensors. It waits for their device."""
    xp, zeros = array_namespace(record.count), getattr(record, "zeros", None)
    causes = (int(record.invalid[index]) for index in range(len(CAUSES)))
    return Counts(int(xp.sum(record.count)), 0 if zeros is None else int(xp.sum(zeros)), *causes)


def share_of_zeros(count: Any, zeros: Any) -> Any:
    """The share of exact zeros among values of which ``count`` could be fitted, as NumPy arrays (clause S10)."""
    return zeros / np.maximum(count + zeros, 1)


def require_count(level: str, counts: Counts, *, minimum: int, most: int | None = None) -> None:
    """Raise unless enough valid values were seen at ``level`` (clauses N8, S6, S7).

    Args:
        level: ``"image"`` or ``"pixel"``, for the message.
        counts: of all pixels together.
        minimum: valid values needed: 1 for a range, 2 for a standard deviation.
        most: valid values of the best-served pixel, where each has statistics of its own; None: ``counts.valid``.

    Raises:
        NotFittedError: no value was seen, or all of them were invalid.
        InsufficientDataError: some were seen, but fewer than ``minimum``.
    """
    seen = counts.valid if most is None else most
    if seen >= minimum:
        return
    if seen == 0 and counts.left_out == 0:
        raise NotFittedError(
            f"the {level}-level statistics have seen no value. Fit them before normalizing: run a validation "
            "whose steps return scores, load a checkpoint or file that holds them, or call update()."
        )
    if seen == 0:
        raise NotFittedError(
            f"none of {counts.left_out} {level}-level values can be fitted: {counts.described()}. {_remedy(counts)}"
        )
    raise InsufficientDataError(
        f"the {level}-level statistics have seen {seen} valid value and need at least {minimum}: the standard "
        "deviation of a single value is undefined. Fit on more normal samples."
    )


def _remedy(counts: Counts, *, unseen: bool = False) -> str:
    """What to do about values that cannot be fitted, by their cause, largest first.

    Args:
        counts: of one level.
        unseen: whether they are of data that the detector was not trained on already.
    """
    remedies = {
        "zeros": (
            "A detector that compares samples with its training data gives exact zeros for those: "
            + ("" if unseen else 'fit on normals that it has not seen, with source="validation", or ')
            + 'find the threshold with "false_alarm_rate", which counts zeros, or use a method without a logarithm, '
            "min-max for example."
        ),
        "negative": (
            "Scores of any sign (log-likelihoods, decision functions) have no logarithm: give the CDF "
            'transform="identity", which is method "normal", use min-max normalization, or let the step return scores '
            "above zero, exp(score) for example."
        ),
        "nan": "Look for a division by zero, an empty crop or a diverged model behind the NaN.",
        "infinite": "Look for an overflow or a division by zero behind the infinities, in half precision for example.",
    }
    ranked = sorted(remedies, key=lambda cause: -getattr(counts, cause))
    return " ".join(remedies[cause] for cause in ranked if getattr(counts, cause))


def unfitted_level(level: str) -> NotFittedError:
    """The error for values of a level of which a normalizer has no statistics."""
    return NotFittedError(
        f"the {level}-level statistics have seen no value: this normalizer was fitted without them. Fit with outputs "
        f"that hold {'anomaly maps' if level == 'pixel' else 'scores'} too, or leave them out here."
    )


def report_invalid(
    counts: Mapping[str, Counts],
    on_invalid: OnInvalid | None,
    *,
    method: Method,
    source: Source | None = None,
) -> bool:
    """Warn about, or refuse, values that were left out of the statistics (clause S6).

    Args:
        counts: of each level.
        on_invalid: ``WARN`` gives one `InvalidScoreWarning` for all levels together; None says nothing, but refuses
            what is no fit.
        method: of the statistics.
        source: where its normal data come from, if it is fitted on such.

    Returns:
        Whether anything was left out.

    Raises:
        InvalidScoreError: something was left out and ``on_invalid`` is ``RAISE``, or a level has lost more than a third
            of its values to anything but exact zeros. NaN in a map is a pixel that is not defined, and does not count
            there.
    """
    found = {level: each for level, each in counts.items() if each.left_out}
    unseen = source is not Source.TRAIN
    for level, each in found.items():
        lost = each.negative + each.infinite + (each.nan if level == "image" else 0)
        of = each.valid + each.zeros + lost
        if lost > _LARGEST_SHARE * of:
            raise InvalidScoreError(
                f"{lost} of {of} {level}-level values cannot be fitted ({each.described()}): what is left does not "
                f"describe the detector. {_remedy(each._replace(zeros=0), unseen=unseen)}"
            )
    if not found or on_invalid is None:
        return bool(found)
    listed = "; ".join(
        f"of {each.valid + each.left_out} {level}-level values {each.described()}" for level, each in found.items()
    )
    if on_invalid is OnInvalid.RAISE:
        raise InvalidScoreError(f'{listed}: they cannot be fitted, and on_invalid="raise" refuses them.')
    low = method.positive and any(each.zeros + each.negative for each in found.values())
    follows = (
        "scores at or below zero have no logarithm: all of them are normalized to 0 and never flagged, so that "
        "anomalies among them are missed and the order among them is lost"
        if low
        else "NaN is never flagged, +inf always"
    )
    everything = Counts(*map(sum, zip(*found.values(), strict=True)))
    warn(
        f"{listed}. They were left out of the statistics; {follows}. {_remedy(everything, unseen=unseen)}",
        InvalidScoreWarning,
    )
    return True


def report_undefined(count: int) -> None:
    """Warn of image scores of a test or prediction that are NaN (clause N6)."""
    if count:
        warn(
            f"{count} image scores of this run are NaN; they stay NaN and are not flagged. Look at the detector's raw "
            "scores.",
            InvalidScoreWarning,
        )


def require_resolution(found: tuple[int, ...], *statistics: tuple[int, ...]) -> None:
    """Raise `ResolutionError` unless maps of shape ``found`` end in the (H, W) of the ``statistics`` (clause S8).

    Without this check a fitted map of one row or column would silently broadcast.
    """
    for fitted in statistics:
        one_for_each_image = len(fitted) > 2 and tuple(fitted[-2:]) == (1, 1)
        if len(fitted) >= 2 and tuple(found[-2:]) != tuple(fitted[-2:]) and not one_for_each_image:
            raise ResolutionError(
                f"anomaly maps have shape {tuple(found)}, but the statistics were fitted on maps of (H, W) = "
                f"{tuple(fitted[-2:])}; resize the maps or fit again at the new resolution."
            )


def require_same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Raise `ResolutionError` unless two records that are merged have one shape (clause S8)."""
    if tuple(a) != tuple(b):
        raise ResolutionError(f"statistics of shapes {tuple(a)} and {tuple(b)} are of different maps; cannot merge.")


def batch_shape(found: tuple[int, ...], sample: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of scores of shape ``found`` as a batch of samples of shape ``sample`` (clause S8).

    A channel axis of one, first or last, is dropped, and a lone image score is a batch of one.

    Raises:
        ResolutionError: the scores are no such batch.
    """
    if found and found[1:] in (sample, (1, *sample), (*sample, 1)):
        return (found[0], *sample)
    if found == () == sample:
        return (1,)
    raise ResolutionError(
        f"the statistics were set up for samples of shape {sample or '()'}, found scores of shape {found}; give "
        f"{'(B, H, W) or (B, 1, H, W) maps of that height and width' if sample else 'image scores of shape (B,)'}."
    )


def require_mask(found: tuple[int, ...], samples: int, argument: str = "where") -> None:
    """Raise unless a mask of shape ``found`` has one entry for each of ``samples``."""
    if tuple(found) != (samples,):
        raise ValueError(f"{argument} must have shape ({samples},), one entry for each sample, found {tuple(found)}.")


def require_threshold_samples(normal: int, anomalous: int, invalid: int) -> None:
    """Raise unless there is something to place a threshold by, and warn where it is anomalies alone (clause T3).

    Raises:
        NotFittedError: there is no valid score.
    """
    if normal + anomalous == 0:
        found = f"all {invalid} scores are NaN" if invalid else "there are none"
        raise NotFittedError(
            f"a threshold needs scores to be placed by, and {found}. Give the scores of a validation run, or the "
            "threshold itself."
        )
    if normal == 0:
        warn(
            f"the threshold is the smallest of {anomalous} anomalous scores: there is no normal one to keep away from, "
            "so nothing is known about false alarms. Add normal samples to the validation data.",
            ThresholdWarning,
        )


def report_unlabelled(unlabelled: int, samples: int, where: str) -> None:
    """Warn of samples that count as normal for an adaptive threshold: nothing in ``where`` says what they are."""
    if unlabelled:
        warn(
            f"{unlabelled} of {samples} validation samples have no 'label' or 'gt_label' in {where}; they count as "
            "normal for the threshold. Return the labels, or say that there are only normal samples with "
            'threshold="normal_quantile".',
            ThresholdWarning,
        )


def require_labelled(samples: int, ignored: int) -> None:
    """Raise `NotFittedError` where all of the ``samples`` of a validation run are ``ignored``."""
    if samples and ignored == samples:
        raise NotFittedError(
            f"a threshold is found among labelled samples, and all {samples} of this validation run have a label below "
            "0, which means that they are ignored. Label normal samples 0 and anomalous ones 1, or give the threshold."
        )


def report_ignored(ignored: int) -> None:
    """Warn of samples that are ignored where no other is normal: their labels may be of another convention."""
    if ignored:
        warn(
            f"no sample is labelled 0, normal, and {ignored} are labelled below 0, which means that they are ignored. "
            "If the labels are scikit-learn's, -1 for anomalous and 1 for normal, return (label == -1) instead.",
            ThresholdWarning,
        )


def report_unknown_pixels(*, normals_alone: bool = False) -> None:
    """Warn where no pixel has a known ground truth, so that the pixel threshold follows that of the images.

    Under a false-alarm rate, only pixels of normal images are known (``normals_alone``).
    """
    if normals_alone:
        warn(
            "there is no map of a normal image in this validation run, so that nothing is known about false alarms of "
            "pixels. The pixel threshold follows that of the images. Add normal images to the validation data, or say "
            'so with pixel_threshold="image".',
            ThresholdWarning,
        )
        return
    warn(
        "nothing is known about any pixel of this validation run: all images are anomalous and none has a mask. The "
        "pixel threshold follows that of the images. Return masks or normal images, or say so with "
        'pixel_threshold="image".',
        ThresholdWarning,
    )


def report_bounded_scores(largest: float, threshold: float, expected: float, normals: int) -> None:
    """Warn of a threshold that no score can reach, because the scores have an upper bound."""
    warn(
        f"no score of this validation run reaches the image threshold {threshold:.6g}: the largest is {largest:.6g}, "
        f"above which the fit expects {expected:.0f} of the {normals} normal samples. The scores seem to have an upper "
        "bound, as probabilities do, so that nothing can ever be flagged. Find the threshold among the samples, with "
        'threshold="false_alarm_rate" or "adaptive", or let the step return logits or distances.',
        FitWarning,
    )


def report_inverted(auroc: float) -> None:
    """Warn of anomalous samples that have smaller scores than normal ones."""
    warn(
        f"the anomalous samples of this validation run have smaller scores than the normal ones (AUROC {auroc:.2g}). A "
        "larger score has to mean more anomalous: return the negative of a likelihood or of a similarity.",
        ThresholdWarning,
    )


def report_fitted_pixels() -> None:
    """Warn of a false-alarm rate of pixels whose statistics are of the same images (clause T7)."""
    warn(
        "the false-alarm rate of the pixels is not guaranteed: mean and deviation of each pixel are of the same images "
        "that the threshold was found on, which look more normal than new ones. Fit on other normal images, with "
        'source="train" or calibration_loader=..., or let the pixel threshold be "image".',
        ThresholdWarning,
    )


def report_few_normals(
    rate: float,
    confidence: float | None,
    normals: int,
    least: float,
    needed: int,
    *,
    of: str = "samples",
    predicted: bool = True,
) -> None:
    """Warn where there are too few normals for a false-alarm rate to be guaranteed (clause T7)."""
    sure = "" if confidence is None else f" with a confidence of {confidence:g}"
    how = (
        "predicted from their mean, deviation and skewness, but above all of them, and nothing guarantees it"
        if predicted
        else "just above all of them, as fewer than two have a value to predict it from"
    )
    warn(
        f"{normals} normal validation {of} cannot guarantee a false-alarm rate of {rate:g}{sure}: {least:.3g} is the "
        f"smallest that they can, and it takes {needed} of them. The threshold is {how}. Add normal samples to the "
        "validation data, or ask for a larger rate.",
        ThresholdWarning,
    )


def report_infinite_normals(rate: float, infinite: int, normals: int) -> None:
    """Warn where a false-alarm rate cannot be kept, because normals have the score +inf (clause T7)."""
    warn(
        f"{infinite} of {normals} normal validation scores are +inf, which every threshold flags: a false-alarm rate "
        f"of {rate:g} cannot be kept. Look for an overflow or a division by zero in the detector.",
        ThresholdWarning,
    )


def require_normal_samples(normal: int, invalid: int) -> None:
    """Raise `NotFittedError` unless there is a normal score to place a threshold above (clause T3)."""
    if normal == 0:
        raise NotFittedError(
            f"a normal-only threshold needs normal scores, and there are none ({invalid} NaN). Give the scores of "
            "normal samples: their label is 0."
        )


# A histogram places a threshold at the edge of one of its bins. Beyond this possible loss of F1 it says so.
_NOTABLE_LOSS = 0.01


def report_coarse_threshold(possible_loss: float) -> None:
    """Warn where a better threshold than the found one may lie inside a bin of the histogram (clause T5)."""
    if possible_loss > _NOTABLE_LOSS:
        warn(
            f"the scores lie so close together that another threshold between them could have an F1 up to "
            f"{possible_loss:.2g} higher: the histogram tells numbers apart that differ by 0.2 to 0.4 percent. "
            "Subtract what the scores have in common before normalizing them.",
            ThresholdWarning,
        )


def label_axes(found: tuple[int, ...], scores: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that lets labels of shape ``found`` broadcast against ``scores``: one per value, or one per sample.

    A channel axis of one, first or last, may be there in either and missing in the other.

    Raises:
        ValueError: the labels are of neither kind.
    """
    if found == scores:
        return found
    if scores and found == scores[:1]:
        return (*found, *[1] * (len(scores) - 1))
    if len(scores) >= 3 and without_channel(found) == without_channel(scores):
        return scores
    raise ValueError(
        f"labels of shape {found} do not belong to scores of shape {scores}; give one for each value, or one for each "
        "sample."
    )


def without_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of maps without a channel axis of one: (B, 1, H, W) and (B, H, W, 1) become (B, H, W)."""
    if len(shape) == 4 and shape[1] == 1:
        return shape[:1] + shape[2:]
    return shape[:3] if is_channels_last(shape) else shape


def is_channels_last(shape: tuple[int, ...]) -> bool:
    """Whether maps of this shape are (B, H, W, 1): their channel axis is the last one."""
    return len(shape) == 4 and shape[3] == 1 and shape[1] != 1
