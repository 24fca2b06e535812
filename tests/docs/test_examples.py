"""The examples run as programs and do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    return result.stdout


def test_lightning_on_a_table() -> None:
    text = run("lightning_tabular.py")
    chosen, moved = (float(number) for number in re.findall(r"(-?\d+\.\d+) sigmas", text))
    tables = [[int(n) for n in row] for row in re.findall(r"(?:benign|malignant) +(\d+) +(\d+)", text)]
    (_, false_alarms), (missed, found), (_, more_alarms), (fewer_missed, _) = tables
    assert found > 8 * missed  # a detector that detects
    assert moved < chosen
    assert more_alarms >= false_alarms
    assert fewer_missed <= missed
    assert sum(map(sum, tables[:2])) == sum(map(sum, tables[2:]))
