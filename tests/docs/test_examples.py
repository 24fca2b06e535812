"""The examples run as programs and do what they say."""

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anomnorm_core import InvalidScoreWarning, Normalizer, fitting

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


def run_short(name: str, folder: Path) -> str:
    """The whole example, trained for as long as it takes to tell normal from anomalous."""
    program = f"import sys; sys.path.insert(0, {str(EXAMPLES / 'bricks')!r}); import {name}; {name}.main(epochs=5)"
    result = in_process(folder, "-c", program)
    assert "Warning" not in result.stderr, result.stderr
    return result.stdout


def in_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in a folder and with one thread."""
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result


def require_results(folder: Path, heat_maps: Path) -> None:
    """The normalizer and the report are there, and the table of heat maps says what the normalizer finds."""
    normalizer = Normalizer.load(folder / "detector.safetensors")
    image, pixel = (normalizer.thresholds[level] for level in ("image", "pixel"))
    assert (image.origin, pixel.origin) == ("false_alarm_rate", "adaptive")
    assert (folder / "report.html").read_text().count("<svg") >= 2
    with (heat_maps / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    kinds = [row["name"].split("/")[0] for row in rows]
    assert Counter(kinds) == {"normal": 160, "scratch": 20, "stain": 20, "missing-piece": 20}
    assert {row["heat_map"] for row in rows} == {path.name for path in heat_maps.glob("*.png")}
    flagged = np.array([int(row["pred_labels"]) for row in rows])
    assert (flagged == [float(row["pred_scores"]) >= 0.5 for row in rows]).all()
    normal = np.array(kinds) == "normal"
    assert flagged[~normal].mean() - flagged[normal].mean() > 0.5  # a detector that detects


def test_a_whole_lightning_training(tmp_path: Path) -> None:
    text = run_short("lightning_detector", tmp_path)
    found = {name: float(value) for name, value in re.findall(r"(\w+) +│ +(\d\.\d+)", text)}
    assert found["image_auroc"] > 0.9
    assert found["pixel_auroc"] > 0.9
    folder = tmp_path / "bricks-lightning"
    require_results(folder, folder / "heat_maps" / "test")
    assert len(list(folder.glob("tensorboard/version_0/events*"))) >= 1
    (best,) = folder.glob("checkpoints/*.ckpt")
    with (folder / "csv" / "version_0" / "metrics.csv").open() as table:
        course = {int(row["epoch"]): float(row["image_auroc"]) for row in csv.DictReader(table) if row["image_auroc"]}
    course.pop(5)  # the test
    assert f"epoch={max(course, key=course.__getitem__)}-" in best.name


def test_the_same_from_a_file_and_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    program, settings = EXAMPLES / "bricks" / "lightning_cli.py", EXAMPLES / "bricks" / "lightning_cli.yaml"
    for command in (
        ["fit", "--trainer.max_epochs=1"],
        ["test", "--ckpt_path=bricks-cli/checkpoints/best.ckpt", "--trainer.limit_test_batches=5"],
    ):
        process = in_process(tmp_path, str(program), command[0], "--config", str(settings), *command[1:])
    folder = tmp_path / "bricks-cli"
    normalizer = Normalizer.load(folder / "detector.safetensors")
    assert normalizer.summary() in process.stdout
    assert normalizer.thresholds["image"].origin == "false_alarm_rate"
    assert len(list((folder / "heat_maps" / "test").glob("*.png"))) == 40


def test_a_whole_flax_training(tmp_path: Path) -> None:
    text = run_short("jax_detector", tmp_path)
    images, pixels = (float(number) for number in re.findall(r"AUROC of \w+: (\d\.\d+)", text))
    assert images > 0.9
    assert pixels > 0.9
    folder = tmp_path / "bricks-jax"
    require_results(folder, folder / "heat_maps")  # padding is not among them
    assert len(list(folder.glob("checkpoints/[0-9]*"))) == 1


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
