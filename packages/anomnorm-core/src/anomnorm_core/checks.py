"""Host-side checks of a fit, on plain integers: shared by all packages so that the same fault has the same words.

They run once per stage, never per batch, so reading the counts off a device is affordable there.
"""

import warnings
from collections.abc import Mapping

from anomnorm_core.errors import (
    InsufficientDataError,
    InvalidScoreError,
    InvalidScoreWarning,
    NotFittedError,
    ResolutionError,
)
from anomnorm_core.policy import OnInvalid


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
            "(trainer.fit, trainer.validate, or the hook's on_validation_* methods), load a checkpoint that holds "
            "them, or call update()."
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
    warnings.warn(
        f"{message}; they were left out of the statistics. If there are many, look at the detector's raw scores.",
        InvalidScoreWarning,
        stacklevel=2,
    )


def require_resolution(found: tuple[int, ...], *statistics: tuple[int, ...]) -> None:
    """Raise `ResolutionError` unless maps of shape ``found`` end in the (H, W) of the ``statistics`` (clause S8).

    Without this check a fitted map of one row or column would silently broadcast.
    """
    for fitted in statistics:
        if len(fitted) >= 2 and tuple(found[-2:]) != tuple(fitted[-2:]):
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


def require_mask(found: tuple[int, ...], samples: int) -> None:
    """Raise unless a ``where`` of shape ``found`` has one entry for each of ``samples``."""
    if tuple(found) != (samples,):
        raise ValueError(f"where must have shape ({samples},), one entry for each sample, found {tuple(found)}.")
