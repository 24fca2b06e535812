"""A process that dies in the middle of a training leaves a checkpoint from which it ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.clause("L6", "L8"),
    pytest.mark.xdist_group("faults"),  # one program runs them all
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the program forks"),
]

PROGRAM = Path(__file__).parent / "faulty_run.py"
CASES = [
    *(("cdf", stage) for stage in ("collection", "update", "finish", "threshold", "checkpoint")),
    *(("min-max", stage) for stage in ("update", "finish", "checkpoint")),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], list[Any]]:
    """By case: how the killed training ended, and the resumed one; by method and None: an undisturbed one."""
    folders = {case: tmp_path_factory.mktemp("faults") for case in [*CASES, ("cdf", None), ("min-max", None)]}
    jobs = [(kind, str(folder), stage) for (kind, stage), folder in folders.items()]
    jobs += [(kind, str(folder), None) for (kind, stage), folder in folders.items() if stage is not None]
    command = [sys.executable, str(PROGRAM), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[tuple[str, str | None], list[Any]] = {case: [] for case in folders}
    case_of = {str(folder): case for case, folder in folders.items()}
    for (_, folder, _), result in zip(jobs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        found[case_of[folder]].append(result)
    return found


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_killed_training_resumes_to_the_same_statistics(kind: str, stage: str, results: Any) -> None:
    (killed, resumed), (undisturbed,) = results[kind, stage], results[kind, None]
    assert killed["code"] == 9
    assert killed["left"] == ["last.ckpt"]  # nothing half-written beside it
    assert resumed["code"] == undisturbed["code"] == 0
    found, expected = resumed["found"], undisturbed["found"]
    assert (found["epochs"], found["gain"]) == (expected["epochs"], expected["gain"]) == (3, 4.0)
    for name, value in expected["state"].items():
        np.testing.assert_array_equal(found["state"][name], value, err_msg=name)
