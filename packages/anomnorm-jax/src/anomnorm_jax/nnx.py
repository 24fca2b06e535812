"""Adapters for ``flax.nnx``: the statistics as metrics, and a hook with its state as a module.

They need ``flax``, which the rest of the package does not: ``pip install anomnorm-jax[flax]``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.fit_check import FitCheck
from anomnorm_jax import cdf, min_max
from anomnorm_jax.hooks import CdfNormalizationHook, MinMaxNormalizationHook
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Outputs

__all__ = ["AnomalyScoreDistribution", "MinMax", "Normalization", "Statistics"]

Batch = TypeVar("Batch")


class Statistics(nnx.Variable[Any]):
    """The kind of variable that statistics and thresholds are kept in, to select them by."""


class MinMax(nnx.Metric):
    """Smallest and largest score, of images and of pixels, as an ``nnx.Metric``.

    Example::

        metric = MinMax()
        metric.update(pred_scores=scores, anomaly_maps=maps)   # also inside nnx.jit
        low, high = metric.compute()["image"]
    """

    def __init__(self) -> None:
        self.image = Statistics(min_max.init())
        self.pixel = Statistics(min_max.init())

    def reset(self) -> None:
        """Forget all values."""
        self.image.set_value(min_max.init())
        self.pixel.set_value(min_max.init())

    def update(
        self,
        *,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        where: ArrayLike | None = None,
        **_unused: Any,
    ) -> None:
        """Add raw scores (B,) and maps (B, 1, H, W) or (B, H, W); either may be missing.

        ``where`` is a boolean array of shape (B,): samples that take part. Other entries of a step's outputs are left
        alone, so that ``metric.update(**outputs)`` works.
        """
        for record, values in ((self.image, pred_scores), (self.pixel, anomaly_maps)):
            if values is not None:
                record.set_value(min_max.update(record.get_value(), values, where=where))

    def merge(self, other: "MinMax") -> None:
        """Add what another one has seen."""
        self.image.set_value(min_max.merge(self.image.get_value(), other.image.get_value()))
        self.pixel.set_value(min_max.merge(self.pixel.get_value(), other.pixel.get_value()))

    def compute(self) -> dict[str, tuple[Array, Array]]:
        """``{"image": (min, max), "pixel": (min, max)}``; the identity (inf, -inf) where a level has seen nothing."""
        return {level: tuple(getattr(self, level).get_value()[:2]) for level in ("image", "pixel")}


class AnomalyScoreDistribution(nnx.Metric):
    """Mean and deviation of the logarithm of scores, of images and of each pixel, as an ``nnx.Metric``.

    Args:
        shape: height and width of the maps; None where there are none.
    """

    def __init__(self, shape: tuple[int, int] | None = None) -> None:
        self.shape = shape
        self.image = Statistics(cdf.init())
        self.pixel = Statistics(None if shape is None else cdf.init(shape))

    def reset(self) -> None:
        """Forget all values."""
        self.image.set_value(cdf.init())
        self.pixel.set_value(None if self.shape is None else cdf.init(self.shape))

    def update(
        self,
        *,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        where: ArrayLike | None = None,
        **_unused: Any,
    ) -> None:
        """See `MinMax.update`. Maps are left alone without a ``shape``.

        Raises:
            ResolutionError: maps are not of that shape.
        """
        for record, values in ((self.image, pred_scores), (self.pixel, anomaly_maps)):
            if values is not None and record.get_value() is not None:
                record.set_value(cdf.update(record.get_value(), values, where=where))

    def merge(self, other: "AnomalyScoreDistribution") -> None:
        """Add what another one of the same shape has seen."""
        for mine, its in ((self.image, other.image), (self.pixel, other.pixel)):
            if mine.get_value() is not None:
                mine.set_value(cdf.merge(mine.get_value(), its.get_value()))

    def compute(self) -> dict[str, tuple[Array, Array]]:
        """``{"image": (mean, std)}`` and, with maps, ``"pixel"``.

        Raises:
            NotFittedError, InsufficientDataError: outside of jit, where a level has too few values. See `cdf.mean_std`.
        """
        records = {level: getattr(self, level).get_value() for level in ("image", "pixel")}
        return {level: cdf.mean_std(record, level=level) for level, record in records.items() if record is not None}


class Normalization(nnx.Module):
    """A hook and its state as one module: the hook's methods, which change the state here instead of returning it.

    Per-batch methods can be called inside ``nnx.jit``; the methods of an epoch's ends cannot.

    Args:
        hook: `MinMaxNormalizationHook` or `CdfNormalizationHook`.
        outputs: an example of a step's outputs, or their shapes.
    """

    def __init__(self, hook: MinMaxNormalizationHook | CdfNormalizationHook, outputs: Outputs) -> None:
        self.hook = hook
        self.state = Statistics(hook.setup(outputs))

    def on_validation_epoch_start(
        self, predict: Callable[[Batch], Outputs] | None = None, batches: Iterable[Batch] = ()
    ) -> None:
        """Begin a validation run; the CDF needs ``predict`` and the normal training ``batches``."""
        state = self.state.get_value()
        if isinstance(self.hook, MinMaxNormalizationHook):
            self.state.set_value(self.hook.on_validation_epoch_start(state))
            return
        if predict is None:
            raise TypeError("the CDF hook fits on normal data: give on_validation_epoch_start predict and batches.")
        self.state.set_value(self.hook.on_validation_epoch_start(state, predict, batches))

    def on_validation_batch_end(self, outputs: Outputs) -> Outputs:
        """See the hook's method; returns the outputs alone."""
        state, outputs = self.hook.on_validation_batch_end(self.state.get_value(), outputs)
        self.state.set_value(state)
        return outputs

    def on_validation_epoch_end(self) -> None:
        """End a validation run: check the statistics and find thresholds."""
        self.state.set_value(self.hook.on_validation_epoch_end(self.state.get_value()))

    def on_test_start(self) -> None:
        """Check that there are statistics and thresholds."""
        self.hook.on_test_start(self.state.get_value())

    on_predict_start = on_test_start

    def on_test_batch_end(self, outputs: Outputs) -> dict[str, Any]:
        """The outputs with unit scores and maps, labels and masks."""
        return self.hook.on_test_batch_end(self.state.get_value(), outputs)

    on_predict_batch_end = __call__ = on_test_batch_end

    def with_threshold(self, threshold: ArrayLike | None = None, pixel_threshold: ArrayLike | None = None) -> None:
        """Set thresholds by hand; without any, take that back. See the hook's method."""
        self.state.set_value(self.hook.with_threshold(self.state.get_value(), threshold, pixel_threshold))

    def thresholds(self) -> dict[str, float]:
        """The thresholds in decision units, by level."""
        return self.hook.thresholds(self.state.get_value())

    def fit_check(self) -> FitCheck | None:
        """How the fit of the CDF does on normal validation samples (clause S9); None where nothing is known of it."""
        return self.hook.fit_check(self.state.get_value()) if isinstance(self.hook, CdfNormalizationHook) else None

    def to_arrays(self) -> dict[str, Any]:
        """What a checkpoint has to hold, in one structure before and after the fit."""
        return self.hook.to_arrays(self.state.get_value())

    def restore(self, arrays: Mapping[str, Any]) -> None:
        """Take over the arrays of another module's `to_arrays`; a number given to this hook wins."""
        self.state.set_value(self.hook.restore(self.state.get_value(), arrays))

    def normalizer(self) -> Normalizer:
        """What was fitted, as a pytree of its own: to save, to serve, to export."""
        return self.hook.normalizer(self.state.get_value())
