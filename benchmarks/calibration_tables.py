"""Tables and figures of the calibration study, as its pages name them."""

import itertools
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import alarms
import numpy as np
import pixel_alarms
import ranges
from alarms import ALL, THREE_SIGMAS, TWO_SIGMAS, Row
from calibration_study import ON_VALIDATION, PROMISED_RATES, Mean, Study
from detectors import DATA, POSITIVE, ZEROS

from anomnorm_core.threshold.false_alarms import needed

_RATES = {"two": TWO_SIGMAS, "three": THREE_SIGMAS, "five": 0.05, "one": 0.01}


def figures(study: Study, seconds: float) -> dict[str, str]:
    """Everything that the texts name, by name."""
    tables = {
        "main": main_table,
        "fitted_on": fitted_on_table,
        "detectors": detector_table,
        "guarantee": guarantee_table,
        "confidence": confidence_table,
        "found": found_table,
        "zeros": zeros_table,
        "pixels": pixel_table,
        "pixel_rates": pixel_rate_table,
        "ranges": range_table,
        "shares": share_table,
    }
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn"))
    normals = {name: len(DATA[name]().normal) for name in study.data}
    all_of = [alarms.half_of_unseen(number) for number in normals.values()]
    return {
        **{name: make(study) for name, make in tables.items()},
        **_rates(study),
        **_kept(study),
        **{f"n_{name.replace(' ', '_')}": str(number) for name, number in normals.items()},
        "all_least": str(min(all_of)),
        "all_most": str(max(all_of)),
        **{f"needed_{word}": str(needed(rate, None)) for word, rate in _RATES.items()},
        **{f"needed_sure_{word}": str(needed(rate, alarms.CONFIDENCE)) for word, rate in _RATES.items()},
        "splits": str(study.splits),
        "redraws": str(alarms.REDRAWS),
        "minutes": f"{max(1, round(seconds / 60))}",
        "environment": f"anomnorm {version('anomnorm-core')}, {packages}, {platform.machine()}",
    }


def _rates(study: Study) -> dict[str, str]:
    """Rates by names such as ``sigmas_two_20``, ``rate_one_training_worst`` and ``rate_one_5_found``."""
    rules = {"sigmas": ("sigmas", "log"), "rate": ("false_alarm_rate", "log"), "sure": ("confidence", "log")}
    rules |= {"rate_identity": ("false_alarm_rate", "identity"), "sigmas_identity": ("sigmas", "identity")}
    places = [*itertools.product(("validation",), ON_VALIDATION), ("training", ALL), ("crossed", ALL)]
    found = {}
    keys = itertools.product(rules.items(), _RATES.items(), places)
    for (name, rule), (word, rate), (fitted_on, size) in keys:
        row = Row(*rule, rate, fitted_on, size)
        where = size if fitted_on == "validation" else fitted_on
        mean, caught = study.mean(row), study.mean(row, field="found").value
        found[f"{name}_{word}_{where}"] = mean.percent() + "%"
        found[f"{name}_{word}_{where}_found"] = f"{100 * caught:.0f}%"
        if each := study.each(row):
            found[f"{name}_{word}_{where}_worst"] = f"{100 * max(mean.value for mean in each.values()):.1f}%"
    found["zeros_all"] = study.mean(Row("sigmas", "log", TWO_SIGMAS, "validation", ALL), (ZEROS,)).percent() + "%"
    exceeding = study.exceeding(Row("false_alarm_rate", "log", 0.01, "validation", 99), POSITIVE, study.data[0])
    found["exceeding_99"] = f"{100 * exceeding.value:.0f}%"
    same = pixel_alarms.RateRow(pixel_alarms.SAME, "image", 0.05, 20)
    found["same_image_20"] = study.pixel_rate(same).percent() + "%"
    return found


def _kept(study: Study) -> dict[str, str]:
    """What is kept, by names such as ``min_max_lost_0``, with the number of the case."""
    names = {
        "min_max": "min-max",
        "two_slope": f"two-slope, {ranges.CHOSEN:.0%}",
        "continued": ranges.CONTINUED,
        "share_0": "two-slope, 0%",
        "share_20": "two-slope, 20%",
    }
    found = {}
    for (name, way), (number, case) in itertools.product(names.items(), enumerate(ranges.CASES)):
        if kept := study.kept(case, way):
            for field, value in kept._asdict().items():
                text = (
                    f"{value:.0f}" if field == "slope" else _points(value) if field == "lost" else f"{100 * value:.1f}"
                )
                found[f"{name}_{field}_{number}"] = text
    return found


def _points(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:.2f}"  # not -0.00


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table of Markdown; columns after the first ones are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def cell(mean: Mean, promised: float) -> str:
    """In percent; *g* where a guarantee is claimed, bold where it is more than twice what is promised."""
    text = str(mean)
    text = f"**{text}**" if text and mean.least > 2 * promised else text
    return f"{text} *g*" if text and mean.guaranteed else text


NAMES = {
    "sigmas": "{sigmas:.3g} sigmas",
    "false_alarm_rate": "`false_alarm_rate={rate:.3g}`",
    "confidence": "`false_alarm_rate={rate:.3g}, confidence=0.9`",
}


def name_of(rule: str, rate: float) -> str:
    return NAMES[rule].format(rate=rate, sigmas={TWO_SIGMAS: 2, THREE_SIGMAS: 3}.get(rate, np.nan))


def main_table(study: Study) -> str:
    """Rules by how many normals they are found on."""
    rows = []
    for rate in (TWO_SIGMAS, THREE_SIGMAS, *PROMISED_RATES):
        for rule in ("sigmas", "false_alarm_rate") if rate in (TWO_SIGMAS, THREE_SIGMAS) else ("false_alarm_rate",):
            for transform in ("log", "identity"):
                means = [study.mean(Row(rule, transform, rate, "validation", size)) for size in ON_VALIDATION]
                rows.append([name_of(rule, rate), transform, f"{100 * rate:.3g}", *(cell(m, rate) for m in means)])
        if rate in (TWO_SIGMAS, THREE_SIGMAS):
            sigmas = [Row("sigmas", "log", rate, "validation", size) for size in ON_VALIDATION]
            expected = [study.mean(row, field="promised").percent() for row in sigmas]
            rows.insert(-3, ["the same, expected by the fit", "log", "", *expected])
    for rate in PROMISED_RATES:
        means = [study.mean(Row("confidence", "log", rate, "validation", size)) for size in ON_VALIDATION]
        rows.append([name_of("confidence", rate), "log", f"{100 * rate:.3g}", *(cell(m, rate) for m in means)])
    for share in alarms.QUANTILES:
        cells = []
        for size in ON_VALIDATION:
            row = Row("quantile", "", share, "validation", size)
            mean, promised = study.mean(row), study.mean(row, field="promised").value
            cells.append(f"{cell(mean, promised)} of {100 * promised:.1f}" if str(mean) else "")
        rows.append([f"`normal_quantile={share}`", "", "(k+1)/(n+1)", *cells])
    return table(["threshold", "transform", "promised", *(f"n = {n}" for n in ON_VALIDATION)], rows, text_columns=2)


def fitted_on_table(study: Study) -> str:
    """Where the normals come from."""
    columns = list(itertools.product(("sigmas",), ("log", "identity"), (TWO_SIGMAS, THREE_SIGMAS)))
    columns.append(("false_alarm_rate", "log", 0.01))
    names = {
        "training": "training data, as they were trained on",
        "crossed": "training data, cross-fitted in 5 folds",
        "validation": "validation normals, all",
    }
    rows = []
    for fitted_on, name in names.items():
        means = [study.mean(Row(*column, fitted_on, ALL))._replace(guaranteed=False) for column in columns]
        rows.append([name, *(cell(mean, rate) for mean, (_, _, rate) in zip(means, columns, strict=True))])
    head = [f"{name_of(rule, rate)}, {transform} ({100 * rate:.3g})" for rule, transform, rate in columns]
    return table(["fitted on", *head], rows)


def detector_table(study: Study) -> str:
    """Each detector on each data set: where promises fail."""
    sizes: tuple[int | str, ...] = (5, 20, ALL)
    columns = [Row("sigmas", "log", TWO_SIGMAS, "training", ALL)]
    columns += [Row("sigmas", "log", TWO_SIGMAS, "validation", size) for size in sizes]
    columns += [Row("false_alarm_rate", "log", 0.01, "validation", size) for size in sizes]
    rows = []
    for name in study.data:
        for detector in POSITIVE:
            cells = [cell(study.mean(row, (detector,), (name,)), row.rate) for row in columns]
            rows.append([name, detector, *cells])
    head = ["2 sigmas, training", *(f"{name}, n = {size}" for name in ("2 sigmas", "1%") for size in sizes)]
    return table(["data", "detector", *head], rows, text_columns=2)


def guarantee_table(study: Study) -> str:
    """Mean and worst mean at each size, and whether there is a guarantee."""
    rows = []
    for size in ON_VALIDATION:
        cells = [f"n = {size}"]
        for rate in PROMISED_RATES:
            row = Row("false_alarm_rate", "log", rate, "validation", size)
            each = study.each(row)
            if not each:
                cells += ["", "", ""]
                continue
            mean = study.mean(row)
            claimed = {kind: m.guaranteed for kind, m in each.items()}
            word = "yes" if all(claimed.values()) else "no" if not any(claimed.values()) else "where n is large enough"
            worst = max(each, key=lambda kind, each=each: each[kind].value)
            cells += [word, f"{mean}", f"{each[worst]} ({worst[1]}, {worst[0]})"]
        rows.append(cells)
    head = [f"{100 * rate:g}%: {word}" for rate in PROMISED_RATES for word in ("guarantee", "observed", "worst mean")]
    return table(["", *head], rows)


def confidence_table(study: Study) -> str:
    """How often one calibration exceeds the rate, on the largest data set."""
    name, rows = study.data[0], []
    for size in (50, 99, ALL):
        for rate in PROMISED_RATES:
            for rule in ("false_alarm_rate", "confidence"):
                row = Row(rule, "log", rate, "validation", size)
                mean = study.mean(row, POSITIVE, (name,))
                if not str(mean):
                    continue
                exceeding = study.exceeding(row, POSITIVE, name)
                by_ranks = [study.mean(row, POSITIVE, (name,), field) for field in ("exceeding", "exceeding_all")]
                laws = [f"{100 * each.value:.1f}" if each.guaranteed else "" for each in by_ranks]
                rows.append([f"n = {size}", name_of(rule, rate), cell(mean, rate), str(exceeding), *laws])
    head = ["", "threshold", "observed", "calibrations above the rate", "by ranks", "by ranks, all normals"]
    return table(head, rows, text_columns=2)


def found_table(study: Study) -> str:
    """What a lower rate costs: anomalies that are found."""
    rows = []
    rules = (*itertools.product(("sigmas", "false_alarm_rate"), ("log", "identity")), ("confidence", "log"))
    for rule, transform in rules:
        cells = []
        for size in ON_VALIDATION:
            row = Row(rule, transform, 0.01, "validation", size)
            observed, caught = study.mean(row).value, study.mean(row, field="found").value
            cells.append("" if np.isnan(caught) else f"{100 * caught:.0f} at {100 * observed:.1f}")
        title = "sigmas for 1%" if rule == "sigmas" else name_of(rule, 0.01)
        rows.append([title, transform, *cells])
    return table(["threshold", "transform", *(f"n = {n}" for n in ON_VALIDATION)], rows, text_columns=2)


def zeros_table(study: Study) -> str:
    """A detector that gives zeros to most normals."""
    rows = []
    for rule in ("sigmas", "false_alarm_rate"):
        cells = []
        for size in ON_VALIDATION:
            row = Row(rule, "log", TWO_SIGMAS, "validation", size)
            observed, caught = study.mean(row, (ZEROS,)), study.mean(row, (ZEROS,), field="found").value
            cells.append(f"{cell(observed, TWO_SIGMAS)}; {100 * caught:.0f}" if str(observed) else "")
        rows.append([name_of(rule, TWO_SIGMAS), *cells])
    return table(["threshold", *(f"n = {n}" for n in ON_VALIDATION)], rows)


def pixel_table(study: Study) -> str:
    """Rates of pixels, by how many images their means and deviations are of."""
    rows = []
    kinds = dict.fromkeys(kind for each in study.parts for kind in each.by_sigmas)
    keys = itertools.product(kinds, pixel_alarms.CENTERS, pixel_alarms.SIGMAS, pixel_alarms.FINALIZERS)
    for kind, center, sigmas, finalizer in keys:
        promised, cells = pixel_alarms.promised(sigmas), []
        for size in pixel_alarms.SIZES:
            found = study.pixels(kind, pixel_alarms.SigmasRow(finalizer, center, sigmas, size))
            mean = Mean(float(np.mean([each.mean() for each in found])), np.nan)
            cells.append(f"{cell(mean, promised)}; {100 * max(each.max() for each in found):.1f}")
        rows.append([kind, f"`{center}`", finalizer, f"{sigmas:g} sigmas ({100 * promised:.3g})", *cells])
    head = ["maps", "center", "deviations", "threshold", *(f"n = {n}" for n in pixel_alarms.SIZES)]
    return table(head, rows, text_columns=4)


def pixel_rate_table(study: Study) -> str:
    """Thresholds of pixels for a rate."""
    rows = []
    for scale, per, rate in itertools.product(pixel_alarms.SCALES, ("pixel", "image"), pixel_alarms.RATES):
        means = [study.pixel_rate(pixel_alarms.RateRow(scale, per, rate, size)) for size in pixel_alarms.SIZES]
        rows.append([scale, f"`{per}`", f"{100 * rate:g}", *(cell(mean, rate) for mean in means)])
    head = ["pixels are", "`per`", "promised", *(f"n = {n}" for n in pixel_alarms.SIZES)]
    return table(head, rows, text_columns=2)


def _kept_rows(study: Study, case: str, ways: Sequence[str]) -> list[list[str]]:
    rows = []
    for way in ways:
        kept = study.kept(case, way)
        if kept is not None:
            shares = [f"{100 * share:.1f}" for share in (kept.zeros, kept.ones, kept.crowded)]
            rows.append([case, way, *shares, _points(kept.lost), f"{kept.slope:.1f}", f"{kept.moved:.3f}"])
    return rows


KEPT_HEAD = ("threshold found on", "method", "exactly 0", "exactly 1", "near 0.5", "AUROC lost", "slopes", "moved")


def range_table(study: Study) -> str:
    """Normals only: what is kept."""
    ways = ("min-max", f"two-slope, {ranges.CHOSEN:.0%}", ranges.CONTINUED, "min-max, margin", "log-normal CDF")
    cases = list(ranges.CASES)[:2]
    return table(KEPT_HEAD, [row for case in cases for row in _kept_rows(study, case, ways)], text_columns=2)


def share_table(study: Study) -> str:
    """The share of the range below which a side has the slope of min-max."""
    ways = [f"two-slope, {share:.0%}" for share in ranges.SHARES]
    cases = list(ranges.CASES)[2:]
    return table(KEPT_HEAD, [row for case in cases for row in _kept_rows(study, case, ways)], text_columns=2)
