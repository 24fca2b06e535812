"""The calibration study: all splits, and means over them with intervals."""

import itertools
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import alarms
import numpy as np
import pixel_alarms
import ranges
from alarms import ALL, SIZES, Alarms, Row
from detectors import DATA, DETECTORS, IMAGES, POSITIVE, maps, scores
from scipy.stats import t

SPLITS = 30
ON_VALIDATION = (*SIZES, ALL)
PROMISED_RATES = (0.05, 0.01)
ALLOWED = 1.3  # times the rate that a guarantee names


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

    def percent(self) -> str:
        """The value alone; nothing where there is none."""
        return "" if np.isnan(self.value) else f"{100 * self.value:.{self._digits}f}"

    def __str__(self) -> str:
        return self.percent() + ("" if np.isnan(self.margin) else f" ± {100 * self.margin:.{self._digits}f}")

    @property
    def _digits(self) -> int:
        return 1 if self.value >= 0.01 else 2

    @property
    def least(self) -> float:
        """The lower end of the interval."""
        return self.value if np.isnan(self.margin) else self.value - self.margin


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


def failures(study: Study) -> list[str]:
    """Where a claimed guarantee does not hold, or where one is claimed that cannot be."""
    found = []
    for size, rate, transform in itertools.product(ON_VALIDATION, PROMISED_RATES, ("log", "identity")):
        row = Row("false_alarm_rate", transform, rate, "validation", size)
        each = study.each(row, DETECTORS)
        for (name, detector), mean in each.items():
            n = alarms.half_of_unseen(len(DATA[name]().normal)) if size == ALL else int(size)
            if mean.guaranteed != (rate * (n + 1) >= 1):
                found.append(f"{row}, {detector}, {name}: guaranteed is {mean.guaranteed} for {n} normals")
            if mean.guaranteed and mean.least > ALLOWED * rate:
                found.append(f"{row}, {detector}, {name}: {mean}% is observed where {rate:.3g} is guaranteed")
        claimed = [mean.value for mean in each.values() if mean.guaranteed]
        if claimed and np.mean(claimed) > ALLOWED * rate:
            found.append(f"{row}: {np.mean(claimed):.4f} is observed where {rate:.3g} is guaranteed")
    pixel_rows = {row for each in study.parts for rows in each.by_rate.values() for row in rows}
    for pixel_row in sorted(pixel_rows):
        mean = study.pixel_rate(pixel_row)
        if mean.guaranteed and mean.value > ALLOWED * pixel_row.rate:
            found.append(f"{pixel_row}: {mean}% is observed where {pixel_row.rate:.3g} is guaranteed")
    return found
