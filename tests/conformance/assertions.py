"""Comparisons whose failure says which input, which value and how far off."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from conformance import oracle
from conformance.backend import Backend, Description


def unit_tolerance(dtype: str) -> float:
    """How far a unit score may be off (clause N13): 2^-23, or 4 ulp of 1 in float64; half types add their rounding.

    One ulp below 1/2 more, because a half type that would round up to 1/2 must not (clause N4).
    """
    if dtype == "float64":
        return 4 * oracle.ulp(1.0, dtype)
    return 2.0**-23 + (0.0 if dtype == "float32" else oracle.ulp(0.5, dtype) / 2)


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
    values = backend.to_numpy(found).ravel().tolist()
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


def random_values(dtype: str, values: np.ndarray) -> list[float]:
    """Round to ``dtype`` without any array library's help."""
    return [oracle.rounded(float(value), dtype) for value in values]


def flushed(backend: Backend, dtype: str, span: float) -> float:
    """What a backend without subnormal numbers adds to the error of a min-max score (clause N13)."""
    if backend.subnormal or span == 0:
        return 0.0
    return oracle.smallest_normal(oracle.arithmetic(dtype)) / span


def order_slack(backend: Backend, value: float, dtype: str) -> float:
    """By how much a larger score may give less than the unit score ``value`` (clause N5)."""
    return backend.order_slack.get(dtype, 0) * oracle.ulp(value, dtype)
