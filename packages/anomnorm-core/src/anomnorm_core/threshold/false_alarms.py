"""Thresholds for a given false-alarm rate, and the rate of a given threshold (clause T7). On the host, in float64."""

import math
from typing import NamedTuple

import numpy as np

from anomnorm_core.options import LARGEST_FLOAT32, QUANTILE_SLACK, Transform

_SHRINKAGE = 20  # normal samples at which half of their skewness is believed


class Normals(NamedTuple):
    """Moments of normal scores, or of their logarithms, from which the share of new ones above a score is predicted.

    ``1 - F(x) = share * (1 - T_(n-1)(t))`` with ``T`` the distribution of Student's t with ``n - 1`` degrees of freedom
    and ``t + g (t^2 - 1) / 6 = (x - mean) / (std sqrt(1 + 1/n))``: the prediction of one more value of a normal
    population, corrected for a skewness ``g`` (the first term of Cornish and Fisher, 1937), of which a sample says the
    less the smaller it is: ``g`` is the sample's times ``n / (n + 20)``. Where that curve would turn back, which a
    large rate or a small one could then share, it goes on with slope one.
    """

    samples: int  #: normal samples
    valued: int  #: n: those of them that have a value; others (zeros under a logarithm, NaN, -inf) count as smallest
    mean: float  #: of the values
    std: float  #: with ddof=1
    skewness: float  #: third standardized moment
    transform: Transform  #: what was done to the scores first

    @property
    def share(self) -> float:
        """Share of the normals that have a value."""
        return self.valued / self.samples if self.samples else 0.0

    def threshold(self, rate: float, confidence: float | None = None) -> float:
        """The score that a share ``rate`` of new normals is predicted to reach; -inf where all that have a value do.

        Args:
            rate: between 0 and 1.
            confidence: instead of the expected share, the one that is not exceeded in this share of samples: the upper
                tolerance limit of a normal population (Owen, 1968).
        """
        from scipy.special import nctdtrit, ndtri, stdtrit

        if rate >= self.share:
            return -math.inf
        own, n = rate / self.share, self.valued
        if confidence is None:
            t, scale = -float(stdtrit(n - 1, own)), math.sqrt(1 + 1 / n)
        else:
            t, scale = float(nctdtrit(n - 1, -ndtri(own) * math.sqrt(n), confidence)) / math.sqrt(n), 1.0
        value = self.mean + self.std * scale * self._skewed(t)
        return _exp(value) if self.transform is Transform.LOG else value

    def rate(self, score: np.ndarray | float) -> np.ndarray:
        """The share of new normals that is predicted to reach ``score``: the inverse of `threshold`."""
        from scipy.special import stdtr

        x = np.asarray(score, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.log(np.maximum(x, 0.0)) if self.transform is Transform.LOG else x
            z = (value - self.mean) / (self.std * math.sqrt(1 + 1 / self.valued))
            reached = np.where(value <= self.mean, 1.0, 0.0)  # by a constant population
            tail = reached if self.std == 0 else stdtr(self.valued - 1, -self._straight(z))
        every = (x <= 0) & (self.transform is Transform.LOG)
        found: np.ndarray = np.where(every, 1.0, self.share * tail)
        return found

    @property
    def _bend(self) -> float:
        return self.skewness * self.valued / (self.valued + _SHRINKAGE) / 6

    @property
    def _turn(self) -> float:
        """Where the slope ``1 + 2 bend t`` is zero."""
        return -0.5 / self._bend if self._bend else math.inf

    def _skewed(self, t: float) -> float:
        turn = self._turn
        within = max(t, turn) if turn < 0 else min(t, turn)
        return within + self._bend * (within * within - 1) + (t - within)

    def _straight(self, z: np.ndarray) -> np.ndarray:
        """The inverse of `_skewed`."""
        bend, turn = self._bend, self._turn
        if not bend:
            return z
        beyond = z - self._skewed(turn)
        # The root of bend t^2 + t - (bend + z) on the side of zero, written without a difference of near numbers.
        root = 2 * (bend + z) / (1 + np.sqrt(np.maximum(1 + 4 * bend * (bend + z), 0.0)))
        return np.where((beyond >= 0) == (bend < 0), turn + beyond, root)


def normals_of(scores: np.ndarray, transform: Transform | None, weights: np.ndarray | None = None) -> Normals:
    """The moments of normal scores.

    Args:
        scores: of shape (N,); +inf, which every threshold flags, is left out.
        transform: None takes the logarithm where all finite scores are above zero.
        weights: how often each score occurred; None: once.
    """
    scores = np.sort(scores) if weights is None else scores  # sums that do not depend on the order of the samples
    counts = np.ones(scores.shape) if weights is None else weights.astype(np.float64)
    scores, counts = scores[~np.isposinf(scores)], counts[~np.isposinf(scores)]
    finite = np.isfinite(scores)
    if transform is None:
        transform = Transform.LOG if np.all(scores[finite] > 0) else Transform.IDENTITY
    taken = finite & (scores > 0) if transform is Transform.LOG else finite
    x, counts_of_x = scores[taken].astype(np.float64), counts[taken]
    x = np.log(x) if transform is Transform.LOG else x
    valued, count = float(counts_of_x.sum()), float(counts.sum())
    if valued == 0:
        return Normals(int(count), 0, 0.0, 0.0, 0.0, transform)
    if x.min() == x.max():  # of which rounding would make a deviation
        return Normals(int(count), int(valued), float(x[0]), 0.0, 0.0, transform)
    mean = float((counts_of_x * (x / valued)).sum())
    widest = float(np.abs(x - mean).max())
    deviation = (x - mean) / widest  # whose cubes are finite
    second, third = (float((counts_of_x * deviation**power).sum() / valued) for power in (2, 3))
    std = widest * math.sqrt(second * valued / (valued - 1))
    return Normals(int(count), int(valued), mean, std, third / second**1.5, transform)


def allowed(rate: float, normals: int, confidence: float | None) -> int:
    """How many of so many normal samples may reach a threshold that holds for new ones; below 0: there are too few.

    The share of new normals above the ``m + 1`` largest of ``n`` exchangeable ones is ``(m + 1) / (n + 1)`` in
    expectation. With ``confidence`` ``m`` is the largest number for which that share, which has the distribution
    Beta(m + 1, n - m), is at most ``rate`` in so many of all samples.
    """
    from scipy.special import bdtr

    if confidence is None:
        return math.floor(rate * (normals + 1) * QUANTILE_SLACK) - 1
    chance = 1 - bdtr(np.arange(normals), normals, rate)  # that so many new ones or fewer do
    return int(np.sum(chance >= confidence)) - 1


def needed(rate: float, confidence: float | None) -> int:
    """How many normal samples it takes for `allowed` to be no less than 0."""
    if confidence is None:
        return math.ceil(1 / rate / QUANTILE_SLACK) - 1
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def least_rate(normals: int, confidence: float | None) -> float:
    """The smallest rate that so many normal samples can guarantee."""
    return 1 / (normals + 1) if confidence is None else -math.expm1(math.log1p(-confidence) / normals)


def _exp(value: float) -> float:
    return math.exp(min(max(value, -700.0), math.log(LARGEST_FLOAT32) + 1))
