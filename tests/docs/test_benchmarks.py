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
