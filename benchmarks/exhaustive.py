"""Every float32 number, by every backend: the normal CDF, the min-max map, and decisions. Part of ``accuracy.py``.

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
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special
from tqdm import tqdm

FOUND = Path(__file__).with_name("exhaustive.json")
PROGRESS = Path(__file__).parents[1] / ".exhaustive"
BACKENDS = ("numpy", "torch-eager", "torch-compiled", "jax-jit")
BLOCK = 2**22
LARGEST = 0x7F800000  # the bit pattern of infinity: numbers are -LARGEST to LARGEST in their order
KEYS = range(-LARGEST, LARGEST, BLOCK)  # each block ends with the first number of the next, the last with infinity
MIN_MAX = (0.3, -1.0, 2.0)
AROUND = (1.7, 0.5, 0.25)  # raw threshold, mean and std
CHECKS = ("CDF", "min-max", "decision")


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

    return {name: backend for name in BACKENDS for backend in load(name)}


def look(task: tuple[str, int]) -> tuple[str, int, dict[str, Any]]:
    """What one check finds in one block, by backend."""
    check, block = task
    first = KEYS[block]
    last = min(first + BLOCK, LARGEST)  # with the first of the next block, to see the order across the border
    x = numbers(first, last)
    wide = x.astype(np.float64)
    exact = None
    threshold = np.float32({"CDF": 0.0, "min-max": MIN_MAX[0], "decision": AROUND[0]}[check])
    if check == "CDF":
        exact = special.ndtr(wide)
    elif check == "min-max":
        t, low, high = (np.float64(np.float32(value)) for value in MIN_MAX)
        exact = np.clip((wide - t) / (high - low) + 0.5, 0.0, 1.0)
    found = {}
    for name, backend in backends().items():
        given = backend.asarray(x, "float32")
        with backend.context("float32"):
            if check == "decision":
                z, z_t = backend.cdf.standardize_around(given, *AROUND)
                above = backend.to_numpy(z) >= float(backend.to_numpy(z_t))
                labels = backend.to_numpy(backend.threshold.flag(given, float(threshold)))
                found[name] = {
                    "decisions": int(np.sum(above != (x >= threshold))) + int(np.sum(labels != (x >= threshold)))
                }
                continue
            run = backend.cdf.normalize if check == "CDF" else backend.min_max.normalize
            unit = backend.to_numpy(run(given, *((0.0,) if check == "CDF" else MIN_MAX)))
        assert exact is not None
        error = np.abs(unit - exact)
        worst = int(error.argmax())
        found[name] = {
            "error": float(error[worst]),
            "at": float(x[worst]),
            "beyond": int(np.sum(error > 2.0**-23)),
            "inverted": int(np.sum(np.diff(unit) < 0)),
            "drop": float(np.maximum(-np.diff(unit), 0.0).max()),
            "decisions": int(np.sum((unit >= 0.5) != (x >= threshold))),
            "outside": int(np.sum((unit < 0) | (unit > 1) | np.isnan(unit))),
        }
        if check == "CDF":
            tail = exact >= float(np.finfo(np.float32).tiny)
            _, exponent = np.frexp(exact)
            relative = np.where(tail, error / np.ldexp(1.0, exponent - 24), 0.0)
            found[name] |= {"ulp": float(relative.max()), "ulp_at": float(x[relative.argmax()])}
    return check, block, found


def not_a_number() -> dict[str, int]:
    """How many of all NaN, of either sign, do not stay NaN; and whether both zeros give the same."""
    wrong = dict.fromkeys(backends(), 0)
    for sign in (0, 0x80000000):
        for first in range(LARGEST + 1, 0x80000000, BLOCK):
            bits = np.arange(first, min(first + BLOCK, 0x80000000), dtype=np.int64) + sign
            x = bits.astype(np.uint32).view(np.float32)
            for name, backend in backends().items():
                with backend.context("float32"):
                    given = backend.asarray(x, "float32")
                    for unit in (backend.cdf.normalize(given, 0.0), backend.min_max.normalize(given, *MIN_MAX)):
                        wrong[name] += int(np.sum(~np.isnan(backend.to_numpy(unit))))
    zeros = np.array([0.0, -0.0], dtype=np.float32)
    for name, backend in backends().items():
        with backend.context("float32"):
            given = backend.asarray(zeros, "float32")
            for unit in (backend.cdf.normalize(given, 0.0), backend.min_max.normalize(given, *MIN_MAX)):
                first, second = backend.to_numpy(unit)
                wrong[name] += int(first != second)
    return wrong


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What two blocks found together."""
    result = {}
    for name, value in a.items():
        other = b[name]
        if name in ("at", "ulp_at"):
            size = "error" if name == "at" else "ulp"
            result[name] = value if a[size] >= b[size] or math.isnan(a[size]) else other
        elif name in ("error", "ulp", "drop"):
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
        f"--exhaustive` ({names}, on {result['versions']['processor']}): `Phi(x)` around 0; min-max with threshold, "
        f"minimum and maximum {', '.join(map(str, MIN_MAX))}; decisions on z-scores around a raw threshold "
        f"{AROUND[0]}, "
        f"mean {AROUND[1]} and deviation {AROUND[2]}, and by `flag`. *beyond*: how many are further off than 2^-23. "
        "*wrong side*: how many are not 1/2 or more exactly where the number is the threshold or more. *outside*: how "
        "many are not in [0, 1]. Neighbours whose unit scores are in the other order are *inverted*, by at most *drop*."
    )
    yield ""
    yield (
        "| check | backend | largest error / 2^-23 | at | beyond | largest, ulp (normal numbers) | at | wrong side | "
        "outside | inverted | drop / 2^-24 |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for check, by_backend in result["found"].items():
        for name, row in by_backend.items():
            cells = [check, name]
            if check == "decision":
                cells += ["", "", "", "", "", str(row["decisions"]), "", "", ""]
            else:
                cells += [f"{row['error'] * 2**23:.3f}", f"{row['at']:.9g}", str(row["beyond"])]
                cells += [f"{row['ulp']:.3g}", f"{row['ulp_at']:.9g}"] if check == "CDF" else ["", ""]
                cells += [str(row["decisions"]), str(row["outside"]), f"{row['inverted']:,}"]
                cells += [f"{row['drop'] * 2**24:.3g}"]
            yield f"| {' | '.join(cells)} |"
    yield ""
    left = {name: count for name, count in result["nan"].items() if count}
    total = 2 * (0x80000000 - LARGEST - 1)
    yield f"All {total:,} NaN stay NaN: {'yes, on every backend' if not left else f'not on {left}'}."


if __name__ == "__main__":
    sys.exit("run accuracy.py --exhaustive")
