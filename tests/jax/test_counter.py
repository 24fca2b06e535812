"""The 64-bit counter made of two 32-bit halves."""

import random
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_jax import _counter, min_max

WORD = 2**32
EDGES = [0, 1, 2**16, 2**31 - 1, 2**31, WORD - 1, WORD, WORD + 1, 2 * WORD - 1, 2**63 - 1, 2**63, 2**64 - 1]


def _halves(values: list[int]) -> jax.Array:
    return jnp.asarray(np.array([divmod(value, WORD) for value in values], dtype=np.uint32))


@pytest.mark.clause("S3")
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_adding_carries_exactly(wrap: Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]) -> None:
    rng = random.Random(1)  # exact Python integers of every length
    pairs = [(rng.getrandbits(rng.randint(1, 63)), rng.getrandbits(rng.randint(1, 63))) for _ in range(3000)]
    pairs += [(a, b) for a in EDGES for b in EDGES if a + b < 2**64]
    add = wrap(jax.vmap(_counter.add))
    found = np.asarray(add(_halves([a for a, _ in pairs]), _halves([b for _, b in pairs])))
    assert found.dtype == np.uint32
    wrong = [(a, b, sum_) for (a, b), sum_ in zip(pairs, map(_counter.to_int, found), strict=True) if sum_ != a + b]
    assert not wrong


@pytest.mark.clause("S3")
def test_zero_is_the_identity_and_edges_read_back() -> None:
    assert _counter.to_int(_counter.zero()) == 0
    for value in EDGES:
        count = _halves([value])[0]
        assert _counter.to_int(count) == value
        assert _counter.to_int(_counter.add(count, _counter.zero())) == value
        assert _counter.to_int(_counter.add(_counter.zero(), count)) == value
    assert type(_counter.to_int(_counter.zero())) is int


@pytest.mark.clause("S2", "S3", "S6")
@pytest.mark.parametrize("shape", [(7,), (300, 301), (3, 1, 5, 6)], ids=str)
def test_valid_and_invalid_values_are_counted(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    x = np.where(rng.random(shape) < 0.4, rng.choice([np.nan, np.inf, -np.inf], size=shape), 1.0).astype("f4")
    invalid = int(np.count_nonzero(~np.isfinite(x)))
    record = min_max.update(min_max.init(), x)
    assert [_counter.to_int(record.count), _counter.to_int(record.invalid)] == [x.size - invalid, invalid]
    where = np.arange(shape[0]) % 2 == 0
    record = min_max.update(min_max.init(), x, where=where)
    invalid = int(np.count_nonzero(~np.isfinite(x[where])))
    assert [_counter.to_int(record.count), _counter.to_int(record.invalid)] == [x[where].size - invalid, invalid]


@pytest.mark.clause("S2", "S3")
def test_statistics_count_past_32_bits() -> None:
    record = min_max.update(min_max.init(), jnp.asarray([1.0, 2.0, 3.0, jnp.nan, jnp.inf]))
    expected = [3, 2]
    for _ in range(45):
        record = min_max.merge(record, record)
        expected = [2 * count for count in expected]
        assert [_counter.to_int(record.count), _counter.to_int(record.invalid)] == expected
    record = min_max.update(record, jnp.asarray([4.0, jnp.nan]))
    assert [_counter.to_int(record.count), _counter.to_int(record.invalid)] == [3 * 2**45 + 1, 2**46 + 1]


@pytest.mark.clause("S3")
def test_a_stream_of_large_maps_crosses_32_bits() -> None:
    # as counted by a scan over 70,000 maps of 256 x 256, without making the maps
    pixels = 256 * 256
    one = _halves([pixels])[0]
    count, _ = jax.lax.scan(lambda total, _: (_counter.add(total, one), None), _counter.zero(), length=70_000)
    assert _counter.to_int(count) == 70_000 * pixels > WORD
