"""The normalization callback inside of a post-processor, which hands Lightning's hooks on to it."""

from collections.abc import Mapping
from typing import Any

from anomnorm_core.errors import AnomnormError, OptionError
from anomnorm_core.fit import Fit
from anomnorm_core.options import Origin, Source, ThresholdRule, Units
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
        self.saw_masks: bool | None = None  # whether the present or last validation run had masks; None: without one
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
        """See `Normalization`; also choose the data for a model with a memory bank, which knows its training data.

        Raises:
            AnomnormError: the model has another post-processor.
        """
        if getattr(pl_module, "post_processor", None) is not self.owner:
            raise AnomnormError(
                f"the trainer has a {self._name} that is not the post_processor of its "
                f"{type(pl_module).__name__}: give it to the model, not to the Engine, and take a new Engine for each "
                "model, since one keeps the callbacks of the last."
            )
        banks = "MemoryBankMixin" in {base.__name__ for base in type(pl_module).__mro__}
        if banks and self._is_default_source and self.source is Source.AUTO:
            self.source = Source.VALIDATION
            if stage != "test" and stage != "predict":
                part(trainer, "utilities.rank_zero").rank_zero_info(
                    f"{type(pl_module).__name__} keeps what it was trained on, and scores it lower than new images: "
                    f"{self._name} is fitted on the normal validation images. For other data give it "
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
        self.saw_masks = bool(self.saw_masks) or seen["gt_mask"] is not None
        super().on_validation_batch_end(trainer, pl_module, seen, batch, batch_idx, dataloader_idx)

    def _choices(self, pl_module: LightningModule, fit: Fit, *, refuse: bool = False) -> dict[str, Choice]:
        choices = super()._choices(pl_module, fit, refuse=refuse)
        if not self.owner.enable_thresholding:
            # Where no number was given, a validation run puts the middle at its end, and what is there stays otherwise.
            at_end = self._run is None and not refuse
            for level, each in choices.items():
                if each.value is None:
                    choices[level] = Choice(Origin.OPTION, middle(fit, level) if at_end else None)
            return choices
        if choices["pixel"].origin is Origin.ADAPTIVE and self.owner.enable_threshold_matching:
            present = None if fit.pixel is None else fit.pixel.threshold
            was_matched = present is not None and present.origin in (Origin.IMAGE, Origin.MODULE)
            if was_matched if self.saw_masks is None else not self.saw_masks:
                choices["pixel"] = Choice(Origin.IMAGE)
        image = None if fit.image is None else fit.image.threshold
        if choices["pixel"].origin is Origin.IMAGE and self.method.sigmas and image is not None and self._run is None:
            # anomalib means the same raw score: the same sigmas may be beyond every pixel of a flagged image.
            choices["pixel"] = Choice(Origin.MODULE, float(image.raw), Units.RAW)
        return choices


def fields(outputs: Any) -> dict[str, Any]:
    """What a batch of anomalib's, or its predictions, hold of scores and ground truth; None where there is nothing."""
    return {name: getattr(outputs, name, None) for name in _NAMES}


_NAMES = ("pred_score", "pred_label", "anomaly_map", "pred_mask", "gt_label", "gt_mask", "valid")
