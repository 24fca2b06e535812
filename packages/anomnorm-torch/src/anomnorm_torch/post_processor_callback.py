"""The normalization callback inside of a post-processor, which hands Lightning's hooks on to it."""

from collections.abc import Mapping
from typing import Any

from anomnorm_core.errors import OptionError
from anomnorm_core.fit import Fit
from anomnorm_core.options import LEVELS, Origin, Source, ThresholdRule
from anomnorm_core.threshold.choice import Choice
from anomnorm_torch.callback import Normalization
from anomnorm_torch.framework import LightningModule, Trainer, part
from anomnorm_torch.methods import METHODS
from anomnorm_torch.post_processor_slot import middle


class HeldNormalization(Normalization):
    """A callback that a post-processor holds, with those of anomalib's options that are about thresholds.

    Args:
        owner: the post-processor.
        options: see `Normalization`; ``source`` and ``threshold`` may be None.
        calibration_loader: see `Normalization`.
    """

    def __init__(self, owner: Any, options: Mapping[str, Any], calibration_loader: Any = None) -> None:
        self.owner = owner
        self.saw_masks = True  # whether the present or last validation run had masks
        self._is_default_source = options["source"] is None
        sigmas, given = METHODS[options["method"]].method.sigmas, dict(options)
        if given["threshold"] is None:  # a module of anomalib 2 has no threshold of its own
            given["threshold"] = ThresholdRule.ADAPTIVE
        if self._is_default_source and sigmas and calibration_loader is None:
            given["source"] = Source.AUTO
        super().__init__(**given, calibration_loader=calibration_loader)
        if not (owner.enable_thresholding or sigmas or self.method.parameters == ("min", "max")):
            raise OptionError(f"enable_thresholding=False: {self.method.name} normalization has no middle for 0.5.")

    @property
    def _listed(self) -> Any:
        return self.owner

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str | None = None) -> None:
        """See `Normalization`; also choose the data for a model with a memory bank, which knows its training data."""
        banks = "MemoryBankMixin" in {base.__name__ for base in type(pl_module).__mro__}
        if banks and self._is_default_source and self.source is Source.AUTO:
            self.source = Source.VALIDATION
            if stage != "test" and stage != "predict":
                part(trainer, "utilities.rank_zero").rank_zero_info(
                    f"{type(pl_module).__name__} keeps what it was trained on, and scores it lower than new images: "
                    f"{type(self).__name__} is fitted on the normal validation images. For other data give it "
                    'calibration_loader=... or source="train".'
                )
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `Normalization`."""
        self.saw_masks = True  # nobody knows yet
        super().on_validation_epoch_start(trainer, pl_module)
        self.saw_masks = False

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See `Normalization`. The outputs stay raw, as anomalib leaves them to the metrics of a validation."""
        if outputs is None:
            return
        seen = fields(outputs)  # z-scores are written into this
        self.saw_masks = self.saw_masks or seen["gt_mask"] is not None
        super().on_validation_batch_end(trainer, pl_module, seen, batch, batch_idx, dataloader_idx)

    def _choices(self, pl_module: LightningModule, fit: Fit, *, refuse: bool = False) -> dict[str, Choice]:
        choices = super()._choices(pl_module, fit, refuse=refuse)
        if not self.owner.enable_thresholding:
            middles = {level: Choice(Origin.OPTION, middle(fit, level)) for level in LEVELS}
            return {level: each if each.origin is Origin.MANUAL else middles[level] for level, each in choices.items()}
        if choices["pixel"].origin is Origin.ADAPTIVE and self.owner.enable_threshold_matching and not self.saw_masks:
            choices["pixel"] = Choice(Origin.IMAGE)
        return choices


def fields(outputs: Any) -> dict[str, Any]:
    """What a batch of anomalib's, or its predictions, hold of scores and ground truth; None where there is nothing."""
    return {name: getattr(outputs, name, None) for name in _NAMES}


_NAMES = ("pred_score", "pred_label", "anomaly_map", "pred_mask", "gt_label", "gt_mask", "valid")
