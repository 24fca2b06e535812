"""All benchmarks in one run: a table and a picture for docs/evidence/benchmarks.md.

``nox -s bench`` runs it; ``-- --quick`` takes few repetitions and prints instead of writing. Each backend runs in a
process of its own. Figures of different runs or machines do not compare; ratios of one run do.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from contents import with_contents
from goals import Results, goal_table
from measuring import KEPT_MEMORY, require_kept_memory

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "evidence" / "benchmarks.md"
PICTURES = PAGE.parents[1] / "images"
METHODS = ("min-max", "two-slope", "CDF")
BACKENDS = ("torch", "torch-compiled", "jax")
PACKAGES = ("torch", "jax")
WAYS = ("anomalib 0.3", "straightforward", "floor", "anomnorm")
ANOMALIB = FOLDER.parent / ".nox" / "anomalib" / "bin" / "python"  # `nox -s anomalib` makes it
IMPORTS = {"anomnorm_torch": "torch", "anomnorm_jax": "jax", "anomnorm_core": None}  # beside what
Found = dict[str, dict[str, dict[str, float]]]  # by backend, work, way


def worker(program: str, *arguments: str, keep_memory: bool = True, python: str = sys.executable) -> Any:
    """What a worker prints, as an object."""
    environment = {name: value for name, value in os.environ.items() if keep_memory or name not in KEPT_MEMORY}
    command = [python, str(FOLDER / program), *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def import_times(repetitions: int) -> dict[str, float]:
    """Milliseconds that importing each package adds to importing what it is for; medians, first ones left out."""
    found = {}
    for package, base in IMPORTS.items():
        program = "import time; " + (f"import {base}; " if base else "") + "start = time.perf_counter(); "
        program += f"import {package}; {package}.Normalizer; print(time.perf_counter() - start)"
        times = [
            float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
            for _ in range(repetitions + 1)
        ]
        found[package] = 1e3 * median(times[1:])
    return found


def kernel_table(found: Found, peaks: Found) -> list[str]:
    """One row for each work and backend, in copies of the batch."""
    lines = [
        "| work | backend | anomalib 0.3 | straightforward | floor | anomnorm | times as fast | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for work in found["torch"]:
        theirs = found["torch"][work].get("anomalib 0.3")
        for backend in found:
            ways = found[backend].get(work)
            if ways is None:
                continue
            cells = [f"{ways[way]:.1f}" if way in ways else "" for way in WAYS]
            bytes_needed = peaks[backend][work]["anomnorm"]
            peak = "" if bytes_needed is None else f"{bytes_needed / 2**20:.0f}"
            faster = f"{theirs / ways['anomnorm']:.1f}x" if theirs else ""
            lines.append(f"| {' | '.join([work, backend, *cells, faster, peak])} |")
    return lines


def loop_table(images: str, torch: dict[str, dict[str, float]], jax: dict[str, dict[str, float]]) -> list[str]:
    """The share of time that each callback and hook adds to each stage of a whole run."""
    base = torch["without"]
    lines = [
        "## Whole runs",
        "",
        f"A network of the size of a ResNet-18, {images} in batches of 8, all cores: "
        "what a callback or hook adds to the time of a stage, adaptive thresholds for images and pixels included. "
        "*fit* is an epoch of which only the validation runs the network; for the CDF it includes the pass over as "
        "many training images, and *pass* is what that costs, in validations without normalization (it is not part of "
        "*validate* in JAX). Below three percent or so is noise, of either sign.",
        "",
        "| normalization | package | fit | validate | test | pass |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in METHODS:
        collected = torch["CDF"]["fit"] - torch["min-max"]["fit"]
        cells = [f"{torch[name][stage] / base[stage] - 1.0:+.1%}" for stage in ("fit", "validate", "test")]
        lines.append(f"| {name} | torch | {' | '.join(cells)} | {_passes(name, collected, base)} |")
    for name in METHODS:
        cells = [f"{jax[name][stage] / jax['without'][stage] - 1.0:+.1%}" for stage in ("validate", "test")]
        lines.append(f"| {name} | jax |  | {' | '.join(cells)} | {_passes(name, jax[name]['start'], jax['without'])} |")
    return lines


def _passes(name: str, seconds: float, base: dict[str, float]) -> str:
    return f"{seconds / base['validate']:.2f}" if name == "CDF" else ""


def scale_table(package: str, found: dict[str, Any]) -> list[str]:
    """Time and memory of each record against the number of maps, and the cost of a merge."""
    sizes = [f"{maps:,} maps" for maps, *_ in next(iter(found.values()))["rows"]]
    lines = [
        f"## Scale, {package}",
        "",
        "Seconds for so many maps of 64 x 64 in batches of 32, one thread. *slope*: of the logarithm of time against "
        "that of the number of maps; 1 is linear. *memory*: MiB that the process grew from the first number to the "
        "last. *merge*: milliseconds of one merge; 1,024 workers merge in 10 steps, one after the other.",
        "",
        f"| record | {' | '.join(sizes)} | slope | memory | KiB of a record | merge |",
        f"| --- | {' | '.join(['---:'] * (len(sizes) + 4))} |",
    ]
    for name, result in found.items():
        rows = result["rows"]
        cells = [f"{seconds:.3f}" for _, seconds, _ in rows]
        grown = (rows[-1][2] - rows[0][2]) / 2**20
        cells += [f"{result['slope']:.2f}", f"{grown:.1f}", f"{result['bytes'] / 1024:.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {1e3 * result['merge']:.2f} |")
    return lines


def draw(found: Found, path: Path) -> None:
    """A bar for each way, by work."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    works = ["min-max, maps and masks", "CDF, maps and masks", "per-pixel moments update", "min/max update"]
    figure, all_axes = pyplot.subplots(1, len(works), figsize=(13, 3.6), constrained_layout=True)
    for axes, work in zip(all_axes, works, strict=True):
        bars = {
            f"{way}, {backend}": value
            for backend in found
            for way, value in found[backend][work].items()
            if way != "anomnorm"
        }
        bars |= {f"anomnorm, {backend}": found[backend][work]["anomnorm"] for backend in found}
        colors = ["#d9822b" if name.startswith("anomnorm") else "#9aa5b1" for name in bars]
        axes.barh(list(bars), list(bars.values()), color=colors)
        axes.invert_yaxis()
        axes.set_title(work, fontsize=10)
        axes.set_xlabel("in copies (less is better)", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=110)


def draw_growth(found: dict[str, Any], scale: dict[str, Any], path: Path) -> None:
    """Time against the work: of calls by batch and resolution, of a run by its images, of merging by workers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = list(next(iter(found.values())))
    figure, (*axes, last) = pyplot.subplots(1, len(panels) + 1, figsize=(14, 3.4), constrained_layout=True)
    styles = {"torch": "-o", "jax": "--s"}
    for panel, work in zip(axes, panels, strict=True):
        for package, results in found.items():
            for name, rows in results[work].items():
                panel.loglog(*zip(*rows, strict=True), styles[package], label=f"{name}, {package}", markersize=4)
        numbers = [number for number, _ in rows]
        panel.set_xticks(numbers, map(str, numbers))
        panel.minorticks_off()
        panel.set_xlabel(work)
        panel.set_ylabel("milliseconds of a call")
    for package, results in scale.items():
        for name, result in results.items():
            maps, spent, _ = zip(*result["rows"], strict=True)
            last.loglog(maps, spent, styles[package], label=f"{name}, {package}", markersize=4)
    last.set_xlabel("maps of 64 x 64 in a run")
    last.set_ylabel("seconds of a record's updates")
    for panel in (*axes, last):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def results(repetitions: str, batches: str, imports: int, loops: tuple[str, ...]) -> Results:
    """All that goals are about."""
    return {
        "kernels": {name: worker("kernels.py", name, "--repetitions", repetitions) for name in BACKENDS},
        "batches": {name: worker("batches.py", name, "--repetitions", batches) for name in PACKAGES},
        "loops": {"torch": worker("loop.py", *loops), "jax": worker("loop_jax.py", *loops)},
        "first epoch": worker("first_epoch.py"),
        "imports": import_times(imports),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure everything; write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, one run, and print instead of writing")
    quick = parser.parse_args(arguments).quick
    if not quick:
        require_kept_memory()
    repetitions, batches, imports = ("3", "50", 1) if quick else ("25", "1000", 9)
    loops = (
        ("--side", "32", "--batches", "2", "--repetitions", "1") if quick else ("--batches", "8", "--repetitions", "2")
    )
    runs = [results(repetitions, batches, imports, loops) for _ in range(1 if quick else 2)]
    one = runs[-1]["kernels"]
    found: Found = {name: result["work"] for name, result in one.items()}
    peaks: Found = {name: worker("kernels.py", name, "--peak", keep_memory=False)["work"] for name in BACKENDS}
    versions = ", ".join(dict.fromkeys(result["version"] for result in one.values()))
    cores = os.cpu_count() or 1
    text = [
        "# Benchmarks",
        "",
        f"Written by `nox -s bench`: anomnorm {version('anomnorm-core')}, {versions}, Python "
        f"{platform.python_version()}, on {platform.machine()} ({_processor()}) with {cores} cores, no GPU. Kernels "
        f"are medians of {repetitions} calls after five others (of two, where a call takes a second); other machines "
        "have other ratios, and differences of a tenth are noise.",
        "",
        "## Goals",
        "",
        "What was to be reached before the first line was written, and what two runs of this program found. Ratios are "
        "within one run and one thread; whole runs take all cores, and vary by some percent of either sign. Figures of "
        "graphics processors, and the reasons for what was missed, are below.",
        "",
        *goal_table(runs),
        "",
        "## Kernels, one thread",
        "",
        f"32 x 1 x 256 x 256 float32 maps, 8 MiB. The unit is a copy of them into memory that is there already, here "
        f"{1e3 * one['torch']['copy']:.2f} ms. *maps and masks*: what a user "
        "calls, a normalizer with image scores and maps, for normalized maps and masks; *normalize* and the rest: the "
        "functions of the packages. *anomalib 0.3*: its formulas, with the comparison that makes masks in the first "
        "rows; in JAX the same lines by hand. *straightforward*: what one would write. *floor*: a copy into new memory "
        "for min-max, a logarithm and an `erfc` for the CDF (for maps and masks in pieces that fit the cache), an "
        "`erfc` for the CDF of z-scores, a logarithm for the moments; all in eager PyTorch. "
        "*times as fast*: the formulas of anomalib 0.3 in eager PyTorch against anomnorm in this backend (below 1x: "
        "slower). *peak*: by how much the memory of the process rises, the result included. Memory that is freed stays "
        "with the process (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`), other than while *peak* is measured: "
        "page faults would otherwise be most of what is measured, of the formulas of anomalib 0.3 above all.",
        "",
        *kernel_table(found, peaks),
        "",
    ]
    if cores > 1:
        threads = ("--threads", str(cores))
        many = {name: worker("kernels.py", name, "--repetitions", repetitions, *threads) for name in BACKENDS}
        text += [
            f"## Kernels, {cores} threads",
            "",
            "In copies by one thread.",
            "",
            "| work | backend | anomalib 0.3 | anomnorm |",
        ]
        text += ["| --- | --- | ---: | ---: |"]
        for work in found["torch"]:
            for name, result in many.items():
                ways = result["work"].get(work)
                if ways is not None:
                    cells = (f"{ways[way]:.1f}" if way in ways else "" for way in ("anomalib 0.3", "anomnorm"))
                    text.append(f"| {work} | {name} | {' | '.join(cells)} |")
        text.append("")
    text += ["## One batch of 32 image scores", "", "Microseconds of one call.", "", "| call | |", "| --- | ---: |"]
    for found_batches in runs[-1]["batches"].values():
        text += [f"| {name} | {value:.1f} |" for name, value in found_batches.items()]
    text += [
        "",
        "## One batch of 32 scores and maps",
        "",
        "Milliseconds of one call, with maps of 256 x 256 and one thread. *anomalib 0.3*: its formulas for scores and "
        "maps and the comparisons, as a callback. *anomalib 2*: its post-processor and ours in a process of their own, "
        "in which a copy takes as long as its row says; measured where `nox -s anomalib` has run.",
        "",
        "| call | |",
        "| --- | ---: |",
    ]
    for package in PACKAGES:
        with_maps = worker("batches.py", package, "--maps", "--repetitions", repetitions)
        text += [f"| {name} | {value / 1e3:.2f} |" for name, value in with_maps.items()]
    if ANOMALIB.exists():
        two = worker("anomalib_two.py", python=str(ANOMALIB))
        text += [f"| with anomalib 2: {name} | {value:.2f} |" for name, value in two.items()]
    images = "16 images of 3 x 32 x 32" if quick else "64 images of 3 x 256 x 256"
    text += ["", *loop_table(images, *runs[-1]["loops"].values())]
    scale = {package: worker("scale.py", package, "--largest", "4" if quick else "6") for package in PACKAGES}
    for package, rows in scale.items():
        text += ["", *scale_table(package, rows)]
    growth = {package: worker("growth.py", package, "--repetitions", repetitions) for package in PACKAGES}
    text += [
        "",
        "## Growth",
        "",
        "A normalizer's call by the images in a batch (of 256 x 256) and by the pixels of a side (8 images), merging "
        "by the records, and the updates of a run by its maps; one thread. Straight lines of slope 1 (2 for sides) are "
        "linear; on the left it is the cost of a call itself.",
        "",
        "![Time against work](../images/growth.png)",
    ]
    text += ["", "## Import", "", "With a look at `Normalizer`.", "", "| package | after | milliseconds |"]
    text += ["| --- | --- | ---: |"]
    for package, value in runs[-1]["imports"].items():
        base = IMPORTS[package]
        text.append(f"| `{package}` | {f'`{base}`' if base else 'nothing'} | {value:.0f} |")
    print("\n".join(text))
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            draw(found, Path(folder) / "picture.png")
            draw_growth(growth, scale, Path(folder) / "growth.png")
        return
    notes = (FOLDER / "notes.md").read_text(encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    draw(found, PICTURES / "benchmarks.png")
    draw_growth(growth, scale, PICTURES / "growth.png")
    text[4:4] = ["![Time of each work, by way](../images/benchmarks.png)", ""]
    PAGE.write_text(with_contents("\n".join(text) + "\n\n" + notes), encoding="utf-8")


def _processor() -> str:
    """Its name and widest vectors, where the system tells (Linux)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    told = {key.strip(): value.strip() for key, value in pairs}
    flags = told.get("flags", "").split()
    widest = next((name for name in ("avx512f", "avx2") if name in flags), "")
    return ", ".join(part for part in (told.get("model name", "unknown"), widest) if part)


if __name__ == "__main__":
    main()
