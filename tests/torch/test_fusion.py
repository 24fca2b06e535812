"""Compiled, a map goes through memory once or twice, however many operations it takes. No GPU is needed to see that."""

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor
from torch._inductor import metrics
from torch._inductor.utils import run_and_get_code

from anomnorm_torch import Normalizer, cdf, min_max, normal, threshold, two_slope
from anomnorm_torch._normal import _log_ratio_of_bits, ndtr
from anomnorm_torch._tiles import TELLS_EXPORTS

pytestmark = pytest.mark.xdist_group("inductor")  # a process needs seconds to begin compiling

RNG = np.random.default_rng(61)
KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "min-max": min_max.normalize,
    "two slopes": two_slope.normalize,
    "z": lambda x, _, mean, std: cdf.standardize(x, mean, std),
    "CDF": cdf.normalize,
    "normal": normal.normalize,
}
EVERY_KERNEL = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel, id=name, marks=[] if name in ("two slopes", "CDF") else pytest.mark.full)
        for name, kernel in KERNELS.items()
    ],
)


@pytest.fixture
def compiler() -> Iterator[None]:
    """One that has compiled nothing yet, so that what it makes can be counted."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False):
        metrics.reset()
        yield


@EVERY_KERNEL
@pytest.mark.usefixtures("compiler")
def test_the_compiler_makes_few_kernels(kernel: Callable[..., Tensor]) -> None:
    arguments = (torch.rand(2, 1, 16, 16) + 0.5, torch.tensor(1.0), torch.tensor(0.5), torch.tensor(2.0))
    found = torch.compile(kernel, fullgraph=True, dynamic=False)(*arguments)
    # The widths of two slopes, which are numbers, have one of their own; a logarithm and an exponential have one each,
    # where compiled programs can be told from exported ones.
    two = KERNELS["two slopes"], *([KERNELS["CDF"]] if TELLS_EXPORTS else [])
    assert metrics.generated_kernel_count == (2 if kernel in two else 1)
    torch.testing.assert_close(found, kernel(*arguments), rtol=0, atol=2.0**-20)


@pytest.mark.usefixtures("compiler")
def test_two_kernels_would_be_noticed() -> None:
    torch.compile(lambda x: x / x.sum().log(), fullgraph=True, dynamic=False)(torch.rand(2, 16) + 0.5)
    assert metrics.generated_kernel_count > 1


@pytest.mark.usefixtures("compiler")
def test_masks_are_made_beside_the_kernel_of_a_map() -> None:
    """Inductor stores booleans one by one, and slows down the whole kernel with them."""
    normalizer = Normalizer.cdf((0.1, 0.4), (torch.zeros(16, 16), torch.full((16, 16), 0.3)), threshold=1.0)
    scores, maps = torch.rand(16) + 0.5, torch.rand(16, 16, 16) + 0.5
    found, programs = run_and_get_code(torch.compile(normalizer, fullgraph=True, dynamic=False), scores, maps)
    code = "\n".join(programs)
    assert code.count("torch.ops.anomnorm.flag.default(") == 2  # of scores and of maps
    kernels = [part.split("'''")[0] for part in code.split('extern "C"')[1:]]
    logarithms, exponentials = ([kernel.count(name) for kernel in kernels] for name in (".log()", ".exp2()"))
    assert sum(logarithms) == sum(exponentials) == 2  # of scores and of maps, and none of numbers one by one
    assert not any(both for both in map(min, logarithms, exponentials))  # see `apart`
    pointers = " ".join(re.findall(r"void\s+kernel\((.*?)\)", code, flags=re.DOTALL))
    assert set(re.findall(r"(\w+) *\*", pointers)) == {"float"}
    expected = normalizer(scores, maps)
    assert torch.equal(found["pred_masks"], expected["pred_masks"])
    assert 0 < found["pred_masks"].sum() < maps.numel()


def test_masks_of_maps_whose_memory_is_in_another_order() -> None:
    maps = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for x in (maps, maps.permute(0, 3, 1, 2), maps[:, ::2]):
        found = torch.compile(lambda x, t: threshold.flag(x, t), fullgraph=True)(x, torch.tensor(0.5))
        assert torch.equal(found, x >= 0.5)
        torch.library.opcheck(torch.ops.anomnorm.flag.default, (x, torch.tensor(0.5)))


@EVERY_KERNEL
@pytest.mark.usefixtures("compiler")
def test_another_number_compiles_nothing_anew(kernel: Callable[..., Tensor]) -> None:
    x = torch.rand(2, 16) + 0.5
    compiled = torch.compile(kernel, fullgraph=True)
    compiled(x, 1.25, 0.5, 2.5)
    found = [compiled(x, *numbers) for numbers in ((1.375, 0.625, 2.25), (0.7, -0.9, 1.1), (0.9, 0.1, 0.3))]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += [compiled(x, *numbers) for numbers in ((1.1, 0.2, 2.3), (0.8, -0.3, 1.7))]
    torch.testing.assert_close(found[-1], kernel(x, 0.8, -0.3, 1.7), rtol=0, atol=2.0**-20)


def several(x: Tensor, t: Tensor, mean: Tensor, std: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """All normalized scores, and the normal distribution."""
    return (*normalized(x, t, mean, std), ndtr(z))


def normalized(x: Tensor, t: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, ...]:
    low, high = mean - 1.0, mean + std
    return cdf.normalize(x, t, mean, std), min_max.normalize(x, t, low, high), two_slope.normalize(x, t, low, high)


@pytest.mark.clause("N3", "N4", "N5", "N6", "N13")
def test_compiled_results_are_as_accurate_as_eager_ones() -> None:
    program = torch.compile(several, fullgraph=True, dynamic=True)
    every_z = torch.linspace(-14, 6, 200_001)
    special_values = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0], dtype="f4")
    for std in np.array([3.5e-4, 0.05, 0.7, 1.5, 5.0, 80.0], dtype="f4"):
        for t in np.array([1e-30, 0.37, 1.0, 1.9999999, 1e10, 1e30], dtype="f4"):
            z = np.concatenate([RNG.uniform(-9, 9, 2000), RNG.normal(size=2000)])
            with np.errstate(over="ignore", under="ignore"):
                x = (np.float64(t) * np.exp(z * std)).astype("f4")
            beside = np.arange(-300, 301, dtype="i4") + t.view("i4")
            x = np.sort(np.concatenate([x[np.isfinite(x) & (x > 1.2e-38)], beside.view("f4")]))
            given = map(torch.tensor, (np.concatenate([x, special_values]), t, np.float32(0.3), std))
            *found, distribution = (each.numpy() for each in program(*given, every_z))
            wide = x.astype("f8")
            near = np.log1p(np.maximum((wide - t) / t, -0.9))
            log = np.where(np.abs(wide / t - 1) < 0.5, near, np.log(wide) - np.log(np.float64(t)))
            u = found[0][: len(x)]
            assert np.abs(u - special.ndtr(log / np.float64(std))).max() <= 2.0**-23
            # No compiler promises that its exponential is in order.
            assert (-np.diff(u)).max() <= 2.0**-24
            for each in found:
                assert ((each[: len(x)] >= 0.5) == (x >= t)).all()
                nothing, highest, *lowest = each[len(x) :].tolist()
                assert np.isnan(nothing)
                assert [highest, lowest[0]] == [1.0, 0.0]
            assert found[0][-2:].tolist() == [0.0, 0.0]
    assert np.abs(distribution - special.ndtr(every_z.double().numpy())).max() <= 0.75 * 2.0**-23
    assert (-np.diff(distribution)).max() <= 2.0**-24


LARGEST, SMALLEST = float(np.finfo("f4").max), float(np.finfo("f4").smallest_normal)


@pytest.mark.clause("N1", "N1b", "N4", "N7", "N13")
def test_traced_slopes_of_the_largest_and_smallest_ranges() -> None:
    """Differences may be infinite or have no digits left, and so may what they are divided by."""

    def kernels(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        return min_max.normalize(*arguments), two_slope.normalize(*arguments)

    program = torch.compile(kernels, fullgraph=True, backend="eager")
    large, small = (-LARGEST, -0.7 * LARGEST), (SMALLEST, 1.5 * SMALLEST)
    ranges = [(large[0], LARGEST), (large[1], LARGEST), (0, 1), (0, 1e-30), (1, 1), (1e-35, 1e-35), small]
    for low, high in np.array(ranges, "f4").tolist():
        inside = np.linspace(low, high, 2001).astype("f4")
        for t in np.array([low, 0.9 * low + 0.1 * high, low / 2 + high / 2, 0.0, 1e-36, 1.0, 1e30], "f4"):
            beside = (t.view("i4") + np.arange(-20, 21, dtype="i4")).view("f4")
            x = np.concatenate([inside, beside[np.isfinite(beside)], [-np.inf, np.inf]], dtype="f4")
            found = program(*map(torch.tensor, (x, t, low, high)))
            distance, bottom, top = x.astype("f8") - float(t), float(t) - low, high - float(t)
            span = high - low
            sides = [2 * side if 20 * side >= span > 0 else span for side in (bottom, top)]
            for u, width in zip(found, (span, np.where(distance < 0, *sides)), strict=True):
                with np.errstate(divide="ignore", invalid="ignore"):
                    expected = np.where(distance == 0, 0.5, (distance / width + 0.5).clip(0, 1))
                # Numbers below the smallest normal one may count as zero.
                usual = (np.abs(x) >= SMALLEST) | (x == 0)
                assert np.abs(u.numpy() - expected)[usual].max() <= 2.0**-23, (low, high, t)
                assert np.array_equal(u.numpy() >= 0.5, x >= t)


@pytest.mark.parametrize("kernel", [KERNELS["min-max"], KERNELS["CDF"]], ids=["min-max", "CDF"])
def test_programs_of_what_torch_func_makes(kernel: Callable[..., Tensor]) -> None:
    x, given = torch.rand(2, 8) + 0.5, (torch.tensor(1.0), torch.tensor(0.5), torch.tensor(2.0))
    for transformed in (torch.func.vmap(kernel, (0, None, None, None)), torch.func.grad(lambda *a: kernel(*a).sum())):
        found = torch.compile(transformed, fullgraph=True, backend="eager")(x, *given)
        torch.testing.assert_close(found, transformed(x, *given), rtol=0, atol=2.0**-20)


@pytest.mark.clause("N3", "N4", "N6", "N13")
@pytest.mark.parametrize("t", [2.0**-126, 1.2 * 2.0**-126, 7e-20, 1.0, 1.3, 1.4999999, 1.5, 5e12, 3.3e38])
def test_logarithms_by_integers_keep_the_digits_of_differences(t: float) -> None:
    """What programs for GPUs compute: it is the same operation by operation, and has no other on a CPU."""
    at, info = np.float32(t), np.finfo("f4")
    bits = np.concatenate([RNG.integers(0x00800000, 0x7F800000, 100_000), at.view("i4") + np.arange(-50_000, 50_000)])
    x = np.unique(bits.clip(0x00800000, 0x7F7FFFFF)).astype("i4").view("f4")
    found = _log_ratio_of_bits(torch.from_numpy(x), torch.tensor(at)).numpy()
    distance = (x.astype("f8") - float(at)) / float(at)
    exact = np.where(
        np.abs(distance) < 0.5, np.log1p(distance.clip(-0.9, 0.9)), np.log(x.astype("f8")) - np.log(float(at))
    )
    assert np.all(np.abs(found - exact) <= 3.5 * 2.0**-24 * np.abs(exact))
    assert np.array_equal(found >= 0, x >= at)
    assert found[x == at].tolist() == [0.0]
    assert np.all(np.diff(found) >= 0)
    special_values = torch.tensor([np.nan, np.inf, -np.inf, 0.0, -1.0, info.smallest_normal / 2])
    expected = [np.nan, np.inf, *[-np.inf] * 4]
    np.testing.assert_array_equal(_log_ratio_of_bits(special_values, torch.tensor(at)).numpy(), expected)


@pytest.mark.clause("N1", "N1b", "N3")
def test_compiled_derivatives() -> None:
    t = torch.tensor(1.5)
    x = torch.stack([t, *(torch.nextafter(t, torch.tensor(side)) for side in (0.0, 9.0))])
    x = torch.cat([x, torch.tensor([0.2, 0.9, 1.4, 1.6, 2.2, 9.0, 0.0, -1.0, torch.inf, -torch.inf, 3e38])])
    # What derivatives are made of is decided before Inductor, which would take long for a program of this size.
    compiled = torch.compile(normalized, fullgraph=True, dynamic=True, backend="aot_eager")
    found = []
    for call in (compiled, normalized):
        given = [value.clone().requires_grad_() for value in (x, t, torch.tensor(0.3), torch.tensor(2.0))]
        results = call(*given)
        found.append([*results, *torch.autograd.grad(torch.stack(results).sum(), given)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    # At the threshold: phi(0) / (T std), 1 / (max - min) and 1 / (2 (max - T)).
    expected = 0.3989423 / (1.5 * 2.0) + 1 / 3.0 + 1 / 1.6
    torch.testing.assert_close(found[0][3][0], torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "kernel",
    [
        KERNELS["z"],
        lambda x, t, mean, std: cdf.standardize(x, mean, std, t),
        lambda x, t, mean, std: cdf.denormalize(x / 2, t, mean, std),
    ],
    ids=["z", "z from a center", "raw score"],
)
def test_n9_a_constant_is_rounded_as_a_number_is(kernel: Callable[..., Tensor]) -> None:
    """Near a center of 0.1 a result shows whether 0.1 went into float64 with or without its rounding to float32."""
    x = torch.linspace(0.5, 2.0, 4100)
    compiled = torch.compile(kernel, fullgraph=True, dynamic=False)
    for numbers in ((1.0, 0.1, 6.0), (0.1, 0.7, 0.3)):
        torch.testing.assert_close(compiled(x, *numbers), kernel(x, *numbers), rtol=2.0**-22, atol=2.0**-30)
