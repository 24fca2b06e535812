"""Large tensors on the CPU are computed in pieces: the same numbers, bit for bit, in less memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from anomnorm_torch import _blocks, cdf, min_max, threshold

RNG = np.random.default_rng(71)
SHAPE = (5, 1, 7, 11)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DTYPES = pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
PER_IMAGE = 1.5 + torch.arange(5.0).reshape(5, 1, 1, 1)
PER_PIXEL = torch.from_numpy(RNG.normal(1.0, 0.2, size=(2, *SHAPE[-2:])))
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "min-max": lambda x: min_max.normalize(x, 1.5, 0.5, 4.0),
    "min-max, one number for each image": lambda x: min_max.normalize(x, PER_IMAGE, 0.5, 4.0),
    "min-max, constant": lambda x: min_max.normalize(x, 1.0, 1.0, 1.0),
    "min-max, of all numbers": lambda x: min_max.normalize(x, 1.5, -3e38, 3e38),
    "standardize": lambda x: cdf.standardize(x, 0.5, 0.25),
    "standardize, per pixel": lambda x: cdf.standardize(x, PER_PIXEL[0], PER_PIXEL[1]),
    "standardize, per pixel around a centre": lambda x: cdf.standardize(x, PER_PIXEL[0][None], PER_PIXEL[1], 0.5),
    "standardize, some pixels constant": lambda x: cdf.standardize(x, PER_PIXEL[0], PER_PIXEL[1] * (PER_PIXEL[0] > 1)),
    "CDF": lambda x: cdf.normalize(x, 1.0),
    "CDF, per pixel": lambda x: cdf.normalize(x, PER_PIXEL[0]),
}  # fmt: skip
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def cut(size: int) -> None:
        monkeypatch.setattr(_blocks, "PIECE", size)

    torch.set_num_threads(1)
    return cut


def scores(dtype: torch.dtype) -> Tensor:
    x = np.exp(RNG.normal(0.5, 0.7, size=SHAPE))
    x.flat[:6] = [0.0, -1.0, 1.5, math.nan, math.inf, -math.inf]
    return torch.from_numpy(np.nan_to_num(x, posinf=9, neginf=-9) if dtype is torch.int32 else x).to(dtype)


def bits(x: Tensor) -> list[Any]:
    return [x.dtype, x.shape, x.isnan().tolist(), x.nan_to_num(0.25).tolist()]


@EVERY_KERNEL
@DTYPES
def test_pieces_give_what_the_whole_gives(kernel: Any, dtype: torch.dtype, pieces: Any) -> None:
    x = scores(dtype)
    before = x.clone()
    whole = kernel(x)
    for size in (8, 20, 77, 100, 200):  # parts of rows, of maps, whole maps, several maps
        pieces(size)
        assert bits(kernel(x)) == bits(whole), size
    assert torch.equal(x.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("name", ["min-max", "standardize", "CDF"])
def test_nothing_and_what_has_no_values_stay_whole(name: str) -> None:
    assert KERNELS[name](scores(torch.float32)[:0]).shape == (0, *SHAPE[1:])
    assert KERNELS[name](torch.empty((2 * _blocks.PIECE,), device="meta")).shape == (2 * _blocks.PIECE,)


@EVERY_KERNEL
def test_what_cannot_be_cut_is_computed_as_a_whole(kernel: Any, pieces: Any) -> None:
    x = scores(torch.float32)
    whole = kernel(x)
    pieces(16)
    other_order = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert bits(kernel(other_order)) == bits(whole)


@pytest.mark.parametrize("name", ["min-max", "standardize", "CDF"])
def test_gradients_flow_through_large_tensors(name: str, pieces: Any) -> None:
    x = torch.rand(300, dtype=torch.float64) + 1.0
    pieces(64)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(KERNELS[name](x).sum(), x)
    step = 1e-6
    with torch.no_grad():
        expected = (KERNELS[name](x + step) - KERNELS[name](x - step)) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["min-max", "standardize", "CDF"])
def test_transformations_see_no_pieces(name: str, pieces: Any) -> None:
    x = scores(torch.float32)[1:]
    expected = KERNELS[name](x)
    pieces(16)
    assert bits(torch.func.vmap(KERNELS[name])(x)) == bits(expected)
    with FakeTensorMode() as mode:
        assert KERNELS[name](mode.from_tensor(x)).shape == x.shape


# Parameters of other shapes than the scores


CASES: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "min-max": (min_max.normalize, (1.5, 0.5, 4.0)),
    "margin": (min_max.margin, (1.5, 0.5, 4.0)),
    "min-max backwards": (min_max.denormalize, (1.5, 0.5, 4.0)),
    "standardize": (cdf.standardize, (0.5, 0.25, 0.75)),
    "CDF": (cdf.normalize, (1.5,)),
}
CASE = pytest.mark.parametrize(("kernel", "parameters"), CASES.values(), ids=CASES)


@CASE
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("size", [8, 10**6], ids=["pieces", "whole"])
def test_parameters_may_have_more_axes_than_the_scores(
    kernel: Any, parameters: Any, shape: tuple[int, ...], size: int, pieces: Any
) -> None:
    if kernel is cdf.standardize and len(shape) > 1:
        pytest.skip("statistics of two axes belong to maps")
    x = scores(torch.float32).flatten()
    expected = kernel(x, *parameters)
    pieces(size)
    for position in range(len(parameters)):
        given: list[Any] = list(parameters)
        given[position] = torch.full(shape, given[position])
        found = kernel(x, *given)
        assert found.shape == torch.broadcast_shapes(x.shape, shape)
        assert bits(found) == bits(expected.expand(found.shape))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.clause("N12")
@CASE
def test_one_batch_under_many_parameters(kernel: Any, parameters: Any, pieces: Any) -> None:
    x = scores(torch.float32)
    pieces(16)
    for position in range(len(parameters)):
        given: list[Any] = [torch.tensor(value) for value in parameters]
        many = torch.stack([given[position], given[position] * 2, given[position] * 0])
        axes = [0 if i == position else None for i in range(len(given))]
        found = torch.func.vmap(kernel, in_dims=(None, *axes))(x, *given[:position], many, *given[position + 1 :])
        loop = [kernel(x, *given[:position], one, *given[position + 1 :]) for one in many]
        assert bits(found) == bits(torch.stack(loop))


@CASE
@pytest.mark.parametrize("size", [8, 10**6], ids=["pieces", "whole"])
def test_forward_derivatives(kernel: Any, parameters: Any, size: int, pieces: Any) -> None:
    x = torch.rand(40, dtype=torch.float64) * 0.9 + 0.05  # unit scores, and positive
    arguments = [x, *(torch.tensor(value, dtype=torch.float64) for value in parameters)]
    pieces(size)
    for position, value in enumerate(arguments):

        def at(moved: Tensor, i: int = position) -> Tensor:
            return kernel(*arguments[:i], moved, *arguments[i + 1 :])

        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(at(forward_ad.make_dual(value, torch.ones_like(value)))).tangent
        assert tangent is not None
        expected = (at(value + 1e-6) - at(value - 1e-6)) / 2e-6
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.clause("N7")
@pytest.mark.parametrize("std", [5e-324, 1e-310, 2e-308])
def test_a_deviation_without_a_reciprocal(std: float) -> None:
    x = torch.tensor([1.0, 2.0, 0.5, math.nan], dtype=torch.float64)
    for given in (std, torch.tensor([std], dtype=torch.float64)):
        center, above, below, nothing = cdf.standardize(x, 0.0, given).tolist()
        assert center == 0.0
        assert above > 1e307
        assert below < -1e307
        assert math.isnan(nothing)


def test_histograms_export_for_batches_of_any_size() -> None:
    class Update(torch.nn.Module):
        def forward(self, record: Any, x: Tensor, masks: Tensor, where: Tensor) -> tuple[Tensor, ...]:
            return tuple(threshold.update(threshold.ScoreHistogram(*record), x, masks, where=where))

    x = torch.from_numpy(RNG.normal(size=(6, 1, 5, 3)).astype("f4"))
    masks, where = x > 0.5, torch.arange(6) % 2 == 0
    batch = {0: torch.export.Dim("batch")}
    shapes = {"record": (None, None, None), "x": batch, "masks": batch, "where": batch}
    program = torch.export.export(Update(), (tuple(threshold.init()), x, masks, where), dynamic_shapes=shapes).module()
    for part in (slice(None), slice(4)):
        expected = threshold.update(threshold.init(), x[part], masks[part], where=where[part])
        found = program(tuple(threshold.init()), x[part], masks[part], where[part])
        assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_values_are_at_hand_on_the_cpu_alone() -> None:
    assert _blocks.at_hand(torch.ones(3), torch.nn.Parameter(torch.ones(2)))
    assert not _blocks.at_hand(torch.ones(3), torch.ones(3, device="meta"))
    found = []
    torch.func.vmap(lambda x: found.append(_blocks.at_hand(x)) or x)(torch.ones(3))
    torch.compile(lambda x: x + 1.0 if _blocks.at_hand(x) else x + 2.0, backend="eager", fullgraph=True)(torch.ones(3))
    assert (
        torch.compile(lambda x: x * _blocks.at_hand(x), backend="eager", fullgraph=True)(torch.ones(3)).tolist()
        == [0.0] * 3
    )
    assert found == [False]


# Statistics: what is known to be valid needs no masks


def generally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "at_hand", lambda *_: False)


@pytest.mark.clause("S1", "S6")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_ranges_with_and_without_masks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = scores(dtype), (torch.rand(300) - 0.5).to(dtype)
    found = [min_max.update(min_max.update(min_max.init(), x), good) for x in (good, bad, bad[:0])]
    generally(monkeypatch)
    expected = [min_max.update(min_max.update(min_max.init(), x), good) for x in (good, bad, bad[:0])]
    for a, b in zip(found, expected, strict=True):
        assert [(field.dtype, field.item()) for field in a] == [(field.dtype, field.item()) for field in b]


@pytest.mark.clause("S3", "S4", "S6")
@pytest.mark.parametrize("size", [1, 40, 10**6])
def test_moments_with_and_without_masks(size: int, pieces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.exp(RNG.normal(3.0, 0.01, size=(9, 1, 40, 60))).astype("f4"))
    exact = np.log(x[:, 0].numpy().astype("f8"))
    pieces(size)
    found = cdf.update(cdf.init((40, 60)), x)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.m2, exact.var(0) * 9, rtol=1e-10)
    generally(monkeypatch)
    expected = cdf.update(cdf.init((40, 60)), x)
    assert found.count.tolist() == expected.count.tolist()
    assert found.invalid.tolist() == expected.invalid.tolist()
    np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-10)


@pytest.mark.clause("S6")
@pytest.mark.parametrize("bad", [0.0, -2.0, math.nan, math.inf, -math.inf])
def test_one_bad_value_is_counted_and_left_out(bad: float) -> None:
    x = torch.rand(4, 2, 3) + 0.5
    x[1, 0, 2] = bad
    record = cdf.update(cdf.init((2, 3)), x)
    assert record.invalid.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert record.count.tolist() == [[4, 4, 3], [4, 4, 4]]
    ranges = min_max.update(min_max.init(), x)
    assert int(ranges.invalid) == (not math.isfinite(bad))


@pytest.mark.clause("T5")
@pytest.mark.parametrize("extra", [[], [math.nan], [-math.inf], [math.inf], [-math.nan, 3.4e38, -3.4e38]], ids=str)
def test_bins_of_pieces_and_of_the_whole(extra: list[float], pieces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [*extra, 0.0, -0.0, 1e-45, -1e-45, -1.0, 1.0, -0.5, 3e38, -3e38, *RNG.normal(size=200)]
    x = torch.tensor(values, dtype=torch.float32)
    labels = torch.from_numpy(RNG.random(len(x)) < 0.3)
    pieces(32)
    found = threshold.update(threshold.init(), x, labels)
    generally(monkeypatch)
    expected = threshold.update(threshold.init(), x, labels)
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * 3
    assert int(found.invalid) == sum(map(math.isnan, values))
    # The bin of a number is where its bit pattern, as a signed magnitude, has its upper 18 bits.
    counts = np.zeros((2, threshold.init().normal.numel()), dtype=int)
    for value, label in zip(x.tolist(), labels.tolist(), strict=True):
        magnitude = int(np.float32(abs(value)).view(np.int32))
        key = -magnitude if math.copysign(1.0, value) < 0 else magnitude
        if value == -math.inf:
            counts[int(label), 0] += 1
        elif not math.isnan(value):
            counts[int(label), (key >> 14) + counts.shape[1] // 2] += 1
    assert torch.equal(found.normal, torch.from_numpy(counts[0]))
    assert torch.equal(found.anomalous, torch.from_numpy(counts[1]))


@pytest.mark.clause("S1", "T5")
@pytest.mark.parametrize("shape", [(5, 1, 7, 11), (5, 7, 11), (60,), (), (0, 3)], ids=str)
@pytest.mark.parametrize("size", [8, 20, 77, 100, 10**6])
def test_every_pixel_counts_once(shape: tuple[int, ...], size: int, pieces: Any) -> None:
    x = torch.from_numpy(np.asarray(RNG.normal(size=shape), dtype="f4"))
    pieces(size)
    record = threshold.update(threshold.init(), x)
    assert int(record.normal.sum()) == x.numel()
    if not shape or shape[0] == 0:
        return
    labels, where = torch.from_numpy(RNG.random(shape) < 0.3), torch.arange(shape[0]) % 3 != 0
    x.view(-1)[1] = math.nan
    record = threshold.update(threshold.init(), x, labels, where=where)
    taken = where.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
    valid = taken & ~x.isnan()
    found = [int(counts.sum()) for counts in record]
    assert found == [int((valid & ~labels).sum()), int((valid & labels).sum()), int((taken & x.isnan()).sum())]


@pytest.mark.clause("N4")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("at", [0.0, 1e-30, 0.3, 1.0, 3.0, -2.5, 1000.0])
def test_large_tensors_decide_like_small_ones(dtype: torch.dtype, at: float) -> None:
    t = torch.tensor(at, dtype=dtype)
    low, high = (torch.nextafter(t, torch.tensor(side, dtype=dtype)) for side in (-math.inf, math.inf))
    x = torch.stack([low, t, high]).repeat(_blocks.PIECE)
    for u in (min_max.normalize(x, t, at - 1.0, at + 3.0), min_max.normalize(x, t, -3e38, 3e38), cdf.normalize(x, t)):
        assert (u.reshape(-1, 3) < 0.5).all(0).tolist() == [True, False, False]
        assert (u.reshape(-1, 3)[:, 1] == 0.5).all()


@pytest.mark.clause("N13")
def test_large_tensors_are_as_accurate_as_promised() -> None:
    rng, worst = np.random.default_rng(1), 0.0
    for _ in range(40):
        t = np.float32(rng.normal() * 10 ** rng.uniform(-3, 3))
        low, high = np.sort((rng.normal(size=2) * 10 ** rng.uniform(-3, 3)).astype("f4")).astype("f8")
        x = (np.float64(t) + (rng.random(2 * _blocks.PIECE) - 0.5) * (high - low)).astype("f4")
        unit = min_max.normalize(torch.from_numpy(x), float(t), low, high).numpy().astype("f8")
        exact = np.clip((x.astype("f8") - np.float64(t)) / (high - low) + 0.5, 0.0, 1.0)
        worst = max(worst, float(np.abs(unit - exact).max()))
    assert worst <= 2.0**-23


@pytest.mark.clause("N9")
@pytest.mark.parametrize("name", ["min-max", "standardize", "CDF"])
def test_another_default_device_changes_nothing(name: str, pieces: Any) -> None:
    x = torch.rand(300) + 0.5
    expected = KERNELS[name](x)
    pieces(64)
    with torch.device("meta"):
        found = KERNELS[name](x)
    assert found.device == x.device
    assert torch.equal(found, expected)


@pytest.mark.clause("N4")
@pytest.mark.parametrize("at", [0.0, 2.0**-101, -(2.0**-101), 1.0])
def test_the_rule_holds_where_subnormal_numbers_are_flushed(at: float) -> None:
    t = torch.tensor(at)
    low, high = (torch.nextafter(t, torch.tensor(side)) for side in (-math.inf, math.inf))
    if at == 0.0:  # its neighbours are zero, too
        low, high = torch.tensor(-(2.0**-126)), torch.tensor(2.0**-126)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        x = torch.stack([low, t, high])
        for u in (min_max.normalize(x, t, at - 1.0, at + 1.0), min_max.normalize(x, t, t, t), cdf.normalize(x, t)):
            assert (u >= 0.5).tolist() == [False, True, True]
            assert u[1] == 0.5
    finally:
        torch.set_flush_denormal(False)
