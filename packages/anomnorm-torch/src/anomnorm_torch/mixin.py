"""Modules that are loaded or used without a callback, which would give them their slot (clause L6)."""

import warnings
from typing import Any

import torch

from anomnorm_torch.sharding import put_fit, take_fit
from anomnorm_torch.slot import NAME, Slot


class NormalizationMixin(torch.nn.Module):
    """Makes ``load_from_checkpoint`` and ``load_state_dict`` take what a normalization callback saved.

    Without it, a plain module reports those keys as unexpected. A state dict without them loads as ever. Method and
    options come with it; the callback of the next trainer has to have the same. A test or prediction by a trainer
    without a callback warns that its outputs stay raw.

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

    # Hooks of a LightningModule.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the fit into the state dict, where a callback has put another one there."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        slot = getattr(self, NAME, None)
        if isinstance(slot, Slot):
            put_fit(slot, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the fit from beside the state dict of a sharded module."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        slot = getattr(self, NAME, None)
        if isinstance(slot, Slot):
            take_fit(slot, checkpoint)

    def on_test_model_eval(self) -> None:
        """Warn of a test without normalization."""
        super().on_test_model_eval()  # type: ignore[misc]
        self._warn_of_raw_scores()

    def on_predict_model_eval(self) -> None:
        """Warn of a prediction without normalization."""
        super().on_predict_model_eval()  # type: ignore[misc]
        self._warn_of_raw_scores()

    def _warn_of_raw_scores(self) -> None:
        from anomnorm_torch.callback import Normalization

        slot, trainer = getattr(self, NAME, None), getattr(self, "trainer", None)
        if not isinstance(slot, Slot) or slot.fit.image is None:
            return
        callbacks = getattr(trainer, "callbacks", ())
        if any(isinstance(callback, Normalization) for callback in callbacks):
            return
        warnings.warn(
            f"the scores of {type(self).__name__} stay raw and get no labels: it carries a fitted "
            f"{slot.fit.method.name} normalization, but the trainer has no callback for it. Add "
            f'NormalizationCallback("{slot.fit.method.name}") to its callbacks, or call '
            f"self.{NAME}.normalizer(scores, maps) in the step.",
            stacklevel=2,
        )
