"""What a post-processor of anomalib carries: a fit under keys of its own, or in the six numbers that anomalib knows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomnorm_core.errors import FitWarning, warn
from anomnorm_core.file import compose, describe
from anomnorm_core.fit import Fit, LevelFit
from anomnorm_core.options import LEVELS, Origin, Units
from anomnorm_torch.slot import NAME, Slot, digest_of

# Buffers of anomalib's PostProcessor, by level: threshold, smallest and largest raw score. NaN: not known.
STOCK = {
    "image": ("_image_threshold", "image_min", "image_max"),
    "pixel": ("_pixel_threshold", "pixel_min", "pixel_max"),
}
_NAMES = tuple(name for names in STOCK.values() for name in names)


class PostProcessorSlot(Slot):
    """A slot in the post-processor of an anomalib module.

    Args:
        fit: of the method and with the options that are expected.
    """

    prefix = f"post_processor.{NAME}."

    @property
    def about_key(self) -> str:  # type: ignore[override]
        """What torch lists as unexpected where a module was built with another post-processor."""
        name = self.fit.method.name
        made = "CdfPostProcessor()" if name in ("cdf", "normal") else f"NormalizationPostProcessor('{name}')"
        return f"load_from_checkpoint(path, post_processor={made})"

    def take_stock(self, own: Mapping[str, Tensor], prefix: str, *lists: list[str]) -> None:  # noqa: ARG002
        """Take over the entries of a state dict for anomalib's buffers, or say that they are not used.

        Args:
            own: under their full names; none where the buffers hold no range.
            prefix: of the post-processor.
            lists: missing and unexpected keys, and errors, for what is found.
        """
        if own:
            warn(
                "the checkpoint holds statistics of min-max normalization, which this post-processor of "
                f"{self.fit.method.name} normalization does not use: validate the model to fit its own, or load with "
                "post_processor=MinMaxPostProcessor().",
                FitWarning,
            )


class StockSlot(PostProcessorSlot):
    """One for min-max, whose state dict has anomalib's six buffers and nothing else: either class loads the other's.

    Attributes:
        facts: what a checkpoint says of the fit whose numbers come next, as `describe` gives it; None: nothing.
        matches: whether a threshold that is missing is that of the other level, as anomalib has it.
    """

    prefix = "post_processor."

    def __init__(self, fit: Fit) -> None:
        super().__init__(fit)
        self.facts: Mapping[str, Any] | None = None
        self.matches = True

    def entries(self) -> dict[str, Tensor]:
        """The six numbers of a complete fit; empty before the first one."""
        return stock_numbers(self.fit) if self.is_complete else {}

    def take_stock(self, own: Mapping[str, Tensor], prefix: str, *lists: list[str]) -> None:
        """Take over the entries of a state dict for anomalib's buffers."""
        if self.in_state_dict:
            numbers = {key.removeprefix(prefix): value for key, value in own.items()}
            self._take(numbers, prefix, *lists[1:], running=self._is_running)
            self.facts = None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Nothing: the post-processor saves `entries` in its buffers' place."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any) -> None:
        unexpected: list[str] = arguments[-2]
        unexpected.extend(key for key in state_dict if key.startswith(prefix))  # those of another method

    def _read(self, own: Mapping[str, Tensor]) -> tuple[Fit, set[str]]:
        numbers = {name: np.asarray(float(value)) for name, value in own.items()}
        # The state of callbacks, which Lightning keeps too, comes after the same numbers and says nothing else.
        for facts in (self.facts, facts_of(self.fit) if self.is_complete else None):
            arrays = {} if facts is None else _arrays(facts, numbers)
            if facts is not None and facts.get("digest") == digest_of(facts, arrays):
                return compose(facts, arrays), set(_NAMES)
        return self._of_stock(numbers), set(_NAMES)

    def _of_stock(self, numbers: Mapping[str, np.ndarray]) -> Fit:
        """The fit of anomalib's own post-processor."""
        ranges = {level: tuple(numbers[name] for name in names[1:]) for level, names in STOCK.items()}
        levels = {level: LevelFit(bounds) for level, bounds in ranges.items() if np.all(np.isfinite(bounds))}
        fit = Fit(self.fit.method, levels["image"], levels.get("pixel"), self.fit.options)
        found = {level: numbers[names[0]] for level, names in STOCK.items()}
        for level, other in zip(LEVELS, reversed(LEVELS), strict=True):
            known = [found[each] for each in ((level, other) if self.matches else (level,)) if np.isfinite(found[each])]
            if level in levels:
                fit = fit.placed(level, (*known, middle(fit, level))[0], Units.RAW, Origin.UNKNOWN)
        return fit.following() if self.matches and np.isnan(found["pixel"]) and np.isfinite(found["image"]) else fit


def stock_of(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of anomalib's buffers, of a post-processor with this prefix; empty where they hold no range."""
    found = {prefix + name: state_dict[prefix + name] for name in _NAMES if prefix + name in state_dict}
    known = all(math.isfinite(found.get(prefix + name, math.nan)) for name in STOCK["image"][1:])
    return found if known else {}


def stock_numbers(fit: Fit) -> dict[str, Tensor]:
    """What anomalib's buffers are of a fit, () float32 each: NaN for what is not known, or is no number."""
    numbers = dict.fromkeys(_NAMES, math.nan)
    for level, (threshold, *bounds) in STOCK.items():
        fitted: LevelFit | None = getattr(fit, level)
        if fitted is None:
            continue
        if fitted.threshold is not None and fitted.threshold.raw.ndim == 0:
            numbers[threshold] = float(fitted.threshold.raw)
        if fit.method.name == "min-max":
            numbers |= {name: float(value) for name, value in zip(bounds, fitted.parameters, strict=True)}
    return {name: torch.tensor(value) for name, value in numbers.items()}


def facts_of(fit: Fit) -> dict[str, Any]:
    """What the six numbers do not say of a complete fit, as plain data, and their digest."""
    about, arrays = describe(fit)
    return about | {"digest": digest_of(about, arrays)}


def _arrays(facts: Mapping[str, Any], numbers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numbers under the names that `describe` gives them."""
    places = ("threshold", "min", "max")
    return {
        f"{level}_{place}": numbers[name]
        for level in facts["levels"]
        for place, name in zip(places, STOCK[level], strict=True)
    }


def middle(fit: Fit, level: str) -> float:
    """Where 0.5 is without a threshold: in the middle of the range or, with sigmas, where those are zero."""
    fitted: LevelFit | None = getattr(fit, level)
    if fitted is None or fit.method.sigmas:
        return 0.0
    low, high = (float(value) for value in fitted.parameters)
    return low / 2 + high / 2
