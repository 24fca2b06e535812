"""What a report says of the fit alone: statistics, thresholds, and what normalized scores mean."""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

import numpy as np

from anomnorm_core._page import element, table
from anomnorm_core.fit import Fit, Threshold
from anomnorm_core.methods import METHODS
from anomnorm_core.options import LARGEST_FLOAT32, LEVELS, Origin, Units

MARKS = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)  # normalized scores whose meaning is shown

_METHODS = {
    "min-max": "Linear in the raw score, over a range as long as that of the validation run, with 0.5 at the "
    "threshold. What is beyond that range is 0 or 1.",
    "two-slope": "Linear on each side of the threshold, which is at 0.5: the smallest score of the validation run is "
    "at 0 and the largest at 1. What is beyond is 0 or 1.",
    "cdf": "The logarithms of normal scores are taken as normally distributed. A normalized score is the normal "
    "distribution function of how many standard deviations (sigmas) a score is from the threshold.",
    "normal": "Normal scores are taken as normally distributed. A normalized score is the normal distribution function "
    "of how many standard deviations (sigmas) a score is from the threshold.",
}

_ORIGINS = {
    Origin.MANUAL: "manual: somebody has set it, and later validation runs keep it",
    Origin.OPTION: "a number that was given as an option",
    Origin.MODULE: "that of the trained module itself",
    Origin.ADAPTIVE: "the one of the best F1 in the validation run",
    Origin.NORMAL_QUANTILE: "just above the normal samples of the validation run",
    Origin.FALSE_ALARM_RATE: "the one for the false-alarm rate that was asked for, found in the validation run",
    Origin.IMAGE: "that of the image scores, with which it moves",
    Origin.UNKNOWN: "of unknown origin",
}


def span(array: np.ndarray, digits: int = 6) -> str:
    """A number or, of pixels with numbers of their own, the smallest and the largest."""
    low, high = (f"{each:.{digits}g}" for each in (float(np.min(array)), float(np.max(array))))
    return low if low == high else f"{low} to {high}"


def percent(share: float) -> str:
    """A share in words that do not claim more than it says."""
    if 0 < share < 1e-6:
        return "below 0.0001%"
    return "above 99.9%" if 0.999 < share < 1 else f"{100 * share:.3g}%"


def statistics(fit: Fit) -> Iterator[Element]:
    """The method, and what was fitted at each level."""
    method = fit.method
    yield element("h2", "What was fitted")
    words = _METHODS.get(method.name)
    title = method.title or method.name
    yield element("p", f"{title[:1].upper()}{title[1:]}.", *([f" {words}"] if words else []))
    package, version = fit.fitted_with
    maps = (
        "any size"
        if fit.resolution is None
        else "{} by {} pixels, each with its own statistics".format(*fit.resolution)
    )
    if fit.options:
        options = ", ".join(f"{name}={value}" for name, value in fit.options.items())
        yield element("p", "Options: ", element("code", options), ".")
    yield element(
        "p",
        f"Fitted with {package or 'an unknown package'} {version}".rstrip() + ". ",
        "It has no statistics of anomaly maps." if fit.pixel is None else f"Anomaly maps: {maps}.",
    )
    of = " of log scores" if method.positive else ""
    head = ["Level", *(f"{name[:1].upper()}{name[1:]}{of}" for name in method.parameters), "Values", "Left out"]
    rows = []
    for level in LEVELS:
        fitted = fit.image if level == "image" else fit.pixel
        if fitted is None:
            continue
        known = fitted.valid + fitted.invalid > 0
        counts = [f"{fitted.valid}", f"{fitted.invalid}"] if known else ["unknown", "unknown"]
        zeros = [span(100 * fitted.known_zeros) + "%"] if method.positive else []
        rows.append([f"{level}", *(span(array) for array in fitted.parameters), *counts, *zeros])
    yield table("Statistics by level", [*head, *(["Exact zeros"] if method.positive else [])], rows)
    if any(getattr(fit, level) is not None and getattr(fit, level).invalid for level in LEVELS):
        yield element(
            "p",
            "Values were left out because they are NaN or infinite"
            + (", or zero or negative, which have no logarithm" if method.positive else "")
            + ": look into them if they are many.",
            class_="note",
        )


def thresholds(fit: Fit) -> Iterator[Element]:
    """Each threshold, where it comes from, and what it promises."""
    yield element("h2", "Thresholds")
    rows = []
    for level, threshold in fit.thresholds.items():
        rate = threshold.false_alarm_rate
        promised = "unknown" if rate is None else percent(rate) + (" at most" if threshold.guaranteed else "")
        sigmas = [_sigmas(threshold)] if fit.method.sigmas else []
        rows.append([level, span(threshold.raw), *sigmas, promised])
    head = ["Level", "Raw", *(["Sigmas"] if fit.method.sigmas else []), "Expected false alarms"]
    yield table("Thresholds by level", head, rows)
    for level, threshold in fit.thresholds.items():
        yield element("p", _promise(fit, level, threshold))


def _sigmas(threshold: Threshold) -> str:
    if threshold.sigmas is None:
        return "differ"
    return f"{threshold.sigmas:.4g}" if abs(threshold.sigmas) < LARGEST_FLOAT32 else "infinite"


def _promise(fit: Fit, level: str, threshold: Threshold) -> str:
    one, many, rate = "sample", "samples", threshold.false_alarm_rate
    if level == "pixel":
        one, many = "pixel", "pixels"
    said = (
        f"The {level} threshold is {_ORIGINS[threshold.origin]}. A {one} is flagged where its raw score is "
        f"{span(threshold.raw, 9)} or more, which is 0.5 when normalized."
    )
    if rate is None:
        return (
            f"{said} Nothing is known about normal {many}, so that no rate of false alarms can be expected: validate "
            "with labels, 0 for normal, and let the threshold be found."
        )
    said += f" Of new normal {many}, {percent(rate)} are expected to be flagged"
    if 1e-6 <= rate < 0.2:
        said += f", about 1 in {1 / rate:,.0f}"
    if threshold.guaranteed:
        return (
            f"{said}, or fewer. This holds on average over validation runs, whatever the distribution, as long as new "
            "normal samples are like those that the threshold was found on."
        )
    if fit.method.sigmas:
        of = "logarithms of their scores" if fit.method.positive else "scores"
        return f"{said}. This is as true as the {of} are normally distributed; it is no guarantee."
    return f"{said}. This is predicted from the moments of the normal validation samples; it is no guarantee."


def meaning(fit: Fit, level: str) -> tuple[list[str], list[list[str]]]:
    """What some normalized scores are in raw units and sigmas, and how many new normals reach them: head and rows."""
    kernels = METHODS[fit.method.name]
    arguments = [array.astype(np.float64) for array in fit.arguments(level)]
    is_known = fit.method.sigmas or fit.level(level).normals is not None
    head = ["Normalized", "Raw", *(["Sigmas"] if kernels.sigmas else []), *(["New normals reaching it"] * is_known)]
    rows = []
    for mark in MARKS:
        raw = np.asarray(kernels.inverse(np.asarray(mark), fit.threshold(level).raw, *arguments))
        row = [f"{mark:g}", span(raw)]
        if kernels.sigmas is not None:
            row.append(span(kernels.sigmas(raw, *arguments), 4))
        if is_known:
            row.append(percent(float(np.mean(fit.false_alarm_rate(raw, Units.RAW, level)))))
        rows.append(row)
    return head, rows
