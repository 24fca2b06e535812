"""The 64-bit counter made of two 32-bit halves."""

import random
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from anomnorm_core.checks import Counts
from anomnorm_jax import _counter, cdf, min_max, threshold

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
    where = np.arange(shape[0]) % 2 == 0
    for chosen, seen in ((None, x), (where, x[where])):
        valid, nan, infinite = (int(np.count_nonzero(which(seen))) for which in (np.isfinite, np.isnan, np.isinf))
        record = min_max.update(min_max.init(), x, where=chosen)
        assert _counter.counts_of(record) == Counts(valid, nan=nan, infinite=infinite)


@pytest.mark.clause("S2", "S3")
def test_statistics_count_past_32_bits() -> None:
    record = min_max.update(min_max.init(), jnp.asarray([1.0, 2.0, 3.0, jnp.nan, jnp.nan, jnp.inf]))
    for doubled in range(1, 46):
        record = min_max.merge(record, record)
        assert _counter.counts_of(record) == Counts(3 * 2**doubled, nan=2 * 2**doubled, infinite=2**doubled)
    record = min_max.update(record, jnp.asarray([4.0, jnp.nan]))
    assert _counter.counts_of(record) == Counts(3 * 2**45 + 1, nan=2**46 + 1, infinite=2**45)


@pytest.mark.clause("S3", "S6")
def test_negative_values_of_a_logarithm_are_counted_past_32_bits() -> None:
    record = cdf.update(cdf.init(), jnp.asarray([1.0, 2.0, -0.0, -3.0, -jnp.inf, jnp.nan, jnp.nan]))
    assert _counter.counts_of(record) == Counts(2, zeros=1, negative=1, nan=2, infinite=1)
    for _ in range(40):
        record = cdf.merge(record, record)
    assert _counter.counts_of(record)[2:] == (2**40, 2 * 2**40, 2**40)


@pytest.mark.clause("S1", "S6")
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=["image", "pixel"])
def test_causes_are_counted_in_every_transformation(shape: tuple[int, ...]) -> None:
    clean = np.exp(np.random.default_rng(5).normal(size=(8, *shape))).astype("f4")
    bad = clean.copy()
    bad[:7] = np.reshape([0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, np.inf], (7, *(1 for _ in shape)))
    bad[0], bad[7] = clean[0], 1.0
    size, batches = int(np.prod(shape)), jnp.asarray([clean, bad, bad])
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.PartitionSpec("batch")
    for module, left_out in ((cdf, (1, 1, 1, 3)), (min_max, (0, 0, 1, 3))):
        once = Counts(8 - sum(left_out), *left_out)
        expected = [Counts(*(size * count for count in each)) for each in (Counts(8), once, once)]
        empty = module.init(shape)
        together = jax.vmap(module.update, (None, 0))(empty, batches)
        apart = [jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(3)]
        assert list(map(_counter.counts_of, apart)) == expected
        record = jax.lax.scan(lambda r, batch, m=module: (m.update(r, batch), None), empty, batches)[0]
        assert _counter.counts_of(record) == Counts(*map(sum, zip(*expected, strict=True)))
        shard = jax.shard_map(
            lambda batch, r=empty, m=module: jax.tree.map(lambda leaf: leaf[None], m.update(r, batch)),
            mesh=mesh,
            in_specs=spread,
            out_specs=spread,
        )
        for batch, counts in zip(batches, expected, strict=True):
            record = jax.tree.map(lambda leaf: leaf[0], jax.jit(shard)(batch))
            assert _counter.counts_of(record) == counts


@pytest.mark.clause("T5")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int8", "uint8", "bool"])
def test_pixels_labelled_below_zero_are_ignored(dtype: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(5, 4, 3)).astype("f4")
    labels = rng.integers(-1 if dtype[0] in "fi" else 0, 3, size=(5, 4, 3)).astype(dtype)
    if dtype[0] == "f":
        labels[1, 1] = np.nan
    taken = (labels >= 0) & (np.arange(5) != 3)[:, None, None]
    update, init = threshold.update, threshold.init
    expected = update(init(), x[taken], labels[taken] > 0)
    assert int(expected.normal[1].sum()) + int(expected.anomalous[1].sum()) == taken.sum()
    for given, marks in ((x, labels), (x[..., None], labels), (x[:, None], labels[..., None])):
        found = update(init(), given, marks, where=np.arange(5) != 3)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.clause("S3")
def test_a_stream_of_large_maps_crosses_32_bits() -> None:
    # as counted by a scan over 70,000 maps of 256 x 256, without making the maps
    pixels = 256 * 256
    one = _halves([pixels])[0]
    count, _ = jax.lax.scan(lambda total, _: (_counter.add(total, one), None), _counter.zero(), length=70_000)
    assert _counter.to_int(count) == 70_000 * pixels > WORD
