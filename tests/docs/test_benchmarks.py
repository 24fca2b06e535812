"""The benchmark program runs and reports every row; what it measures is nobody's verdict."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


def test_every_row_is_reported() -> None:
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "--quick"], capture_output=True, text=True, check=False, timeout=200
    )
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.endswith("x")]
    assert len(rows) == 9


def test_every_way_to_run_a_normalizer_is_compared() -> None:
    program = PROGRAM.with_name("parity.py")
    result = subprocess.run(
        [sys.executable, str(program), "--quick"], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("|")][2:]
    assert [row[0].removeprefix("| ").split(",")[0] for row in rows] == [*["NumPy"], *["PyTorch"] * 3, *["JAX"] * 2]
    assert all(row[1] == "0" for row in rows)  # labels that differ under min-max
    page = (PROGRAM.parents[1] / "docs" / "parity.md").read_text(encoding="utf-8")
    assert [row[0] for row in rows] == [line.split(" | ")[0] for line in page.splitlines() if line[:1] == "|"][2:]
