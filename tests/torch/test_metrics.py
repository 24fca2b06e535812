"""MinMax and AnomalyScoreDistribution as torchmetrics: states, dtype, merging, processes."""

import copy
import pickle  # noqa: TID251  # what spawned processes do with a metric
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expected import moments, shrunk
from torch import Tensor

from anomnorm_core import NotFittedError, ResolutionError
from anomnorm_core.checks import Counts, counts_of
from anomnorm_torch import AnomalyScoreDistribution, MinMax, Normalizer

RNG = np.random.default_rng(17)
SCORES = torch.tensor(np.exp(RNG.normal(size=8)), dtype=torch.float32)
MAPS = torch.tensor(np.exp(RNG.normal(size=(8, 1, 2, 3))), dtype=torch.float32)
METRICS = pytest.mark.parametrize("kind", [MinMax, AnomalyScoreDistribution])


def filled(kind: Any, part: slice = slice(None), maps: bool = True) -> Any:
    metric = kind()
    metric.update(SCORES[part], MAPS[part] if maps else None)
    return metric


def values(metric: Any) -> list[Any]:
    return [value.double().numpy() for level in ("image", "pixel") for value in metric.statistics(level)]


def expected(kind: Any) -> list[Any]:
    scores, maps = SCORES.double().numpy(), MAPS[:, 0].double().numpy()
    if kind is MinMax:
        return [scores.min(), scores.max(), maps.min(), maps.max()]
    return [*moments(scores), *moments(maps)]


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@METRICS
def test_batchwise_equals_whole(kind: Any) -> None:
    metric = kind()
    for start in range(0, 8, 3):
        metric.update(SCORES[start : start + 3], MAPS[start : start + 3])
    assert_same(values(metric), expected(kind))
    assert_same([value.double().numpy() for value in metric.compute()], expected(kind))


@pytest.mark.clause("L5", "S1")
@METRICS
def test_samples_that_only_pad_are_left_out(kind: Any) -> None:
    padded = torch.cat([SCORES, torch.tensor([0.0, float("nan"), 1e9])])
    maps = torch.cat([MAPS, torch.full((3, 1, 2, 3), -1.0)])
    valid = torch.arange(11) < 8
    for given_scores, given_maps in ((padded, maps), (padded[:, None], maps[:, 0, ..., None])):
        for where in (valid, valid.float()):
            metric = kind()
            metric.update(given_scores, given_maps, where=where)
            assert_same(values(metric), expected(kind))
            assert counts_of(metric.record("image")) == Counts(8)
            assert counts_of(metric.record("pixel")) == Counts(48)
    metric = kind()
    metric.update(padded, maps, where=torch.zeros(11, dtype=torch.bool))
    assert not metric.seen("image")


@METRICS
def test_states_are_the_fields_of_the_records(kind: Any) -> None:
    fields = "count mean m2 zeros invalid" if kind is AnomalyScoreDistribution else "min max count invalid"
    prefixes = ("image_", "pixel_") if kind is AnomalyScoreDistribution else ("", "pixel_")
    assert list(kind().state_dict()) == [prefix + field for prefix in prefixes for field in fields.split()]
    metric = kind()
    metric.update(torch.tensor([1.0, 0.0, -1.0]), MAPS)
    assert metric.seen("pixel")
    state = metric.state_dict()
    assert state[f"{prefixes[0]}invalid"].tolist() == [int(kind is AnomalyScoreDistribution), 0, 0]
    metric = kind()
    metric.update(torch.tensor([0.0]))
    assert metric.seen("image")  # also if it is all left out


@METRICS
def test_forward_keeps_the_global_statistics_right(kind: Any) -> None:
    metric = kind()
    for start in range(0, 8, 4):
        metric(SCORES[start : start + 4], MAPS[start : start + 4])
    assert_same(values(metric), expected(kind))


@METRICS
def test_reset_forgets_everything(kind: Any) -> None:
    metric = filled(kind)
    metric.statistics("image")
    metric.reset()
    for level in ("image", "pixel"):
        assert not metric.seen(level)
        with pytest.raises(NotFittedError, match=f"{level}-level"):
            metric.statistics(level)
    metric.update(2 * SCORES, 2 * MAPS[..., :1])  # also at another resolution
    assert metric.seen("pixel")


@METRICS
def test_merging_parts_equals_the_whole(kind: Any) -> None:
    parts = [filled(kind, slice(0, 3)), filled(kind, slice(3, 4)), filled(kind, slice(4, 8))]
    metric = parts[0]
    metric.merge_state(parts[1])
    metric.merge_state(parts[2].metric_state)
    assert_same(values(metric), expected(kind))
    empty = kind()
    empty.merge_state(metric)
    assert_same(values(empty), expected(kind))
    assert_same([value.double().numpy() for value in empty.compute()], expected(kind))  # and torchmetrics is content
    other = MinMax() if kind is AnomalyScoreDistribution else AnomalyScoreDistribution()
    with pytest.raises(ValueError, match=f"cannot merge a {type(other).__name__}"):
        metric.merge_state(other)


@METRICS
def test_merging_with_a_part_that_has_no_maps(kind: Any) -> None:
    metric = filled(kind, slice(0, 5))
    metric.merge_state(filled(kind, slice(5, 8), maps=False))
    np.testing.assert_allclose(values(metric)[0], expected(kind)[0], rtol=1e-12)
    part = filled(kind, slice(0, 5))
    assert_same(values(metric)[2:], values(part)[2:])


@METRICS
def test_copies_and_pickles_are_equal(kind: Any) -> None:
    metric = filled(kind)
    for other in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert_same(values(other), values(metric))


@pytest.mark.clause("L9")
@METRICS
@pytest.mark.parametrize("change", ["half", "bfloat16", "double", "to"])
def test_statistics_do_not_follow_the_dtype_of_the_module(kind: Any, change: str) -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.scores = filled(kind)

    module = Module()
    before = values(module.scores)
    module = module.to(torch.float16) if change == "to" else getattr(module, change)()
    assert module.weight.dtype != torch.float32
    for a, b in zip(values(module.scores), before, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.clause("L9")
@METRICS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_accumulated_in_float64(kind: Any, dtype: torch.dtype) -> None:
    metric = kind()
    scores = (SCORES.repeat(2000) * 50).to(dtype)
    metric.update(scores)
    exact = scores.double().numpy()
    wanted = [exact.min(), exact.max()] if kind is MinMax else [np.log(exact).mean(), np.log(exact).std(ddof=1)]
    np.testing.assert_allclose([value.item() for value in metric.statistics("image")], wanted, rtol=1e-9)


@pytest.mark.clause("S8")
def test_maps_of_another_resolution_are_refused() -> None:
    metric = filled(AnomalyScoreDistribution)
    with pytest.raises(ResolutionError, match=r"\(2, 3\)"):
        metric.update(SCORES, MAPS[..., :2])


@METRICS
def test_an_empty_metric_cannot_compute(kind: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics says so too
        with pytest.raises(NotFittedError):
            kind().compute()


def test_names_of_the_metric_of_anomalib_0_3() -> None:
    metric = MinMax()
    metric.update(torch.tensor([1.0, 3.0]))
    assert [value.item() for value in metric.compute()[:2]] == [1.0, 3.0]
    assert [metric.min.item(), metric.max.item()] == [1.0, 3.0]


@METRICS
def test_forward_of_a_batch_that_has_no_statistics_loses_nothing(kind: Any) -> None:
    metric = kind()
    metric.update(SCORES)
    metric(SCORES[:1])
    metric(torch.tensor([float("nan")]))
    assert counts_of(metric.record("image")) == Counts(9, nan=1)


@pytest.mark.clause("S8")
def test_a_refused_update_changes_neither_level() -> None:
    metric = filled(AnomalyScoreDistribution)
    with pytest.raises(ResolutionError):
        metric.update(SCORES, MAPS[..., :2])
    assert metric.image_count == 8


@pytest.mark.clause("L8")
@METRICS
def test_the_update_path_never_reads_a_value(kind: Any) -> None:
    # Tensors on the meta device have no values: whatever reads one fails.
    metric = kind().to("meta")
    for _ in range(2):
        metric.update(SCORES.to("meta"), MAPS.to("meta"), where=torch.ones(8, dtype=torch.bool, device="meta"))


def _two_processes(rank: int, folder: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = (slice(0, 5), slice(5, 8))[rank]
    for kind in (MinMax, AnomalyScoreDistribution):
        metric = filled(kind, own, maps=rank == 0)  # one rank never sees a map
        metric.sync()
        results.put((rank, kind.__name__, values(metric)))
        metric.unsync()
        results.put((rank, f"{kind.__name__} alone", [value.item() for value in metric.statistics("image")]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.clause("L8")
def test_two_processes_synchronize_to_the_statistics_of_one(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_two_processes, args=(rank, str(tmp_path), results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in range(8)]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    first = slice(0, 5)
    for rank, name, numbers in found:
        kind = MinMax if name.startswith("MinMax") else AnomalyScoreDistribution
        if name.endswith("alone"):
            own: Tensor = SCORES[(first, slice(5, 8))[rank]]
            single = kind()
            single.update(own)
            assert numbers == [value.item() for value in single.statistics("image")]
            continue
        np.testing.assert_allclose(numbers[:2], expected(kind)[:2], rtol=0 if kind is MinMax else 1e-12)
        assert_same(numbers[2:], values(filled(kind, first))[2:])


def test_moments_of_scores_of_any_sign() -> None:
    whole, parts = AnomalyScoreDistribution("identity"), [AnomalyScoreDistribution(transform="identity") for _ in "ab"]
    whole.update(-SCORES, MAPS - 2)
    for part, rows in zip(parts, (slice(0, 3), slice(3, 8)), strict=True):
        part.update(-SCORES[rows], MAPS[rows] - 2)
    parts[0].merge_state(parts[1])
    arrays = -SCORES.double().numpy(), (MAPS[:, 0] - 2).double().numpy()
    wanted = [f(x) for x in arrays for f in (lambda v: v.mean(0), lambda v: v.std(0, ddof=1))]
    shrunken = shrunk(wanted.pop(), len(SCORES) - 1)
    for metric in (whole, parts[0], copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        *found, pixel_std = values(metric)
        assert_same(found, wanted)
        np.testing.assert_allclose(pixel_std, shrunken, rtol=1e-9)  # torch's digamma
    normalizer = Normalizer.cdf(whole.record("image"), whole.record("pixel"), threshold=1.0, transform="identity")
    assert normalizer.method.name == "normal"
    with pytest.raises(ValueError, match="of cdf and normal normalization have no sum"):
        whole.merge_state(AnomalyScoreDistribution())


@METRICS
def test_a_state_dict_restores_the_statistics_and_a_normalizer_takes_the_records(kind: Any) -> None:
    metric, again = filled(kind), kind()
    again.load_state_dict(metric.state_dict(), strict=True)
    assert_same(values(again), values(metric))
    make = Normalizer.min_max if kind is MinMax else Normalizer.cdf
    normalizer = make(again.record("image"), again.record("pixel"), threshold=1.0)
    for level in ("image", "pixel"):
        for mine, theirs in zip(normalizer.to_fit().level(level).parameters, metric.statistics(level), strict=True):
            np.testing.assert_array_equal(mine, theirs.numpy())
