"""The pictures of a report: those of `plot`, as SVG in the page, in the page's colors and font."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import Element, fromstring

import numpy as np

from anomnorm_core import plot
from anomnorm_core._page import element
from anomnorm_core._report_scores import Samples
from anomnorm_core.plot.map_rows import range_of
from anomnorm_core.plot.style import INK, put_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 4.7, 3.6  # inches: on a phone its text is nearly as large as that of the page
_PLACES = {"left": 0.02, "right": 0.98, "top": 0.94, "bottom": 0.1}
_XLINK = "{http://www.w3.org/1999/xlink}href"
_SETTINGS: Any = {
    **plot.EITHER_GROUND,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "anomnorm",  # the same ids for the same picture
    "svg.image_inline": True,
}


def charts(samples: Samples) -> Iterator[Element]:
    """Histograms of the scores and, with labels, curves over all thresholds and the rates of false alarms."""
    given = (samples.normalizer, samples.raw, samples.labels)
    with _style():
        raw, normalized = _axes(), _axes()
        plot.scores(*given, ax=[raw, normalized])
        for each in (raw, normalized):  # large counts need the whole width
            put_legend(each, columns=1)
        yield _figure(raw, "raw", "Histogram of the raw scores, with the threshold and what was fitted.")
        yield _figure(normalized, "normalized", "Histogram of the normalized scores, with the threshold at 0.5.")
        if samples.labels is None:
            return
        finite = np.isfinite(samples.raw)
        normals, anomalies = samples.labels == 0, samples.labels == 1
        if np.any(normals) and np.any(anomalies) and np.any(finite & (normals | anomalies)):
            curves = _axes(height=4.6)
            plot.thresholds(*given, ax=curves)
            put_legend(curves, columns=1)
            yield _figure(
                curves, "curves", "F1, precision, recall and false-alarm rate, had the threshold been another one."
            )
        fit = samples.fit
        if np.any(finite & normals) and (fit.method.sigmas or fit.level("image").normals is not None):
            rates = _axes()
            plot.false_alarms(*given, ax=rates)
            yield _figure(
                rates, "rates", "Share of these normal samples that is flagged, against the share that was promised."
            )


def map_chart(samples: Samples, index: int) -> Element:
    """What a detector saw in a sample, and where it found something."""
    from matplotlib.figure import Figure

    assert samples.maps is not None  # noqa: S101  # the caller has looked
    with _style():
        figure = Figure(figsize=(_WIDTH, 5.6))  # laid out by numbers, which takes half of the time
        axes = figure.subplots(2, 2, gridspec_kw={**_PLACES, "hspace": 0.42, "wspace": 0.08})
        own = slice(index, index + 1)
        images = samples.maps if samples.images is None else samples.images
        masks = None if samples.masks is None else samples.masks[own]
        plot.maps(samples.normalizer, images[own], samples.maps[own], masks, index=0, axes=axes)
        axes[0, 0].set_ylabel("")
        axes[0, 1].images[0].set_clim(*range_of(samples.maps))  # one scale for all samples
        name = samples.name(index)
        described = f"Input, raw map, normalized map and flagged pixels of {name.text}"
        drawn = _inline(figure, f"map{index}", described)
        decision = "flagged" if samples.flagged[index] else "not flagged"
        return element("figure", drawn, element("figcaption", name, f": raw {samples.raw[index]:.4g}, {decision}"))


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(_SETTINGS):
        yield


def _axes(height: float = _HEIGHT) -> "Axes":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained").subplots()


def _figure(axes: "Axes", prefix: str, caption: str) -> Element:
    return element("figure", _inline(axes.figure, prefix, caption), element("figcaption", caption))


def _inline(figure: Any, prefix: str, description: str) -> Element:
    """A figure as an element: of the width that there is, in the page's ink, with ids of its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = fromstring(text.getvalue())  # noqa: S314  # it was written in the line before
    for part in svg.iter():
        part.tag = part.tag.rpartition("}")[2]  # a page needs no namespaces
        if part.tag == "image":  # matplotlib up to 3.10 names several alike
            part.attrib.pop("id", None)
        link = part.attrib.pop(_XLINK, None)
        if link is not None:
            part.set("href", re.sub("^#", f"#{prefix}-", link))
        for key, value in part.attrib.items():
            if key == "id":
                part.set("id", f"{prefix}-{value}")
            elif key in ("style", "clip-path", "fill", "stroke"):
                part.set(key, value.replace("url(#", f"url(#{prefix}-").replace(INK, "var(--ink)"))
    for size in ("width", "height", "version"):
        svg.attrib.pop(size, None)
    for metadata in svg.findall("metadata"):
        svg.remove(metadata)
    svg.set("role", "img")
    svg.set("aria-label", description)
    return svg
