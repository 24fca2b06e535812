"""The demo on real images, with short trainings: decisions survive normalization, and the two backends agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("demo")  # which runs once

DEMO = Path(__file__).parents[2] / "examples" / "bricks" / "demo.py"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    picture = tmp_path_factory.mktemp("demo") / "picture.png"
    result = subprocess.run(
        [sys.executable, str(DEMO), "--output", str(picture), "--epochs", "8"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=picture.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, picture


def _rows(text: str) -> list[dict[str, str]]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if "AUROC raw" in line)
    names = re.split(r"\s{2,}", lines[start].strip())
    cells = (re.split(r"\s{2,}", line.strip()) for line in lines[start + 2 : start + 10])
    return [dict(zip(names, row, strict=True)) for row in cells]


def test_image_metrics_of_normalized_scores_are_those_of_raw_scores(output: tuple[str, Path]) -> None:
    rows = [row for row in _rows(output[0]) if row["level"] == "image"]
    assert len(rows) == 4
    for row in rows:
        assert row["AUROC norm."] == row["AUROC raw"]
        assert row["F1 norm."] == row["F1 raw"]
        assert float(row["AUROC raw"]) > 0.9  # a detector that detects


def test_decisions_are_the_same_on_raw_and_normalized_scores(output: tuple[str, Path]) -> None:
    for row in _rows(output[0]):
        assert row["F1 norm."] == row["F1 raw"]


@pytest.mark.clause("P2")
def test_backends_agree_on_the_same_raw_scores(output: tuple[str, Path]) -> None:
    for row in _rows(output[0]):
        assert row["labels differ"] == "0"
        assert float(row["differ by"]) <= 2 * 2.0**-23


def test_the_picture_is_a_picture(output: tuple[str, Path]) -> None:
    assert output[1].read_bytes().startswith(b"\x89PNG")
    assert output[1].stat().st_size > 20_000


def test_the_text_says_what_the_figures_are(output: tuple[str, Path]) -> None:
    names, text = _rows(output[0])[0], output[0].split("differ by", 1)[1]
    assert "A brick pavement, cut into patches of 96x96 pixels." in output[0]
    for name in names.keys() - {"level", "method", "package"}:
        assert name.split()[0] in text, name
    assert all(len(line) <= 125 for line in output[0].splitlines())
