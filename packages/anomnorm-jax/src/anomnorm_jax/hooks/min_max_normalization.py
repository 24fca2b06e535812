"""Min-max normalization of anomaly scores in a JAX training loop."""

from collections.abc import Iterable

from anomnorm_core.options import OnInvalid, Per, ThresholdRule
from anomnorm_jax.hook import NormalizationHook


class MinMaxNormalizationHook(NormalizationHook):
    """Normalize by the range of the scores: ``u = clip((x - threshold) / (max - min) + 1/2, 0, 1)``.

    Each validation run collects the smallest and the largest raw score. Test and predict then return outputs with
    normalized scores and maps, and with ``pred_labels`` and ``pred_masks`` beside them, decided on the raw values.

    Args:
        threshold, pixel_threshold, normal_quantile, capacity, on_invalid: see `NormalizationHook`; in raw units.
        shared_range: one range for both levels, from the maps where there are any, as in anomalib 0.3.
        extras: ``"margin"``, ``"raw"`` and ``"invalid"``; see `NormalizationHook`.
        false_alarm_rate, confidence, per: see `NormalizationHook`.
    """

    def __init__(
        self,
        threshold: float | ThresholdRule | str | None = None,
        pixel_threshold: float | ThresholdRule | str | None = None,
        normal_quantile: float = 1.0,
        capacity: int = 2**16,
        on_invalid: OnInvalid | str = OnInvalid.WARN,
        shared_range: bool = False,
        extras: Iterable[str] = (),
        false_alarm_rate: float = 0.01,
        confidence: float | None = None,
        per: Per | str = Per.PIXEL,
    ) -> None:
        super().__init__(
            "min-max",
            threshold,
            pixel_threshold,
            normal_quantile,
            capacity,
            on_invalid,
            options={"shared_range": shared_range},
            extras=extras,
            false_alarm_rate=false_alarm_rate,
            confidence=confidence,
            per=per,
        )
