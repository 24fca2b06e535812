"""Two processes fit what one fits (clause L8), started either way, with real Trainers in processes of their own."""

import csv
import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed_run
import numpy as np
import pytest
from pytorch_lightning.trainer.connectors.data_connector import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from anomnorm_torch.processes import OwnSamples
from anomnorm_torch.slot import _ABOUT

# Runs are shared.
pytestmark = pytest.mark.xdist_group("processes")

KINDS = pytest.mark.parametrize("kind", ["min-max", "cdf"])
ONE_KIND_IS_ENOUGH = pytest.mark.parametrize("kind", [pytest.param("min-max", marks=pytest.mark.full), "cdf"])
GATHERS = {"kind": "cdf", "callback": {"threshold": 1.0}, "gathers": True}
OTHER_RUNS: dict[str, dict[str, Any]] = {
    "fitted on validation data": {"kind": "cdf", "callback": {"source": "validation"}, "subset": True},
    # Of the seven normals each process has some: together they are too few, or enough.
    "source that is not there": {"kind": "cdf", "callback": {"source": "auto"}},
    "source that is there": {"kind": "cdf", "callback": {"source": "auto"}, "enough": 7},
    # Just above a score is elsewhere in float64.
    "float64": {
        "kind": "min-max",
        "callback": {"threshold": "normal_quantile", "normal_quantile": 0.8},
        "double": True,
    },
    "a sampler of one's own": {"kind": "cdf", "callback": {"threshold": 1.0}, "subset": True},
    "validated without training": {"kind": "cdf", "callback": {"threshold": 1.0}, "subset": True, "validate": True},
    "batches": {"kind": "cdf", "batch_sampler": True},
    "several outputs per sample": {"kind": "min-max", "frames": 5},
    "one by one, with gaps": {"kind": "min-max", "frames": 5, "skipped": [2, 3]},
    "several outputs per sample of the pass": {"kind": "cdf", "callback": {"threshold": 1.0}, "frames": 5},
    "buffers": {"kind": "cdf", "callback": {"threshold": 1.0}, "buffers": True},
    # Seven samples in three batches for one process, six in two for the other; three pairs, and two.
    "calibrated with a selection": GATHERS | {"calibration": "subset"},
    "calibrated with batches": {"kind": "cdf", "callback": {"threshold": 1.0}, "calibration": "batches"},
    "calibrated with drawn pairs": GATHERS | {"calibration": "pairs"},
}
RUNS = OTHER_RUNS | {
    "min-max": {"kind": "min-max", "writes": True},
    "min-max, sparse": {"kind": "min-max", "sparse": True},
    "cdf": {"kind": "cdf"},
    "cdf, sparse": {"kind": "cdf", "sparse": True},
}


def start(*jobs: tuple[Path, dict[str, Any]], **environment: str) -> "subprocess.Popen[str]":
    """Run the program; its errors go into the first job's folder, where no pipe can be full."""
    text = json.dumps([(str(folder), options) for folder, options in jobs])
    command = [sys.executable, distributed_run.__file__, text]
    with (jobs[0][0] / f"errors_{environment.get('RANK', 0)}.txt").open("w") as errors:
        return subprocess.Popen(
            command, text=True, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | environment
        )


def finish(folder: Path, *processes: "subprocess.Popen[str]", fails: bool = False) -> None:
    """Wait for them; a run that hangs is an error."""
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    errors = "\n".join(path.read_text()[-4000:] for path in sorted(folder.glob("errors_*.txt")))
    assert any(codes) == fails, errors


def written(folder: Path, ranks: int) -> Any:
    """What the ranks of a finished run wrote."""
    fitted, predicted = (
        [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(ranks)]
        for name in ("fitted", "predicted")
    )
    return SimpleNamespace(fitted=fitted, predicted=predicted, folder=folder)


OneProcess = Callable[..., Any]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> OneProcess:
    """Runs by name, in this process."""

    @lru_cache
    def run(name: str, epochs: int = 1) -> Any:
        folder = tmp_path_factory.mktemp("one")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distributed_run.main(folder, RUNS[name] | {"strategy": "auto", "devices": 1, "epochs": epochs})
        return written(folder, 1)

    return run


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All runs by name, in two processes that find each other by their environment."""
    runs = RUNS | {"misled": {"kind": "cdf", "misleads": True}}
    folders = {name: tmp_path_factory.mktemp("two") for name in runs}
    jobs = [(folders[name], options | {"strategy": "ddp", "devices": 2}) for name, options in runs.items()]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    started = [start(*jobs, LOCAL_RANK=str(rank), RANK=str(rank), **address) for rank in (0, 1)]
    finish(jobs[0][0], *started)
    found = {name: written(folder, 2) for name, folder in folders.items() if name in RUNS}
    return found | {"folder of " + name: folder for name, folder in folders.items()}


def about(state: dict[str, Any]) -> Any:
    return json.loads(bytes(state[_ABOUT]))


def assert_same_fit(found: Any, expected: Any) -> None:
    theirs = expected.fitted[0]
    for mine in found.fitted:
        # Ranges, counts, origins, and raw thresholds of images to the last bit.
        exact = [] if about(theirs)["levels"]["image"]["fixed"] == "sigmas" else ["image_threshold"]
        for name, value in theirs.items():
            if about(theirs)["method"] == "min-max" or name in exact:
                np.testing.assert_array_equal(mine[name], value, err_msg=name)
            elif name != _ABOUT:
                np.testing.assert_allclose(mine[name], value, rtol=1e-6, atol=1e-9, err_msg=name)
        for level, facts in about(theirs)["levels"].items():
            other = about(mine)["levels"][level]
            assert other.pop("sigmas") == pytest.approx(facts.pop("sigmas"), rel=1e-12)
            assert other == facts


def assert_same_predictions(found: Any, expected: Any) -> None:
    wanted = {entry["index"]: entry for entry in expected.predicted[0]}
    assert {entry["index"] for rank in found.predicted for entry in rank} == set(wanted)
    for rank in found.predicted:
        for entry in rank:
            other = wanted[entry["index"]]
            assert entry["pred_labels"] == other["pred_labels"]
            assert entry.get("pred_masks") == other.get("pred_masks")
            assert entry["pred_scores"] == pytest.approx(other["pred_scores"], abs=2.0**-22)


@pytest.mark.clause("L8", "T2", "T5")
@KINDS
@pytest.mark.parametrize("where", ["", ", sparse"], ids=["everywhere", "maps and masks on one rank"])
def test_two_processes_fit_what_one_fits(
    kind: str, where: str, one_process: OneProcess, two_processes: dict[str, Any]
) -> None:
    # 21 and 11 samples: a sampler for two processes repeats the first one, which is an outlier.
    one, two = one_process(kind + where), two_processes[kind + where]
    assert_same_fit(two, one)
    assert_same_predictions(two, one)
    training = distributed_run.data(distributed_run.TRAINING, 0, sparse=bool(where))
    labels = [int(sample.get("label", 0)) for sample in training]
    assert about(one.fitted[0])["levels"]["image"]["valid"] == (
        distributed_run.VALIDATION if kind == "min-max" else labels.count(0)
    )


@pytest.mark.clause("L8")
@ONE_KIND_IS_ENOUGH
@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.full), "ddp_spawn"])
def test_processes_that_lightning_starts(kind: str, strategy: str, one_process: OneProcess, tmp_path: Path) -> None:
    finish(tmp_path, start((tmp_path, {"kind": kind, "sparse": True, "strategy": strategy, "devices": 2})))
    two, one = written(tmp_path, 2), one_process(f"{kind}, sparse")
    assert_same_fit(two, one)
    assert_same_predictions(two, one)


@pytest.mark.clause("L8")
def test_two_processes_write_the_heat_maps_of_one(one_process: OneProcess, two_processes: dict[str, Any]) -> None:
    def rows(folder: Path) -> list[tuple[dict[str, str], bytes]]:
        with (folder / "scores.csv").open(newline="") as file:
            return [(row, (folder / row["heat_map"]).read_bytes()) for row in csv.DictReader(file)]

    stage = two_processes["min-max"].folder / "heat_maps" / "test"
    shares = [rows(stage / f"{rank}-of-2") for rank in (0, 1)]
    assert [len(share) for share in shares] == [6, 5]  # the sample that a sampler repeats is written once
    expected = rows(one_process("min-max").folder / "heat_maps" / "test")
    assert sorted(shares[0] + shares[1], key=lambda each: int(each[0]["name"])) == expected


@pytest.mark.clause("L8", "T3")
@pytest.mark.parametrize("name", OTHER_RUNS)
def test_other_runs_in_two_processes(name: str, one_process: OneProcess, two_processes: dict[str, Any]) -> None:
    assert_same_fit(two_processes[name], one_process(name))
    assert_same_predictions(two_processes[name], one_process(name))


@pytest.mark.clause("L3", "L8")
def test_all_processes_decide_alike_what_is_fitted_on(two_processes: dict[str, Any]) -> None:
    for name, count, seed in (("is not", distributed_run.TRAINING, 0), ("is", distributed_run.VALIDATION, 1)):
        normals = sum(int(each["label"]) == 0 for each in distributed_run.data(count, seed, sparse=False))
        for state in two_processes[f"source that {name} there"].fitted:
            assert about(state)["levels"]["image"]["valid"] == normals


@pytest.mark.clause("L5", "L8")
def test_the_outputs_of_every_sample_count_once(two_processes: dict[str, Any]) -> None:
    data = distributed_run.data(distributed_run.VALIDATION, 1, sparse=False)
    scores = np.array([float(each["score"]) for each in data], "f4")
    for name, left_out in (("several outputs per sample", []), ("one by one, with gaps", [2, 3])):
        state = two_processes[name].fitted[0]
        kept = np.delete(scores, left_out)
        assert about(state)["levels"]["image"]["valid"] == 5 * len(kept)
        assert (state["image_min"], state["image_max"]) == (kept.min(), (np.float32(5) * kept).max())


@pytest.mark.clause("L3", "L8")
def test_the_pass_takes_the_buffers_of_the_first_process(two_processes: dict[str, Any]) -> None:
    training = distributed_run.data(distributed_run.TRAINING, 0, sparse=False)
    normal = np.array([float(each["score"]) for each in training if not each["label"]])
    np.testing.assert_allclose(two_processes["buffers"].fitted[1]["image_mean"], np.log(normal + 1).mean(), rtol=1e-6)
    first, second = (
        json.loads((two_processes["folder of buffers"] / f"buffers_{rank}.json").read_text()) for rank in (0, 1)
    )
    assert second.pop("second") == ["torch.int64", [0, 1, 2]]  # of which the first process knows nothing
    assert first == second
    assert first["inner.bank"] == ["torch.float32", [[1.0] * 3] * 2]
    assert first["flag"] == ["torch.bool", True]


@pytest.mark.clause("L3", "L8")
def test_an_error_of_one_process_before_the_training_stops_all(two_processes: dict[str, Any]) -> None:
    folder = two_processes["folder of misled"]
    assert "fails in another process" in (folder / "error_0.txt").read_text()
    assert "validation_step in the pass over the normal data" in (folder / "error_1.txt").read_text()


@pytest.mark.clause("L8", "L6")
@ONE_KIND_IS_ENOUGH
def test_a_killed_worker_ends_the_run_and_the_last_checkpoint_resumes_it(
    kind: str, one_process: OneProcess, tmp_path: Path
) -> None:
    options = {"kind": kind, "strategy": "ddp", "devices": 2, "epochs": 2}
    # It dies in the second epoch's validation; the process group gives up after 30 seconds.
    finish(tmp_path, start((tmp_path, options | {"kill": 1})), fails=True)
    assert not (tmp_path / "fitted_0.json").exists()
    finish(tmp_path, start((tmp_path, options | {"test": False, "resume": str(tmp_path / "last.ckpt")})))
    found = SimpleNamespace(fitted=[json.loads((tmp_path / f"fitted_{rank}.json").read_text()) for rank in (0, 1)])
    assert_same_fit(found, one_process(kind, epochs=2))


@pytest.mark.clause("L8")
def test_what_is_padding_and_what_is_not() -> None:
    class Selecting(DistributedSampler[Any]):
        """May give anything."""

    class OwnBatches(BatchSampler):
        def __iter__(self) -> Any:
            return super().__iter__()

    def counts(loader: Any, *found: int, skipped: int = 0) -> list[int]:
        own = OwnSamples(loader)
        return [own.count(index, outputs) for index, outputs in enumerate(found, skipped)]

    data: Any = list(range(7))  # for two processes: four each, and the last of the second one is the first again
    for rank, own in ((0, 4), (1, 3)):
        sampler: Any = DistributedSampler(data, 2, rank, shuffle=False)
        batches = DataLoader(data, 3, sampler=sampler)
        assert counts(batches, 3, 1) == [3, own - 3]
        assert counts(batches, 1, skipped=1) == [own - 3]  # no outputs for the first batch
        assert counts(batches, 15, 5) == [15, 5 * (own - 3)]
        assert counts(DataLoader(data, 2, sampler=sampler), 10, 10) == [10, 5 * (own - 2)]
        assert counts(DataLoader(data, None, sampler=sampler), 2, 2, 2, 2) == [2, 2, 2, 2 if rank == 0 else 0]
        assert counts(batches, 3, 1, 3) == [3, own - 3, 3]  # more batches than it gives: positions mean nothing
        # Batches of any size: as many outputs as samples, unless there are more.
        sized: Any = DataLoader(data, batch_sampler=OwnBatches(sampler, 3, drop_last=False))
        assert counts(sized, 2, 1, 1) == [2, 1, own - 3]
        assert counts(sized, 15) == [15]
        derived: Any = DataLoader(data, 3, sampler=Selecting(data, 2, rank, shuffle=False))
        assert counts(derived, 3, 1) == [3, 1]
        drawn: Any = DataLoader(
            data, batch_sampler=DistributedSamplerWrapper([[0, 1], [2]] * 3 + [[3]], 2, rank, shuffle=False)
        )
        assert counts(drawn, 2, 1, 2, 2) == [2, 1, 2, 2 if rank == 0 else 0]
    assert counts(None, 5) == counts(data, 5) == [5]
    uneven = DataLoader(data, 2, sampler=DistributedSampler(data, 2, 1, shuffle=False))
    with pytest.warns(UserWarning, match="5 outputs of a batch are of 2 samples, of which 1 only pad") as caught:
        assert counts(uneven, 4, 5, 5) == [4, 5, 5]
    assert len(caught) == 1
