"""The command line on files of scores: time for each score and peak memory, beside reading the file alone.

``python benchmarks/command_line.py [ROWS ...]`` writes files of so many rows (default: 10^5 and 10^7), as CSV with a
path and a label in each row and as NPY, into a temporary folder. Every figure is of a process of its own on one core,
imports included, so that those of the smaller files are mostly of starting. Seconds are those of the processor.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from measuring import use_cores

PROGRAM = Path(__file__).resolve()

CHUNK = 100_000
COMMAND = [sys.executable, "-m", "anomnorm_core"]
FIT = ["--threshold", "false_alarm_rate", "--force", "-o", "fit.safetensors"]
READING = {
    "numpy.loadtxt, scores": "import numpy; numpy.loadtxt('{}', delimiter=',', usecols=1, skiprows=1)",
    "numpy.loadtxt, scores and labels": (
        "import numpy; numpy.loadtxt('{}', delimiter=',', usecols=(1, 2), skiprows=1, dtype=[('s', 'f8'), ('l', 'U9')])"
    ),
    "pyarrow.csv, scores and labels": (
        "import pyarrow, pyarrow.csv as csv; pyarrow.set_cpu_count(1); "
        "csv.read_csv('{}', convert_options=csv.ConvertOptions(include_columns=['score', 'label']))"
    ),
}


def write(rows: int) -> None:
    """Write the files of so many rows."""
    generator = np.random.default_rng(0)
    scores = np.exp(0.4 * generator.normal(size=rows))
    anomalous = generator.random(rows) < 0.05
    scores[anomalous] *= 3
    np.save(f"{rows}.npy", scores)
    words = np.where(anomalous, "anomalous", "normal")
    with Path(f"{rows}.csv").open("w", encoding="utf-8") as file:
        file.write("path,score,label\n")
        for start in range(0, rows, CHUNK):
            part = slice(start, start + CHUNK)
            numbered = enumerate(zip(scores[part].tolist(), words[part].tolist(), strict=True), start)
            file.writelines(f"test/{number:08d}.png,{score!r},{word}\n" for number, (score, word) in numbered)


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds on the processor and peak of resident memory in MB."""
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=silent)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        write(int(sys.argv[2]))
        return
    use_cores(1)
    rows = [int(float(each)) for each in sys.argv[1:]] or [10**5, 10**7]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(f"{'':40s}{'rows':>10s}{'seconds':>10s}{'ns/row':>8s}{'peak MB':>9s}")
        for count in rows:
            csv, npy = f"{count}.csv", f"{count}.npy"
            # Not in this process, whose peak its children would start with.
            subprocess.run([sys.executable, str(PROGRAM), "--write", str(count)], check=True)
            commands = {
                name: [sys.executable, "-c", code.format(csv)]
                for name, code in READING.items()
                if "pyarrow" not in name or find_spec("pyarrow")
            }
            commands |= {
                "fit CSV": [*COMMAND, "fit", csv, "--label", "label", *FIT],
                "fit CSV --bounded-memory": [*COMMAND, "fit", csv, "--label", "label", "--bounded-memory", *FIT],
                "apply CSV": [*COMMAND, "apply", "fit.safetensors", csv, "--force", "-o", "out.csv"],
                "fit NPY": [*COMMAND, "fit", npy, *FIT],
                "fit NPY --bounded-memory": [*COMMAND, "fit", npy, "--bounded-memory", *FIT],
                "apply NPY": [*COMMAND, "apply", "fit.safetensors", npy, "--force", "-o", "out.npz"],
            }
            for name, command in commands.items():
                seconds, peak = measure(command)
                print(f"{name:40s}{count:10d}{seconds:10.2f}{seconds / count * 1e9:8.0f}{peak:9.0f}", flush=True)


if __name__ == "__main__":
    main()
