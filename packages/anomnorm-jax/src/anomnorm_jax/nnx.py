"""Adapters for ``flax.nnx``: the statistics as metrics, and a hook with its state as a module.

They need ``flax``, which the rest of the package does not: ``pip install anomnorm-jax[flax]``.
"""

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from anomnorm_core.errors import OptionError
from anomnorm_core.fields import MAPS, SCORES
from anomnorm_core.fit_check import FitCheck
from anomnorm_core.method import Kernels
from anomnorm_core.options import Transform, Units
from anomnorm_jax.hook import Batches, NormalizationHook
from anomnorm_jax.methods import METHODS, min_max
from anomnorm_jax.normalizer import Normalizer
from anomnorm_jax.outputs import Outputs, padding, used

__all__ = ["AnomalyScoreDistribution", "Fitted", "MinMax", "Normalization", "Statistics"]

Batch = TypeVar("Batch")


class Statistics(nnx.Variable[Any]):
    """The kind of variable that statistics and runs are kept in, to select them by."""


class Fitted(nnx.Variable[Any]):
    """The kind of variable that a normalizer is kept in: what a checkpoint has to hold."""


def _taken(
    pred_scores: ArrayLike | None, anomaly_maps: ArrayLike | None, others: Mapping[str, Any], where: ArrayLike | None
) -> tuple[Array | None, Array | None, ArrayLike | None]:
    """Scores and maps of a step's outputs, and which samples take part: of ``where``, those that do not pad."""
    named = {SCORES: pred_scores, MAPS: anomaly_maps}
    arrays = {name: jnp.asarray(value) for name, value in named.items() if value is not None}
    entries = used({**others, **arrays}, truth=False)
    valid = padding(entries)
    if valid is not None:
        where = valid if where is None else jnp.asarray(valid) & jnp.asarray(where, dtype=bool)
    return entries.get(SCORES), entries.get(MAPS), where


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
        **others: Any,
    ) -> None:
        """Add raw scores (B,) or (B, 1) and maps (B, 1, H, W), (B, H, W) or (B, H, W, 1); either may be missing.

        ``where`` is a boolean array of shape (B,): samples that take part. ``metric.update(**outputs)`` works with all
        that a step returns: ``pred_score`` and ``anomaly_map`` are the same as these names, what ``valid`` says only
        pads the batch is left out, and other entries, labels too, are left alone.

        Raises:
            OutputError: there are neither scores nor maps.
        """
        scores, maps, taken = _taken(pred_scores, anomaly_maps, others, where)
        for record, values in ((self.image, scores), (self.pixel, maps)):
            if values is not None:
                record.set_value(min_max.update(record.get_value(), values, where=taken))

    def merge(self, other: "MinMax") -> None:
        """Add what another one has seen."""
        self.image.set_value(min_max.merge(self.image.get_value(), other.image.get_value()))
        self.pixel.set_value(min_max.merge(self.pixel.get_value(), other.pixel.get_value()))

    def compute(self) -> dict[str, tuple[Array, Array]]:
        """``{"image": (min, max), "pixel": (min, max)}``; ``min`` above ``max`` where a level has seen nothing."""
        return {level: tuple(getattr(self, level).get_value()[:2]) for level in ("image", "pixel")}


class AnomalyScoreDistribution(nnx.Metric):
    """Mean and deviation of the logarithm of scores, of images and of each pixel, as an ``nnx.Metric``.

    Args:
        shape: height and width of the maps; None where there are none.
        transform: ``"log"``, or ``"identity"`` for the moments of the scores themselves.
    """

    def __init__(self, shape: tuple[int, int] | None = None, transform: Transform | str = Transform.LOG) -> None:
        self.shape, self.transform = shape, Transform.parse(transform, "transform")
        self.image = Statistics(self._kernels.init())
        self.pixel = Statistics(None if shape is None else self._kernels.init(shape))

    @property
    def _kernels(self) -> Kernels:
        return METHODS[self.transform.method]

    def reset(self) -> None:
        """Forget all values."""
        self.image.set_value(self._kernels.init())
        self.pixel.set_value(None if self.shape is None else self._kernels.init(self.shape))

    def update(
        self,
        *,
        pred_scores: ArrayLike | None = None,
        anomaly_maps: ArrayLike | None = None,
        where: ArrayLike | None = None,
        **others: Any,
    ) -> None:
        """See `MinMax.update`. Maps are left alone without a ``shape``.

        Labels are not looked at: give only normal samples, or ``where=label == 0``.

        Raises:
            OutputError: there are neither scores nor maps.
            ResolutionError: maps are not of that shape.
        """
        scores, maps, taken = _taken(pred_scores, anomaly_maps, others, where)
        for record, values in ((self.image, scores), (self.pixel, maps)):
            if values is not None and record.get_value() is not None:
                record.set_value(self._kernels.update(record.get_value(), values, where=taken))

    def merge(self, other: "AnomalyScoreDistribution") -> None:
        """Add what another one of the same shape and transform has seen."""
        if other.transform is not self.transform:
            raise OptionError(
                f"the other one has transform={str(other.transform)!r}, and this one {str(self.transform)!r}: moments "
                "of logarithms and of scores are no sum. Make both with one transform."
            )
        for mine, its in ((self.image, other.image), (self.pixel, other.pixel)):
            if mine.get_value() is not None:
                mine.set_value(self._kernels.merge(mine.get_value(), its.get_value()))

    def compute(self) -> dict[str, tuple[Array, Array]]:
        """``{"image": (mean, std)}`` and, with maps, ``"pixel"``.

        Raises:
            NotFittedError, InsufficientDataError: outside of jit, where a level has too few values. See `cdf.mean_std`.
        """
        records = {level: getattr(self, level).get_value() for level in ("image", "pixel")}
        finalize: Callable[..., tuple[Array, Array]] = self._kernels.finalize
        return {level: finalize(record, level=level) for level, record in records.items() if record is not None}


class Normalization(nnx.Module):
    """A hook with its run and its normalizer as one module: the hook's methods, which change those here.

    Per-batch methods can be called inside ``nnx.jit``, and so can the ends of epochs where a run needs no pass.
    ``nnx.state(module, Fitted)`` is what a checkpoint has to hold: of one structure, before and after the fit.

    Args:
        hook: `NormalizationHook` or one of its kinds.
        outputs: an example of a step's outputs, or their shapes.
    """

    def __init__(self, hook: NormalizationHook, outputs: Outputs) -> None:
        self.hook = hook
        self.run = Statistics(hook.setup(outputs))
        self.fitted = Fitted(hook.empty(outputs))

    @property
    def normalizer(self) -> Normalizer:
        """What was fitted: to save, to serve, to export."""
        normalizer: Normalizer = self.fitted.get_value()
        return normalizer

    def on_validation_epoch_start(
        self,
        predict: Callable[[Batch], Outputs] | None = None,
        batches: Batches[Batch] | None = None,
        *,
        statistics: tuple[Any, Any] | None = None,
    ) -> None:
        """Begin a validation run; the CDF needs ``predict`` and the normal training ``batches``, or ``statistics``."""
        run = self.run.get_value()
        self.run.set_value(self.hook.on_validation_epoch_start(run, predict, batches, statistics=statistics))

    def on_validation_batch_end(self, outputs: Outputs) -> Outputs:
        """See the hook's method; returns the outputs alone."""
        run, outputs = self.hook.on_validation_batch_end(self.run.get_value(), outputs)
        self.run.set_value(run)
        return outputs

    def on_validation_epoch_end(self) -> None:
        """End a validation run: its normalizer takes the place of the one before, whose manual thresholds stay."""
        self.fitted.set_value(self.hook.on_validation_epoch_end(self.run.get_value(), self.normalizer))

    def on_test_start(self) -> None:
        """Resolve the thresholds, and check that something has been fitted."""
        self.fitted.set_value(self.hook.on_test_start(self.normalizer))

    on_predict_start = on_test_start

    def on_test_batch_end(self, outputs: Outputs) -> Any:
        """The outputs with normalized scores and maps, labels and masks."""
        return self.hook.on_test_batch_end(self.normalizer, outputs)

    on_predict_batch_end = __call__ = on_test_batch_end

    def with_threshold(
        self,
        threshold: SupportsFloat | None = None,
        pixel_threshold: SupportsFloat | None = None,
        *,
        units: Units | str | None = None,
    ) -> None:
        """Set manual thresholds. See the hook's method."""
        self.fitted.set_value(self.hook.with_threshold(self.normalizer, threshold, pixel_threshold, units=units))

    def fit_check(self) -> FitCheck | None:
        """How a fit with sigmas does on normal validation samples (clause S9); None where nothing is known of it."""
        return self.hook.fit_check(self.run.get_value())
