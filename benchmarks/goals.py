"""What version 2 was to reach in speed, and how it is read off the results of ``bench.py``."""

from collections.abc import Callable
from typing import Any, NamedTuple

Results = dict[str, Any]  # by worker
Measure = Callable[[Results], float]


class Goal(NamedTuple):
    """A figure that should not be larger than a limit."""

    work: str
    against: str
    limit: float
    measure: Measure
    unit: str = "x"


def _ratio(backend: str, work: str, way: str, other: str | None = None) -> Measure:
    """The time of anomnorm, by that of another way in the same process or, of PyTorch compiled, in eager PyTorch."""

    def measure(results: Results) -> float:
        kernels = results["kernels"]
        return float(kernels[backend]["work"][work]["anomnorm"] / kernels[other or backend]["work"][work][way])

    return measure


def _batch(package: str, name: str, empty: str) -> Measure:
    """Microseconds of a batch of 32 scores beyond an empty call."""

    def measure(results: Results) -> float:
        found = results["batches"][package]
        return float(found[name] - found[empty])

    return measure


def _run(package: str, name: str) -> Measure:
    """Percent that a callback or hook adds to validation and test."""

    def measure(results: Results) -> float:
        found = results["loops"][package]
        stages = ("validate", "test")
        mine, without = (sum(found[key][stage] for stage in stages) for key in (name, "without"))
        return float(100 * (mine / without - 1))

    return measure


MAPS = {"min-max": "min-max, maps and masks", "CDF": "CDF, maps and masks"}
FORMULA = "formula of anomalib 0.3 and comparison"
RECORDS = ("min/max update", "per-pixel moments update", "pixel histogram update")
CALLBACKS = {
    "MinMaxNormalizationCallback": "min-max",
    "NormalizationCallback (two-slope)": "two-slope",
    "CdfNormalizationCallback": "CDF",
}
GOALS = [
    Goal("min-max, maps and masks, PyTorch", FORMULA, 0.7, _ratio("torch", MAPS["min-max"], "anomalib 0.3")),
    Goal("CDF, maps and masks, PyTorch", FORMULA, 0.75, _ratio("torch", MAPS["CDF"], "anomalib 0.3")),
    Goal("CDF, maps and masks, PyTorch", "`log` and `erfc` in pieces", 1.6, _ratio("torch", MAPS["CDF"], "floor")),
    *(
        Goal(
            f"{name}, maps and masks, PyTorch compiled",
            f"{FORMULA}, eager",
            0.55,
            _ratio("torch-compiled", work, "anomalib 0.3", "torch"),
        )
        for name, work in MAPS.items()
    ),
    *(
        Goal(f"{name}, maps and masks, JAX", against, limit, _ratio("jax", work, way))
        for name, work in MAPS.items()
        for against, limit, way in (
            ("hand-written line and comparison", 1.2, "anomalib 0.3"),
            ("maps alone", 1.1, "maps alone"),
        )
    ),
    *(
        Goal(f"{work}, {package}", "straightforward", 1.3, _ratio(backend, work, "straightforward"))
        for work in RECORDS
        for backend, package in (("torch", "PyTorch"), ("jax", "JAX"))
    ),
    *(
        Goal(
            f"32 scores in a {stage}, {method}",
            "an empty callback",
            40.0,
            _batch("torch", f"{name}.on_{stage}_batch_end", f"Callback.on_{stage}_batch_end"),
            " µs",
        )
        for name, method in CALLBACKS.items()
        for stage in ("validation", "test")
    ),
    *(
        Goal(f"validation and test, {method}, {name}", "the same without", 1.0, _run(package, method), "%")
        for method in CALLBACKS.values()
        for package, name in (("torch", "PyTorch"), ("jax", "JAX"))
    ),
    *(
        Goal(
            f"end of a first epoch in JAX, {method}",
            "nothing",
            1.0,
            lambda r, m=method: r["first epoch"][m]["end"],
            " s",
        )
        for method in MAPS
    ),
    Goal("import of core", "nothing", 100.0, lambda results: results["imports"]["anomnorm_core"], " ms"),
    Goal("import of anomnorm_torch", "PyTorch", 30.0, lambda results: results["imports"]["anomnorm_torch"], " ms"),
    Goal("import of anomnorm_jax", "JAX", 30.0, lambda results: results["imports"]["anomnorm_jax"], " ms"),
]


def goal_table(runs: list[Results]) -> list[str]:
    """A row for each goal, with what each run found."""
    header = " | ".join(f"run {number}" for number in range(1, len(runs) + 1))
    lines = [
        f"| work | against | at most | {header} | reached |",
        f"| --- | --- | ---: | {' | '.join(['---:'] * len(runs))} | --- |",
    ]
    for goal in GOALS:
        found = [goal.measure(results) for results in runs]
        cells = " | ".join(f"{value:.3g}{goal.unit}" for value in found)
        largest = max(found)
        reached = "yes" if largest <= goal.limit else f"missed by {largest - goal.limit:.2g}{goal.unit}"
        lines.append(f"| {goal.work} | {goal.against} | {goal.limit:g}{goal.unit} | {cells} | {reached} |")
    return lines
