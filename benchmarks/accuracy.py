"""How far every backend is from the exact value, as tables for docs/evidence/accuracy.md.

``nox -s accuracy`` runs it; ``-- --quick`` takes few points and prints instead of writing. Of the half types every
number is an input. ``-- --exhaustive`` runs `exhaustive.py` on every float32 number, which takes an hour or so and can
be interrupted; the page shows the last complete one.
"""

import argparse
import math
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
import numpy as np
from contents import with_contents
from scipy import special

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conformance import oracle
from conformance.backend import Backend, load

PAGE = Path(__file__).parents[1] / "docs" / "evidence" / "accuracy.md"
NOTES = Path(__file__).with_name("accuracy_notes.md")
BACKENDS = ("numpy", "torch-eager", "torch-compiled", "jax-jit")
DTYPES = ("float64", "float32", "float16", "bfloat16")  # of scores
SIZES = (1, 2, 3, 5, 8, 13, 21, 100)  # of the batches for the comparison of batches
Parameters = tuple[float, ...]


class Function(NamedTuple):
    """A kernel, what it should give, and where it is looked at."""

    name: str
    run: Callable[[Backend, Any, Parameters], Any]
    exact: Callable[[float, Parameters], Any]  # one number, 50 digits
    bulk: Callable[[np.ndarray, Parameters], np.ndarray]  # checked against `exact`
    inputs: Callable[[np.random.Generator, int, Parameters], np.ndarray]
    settings: tuple[Parameters, ...]
    allowed: Callable[[np.ndarray, str, Parameters], np.ndarray]  # the error that a result may have, by exact value
    bound: dict[str, str]  # that, in words, by dtype


def _near(x: float, count: int) -> np.ndarray:
    """Neighbours of ``x`` in float32."""
    return x + np.arange(-count, count) * float(np.spacing(np.float32(abs(x))))


def _unit(exact: np.ndarray, dtype: str, _: Parameters) -> np.ndarray:
    return np.full_like(exact, oracle.unit_bound(dtype))


def _z(exact: np.ndarray, dtype: str, parameters: Parameters) -> np.ndarray:
    mean, std, center = parameters
    if dtype != "float64":
        return 4 * ulp(exact, dtype) + 2.0**-30 / std
    size = max(float(np.max(np.abs(exact * std + center))), abs(mean), 1.0)
    return 4 * ulp(exact, dtype) + 4 * math.ulp(size) / std


def _two_slope(x: np.ndarray, p: Parameters) -> np.ndarray:
    t, low, high = p
    span = high - low
    below, above = (2 * side if side >= 0.05 * span else span for side in (t - low, high - t))
    return np.clip((x - t) / np.where(x < t, below, above) + 0.5, 0.0, 1.0)


def _around_range(rng: np.random.Generator, count: int, p: Parameters) -> np.ndarray:
    t, low, high = p
    return np.concatenate([t + (rng.random(count) - 0.5) * 1.5 * (high - low), _near(t, count // 8)])


def _around_center(rng: np.random.Generator, count: int, p: Parameters) -> np.ndarray:
    _, std, center = p
    return np.concatenate([np.exp(center + std * rng.normal(0, 4, count)), _near(math.exp(center), count // 8)])


def _around_threshold(rng: np.random.Generator, count: int, p: Parameters) -> np.ndarray:
    t, _, std = p
    logarithms = math.log(t) + std * rng.uniform(-14, 10, count)
    return np.concatenate([np.exp(np.clip(logarithms, -87.0, 88.0)), _near(t, count // 8)])


UNIT_BOUND = dict.fromkeys(DTYPES, "2^-23") | {"float64": "2^-49"}
Z_BOUND = dict.fromkeys(DTYPES, "4 ulp + 2^-30 / std") | {"float64": "4 ulp + 4 ulp(L) / std"}
RANGES = ((0.3, -1.0, 2.0), (1000.25, 999.0, 1003.0), (-2e-3, -1e-2, 5e-3))
FUNCTIONS = (
    Function(
        "min-max, normalized score",
        lambda backend, x, p: backend.min_max.normalize(x, *p),
        lambda x, p: oracle.min_max(x, *p),
        lambda x, p: np.clip((x - p[0]) / (p[2] - p[1]) + 0.5, 0.0, 1.0),
        _around_range,
        RANGES,
        _unit,
        UNIT_BOUND,
    ),
    Function(
        "two-slope min-max, normalized score",
        lambda backend, x, p: backend.two_slope.normalize(x, *p),
        lambda x, p: oracle.two_slope(x, *p),
        _two_slope,
        _around_range,
        (*RANGES, (1.95, -1.0, 2.0)),  # the last one with a side that is too short
        _unit,
        UNIT_BOUND,
    ),
    Function(
        "CDF, z-score",
        lambda backend, x, p: backend.cdf.standardize(x, *p[:2], center_at=p[2] if p[2] != p[0] else None),
        lambda x, p: oracle.z_score(x, p[2], p[1]),
        # Near the center the difference cancels, and float64 would have no digits left.
        lambda x, p: (np.log(x.astype(np.longdouble)) - p[2]) / p[1],
        _around_center,
        ((0.5, 0.25, 0.5), (3.2, 0.004, 3.2), (1.0, 3.5e-4, 1.0), (-7.0, 1.5, 0.0)),
        _z,
        Z_BOUND,
    ),
    Function(
        "CDF, normalized score",
        lambda backend, x, p: backend.cdf.normalize(x, *p),
        lambda x, p: oracle.cdf(x, p[0], p[2]),
        lambda x, p: special.ndtr(
            ((np.log(x.astype(np.longdouble)) - np.log(np.longdouble(p[0]))) / p[2]).astype("f8")
        ),
        _around_threshold,
        # The raw threshold, mean and deviation; from nearly constant scores to those that take all of float32.
        ((2.718, 0.5, 0.25), (24.8, 3.2, 0.004), (2.721, 1.0, 3.5e-4), (0.02, -7.0, 1.5), (1.5, 0.0, 80.0)),
        _unit,
        UNIT_BOUND,
    ),
    Function(
        "normal distribution (`normalize_standardized`)",
        lambda backend, x, p: backend.cdf.normalize_standardized(x, *p),
        lambda x, p: oracle.phi(mpmath.mpf(x) - mpmath.mpf(p[0])),
        lambda x, p: special.ndtr(x - p[0]),
        lambda rng, n, p: np.concatenate([p[0] + rng.uniform(-14, 10, n), _near(p[0], n // 8)]),
        ((0.0,), (2.5,), (-1.0,)),
        _unit,
        UNIT_BOUND,
    ),
)


class Row(NamedTuple):
    """What was found for a function, a dtype and a backend."""

    points: int
    absolute: float  # largest error
    absolute_median: float
    ulp: float  # largest, in ulp of the exact value
    ulp_median: float
    share: float  # largest, of what is allowed
    inversions: int  # neighbours, in the order of the inputs, whose results are in the other order
    batch: float  # largest difference between a number on its own or in a small batch, and in the whole


def ulp(exact: np.ndarray, dtype: str) -> np.ndarray:
    """The distance of the numbers around each value in the dtype of results, which are at least float32."""
    info = np.finfo(np.float64 if dtype == "float64" else np.float32)
    _, exponent = np.frexp(np.asarray(exact, dtype=np.float64))
    return np.ldexp(1.0, np.maximum(exponent - 1, info.minexp) - info.nmant)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values that ``dtype`` has, as float64."""
    if dtype == "bfloat16":
        bits = np.asarray(values, dtype=np.float32).view(np.uint32)
        return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype).astype(np.float64)


def points(function: Function, dtype: str, count: int, parameters: Parameters) -> np.ndarray:
    """Inputs in ascending order, none of them subnormal; all such numbers of a half type that the function is for."""
    least = oracle.smallest_normal(oracle.arithmetic(dtype))
    if dtype in ("float16", "bfloat16"):
        x = np.array(oracle.all_16_bit(dtype))
        return x[x >= least] if "CDF" in function.name else x[(x == 0) | (np.abs(x) >= least)]
    rng = np.random.default_rng(7)
    return np.unique(rounded(function.inputs(rng, count, parameters), dtype))


def measure(function: Function, backend: Backend, dtype: str, count: int) -> Row:
    """All settings of a function together."""
    errors, relative, inversions, total, batch, share = [], [], 0, 0, 0.0, 0.0
    for setting in function.settings:
        kept = dtype if dtype == "float64" else "float32"  # the dtype of parameters (clause N9)
        parameters = tuple(float(rounded(np.array(value), kept)) for value in setting)
        x = points(function, dtype, count, parameters)
        given = backend.asarray(x.astype(np.float32) if dtype != "float64" else x, dtype)
        found = backend.to_numpy(function.run(backend, given, parameters))
        exact = function.bulk(x, parameters)
        if dtype == "float64":
            exact_50 = [function.exact(value, parameters) for value in x.tolist()]
            error = np.array([float(abs(mine - value)) for mine, value in zip(found.tolist(), exact_50, strict=True)])
        else:
            error = np.abs(found - exact)
        error = np.asarray(error, dtype=np.float64)
        errors.append(error)
        relative.append(error / ulp(exact, dtype))
        share = max(share, float((error / function.allowed(exact, dtype, parameters).astype(np.float64)).max()))
        inversions += int(np.sum(np.diff(found) < 0))
        total += len(x)
        for size in SIZES:
            for start in (0, len(x) // 2 + 1):
                part = function.run(backend, given[start : start + size], parameters)
                off = np.abs(backend.to_numpy(part) - found[start : start + size])
                batch = max(batch, float(off.max()))
    error, in_ulp = np.concatenate(errors), np.concatenate(relative)
    medians = float(np.median(error)), float(np.median(in_ulp))
    return Row(total, error.max(), medians[0], in_ulp.max(), medians[1], share, inversions, batch)


def oracle_error(function: Function) -> float:
    """How far the bulk values are from 50 digits, as a share of what is allowed in float32; 300 points each setting."""
    worst = 0.0
    for parameters in function.settings:
        x = points(function, "float32", 300, parameters)
        bulk = function.bulk(x, parameters)
        allowed = function.allowed(bulk, "float32", parameters)
        for value, given, limit in zip(bulk, x.tolist(), allowed.tolist(), strict=True):
            exact = function.exact(given, parameters)
            worst = max(worst, float(abs(mpmath.mpf(str(value)) - exact)) / limit)
    return worst


def tables(count: int, names: tuple[str, ...]) -> Iterator[str]:
    """One table for each function."""
    backends = [backend for name in names for backend in load(name) if backend.id == name]
    for function in FUNCTIONS:
        yield f"## {function.name[0].upper()}{function.name[1:]}"
        yield ""
        settings = "; ".join(", ".join(f"{value:g}" for value in setting) for setting in function.settings)
        yield (
            f"Parameters: {settings}. The values that float32 and half types are compared with differ from those with "
            f"50 digits by at most {oracle_error(function):.1g} of the bound for float32."
        )
        yield ""
        yield (
            "| scores | backend | points | largest error | median | largest, ulp | median, ulp | order inverted | "
            "by batch | bound | share of it |"
        )
        yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |"
        for dtype in DTYPES:
            for backend in backends:
                if dtype not in backend.dtypes:
                    continue
                with backend.context(dtype):
                    row = measure(function, backend, dtype, 300 if dtype == "float64" else count)
                yield f"| {dtype} | {backend.id} | {' | '.join(_cells(function, dtype, row))} |"
        yield ""


def _cells(function: Function, dtype: str, row: Row) -> list[str]:
    return [
        f"{row.points:,}",
        f"{row.absolute:.2g}",
        f"{row.absolute_median:.2g}",
        f"{row.ulp:.3g}",
        f"{row.ulp_median:.2g}",
        str(row.inversions),
        f"{row.batch:.2g}",
        function.bound[dtype],
        f"{row.share:.2f}" if row.share <= 1.0 else f"**{row.share:.2f}**",
    ]


def processor() -> str:
    """The name of the processor, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> str:
    """Everything that computes."""
    names = ("numpy", "scipy", "torch", "jax")
    return f"anomnorm {version('anomnorm-core')}, " + ", ".join(f"{name} {version(name)}" for name in names)


def main() -> None:
    """Measure, and write the page or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few points, and print instead of writing")
    parser.add_argument("--exhaustive", action="store_true", help="every float32 number first; goes on if interrupted")
    options = parser.parse_args()
    import exhaustive

    if options.exhaustive:
        exhaustive.run()
    text = [
        "# Accuracy",
        "",
        f"Written by `nox -s accuracy`: {versions()}, Python {platform.python_version()}, on {processor()}.",
        "",
        NOTES.read_text(encoding="utf-8"),
    ]
    names = tuple(name for name in BACKENDS if not options.quick or name != "torch-compiled")  # which takes minutes
    print("\n".join(text))
    for line in chain(tables(1000 if options.quick else 200_000, names), () if options.quick else exhaustive.table()):
        text.append(line)
        print(line, flush=True)
    if not options.quick:
        PAGE.write_text(with_contents("\n".join(text).rstrip() + "\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
