"""A module whose parameters are sharded is normalized like one in one piece (clause L8)."""

import json
import os
import socket
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import sharded_run
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.strategies.xla import XLAStrategy
from scripted_module import ScriptedModule, fitted, loader, parameters, samples, trainer
from torch import nn
from torchmetrics import MeanMetric

from anomnorm_core import AnomnormError
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback
from anomnorm_torch.inference_model import undisturbed

pytestmark = [pytest.mark.xdist_group("sharding"), pytest.mark.clause("L8")]  # runs are shared

RUNS: dict[str, dict[str, Any]] = {
    "min-max, sharded": {"kind": "min-max", "parallel": "fsdp", "in_parts": True, "checkpoints": True},
    "cdf, sharded": {"kind": "cdf", "parallel": "fsdp", "in_parts": False, "checkpoints": True},
    "min-max, tensor-parallel": {"kind": "min-max", "parallel": "tensor", "in_parts": False},
    "cdf, tensor-parallel": {"kind": "cdf", "parallel": "tensor", "in_parts": True},
    "one sample": {"kind": "cdf", "parallel": "fsdp", "in_parts": True, "training": 1},
}
SCORES = np.exp(np.random.default_rng(3).normal(size=9)).astype("f4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the reports of all runs: of one process in a folder for each kind, and of two for each name."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind in ("min-max", "cdf"):
        (folder / kind).mkdir()
        other = str(folder / kind / "first.ckpt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sharded_run.run(folder / kind, {"kind": kind, "checkpoints": True, "other": other})
    jobs = []
    for name, options in RUNS.items():
        (folder / name).mkdir()
        jobs.append((str(folder / name), options | {"other": str(folder / options["kind"] / "first.ckpt")}))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, sharded_run.__file__, json.dumps(jobs)]
    started = []
    for rank in ("0", "1"):
        with (folder / f"errors_{rank}.txt").open("w") as errors:
            environment = os.environ | address | {"NODE_RANK": "0", "LOCAL_RANK": rank, "RANK": rank}
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment))
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(codes), "\n".join((folder / f"errors_{rank}.txt").read_text()[-4000:] for rank in (0, 1))
    return folder


def reports(folder: Path, name: str) -> tuple[Any, list[Any]]:
    """What one process and what two processes wrote."""
    one = json.loads((folder / RUNS[name]["kind"] / "report_0.json").read_text())
    return one, [json.loads((folder / name / f"report_{rank}.json").read_text()) for rank in (0, 1)]


def split(entries: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a fit, and what its text says of the levels."""
    (text,) = (key for key in entries if key.startswith("load_with"))
    return {key: value for key, value in entries.items() if key != text}, json.loads(bytes(entries[text]))["levels"]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "one sample"])
def test_sharded_processes_fit_what_one_fits(folder: Path, name: str) -> None:
    one, two = reports(folder, name)
    for epochs in ("fitted, 1", "fitted, 2") if "sharded" in name else ("fitted, 1",):
        wanted, levels = split(one[epochs])
        valid = sharded_run.VALIDATION if "min-max" in name else 2 * sharded_run.TRAINING // 3  # the normals
        assert levels["image"]["valid"] == valid
        for report in two:
            found, others = split(report[epochs])
            for key, value in wanted.items():
                tolerance = 0.0 if "min-max" in name or key == "image_threshold" else 1e-6
                np.testing.assert_allclose(found[key], value, rtol=tolerance, err_msg=key)
            for level, facts in levels.items():
                assert others[level].pop("sigmas") == pytest.approx(facts.get("sigmas"), rel=1e-12)
                assert others[level] == {key: fact for key, fact in facts.items() if key != "sigmas"}
    ranges = [split(one[epochs])[0] for epochs in ("fitted, 1", "fitted, 2")]
    assert ranges[0] != ranges[1]  # so that it matters which weights the pass sees


@pytest.mark.clause("L6")
@pytest.mark.parametrize("name", [name for name in RUNS if name != "one sample"])
def test_sharded_predictions_and_those_of_checkpoints(folder: Path, name: str) -> None:
    one, two = reports(folder, name)
    wanted = {entry["index"]: entry for entry in one["predicted"]}
    # Resumed and gone back; of a run in one piece; into another module; of weights alone, with the mixin.
    for stage in ["predicted"] + ["back", "other", "restored", "weights"] * ("sharded" in name):
        assert {entry["index"] for report in two for entry in report[stage]} == set(wanted)
        for entry in (entry for report in two for entry in report[stage]):
            other = wanted[entry["index"]]
            assert entry["pred_labels"] == other["pred_labels"]
            assert entry["pred_masks"] == other["pred_masks"]
            assert entry["pred_scores"] == pytest.approx(other["pred_scores"], abs=2.0**-22)
    if "sharded" in name:  # without the mixin, the statistics are not there, and those of other weights are not used
        assert all("NotFittedError" in report["alone"] for report in two)


@pytest.mark.clause("L6")
def test_a_checkpoint_in_one_file_loads_without_a_trainer(folder: Path) -> None:
    loaded = sharded_run.Carrying.load_from_checkpoint(folder / "cdf, sharded" / "first.ckpt", weights_only=True)
    wanted, _ = split(reports(folder, "cdf, sharded")[1][0]["fitted, 1"])
    found, _ = split({key: value.tolist() for key, value in loaded.normalization_metrics.entries().items()})
    assert found == wanted


def test_a_process_without_data_is_an_error_in_all(folder: Path) -> None:
    for report in reports(folder, "one sample")[1]:
        assert "InsufficientDataError" in report["error"]  # the other has the same one, which counts once


class Gathering(nn.Module):
    """Around the module, as FSDP and DeepSpeed are: what it computes outside of this is wrong."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        gain: Any = self.module.gain
        part = gain.data
        gain.data = 4.0 * part
        try:
            return self.module(*arguments)
        finally:
            gain.data = part


class FSDPStrategy(SingleDeviceStrategy):
    """That of Lightning wants a GPU; what counts is its name, and that it puts something around the module."""

    def setup(self, trainer: pl.Trainer) -> None:
        super().setup(trainer)
        self.model = Gathering(self.model)  # type: ignore[arg-type]


def test_the_pass_goes_through_what_the_strategy_puts_around_the_module() -> None:
    class Noting(ScriptedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log("seen", 1.0)
            return super().validation_step(batch, batch_idx)

    data, module = loader(samples(SCORES)), Noting()
    trainer(CdfNormalizationCallback(1.0), strategy=FSDPStrategy("cpu"), num_sanity_val_steps=0).fit(module, data, data)
    logs = np.log(4.0 * SCORES.astype(np.float64))
    np.testing.assert_allclose(parameters(module), [logs.mean(), logs.std(ddof=1)], rtol=1e-6)


def test_weights_alone_hold_no_fit_of_a_sharded_module(tmp_path: Path) -> None:
    callbacks = [MinMaxNormalizationCallback(), ModelCheckpoint(tmp_path, save_weights_only=True)]
    run = trainer(*callbacks, strategy=FSDPStrategy("cpu"), enable_checkpointing=True)
    data = loader(samples(SCORES))
    with pytest.warns(UserWarning, match="of weights alone will have no statistics.*NormalizationMixin"):
        run.fit(ScriptedModule(), data, data)


@pytest.mark.clause("L6")
def test_the_state_dict_of_a_sharded_module_is_saved_and_loaded_without_the_fit() -> None:
    data, module = loader(samples(SCORES)), ScriptedModule()
    trainer(MinMaxNormalizationCallback(), strategy=FSDPStrategy("cpu")).fit(module, data, data)
    state, fit = module.state_dict(), fitted(module)
    assert set(state) == {"gain"}
    module.load_state_dict(state, strict=True)
    module.load_state_dict(state | {"normalization_metrics.image_min": torch.zeros(3)}, strict=True)  # read later
    assert fitted(module) is fit
    trainer(MinMaxNormalizationCallback()).predict(module, data)  # in one piece again
    assert set(module.state_dict()) > {"gain", "normalization_metrics.image_min"}


@pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])
def test_processes_that_torch_does_not_connect_are_refused(kind: Any) -> None:
    class Elsewhere(SingleDeviceStrategy):
        def __init__(self) -> None:
            super().__init__("cpu")
            self.world_size = 2

    # A constructor may want an accelerator; what counts are the class and the processes.
    for strategy in (object.__new__(XLAStrategy), Elsewhere()):
        callback = kind()
        run = trainer(callback)
        run._accelerator_connector.strategy = strategy
        with pytest.raises(AnomnormError, match=f"cannot run under {type(strategy).__name__}: .*torch.distributed"):
            callback.setup(run, ScriptedModule(), "fit")


@pytest.mark.clause("L3")
def test_a_module_that_is_used_in_place_of_a_duplicate_is_as_before() -> None:
    class Detector(nn.Module):
        centre: Any

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.metric, self.seen = nn.Linear(2, 2), MeanMetric(), {"scores": [torch.zeros(1)]}
            self.register_buffer("centre", torch.zeros(2))
            features: dict[str, Any] = {}
            calls = 0

            def hook(*_: Any) -> None:
                nonlocal calls
                calls += 1
                features["latest"] = calls

            self.layer.register_forward_hook(hook)
            self.read: Any = lambda: (calls, dict(features))

        def forward(self, x: Any) -> Any:
            x = self.layer(x)
            self.centre += 1.0
            self.memory = x
            self.seen["scores"][0] += 1.0
            self.seen["scores"].append(x)
            self.metric.update(x)
            self.register_buffer("new", x)
            raise KeyError("power cut")

    module = Detector()
    module.metric.update(torch.tensor(3.0))
    module.layer.train(False)
    before = module.layer.weight.clone()
    with suppress(KeyError), torch.no_grad(), undisturbed(module):
        module.eval()
        module.layer.weight.mul_(2.0)  # the parameters are the strategy's
        module(torch.ones(3, 2))
    assert torch.equal(module.layer.weight, 2.0 * before)
    assert (module.training, module.layer.training, module.metric.training) == (True, False, True)
    assert module.centre.tolist() == [0.0, 0.0]
    assert module.seen == {"scores": [torch.zeros(1)]}
    assert module.metric.compute() == 3.0
    assert module.read() == (0, {})
    assert not hasattr(module, "memory")
    assert not hasattr(module, "new")
