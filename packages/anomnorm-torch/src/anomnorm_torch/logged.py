"""The numbers that a validation run logs."""

import math

from anomnorm_core.fit import Fit
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.options import LEVELS, Origin


def logged(fit: Fit, check: FitCheck | None) -> dict[str, float]:
    """Thresholds, parameters, what was left out, and the fit check, as far as they are single numbers.

    Without thresholds that the module computes itself: it may do so after this, and can log them.
    """
    found: dict[str, float] = {}
    thresholds = fit.thresholds
    for level in LEVELS:
        fitted = fit.image if level == "image" else fit.pixel
        if fitted is None:
            continue
        threshold = thresholds.get(level)
        if threshold is not None and threshold.origin is not Origin.MODULE:
            if threshold.raw.ndim == 0:
                found[f"{level}_threshold"] = float(threshold.raw)
            if threshold.sigmas is not None:
                found[f"{level}_threshold_sigmas"] = threshold.sigmas
            if threshold.false_alarm_rate is not None:
                found[f"{level}_false_alarm_rate"] = threshold.false_alarm_rate
        for name, value in zip(fit.method.parameters, fitted.parameters, strict=True):
            if value.ndim == 0:
                found[f"{level}_{name}"] = float(value)
        if fitted.invalid:
            found[f"{level}_left_out"] = float(fitted.invalid)
    if check is not None:
        found |= {
            "normals_above_2": check.share_above_2,
            "normals_above_3": check.share_above_3,
            "normals_below_2": check.share_below_2,
            "normals_below_3": check.share_below_3,
        }
        moments = {"normals_mean": check.mean, "normals_std": check.std, "normals_skewness": check.skewness}
        found |= {name: value for name, value in moments.items() if not math.isnan(value)}
    return found
