"""Two processes fit what one fits (clause L8), started either way, with real Trainers in processes of their own."""

import json
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import distributed_run
import numpy as np
import pytest
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from scripted_module import ScriptedModule, trainer
from torch.utils.data import DataLoader, DistributedSampler

from anomnorm_core import AnomnormError
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback
from anomnorm_torch.life_cycle.processes import distinct

KINDS = pytest.mark.parametrize("kind", ["min-max", "cdf"])


def start(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in ``folder``; a run that hangs is an error."""
    command = [sys.executable, str(Path(distributed_run.__file__)), str(folder), json.dumps(options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@lru_cache
def run(kind: str, strategy: str, sparse: bool, more: str = "{}", epochs: int = 1) -> Any:
    """What the ranks of a finished run wrote."""
    folder = Path(mkdtemp())
    devices = 1 if strategy == "auto" else 2
    result = start(
        folder,
        kind=kind,
        strategy=strategy,
        devices=devices,
        sparse=sparse,
        epochs=epochs,
        **json.loads(more),
    )
    assert result.returncode == 0, result.stderr[-4000:]
    ranks = range(devices)
    fitted = [json.loads((folder / f"fitted_{rank}.json").read_text()) for rank in ranks]
    predicted = [json.loads((folder / f"predicted_{rank}.json").read_text()) for rank in ranks]
    return SimpleNamespace(fitted=fitted, predicted=predicted, folder=folder)


def assert_same_fit(found: Any, expected: Any) -> None:
    for rank in found.fitted:
        for name, value in expected.fitted[0]["state"].items():
            mine, theirs = np.array(rank["state"][name]), np.array(value)
            if theirs.dtype == np.float64 and not name.endswith(("min", "max", "raw_threshold", "pixel_threshold")):
                np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9, err_msg=name)
            else:  # ranges, counts and thresholds, to the last bit
                np.testing.assert_array_equal(mine, theirs, err_msg=name)
        for level, value in expected.fitted[0]["thresholds"].items():
            assert rank["thresholds"][level] == pytest.approx(value, rel=1e-12)


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
@pytest.mark.parametrize(
    ("strategy", "sparse"),
    [("ddp", False), ("ddp", True), ("ddp_spawn", True)],
    ids=["launched", "launched, maps and masks on one rank", "spawned, maps and masks on one rank"],
)
def test_two_processes_fit_what_one_fits(kind: str, strategy: str, sparse: bool) -> None:
    # 21 and 11 samples: a sampler for two processes repeats the first one, which is an outlier.
    one, two = run(kind, "auto", sparse), run(kind, strategy, sparse)
    assert_same_fit(two, one)
    assert_same_predictions(two, one)
    name = "count" if kind == "min-max" else "image_count"
    training = distributed_run.data(distributed_run.TRAINING, 0, sparse=sparse)
    labels = [int(sample.get("label", 0)) for sample in training]
    assert one.fitted[0]["state"][name] == (distributed_run.VALIDATION if kind == "min-max" else labels.count(0))


@pytest.mark.clause("L8", "T3")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cdf", {"callback": {"source": "validation"}, "subset": True}),
        # Just above a score is elsewhere in float64.
        ("min-max", {"callback": {"threshold": "normal_quantile", "normal_quantile": 0.8}, "double": True}),
        ("cdf", {"callback": {"threshold": 1.0}, "subset": True}),
        ("cdf", {"callback": {"threshold": 1.0}, "subset": True, "validate": True}),
        ("cdf", {"batch_sampler": True}),
    ],
    ids=["fitted on validation data", "float64", "a sampler of one's own", "validated without training", "batches"],
)
def test_other_runs_in_two_processes(kind: str, options: dict[str, Any]) -> None:
    one, two = (run(kind, strategy, False, json.dumps(options)) for strategy in ("auto", "ddp"))
    assert_same_fit(two, one)
    assert_same_predictions(two, one)


@pytest.mark.clause("L8", "L6")
@KINDS
def test_a_killed_worker_ends_the_run_and_the_last_checkpoint_resumes_it(kind: str, tmp_path: Path) -> None:
    started = time.monotonic()
    dead = start(tmp_path, kind=kind, strategy="ddp", devices=2, epochs=2, kill=1)  # in the second epoch's validation
    assert dead.returncode != 0
    assert time.monotonic() - started < 120  # the process group gives up after 30 seconds
    assert not (tmp_path / "fitted_0.json").exists()
    resumed = start(
        tmp_path, kind=kind, strategy="ddp", devices=2, epochs=2, test=False, resume=str(tmp_path / "last.ckpt")
    )
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    found = SimpleNamespace(fitted=[json.loads((tmp_path / f"fitted_{rank}.json").read_text()) for rank in (0, 1)])
    assert_same_fit(found, run(kind, "auto", False, epochs=2))


@pytest.mark.clause("L8")
def test_what_is_padding_and_what_is_not() -> None:
    class Selecting(DistributedSampler[Any]):
        """May give anything."""

    data = list(range(7))  # for two processes: four each, and the last of the second one is the first again
    for rank, own in ((0, 4), (1, 3)):
        sampler = DistributedSampler(data, 2, rank, shuffle=False)  # type: ignore[arg-type]
        batches = DataLoader(data, 3, sampler=sampler)  # type: ignore[arg-type]
        assert [distinct(batches, i, 3 * i, found) for i, found in enumerate((3, 1))] == [3, own - 3]
        assert distinct(batches, 0, 0, 15) == 15  # five scores for each image: positions mean nothing
        one_by_one = DataLoader(data, None, sampler=sampler)  # type: ignore[arg-type]
        assert [distinct(one_by_one, i, 2 * i, 2) for i in range(4)] == [2, 2, 2, 2 if rank == 0 else 0]
        derived = DataLoader(data, 3, sampler=Selecting(data, 2, rank, shuffle=False))  # type: ignore[arg-type]
        assert distinct(derived, 1, 3, 1) == 1
    assert distinct(None, 0, 0, 5) == distinct(data, 0, 0, 5) == 5


@pytest.mark.clause("L8")
@pytest.mark.parametrize("callback", [MinMaxNormalizationCallback(), CdfNormalizationCallback()])
@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_the_module_are_refused(callback: Any, strategy: Any) -> None:
    run = trainer(callback)
    # Their constructors want an accelerator; what counts is their class.
    run._accelerator_connector.strategy = object.__new__(strategy)
    with pytest.raises(AnomnormError, match=f'cannot run under {strategy.__name__}: .* Use strategy="ddp"'):
        callback.setup(run, ScriptedModule(), "fit")
