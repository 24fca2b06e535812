"""Modules that are loaded without a trainer, and so without a callback that attaches their statistics (clause L6)."""

from typing import Any

import torch

from anomnorm_torch.metrics import AnomalyScoreDistribution, MinMax

_NAME = "normalization_metrics"


class NormalizationMixin(torch.nn.Module):
    """Makes ``load_from_checkpoint`` and ``load_state_dict`` take the statistics that a normalization callback saved.

    Without it, a plain module reports their keys as unexpected. A state dict without them loads as ever. The options
    ``center`` and ``shared_range`` come with it; the callback of the next trainer has to have the same.

    Example::

        class Detector(NormalizationMixin, pl.LightningModule): ...

        detector = Detector.load_from_checkpoint("best.ckpt")
        detector.normalization_metrics.set_threshold("image", 0.7)
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any) -> None:
        # Torch comes here before it looks for children, so that one made now is loaded like any other.
        if getattr(self, _NAME, None) is None:
            for kind, key in ((MinMax, "min"), (AnomalyScoreDistribution, "image_mean")):
                if f"{prefix}{_NAME}.{key}" in state_dict:
                    device = next((tensor.device for tensor in self.parameters()), torch.device("cpu"))
                    self.normalization_metrics = kind(sync_on_compute=False).to(device)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)
