"""What a run of anomalib has fitted, read from its checkpoint: anomalib itself is not needed (clause L6)."""

from collections.abc import Mapping
from typing import Any

from anomnorm_core.errors import NotFittedError, ThresholdWarning, warn
from anomnorm_core.fit import Fit
from anomnorm_core.methods import min_max
from anomnorm_core.options import LEVELS, Origin
from anomnorm_core.threshold.choice import Choice, place
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.post_processor_slot import StockSlot, stock_of
from anomnorm_torch.slot import NAME, Slot

_POST_PROCESSOR = "post_processor."


def from_anomalib(checkpoint: Mapping[str, Any]) -> Normalizer:
    """The normalization of an anomalib run, to save as a file, to serve and to export.

    It gives the scores that the run gave, within rounding. Known are the state dicts of

    - anomalib 2.x: ``post_processor.image_min`` and so on;
    - anomalib 1.2: ``normalization_metrics.pred_scores.min`` and so on;
    - anomalib 0.3 to 1.1: ``normalization_metrics.min`` and ``max``, one range for both levels, or ``image_mean``,
      ``image_std``, ``pixel_mean`` and ``pixel_std`` of the CDF, with thresholds in sigmas;
    - the callbacks and post-processors of this package.

    Flagged is ``x >= threshold``, where anomalib 2.x has ``>``. The sensitivities of 2.x, which move the decision but
    not the scores, are not taken over; a warning gives the line that does it.

    Args:
        checkpoint: what ``torch.load`` returns, or the state dict in it.

    Returns:
        A normalizer with the checkpoint's thresholds, on the CPU.

    Raises:
        NotFittedError: it holds no statistics, or no threshold.
        RuntimeError: it holds statistics that cannot be used.
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"checkpoint is a {type(checkpoint).__name__}; give what torch.load(path) returns.")
    state = checkpoint.get("state_dict", checkpoint)
    own = _under(f"{NAME}.", state) or _under(f"{_POST_PROCESSOR}{NAME}.", state)
    stock_entries = stock_of(state, _POST_PROCESSOR)
    if not own and not stock_entries:
        raise NotFittedError(
            f"the checkpoint has neither a number in {_POST_PROCESSOR}image_min, as of anomalib 2.x with "
            f"normalization, nor {NAME}.*, as of versions before: it holds no statistics of image scores. Run a "
            "validation with a normalization callback."
        )
    config = checkpoint.get("anomalib_post_processor_config", {})
    _report_sensitivities(config)
    if not own:
        stock = StockSlot(Fit(min_max.METHOD))
        stock.matches, stock.facts = config.get("enable_threshold_matching", True), config.get("_facts")
        stock.take(_under(_POST_PROCESSOR, stock_entries))
        return stock.normalizer
    slot = Slot()
    slot.take(own)
    if slot.is_complete:  # of this package, with thresholds that have an origin
        return slot.normalizer
    found = {level: state.get(f"{level}_threshold.value") for level in LEVELS}
    known = {level: float(value) for level, value in found.items() if value is not None}
    choices = {level: Choice(Origin.MODULE, known.get(level)) for level in LEVELS}
    fit = place(slot.fit, choices)
    return Normalizer(fit if "pixel" in known else fit.following())


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _report_sensitivities(config: Mapping[str, Any]) -> None:
    for level, argument in zip(LEVELS, ("threshold", "pixel_threshold"), strict=True):
        score = 1 - config.get(f"{level}_sensitivity", 0.5)
        if score == 0.5:
            continue
        same = f'To flag the same: normalizer.with_threshold({argument}={score:g}, units="normalized").'
        if not 0 < score < 1:
            same = "No threshold flags none or all of them, as it did."
        warn(
            f"the run flagged {level} scores above {score:g} ({level}_sensitivity={1 - score:g}), and this "
            f"normalizer has 0.5 at its threshold. {same}",
            ThresholdWarning,
        )
