"""Ratios that are nearer to each other than any float can tell (clause T2), in each package's own integers."""

from fractions import Fraction

import array_api_compat.numpy as xp
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import anomnorm_core.threshold._f1 as core
import anomnorm_jax.threshold._f1 as for_jax
import anomnorm_torch.threshold._f1 as for_torch

pytestmark = pytest.mark.clause("T2")


def cases() -> list[tuple[list[int], list[int], int]]:
    """True positives, flagged, positives: neighbours among fractions of large denominators."""
    found = []
    for n in (2**29 - 1, 2**29 - 3, 1_000_003, 65_537):
        # a / n and (a - 1) / (n - 1) and such: closer than 2^-31 where n is large
        a = n // 2
        flagged = [n - 2 - k for k in range(4)]
        found.append(([a, a - 1, a - 1, a - 2], flagged, a + 2))
        found.append(([a - 3, a - 1, a, a - 2], flagged[::-1], a + 2))
    # k / 2^31 lies between a / b and c / d, which differ by less than 2^-58: k b = 2^31 a - 1, k d = 2^31 c + 3.
    for b in range(2**29 + 1, 2**29 + 41, 2):
        d, k = -3 * b % 2**31, pow(-b, -1, 2**31)
        if max(d, k) < 2**30:
            pair = [((k * b + 1) >> 31, b - 1), ((k * d - 3) >> 31, d - 1)]
            for order in (pair, pair[::-1]):
                hits, flagged = map(list, zip(*order, strict=True))
                found.append((hits, flagged, 1))
    found.append(([1, 2, 3, 4], [2, 4, 6, 8], 0))  # equal: the last of them
    found.append(([0, 0, 0], [1, 2, 3], 5))  # none is above zero
    rng = np.random.default_rng(3)
    for scale in (10, 2**15, 2**28):
        flagged = np.sort(rng.integers(scale // 2, scale, size=50))
        found.append(((flagged // 2).tolist(), flagged.tolist(), scale // 2))
    return found


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case[2]}-{case[1][0]}")
def test_the_last_of_the_largest(case: tuple[list[int], list[int], int]) -> None:
    hits, flagged, positives = case
    ratios = [Fraction(h, f + positives) for h, f in zip(hits, flagged, strict=True)]
    expected = max(range(len(ratios)), key=lambda k: (ratios[k], k)), max(ratios) > 0
    results = (
        core.best(np.array(hits), np.array(flagged), np.array(positives), xp),
        for_torch.best(torch.tensor(hits), torch.tensor(flagged), torch.tensor(positives)),
        for_jax.best(*(jnp.asarray(values, dtype=jnp.uint32) for values in (hits, flagged, positives))),
    )
    for position, above_zero in results:
        assert (int(position), bool(above_zero)) == expected
