"""CDF normalization of anomaly scores in a JAX training loop."""

from collections.abc import Iterable

from anomnorm_core.options import Center, OnInvalid, Per, Source, ThresholdRule, Transform
from anomnorm_jax.hook import NormalizationHook


class CdfNormalizationHook(NormalizationHook):
    """Standardize the logarithms of scores, and normalize them to [0, 1] with 0.5 at the threshold.

    Before each validation run the current model scores the normal training data; the logarithms of those scores are
    taken as normally distributed. Validation then returns outputs with z-scores ``(log x - mean) / std``, so that
    thresholds computed from them are in sigmas. Test and predict return normalized scores
    ``Phi(log(x / threshold) / std)``, with ``pred_labels`` and ``pred_masks`` beside them.

    Example::

        hook = CdfNormalizationHook(threshold=3.0)
        run = hook.setup(outputs)
        for epoch in range(epochs):
            ...                                              # train
            run = hook.on_validation_epoch_start(run, predict, normal_training_batches)
            for batch in validation:
                run, outputs = hook.on_validation_batch_end(run, predict(batch))
            normalizer = hook.on_validation_epoch_end(run)
        outputs = hook.on_predict_batch_end(normalizer, predict(batch))

    Args:
        threshold, pixel_threshold, normal_quantile, capacity, on_invalid, source, progress: see `NormalizationHook`; in
            sigmas.
        center: where pixel z-scores are zero: ``"image"`` (at the image-level mean, as in anomalib 0.3) or ``"pixel"``
            (each pixel's own mean, for detectors with a stable spatial baseline).
        transform: what is taken as normally distributed: ``"log"``, the logarithms, or ``"identity"``, the scores
            themselves, which may then have any sign (log-likelihoods); ``z`` is ``(x - mean) / std``.
        extras: ``"z"``, ``"raw"`` and ``"invalid"``; see `NormalizationHook`.
        false_alarm_rate, confidence, per: see `NormalizationHook`.
    """

    def __init__(
        self,
        threshold: float | ThresholdRule | str | None = None,
        pixel_threshold: float | ThresholdRule | str | None = None,
        normal_quantile: float = 1.0,
        capacity: int = 2**16,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
        center: Center | str = Center.IMAGE,
        source: Source | str = Source.TRAIN,
        progress: bool = True,
        extras: Iterable[str] = (),
        transform: Transform | str = Transform.LOG,
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        per: Per | str = Per.PIXEL,
    ) -> None:
        chosen = Transform.parse(transform, "transform")
        super().__init__(
            chosen.method,
            threshold,
            pixel_threshold,
            normal_quantile,
            capacity,
            on_invalid,
            source,
            progress,
            options={"center": str(Center.parse(center, "center"))},
            extras=extras,
            false_alarm_rate=false_alarm_rate,
            confidence=confidence,
            per=per,
        )
        object.__setattr__(self, "transform", chosen)  # frozen, and shown by repr
