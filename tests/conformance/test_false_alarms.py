"""Clause T7: what a search for a false-alarm rate finds, in whichever package it stands."""

import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from conformance import oracle
from conformance.assertions import random_values
from conformance.backend import Backend

pytestmark = pytest.mark.needs("search")


def found(backend: Backend, dtype: str, scores: Any, rate: float, **options: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of too few samples, which is what some of these are about
        return float(backend.threshold.false_alarm_rate(backend.asarray(scores, dtype), rate, **options).threshold)


@pytest.mark.clause("T7")
def test_t7_just_above_the_rank_of_one_more_sample(backend: Backend, dtype: str) -> None:
    rng = np.random.default_rng(11)
    for size in (19, 20, 57, 99, 140):
        scores = random_values(dtype, rng.normal(size=size))
        for rate in (Fraction(1, 20), Fraction(1, 10), Fraction(7, 100), Fraction(1, 100)):
            rank = math.ceil((size + 1) * (1 - rate))
            if rank <= size:
                wanted = oracle.next_up(sorted(scores)[rank - 1], oracle.arithmetic(dtype))
                assert found(backend, dtype, scores, float(rate)) == wanted


@pytest.mark.clause("T7", "S10")
def test_t7_every_normal_sample_counts(backend: Backend, dtype: str) -> None:
    ordered = [float(k) for k in range(1, 16)]
    above = oracle.next_up(15.0, oracle.arithmetic(dtype))
    for small in (0.0, -2.0, math.nan, -math.inf):  # with four of them there are the 19 that 5% takes
        assert found(backend, dtype, [*ordered, *[small] * 4], 0.05, transform="log") == above
    # An infinite one is the largest: with two of 39 the second largest is no number.
    assert found(backend, dtype, [*ordered, *ordered, *ordered[:8], math.inf], 0.05) == above
    assert found(backend, dtype, [*ordered, *ordered, *ordered[:7], math.inf, math.inf], 0.05) > 1e30


@pytest.mark.clause("T7")
def test_t7_the_prediction_from_few(backend: Backend, dtype: str) -> None:
    for draws in ([1.0, 1.25, 1.5, 1.75, 4.0], [4.0, 3.75, 3.5, 3.25, 1.0]):
        scores = random_values(dtype, np.array(draws))
        values = np.array(scores)
        n, g = 5, stats.skew(values) * 5 / 25
        t = stats.t.isf(0.01, n - 1)
        wanted = values.mean() + values.std(ddof=1) * math.sqrt(1 + 1 / n) * (t + g * (t * t - 1) / 6)
        assert found(backend, dtype, scores, 0.01, transform="identity") == pytest.approx(wanted, rel=1e-6)


@pytest.mark.clause("T7")
def test_t7_the_threshold_never_falls_as_the_rate_falls(backend: Backend) -> None:
    rng, dtype = np.random.default_rng(13), backend.usual_dtype
    for size in (5, 12, 30):
        for scores in (rng.normal(size=size), -np.exp(2 * rng.normal(size=size)), np.append(-np.ones(size), -30.0)):
            at = [found(backend, dtype, scores, rate, transform="identity") for rate in np.logspace(-0.1, -7, 40)]
            assert np.all(np.diff(at) >= 0)
