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


def test_a_whole_flax_training() -> None:
    text = run("flax_training.py")
    epochs = [(int(epoch), float(auroc)) for epoch, auroc in re.findall(r"epoch +(\d+): AUROC (\d\.\d+)", text)]
    stopped, kept = map(int, re.search(r"stopped after epoch (\d+); kept epoch (\d+)", text).groups())  # type: ignore[union-attr]
    assert kept == epochs[-1][0] == stopped - 5  # the best one, which five others did not surpass
    assert epochs[-1][1] > 0.9
    # What the other process found with it.
    found, zeros, alarms, others = map(int, re.search(r"(\d+)/(\d+) zeros, (\d+)/(\d+) others", text).groups())  # type: ignore[union-attr]
    assert found / zeros - alarms / others > 0.5
    assert zeros + others == 1797 // 3  # padding is not among them
