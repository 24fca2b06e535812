"""What a report says of scores: what the threshold does to them, and which of them are worst."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self
from xml.etree.ElementTree import Element

import numpy as np

from anomnorm_core._arrays import to_host
from anomnorm_core._page import element, name_of, table
from anomnorm_core._report_fit import percent
from anomnorm_core.errors import OptionError
from anomnorm_core.fields import without_last_channel
from anomnorm_core.fit import Fit
from anomnorm_core.normalizer import Normalizer
from anomnorm_core.options import Origin
from anomnorm_core.threshold import adaptive, flag

WORST = 6  # samples of a kind that are listed


class Outcome(NamedTuple):
    """How many samples or pixels of known ground truth there are, and how many of them are flagged."""

    normals: int
    anomalies: int
    false_alarms: int
    hits: int

    @classmethod
    def of(cls, flagged: np.ndarray, labels: np.ndarray) -> Self:
        """Of booleans, and labels of the same shape: 0 is normal, above 0 anomalous, others are left out."""
        normal, anomalous = labels == 0, labels > 0
        return cls(*(int(np.sum(each)) for each in (normal, anomalous, normal & flagged, anomalous & flagged)))

    @property
    def precision(self) -> float:
        """Share of anomalies among what is flagged; NaN if nothing is."""
        return _share(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of the anomalies that is flagged; NaN without any."""
        return _share(self.hits, self.anomalies)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN where nothing is anomalous and nothing flagged."""
        return _share(2 * self.hits, self.anomalies + self.hits + self.false_alarms)

    @property
    def false_alarm_rate(self) -> float:
        """Share of the normals that is flagged; NaN without any."""
        return _share(self.false_alarms, self.normals)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def shown(value: float) -> str:
    """A metric, or a dash where it is not defined."""
    return "-" if np.isnan(value) else f"{value:.3f}"


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with what a normalizer says of them, on the host."""

    fit: Fit
    normalizer: Normalizer
    raw: np.ndarray  # (N,)
    normalized: np.ndarray  # (N,)
    flagged: np.ndarray  # (N,)
    labels: np.ndarray | None  # (N,) 0, 1 or, of samples to ignore, -1
    names: Sequence[Any] | None  # N of them; None: their numbers
    maps: np.ndarray | None  # (N, H, W) raw
    masks: np.ndarray | None  # (N, H, W) ground truth
    images: np.ndarray | None  # (N, H, W) or (N, H, W, C)

    @classmethod
    def read(
        cls, fit: Fit, pred_scores: Any, labels: Any, *, anomaly_maps: Any, images: Any, masks: Any, names: Any
    ) -> Self:
        """What was given, of any library, checked. See `report.write_report`."""
        normalizer = Normalizer.from_fit(fit)
        maps = None if anomaly_maps is None else _numbers(anomaly_maps, "anomaly_maps")
        if maps is not None:
            fit.level("pixel")
        if pred_scores is None:
            result = normalizer(anomaly_maps=maps, extras=("raw",))
        else:
            result = normalizer(_numbers(pred_scores, "pred_scores"), extras=("raw",))
        raw, normalized, flagged = (
            result[name].reshape(-1) for name in ("pred_scores_raw", "pred_scores", "pred_labels")
        )
        if not raw.size:
            raise OptionError("pred_scores is empty; give at least one score.")
        maps = None if maps is None else _single_channel(maps)
        truth = None if labels is None else _numbers(labels, "labels").reshape(-1)
        shown = None if images is None else _numbers(images, "images")
        truth_of_pixels = None if masks is None else _single_channel(_numbers(masks, "masks"))
        given = {"labels": truth, "anomaly_maps": maps, "images": shown, "masks": truth_of_pixels, "names": names}
        for name, values in given.items():
            if values is not None and len(values) != len(raw):
                raise OptionError(f"{name} has {len(values)} entries for {len(raw)} scores; give one for each.")
        if truth_of_pixels is not None and maps is None:
            raise OptionError("masks are given, but no anomaly_maps that they could be compared with; give those too.")
        if shown is not None and maps is None:
            raise OptionError("images are given, but no anomaly_maps to show beside them; give those too.")
        if truth_of_pixels is not None and maps is not None and truth_of_pixels.shape != maps.shape:
            raise OptionError(
                f"masks are of (N, H, W) = {truth_of_pixels.shape}, anomaly_maps of {maps.shape}; give them one shape."
            )
        if truth is not None:
            truth = np.where(truth > 0, 1, np.where(truth == 0, 0, -1))
        return cls(fit, normalizer, raw, normalized, flagged, truth, names, maps, truth_of_pixels, shown)

    @property
    def outcome(self) -> Outcome | None:
        """Of the samples; None without labels."""
        return None if self.labels is None else Outcome.of(self.flagged, self.labels)

    def name(self, index: int) -> Element:
        """Of a sample."""
        return name_of(index if self.names is None else self.names[index])

    def worst(self) -> Iterator["Worst"]:
        """The samples that a person should look at."""
        defined = np.flatnonzero(~np.isnan(self.raw))
        from_top = defined[np.argsort(-self.raw[defined].astype(np.float64), kind="stable")]
        if self.labels is None:
            yield Worst("Samples with the highest scores", from_top)
        else:
            normal, anomalous = (from_top[self.labels[from_top] == label] for label in (0, 1))
            yield Worst("Normal samples with the highest scores", normal)
            yield Worst("Anomalies with the lowest scores", anomalous[::-1])
        yield Worst("Samples without a score: NaN, never flagged", np.flatnonzero(np.isnan(self.raw)))


class Worst(NamedTuple):
    """Samples of a kind, the worst ones first."""

    title: str
    positions: np.ndarray


def _numbers(values: Any, argument: str) -> np.ndarray:
    try:
        return to_host(values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{argument}, of type {type(values).__name__}, hold no numbers: {error}") from error


def _single_channel(maps: np.ndarray) -> np.ndarray:
    """Maps (N, H, W), (N, 1, H, W) or (N, H, W, 1) as (N, H, W)."""
    maps = without_last_channel(maps)
    return maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps


def outcomes(samples: Samples) -> Iterator[Element]:
    """How many samples are flagged and, with labels, how right that is."""
    labels, flagged = samples.labels, samples.flagged
    groups = {"All": np.ones(flagged.shape, dtype=bool)}
    if labels is not None:
        groups |= {"Normal": labels == 0, "Anomalous": labels == 1, "Ignored": labels == -1}
    groups["NaN, never flagged"] = np.isnan(samples.raw)
    rows = [
        [name, f"{np.sum(group)}", f"{np.sum(group & flagged)}", _percent_of(group & flagged, group)]
        for name, group in groups.items()
        if name in ("All", "Normal", "Anomalous") or np.any(group)
    ]
    yield table("Samples and how many of them are flagged", ["Samples", "Number", "Flagged", "Share"], rows)
    outcome = samples.outcome
    if outcome is None:
        yield element("p", "No labels were given, so that nothing can be said about how right the decisions are.")
        return
    yield _metrics("Decisions at the threshold", {"image": outcome} | _of_pixels(samples))
    if samples.fit.threshold("image").origin in (Origin.ADAPTIVE, Origin.NORMAL_QUANTILE, Origin.FALSE_ALARM_RATE):
        yield element(
            "p",
            "The threshold was found among validation samples. If these are the same, new ones will do a little worse.",
        )
    yield from _false_alarms(samples, outcome)
    defined = ~np.isnan(samples.raw)
    if np.any(defined & groups["Normal"]) and np.any(defined & groups["Anomalous"]):
        best = adaptive(samples.raw, labels)
        there = Outcome.of(flag(samples.raw, best), np.asarray(labels))
        yield element(
            "p",
            f"The best F1 of these samples is {shown(there.f1)}, with the threshold at {float(best):.6g}. It was "
            "chosen by these samples, and new ones will do a little worse.",
        )


def _of_pixels(samples: Samples) -> dict[str, Outcome]:
    if samples.maps is None or samples.masks is None:
        return {}
    threshold = samples.fit.threshold("pixel").raw
    each = [Outcome.of(flag(own, threshold), mask) for own, mask in zip(samples.maps, samples.masks, strict=True)]
    return {"pixel": Outcome(*(sum(counts) for counts in zip(*each, strict=True)))}


def _metrics(caption: str, outcomes: dict[str, Outcome]) -> Element:
    head = ["Level", "F1", "Precision", "Recall", "False-alarm rate", "False alarms", "Hits", "Missed"]
    rows = [
        [
            level,
            *map(shown, (each.f1, each.precision, each.recall, each.false_alarm_rate)),
            *map(str, (each.false_alarms, each.hits, each.anomalies - each.hits)),
        ]
        for level, each in outcomes.items()
    ]
    return table(caption, head, rows)


def _false_alarms(samples: Samples, outcome: Outcome) -> Iterator[Element]:
    """Promised against observed."""
    if not outcome.normals:
        return
    from scipy.special import betaincinv

    k, n = outcome.false_alarms, outcome.normals
    # Clopper and Pearson (1934).
    low = float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    rate = samples.fit.thresholds["image"].false_alarm_rate
    said = (
        f"{k} of {n} normal samples are flagged, {percent(k / n)}. With 95% confidence, the rate behind that is from "
        f"{percent(low)} to {percent(high)}. "
    )
    if rate is None:
        yield element("p", said)
    elif low <= rate <= high:
        yield element("p", f"{said}The promised rate, {percent(rate)}, is within.")
    elif rate < low:
        words = (
            f"{said}That is more than the {percent(rate)} that was promised: these samples are not like those that "
            "the normalizer was fitted on, or their scores have another distribution than it supposes."
        )
        yield element("p", words, class_="note")
    else:
        yield element("p", f"{said}That is less than the {percent(rate)} that was promised.")


def _percent_of(part: np.ndarray, whole: np.ndarray) -> str:
    return percent(float(np.sum(part) / np.sum(whole))) if np.any(whole) else "-"


def listed(samples: Samples, worst: Worst) -> Element:
    """The first samples of a kind by name, with their scores."""
    rows = [
        [
            samples.name(int(index)),
            f"{float(samples.raw[index]):.6g}",
            f"{float(samples.normalized[index]):.4f}",
            "yes" if samples.flagged[index] else "no",
        ]
        for index in worst.positions[:WORST]
    ]
    caption = f"The first {len(rows)} of {worst.positions.size}"
    return table(caption, ["Sample", "Raw", "Normalized", "Flagged"], rows, label=worst.title)
