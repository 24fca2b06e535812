"""What a callback does with each batch: no waiting for the device, no transfers, work that pixels do not multiply."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, samples, trainer
from torch.utils._python_dispatch import TorchDispatchMode

from anomnorm_torch import (
    CdfNormalizationCallback,
    MinMaxNormalizationCallback,
    NormalizationCallback,
)
from anomnorm_torch.run import Run

pytestmark = pytest.mark.clause("L8", "S5")

RNG = np.random.default_rng(53)
KINDS = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, CdfNormalizationCallback])


class TwoSlopes(NormalizationCallback):
    def __init__(self, threshold: Any = None) -> None:
        super().__init__("two-slope", threshold)


EVERY_KIND = pytest.mark.parametrize("kind", [MinMaxNormalizationCallback, TwoSlopes, CdfNormalizationCallback])
OPTIONS = pytest.mark.parametrize("options", [{}, {"threshold": 1.5}, {"threshold": "normal_quantile"}], ids=str)
HOOKS = ("on_validation_batch_end", "on_test_batch_end", "on_predict_batch_end")
# What reads a number off the device, or has an output whose size depends on values and so waits for it.
WAITING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2", "equal"}


def data(side: int) -> Any:
    labels = np.arange(12) % 3 == 1
    masks = RNG.random((12, side, side)) < 0.3 * labels[:, None, None]
    maps = np.exp(0.2 * RNG.normal(size=(12, side, side)) + masks)
    return loader(samples(np.exp(RNG.normal(size=12) + labels), maps, labels.astype(int), masks), 4)


class Recorder(TorchDispatchMode):
    def __init__(self, operations: list[str]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


def recorded(kind: Any, options: Any, side: int) -> dict[str, list[list[str]]]:
    """The operations of each hook that runs for each batch, by its name and batch."""
    found: dict[str, list[list[str]]] = {name: [] for name in HOOKS}

    def watched(name: str) -> Any:
        def hook(self: Any, *arguments: Any) -> None:
            found[name].append([])
            with Recorder(found[name][-1]):
                getattr(kind, name)(self, *arguments)

        return hook

    callback = type("Watched", (kind,), {name: watched(name) for name in HOOKS})(**options)
    module, run = ScriptedModule(), trainer(callback, num_sanity_val_steps=0)
    run.fit(module, data(side), data(side))
    run.test(module, data(side), verbose=False)
    run.predict(module, data(side))
    return found


@pytest.fixture(params=["cpu", "device"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a CPU, where reading a value waits for nothing, or as on any other device."""
    if request.param == "device":
        for module in [module for name, module in sys.modules.items() if name.startswith("anomnorm_torch")]:
            if hasattr(module, "is_readable"):
                monkeypatch.setattr(module, "is_readable", lambda *_: False)
    return str(request.param)


@EVERY_KIND
@OPTIONS
def test_no_batch_waits_and_work_does_not_grow_with_pixels(kind: Any, options: Any, where: str) -> None:
    small, large = recorded(kind, options, 4), recorded(kind, options, 32)
    assert small == large
    for name, batches in small.items():
        assert len(batches) == 3
        assert all(batches), name  # something was recorded
        for operations in batches:
            assert where == "cpu" or not WAITING & set(operations), name
        assert batches[1] == batches[2], name  # the first one also makes room for the scores


def test_the_recorder_would_notice() -> None:
    operations: list[str] = []
    with Recorder(operations):
        float(torch.ones(3).sum())
        torch.ones(3).nonzero()
    assert set(operations) >= {"_local_scalar_dense", "nonzero"}


@EVERY_KIND
def test_batches_stay_on_a_device_that_holds_no_values(kind: Any) -> None:
    # On the meta device reading a value, or mixing in a tensor of another device, is an error.
    module, callback = ScriptedModule(), kind()
    run = trainer(callback, num_sanity_val_steps=0)
    run.fit(module, data(4), data(4))
    there = torch.device("meta")
    draft = module.normalization_metrics.fit if callback.method.sigmas else None
    callback._run = Run(callback._kernels, callback.options, there, draft=draft)  # as the start of a stage leaves them
    callback._truth = (True, True)
    callback._normalizer = callback.normalizer(module).to(there)
    with there:
        batch = {"label": torch.zeros(4), "mask": torch.zeros((4, 1, 4, 4)), "valid": torch.zeros(4, dtype=torch.bool)}
        scores, maps = torch.ones(4), torch.ones((4, 1, 4, 4))
    callback.on_validation_batch_end(run, module, {"pred_scores": scores, "anomaly_maps": maps}, batch, 0)
    for hook in (callback.on_test_batch_end, callback.on_predict_batch_end):
        result = {"pred_scores": scores, "anomaly_maps": maps}
        hook(run, module, result, batch, 0)
        assert set(result) == {"pred_scores", "anomaly_maps", "pred_labels", "pred_masks"}
        assert all(value.device.type == "meta" for value in result.values())
    with pytest.raises(RuntimeError, match="meta"):
        float(scores.sum())


@EVERY_KIND
def test_a_batch_takes_few_calls_of_python(kind: Any) -> None:
    """Functions of our packages that run for one batch of a test: a profiler's count, which no clock disturbs."""
    counts: list[int] = []

    class Watched(kind):  # type: ignore[misc]
        def on_test_batch_end(self, *arguments: Any) -> None:
            calls = []

            def count(frame: Any, event: str, _: Any) -> None:
                if event == "call" and "anomnorm_" in frame.f_code.co_filename:
                    calls.append(frame.f_code.co_qualname)

            sys.setprofile(count)
            try:
                super().on_test_batch_end(*arguments)
            finally:
                sys.setprofile(None)
            counts.append(len(calls))

    module = ScriptedModule()
    run = trainer(Watched(), num_sanity_val_steps=0)
    run.fit(module, data(4), data(4))
    run.test(module, data(4), verbose=False)
    assert len(counts) == 3
    assert 5 < max(counts) < 40


@pytest.mark.clause("S5", "T5")
@KINDS
def test_memory_does_not_grow_with_the_number_of_maps(kind: Any) -> None:
    program = f"""
import gc, os, torch
from torch.utils.data import DataLoader, Dataset
from scripted_module import ScriptedModule, trainer
from anomnorm_torch import {kind.__name__}

torch.set_num_threads(1)

class Maps(Dataset):
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.rand((1, 128, 128), generator=generator) + 0.1
        return {{"map": image, "label": torch.tensor(index % 2), "mask": image > 1}}

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

used = []

class Watched({kind.__name__}):
    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, index, loader_index=0):
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, index, loader_index)
        if index in (24, 149):
            used.append(resident())

callback, module = Watched(), ScriptedModule()
run = trainer(callback)
run.fit(module, DataLoader(Maps(16), 16), DataLoader(Maps(16), 16))
module.on_validation_batch_end = lambda *_: None
run.validate(module, DataLoader(Maps(2400), 16), verbose=False)
print("growth", used[1] - used[0])
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=Path(__file__).parents[1],
        # glibc keeps freed blocks of this size for later, some MiB more or less; so it gives them back.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    growth = float(result.stdout.split("growth")[1])
    assert growth < 5.0, growth  # MiB
