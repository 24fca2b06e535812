"""Comparisons whose failure says which input, which value and how far off."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conformance import oracle
from conformance.backend import Backend, Description

# Scores come in batches of this size where a test is not about sizes: compilers meet nothing new with every case.
SIZE = 512


def assert_described(backend: Backend, array: Any, expected: Description) -> None:
    found = backend.describe(array)
    assert found == expected, f"{backend.id}: expected {expected}, found {found}"


def assert_close(
    backend: Backend,
    found: Any,
    expected: Sequence[float],
    tolerance: float | Sequence[float],
    inputs: Sequence[Any],
) -> None:
    """Compare with the oracle's values: NaN where NaN is expected, infinities exact, else within ``tolerance``."""
    values = found if isinstance(found, list) else backend.to_numpy(found).ravel().tolist()
    assert len(values) == len(expected)
    tolerances = [tolerance] * len(expected) if isinstance(tolerance, float) else tolerance
    wrong = []
    for value, wanted, allowed, given in zip(values, expected, tolerances, inputs, strict=True):
        if math.isnan(wanted) or math.isinf(wanted):
            same = value == wanted or (math.isnan(value) and math.isnan(wanted))
        else:
            same = abs(value - wanted) <= allowed
        if not same:
            wrong.append(f"input {given!r}: expected {wanted!r} +- {allowed:.3g}, found {value!r}")
    assert not wrong, f"{backend.id}: {len(wrong)} of {len(values)} values off\n" + "\n".join(wrong[:5])


def assert_sides(
    backend: Backend, values: list[float], units: list[float], flags: list[bool], threshold: float
) -> None:
    """Clause N4: flagged at and above the threshold, at least 1/2 where flagged, and exactly that at it."""
    wrong = [
        f"x={x!r} T={threshold!r}: normalized {unit!r}, flagged {flagged}"
        for x, unit, flagged in zip(values, units, flags, strict=True)
        if flagged != (x >= threshold) or (unit >= 0.5) != flagged or (x == threshold and unit != 0.5)
    ]
    assert not wrong, f"{backend.id}: {len(wrong)} of {len(values)} decisions differ\n" + "\n".join(wrong[:5])


def assert_order(backend: Backend, dtype: str, values: list[float], units: list[float]) -> None:
    """Clause N5: between 0 and 1, and a larger score has no smaller normalized one, up to the backend's slack."""
    pairs = sorted((x, unit) for x, unit in zip(values, units, strict=True) if not math.isnan(x))
    x, u = np.array(pairs).T if pairs else np.zeros((2, 0))
    assert np.all((u >= 0) & (u <= 1))
    falls = np.maximum.accumulate(u) - u
    worst = int(np.argmax(falls)) if falls.size else 0
    slack = backend.order_slack.get(oracle.arithmetic(dtype), 0.0)
    assert not np.any(falls > slack), f"{backend.id}: {x[worst]!r} -> {u[worst]!r}, but {u[:worst].max()!r} before it"


def arrays(backend: Backend, dtype: str, *numbers: float) -> list[Any]:
    """Parameters of shape (), in the dtype in which they are kept."""
    return [backend.asarray(np.float64(number), oracle.arithmetic(dtype)) for number in numbers]


def evaluate(
    backend: Backend, function: Callable[..., Any], dtype: str, values: Sequence[float], *parameters: float
) -> list[Any]:
    """``function(values, *parameters)`` in batches of `SIZE`, the last one filled up."""
    given = arrays(backend, dtype, *parameters)
    found: list[Any] = []
    for start in range(0, len(values), SIZE):
        part = list(values[start : start + SIZE])
        result = function(backend.asarray(part + [1.0] * (SIZE - len(part)), dtype), *given)
        found += backend.to_numpy(result).tolist()[: len(part)]
    return found


def random_values(dtype: str, values: np.ndarray) -> list[float]:
    """Round to ``dtype`` without any array library's help."""
    return [oracle.rounded(float(value), dtype) for value in values]


def neighbours(value: float, dtype: str, count: int) -> list[float]:
    """The number of ``dtype`` next to ``value``, and so many on either side of it, none of them subnormal."""
    values = [oracle.rounded(value, dtype)]
    for _ in range(count):
        values = [oracle.next_down(values[0], dtype), *values, oracle.next_up(values[-1], dtype)]
    least = oracle.smallest_normal(dtype)
    return [x for x in values if math.isfinite(x) and (x == 0 or abs(x) >= least)]
