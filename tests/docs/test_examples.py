"""The examples run as programs and do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomnorm_core import InvalidScoreWarning, fitting

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, warns: bool = False) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert warns or "Warning" not in result.stderr, result.stderr
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


@pytest.mark.clause("L8")
def test_four_workers_write_the_file_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    rng = np.random.default_rng(0)
    labels = (rng.random(1500) < 0.1).astype(int)
    labels[:2] = 0
    scores = rng.lognormal(2.0 * labels, 0.5)
    scores[:2] = 0.0, np.nan
    for number, part in enumerate(np.split(np.arange(1500), (0, 1, 40, 700, 701, 1200))):  # one is empty
        np.savez(tmp_path / f"{number}.npz", scores=scores[part], labels=labels[part])
    text = run("dask_scores.py", str(tmp_path), warns=True)
    assert "7 files by four workers" in text
    assert "one process gives the same file" in text
    record = fitting.record(scores, labels)
    with pytest.warns(InvalidScoreWarning, match="1 is zero and 1 NaN"):
        normalizer = fitting.normalizer(record, threshold="false_alarm_rate", false_alarm_rate=0.001)
    normalizer.save(tmp_path / "here.safetensors")
    assert (tmp_path / "detector.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    flagged = np.concatenate([np.load(tmp_path / "normalized" / f"{n}.npz")["pred_labels"] for n in range(7)])
    np.testing.assert_array_equal(flagged, normalizer(scores)["pred_labels"])
