"""The thresholds of a module, and the normalizer that decides by them (clauses T1, T4, T6)."""

import math
from functools import partial
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from anomnorm_core.errors import NotFittedError
from anomnorm_core.policy import Units
from anomnorm_torch.life_cycle.framework import LightningModule
from anomnorm_torch.metrics import Level, NormalizationMetric
from anomnorm_torch.normalizer import Normalizer

Metrics = TypeVar("Metrics", bound=NormalizationMetric[Any])


def attached(pl_module: LightningModule, kind: type[Metrics]) -> Metrics:
    """The statistics that `NormalizationLifeCycle.setup` gave the module.

    Raises:
        NotFittedError: it has none of this kind.
    """
    metrics = getattr(pl_module, "normalization_metrics", None)
    if not isinstance(metrics, kind):
        raise NotFittedError(
            f"{type(pl_module).__name__} has no normalization_metrics of type {kind.__name__} (found "
            f"{type(metrics).__name__}). A trainer with the callback attaches them; without one, call "
            "callback.setup(trainer, pl_module) first."
        )
    return metrics


def any_attached(pl_module: LightningModule) -> NormalizationMetric[Any]:
    """The statistics of the module, of whichever method. See `attached`."""
    found: NormalizationMetric[Any] = attached(pl_module, NormalizationMetric)  # type: ignore[type-abstract]
    return found


def own_threshold(pl_module: LightningModule, level: Level) -> Tensor | float | None:
    """The module's own threshold (the founding contract), if it has one."""
    value = getattr(getattr(pl_module, f"{level}_threshold", None), "value", None)
    return value if value is None or isinstance(value, Tensor) else float(value)


def threshold(pl_module: LightningModule, level: Level) -> tuple[Level, Tensor | float]:
    """The decision threshold of ``level``, after the level whose number it is. See `Thresholds` for the order.

    Raises:
        NotFittedError: there is none.
    """
    found = any_attached(pl_module).thresholds.resolve(level, partial(own_threshold, pl_module))
    if found is None:
        raise NotFittedError(
            f"there is no {level}-level threshold to put at 0.5 yet. Run a validation (trainer.fit or "
            "trainer.validate), which finds one; load a checkpoint that has one; or give threshold=... to the callback."
        )
    return found


def read_thresholds(pl_module: LightningModule) -> dict[Level, float]:
    """The thresholds in decision units, read off the device: of the image level, and of maps if any were seen.

    Raises:
        NotFittedError: there is none.
    """
    levels: list[Level] = ["image", "pixel"] if any_attached(pl_module).seen("pixel") else ["image"]
    return {level: float(threshold(pl_module, level)[1]) for level in levels}


def require_thresholds(pl_module: LightningModule) -> dict[Level, float]:
    """`read_thresholds`, checked.

    Raises:
        NotFittedError: there is none, or it is not finite.
    """
    numbers = read_thresholds(pl_module)
    for level, value in numbers.items():
        if not math.isfinite(value):
            raise NotFittedError(f"the {level}-level threshold of {type(pl_module).__name__} is {value}; set it first.")
    return numbers


def batch_normalizer(pl_module: LightningModule) -> Normalizer:
    """The normalizer that the module's outputs go through, with `batch_thresholds`."""
    metrics = any_attached(pl_module)
    return metrics.batch_normalizer(metrics.thresholds.raw_decision(partial(own_threshold, pl_module)))


class BatchThresholds(TypedDict):
    """The thresholds for one batch, as arguments of a normalizer; None takes its own, or that of the images."""

    threshold: Tensor | float | None
    pixel_threshold: Tensor | float | None


def batch_thresholds(pl_module: LightningModule) -> BatchThresholds:
    """The thresholds that count now, wherever they are: no host synchronization."""
    own = partial(own_threshold, pl_module)
    raw = any_attached(pl_module).thresholds.raw_decision(own)
    image = threshold(pl_module, "image")[1] if raw is None else None
    level, pixel = threshold(pl_module, "pixel")
    return {"threshold": image, "pixel_threshold": pixel if level == "pixel" else None}


def fitted_normalizer(pl_module: LightningModule) -> Normalizer:
    """What the module was fitted with, with the present thresholds, on the CPU."""
    metrics = any_attached(pl_module)
    raw = metrics.thresholds.raw_decision(partial(own_threshold, pl_module))
    image = float(threshold(pl_module, "image")[1]) if raw is None else raw
    level, pixel = threshold(pl_module, "pixel")
    own = float(pixel) if level == "pixel" else None
    return metrics.normalizer(image, own, units=Units.DECISION if raw is None else Units.RAW)
