"""How many mistakes in the kernels the tests notice, for docs/evidence/mutation.md: mutation testing.

``nox -s mutation`` runs it (half an hour or so on two cores). The mistakes stand in ``mutation_faults.toml``: a piece
of the source and what somebody could have written instead. Each is put into a copy of the package, on which the
conformance suite runs and, where that passes, the package's own tests of these parts. ``--packages`` is a choice of
packages, ``--only`` a part of the names of modules; then the page is not written. What survives has to say why, or it
is an error.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence" / "mutation.md"
FAULTS = Path(__file__).with_name("mutation_faults.toml")
CONFORMANCE = tuple(
    f"tests/conformance/test_{name}.py"
    for name in (
        "decision",
        "min_max",
        "cdf",
        "histogram",
        "statistics",
        "arrays",
        "adversarial",
        "extras",
        "normalizer",
    )
)
SECONDS = 300  # for the tests of one fault
WAYS = ("import", "conformance", "own tests", "timeout", "")


class Package(NamedTuple):
    """What has to notice a fault."""

    backends: str
    own_tests: tuple[str, ...]


PACKAGES = {
    "core": Package(
        "numpy",
        (
            *(
                f"tests/core/test_{name}.py"
                for name in ("any_library", "dtypes", "streaming", "search", "choice", "checks")
            ),
            *(f"tests/interchange/test_{name}.py" for name in ("core_on_jax", "search", "signatures", "interchange")),
        ),
    ),
    "torch": Package(
        "torch-eager",
        (
            *(f"tests/torch/test_{name}.py" for name in ("tiles", "kernels", "gradients", "metrics", "normalizer")),
            *(f"tests/interchange/test_{name}.py" for name in ("search", "signatures")),
        ),
    ),
    "jax": Package(
        "jax-jit",
        (
            *(f"tests/jax/test_{name}.py" for name in ("counter", "double", "streaming", "tracing", "normalizer")),
            *(f"tests/interchange/test_{name}.py" for name in ("search", "signatures")),
        ),
    ),
}


class Fault(NamedTuple):
    """One mistake."""

    package: str
    module: str
    was: str
    now: str
    why: str  # it may survive; "" if it may not

    def code(self) -> str:
        """The whole module with the mistake.

        Raises:
            ValueError: what was there is not there once, or the result is no Python.
        """
        text = (source(self.package) / self.module).read_text(encoding="utf-8")
        if text.count(self.was) != 1:
            raise ValueError(f"{self.package}/{self.module} has {self.was!r} {text.count(self.was)} times, not once.")
        code = text.replace(self.was, self.now)
        compile(code, self.module, "exec")
        return code


class Outcome(NamedTuple):
    """What became of a fault."""

    fault: Fault
    noticed: str  # of WAYS; "" if it survived


def source(package: str) -> Path:
    """Where the modules of a package are."""
    return ROOT / "packages" / f"anomnorm-{package}" / "src" / f"anomnorm_{package}"


def faults(package: str) -> list[Fault]:
    """The mistakes of a package."""
    modules = tomllib.loads(FAULTS.read_text(encoding="utf-8"))[package]
    return [
        Fault(package, module, was, now, *(why or [""]))
        for module, entries in modules.items()
        for was, now, *why in entries
    ]


def outcome(fault: Fault, copies: Queue[Path]) -> Outcome:
    """Run the tests on a copy that has the fault."""
    copy = copies.get()
    module = copy / f"anomnorm_{fault.package}" / fault.module
    before = module.read_text(encoding="utf-8")
    try:
        module.write_text(fault.code(), encoding="utf-8")
        return Outcome(fault, _noticed(fault.package, copy))
    finally:
        module.write_text(before, encoding="utf-8")
        copies.put(copy)


def _noticed(package: str, copy: Path) -> str:
    backends, own = PACKAGES[package]
    pytest = ("-m", "pytest", "-x", "-q", "--tb=no", "--no-header")
    try:
        if _fails(copy, "-c", f"import anomnorm_{package}"):
            return "import"
        if _fails(copy, *pytest, *CONFORMANCE, "--backends", backends):
            return "conformance"
        return "own tests" if _fails(copy, *pytest, *own) else ""
    except subprocess.TimeoutExpired:
        return "timeout"


def _fails(copy: Path, *arguments: str) -> bool:
    """Whether a process of its own fails."""
    # The copy comes before the installed package; files compiled from another fault are not to be taken for this one.
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        # What a fault leaves alone is compiled once.
        "JAX_COMPILATION_CACHE_DIR": str(copy / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = (sys.executable, *arguments)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False)
    return done.returncode != 0


def look(package: str, chosen: list[Fault]) -> Iterator[Outcome]:
    """Try the faults of a package, one on each core, after the tests have passed without any."""
    copies: Queue[Path] = Queue()
    jobs = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        first = Path(folder, "0")
        shutil.copytree(source(package), first / f"anomnorm_{package}", ignore=shutil.ignore_patterns("__pycache__"))
        if failed := _noticed(package, first):
            raise SystemExit(f"anomnorm-{package}: {failed} fails without any fault")
        copies.put(first)
        for job in range(1, jobs):
            copies.put(shutil.copytree(first, Path(folder, str(job))))
        yield from pool.map(lambda fault: outcome(fault, copies), chosen)


def page(found: list[Outcome]) -> str:
    """The report."""
    lines = [
        "# Mutation testing",
        "",
        "Written by `nox -s mutation`: mistakes that somebody could make in the kernels of each package, one at a time"
        f" (`benchmarks/{FAULTS.name}`, anomnorm {version('anomnorm-core')}), and which tests noticed them first."
        " *import*: the package does not load any more. *conformance*: the suite that all backends pass. *own tests*:"
        " where that passes, the package's tests of its kernels. The mistakes were chosen, not drawn: which share is"
        " noticed says nothing about those that nobody thought of.",
        "",
        "| package | faults | noticed at import | by conformance | by own tests | by not ending | survived |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for package in PACKAGES:
        count = Counter(result.noticed for result in found if result.fault.package == package)
        cells = [count.total(), *(count[way] for way in WAYS)]
        lines.append(f"| anomnorm-{package} | {' | '.join(map(str, cells))} |")
    survived = [result.fault for result in found if not result.noticed]
    lines += ["", "## What survived, and why", ""]
    lines += [
        f"- `{fault.package}/{fault.module}`: `{fault.was}` became `{fault.now}`. {fault.why or '**Not explained.**'}"
        for fault in survived
    ] or ["Nothing."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", default=",".join(PACKAGES))
    parser.add_argument("--only", default="", help="a part of the names of the modules")
    options = parser.parse_args()
    found: list[Outcome] = []
    for package in options.packages.split(","):
        chosen = [fault for fault in faults(package) if options.only in fault.module]
        for fault in chosen:
            fault.code()
        print(f"anomnorm-{package}: first the tests without any fault, then {len(chosen)} faults", flush=True)
        for result in tqdm(look(package, chosen), total=len(chosen), desc=package):
            found.append(result)
            if not result.noticed:
                tqdm.write(f"survived: {result.fault.package}/{result.fault.module}: {result.fault.now}")
    print(page(found))
    if len(found) == sum(len(faults(package)) for package in PACKAGES):
        PAGE.write_text(page(found), encoding="utf-8")
    if wrong := sum(bool(result.noticed) == bool(result.fault.why) for result in found):
        raise SystemExit(f"{wrong} faults survived unexplained, or were noticed although {FAULTS.name} excuses them")


if __name__ == "__main__":
    main()
