"""Promised against observed false-alarm rates on real data: figures for docs/calibration.md and docs/which-method.md.

``nox -s calibration`` runs it; ``-- --quick`` takes one small data set and few splits, and prints instead of writing.
The texts are in calibration_notes.md and which_method_notes.md; every figure in them is put there by this program.
"""

import argparse
import itertools
import os
import platform
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import alarms
import numpy as np
import pixel_alarms
import ranges
from alarms import ALL, CONFIDENCE, SIZES, THREE_SIGMAS, TWO_SIGMAS, Alarms, Row
from calibration_pictures import draw_by_size, draw_reliability
from detectors import DATA, DETECTORS, IMAGES, POSITIVE, ZEROS, maps, scores
from scipy.stats import t

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
SPLITS = 2
ALLOWED = 1.3  # times the rate that a guarantee names
PROMISED_RATES = (0.05, 0.01)


class Part(NamedTuple):
    """What one split of one data set gives."""

    data: str
    alarms: dict[str, dict[Row, Alarms]]  # by detector
    kept: dict[str, dict[tuple[str, str], ranges.Kept]]  # by detector, of positive ones; by case and way
    by_sigmas: dict[str, dict[pixel_alarms.SigmasRow, np.ndarray]]  # by kind of map, of images
    by_rate: dict[str, dict[pixel_alarms.RateRow, pixel_alarms.Observed]]


def part(name: str, number: int, sizes: Sequence[int] = SIZES) -> Part:
    """One split: train all detectors, draw validation samples, count."""
    data, seed = DATA[name](), (list(DATA).index(name), number)
    rng = np.random.default_rng((*seed, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left out, and what is no guarantee: the tables are about that
        by_detector = scores(data, seed)
        by_kind = maps(data, seed) if name in IMAGES else {}
        return Part(
            name,
            {detector: alarms.alarms(of, rng, sizes) for detector, of in by_detector.items()},
            {detector: ranges.kept(by_detector[detector], rng) for detector in POSITIVE},
            {kind: pixel_alarms.by_sigmas(each.pool, rng) for kind, each in by_kind.items()},
            {kind: pixel_alarms.by_rate(each, rng) for kind, each in by_kind.items()},
        )


class Mean(NamedTuple):
    """A mean over detectors and data sets, with a 95% interval over splits."""

    value: float
    margin: float
    guaranteed: bool = False

    def __str__(self) -> str:
        if np.isnan(self.value):
            return ""
        digits = 1 if self.value >= 0.01 else 2
        interval = "" if np.isnan(self.margin) else f" ± {100 * self.margin:.{digits}f}"
        return f"{100 * self.value:.{digits}f}{interval}"


class Study:
    """All parts, by what tables ask for."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = list(parts)
        self.data = list(dict.fromkeys(each.data for each in self.parts))
        self.splits = len(self.parts) // len(self.data)

    def of(self, row: Row, detector: str, data: str) -> list[Alarms]:
        """By split; nothing where the data set is too small for the row or the rule cannot be had."""
        rows = (each.alarms[detector].get(row) for each in self.parts if each.data == data)
        return [each for each in rows if each is not None]

    def mean(
        self,
        row: Row,
        detectors: Collection[str] = POSITIVE,
        data: Collection[str] | None = None,
        field: str = "observed",
    ) -> Mean:
        """The mean of a field of `Alarms`; every detector on every data set has the same weight."""
        kinds = [self.of(row, detector, name) for detector in detectors for name in data or self.data]
        kinds = [each for each in kinds if each]
        if not kinds:
            return Mean(np.nan, np.nan)
        values = [[_mean(getattr(split, field)) for split in each] for each in kinds]
        return _interval(np.asarray(values), all(split.guaranteed for each in kinds for split in each))

    def each(self, row: Row, detectors: Collection[str] = POSITIVE) -> dict[tuple[str, str], Mean]:
        """The same of each detector on each data set."""
        found = {(name, detector): self.mean(row, (detector,), (name,)) for name in self.data for detector in detectors}
        return {key: value for key, value in found.items() if not np.isnan(value.value)}

    def exceeding(self, row: Row, detectors: Collection[str], data: str) -> Mean:
        """The share of calibrations whose observed rate is above the one asked for."""
        of = [self.of(row, detector, data) for detector in detectors]
        return _interval(np.asarray([[np.mean(split.observed > row.rate) for split in each] for each in of]), False)

    def kept(self, case: str, way: str) -> ranges.Kept | None:
        """The mean of what is kept; None where no data set is large enough."""
        every = [by[case, way] for each in self.parts for by in each.kept.values() if (case, way) in by]
        return ranges.Kept(*np.mean(every, axis=0)) if every else None

    def pixels(self, kind: str, row: pixel_alarms.SigmasRow) -> list[np.ndarray]:
        """For each data set, the rate of each pixel, a mean over splits."""
        maps = [(each.data, each.by_sigmas[kind][row]) for each in self.parts if row in each.by_sigmas.get(kind, {})]
        return [np.mean([rates for of, rates in maps if of == name], axis=0) for name in dict(maps)]

    def pixel_rate(self, row: pixel_alarms.RateRow) -> Mean:
        """The rate of a threshold for pixels, a mean over data sets and kinds of maps."""
        kinds = {(each.data, kind) for each in self.parts for kind, rows in each.by_rate.items() if row in rows}
        found = [[e.by_rate[kind][row] for e in self.parts if e.data == name] for name, kind in sorted(kinds)]
        shares = np.asarray([[one.share for one in each] for each in found])
        return _interval(shares, all(one.guaranteed for each in found for one in each))


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else np.nan


def _interval(values: np.ndarray, guaranteed: bool) -> Mean:
    """Of values (kinds, splits)."""
    by_split = np.asarray([_mean(each) for each in values.T])
    by_split = by_split[~np.isnan(by_split)]
    if by_split.size < 2:
        return Mean(_mean(by_split), np.nan, guaranteed)
    margin = t.isf(0.025, by_split.size - 1) * by_split.std(ddof=1) / np.sqrt(by_split.size)
    return Mean(float(by_split.mean()), float(margin), guaranteed)


# Tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table of Markdown; columns after the first ones are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def cell(mean: Mean, promised: float) -> str:
    """In percent; *g* where a guarantee is claimed, bold where it is more than twice what is promised."""
    text = str(mean)
    if text and mean.value - (0 if np.isnan(mean.margin) else mean.margin) > 2 * promised:
        text = f"**{text}**"
    return f"{text} *g*" if text and mean.guaranteed else text


NAMES = {
    "sigmas": "{sigmas:.3g} sigmas",
    "false_alarm_rate": "`false_alarm_rate={rate:.3g}`",
    "confidence": "`false_alarm_rate={rate:.3g}, confidence=0.9`",
}
ON_VALIDATION = (*SIZES, ALL)


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
            expected = [
                study.mean(Row("sigmas", "log", rate, "validation", n), field="promised") for n in ON_VALIDATION
            ]
            rows.insert(
                -3, ["the same, expected by the fit", "log", "", *(str(m._replace(margin=np.nan)) for m in expected)]
            )
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
    columns = [
        (r, tr, rate) for rate in (TWO_SIGMAS, THREE_SIGMAS) for r, tr in (("sigmas", "log"), ("sigmas", "identity"))
    ]
    columns.append(("false_alarm_rate", "log", 0.01))
    names = {
        "training": "training data, as they were trained on",
        "crossed": "training data, cross-fitted in 5 folds",
        "validation": "validation normals, all",
    }
    rows = [
        [
            name,
            *(
                cell(study.mean(Row(*column, fitted_on, ALL))._replace(guaranteed=False), column[2])
                for column in columns
            ),
        ]
        for fitted_on, name in names.items()
    ]
    head = [f"{name_of(rule, rate)}, {transform} ({100 * rate:.3g})" for rule, transform, rate in columns]
    return table(["fitted on", *head], rows)


def detector_table(study: Study) -> str:
    """Each detector on each data set: where promises fail."""
    columns = [("sigmas", "log", TWO_SIGMAS, "training", ALL)]
    columns += [("sigmas", "log", TWO_SIGMAS, "validation", size) for size in (5, 20, ALL)]
    columns += [("false_alarm_rate", "log", 0.01, "validation", size) for size in (5, 20, ALL)]
    rows = []
    for name in study.data:
        for detector in POSITIVE:
            means = [study.mean(Row(*column), (detector,), (name,)) for column in columns]
            rows.append([name, detector, *(cell(m, c[2]) for m, c in zip(means, columns, strict=True))])
    head = [
        "2 sigmas, training",
        *(f"2 sigmas, n = {n}" for n in (5, 20, ALL)),
        *(f"1%, n = {n}" for n in (5, 20, ALL)),
    ]
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
    for rule, transform in (("sigmas", "log"), ("sigmas", "identity"), ("false_alarm_rate", "log"), ("false_alarm_rate", "identity"), ("confidence", "log")):  # fmt: skip
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
            rows.append([case, way, *shares, f"{100 * kept.lost:.2f}", f"{kept.slope:.1f}", f"{kept.moved:.3f}"])
    return rows


KEPT_HEAD = [
    "threshold found on",
    "method",
    "exactly 0",
    "exactly 1",
    "within 0.05 of 0.5",
    "AUROC lost",
    "slopes",
    "moved",
]


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


# What must hold, and what the texts say


def failures(study: Study) -> list[str]:
    """Where the claimed guarantee does not hold, or where one is claimed that cannot be."""
    found = []
    for size in ON_VALIDATION:
        for rate in PROMISED_RATES:
            for transform in ("log", "identity"):
                row = Row("false_alarm_rate", transform, rate, "validation", size)
                each = study.each(row, DETECTORS)
                for (name, detector), mean in each.items():
                    n = alarms.half_of_unseen(len(DATA[name]().normal)) if size == ALL else int(size)
                    if mean.guaranteed != (rate * (n + 1) >= 1):
                        found.append(f"{row}, {detector}, {name}: guaranteed is {mean.guaranteed} for {n} normals")
                    low = mean.value - (0 if np.isnan(mean.margin) else mean.margin)
                    if mean.guaranteed and low > ALLOWED * rate:
                        found.append(f"{row}, {detector}, {name}: {mean}% is observed where {rate:.3g} is guaranteed")
                claimed = [mean.value for mean in each.values() if mean.guaranteed]
                if claimed and np.mean(claimed) > ALLOWED * rate:
                    found.append(f"{row}: {np.mean(claimed):.4f} is observed where {rate:.3g} is guaranteed")
    return found


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
        "splits": str(study.splits),
        "redraws": str(alarms.REDRAWS),
        "minutes": f"{max(1, round(seconds / 60))}",
        "environment": f"anomnorm {version('anomnorm-core')}, {packages}, {platform.machine()}",
    }


def _rates(study: Study) -> dict[str, str]:
    """Rates by names such as ``sigmas_two_20``, ``rate_one_training`` and ``found_one_all``."""
    rules = {"sigmas": ("sigmas", "log"), "rate": ("false_alarm_rate", "log"), "sure": ("confidence", "log")}
    rules |= {"rate_identity": ("false_alarm_rate", "identity"), "sigmas_identity": ("sigmas", "identity")}
    rates = {"two": TWO_SIGMAS, "three": THREE_SIGMAS, "five": 0.05, "one": 0.01}
    places = [("validation", size) for size in ON_VALIDATION] + [("training", ALL), ("crossed", ALL)]
    found = {}
    keys = itertools.product(rules.items(), rates.items(), places)
    for (name, rule), (word, rate), (fitted_on, size) in keys:
        row = Row(*rule, rate, fitted_on, size)
        where = size if fitted_on == "validation" else fitted_on
        mean, caught = study.mean(row), study.mean(row, field="found").value
        found[f"{name}_{word}_{where}"] = str(mean._replace(margin=np.nan)) + "%"
        found[f"{name}_{word}_{where}_found"] = f"{100 * caught:.0f}%"
        if each := study.each(row):
            found[f"{name}_{word}_{where}_worst"] = f"{100 * max(mean.value for mean in each.values()):.1f}%"
    for size in (5, 20, ALL):
        mean = study.mean(Row("sigmas", "log", TWO_SIGMAS, "validation", size), (ZEROS,))
        found[f"zeros_{size}"] = str(mean._replace(margin=np.nan)) + "%"
    exceeding = study.exceeding(Row("false_alarm_rate", "log", 0.01, "validation", 99), POSITIVE, study.data[0])
    found["exceeding_99"] = f"{100 * exceeding.value:.0f}%"
    for per, scale in itertools.product(("image", "pixel"), ("raw", pixel_alarms.SAME)):
        mean = study.pixel_rate(pixel_alarms.RateRow(scale, per, 0.05, 20))
        found[f"{'same' if scale == pixel_alarms.SAME else scale}_{per}_20"] = str(mean._replace(margin=np.nan)) + "%"
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
                text = f"{value:.0f}" if field == "slope" else f"{100 * value:.1f}"
                found[f"{name}_{field}_{number}"] = text
    return found


def write(study: Study, seconds: float) -> None:
    """Both pages and their pictures."""
    values = figures(study, seconds)
    for notes, page in (("calibration_notes.md", "calibration.md"), ("which_method_notes.md", "which-method.md")):
        text = (FOLDER / notes).read_text(encoding="utf-8").format(**values)
        (DOCS / page).write_text(text, encoding="utf-8")
        print(f"wrote docs/{page}: {words(text)} words besides tables")
    draw_reliability(study.mean, DOCS / "images" / "calibration.png")
    draw_by_size(study.mean, DOCS / "images" / "which-method.png")


def _processor_seconds() -> float:
    """What this process and its workers have computed."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def words(text: str) -> int:
    """Of a page, without its tables."""
    return sum(len(line.split()) for line in text.splitlines() if not line.startswith("|"))


def run(
    names: Sequence[str] = tuple(DATA), splits: int = SPLITS, sizes: Sequence[int] = SIZES, workers: int = 1
) -> Study:
    """All splits of all data sets; each process has one thread."""
    jobs = [(name, number) for number in range(splits) for name in names]
    work = partial(part, sizes=sizes)
    if workers == 1:
        return Study(work(*job) for job in jobs)
    found = []
    with ProcessPoolExecutor(workers) as pool:
        for each in pool.map(work, *zip(*jobs, strict=True)):
            found.append(each)
            print(f"\r{len(found)} of {len(jobs)} splits", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return Study(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one data set, few splits; print instead of writing")
    quick = parser.parse_args(arguments).quick
    if quick:
        study = run(("wine",), splits=2, sizes=(5, 20))
        print(main_table(study), guarantee_table(study), range_table(study), sep="\n\n")
    else:
        study = run(workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        write(study, _processor_seconds())
    if found := failures(study):
        raise SystemExit("\n".join(["These guarantees do not hold:", *found]))
    print(f"All guarantees hold: at most {ALLOWED} times {' and '.join(map(str, PROMISED_RATES))}.")


if __name__ == "__main__":
    main()
