"""Logarithms of quotients and of parameters in float32, against exact fractions and 50-digit logarithms."""

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

from anomnorm_jax._double import cut, log_distance, two_sum
from anomnorm_jax._normal import log_ratio

pytestmark = pytest.mark.usefixtures("optimized")

# Compiled, XLA may contract products and sums into one rounding; operation by operation it cannot.
WRAPS = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]
LOG_ERROR = 2.0**-34  # absolute, of the logarithm of a center: clause N13 allows 2^-30 for that of a score

NORMAL, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
SQRT_HALF = float(np.float32(math.sqrt(0.5)))


def _neighbours(x: float, steps: int = 3) -> list[float]:
    """``x`` and the float32 numbers around it, positive ones."""
    bits = int(np.float32(x).view(np.int32))
    around = range(bits - steps, bits + steps + 1)
    return [float(np.int32(near).view(np.float32)) for near in around if 0x00800000 <= near < 0x7F800000]


def _special() -> list[float]:
    centres = [1.0, 2.0, 0.5, SQRT_HALF, 2 * SQRT_HALF, math.e, NORMAL, LARGEST]
    near_one = [1.0 + sign * 2.0**-k for k in range(1, 24) for sign in (-1, 1)]
    powers = [2.0**k for k in range(-126, 128)]
    return [*near_one, *powers, *(x for centre in centres for x in _neighbours(centre))]


def _random_bits(seed: int, size: int) -> list[float]:
    """Positive finite float32, every exponent alike."""
    bits = np.random.default_rng(seed).integers(0x00800000, 0x7F800000, size=size, dtype=np.int32)
    return bits.view(np.float32).tolist()


def _floats(values: Iterable[float]) -> jax.Array:
    return jnp.asarray(np.array(list(values), dtype=np.float32))


def _wide(seed: int, size: int, low: int, high: int) -> np.ndarray:
    """Random float32 of both signs with exponents in [low, high)."""
    rng = np.random.default_rng(seed)
    sizes = np.ldexp(rng.uniform(1, 2, size), rng.integers(low, high, size))
    return (sizes * rng.choice([-1.0, 1.0], size)).astype(np.float32)


def _check_log_ratio(wrap: Wrap, x: list[float], c: list[float]) -> None:
    found = np.asarray(wrap(log_ratio)(_floats(x), _floats(c)), dtype=np.float64)
    wrong = []
    for value, score, at in zip(found.tolist(), x, c, strict=True):
        exact = mpmath.log(mpmath.mpf(score) / mpmath.mpf(at))
        near = 0.5 <= score / at <= 2.0
        allowed = 2 * oracle.ulp(float(exact), "float32") + (0.0 if near else 2.5 * 2.0**-24)
        if not abs(mpmath.mpf(value) - exact) <= allowed:
            wrong.append(f"log_ratio({score!r}, {at!r}) = {value!r}, expected {exact} +- {allowed:.3g}")
    assert not wrong, f"{len(wrong)} of {len(x)} off\n" + "\n".join(wrong[:5])


@pytest.mark.clause("N3", "N13")
@WRAPS
def test_log_ratio_over_all_normal_numbers(wrap: Wrap) -> None:
    x, c = _random_bits(21, 3000), _random_bits(22, 3000)
    _check_log_ratio(wrap, x, c)


@pytest.mark.clause("N3", "N13")
@WRAPS
@pytest.mark.parametrize("c", [1.0, 0.75, math.pi, NORMAL, LARGEST, 1e-30, 1e30, 1.6e38])
def test_log_ratio_of_one_number_keeps_its_digits_near_it(wrap: Wrap, c: float) -> None:
    # Also where one divisor for all scores is multiplied with its reciprocal.
    c = oracle.rounded(c, "float32")
    factors = [1 + sign * 2.0**-k for k in range(2, 24) for sign in (-1, 1)] + np.linspace(0.25, 4, 500).tolist()
    x = [*_special(), *_neighbours(c), *(oracle.rounded(c * factor, "float32") for factor in factors)]
    x = [value for value in x if NORMAL <= value <= LARGEST]
    found = np.asarray(wrap(lambda values: log_ratio(values, jnp.float32(c)))(_floats(x)), dtype=np.float64)
    _check_log_ratio(lambda _: lambda *_: found, x, [c] * len(x))
    assert found[x.index(c)] == 0.0


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
