"""Float32 in heads and tails, against exact fractions and 50-digit logarithms."""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from conformance import oracle

from anomnorm_jax._double import cut, divide, log_distance, log_ratio, two_sum

pytestmark = pytest.mark.usefixtures("optimized")

# Compiled, XLA may contract products and sums into one rounding; operation by operation it cannot.
WRAPS = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
LOG_ERROR = 2.0**-34  # absolute, of the logarithm: what clause N13 allows beside the rounding of z

SMALLEST, NORMAL, LARGEST = 2.0**-149, 2.0**-126, float(np.finfo(np.float32).max)
SQRT_HALF = float(np.float32(math.sqrt(0.5)))


def _neighbours(x: float, steps: int = 3) -> list[float]:
    """``x`` and the float32 numbers around it, positive ones."""
    bits = int(np.float32(x).view(np.int32))
    return [float(np.int32(bits + k).view(np.float32)) for k in range(-steps, steps + 1) if 0 < bits + k < 0x7F800000]


def _special() -> list[float]:
    centres = [1.0, 2.0, 0.5, SQRT_HALF, 2 * SQRT_HALF, math.e, SMALLEST, NORMAL, LARGEST, 3 * SMALLEST, NORMAL / 3]
    near_one = [1.0 + sign * 2.0**-k for k in range(1, 24) for sign in (-1, 1)]
    powers = [2.0**k for k in range(-149, 128)]
    return [*near_one, *powers, *(x for centre in centres for x in _neighbours(centre))]


def _random_bits(seed: int, size: int) -> list[float]:
    """Positive finite float32, subnormal ones among them, every exponent alike."""
    bits = np.random.default_rng(seed).integers(1, 0x7F800000, size=size, dtype=np.int32)
    subnormal = np.random.default_rng(seed + 1).integers(1, 0x00800000, size=size // 10, dtype=np.int32)
    return [*bits.view(np.float32).tolist(), *subnormal.view(np.float32).tolist()]


def _floats(values: Iterable[float]) -> jax.Array:
    return jnp.asarray(np.array(list(values), dtype=np.float32))


def _wide(seed: int, size: int, low: int, high: int) -> np.ndarray:
    """Random float32 of both signs with exponents in [low, high)."""
    rng = np.random.default_rng(seed)
    sizes = np.ldexp(rng.uniform(1, 2, size), rng.integers(low, high, size))
    return (sizes * rng.choice([-1.0, 1.0], size)).astype(np.float32)


def _check_log_ratio(wrap: Wrap, x: list[float], center: list[float], scale: list[float]) -> None:
    found = np.asarray(wrap(log_ratio)(_floats(x), _floats(center), _floats(scale)), dtype=np.float64)
    wrong = []
    for value, score, at, by in zip(found.tolist(), x, center, scale, strict=True):
        exact = oracle.z_score(score, at, by)
        allowed = oracle.ulp(float(exact), "float32") + LOG_ERROR / by
        if not abs(mpmath.mpf(value) - exact) <= allowed:
            wrong.append(f"log_ratio({score!r}, {at!r}, {by!r}) = {value!r}, expected {exact} +- {allowed:.3g}")
    assert not wrong, f"{len(wrong)} of {len(x)} off\n" + "\n".join(wrong[:5])


@pytest.mark.clause("N13")
@WRAPS
def test_log_ratio_is_within_one_ulp_over_all_positive_numbers(wrap: Wrap) -> None:
    x = _random_bits(21, 3000)
    rng = np.random.default_rng(22)
    center = rng.normal(0, 20, len(x)).astype(np.float32).tolist()
    scale = np.exp(rng.uniform(-8, 3, len(x))).astype(np.float32).tolist()
    _check_log_ratio(wrap, x, center, scale)


@pytest.mark.clause("N13")
@WRAPS
@pytest.mark.parametrize(("center", "scale"), [(0.0, 1.0), (0.0, 0.5), (-87.25, 3.0), (0.34375, 1e-3), (0.0, 1e5)])
def test_log_ratio_is_within_one_ulp_at_special_numbers(wrap: Wrap, center: float, scale: float) -> None:
    x = _special()
    scale = oracle.rounded(scale, "float32")
    _check_log_ratio(wrap, x, [center] * len(x), [scale] * len(x))


@pytest.mark.clause("N13")
@WRAPS
@pytest.mark.parametrize("std", [1.0, 1e-2, 1e-4, 1e-6])
def test_log_ratio_keeps_its_digits_where_the_logarithm_cancels(wrap: Wrap, std: float) -> None:
    # scores within a few deviations of the centre: float32 alone would be wrong in the third digit of z
    rng = np.random.default_rng(23)
    center = rng.uniform(-80, 80, 1500).astype(np.float32)
    x = np.exp(rng.normal(center.astype(np.float64), 3 * std)).astype(np.float32)
    scale = oracle.rounded(std, "float32")
    _check_log_ratio(wrap, x.tolist(), center.tolist(), [scale] * x.size)


@pytest.mark.clause("N13")
@WRAPS
def test_log_distance_carries_twice_the_digits(wrap: Wrap) -> None:
    x = [*_special(), *_random_bits(24, 1500)]
    center = np.random.default_rng(25).normal(0, 20, len(x)).astype(np.float32).tolist()
    head, tail = (np.asarray(part).tolist() for part in wrap(log_distance)(_floats(x), _floats(center)))
    errors = [
        abs(mpmath.mpf(h) + mpmath.mpf(t) - oracle.z_score(score, at, 1.0))
        for h, t, score, at in zip(head, tail, x, center, strict=True)
    ]
    assert max(errors) <= LOG_ERROR


def test_log_ratio_by_zero_is_the_ieee_quotient() -> None:
    found = log_ratio(_floats([2.0, 0.5]), _floats([0.0, 0.0]), _floats([0.0, 0.0]))
    assert found.tolist() == [math.inf, -math.inf]


@WRAPS
def test_two_sum_is_exact(wrap: Wrap) -> None:
    a, b = _wide(26, 4000, -40, 40), _wide(27, 4000, -40, 40)
    close = np.concatenate([-a[:1000] * np.float32(1 + 2.0**-20), -np.nextafter(a[1000:2000], np.float32(0))])
    a, b = np.concatenate([a, a[:2000]]), np.concatenate([b, close.astype(np.float32)])
    head, tail = (np.asarray(part) for part in wrap(two_sum)(jnp.asarray(a), jnp.asarray(b)))
    np.testing.assert_array_equal(head, a + b)  # NumPy rounds a float32 sum once
    columns = (column.tolist() for column in (a, b, head, tail))
    wrong = [
        row for row in zip(*columns, strict=True) if Fraction(row[0]) + Fraction(row[1]) != sum(map(Fraction, row[2:]))
    ]
    assert not wrong


@WRAPS
def test_cut_keeps_twelve_bits_and_leaves_the_rest_exactly(wrap: Wrap) -> None:
    x = np.concatenate([_wide(28, 4000, -100, 100), np.float32([1.0, -1.0, 2.0**-126, LARGEST, -LARGEST, 0.0])])
    upper = np.asarray(wrap(cut)(jnp.asarray(x)))
    rest = np.asarray(wrap(lambda value: value - cut(value))(jnp.asarray(x)))
    for value, head, tail in zip(x.tolist(), upper.tolist(), rest.tolist(), strict=True):
        fraction, _ = math.frexp(head)
        assert (fraction * 2**12).is_integer()
        assert abs(head) <= abs(value)
        assert math.copysign(1.0, head) == math.copysign(1.0, value)
        assert Fraction(head) + Fraction(tail) == Fraction(value)
        assert abs(tail) <= abs(value) * 2.0**-11


@WRAPS
def test_products_of_cut_numbers_are_exact(wrap: Wrap) -> None:
    a, b = _wide(29, 4000, -40, 40), _wide(30, 4000, -40, 40)
    product = np.asarray(wrap(lambda x, y: cut(x) * cut(y))(jnp.asarray(a), jnp.asarray(b)))
    heads = [np.asarray(cut(jnp.asarray(x))).tolist() for x in (a, b)]
    assert all(Fraction(p) == Fraction(x) * Fraction(y) for p, x, y in zip(product.tolist(), *heads, strict=True))


@WRAPS
def test_divide_gives_a_short_head_and_the_rest(wrap: Wrap) -> None:
    head, divisor = _wide(31, 4000, -20, 20), _wide(32, 4000, -20, 20)
    tail = (head * np.random.default_rng(33).uniform(-(2.0**-25), 2.0**-25, head.size)).astype(np.float32)
    upper, rest = (np.asarray(part) for part in wrap(divide)(*map(jnp.asarray, (head, tail, divisor))))
    columns = (column.tolist() for column in (head, tail, divisor, upper, rest))
    for h, t, d, u, r in zip(*columns, strict=True):
        exact = (Fraction(h) + Fraction(t)) / Fraction(d)
        assert (math.frexp(u)[0] * 2**12).is_integer()
        assert abs(Fraction(u) + Fraction(r) - exact) <= abs(exact) * Fraction(2) ** -34


@WRAPS
def test_divide_without_a_finite_quotient_has_the_ieee_quotient_and_no_tail(wrap: Wrap) -> None:
    head, divisor = _floats([1.0, -1.0, LARGEST, -LARGEST, 0.0]), _floats([0.0, 0.0, 0.125, 0.125, 0.0])
    upper, rest = wrap(divide)(head, jnp.full_like(head, 1e-9), divisor)
    np.testing.assert_array_equal(np.asarray(upper), [math.inf, -math.inf, math.inf, -math.inf, math.nan])
    assert rest.tolist() == [0.0] * 5
