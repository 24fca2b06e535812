"""Compiled, a map goes through memory once, however many operations its formula has. No GPU is needed to see that."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor import metrics

from anomnorm_torch import cdf, min_max

pytestmark = pytest.mark.xdist_group("inductor")  # a process needs seconds to begin compiling

KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "min-max": min_max.normalize,
    "z": lambda x, _, mean, std: cdf.standardize(x, mean, std),
    "CDF of z": lambda x, t, *_: cdf.normalize(x, t),
    "CDF": lambda x, t, mean, std: cdf.normalize(cdf.standardize(x, mean, std), t),
}
# The CDF contains the other two.
EVERY_KERNEL = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel, id=name, marks=[] if name in ("min-max", "CDF") else pytest.mark.full)
        for name, kernel in KERNELS.items()
    ],
)


@EVERY_KERNEL
def test_the_compiler_makes_one_kernel(kernel: Callable[..., Tensor]) -> None:
    arguments = (torch.rand(2, 1, 16, 16) + 0.5, torch.tensor(1.0), torch.tensor(0.5), torch.tensor(2.0))
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False):
        metrics.reset()
        found = torch.compile(kernel, fullgraph=True, dynamic=False)(*arguments)
    assert metrics.generated_kernel_count == 1
    torch.testing.assert_close(found, kernel(*arguments), rtol=0, atol=2.0**-20)


def test_two_kernels_would_be_noticed() -> None:
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False):
        metrics.reset()
        torch.compile(lambda x: x / x.sum().log(), fullgraph=True, dynamic=False)(torch.rand(2, 16) + 0.5)
    assert metrics.generated_kernel_count > 1


@EVERY_KERNEL
def test_another_number_compiles_nothing_anew(kernel: Callable[..., Tensor]) -> None:
    x = torch.rand(2, 16) + 0.5
    torch._dynamo.reset()
    with torch._inductor.config.patch(fx_graph_cache=False):
        compiled = torch.compile(kernel, fullgraph=True)
        compiled(x, 1.25, 0.5, 2.5)
        found = [compiled(x, *numbers) for numbers in ((1.375, 0.625, 2.25), (0.7, -0.9, 1.1), (0.9, 0.1, 0.3))]
        with torch._dynamo.config.patch(error_on_recompile=True):
            found += [compiled(x, *numbers) for numbers in ((1.1, 0.2, 2.3), (0.8, -0.3, 1.7))]
    torch.testing.assert_close(found[-1], kernel(x, 0.8, -0.3, 1.7), rtol=0, atol=2.0**-20)


@pytest.mark.parametrize(
    "kernel",
    [
        KERNELS["z"],
        lambda x, t, mean, std: cdf.standardize(x, mean, std, t),
        lambda x, t, mean, std: cdf.standardize_around(x, t, mean, std)[0],
        lambda x, t, mean, std: cdf.denormalize(x / 2, t, mean, std),
    ],
    ids=["z", "z from a centre", "z around", "raw score"],
)
def test_n9_a_constant_is_rounded_as_a_number_is(kernel: Callable[..., Tensor]) -> None:
    """Near a centre of 0.1 a result shows whether 0.1 went into float64 with or without its rounding to float32."""
    x = torch.linspace(0.5, 2.0, 4100)
    torch._dynamo.reset()
    compiled = torch.compile(kernel, fullgraph=True, dynamic=False)
    for numbers in ((1.0, 0.1, 6.0), (0.1, 0.7, 0.3)):
        torch.testing.assert_close(compiled(x, *numbers), kernel(x, *numbers), rtol=2.0**-22, atol=0)
