"""How many small faults in the kernels the tests notice, for docs/mutation.md: mutation testing.

``nox -s mutation`` runs it (some twenty minutes on two cores). cosmic-ray makes the faults: at each place that is
drawn, one of the changes that it knows there. Each is put into a copy of the package, on which the conformance suite
runs and, where that passes, the package's own tests of these kernels. ``--sample`` is the number of places for each
package (0: all of them), ``--packages`` a choice of packages; the others keep the outcome of their last run, which
stands in ``mutation.json``. What survives has to stand in ``mutation_explained.toml``, or it is an error.
"""

import argparse
import hashlib
import json
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
from itertools import chain, islice, zip_longest
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutation.md"
EXPLAINED = Path(__file__).with_name("mutation_explained.toml")
FOUND = Path(__file__).with_name("mutation.json")
CONFORMANCE = tuple(
    f"tests/conformance/test_{name}.py"
    for name in ("decision", "min_max", "cdf", "threshold", "statistics", "arrays", "adversarial", "extras")
)
SAMPLE = 30  # places for each package, at least, for the page
SECONDS = 300  # for the tests of one fault
WAYS = ("import", "conformance", "own tests", "timeout", "")


class Package(NamedTuple):
    """What is changed, and what has to notice it."""

    backends: str
    modules: tuple[str, ...]
    own_tests: tuple[str, ...]


_KERNELS = ("min_max.py", "cdf.py", *(f"threshold/{name}.py" for name in ("decision", "_f1", "exact", "streamed")))
PACKAGES = {
    "core": Package(
        "numpy",
        (*_KERNELS, "_arrays.py"),
        (
            *(f"core/test_{name}" for name in ("any_library", "dtypes", "streaming", "policy", "checks")),
            *(f"interchange/test_{name}" for name in ("core_on_jax", "f1", "signatures")),
        ),
    ),
    "torch": Package(
        "torch-eager",
        (*_KERNELS, "_tensors.py", "_blocks.py"),
        (
            *(f"torch/test_{name}" for name in ("blocks", "metrics", "thresholds")),
            *(f"interchange/test_{name}" for name in ("f1", "signatures")),
        ),
    ),
    "jax": Package(
        "jax-jit",
        (*_KERNELS, "_arrays.py", "_counter.py", "_double.py"),
        (
            *(f"jax/test_{name}" for name in ("counter", "double", "streaming", "tracing", "thresholds")),
            *(f"interchange/test_{name}" for name in ("f1", "signatures")),
        ),
    ),
}


class Fault(NamedTuple):
    """One change of one place."""

    package: str
    module: str
    function: str
    was: str
    now: str
    code: str  # the whole module with the change


class Outcome(NamedTuple):
    """What became of a fault."""

    fault: Fault
    noticed: str  # of WAYS; "" if it survived


def source(package: str) -> Path:
    """Where the modules of a package are."""
    return ROOT / "packages" / f"anomnorm-{package}" / "src" / f"anomnorm_{package}"


def _annotation(node: Any) -> bool:
    """Whether a node of the syntax tree is part of a type, which nothing computes with."""
    while (parent := node.parent) is not None:
        if parent.type in ("tfpdef", "annassign"):
            return node is parent.children[2 if parent.type == "tfpdef" else 1]
        if parent.type == "funcdef" and node is parent.annotation:
            return True
        node = parent
    return False


def faults(package: str, seed: int, sample: int) -> tuple[list[Fault], int]:
    """One change at each of ``sample`` places, and how many places there are.

    A change of the code elsewhere draws no other places: each has a number of its own, and the smallest are taken.
    """
    places: dict[tuple[str, Any, Any], list[tuple[Any, int, str]]] = {}
    operators = [get_operator(name) for name in operator_names() if name != "core/NoOp"]
    texts = {name: (source(package) / name).read_text(encoding="utf-8") for name in PACKAGES[package].modules}
    for module, text in texts.items():
        nodes = list(ast_nodes(get_ast(text)))
        for operator in operators:
            if operator.arguments():
                continue
            positions = ((node, span) for node in nodes for span in operator().mutation_positions(node))
            for occurrence, (node, span) in enumerate(positions):
                if not _annotation(node):
                    name = ASTQuery(node).get_definition_name() or ""
                    places.setdefault((module, *span), []).append((operator, occurrence, name))
    drawn = []
    for (module, *span), changes in places.items():
        (first, begin), (_, end) = span
        line = texts[module].splitlines()[first - 1]
        about = f"{seed} {module} {changes[0][-1]} {line.strip()} {line[begin:end]}"
        number = int.from_bytes(hashlib.sha256(about.encode()).digest()[:8], "big")
        drawn.append((number, begin, module, changes))
    drawn.sort(key=lambda draw: draw[:2])
    made = (
        _fault(package, module, texts[module], *changes[number % len(changes)]) for number, _, module, changes in drawn
    )
    return list(islice((fault for fault in made if fault is not None), sample or None)), len(places)


def _fault(package: str, module: str, before: str, operator: Any, occurrence: int, function: str) -> Fault | None:
    after = mutate_code(before, operator(), occurrence)
    try:
        compile(after, module, "exec")
    except SyntaxError:  # not one that anybody could make
        return None
    pairs = zip_longest(before.splitlines(), after.splitlines(), fillvalue="")
    was, now = next(pair for pair in pairs if pair[0] != pair[1])
    return Fault(package, module, function, was.strip(), now.strip(), after)


def outcome(fault: Fault, copies: Queue[Path]) -> Outcome:
    """Run the tests on a copy that has the fault."""
    copy = copies.get()
    module = copy / f"anomnorm_{fault.package}" / fault.module
    before = module.read_text(encoding="utf-8")
    try:
        module.write_text(fault.code, encoding="utf-8")
        return Outcome(fault, _noticed(fault.package, copy))
    finally:
        module.write_text(before, encoding="utf-8")
        copies.put(copy)


def _noticed(package: str, copy: Path) -> str:
    backends, _, own = PACKAGES[package]
    pytest = ("-m", "pytest", "-x", "-q", "--tb=no", "--no-header")
    try:
        if _run(copy, "-c", f"import anomnorm_{package}"):
            return "import"
        if _run(copy, *pytest, *CONFORMANCE, "--backends", backends):
            return "conformance"
        return "own tests" if _run(copy, *pytest, *(f"tests/{name}.py" for name in own)) else ""
    except subprocess.TimeoutExpired:
        return "timeout"


def _run(copy: Path, *arguments: str) -> bool:
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


def look(package: str, drawn: list[Fault]) -> Iterator[Outcome]:
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
        yield from pool.map(lambda fault: outcome(fault, copies), drawn)


def explained() -> dict[tuple[str, ...], str]:
    """Why a fault cannot be noticed, or does not matter, by module, function and the two texts of the line."""
    entries = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))["survivor"]
    return {tuple(entry[key] for key in ("module", "function", "was", "now")): entry["why"] for entry in entries}


def summary(found: list[Outcome], places: int, seed: int) -> dict[str, Any]:
    """What is kept of a package's run."""
    count = Counter(result.noticed for result in found)
    return {
        "cosmic-ray": version("cosmic-ray"),
        "seed": seed,
        "places": places,
        "noticed": {way: count[way] for way in WAYS},
        "survived": [_key(result.fault) for result in found if not result.noticed],
    }


def _key(fault: Fault) -> tuple[str, ...]:
    return (f"{fault.package}/{fault.module}", fault.function, fault.was, fault.now)


def page(runs: dict[str, dict[str, Any]]) -> str:
    """The report on the packages' runs."""
    run = next(iter(runs.values()))
    lines = [
        "# Mutation testing",
        "",
        f"Written by `nox -s mutation`: small faults (cosmic-ray {run['cosmic-ray']}) in the kernels of each"
        f" package, one at each place drawn (seed {run['seed']}), and which tests noticed them first. *import*: the"
        " package does not load any more. *conformance*: the suite that all backends pass. *own tests*: where that"
        " passes, the package's tests of its kernels.",
        "",
        "| package | places | drawn | noticed at import | by conformance | by own tests | by not ending | survived |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for package, run in runs.items():
        count = run["noticed"]
        cells = [run["places"], sum(count.values()), *(count[way] for way in WAYS)]
        lines.append(f"| anomnorm-{package} | {' | '.join(map(str, cells))} |")
    reasons = explained()
    lines += ["", "## What survived, and why", ""]
    for name, function, was, now in chain.from_iterable(run["survived"] for run in runs.values()):
        why = reasons.get((name, function, was, now), "**Not explained.**")
        lines.append(f"- `{name}`, `{function}`: `{was}` became `{now}`. {why}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="places for each package; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", default=",".join(PACKAGES))
    options = parser.parse_args()
    runs = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    reasons, wrong = explained(), 0
    for package in options.packages.split(","):
        drawn, places = faults(package, options.seed, options.sample)
        print(f"anomnorm-{package}: first the tests without any fault, then {len(drawn)} faults", flush=True)
        found = []
        for result in tqdm(look(package, drawn), total=len(drawn), desc=package):
            found.append(result)
            wrong += (_key(result.fault) in reasons) == bool(result.noticed)
            if not result.noticed:
                tqdm.write(" | ".join(("survived", *_key(result.fault))))
        runs[package] = summary(found, places, options.seed)
        if not 0 < options.sample < SAMPLE:
            FOUND.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page(runs), encoding="utf-8")
    print(page(runs))
    if wrong:
        raise SystemExit(f"{wrong} faults survived unexplained, or were noticed although {EXPLAINED.name} names them")


if __name__ == "__main__":
    main()
