"""A process that dies in the middle of a training leaves a checkpoint from which it ends as if nothing had happened."""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.clause("L6", "L8")

PROGRAM = Path(__file__).parent / "faulty_run.py"


def run(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def result(kind: str, folder: Path) -> Any:
    done = run(kind, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@lru_cache
def undisturbed(kind: str, folder: Path) -> Any:
    return result(kind, folder)


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        *(("cdf", stage) for stage in ("collection", "update", "finish", "threshold", "checkpoint")),
        *(("min-max", stage) for stage in ("update", "finish", "checkpoint")),
    ],
)
def test_a_killed_training_resumes_to_the_same_statistics(
    kind: str, stage: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    killed = run(kind, tmp_path, stage)
    assert killed.returncode == 9, killed.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]  # nothing half-written beside it
    found = result(kind, tmp_path)
    expected = undisturbed(kind, tmp_path_factory.getbasetemp() / f"undisturbed-{kind}")
    assert (found["epochs"], found["gain"]) == (expected["epochs"], expected["gain"]) == (3, 4.0)
    for name, value in expected["state"].items():
        np.testing.assert_array_equal(found["state"][name], value, err_msg=name)
