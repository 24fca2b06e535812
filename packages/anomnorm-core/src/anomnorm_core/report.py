"""A report about a normalizer and the scores that it judges: one HTML file that needs no network and no script."""

import os
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from anomnorm_core import file
from anomnorm_core._page import element, figures, page, table
from anomnorm_core._report_charts import charts, map_chart
from anomnorm_core._report_fit import MARKS, meaning, percent, statistics, thresholds
from anomnorm_core._report_scores import WORST, Samples, listed, outcomes, shown
from anomnorm_core._version import __version__
from anomnorm_core.errors import OptionError
from anomnorm_core.fit import Fit
from anomnorm_core.normalizer import BaseNormalizer
from anomnorm_core.plot.style import require_matplotlib


def write_report(
    path: str | os.PathLike[str],
    normalizer: BaseNormalizer,
    pred_scores: Any = None,
    labels: Any = None,
    *,
    anomaly_maps: Any = None,
    images: Any = None,
    masks: Any = None,
    names: Sequence[Any] | None = None,
    title: str = "Normalization report",
) -> None:
    """Write a page about ``normalizer`` and, where given, about scores. It appears complete or not at all.

    It says what was fitted and on how much, where thresholds come from and what they promise, and what normalized
    scores mean. Of scores it shows how many are flagged, histograms, and the ones that a person should look at; with
    labels F1, precision, recall, false alarms as promised and as observed, and both against the threshold. The same
    input gives the same bytes. Charts need matplotlib, the extra ``plot``; without it the page says that they are
    missing.

    Args:
        path: of the file, which ends in ``.html`` by custom; an old one is replaced.
        normalizer: of any of the packages.
        pred_scores: raw image scores of shape (N,) or (N, 1); without them, the maximum of each map. None without maps:
            the page says what the fit alone says.
        labels: shape (N,): 0 for normal, above 0 for anomalous; below 0 or NaN to ignore.
        anomaly_maps: raw maps of shape (N, H, W), (N, 1, H, W) or (N, H, W, 1).
        images: what was scored, shown beside the maps: (N, H, W), or with 1, 3 or 4 channels first or last.
        masks: ground truth of the pixels, of the shape of the maps.
        names: of the samples, N of them; None: their numbers, from 0 on.
        title: of the page.

    Raises:
        OptionError: something has not one entry for each score, or has no values that can be shown.
        OutputError, NotFittedError, ResolutionError: as a call of the normalizer.
        OSError: the file cannot be written; an old one stays.
    """
    target = file.target_of(path)  # before any work
    fit = normalizer.to_fit()
    samples = None
    if pred_scores is None and anomaly_maps is None:
        for name, value in (("labels", labels), ("images", images), ("masks", masks), ("names", names)):
            if value is not None:
                raise OptionError(f"{name} are given, but neither pred_scores nor anomaly_maps; give those too.")
    else:
        samples = Samples.read(
            fit, pred_scores, labels, anomaly_maps=anomaly_maps, images=images, masks=masks, names=names
        )
    content = [
        element("h1", title),
        element("p", f"Written by anomnorm-core {__version__}.", class_="lead"),
        figures(_most_important(fit, samples)),
        *thresholds(fit),
        *_meanings(fit, samples),
        *statistics(fit),
        *([] if samples is None else _of_scores(samples)),
    ]
    with file.replacing(target) as output:
        output.write(page(title, *content))


def _most_important(fit: Fit, samples: Samples | None) -> Iterator[tuple[str, str]]:
    threshold = fit.thresholds["image"]
    yield "Method", fit.method.title or fit.method.name
    yield "Raw threshold", f"{float(threshold.raw):.4g}"
    if threshold.false_alarm_rate is not None:
        yield "Expected false alarms", percent(threshold.false_alarm_rate)
    if samples is None:
        return
    yield "Flagged", f"{np.sum(samples.flagged)} of {samples.flagged.size}"
    outcome = samples.outcome
    if outcome is not None:
        yield "F1", shown(outcome.f1)
        if outcome.normals:
            yield "False alarms here", percent(outcome.false_alarm_rate)


def _meanings(fit: Fit, samples: Samples | None) -> Iterator[Element]:
    yield element("h2", "What normalized scores mean")
    yield element("p", "Scores from 0 to 1, with 0.5 at the threshold: what has 0.5 or more is flagged.")
    for level in fit.thresholds:
        head, rows = meaning(fit, level)
        if level == "image" and samples is not None and samples.labels is not None:
            for name, label in (("Normals here", 0), ("Anomalies here", 1)):
                own = samples.normalized[samples.labels == label]
                if own.size:
                    head.append(name)
                    rows = [[*row, percent(float(np.mean(own >= mark)))] for mark, row in zip(MARKS, rows, strict=True)]
        yield table(f"Normalized {level} scores, and who reaches them", head, rows, marked=(MARKS.index(0.5),))
    if fit.thresholds["image"].guaranteed:
        words = (
            "The share of new normals in these rows is that of the fitted distribution. The promise of the threshold "
            "itself needs no distribution; where the two are far apart, the distribution fits badly."
        )
        yield element("p", words)


def _of_scores(samples: Samples) -> Iterator[Element]:
    yield element("h2", "These samples")
    yield from outcomes(samples)
    try:
        require_matplotlib()
    except ModuleNotFoundError as error:
        yield element("p", f"There are no charts here: {error}.", class_="note")
        can_draw = False
    else:
        can_draw = True
        if np.any(np.isfinite(samples.raw)):
            yield element("div", *charts(samples), class_="charts")
    yield element("h2", "Samples to look at")
    for worst in samples.worst():
        if not worst.positions.size:
            continue
        yield element("h3", worst.title)
        yield listed(samples, worst)
        if samples.maps is not None and can_draw:
            yield element("div", *(map_chart(samples, int(each)) for each in worst.positions[:WORST]), class_="charts")
