"""Large tensors on a CPU are computed tile by tile: the same numbers in less memory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anomnorm_core.checks import Counts, counts_of
from anomnorm_torch import _tiles, cdf, min_max, normal, threshold, two_slope

RNG = np.random.default_rng(71)
SHAPE = (5, 1, 7, 11)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DTYPES = pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
PER_PIXEL = torch.from_numpy(RNG.normal(1.0, 0.2, size=(2, *SHAPE[-2:])))
KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "min-max": lambda x: min_max.normalize(x, 1.5, 0.5, 4.0),
    "min-max, per pixel": lambda x: min_max.normalize(x, PER_PIXEL[0], 0.5, 4.0),
    "min-max, constant": lambda x: min_max.normalize(x, 1.0, 1.0, 1.0),
    "min-max, of all numbers": lambda x: min_max.normalize(x, 1.5, -3e38, 3e38),
    "two slopes": lambda x: two_slope.normalize(x, 1.5, 0.5, 4.0),
    "two slopes, per pixel": lambda x: two_slope.normalize(x, PER_PIXEL[0], -0.5, PER_PIXEL[1] + 2.0),
    "CDF": lambda x: cdf.normalize(x, 1.5, 0.5, 0.25),
    "CDF, wide": lambda x: cdf.normalize(x, 1.5, 0.5, 1.25),
    "CDF, very wide": lambda x: cdf.normalize(x, 1.5, 0.5, 6.0),
    "CDF, per pixel": lambda x: cdf.normalize(x, PER_PIXEL[0].exp(), PER_PIXEL[0], PER_PIXEL[1], 0.5),
    "CDF, thresholds per pixel": lambda x: cdf.normalize(x, PER_PIXEL[0].exp()[None], 0.5, 0.25),
    "CDF, some pixels constant": lambda x: cdf.normalize(x, 1.5, PER_PIXEL[0], PER_PIXEL[1] * (PER_PIXEL[0] > 1)),
    "CDF of z": lambda x: cdf.normalize_standardized(x, PER_PIXEL[0]),
    "normal": lambda x: normal.normalize(x, 1.5, 0.5, 0.25),
    "normal, per pixel": lambda x: normal.normalize(x, PER_PIXEL[0], PER_PIXEL[0], PER_PIXEL[1], 0.5),
    "normal, some pixels constant": lambda x: normal.normalize(x, 1.5, 1.0, PER_PIXEL[1] * (PER_PIXEL[0] > 1)),
    "normal, z": lambda x: normal.standardize(x, PER_PIXEL[0], PER_PIXEL[1], 0.5),
}  # fmt: skip
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def cut(size: int) -> None:
        monkeypatch.setattr(_tiles, "TILE", size)

    torch.set_num_threads(1)
    return cut


def scores(dtype: torch.dtype) -> Tensor:
    x = np.exp(RNG.normal(0.5, 0.7, size=SHAPE))
    x.flat[:6] = [0.0, -1.0, 1.5, math.nan, math.inf, -math.inf]
    return torch.from_numpy(np.nan_to_num(x, posinf=9, neginf=-9) if dtype is torch.int32 else x).to(dtype)


def bits(x: Tensor) -> list[Any]:
    return [x.dtype, x.shape, x.isnan().tolist(), x.nan_to_num(0.25).tolist()]


@pytest.mark.clause("N9", "N12")
@EVERY_KERNEL
@DTYPES
def test_tiles_give_what_the_whole_gives(kernel: Any, dtype: torch.dtype, tiles: Any) -> None:
    x = scores(dtype)
    before = x.clone()
    whole = kernel(x)
    for size in (8, 20, 77, 100, 200):  # parts of rows, of maps, whole maps, several maps
        tiles(size)
        assert bits(kernel(x)) == bits(whole), size
    assert torch.equal(x.nan_to_num(), before.nan_to_num())


@pytest.mark.clause("N2", "N12", "N13")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("center", [None, 0.75, "per pixel"], ids=str)
def test_z_of_tiles_and_of_the_whole(dtype: torch.dtype, center: Any, tiles: Any) -> None:
    x = scores(dtype)
    before = x.clone()
    precise = dtype is torch.float64
    given = PER_PIXEL[1] - 2.0 if center == "per pixel" else center
    numbers = (PER_PIXEL[0] if given is None else torch.as_tensor(given), PER_PIXEL[1])
    at, std = (value.double() if precise else value.float().double() for value in numbers)
    expected = (x.double().clamp(min=0.0).log() - at) / std
    bound = 4 * torch.finfo(torch.float64 if precise else torch.float32).eps * expected.abs()
    bound += (2.0**-50 if precise else 2.0**-30) / std
    for size in (10**6, 8, 77, 200):
        tiles(size)
        z = cdf.standardize(x, PER_PIXEL[0], PER_PIXEL[1], given)
        assert torch.equal(z.isfinite(), expected.isfinite())
        close = (z.double() - expected).abs() <= bound
        assert (close | (z == expected) | (z.isnan() & expected.isnan())).all(), size
    assert torch.equal(x.nan_to_num(), before.nan_to_num())


@pytest.mark.clause("N7")
def test_z_of_constant_pixels_in_tiles(tiles: Any) -> None:
    x = scores(torch.float32)
    std = PER_PIXEL[1] * (PER_PIXEL[0] > 1)
    whole = cdf.standardize(x, PER_PIXEL[0], std)
    assert (whole.isinf() | whole.isnan()).all(0)[0, std == 0].all()
    for size in (8, 77, 200):
        tiles(size)
        assert bits(cdf.standardize(x, PER_PIXEL[0], std)) == bits(whole), size


@EVERY_KERNEL
def test_nothing_and_what_has_no_values_stay_whole(kernel: Any, tiles: Any) -> None:
    assert kernel(scores(torch.float32)[:0]).shape == (0, *SHAPE[1:])
    there = scores(torch.float32).to("meta")
    tiles(8)
    with torch.device("meta"):
        assert kernel(there).shape == SHAPE


@EVERY_KERNEL
def test_what_cannot_be_cut_is_computed_as_a_whole(kernel: Any, tiles: Any) -> None:
    x = scores(torch.float32)
    whole = kernel(x)
    tiles(16)
    other_order = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert bits(kernel(other_order)) == bits(whole)
    assert bits(kernel(x[::2])) == bits(whole[::2])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@EVERY_KERNEL
def test_transformations_see_no_tiles(kernel: Any, tiles: Any) -> None:
    x = scores(torch.float32)[1:]
    expected = kernel(x)
    tiles(16)
    found = torch.func.vmap(kernel)(x)
    assert [found.dtype, found.shape] == [expected.dtype, expected.shape]
    # In tiles and outside, other operations make the same formula: they agree as far as both are right.
    torch.testing.assert_close(found, expected, rtol=0, atol=2.0**-22, equal_nan=True)
    assert torch.equal(found >= 0.5, expected >= 0.5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert kernel(mode.from_tensor(x)).shape == x.shape


# Parameters of other shapes than the scores


CASES: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "min-max": (min_max.normalize, (1.5, 0.5, 4.0)),
    "margin": (min_max.margin, (1.5, 0.5, 4.0)),
    "min-max backwards": (min_max.denormalize, (1.5, 0.5, 4.0)),
    "two slopes": (two_slope.normalize, (1.5, 0.5, 4.0)),
    "two slopes backwards": (two_slope.denormalize, (1.5, 0.5, 4.0)),
    "standardize": (cdf.standardize, (0.5, 0.25, 0.75)),
    "CDF": (cdf.normalize, (1.5, 0.5, 0.25)),
    "CDF of z": (cdf.normalize_standardized, (1.5,)),
    "CDF backwards": (cdf.denormalize, (1.5, 0.5, 0.25)),
    "normal": (normal.normalize, (1.5, 0.5, 0.25)),
    "normal, z": (normal.standardize, (0.5, 0.25, 0.75)),
}
CASE = pytest.mark.parametrize(("kernel", "parameters"), CASES.values(), ids=CASES)


@CASE
@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((), (1,)),
        ((), (5,)),
        ((77,), (1,)),
        ((77,), (77,)),
        ((7, 11), (11,)),
        ((7, 11), (1, 7, 11)),
        ((7, 11), (3, 7, 11)),
        ((1, 7, 11), (3, 7, 11)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [8, 10**6], ids=["tiles", "whole"])
def test_parameters_may_have_more_axes_than_the_scores(
    kernel: Any, parameters: Any, axes: tuple[int, ...], shape: tuple[int, ...], size: int, tiles: Any
) -> None:
    x = scores(torch.float32).flatten()[: math.prod(axes)].reshape(axes)
    expected = kernel(x, *parameters)
    tiles(size)
    for position in range(len(parameters)):
        given: list[Any] = list(parameters)
        given[position] = torch.full(shape, given[position])
        found = kernel(x, *given)
        assert found.shape == torch.broadcast_shapes(x.shape, shape)
        torch.testing.assert_close(found, expected.expand(found.shape), rtol=1e-6, atol=2.0**-22, equal_nan=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.clause("N12")
@CASE
def test_one_batch_under_many_parameters(kernel: Any, parameters: Any, tiles: Any) -> None:
    x = scores(torch.float32)
    tiles(16)
    for position in range(len(parameters)):
        given: list[Any] = [torch.tensor(value) for value in parameters]
        least = 0.0 if position else 0.5  # a threshold of 0 has no logarithm
        many = torch.stack([given[position], given[position] * 2, given[position] * least])
        axes = [0 if i == position else None for i in range(len(given))]
        found = torch.func.vmap(kernel, in_dims=(None, *axes))(x, *given[:position], many, *given[position + 1 :])
        loop = [kernel(x, *given[:position], one, *given[position + 1 :]) for one in many]
        torch.testing.assert_close(found, torch.stack(loop), rtol=1e-6, atol=2.0**-22, equal_nan=True)


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


def test_values_are_readable_on_the_cpu_alone() -> None:
    assert _tiles.is_readable(torch.ones(3), torch.nn.Parameter(torch.ones(2)))
    assert not _tiles.is_readable(torch.ones(3), torch.ones(3, device="meta"))
    found = []
    torch.func.vmap(lambda x: found.append(_tiles.is_readable(x)) or x)(torch.ones(3))
    assert found == [False]
    compiled = torch.compile(lambda x: x * _tiles.is_readable(x), backend="eager", fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [0.0] * 3


# Statistics: what is known to be valid needs no masks


def generally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "is_readable", lambda *_: False)


@pytest.mark.clause("S1", "S6")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_ranges_with_and_without_masks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = scores(dtype), (torch.rand(300) - 0.5).to(dtype)
    found = [min_max.update(min_max.update(min_max.init(), x), good) for x in (good, bad, bad[:0])]
    generally(monkeypatch)
    expected = [min_max.update(min_max.update(min_max.init(), x), good) for x in (good, bad, bad[:0])]
    for a, b in zip(found, expected, strict=True):
        assert [(field.dtype, field.tolist()) for field in a] == [(field.dtype, field.tolist()) for field in b]


@pytest.mark.clause("S3", "S4", "S6")
@pytest.mark.parametrize("size", [1, 40, 10**6])
def test_moments_with_and_without_masks(size: int, tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.from_numpy(np.exp(RNG.normal(3.0, 0.01, size=(9, 1, 40, 60))).astype("f4"))
    exact = np.log(x[:, 0].numpy().astype("f8"))
    tiles(size)
    records = {module: module.update(module.init((40, 60)), x) for module in (cdf, normal)}
    generally(monkeypatch)
    for (module, found), values in zip(records.items(), (exact, x[:, 0].numpy().astype("f8")), strict=True):
        np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.m2, values.var(0) * 9, rtol=1e-10)
        expected = module.update(module.init((40, 60)), x)
        assert type(found) is type(expected)
        assert found.count.tolist() == expected.count.tolist()
        assert counts_of(found) == counts_of(expected) == Counts(9 * 40 * 60)
        np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-10)


@pytest.mark.clause("S6")
@pytest.mark.parametrize("wait", [True, False], ids=["reading", "not reading"])
@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (0.0, "zeros"),
        (-0.0, "zeros"),
        (-2.0, "negative"),
        (-1e-45, "negative"),
        (math.nan, "nan"),
        (math.inf, "infinite"),
        (-math.inf, "infinite"),
    ],
)
def test_one_bad_value_is_counted_and_left_out(
    bad: float, cause: str, wait: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(4, 2, 3) + 0.5
    x[1, 0, 2] = bad
    if not wait:
        generally(monkeypatch)
    record = cdf.update(cdf.init((2, 3)), x)
    assert counts_of(record) == Counts(23, **{cause: 1})
    assert record.zeros.tolist() == [[0, 0, int(bad == 0)], [0, 0, 0]]
    assert record.count.tolist() == [[4, 4, 3], [4, 4, 4]]
    for module, shape in ((min_max, ()), (normal, (2, 3))):
        record = module.update(module.init(shape), x)
        assert counts_of(record) == (Counts(24) if math.isfinite(bad) else Counts(23, **{cause: 1}))
    # A sample that does not take part is not counted at all.
    where = torch.tensor([True, False, True, True])
    for module, shape in ((cdf, (2, 3)), (normal, (2, 3)), (min_max, ())):
        assert counts_of(module.update(module.init(shape), x, where=where)) == Counts(18)


@pytest.mark.clause("S3")
def test_a_subnormal_score_has_a_logarithm() -> None:
    least = 2.0**-149
    x = torch.tensor([least, 1.0])
    for where in (None, torch.tensor([True, True])):
        record = cdf.update(cdf.init(), x, where=where)
        assert counts_of(record) == Counts(2)
        assert float(record.mean) == pytest.approx(math.log(least) / 2, rel=1e-12)


@pytest.mark.clause("T5")
@pytest.mark.parametrize("size", [16, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.int8, torch.uint8], ids=str)
def test_pixels_labelled_below_zero_are_ignored(
    size: int, dtype: torch.dtype, tiles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.from_numpy(RNG.normal(size=(6, 1, 5, 7))).float()
    labels = torch.from_numpy(RNG.integers(-1 if dtype.is_signed else 0, 3, size=(6, 5, 7))).to(dtype)
    if dtype.is_floating_point:
        labels[2, :, 3] = math.nan
    mine, where = (labels >= 0).reshape(x.shape), torch.tensor([True, True, False, True, True, True])
    taken = mine & where.reshape(-1, 1, 1, 1)
    expected = threshold.update(threshold.init(), x[taken], labels.reshape(x.shape)[taken] > 0)
    assert int(expected.normal.sum()) + int(expected.anomalous.sum()) == int(taken.sum())
    tiles(size)
    for _ in range(2):
        found = threshold.update(threshold.init(), x, labels, where=where)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        generally(monkeypatch)


@pytest.mark.clause("T5")
@pytest.mark.parametrize("extra", [[], [math.nan], [-math.inf], [math.inf], [-math.nan, 3.4e38, -3.4e38]], ids=str)
def test_bins_of_tiles_and_of_the_whole(extra: list[float], tiles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [*extra, 0.0, -0.0, 1e-45, -1e-45, -1.0, 1.0, -0.5, 3e38, -3e38, *RNG.normal(size=200)]
    x = torch.tensor(values, dtype=torch.float32)
    labels = torch.from_numpy(RNG.random(len(x)) < 0.3)
    tiles(32)
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
def test_every_pixel_counts_once(shape: tuple[int, ...], size: int, tiles: Any) -> None:
    x = torch.from_numpy(np.asarray(RNG.normal(size=shape), dtype="f4"))
    tiles(size)
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
    x = torch.stack([low, t, high]).repeat(_tiles.TILE)
    found = [
        min_max.normalize(x, t, at - 1.0, at + 3.0),
        min_max.normalize(x, t, -3e38, 3e38),
        two_slope.normalize(x, t, at - 1.0, at + 3.0),
        cdf.normalize_standardized(x, t),
    ]
    if float(t) > 0:
        found += [cdf.normalize(x, t, 0.0, std) for std in (0.25, 1.25, 6.0)]
    for u in found:
        assert (u.reshape(-1, 3) < 0.5).all(0).tolist() == [True, False, False]
        assert (u.reshape(-1, 3)[:, 1] == 0.5).all()


@pytest.mark.clause("N9")
@pytest.mark.parametrize("name", ["min-max", "two slopes", "CDF", "CDF, wide", "CDF, very wide"])
def test_another_default_device_changes_nothing(name: str, tiles: Any) -> None:
    x = torch.rand(300) + 0.5
    expected = KERNELS[name](x)
    tiles(64)
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
        found = [kernels.normalize(x, t, at - 1.0, at + 1.0) for kernels in (min_max, two_slope)]
        found += [min_max.normalize(x, t, t, t), cdf.normalize_standardized(x, t)]
        if at > 0.0:
            found += [cdf.normalize(x, t, 0.0, std) for std in (0.25, 1.25, 6.0)]
        for u in found:
            assert (u >= 0.5).tolist() == [False, True, True]
            assert u[1] == 0.5
    finally:
        torch.set_flush_denormal(False)
