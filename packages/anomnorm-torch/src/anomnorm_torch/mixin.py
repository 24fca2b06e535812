"""Modules that are loaded without a trainer, and so without a callback that gives them their slot (clause L6)."""

from typing import Any

import torch

from anomnorm_torch.slot import NAME, Slot


class NormalizationMixin(torch.nn.Module):
    """Makes ``load_from_checkpoint`` and ``load_state_dict`` take what a normalization callback saved.

    Without it, a plain module reports those keys as unexpected. A state dict without them loads as ever. Method and
    options come with it; the callback of the next trainer has to have the same.

    Example::

        class Detector(NormalizationMixin, pl.LightningModule): ...

        detector = Detector.load_from_checkpoint("best.ckpt")
        normalizer = detector.normalization_metrics.normalizer
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any) -> None:
        # Torch comes here before it looks for children, so that one made now is loaded like any other.
        if getattr(self, NAME, None) is None and any(key.startswith(f"{prefix}{NAME}.") for key in state_dict):
            device = next((tensor.device for tensor in self.parameters()), torch.device("cpu"))
            self.normalization_metrics = Slot().to(device)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)
