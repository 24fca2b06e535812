"""On a GPU: the same decisions, the same bounds, and no waiting for the device. Skipped where there is none."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from scripted_module import ScriptedModule, loader, samples
from torch import Tensor

from anomnorm_core import Normalizer as Reference
from anomnorm_torch import CdfNormalizationCallback, MinMaxNormalizationCallback, Normalizer, cdf, min_max, threshold

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's or AMD's"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

RNG = np.random.default_rng(5)
SHAPE = (16, 24)
MEAN, STD = RNG.normal(0.0, 0.2, SHAPE).astype(np.float32), RNG.uniform(0.05, 1.4, SHAPE).astype(np.float32)
NORMALIZERS = {
    "min-max": lambda: Normalizer.min_max((0.0, 4.0), (-1.0, 5.0), threshold=1.3),
    "two-slope": lambda: Normalizer.of("two-slope", (0.0, 4.0), (-1.0, 5.0), threshold=1.3),
    "cdf": lambda: Normalizer.cdf((0.1, 0.4), (MEAN, STD), threshold=1.0, center="pixel"),
    "cdf-wide": lambda: Normalizer.cdf((0.1, 30.0), (MEAN, STD * 20), threshold=1.0),
}
KINDS = pytest.mark.parametrize("kind", NORMALIZERS)


def batch(normalizer: Normalizer, images: int = 8) -> tuple[Tensor, Tensor]:
    """Scores and maps of every size, a third of them at their thresholds or beside them."""
    maps = np.exp(RNG.normal(0.2, 0.8, (images, 1, *SHAPE))).astype(np.float32)
    raw = np.broadcast_to(normalizer.thresholds["pixel"].raw.astype(np.float32), SHAPE)
    maps[0], maps[1], maps[2] = raw, np.nextafter(raw, np.float32(-9)), np.nextafter(raw, np.float32(9))
    maps[3, 0, 0, :4] = np.nan, np.inf, -np.inf, 0.0
    return torch.from_numpy(maps.reshape(images, -1).max(1)), torch.from_numpy(maps)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.clause("N4", "N6", "N13", "L8")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@KINDS
def test_scores_and_decisions_are_those_of_the_reference(kind: str, compiled: bool) -> None:
    own = NORMALIZERS[kind]()
    given = batch(own)
    expected = Reference.from_fit(own.to_fit())(*(x.numpy() for x in given))
    on_gpu = own.cuda()
    call: Any = torch.compile(on_gpu) if compiled else on_gpu
    found = {name: value.cpu() for name, value in call(*(x.cuda() for x in given)).items()}
    for name in ("pred_labels", "pred_masks"):
        np.testing.assert_array_equal(found[name].numpy(), expected[name])
    for name, decision in (("pred_scores", "pred_labels"), ("anomaly_maps", "pred_masks")):
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=0, atol=1.5 * 2.0**-23)
        np.testing.assert_array_equal(found[name].numpy() >= 0.5, found[decision].numpy())
    assert np.all(found["anomaly_maps"].numpy()[0] == 0.5)


@pytest.mark.clause("L8")
@KINDS
def test_a_call_waits_for_nothing(kind: str) -> None:
    normalizer = NORMALIZERS[kind]().cuda()
    given = [x.cuda() for x in batch(normalizer)]
    extra = "z" if normalizer.method.sigmas else "margin"
    normalizer(*given, extras=(extra,))
    with no_waiting():
        normalizer(*given, extras=(extra,))


@pytest.mark.clause("L8", "S4")
def test_statistics_wait_for_nothing_and_are_those_of_the_cpu() -> None:
    _, maps = batch(NORMALIZERS["cdf"]())
    masks = maps > 1.0
    records = {
        "range": (min_max.init(device="cuda"), min_max.update),
        "moments": (cdf.init(SHAPE, device="cuda"), cdf.update),
        "histogram": (threshold.init(device="cuda"), lambda r, x: threshold.update(r, x, masks.to(x.device))),
    }
    on_gpu = maps.cuda()
    masks = masks.cuda()
    for name, (record, update) in records.items():
        with no_waiting():
            found = update(update(record, on_gpu), on_gpu)
        empty = type(record)(*(field.cpu() for field in record))
        expected = update(update(empty, maps), maps)
        for mine, other in zip(found, expected, strict=True):
            tolerance = {"rtol": 1e-9, "atol": 1e-9} if name == "moments" else {"rtol": 0.0, "atol": 0.0}
            torch.testing.assert_close(mine.cpu(), other, **tolerance)


@pytest.mark.clause("P4")
@KINDS
def test_a_call_is_captured_in_a_graph(kind: str) -> None:
    normalizer = NORMALIZERS[kind]().cuda()
    scores, maps = (x.cuda() for x in batch(normalizer))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        normalizer(scores, maps)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = normalizer(scores, maps)
    others = batch(normalizer)
    scores.copy_(others[0])
    maps.copy_(others[1])
    graph.replay()
    for name, value in normalizer(*(x.cuda() for x in others)).items():
        torch.testing.assert_close(captured[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.clause("L3", "L4", "L8")
@pytest.mark.parametrize("kind", ["min-max", "cdf"])
def test_a_run_finds_what_it_finds_on_the_cpu_and_its_batches_wait_for_nothing(kind: str) -> None:
    import pytorch_lightning as pl

    maps = np.exp(RNG.normal(0.0, 0.5, (24, *SHAPE))).astype(np.float32)
    labels = [int(i % 5 == 0) for i in range(24)]
    maps[np.array(labels) == 1] *= 2
    data = samples(maps.reshape(24, -1).max(1).tolist(), maps=maps, labels=labels)
    fits = {}
    for accelerator in ("cpu", "gpu"):
        callback = MinMaxNormalizationCallback() if kind == "min-max" else CdfNormalizationCallback(source="validation")
        trainer = pl.Trainer(
            accelerator=accelerator, devices=1, callbacks=[callback], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = ScriptedModule()
        trainer.validate(module, loader(data), verbose=False)
        fits[accelerator] = callback.normalizer(module).to_fit()
        outputs = {"pred_scores": torch.rand(4) + 0.5, "anomaly_maps": torch.rand(4, 1, *SHAPE) + 0.5}
        device = torch.device("cuda" if accelerator == "gpu" else "cpu")
        on_device = {name: value.to(device) for name, value in outputs.items()}
        module.to(device)
        callback.on_test_start(trainer, module)
        callback.on_test_batch_end(trainer, module, dict(on_device), None, 0)
        if accelerator == "gpu":
            with no_waiting():
                callback.on_test_batch_end(trainer, module, on_device, None, 0)
    for level in ("image", "pixel"):
        mine, other = (fits[accelerator].level(level) for accelerator in ("gpu", "cpu"))
        for a, b in zip(mine.parameters, other.parameters, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(mine.threshold.raw, other.threshold.raw, rtol=1e-5 * (1 + math.e))
