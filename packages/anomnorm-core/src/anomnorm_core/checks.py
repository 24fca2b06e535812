"""Host-side checks of a fit, on plain integers: shared by all packages so that the same fault has the same words.

They run once per stage, never per batch, so reading the counts off a device is affordable there.
"""

from collections.abc import Mapping

from anomnorm_core.errors import (
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    ResolutionError,
    ThresholdWarning,
    warn,
)
from anomnorm_core.options import OnInvalid


def require_count(level: str, count: int, invalid: int, *, minimum: int) -> None:
    """Raise unless ``count`` valid values were seen at ``level`` (clauses N8, S6, S7).

    Args:
        level: ``"image"`` or ``"pixel"``, for the message.
        count: valid values seen; for a per-pixel statistic, by the best-served pixel.
        invalid: values left out.
        minimum: valid values needed: 1 for a range, 2 for a standard deviation.

    Raises:
        NotFittedError: no value was seen, or all of them were invalid.
        InsufficientDataError: some were seen, but fewer than ``minimum``.
    """
    if count >= minimum:
        return
    if count == 0 and invalid == 0:
        raise NotFittedError(
            f"the {level}-level statistics have seen no value. Fit them before normalizing: run a validation epoch "
            "with batches in it (trainer.fit, trainer.validate, or the hook's on_validation_* methods), load a "
            "checkpoint that holds them, or call update()."
        )
    if count == 0:
        raise NotFittedError(
            f"all {invalid} {level}-level values were invalid (NaN or infinite, or not positive where a logarithm "
            "is taken), so there is nothing to fit. Check the detector's raw scores; for negative ones use min-max, "
            "or a transformation that makes them positive."
        )
    raise InsufficientDataError(
        f"the {level}-level statistics have seen {count} valid value and need at least {minimum}: the standard "
        "deviation of a single value is undefined. Fit on more normal samples."
    )


def unfitted_level(level: str) -> NotFittedError:
    """The error for values of a level of which a normalizer has no statistics."""
    return NotFittedError(
        f"the {level}-level statistics have seen no value: this normalizer was fitted without them. Fit with outputs "
        f"that hold {'anomaly maps' if level == 'pixel' else 'scores'} too, or leave them out here."
    )


def report_invalid(counts: Mapping[str, tuple[int, int]], on_invalid: OnInvalid) -> None:
    """Warn about, or refuse, values that were left out of the statistics (clause S6).

    Args:
        counts: for each level, how many values were valid and how many were left out.
        on_invalid: ``WARN`` gives one `InvalidScoreWarning` for all levels together.

    Raises:
        InvalidScoreError: something was left out and ``on_invalid`` is ``RAISE``.
    """
    found = [
        f"{invalid} of {valid + invalid} {level}-level values" for level, (valid, invalid) in counts.items() if invalid
    ]
    if not found:
        return
    message = f"{' and '.join(found)} are NaN or infinite, or not positive where a logarithm is taken"
    if on_invalid is OnInvalid.RAISE:
        raise InvalidScoreError(f'{message}. They cannot enter the statistics and on_invalid="raise" refuses them.')
    warn(
        f"{message}; they were left out of the statistics. If there are many, look at the detector's raw scores.",
        InvalidScoreWarning,
    )


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

    A channel axis of one is dropped, and a lone image score is a batch of one.

    Raises:
        ResolutionError: the scores are no such batch.
    """
    if found and found[1:] in (sample, (1, *sample)):
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


def report_unknown_pixels() -> None:
    """Warn where no pixel has a known ground truth, so that the pixel threshold follows that of the images."""
    warn(
        "nothing is known about any pixel of this validation run: all images are anomalous and none has a mask. The "
        "pixel threshold follows that of the images. Return masks or normal images, or say so with "
        'pixel_threshold="image".',
        ThresholdWarning,
    )


def require_normal_samples(normal: int, invalid: int) -> None:
    """Raise `NotFittedError` unless there is a normal score to place a threshold above (clause T3)."""
    if normal == 0:
        raise NotFittedError(
            f"a normal-only threshold needs normal scores, and there are none ({invalid} NaN). Give the scores of "
            "normal samples; labels are 0 for normal and anything else for anomalous."
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

    A channel axis of one may be there in either and missing in the other.

    Raises:
        ValueError: the labels are of neither kind.
    """
    if found == scores:
        return found
    if scores and found == scores[:1]:
        return (*found, *[1] * (len(scores) - 1))
    if len(scores) >= 3 and 1 in (scores[1], *found[1:2]):
        without = [shape[:1] + shape[2:] if len(shape) == 4 and shape[1] == 1 else shape for shape in (found, scores)]
        if without[0] == without[1]:
            return scores
    raise ValueError(
        f"labels of shape {found} do not belong to scores of shape {scores}; give one for each value, or one for each "
        "sample."
    )
