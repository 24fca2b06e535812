"""Callbacks that have their method in their name, with its options as arguments: those of anomalib 0.3."""

from collections.abc import Iterable

from anomnorm_core.options import Center, OnInvalid, Per, Source, Transform
from anomnorm_torch.callback import Normalization, ThresholdOption
from anomnorm_torch.normal_data import CalibrationLoader


class MinMaxNormalization(Normalization):
    """Normalize image-level and pixel-level anomaly scores to [0, 1] with 0.5 at the threshold.

    Each validation run collects the smallest and the largest raw score. Test and predict then replace, in place in the
    step's outputs, ``pred_scores`` and ``anomaly_maps`` by normalized scores
    ``clip((x - threshold) / (max - min) + 1/2, 0, 1)`` and add ``pred_labels`` and ``pred_masks``, which are decided on
    the raw values (``x >= threshold``). Range and thresholds are in the module's state dict.

    Args:
        threshold: decision threshold in raw units, or how to find it; see `NormalizationCallback`.
        pixel_threshold: the same for the anomaly maps.
        normal_quantile, false_alarm_rate, confidence, per: see `NormalizationCallback`.
        shared_range: one range for both levels, from the maps where there are any (as in anomalib 0.3).
        on_invalid: see `NormalizationCallback`; NaN and infinite scores cannot enter the range.
        extras, log_prefix, log_images: see `NormalizationCallback`.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        threshold: ThresholdOption = None,
        *,
        pixel_threshold: ThresholdOption = None,
        normal_quantile: float = 1.0,
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        per: Per | str = Per.PIXEL,
        shared_range: bool = False,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
        extras: Iterable[str] = (),
        log_prefix: str | None = "normalization",
        log_images: bool = False,
    ) -> None:
        super().__init__(
            "min-max",
            threshold,
            pixel_threshold=pixel_threshold,
            normal_quantile=normal_quantile,
            false_alarm_rate=false_alarm_rate,
            confidence=confidence,
            per=per,
            on_invalid=on_invalid,
            extras=extras,
            log_prefix=log_prefix,
            log_images=log_images,
            options={"shared_range": shared_range},
        )


class CdfNormalization(Normalization):
    """Standardize image-level and pixel-level anomaly scores and normalize them to [0, 1] with 0.5 at the threshold.

    Before each validation run the current model scores the normal training data; the logarithms of those scores are
    taken as normally distributed. Validation then leaves z-scores ``(log x - mean) / std`` in the step's outputs, in
    place, so that thresholds that the module computes from them are in sigmas ("so many deviations above normal"). Test
    and predict leave normalized scores ``Phi(z - threshold)`` and add ``pred_labels`` and ``pred_masks``, which are
    decided on the raw values. Moments and thresholds are in the module's state dict.

    Args:
        threshold: decision threshold in sigmas, or how to find it; see `NormalizationCallback`.
        pixel_threshold: the same for the anomaly maps.
        normal_quantile, false_alarm_rate, confidence, per: see `NormalizationCallback`.
        center: where pixel z-scores are zero: ``"image"`` (the image-level mean, as in anomalib 0.3) or ``"pixel"``
            (each pixel's own mean, for detectors with a stable spatial baseline).
        transform: what is taken as normally distributed: ``"log"``, the logarithms, or ``"identity"``, the scores
            themselves, which may then have any sign (log-likelihoods); ``z`` is ``(x - mean) / std``.
        source, calibration_loader, step, limit_batches, every_n_validations: see `NormalizationCallback`.
        on_invalid: see `NormalizationCallback`; NaN and infinite scores cannot be fitted, and those that are
            not positive have no logarithm.
        extras, log_prefix, log_images: see `NormalizationCallback`.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        threshold: ThresholdOption = None,
        *,
        pixel_threshold: ThresholdOption = None,
        normal_quantile: float = 1.0,
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        per: Per | str = Per.PIXEL,
        center: Center | str = Center.IMAGE,
        transform: Transform | str = Transform.LOG,
        source: Source | str = Source.TRAIN,
        calibration_loader: CalibrationLoader | None = None,
        step: str = "validation_step",
        limit_batches: int | float | None = None,
        every_n_validations: int = 1,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
        extras: Iterable[str] = (),
        log_prefix: str | None = "normalization",
        log_images: bool = False,
    ) -> None:
        chosen = Transform.parse(transform, "transform")
        super().__init__(
            chosen.method,
            threshold,
            pixel_threshold=pixel_threshold,
            normal_quantile=normal_quantile,
            false_alarm_rate=false_alarm_rate,
            confidence=confidence,
            per=per,
            source=source,
            calibration_loader=calibration_loader,
            step=step,
            limit_batches=limit_batches,
            every_n_validations=every_n_validations,
            on_invalid=on_invalid,
            extras=extras,
            log_prefix=log_prefix,
            log_images=log_images,
            options={"center": str(Center.parse(center, "center"))},
        )
        self.transform = chosen
