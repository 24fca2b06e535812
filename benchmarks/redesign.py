"""What a redesign changed: size, calls, compilations and time of several versions of the packages, in one run.

``nox -s redesign -- before=FOLDER after=packages`` compares; each folder holds ``anomnorm-core/src`` and so on. Without
arguments, the packages of this repository alone. Prints a table. Every figure is of one process with one thread, the
versions in turn; times are medians of the rounds. The formula of anomalib 0.3 and a comparison are measured in the same
processes, with the allocator's memory kept (`measuring.KEPT_MEMORY`).
"""

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from batches import HOOKS, arrays, timed, train_and_test, watched
from measuring import require_kept_memory, seconds, use_cores

PACKAGES = ("core", "torch", "jax")
ROOT = Path(__file__).parents[1]
SHAPE = (32, 1, 256, 256)
MEAN, STD, SIGMAS = 0.5, 0.25, 2.0
STARTS = {"/jax/core/compile/jaxpr_trace_duration": "jaxprs", "/jax/core/compile/backend_compile_duration": "compiled"}


def lines_of_code(folder: Path) -> dict[str, float]:
    """Lines of each package without blank lines, comments and docstrings, and of all of them as they are."""
    found: dict[str, float] = {}
    plain = 0
    for package in PACKAGES:
        texts = [path.read_text(encoding="utf-8") for path in (folder / f"anomnorm-{package}" / "src").rglob("*.py")]
        found[f"lines of code, anomnorm-{package}"] = sum(map(_code, texts))
        plain += sum(len(text.splitlines()) for text in texts)
    return found | {"lines of code, all": sum(found.values()), "lines with comments and docstrings, all": plain}


def _code(text: str) -> int:
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def callbacks() -> list[tuple[str, type, tuple[Any, ...]]]:
    from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback

    return [("min-max", MinMaxNormalizationCallback, (2.0,)), ("CDF", CdfNormalizationCallback, (2.0,))]


def calls(_: bool) -> dict[str, float]:
    """Python calls for each batch of a test: into modules of the packages, and all."""
    import torch

    found: dict[str, float] = {}
    for outputs, of in ((arrays(False), "scores"), (arrays(True), "scores and maps")):
        tensors = {name: torch.from_numpy(array[:2]) for name, array in outputs.items()}
        for method, kind, options in callbacks():
            seen: dict[str, Counter[str]] = {}

            def around(name: str, call: Callable[[], None], seen: dict[str, Counter[str]] = seen) -> None:
                count = seen[name] = Counter()  # that of the last batch stays
                sys.setprofile(lambda frame, event, _: count.update([frame.f_code.co_filename] * (event == "call")))
                try:
                    call()
                finally:
                    sys.setprofile(None)

            train_and_test(watched(kind, around)(*options), tensors, 3)
            count = seen["on_test_batch_end"]
            own = {name: number for name, number in count.items() if "/anomnorm_" in name}
            found[f"calls into the packages for a test batch, {method}, {of}"] = sum(own.values())
            found[f"their modules, {method}, {of}"] = len(own)
            found[f"all Python calls for a test batch, {method}, {of}"] = count.total()
    return found


def batches(quick: bool) -> dict[str, float]:
    """Microseconds of a batch of 32 image scores through a callback, over an empty one."""
    import pytorch_lightning as pl
    import torch

    torch.set_num_threads(1)
    outputs = {name: torch.from_numpy(array) for name, array in arrays(False).items()}
    repetitions = 30 if quick else 1000
    empty = timed(pl.Callback, (), outputs, repetitions)
    found = {}
    for method, kind, options in callbacks():
        times = timed(kind, options, outputs, repetitions)
        found |= {f"microseconds of 32 scores, {method}, {name}": 1e6 * (times[name] - empty[name]) for name in HOOKS}
    return found


def compilations(_: bool) -> dict[str, float]:
    """How many jaxprs are made and programs compiled in a first epoch, and in a second one.

    With maps, both thresholds searched, the fit, four batches of validation, and one of a test.
    """
    import jax
    import jax.numpy as jnp

    import anomnorm_jax

    rng = np.random.default_rng(0)
    label = np.arange(8) % 4 == 0
    scores, maps = np.exp(rng.normal(size=8) + label), np.exp(rng.normal(size=(8, 1, 32, 32)))
    normal = {"pred_scores": jnp.asarray(scores, dtype="float32"), "anomaly_maps": jnp.asarray(maps, dtype="float32")}
    mask = np.broadcast_to(label[:, None, None, None], maps.shape)
    outputs = {**normal, "label": jnp.asarray(label), "mask": jnp.asarray(mask)}
    count: Counter[str] = Counter()
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: count.update([event]))

    def epoch(hook: Any, run: Any, passed: tuple[Any, ...]) -> Any:
        run = hook.on_validation_epoch_start(run, *passed)
        for _ in range(4):
            run, _outputs = hook.on_validation_batch_end(run, outputs)
        fitted = hook.on_validation_epoch_end(run)
        hook.on_test_start(fitted)
        jax.block_until_ready(hook.on_test_batch_end(fitted, outputs))
        # Version 1 carried one state through everything.
        return fitted if type(fitted) is type(run) else run

    found: dict[str, float] = {}
    for method, hook in (
        ("min-max", anomnorm_jax.MinMaxNormalizationHook()),
        ("CDF", anomnorm_jax.CdfNormalizationHook(progress=False)),
    ):
        jax.clear_caches()
        passed = (lambda batch: batch, [normal, normal]) if method == "CDF" else ()
        run = None
        for name in ("first", "second"):
            count.clear()
            run = epoch(hook, hook.setup(outputs) if run is None else run, passed)
            made = {kind: count[event] for event, kind in STARTS.items()}
            found[f"jaxprs in a {name} epoch, {method}"] = made["jaxprs"]
            found[f"programs compiled in a {name} epoch, {method}"] = made["compiled"]
    return found


def _statistics() -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    pixel_mean = rng.normal(MEAN, 0.02, size=SHAPE[-2:]).astype(np.float32)
    pixel_std = rng.uniform(0.2, 0.3, size=SHAPE[-2:]).astype(np.float32)
    maps = np.exp(rng.normal(MEAN, STD, size=SHAPE)).astype(np.float32)
    return maps.max(axis=(1, 2, 3)), maps, pixel_mean, pixel_std


def maps_torch(quick: bool) -> dict[str, float]:
    """Milliseconds of CDF maps with their masks in PyTorch, and of the formula of anomalib 0.3 and a comparison."""
    import torch
    from formulas import cdf_and_masks

    from anomnorm_torch import Normalizer

    torch.set_num_threads(1)
    scores, maps, mean, std = (torch.from_numpy(array) for array in _statistics())
    normalizer = Normalizer.cdf((MEAN, STD), (mean, std), threshold=SIGMAS)
    compiled, formula = torch.compile(normalizer), torch.compile(cdf_and_masks)
    repetitions = 3 if quick else 25
    times = {
        "copy": lambda: maps.clone(),
        "formula of anomalib 0.3, PyTorch eager": lambda: cdf_and_masks(maps, SIGMAS, mean, std, MEAN),
        "normalizer, PyTorch eager": lambda: normalizer(scores, maps),
        "formula of anomalib 0.3, PyTorch compiled": lambda: formula(maps, SIGMAS, mean, std, MEAN, validate=False),
        "normalizer, PyTorch compiled": lambda: compiled(scores, maps),
    }
    return {f"milliseconds of CDF maps, {name}": 1e3 * seconds(call, repetitions) for name, call in times.items()}


def maps_jax(quick: bool) -> dict[str, float]:
    """The same in JAX."""
    import jax
    import jax.numpy as jnp

    from anomnorm_jax import Normalizer

    scores, maps, mean, std = (jnp.asarray(array) for array in _statistics())
    normalizer = Normalizer.cdf((MEAN, STD), (mean, std), threshold=SIGMAS)

    @jax.jit
    def formula(x: jax.Array, t: float, mean: jax.Array, std: jax.Array, center: float) -> tuple[jax.Array, jax.Array]:
        z = (jnp.log(x) - mean) / std - (center - mean) / std
        return jax.scipy.stats.norm.cdf(z - t), z >= t

    call = jax.jit(lambda normalizer, scores, maps: normalizer(scores, maps))
    repetitions = 3 if quick else 25
    times = {
        "formula of anomalib 0.3, JAX jitted": lambda: formula(maps, SIGMAS, mean, std, MEAN),
        "normalizer, JAX jitted": lambda: call(normalizer, scores, maps),
    }
    return {
        f"milliseconds of CDF maps, {name}": 1e3 * seconds(call, repetitions, jax.block_until_ready)
        for name, call in times.items()
    }


COUNTED = {"calls": calls, "compilations": compilations}
TIMED = {"batches": batches, "maps_torch": maps_torch, "maps_jax": maps_jax}


def worker(part: str, folder: Path, quick: bool) -> dict[str, float]:
    """What a process finds that has the packages in ``folder``."""
    sources = [str((folder / f"anomnorm-{package}" / "src").resolve()) for package in PACKAGES]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sources),
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # programs are counted
    }
    command = [sys.executable, __file__, "--part", part, *(["--quick"] if quick else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """A row for each figure, a column for each version; times of maps also as a share of the formula's."""
    lines = [f"| | {' | '.join(found)} |", f"| --- | {' | '.join('---:' for _ in found)} |"]
    for row in next(iter(found.values())):
        cells = []
        for figures in found.values():
            value = figures[row]
            cell = f"{value:.2f}" if "milliseconds" in row else f"{value:,.0f}"
            formula = figures.get(row.replace("normalizer", "formula of anomalib 0.3"))
            cells.append(f"{cell} ({value / formula:.2f} x)" if "normalizer" in row and formula else cell)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def compare(folders: dict[str, Path], rounds: int, quick: bool) -> dict[str, dict[str, float]]:
    """All figures by version."""
    found = {name: lines_of_code(folder) for name, folder in folders.items()}
    for part in COUNTED:
        for name, folder in folders.items():
            found[name] |= worker(part, folder, quick)
    for part in TIMED:
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
        for _ in range(rounds):
            for name, folder in folders.items():  # in turn, so that what slows the machine slows all of them
                seen[name].append(worker(part, folder, quick))
        for name, results in seen.items():
            found[name] |= {row: median(result[row] for result in results) for row in results[0]}
    return found


def main(arguments: list[str] | None = None) -> None:
    """Compare the versions that are given, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=[f"now={ROOT / 'packages'}"], help="NAME=FOLDER")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=[*COUNTED, *TIMED], help="of the installed packages, as JSON")
    options = parser.parse_args(arguments)
    if options.part:
        use_cores(1)
        print(json.dumps((COUNTED | TIMED)[options.part](options.quick)))
        return
    if not options.quick:
        require_kept_memory()
    folders = {name: Path(folder) for name, folder in (version.split("=", 1) for version in options.versions)}
    print("\n".join(table(compare(folders, 1 if options.quick else options.rounds, options.quick))))


if __name__ == "__main__":
    main()
