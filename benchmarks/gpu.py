"""Normalize and decide on a GPU, against the bandwidth of a copy. Prints a table; needs PyTorch or JAX with a GPU.

``python benchmarks/gpu.py torch`` or ``jax``.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

IMAGES, SIDE = 256, 512
BYTES = IMAGES * SIDE * SIDE * 4
MOVED = BYTES * 2 + BYTES // 4  # scores read, normalized scores and masks written
ROUNDS, IN_FLIGHT = 20, 20


def normalizers(cls: Any) -> dict[str, Any]:
    """One of each method, made by a package's ``Normalizer``."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(-0.1, 0.1, (SIDE, SIDE)).astype(np.float32)
    std = rng.uniform(0.2, 0.6, (SIDE, SIDE)).astype(np.float32)
    return {
        "min-max": cls.min_max((0.0, 2.0), (0.0, 2.0), threshold=1.0),
        "two-slope": cls.of("two-slope", (0.0, 2.0), (0.0, 2.0), threshold=0.7),
        "cdf": cls.cdf((0.0, 0.3), (mean, std), threshold=1.0),
    }


def seconds(run: Callable[[], Any], wait: Callable[[Any], None]) -> tuple[float, float]:
    """Of one call among many that are on their way, and of one that is waited for: the fastest."""
    wait(run())
    flowing, alone = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(IN_FLIGHT):
            result = run()
        wait(result)
        flowing.append((time.perf_counter() - start) / IN_FLIGHT)
        start = time.perf_counter()
        wait(run())
        alone.append(time.perf_counter() - start)
    return min(flowing), min(alone)


def report(name: str, times: tuple[float, float], moved: int, copy: float | None = None) -> float:
    """Print a row and return the bandwidth in bytes a second."""
    flowing, alone = times
    bandwidth = moved / flowing
    share = "" if copy is None else f"   {bandwidth / copy:6.1%} of the copy's"
    row = f"{name:28s} {flowing * 1e3:8.3f} ms   {bandwidth / 1e9:7.0f} GB/s{share:24s}"
    print(f"{row}   {alone * 1e3:8.3f} ms waited for", flush=True)
    return bandwidth


def with_torch() -> None:
    """Eager, compiled and replayed as a CUDA graph."""
    import torch

    from anomnorm_torch import Normalizer

    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}; {IMAGES} maps of {SIDE}x{SIDE} float32")
    torch.set_grad_enabled(False)
    maps = torch.rand(IMAGES, 1, SIDE, SIDE, device="cuda") * 2 + 0.05
    scores = torch.rand(IMAGES, device="cuda") + 0.05
    target = torch.empty_like(maps)

    def wait(_: Any) -> None:
        torch.cuda.synchronize()

    copy = report("copy", seconds(lambda: target.copy_(maps), wait), 2 * BYTES)
    for name, normalizer in normalizers(Normalizer).items():
        on_gpu = normalizer.cuda()
        report(f"{name}, eager", seconds(lambda n=on_gpu: n(scores, maps), wait), MOVED, copy)
        compiled = torch.compile(on_gpu)
        compiled(scores, maps)
        report(f"{name}, compiled", seconds(lambda n=compiled: n(scores, maps), wait), MOVED, copy)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            compiled(scores, maps)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            compiled(scores, maps)
        report(f"{name}, compiled, CUDA graph", seconds(lambda g=graph: g.replay(), wait), MOVED, copy)


def with_jax() -> None:
    """Jitted."""
    import jax
    import jax.numpy as jnp

    from anomnorm_jax import Normalizer

    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}; {IMAGES} maps of {SIDE}x{SIDE} float32")
    maps = jax.random.uniform(jax.random.key(0), (IMAGES, 1, SIDE, SIDE)) * 2 + 0.05
    scores = jax.random.uniform(jax.random.key(1), (IMAGES,)) + 0.05

    def wait(result: Any) -> None:
        jax.block_until_ready(result)

    copied = jax.jit(jnp.copy)
    wait(copied(maps))
    copy = report("copy", seconds(lambda: copied(maps), wait), 2 * BYTES)
    for name, normalizer in normalizers(Normalizer).items():
        call = jax.jit(lambda n, s, m: n(s, m))
        wait(call(normalizer, scores, maps))
        report(f"{name}, jitted", seconds(lambda n=normalizer, c=call: c(n, scores, maps), wait), MOVED, copy)


if __name__ == "__main__":
    (with_jax if sys.argv[1:] == ["jax"] else with_torch)()
