"""Every float32 number, by every backend: z-scores, normalized scores, and decisions. Part of ``accuracy.py``.

The numbers are taken in their order, block by block, by two processes. Each block that is done is written down in
``.exhaustive/``, so that an interrupted run goes on where it was; memory is that of a block. What a complete run found
stands in ``exhaustive.json``.
"""

import hashlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special
from tqdm import tqdm

FOUND = Path(__file__).with_name("exhaustive.json")
PROGRESS = Path(__file__).parents[1] / ".exhaustive"
BACKENDS = ("numpy", "torch-eager", "torch-compiled", "jax-jit")
BLOCK = 2**22
LARGEST = 0x7F800000  # the bit pattern of infinity: numbers are -LARGEST to LARGEST in their order
KEYS = range(-LARGEST, LARGEST, BLOCK)  # each block ends with the first number of the next, the last with infinity
RANGE = (0.3, -1.0, 2.0)  # raw threshold, minimum and maximum
MOMENTS = (1.7, 0.5, 0.25)  # raw threshold, mean and deviation of the logarithm
TINY = float(np.finfo(np.float32).tiny)


class Check(NamedTuple):
    """What is computed of every number, and what it should be."""

    run: Callable[[Any, Any], Any]  # of a backend and its array
    exact: Callable[[np.ndarray], np.ndarray]  # of float64
    threshold: float | None  # in what is given; None: nothing is decided


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(np.float32(value)) for value in values)


def _z(x: np.ndarray) -> np.ndarray:
    _, mean, std = _rounded(MOMENTS)
    return np.where(x < TINY, -np.inf, (np.log(np.maximum(x, TINY).astype(np.longdouble)) - mean) / std)


def _cdf(x: np.ndarray) -> np.ndarray:
    t, _, std = _rounded(MOMENTS)
    return np.where(x > 0, special.ndtr(np.log(np.maximum(x, TINY) / t) / std), 0.0)


def _ramp(x: np.ndarray, below: float, above: float) -> np.ndarray:
    t = _rounded(RANGE)[0]
    return np.clip((x - t) / np.where(x < t, below, above) + 0.5, 0.0, 1.0)


def _min_max(x: np.ndarray) -> np.ndarray:
    _, low, high = _rounded(RANGE)
    return _ramp(x, high - low, high - low)


def _two_slope(x: np.ndarray) -> np.ndarray:
    t, low, high = _rounded(RANGE)
    return _ramp(x, 2 * (t - low), 2 * (high - t))


CHECKS = {
    "normal distribution": Check(lambda b, x: b.cdf.normalize_standardized(x, 0.0), special.ndtr, 0.0),
    "CDF": Check(lambda b, x: b.cdf.normalize(x, *MOMENTS), _cdf, MOMENTS[0]),
    "z-score": Check(lambda b, x: b.cdf.standardize(x, *MOMENTS[1:]), _z, None),
    "min-max": Check(lambda b, x: b.min_max.normalize(x, *RANGE), _min_max, RANGE[0]),
    "two-slope": Check(lambda b, x: b.two_slope.normalize(x, *RANGE), _two_slope, RANGE[0]),
}


def numbers(first: int, last: int) -> np.ndarray:
    """The float32 numbers from one place in the order to another; both zeros are one place."""
    key = np.arange(first, last + 1, dtype=np.int64)
    bits = np.where(key < 0, 0x80000000 - key, key).astype(np.uint32)
    return bits.view(np.float32)


@cache
def backends() -> dict[str, Any]:
    """The backends of the conformance suite, one thread each."""
    import torch

    torch.set_num_threads(1)
    from conformance.backend import load

    return {name: backend for name in BACKENDS for backend in load(name) if backend.id == name}


def look(task: tuple[str, int]) -> tuple[str, int, dict[str, Any]]:
    """What one check finds in one block, by backend."""
    name, block = task
    check, first = CHECKS[name], KEYS[block]
    last = min(first + BLOCK, LARGEST)  # with the first of the next block, to see the order across the border
    x = numbers(first, last)
    certain = (x == 0) | (np.abs(x) >= TINY)  # the others may count as zero
    exact = check.exact(x.astype(np.float64))
    found = {}
    for backend in backends().values():
        given = backend.asarray(x, "float32")
        with backend.context("float32"):
            value = backend.to_numpy(check.run(backend, given))
            flagged = x if check.threshold is None else backend.to_numpy(backend.threshold.flag(given, check.threshold))
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            error = np.where(value == exact, 0.0, np.abs(value - exact)).astype(np.float64)
            falls = np.diff(value)
        bound = np.full(x.shape, 2.0**-23)
        if check.threshold is None:
            bound = 4 * _ulp(exact) + 2.0**-30 / MOMENTS[2]
        share = np.where(certain, error / bound, 0.0)
        worst = int(share.argmax())  # a NaN, if there is one
        found[backend.id] = row = {
            "share": float(share[worst]),
            "at": float(x[worst]),
            "beyond": int(np.sum(~(share <= 1))),
            "inverted": int(np.sum(falls < 0)),
            "drop": float(np.maximum(-np.nan_to_num(falls), 0.0).max()),
            "decisions": 0,
            "outside": 0,
        }
        if check.threshold is not None:
            right = x >= np.float32(check.threshold)
            row["decisions"] = int(np.sum(((value >= 0.5) != right)[certain]) + np.sum((flagged != right)[certain]))
            row["outside"] = int(np.sum(~((value >= 0) & (value <= 1))))
    return name, block, found


def _ulp(exact: np.ndarray) -> np.ndarray:
    """The distance of the float32 numbers around each value; 1 around infinity."""
    _, exponent = np.frexp(np.where(np.isfinite(exact), exact, 1.0).astype(np.float64))
    return np.ldexp(1.0, np.maximum(exponent - 24, -149))


def not_a_number() -> dict[str, int]:
    """How many of all NaN, of either sign, do not stay NaN; and whether both zeros give the same."""
    wrong = dict.fromkeys(backends(), 0)
    zeros = np.array([0.0, -0.0], dtype=np.float32)
    for name, backend in backends().items():
        with backend.context("float32"):
            for check in CHECKS.values():
                for sign in (0, 0x80000000):
                    for first in range(LARGEST + 1, 0x80000000, BLOCK):
                        bits = np.arange(first, min(first + BLOCK, 0x80000000), dtype=np.int64) + sign
                        given = backend.asarray(bits.astype(np.uint32).view(np.float32), "float32")
                        wrong[name] += int(np.sum(~np.isnan(backend.to_numpy(check.run(backend, given)))))
                plus, minus = backend.to_numpy(check.run(backend, backend.asarray(zeros, "float32")))
                wrong[name] += int(plus != minus)
    return wrong


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What two blocks found together."""
    result = {}
    for name, value in a.items():
        other = b[name]
        if name == "at":
            result[name] = value if a["share"] >= b["share"] or math.isnan(a["share"]) else other
        elif name in ("share", "drop"):
            result[name] = float(np.maximum(value, other))  # NaN, if there is one
        else:
            result[name] = value + other
    return result


def run() -> None:
    """Do what is left to do, with a progress bar, and write down what was found."""
    PROGRESS.mkdir(exist_ok=True)
    stamp = PROGRESS / "versions.json"
    versions = _versions()
    present = json.dumps(versions)
    if stamp.exists() and stamp.read_text(encoding="utf-8") != present:
        raise SystemExit(f"{PROGRESS} was begun with other versions or sources; delete it to begin anew.")
    stamp.write_text(present, encoding="utf-8")
    tasks = [(check, block) for check in CHECKS for block in range(len(KEYS))]
    left = [task for task in tasks if not _place(*task).exists()]
    environment = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1)) as pool:
        done = pool.imap_unordered(look, left)
        for check, block, found in tqdm(done, total=len(tasks), initial=len(tasks) - len(left), desc="float32 blocks"):
            place = _place(check, block)
            place.with_suffix(".part").write_text(json.dumps(found), encoding="utf-8")
            place.with_suffix(".part").replace(place)
    total: dict[str, dict[str, Any]] = {}
    for check in CHECKS:
        for block in range(len(KEYS)):
            found = json.loads(_place(check, block).read_text(encoding="utf-8"))
            before = total.get(check)
            total[check] = found if before is None else {name: merged(before[name], found[name]) for name in found}
    result = {"versions": versions, "numbers": 2 * LARGEST + 1, "found": total, "nan": not_a_number()}
    FOUND.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(PROGRESS)  # the next run begins anew


def _place(check: str, block: int) -> Path:
    return PROGRESS / f"{check}-{block}.json"


def _versions() -> dict[str, str]:
    from accuracy import processor

    names = ("anomnorm-core", "numpy", "scipy", "torch", "jax")
    found = {name: version(name) for name in names}
    sources = hashlib.sha256(Path(__file__).read_bytes())
    for module in sorted(Path(__file__).parents[1].glob("packages/*/src/**/*.py")):
        sources.update(module.read_bytes())
    machine = {"python": platform.python_version(), "processor": processor()}
    return found | machine | {"sources": sources.hexdigest()[:12]}


def table() -> Iterator[str]:
    """What the last complete run found."""
    yield "## Every float32 number"
    yield ""
    if not FOUND.exists():
        yield "Not run yet: `nox -s accuracy -- --exhaustive`."
        return
    result = json.loads(FOUND.read_text(encoding="utf-8"))
    names = ", ".join(f"{name} {value}" for name, value in result["versions"].items() if name != "processor")
    yield (
        f"All {result['numbers']:,} float32 numbers and infinities in their order, by `nox -s accuracy -- "
        f"--exhaustive` ({names}, on {result['versions']['processor']}): the normal distribution "
        "(`normalize_standardized` around 0); the CDF with raw threshold, mean and deviation "
        f"{', '.join(map(str, MOMENTS))}, and its z-scores; min-max and two-slope with threshold, minimum and maximum "
        f"{', '.join(map(str, RANGE))}. *error*: the largest one, as a share of its bound (clause N13). *beyond*: how "
        "many are further off than that. *wrong side*: how many are not 1/2 or more exactly where the number is the "
        "threshold or more, or are flagged wrongly by `flag`. *outside*: how many are not in [0, 1]. Neighbours whose "
        "results are in the other order are *inverted*, by at most *drop*. Subnormal numbers may count as zero, and "
        "are no errors."
    )
    yield ""
    yield "| check | backend | error | at | beyond | wrong side | outside | inverted | drop / 2^-24 |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for check, by_backend in result["found"].items():
        for name, row in by_backend.items():
            cells = [check, name, f"{row['share']:.3f}", f"{row['at']:.9g}", str(row["beyond"])]
            cells += [str(row["decisions"]), str(row["outside"]), f"{row['inverted']:,}", f"{row['drop'] * 2**24:.3g}"]
            yield f"| {' | '.join(cells)} |"
    yield ""
    left = {name: count for name, count in result["nan"].items() if count}
    total = 2 * (0x80000000 - LARGEST - 1)
    yield f"All {total:,} NaN stay NaN: {'yes, on every backend' if not left else f'not on {left}'}."


if __name__ == "__main__":
    sys.exit("run accuracy.py --exhaustive")
