"""One device, four devices, and two processes of two devices find the same (clause L8)."""

import json
import socket
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROGRAM = Path(__file__).parent / "sharded_run.py"
KINDS = pytest.mark.parametrize("kind", ["min-max", "cdf"])


def start(*arguments: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes: "subprocess.Popen[str]") -> list[Any]:
    found = []
    try:
        for process in processes:
            output, error = process.communicate(timeout=240)
            assert process.returncode == 0, error[-3000:]
            found.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return found


@lru_cache
def run(ways: str, devices: int, axes: str = "Auto") -> Any:
    return finish(start(ways, devices, axes))[0]


@lru_cache
def run_two_processes(way: str) -> list[Any]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        return finish(*(start(way, 2, "Auto", port, rank, folder) for rank in (0, 1)))


def assert_same(found: Any, expected: Any, kind: str) -> None:
    for level, values in expected["parameters"].items():
        # A mean near zero is known as well as the logarithms that it is of, which are about one. Ranges are exact.
        tolerance = {"rtol": 1e-6, "atol": 1e-7} if kind == "cdf" else {"rtol": 0.0}
        for mine, other in zip(found["parameters"][level], values, strict=True):
            np.testing.assert_allclose(mine, other, **tolerance, err_msg=level)
    # The image threshold is a raw score, the pixel threshold the edge of a bin.
    assert found["counts"] == expected["counts"]
    # Of the fit check the counts are the same, and the moments of z-scores as near as those.
    assert found["check"] == (None if expected["check"] is None else pytest.approx(expected["check"], abs=1e-6))
    for level, value in expected["thresholds"].items():
        assert found["thresholds"][level] == pytest.approx(value, rel=1e-6 if kind == "cdf" else 0.0)
    for name, values in expected["outputs"].items():
        if name in ("pred_labels", "pred_masks"):
            assert found["outputs"][name] == values
        else:
            np.testing.assert_allclose(found["outputs"][name], values, atol=2.0**-21)
    assert found["restored"]


@pytest.mark.clause("L8", "T2", "T5")
@KINDS
@pytest.mark.parametrize("axes", ["Auto", pytest.param("Explicit", marks=pytest.mark.full)])
def test_a_batch_over_four_devices(kind: str, axes: str) -> None:
    one, four = run("jit", 1), run("jit,shard_map", 4, axes)
    for way in ("jit", "shard_map"):
        assert_same(four[kind][way], one[kind]["jit"], kind)
    assert one["cdf"]["jit"]["counts"]["image"] == [one["normals"], 0]  # without what is ignored or only pads
    assert four["selected"]
    assert four.get("moved", axes == "Explicit")  # a checkpoint onto another sharding


@pytest.mark.clause("L8", "T2", "T5")
@KINDS
@pytest.mark.parametrize("way", ["jit", pytest.param("shard_map", marks=pytest.mark.full)])
def test_two_processes_of_two_devices(kind: str, way: str) -> None:
    for found in run_two_processes(way):
        assert_same(found[kind][way], run("jit", 1)[kind]["jit"], kind)
