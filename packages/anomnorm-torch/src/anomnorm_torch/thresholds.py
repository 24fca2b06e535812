"""Thresholds where a module keeps them: in its slot, of its own, and in its metrics (clauses T1, N4a, L7)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from anomnorm_core.errors import NotFittedError, ThresholdWarning, warn
from anomnorm_core.fit import Fit
from anomnorm_core.options import LEVELS, Origin
from anomnorm_core.threshold.choice import Choice, place
from anomnorm_torch.framework import LightningModule
from anomnorm_torch.slot import NAME, Slot, carrier_of


def slot_of(pl_module: LightningModule) -> Slot:
    """The slot that a callback's ``setup`` gave the module, or that of its post-processor.

    Raises:
        NotFittedError: it has none.
    """
    slot = getattr(carrier_of(pl_module), NAME, None)
    if not isinstance(slot, Slot):
        raise NotFittedError(
            f"{type(pl_module).__name__} has no {NAME} (found {type(slot).__name__}). A trainer with the callback "
            "attaches them; without one, call callback.setup(trainer, pl_module) first. After a run under ddp_spawn "
            "the main process has none: load a checkpoint, or train a module that derives from NormalizationMixin."
        )
    return slot


def own_threshold(pl_module: LightningModule, level: str, *, refuse: bool = True) -> float | None:
    """The module's own threshold, in the method's units, if it has one. Waits for the device.

    That is ``image_threshold`` or ``pixel_threshold``: a number or, in an attribute ``value``, the holder of one.

    Raises:
        NotFittedError: it is not finite. Without ``refuse``, it counts as none then.
    """
    name = f"{level}_threshold"
    found = getattr(pl_module, name, None)
    value = getattr(found, "value", found)
    if value is None:
        return None
    number = _number(value)
    if number is None:
        told = slot_of(pl_module).unused_thresholds
        if name not in told:
            told.add(name)
            where = name if value is found else f"{name}.value"
            warn(
                f"{type(pl_module).__name__}.{where} is not used: it is of type {type(value).__name__}, and no number. "
                f"The {level}-level threshold is found in validation runs. Let the module's {name}, or its attribute "
                "'value', be a number; or give the callback one.",
                ThresholdWarning,
            )
        return None
    if math.isfinite(number):
        return number
    if refuse:
        raise NotFittedError(f"the {level}-level threshold of {type(pl_module).__name__} is {number}; set it first.")
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool | str | bytes) or getattr(value, "dtype", None) == torch.bool:  # float() would make one
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last two are those of a tensor with several elements
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


def largest_below_half(dtype: torch.dtype) -> float:
    """What a metric that flags ``preds > threshold`` needs to agree with labels that begin at 1/2 (clause L7)."""
    return 0.5 - torch.finfo(dtype).eps / 4


def set_metric_threshold(metrics: Any, value: float) -> None:
    """Give a metric, or those of a collection, the threshold ``value``, where they have one that is a float.

    Collections may be nested: dictionaries, lists, those of torchmetrics and other modules. A wrapper of a metric has a
    threshold of its own purpose, which stays.
    """
    if hasattr(metrics, "set_threshold"):
        metrics.set_threshold(value)
        return
    parts: list[Any]
    if isinstance(metrics, nn.Module):
        parts = [part for part in metrics.modules() if isinstance(part, Metric) or part is metrics]
    elif isinstance(metrics, Mapping | list | tuple):
        for part in metrics.values() if isinstance(metrics, Mapping) else metrics:
            set_metric_threshold(part, value)
        return
    else:
        parts = [metrics]
    for part in parts:
        if isinstance(getattr(part, "threshold", None), float) and not isinstance(part, WrapperMetric):
            part.threshold = value
