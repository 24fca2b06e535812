"""Normalized scores of one CPU thread: as accurate as promised, on the right side of 1/2, and in order.

On a CPU eager kernels are made for the numbers given (``specializes``); devices, compilers and derivatives see the
general ones. Both are compared here with float64, which 50 digits check.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from anomnorm_core import two_slope as core_two_slope
from anomnorm_torch import _kernels, cdf, min_max, normal, two_slope
from anomnorm_torch._normal import log_ratio, ndtr

RNG = np.random.default_rng(97)
UNIT = 2.0**-23  # clause N13, float32
STDS = (3.5e-4, 0.05, 0.5, 0.7, 0.71, 1.1, 1.5, 1.51, 4.0, 80.0)
THRESHOLDS = (1e-30, 0.37, 1.0, 1.9999999, 2.0, 1e10, 1e30)
TINY, LARGEST = (float(value) for value in (np.finfo("f4").tiny, np.finfo("f4").max))
DTYPES = pytest.mark.parametrize("dtype", ["f4", "f8"], ids=["float32", "float64"])


def phi_of(x: np.ndarray, t: float, std: float) -> np.ndarray:
    """Clause N3 in float64 or, for float64, in as many digits as NumPy has."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    x, t = x.astype(wide), wide(t)
    ratio = (x - t) / t
    near = np.abs(ratio) < 0.5
    log = np.where(near, np.log1p(np.where(near, ratio, 0.0)), np.log(x) - np.log(t))
    return special.ndtr((log / wide(std)).astype("f8"))


def ramp_of(x: np.ndarray, t: float, low: float, high: float, *, slopes: int) -> np.ndarray:
    """Clauses N1 and N1b in float64 or more."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    x, t, low, high = x.astype(wide), wide(t), wide(low), wide(high)
    width = np.full_like(x, high - low)
    if slopes == 2:
        for side, there in ((t - low, x < t), (high - t, x >= t)):
            if side > 0 and 20 * side >= high - low:
                width[there] = 2 * side
    return np.clip((x - t) / width + 0.5, 0.0, 1.0).astype("f8")


def neighbours(t: Any, count: int) -> np.ndarray:
    """The numbers next to a positive or negative one, in the order of their bits."""
    bits = np.asarray(t).view(f"i{np.asarray(t).itemsize}")
    return np.arange(bits - count, bits + count + 1, dtype=bits.dtype).view(np.asarray(t).dtype)


def log_normal(t: Any, std: float) -> np.ndarray:
    """Scores around a threshold, and all within 300 steps of it, in order."""
    z = np.concatenate([RNG.uniform(-9, 9, 3000), RNG.normal(size=3000)])
    with np.errstate(over="ignore", under="ignore"):
        x = (np.float64(t) * np.exp(z * std)).astype(t.dtype)
    return np.sort(np.concatenate([x[np.isfinite(x) & (x >= TINY)], neighbours(t, 300)]))


def specialized(kernels: Any, x: np.ndarray, *numbers: float) -> tuple[str, np.ndarray]:
    """The name of the kernel for the CPU, and its results without any repair."""
    scores, t, *others = (torch.from_numpy(np.asarray(value, dtype=x.dtype)) for value in (x, *numbers))
    function, coefficients = _kernels.specialized(kernels, t, *others)
    out = torch.empty_like(scores)
    function(scores, t, *coefficients, out=out)
    return getattr(function, "func", function).__name__, out.numpy()


def general(kernels: Any, x: np.ndarray, *numbers: float) -> np.ndarray:
    """What a device gives."""
    scores, t, *others = (torch.from_numpy(np.asarray(value, dtype=x.dtype)) for value in (x, *numbers))
    return _kernels.repaired(kernels.unit(scores, t, *others), scores >= t).numpy()


def check(u: np.ndarray, expected: np.ndarray, x: np.ndarray, t: float) -> None:
    bound = UNIT if x.dtype == np.float32 else 8 * 2.0**-52
    assert np.abs(u.astype("f8") - expected).max() <= bound
    assert ((u >= 0.5) == (x >= t)).all()
    assert (u[x == t] == 0.5).all()
    assert (np.diff(u) >= 0).all()
    assert u.min() >= 0.0
    assert u.max() <= 1.0


@pytest.mark.clause("N3", "N13")
def test_the_expected_numbers_are_right() -> None:
    for t, std in ((np.float32(0.37), 0.05), (np.float32(1e30), 80.0), (np.float32(2.0), 1.0)):
        x = log_normal(t, std)[::100]
        exact = [mpmath.ncdf(mpmath.log(mpmath.mpf(float(v)) / mpmath.mpf(float(t))) / mpmath.mpf(std)) for v in x]
        np.testing.assert_allclose(phi_of(x, t, std), np.array(exact, dtype="f8"), rtol=0, atol=2.0**-50)


@pytest.mark.clause("N3", "N4", "N5", "N13")
@DTYPES
def test_the_cdf_of_raw_scores(dtype: str) -> None:
    used = {}
    for std in np.array(STDS, dtype=dtype):
        for t in np.array(THRESHOLDS, dtype=dtype):
            x = log_normal(t, float(std))
            expected = phi_of(x, t, std)
            used[float(std)], found = specialized(cdf.KERNELS, x, t, 0.3, std, 0.3)
            check(found, expected, x, t)
            check(general(cdf.KERNELS, x, t, 0.3, std, 0.3), expected, x, t)
    assert set(used.values()) == {"_near", "_near_pushed", "_anywhere"}


@pytest.mark.clause("N3", "N13", "N4")
def test_the_widest_pixel_decides_which_kernel_is_accurate() -> None:
    std, t = np.array([0.1, 0.3, 5.0], dtype="f4"), np.array([0.5, 1.0, 1e-20], dtype="f4")
    x = np.stack([log_normal(*pair)[-4000:] for pair in zip(t, std, strict=True)], 1)
    u = cdf.normalize(*map(torch.from_numpy, (x, t, np.zeros(3, dtype="f4"), std))).numpy()
    for i in range(3):
        check(u[:, i], phi_of(x[:, i], t[i], std[i]), x[:, i], t[i])


@pytest.mark.clause("N1", "N1b", "N4", "N5", "N13")
@DTYPES
@pytest.mark.parametrize("kernels", [min_max, two_slope], ids=["min-max", "two slopes"])
def test_ranges(kernels: Any, dtype: str) -> None:
    for _ in range(60):
        scale = 10 ** RNG.uniform(-30, 30)
        t, low, high = (RNG.normal(size=3) * scale * 10 ** RNG.uniform(-2, 2, size=3)).astype(dtype)
        low, high = min(low, high), max(low, high)
        x = t + (RNG.uniform(-0.6, 0.6, 3000) * (np.float64(high) - low)).astype(dtype)
        x = np.sort(np.concatenate([x, neighbours(t, 300)]))
        expected = ramp_of(x, t, low, high, slopes=2 if kernels is two_slope else 1)
        name, found = specialized(kernels.KERNELS, x, t, low, high)
        assert name == "_clip"
        check(found, expected, x, t)
        check(general(kernels.KERNELS, x, t, low, high), expected, x, t)


@pytest.mark.clause("N1", "N1b", "N4", "N13")
@pytest.mark.parametrize("kernels", [min_max, two_slope], ids=["min-max", "two slopes"])
@pytest.mark.parametrize(
    ("t", "low", "high"),
    [(1.5, -3e38, 3e38), (3e38, -3e38, 3.2e38), (1e-37, 1e-37, 1.1e-37), (1e-38, -3e-38, 2e-37), (2.0, -1e38, 1e38)],
)
def test_ranges_of_the_largest_and_smallest_numbers(kernels: Any, t: float, low: float, high: float) -> None:
    x = np.concatenate([neighbours(np.float32(t), 300), np.linspace(low / 2, high / 2, 500, dtype="f8") * 2])
    x = np.sort(x.astype("f4"))
    numbers = np.array([t, low, high], dtype="f4")
    expected = ramp_of(x, *numbers, slopes=2 if kernels is two_slope else 1)
    u = kernels.normalize(torch.from_numpy(x), *map(float, numbers)).numpy()
    # Differences below the smallest normal number may count as zero.
    assert np.abs(u - expected).max() <= UNIT + TINY / (float(numbers[2]) - float(numbers[1]))
    assert ((u >= 0.5) == (x >= numbers[0])).all()
    assert (np.diff(u) >= 0).all()


@pytest.mark.clause("N1b", "P2")
@pytest.mark.parametrize(("t", "high"), [(0.35, 7.0), (0.05, 1.0), (6.65, 7.0), (0.15, 3.0), (5.0, 100.0), (1.3, 26.0)])
def test_all_packages_agree_which_side_is_too_short(t: float, high: float) -> None:
    """A twentieth of the range, up to the rounding of the threshold, which decides."""
    x = np.linspace(0.0, high, 200, dtype="f4")
    expected = core_two_slope.normalize(x, t, 0.0, high)
    for numbers in ((t, 0.0, high), (torch.tensor([t]), 0.0, high)):  # the specialized kernel, and the general one
        u = two_slope.normalize(torch.from_numpy(x), *numbers)
        np.testing.assert_allclose(u.numpy(), expected, rtol=0, atol=UNIT)


@pytest.mark.clause("N7")
@pytest.mark.parametrize("t", [TINY, 1e-33, 1e-20, 1.0, 1e30, -1e-33, -1.0])
def test_a_step_is_one_beside_every_threshold(t: float) -> None:
    x = np.concatenate([[-LARGEST], neighbours(np.float32(t), 3), [LARGEST]]).astype("f4")
    x = np.sort(x[(np.abs(x) >= TINY)])
    expected = np.where(x == np.float32(t), 0.5, (x > np.float32(t)).astype("f4"))
    cases: list[tuple[Any, tuple[float, ...]]] = [(min_max.KERNELS, (1.0, 1.0)), (min_max.KERNELS, (0.0, 0.0))]
    assert two_slope.normalize(torch.from_numpy(x), t, t, t).tolist() == expected.tolist()
    cases += [(normal.KERNELS, (0.5, 0.0, 0.5)), (normal.KERNELS, (-3.0, 1e-7, 3.0)), (normal.KERNELS, (0.0, 0.0, 0.0))]
    if t > 0:
        cases += [(cdf.KERNELS, (0.5, 0.0, 0.5)), (cdf.KERNELS, (3.0, 1e-7, 3.0)), (cdf.KERNELS, (-80.0, 1e-5, 0.0))]
    for kernels, numbers in cases:
        assert specialized(kernels, x, t, *numbers)[1].tolist() == expected.tolist()
        assert general(kernels, x, t, *numbers).tolist() == expected.tolist()


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, -1e-30, -LARGEST, LARGEST]
FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "min-max": lambda x, t: min_max.normalize(x, t, -1.0, 1.0),
    "min-max, constant": lambda x, t: min_max.normalize(x, t, 1.0, 1.0),
    "two slopes": lambda x, t: two_slope.normalize(x, t, -1.0, 1.0),
    "two slopes, constant": lambda x, t: two_slope.normalize(x, t, t, t),
    "CDF": lambda x, t: cdf.normalize(x, t, 0.0, 0.25),
    "CDF, wide": lambda x, t: cdf.normalize(x, t, 0.0, 1.25),
    "CDF, very wide": lambda x, t: cdf.normalize(x, t, 0.0, 2.0),
    "CDF, constant": lambda x, t: cdf.normalize(x, t, 0.0, 0.0),
    "normal": lambda x, t: normal.normalize(x, t, 0.0, 1e-30),
    "normal, wide": lambda x, t: normal.normalize(x, t, 0.0, 1e31),
    "normal, constant": lambda x, t: normal.normalize(x, t, -9.0, 1e-7),
}
EVERY_FUNCTION = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@pytest.fixture(params=["cpu", "device"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Eager on a CPU, or as on any other device."""
    if request.param == "device":
        monkeypatch.setattr(_kernels, "is_readable", lambda *_: False)
    return str(request.param)


@pytest.mark.clause("N6")
@EVERY_FUNCTION
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("t", [1e-30, 0.5, 1e30])
def test_special_values(function: Any, dtype: torch.dtype, t: float, where: str) -> None:
    u = function(torch.tensor(SPECIAL).to(dtype), t)
    assert u.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    nothing, highest, lowest = u[:3].tolist()
    assert math.isnan(nothing)
    assert (highest, lowest) == (1.0, 0.0)
    assert not u[1:].isnan().any()
    assert (u[3:-1] < 0.5).all()
    if function.__code__.co_names[0] == "cdf":
        assert (u[3:-1] == 0.0).all()


@pytest.mark.clause("N3b", "N13")
def test_differences_beyond_the_largest_number(where: str) -> None:
    x = torch.tensor([-LARGEST, -1e38, 0.0, 1e38, LARGEST])
    for at, std in ((2e38, 3e38), (-3.4e38, 2.0**127)):
        exact = (x.double().numpy() - float(np.float32(at))) / float(np.float32(std))
        np.testing.assert_allclose(normal.standardize(x, at, std).numpy(), exact, rtol=4e-7)
        u = normal.normalize(x, at, 0.0, std).numpy()
        np.testing.assert_allclose(u, special.ndtr(exact), rtol=0, atol=UNIT)


@pytest.mark.clause("N9")
@EVERY_FUNCTION
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scores_stay_as_they_are(function: Any, dtype: torch.dtype, where: str) -> None:
    x = torch.tensor([0.5, 2.0, -1.0, 0.0, math.inf], dtype=dtype)
    before = x.clone()
    function(x, 1.5)
    assert torch.equal(x, before)


# The normal distribution and the logarithm, as compilers see them


def written_out(function: Callable[..., Tensor], *arguments: Tensor, patch: pytest.MonkeyPatch) -> np.ndarray:
    with patch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        return function(*arguments).numpy()


def every_binade(count: int) -> np.ndarray:
    """``count`` positive float32 numbers of each size, the first and the last among them."""
    first = np.arange(1, 255, dtype="i4")[:, None] << 23
    places = np.concatenate([[0, 2**23 - 1], RNG.integers(0, 2**23, count - 2)]).astype("i4")
    return np.sort((first + places).reshape(-1).view("f4"))


@pytest.mark.clause("N3", "N5", "N13")
def test_our_own_normal_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = every_binade(60)
    z = np.unique(np.concatenate([-sizes, sizes, np.linspace(-14, 6, 400_001, dtype="f4"), [0.0]]).astype("f4"))
    u = written_out(ndtr, torch.from_numpy(z), patch=monkeypatch)
    exact = special.ndtr(z.astype("f8"))
    assert np.abs(u - exact).max() <= 0.75 * UNIT
    assert (-np.diff(u) <= np.spacing(u[:-1])).all()
    # The lower tail keeps its order, down to the smallest numbers.
    tail = (z < -3) & (z > -13)
    np.testing.assert_allclose(u[tail], exact[tail], rtol=2e-5)
    at_zero, at_minus_zero, *ends, nothing = written_out(
        ndtr, torch.tensor([0.0, -0.0, -math.inf, math.inf, math.nan]), patch=monkeypatch
    )
    assert at_zero == at_minus_zero == 0.5
    assert ends == [0.0, 1.0]
    assert math.isnan(nothing)


@pytest.mark.clause("N3", "N13")
def test_the_logarithm_of_a_ratio() -> None:
    x = np.concatenate([every_binade(8), *(neighbours(np.float32(t), 400) for t in THRESHOLDS)])
    for t in (TINY, *THRESHOLDS, LARGEST):
        near = np.abs(x.astype("f8") / np.float32(t) - 1) < 0.5
        expected = np.where(near, np.log1p(np.where(near, (x - np.float64(np.float32(t))) / np.float32(t), 0.0)), 0.0)
        expected = np.where(near, expected, np.log(x.astype("f8")) - np.log(np.float64(np.float32(t))))
        found = log_ratio(torch.from_numpy(x), torch.tensor(t)).numpy()
        bound = 3 * np.spacing(np.abs(expected).astype("f4"))
        assert (np.abs(found - expected) <= bound)[expected != 0].all()
        assert (found[x == np.float32(t)] == 0.0).all()
        limits = log_ratio(torch.tensor([math.nan, math.inf, 0.0, -1.0, -math.inf]), torch.tensor(t)).tolist()
        assert math.isnan(limits[0])
        assert limits[1:] == [math.inf, -math.inf, -math.inf, -math.inf]


@pytest.mark.clause("N4", "N13")
def test_a_kernel_of_any_accuracy_is_put_on_the_right_side() -> None:
    x, t = torch.linspace(0.0, 2.0, 20_001), torch.tensor(1.0)
    u = torch.rand(20_001).pow(4)
    for wrong in (u, u.clone().requires_grad_()):
        right = _kernels.repaired(wrong, x >= t)
        assert torch.equal(right >= 0.5, x >= t)
        same = (wrong >= 0.5) == (x >= t)
        assert torch.equal(right[same], wrong[same])


def test_a_method_that_exchanges_the_unit_of_another_gets_its_own() -> None:
    def steep(x: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(40.0 * (x - t))

    x = torch.linspace(0.0, 2.0, 9)
    u, _ = _kernels.scored(dataclasses.replace(min_max.KERNELS, unit=steep), x, 1.0, (0.0, 2.0))
    torch.testing.assert_close(u, torch.sigmoid(40.0 * (x - 1.0)))
