"""Thresholds where a module keeps them: in its slot, of its own, and in its metrics (clauses T1, N4a, L7)."""

import math
from typing import Any

from anomnorm_core.errors import NotFittedError
from anomnorm_core.fit import Fit
from anomnorm_core.options import LEVELS, Origin
from anomnorm_core.threshold.choice import Choice, place
from anomnorm_torch.framework import LightningModule
from anomnorm_torch.slot import NAME, Slot


def slot_of(pl_module: LightningModule) -> Slot:
    """The slot that a callback's ``setup`` gave the module.

    Raises:
        NotFittedError: it has none.
    """
    slot = getattr(pl_module, NAME, None)
    if not isinstance(slot, Slot):
        raise NotFittedError(
            f"{type(pl_module).__name__} has no {NAME} (found {type(slot).__name__}). A trainer with the callback "
            "attaches them; without one, call callback.setup(trainer, pl_module) first."
        )
    return slot


def own_threshold(pl_module: LightningModule, level: str, *, refuse: bool = True) -> float | None:
    """The module's own threshold, in the method's units, if it has one. Waits for the device.

    Raises:
        NotFittedError: it is not finite. Without ``refuse``, it counts as none then.
    """
    value = getattr(getattr(pl_module, f"{level}_threshold", None), "value", None)
    number = None if value is None else float(value)
    if number is None or math.isfinite(number):
        return number
    if refuse:
        raise NotFittedError(f"the {level}-level threshold of {type(pl_module).__name__} is {number}; set it first.")
    return None


def refreshed(pl_module: LightningModule) -> Fit:
    """The module's fit with its own thresholds as they are now, where those count.

    During a test or prediction it has the thresholds of that.
    """
    slot, choices = slot_of(pl_module), {}
    fit = slot.placed or slot.fit
    for level in LEVELS:
        fitted = getattr(fit, level)
        replaceable = fitted is None or fitted.threshold is None or fitted.threshold.origin is Origin.MODULE
        own = own_threshold(pl_module, level) if replaceable else None
        choices[level] = Choice(Origin.UNKNOWN) if own is None else Choice(Origin.MODULE, own)
    return place(fit, choices)


def set_metric_threshold(metrics: Any, value: float) -> None:
    """Set the threshold of a metric or of every metric of a collection that has one; nothing for None."""
    if metrics is None:
        return
    if hasattr(metrics, "set_threshold"):
        metrics.set_threshold(value)
        return
    for metric in metrics.values() if hasattr(metrics, "values") else (metrics,):
        if hasattr(metric, "threshold"):
            metric.threshold = value
