"""What callbacks of anomalib 0.3 did to a batch, for subclasses that do it in their own way (clause N4b).

Thresholds are resolved on each call.
"""

from typing import Any

import torch
from torch import Tensor

from anomnorm_torch._tensors import arithmetic
from anomnorm_torch.framework import LightningModule
from anomnorm_torch.methods import METHODS, cdf
from anomnorm_torch.normalizer import Normalizer
from anomnorm_torch.outputs import StepOutputs
from anomnorm_torch.run import Standardizer
from anomnorm_torch.threshold import flag
from anomnorm_torch.thresholds import refreshed, slot_of


def standardize_batch(outputs: Any, pl_module: LightningModule) -> None:
    """Replace raw scores and maps by z-scores."""
    step, fit = StepOutputs(outputs), slot_of(pl_module).draft or slot_of(pl_module).fit
    scores = step.shaped_scores
    step.write(Standardizer(METHODS[fit.method.name], fit, scores.device)(scores, step.maps))


def normalize_batch(outputs: Any, pl_module: LightningModule) -> None:
    """Replace scores by normalized ones, z-scores under a method with sigmas, and add labels and masks."""
    step, fit = StepOutputs(outputs), refreshed(pl_module)
    scores, valid = step.shaped_scores, step.valid(None)
    if not fit.method.sigmas:
        step.write(Normalizer(fit).to(scores.device)(step.given, step.maps, valid=valid))
        return
    standardizer = Standardizer(METHODS[fit.method.name], fit, scores.device)
    result: dict[str, Tensor] = {}
    for name, level, labels, z in (
        ("pred_scores", "image", "pred_labels", scores),
        ("anomaly_maps", "pixel", "pred_masks", step.maps),
    ):
        if z is not None:
            # The z-score that the same kernel gives the threshold.
            t = standardizer.of(level, torch.tensor(fit.threshold(level).raw).to(arithmetic(z)))
            flagged = flag(z, t)
            result[name] = cdf.normalize_standardized(z, t)
            result[labels] = flagged if valid is None else flagged & valid.reshape(-1, *[1] * (z.ndim - 1))
    step.write(result)
