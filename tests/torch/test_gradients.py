"""Derivatives of normalized scores, for scores, thresholds and parameters: those of the formula, everywhere.

Also at the threshold itself, beside it, where a score has no logarithm, and where the result is clipped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomnorm_torch import Normalizer, _kernels, _tiles
from anomnorm_torch.methods import METHODS

INF, NAN, TINY = math.inf, math.nan, 1.2e-38
T = 1.5


def cdf_slopes(x: np.ndarray, t: float, _mean: float, std: float, _center: float) -> list[Any]:
    z = np.log(x / t) / std
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return [density / (x * std), -density / (t * std), 0.0 * z, -density * z / std, 0.0 * z]


def normal_slopes(x: np.ndarray, t: float, _mean: float, std: float, _center: float) -> list[Any]:
    with np.errstate(over="ignore"):
        z = (x - t) / std
        density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return [density / std, -density / std, 0.0 * z, -density * z / std, 0.0 * z]


def min_max_slopes(x: np.ndarray, t: float, low: float, high: float) -> list[Any]:
    share = (x - t) / (high - low)
    inside = np.abs(share) <= 0.5
    one = np.ones_like(x)
    return [each * inside / (high - low) for each in (one, -one, share, -share)]


def two_slope_slopes(x: np.ndarray, t: float, low: float, high: float) -> list[Any]:
    above = x >= t
    width = np.where(above, high - t, t - low)
    share = (x - t) / width
    inside = (np.abs(share) <= 1) / (2 * width)
    each = (1.0, np.where(above, share - 1, -1 - share), np.where(above, 0.0, share), np.where(above, -share, 0.0))
    return [factor * inside for factor in each]


@dataclass
class Case:
    """A method with numbers, and its slopes: for the score, the threshold and the arguments."""

    name: str
    arguments: tuple[float, ...]
    slopes: Callable[..., list[Any]]

    def __call__(self, x: Tensor, t: Tensor, *arguments: Tensor) -> Tensor:
        return _kernels.scored(METHODS[self.name], x, t, arguments)[0]

    def expected(self, x: np.ndarray, t: float = T) -> np.ndarray:
        """The slopes, one row for each argument; zero where a limit has been reached."""
        usual = np.isfinite(x) & (x > 0) if METHODS[self.name].method.positive else np.isfinite(x)
        found = self.slopes(np.where(usual, x, t), t, *self.arguments)
        return np.array([np.where(usual, np.broadcast_to(each, x.shape), 0.0) for each in found])


CASES = {
    "min-max": Case("min-max", (0.25, 4.25), min_max_slopes),
    "two slopes": Case("two-slope", (0.25, 4.25), two_slope_slopes),
    "CDF": Case("cdf", (0.5, 0.25, 0.5), cdf_slopes),
    "CDF, wide": Case("cdf", (0.5, 1.25, 0.75), cdf_slopes),
    "CDF, very wide": Case("cdf", (0.5, 6.0, 0.5), cdf_slopes),
    "normal": Case("normal", (0.5, 0.75, 0.5), normal_slopes),
}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def scores(dtype: torch.dtype) -> Tensor:
    t = torch.tensor(T, dtype=dtype)
    beside = [torch.nextafter(t, torch.tensor(side, dtype=dtype)) for side in (0.0, INF)]
    further = [0.3, 0.8, 1.0, 1.49, 1.51, 2.0, 2.7, 3.9, 0.1, 9.0, TINY, 3e38, 0.0, -1.0, -9.0, INF, -INF, NAN]
    return torch.cat([t[None], torch.stack(beside), torch.tensor(further, dtype=dtype)])


def inputs(case: Case, dtype: torch.dtype, x: Tensor | None = None) -> list[Tensor]:
    x = scores(dtype) if x is None else x
    return [x, torch.tensor(T, dtype=dtype), *(torch.tensor(number, dtype=dtype) for number in case.arguments)]


def backward(case: Case, given: list[Tensor], wanted: list[int]) -> list[Tensor]:
    """The derivative of the sum, leaving out NaN as a loss would."""
    given = [value.clone().requires_grad_(i in wanted) for i, value in enumerate(given)]
    u = case(*given)
    if not u.requires_grad:  # the centre of a CDF is in the threshold already
        return [torch.zeros_like(given[i]) for i in wanted]
    loss = u[u.isfinite()].sum()
    found = torch.autograd.grad(loss, [given[i] for i in wanted], allow_unused=True)
    return [torch.zeros_like(given[i]) if each is None else each for i, each in zip(wanted, found, strict=True)]


def close(found: Tensor, expected: Any, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype is torch.float64 else 2e-6
    torch.testing.assert_close(found, torch.as_tensor(expected).to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.clause("N1", "N1b", "N3")
def test_every_method_of_ours_is_here() -> None:
    assert {case.name for case in CASES.values()} == {"min-max", "two-slope", "cdf", "normal"} <= set(METHODS)


@pytest.mark.clause("N1", "N1b", "N3", "N6")
@EVERY_CASE
@DTYPES
def test_derivatives_for_everything_at_once(case: Case, dtype: torch.dtype) -> None:
    given = inputs(case, dtype)
    expected = case.expected(given[0].double().numpy())
    x_slope, *others = backward(case, given, list(range(len(given))))
    close(x_slope, expected[0], dtype)
    for found, each in zip(others, expected[1:], strict=True):
        close(found, each.sum(), dtype)


@pytest.mark.clause("N1", "N1b", "N3", "N6")
@EVERY_CASE
@DTYPES
def test_derivatives_for_one_thing_alone(case: Case, dtype: torch.dtype) -> None:
    """A formula that has no derivative for a score must not spoil that of the threshold either."""
    given = inputs(case, dtype)
    expected = case.expected(given[0].double().numpy())
    for position in range(len(given)):
        (found,) = backward(case, given, [position])
        close(found, expected[position] if position == 0 else expected[position].sum(), dtype)


@pytest.mark.clause("N1", "N1b", "N3", "N6")
@EVERY_CASE
@DTYPES
def test_forward_and_functional_derivatives(case: Case, dtype: torch.dtype) -> None:
    given = inputs(case, dtype)
    expected = case.expected(given[0].double().numpy())
    defined = ~given[0].isnan()
    for position in range(len(given)):

        def at(moved: Tensor, i: int = position) -> Tensor:
            return case(*given[:i], moved, *given[i + 1 :])

        _, slope = torch.func.jvp(at, (given[position],), (torch.ones_like(given[position]),))
        close(slope[defined], expected[position][defined], dtype)
        reverse = torch.func.grad(lambda moved, at=at: at(moved)[defined].sum())(given[position])
        close(reverse, expected[position] if position == 0 else expected[position].sum(), dtype)
    batched = torch.func.vmap(torch.func.grad(lambda x: case(x, *given[1:]).sum()))(given[0])
    close(batched[defined], expected[0][defined], dtype)


@pytest.mark.clause("N1", "N1b", "N3")
@EVERY_CASE
def test_central_differences(case: Case) -> None:
    given = inputs(case, torch.float64, torch.tensor([0.3, 0.8, 1.0, 1.4, 1.6, 2.0, 2.7], dtype=torch.float64))
    step = 1e-6
    for position, value in enumerate(given):
        with torch.no_grad():
            high, low = (case(*given[:position], value + way, *given[position + 1 :]) for way in (step, -step))
        expected = (high - low) / (2 * step)
        (found,) = backward(case, given, [position])
        close_to = expected if position == 0 else expected.sum()
        torch.testing.assert_close(found, close_to, rtol=1e-8, atol=1e-8)


@pytest.mark.clause("N3")
def test_second_derivatives() -> None:
    case, x = CASES["CDF"], torch.tensor([0.8, 1.4, 1.5, 1.7, 2.5], dtype=torch.float64)
    t, std = torch.tensor(T, dtype=torch.float64), 0.25
    curvature = torch.func.hessian(lambda x: case(*inputs(case, torch.float64, x)).sum())(x).diagonal()
    z = (x / t).log() / std
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(curvature, -density * (z + std) / (x * std) ** 2, rtol=1e-10, atol=1e-10)


@pytest.mark.clause("N1", "N1b", "N3")
@EVERY_CASE
@DTYPES
def test_large_tensors(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(0.2, 5.0, 300, dtype=dtype)
    monkeypatch.setattr(_tiles, "TILE", 16)
    given = inputs(case, dtype, x)
    expected = case.expected(x.double().numpy())
    x_slope, *others = backward(case, given, list(range(len(given))))
    close(x_slope, expected[0], dtype)
    for found, each in zip(others, expected[1:], strict=True):
        torch.testing.assert_close(found, torch.tensor(each.sum(), dtype=dtype), rtol=2e-5, atol=2e-5)


@pytest.mark.clause("N3", "N6")
@pytest.mark.parametrize("t", [1e-30, TINY, 1e30, 3e38])
def test_ratios_beyond_all_numbers(t: float) -> None:
    """A score over its threshold, or that over itself, is infinite in float32."""
    x = torch.tensor([TINY, 1e-30, 1.0, 1e30, 3e38, 0.0, -1.0], requires_grad=True)
    threshold, std = torch.tensor(t, requires_grad=True), torch.tensor(80.0, requires_grad=True)
    u = _kernels.scored(METHODS["cdf"], x, threshold, (0.0, std, 0.0))[0]
    slopes = torch.autograd.grad(u.sum(), (x, threshold, std))
    exact = Case("cdf", (0.0, 80.0, 0.0), cdf_slopes).expected(x.detach().double().numpy(), t)
    with np.errstate(over="ignore"):
        expected = [exact[0], exact[1].sum(), exact[3].sum()]
    for found, each in zip(slopes, expected, strict=True):
        torch.testing.assert_close(found, torch.as_tensor(each).float(), rtol=1e-4, atol=1e-6)


@pytest.mark.clause("N7")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("min-max", (1.0, 1.0)), ("cdf", (0.5, 0.0, 0.5)), ("cdf", (0.5, 1e-9, 0.5)), ("normal", (0.5, 1e-9, 0.5))],
    ids=str,
)
def test_a_step_has_no_slope(name: str, arguments: tuple[float, ...]) -> None:
    """The normal scores of a constant population may all lie on the threshold."""
    given = [torch.tensor(value, requires_grad=True) for value in ([0.5, T, T, 2.0, 0.0, INF], T, *arguments)]
    u = _kernels.scored(METHODS[name], *given[:2], tuple(given[2:]))[0]
    assert u.tolist() == [0.0, 0.5, 0.5, 1.0, 0.0, 1.0]
    (extra,) = METHODS[name].extras.values()
    value = extra(*given)  # z is a step at the center
    for result in (u, value[value.isfinite()], value.clamp(-9.0, 9.0)):
        for slope in torch.autograd.grad(result.sum(), given, allow_unused=True, retain_graph=True):
            assert slope is None or (slope == 0).all()


@pytest.mark.clause("N2", "N10")
def test_z_and_margins_have_derivatives_too() -> None:
    x = torch.tensor([0.5, 1.5, 2.0, 0.0, -1.0, INF, -INF, NAN])
    for name, extra, slope in (
        ("cdf", "z", lambda v: 4 / v),
        ("min-max", "margin", lambda v: 0 * v + 0.25),
        ("normal", "z", lambda v: 0 * v + 4 / 3),
    ):
        arguments = CASES["CDF" if name == "cdf" else name].arguments
        given = [value.requires_grad_() for value in (x.clone(), *map(torch.tensor, (T, *arguments)))]
        value = METHODS[name].extras[extra](*given)
        usual = value.isfinite()
        slopes = torch.autograd.grad(value[usual].sum(), given, allow_unused=True)
        assert slopes[0] is not None
        torch.testing.assert_close(slopes[0][usual], slope(x[usual]), rtol=1e-6, atol=0)
        assert (slopes[0][~usual] == 0).all()
        assert all(each is None or each.isfinite().all() for each in slopes)


@pytest.mark.clause("N4")
@pytest.mark.parametrize("maps", [False, True])
def test_values_and_labels_are_those_without_derivatives(maps: bool) -> None:
    normalizer = Normalizer.cdf((0.1, 0.4), (torch.zeros(1, 21), torch.full((1, 21), 0.3)), threshold=1.0)
    t = normalizer.thresholds["pixel" if maps else "image"].raw.max()
    x = scores(torch.float32)
    x = torch.cat([x[3:], torch.tensor([t], dtype=torch.float32), torch.tensor([t, t]).float()])
    x[-2:] = torch.nextafter(x[-2:], torch.tensor([-INF, INF]))
    given: Any = (torch.ones(1), x.reshape(1, 1, 21)) if maps else (x, None)
    plain = normalizer(*given)
    wanted = [None if value is None else value.clone().requires_grad_() for value in given]
    found = normalizer(*wanted)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=0, atol=2.0**-22, equal_nan=True)
    name, labels = ("anomaly_maps", "pred_masks") if maps else ("pred_scores", "pred_labels")
    assert torch.equal(found[name] >= 0.5, found[labels])
    assert found[labels].sum() == (x >= np.float32(t)).sum()
