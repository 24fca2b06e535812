"""Whether fitted statistics describe the normal samples of a validation run (clause S9)."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from array_api_compat import array_namespace

from anomnorm_core._arrays import quiet
from anomnorm_core.errors import FitWarning, warn
from anomnorm_core.fit import Fit
from anomnorm_core.methods import METHODS
from anomnorm_core.options import Transform

LIMITS = (2.0, 3.0)  # z-scores beyond which normal samples are counted, on either side

_BEYOND = (0.02275, 0.00135)  # and the shares of a normal distribution there

_FALSE_WARNINGS = 1e-3  # how often the check may find fault with a fit that has none
_CHANCE = _FALSE_WARNINGS / 5  # each of five findings: too many above, too many below, mean, deviation, skewness
_FEWEST = 5  # normals whose mean is looked at: where tails are heavy, that of fewer is as far away as any of them
_FEWEST_OF_SHAPE = 8  # whose deviation and skewness are looked at: those of fewer say nothing
_NOTABLE = 0.25  # sigmas: by how much a threshold at two of them is off where moments are worth a warning

# Variances are compared as if the scores had the tails of this kurtosis: 3 is normal, 6 has exponential tails. With 3,
# at one in a thousand, 22 in a thousand fits without fault to Gumbel scores would be blamed, 53 to t (5 degrees).
_KURTOSIS = 6.0

_LARGEST = 1e3  # what larger z-scores, beside a constant population, count as: in float32 their cubes would overflow


def counted(z: Any, total: Callable[[Any], Any] = np.count_nonzero) -> tuple[Any, ...]:
    """What a `FitCheck` counts of the z-scores of normal samples: all, above 2, above 3, below -2, below -3.

    NaN and -inf, which scores without a logarithm have, are not among them.

    Args:
        z: an array of any library.
        total: how many elements of a boolean array are true.
    """
    return (
        total(z > -math.inf),
        *(total(z > limit) for limit in LIMITS),
        *(total((z < -limit) & (z > -math.inf)) for limit in LIMITS),
    )


def moments(z: Any, where: Any = True) -> Any:
    """How many z-scores are finite, their mean, and the sums of the squares and cubes of their distances from it.

    Args:
        z: an array (N,) of any library.
        where: booleans of shape (N,): which of them are of normal samples.

    Returns:
        An array (4,) of the dtype of ``z``: zeros if there are none. Those beyond 1000 on either side count as 1000.
    """
    xp = array_namespace(z)
    zero = xp.zeros_like(z)
    taken = xp.isfinite(z) & where
    bounded = xp.where(taken, xp.clip(z, -_LARGEST, _LARGEST), zero)
    count = xp.astype(xp.sum(taken), z.dtype)
    mean = xp.sum(bounded) / xp.maximum(count, xp.ones_like(count))
    apart = xp.where(taken, bounded - mean, zero)
    return xp.stack([count, mean, xp.sum(apart**2), xp.sum(apart**3)])


@dataclass(frozen=True)
class FitCheck:
    """What the z-scores of normal validation samples are like, where the fit expects a standard normal distribution.

    A detector often scores its training data lower and closer together than new data. Statistics fitted on those
    scores then give new normals too large z-scores. Too small ones come from another scale: of the step that scored the
    training data, or of data that were prepared in another way. And scores may be skewed, or have tails, that the
    normal distribution has not, whatever they were fitted on.

    Five findings are judged: more normals above 2 or 3 than chance allows, or below -2 or -3; another mean, another
    deviation or another skewness, either way. **A fit without fault gets a warning in at most about one of 1000
    validation runs**: each of the five has a fifth of that. Chance is in the drawn normals, and in the mean and the
    deviation, which were estimated from ``fitted_on`` samples. The rate is for scores of the distribution that is
    fitted. Where they are of another one, sigmas do not mean what they say, and more and more data find that out:

    - counts: binomial, with the probability averaged over what the estimates can be;
    - mean: Student's t with one variance for both samples, exact for any two sizes. (Welch's, which supposes two, is
      wrong four times too often where one sample is small and the other large, and finds less.) Of fewer than five
      normals it is not judged, as it would be that of an outlier;
    - deviation: the ratio of the variances as F, with the degrees of freedom that scores of kurtosis 6 would have
      (Shoemaker, 2003): with those of normal scores, every heavier tail would be another deviation;
    - skewness: of the z-scores themselves, by the transformation of D'Agostino (1970).

    Moments are found only where they move a threshold of two sigmas by a quarter of one, which is a factor of about two
    in the rate of false alarms.

    Under ``source="validation"`` the normals are those that were fitted, so that mean and deviation are right by
    construction, and ``unseen`` is False. The counts are then compared with what a normal sample has beyond 2 and 3
    deviations of its own, and the skewness with 0: that finds scores of another shape, not a drift among them.
    """

    fitted_on: int  #: valid samples that the mean and the deviation are of
    normals: int  #: normal validation samples with a z-score
    above_2: int  #: of those, with z > 2
    above_3: int  #: of those, with z > 3
    below_2: int = 0  #: of those, with z < -2
    below_3: int = 0  #: of those, with z < -3
    mean: float = math.nan  #: of their z-scores, the infinite ones left out; 0 is expected; NaN without any
    std: float = math.nan  #: likewise, the deviation (ddof 1); 1 is expected; NaN of fewer than two
    skewness: float = math.nan  #: likewise, third moment over third power of the deviation (ddof 0); 0 is expected
    unseen: bool = True  #: whether they are other samples than those of the fit

    @classmethod
    def of(cls, fitted_on: int, counts: Iterable[Any], moments: Any, *, unseen: bool = True) -> Self:
        """The check of what was noted of the normals.

        Args:
            fitted_on: see the attribute.
            counts: as ``counted`` gives them.
            moments: as ``moments`` gives them.
            unseen: see the attribute.
        """
        count, mean, squares, cubes = (float(each) for each in moments)
        if count == 0:
            mean = math.nan
        std = math.sqrt(squares / (count - 1)) if count > 1 else math.nan
        skewness = cubes / count / (squares / count) ** 1.5 if squares > 0 else math.nan
        normals, above_2, above_3, below_2, below_3 = map(int, counts)
        return cls(fitted_on, normals, above_2, above_3, below_2, below_3, mean, std, skewness, unseen)

    @classmethod
    @quiet
    def of_scores(cls, fit: Fit, normals: np.ndarray, *, unseen: bool = True) -> Self:
        """The check of the raw image scores (N,) of normals, by the z-scores that ``fit``, of sigmas, gives them."""
        values = normals.astype(np.float64)
        z = METHODS[fit.method.name].extras["z"](values, np.asarray(1.0), *fit.arguments("image"))
        return cls.of(fit.level("image").valid, counted(z), moments(z), unseen=unseen)

    @property
    def share_above_2(self) -> float:
        """Share of the normals above z = 2: 0.023 where the fit holds. NaN without any."""
        return self._share(self.above_2)

    @property
    def share_above_3(self) -> float:
        """Share of the normals above z = 3: 0.0013 where the fit holds. NaN without any."""
        return self._share(self.above_3)

    @property
    def share_below_2(self) -> float:
        """Share of the normals below z = -2: 0.023 where the fit holds. NaN without any."""
        return self._share(self.below_2)

    @property
    def share_below_3(self) -> float:
        """Share of the normals below z = -3: 0.0013 where the fit holds. NaN without any."""
        return self._share(self.below_3)

    def _share(self, count: int) -> float:
        return count / self.normals if self.normals else math.nan

    @property
    def surprising(self) -> bool:
        """Whether anything is there that a fit without fault gives in less than one of 1000 validation runs."""
        is_high, is_low, _ = self._found()
        return is_high or is_low

    def report(self, transform: Transform | None = None) -> bool:
        """Give a `FitWarning` where anything is surprising, and return whether it is.

        Args:
            transform: of the method: the warning suggests the other one where the skewness is of its side.
        """
        is_high, is_low, are_others = self._found()
        shape = (
            "The scores are not distributed as the method supposes: what keeps its promise is a threshold that is "
            'found among the normals themselves, with threshold="false_alarm_rate".'
        )
        if transform is Transform.LOG and self.skewness < 0:
            shape += ' If the scores are less skewed than their logarithms, try transform="identity".'
        if transform is Transform.IDENTITY and self.skewness > 0:
            shape += ' If all scores are above zero, their logarithms may be less skewed: try transform="log".'
        found = []
        if is_high:
            seen = (
                "A detector often scores the data that it was trained on lower than new data. Fit on normals that it "
                'has not seen, with source="validation".'
            )
            found.append(
                f"{self.share_above_2:.1%} lie above z = 2 and {self.share_above_3:.1%} above z = 3, where the fitted "
                "distribution has 2.3% and 0.1%: thresholds in sigmas will give more false alarms than they say. "
                + (seen if are_others else shape)
            )
        if is_low:
            scale = (
                "The data of the fit may be scored on another scale than those of the validation (another step, other "
                "transforms or augmentation), or may not be normal. Score both alike, or fit with "
                'source="validation".'
            )
            found.append(
                f"{self.share_below_2:.1%} lie below z = -2 and {self.share_below_3:.1%} below z = -3, where the "
                "fitted distribution has 2.3% and 0.1%: thresholds in sigmas will miss more anomalies than they "
                "should. " + (scale if are_others else shape)
            )
        if found:
            numbers = (
                f"(Their z-scores have mean {self.mean:.2g}, deviation {self.std:.2g} and skewness {self.skewness:.2g} "
                "in place of 0, 1 and 0.)"
            )
            warn(f"of {self.normals} normal validation samples {' And '.join(found)} {numbers}", FitWarning)
        return bool(found)

    def _found(self) -> tuple[bool, bool, bool]:
        """Whether thresholds in sigmas give more false alarms than they say, and whether they are too high.

        And whether the normals are others than those of the fit in more than skewness: then the data of the fit are to
        be changed, and otherwise the method or the rule of the threshold.
        """
        above = self._is_many(self.above_2, self.above_3)
        below = self._is_many(self.below_2, self.below_3)
        # What moves a threshold of two deviations: the mean, the deviation, and (Cornish and Fisher) the skewness.
        std = self.std if self.normals >= _FEWEST_OF_SHAPE else 1.0
        off, skew = self.mean + 2 * std - 2, self.skewness * (2**2 - 1) / 6
        chance = min(
            _chance_of_mean(self.fitted_on, self.normals, self.mean, self.std),
            _chance_of_std(self.fitted_on, self.normals, self.std),
        )
        moved = self.unseen and abs(off) >= _NOTABLE and chance < _CHANCE
        skewed = abs(skew) >= _NOTABLE and _chance_of_skewness(self.normals, self.skewness) < _CHANCE
        is_high = above or (moved and off > 0) or (skewed and skew > 0)
        is_low = below or (moved and off < 0) or (skewed and skew < 0)
        return is_high, is_low, self.unseen and (above or below or moved)

    def _is_many(self, *beyond: int) -> bool:
        allowed = _CHANCE / len(LIMITS)
        return any(
            self._chance(limit, count) < allowed
            for limit, nominal, count in zip(LIMITS, _BEYOND, beyond, strict=True)
            if count > nominal * self.normals  # an average over many binomials takes its time
        )

    def _chance(self, limit: float, beyond: int) -> float:
        """The probability of ``beyond`` or more normals above ``limit`` where the fit has no fault; or below -limit."""
        from scipy.special import bdtrc, betainc, chdtri, ndtr, ndtri

        if beyond == 0 or self.fitted_on < 2:
            return 1.0
        if not self.unseen and self.fitted_on == self.normals > 2:
            # So far from their own mean, in their own deviations, is one of n normal samples (Thompson, 1935).
            share = min(limit**2 * self.normals / (self.normals - 1) ** 2, 1.0)
            one = (1.0 - betainc(0.5, (self.normals - 2) / 2, share)) / 2
            return float(bdtrc(beyond - 1, self.normals, one))
        # An average over what the estimates can be: the midpoints of equally probable pieces of either.
        probable = (np.arange(512) + 0.5) / 512
        degrees = self.fitted_on - 1
        deviation = np.sqrt(chdtri(degrees, probable) / degrees)  # estimated over true
        mean = ndtri(probable)[:, None] / math.sqrt(self.fitted_on)  # estimated less true, in true deviations
        return float(bdtrc(beyond - 1, self.normals, ndtr(-mean - limit * deviation)).mean())


# Probabilities, where the fit has no fault, of what is at least as far from the expected number on either side. NaN, of
# which nothing is known, gives 1.


def _chance_of_mean(fitted_on: int, normals: int, mean: float, std: float) -> float:
    """Of the mean of z-scores: the difference of two samples of one variance."""
    from scipy.special import stdtr

    degrees = fitted_on + normals - 2
    if math.isnan(std) or fitted_on < 2 or normals < _FEWEST:
        return 1.0
    variance = (fitted_on - 1 + (normals - 1) * std**2) / degrees
    return 2 * float(stdtr(degrees, -abs(mean) / math.sqrt(variance * (1 / fitted_on + 1 / normals))))


def _chance_of_std(fitted_on: int, normals: int, std: float) -> float:
    """Of the deviation of z-scores: the ratio of the variances of two samples."""
    from scipy.special import fdtr, fdtrc

    if math.isnan(std) or fitted_on < 2 or normals < _FEWEST_OF_SHAPE:
        return 1.0
    degrees = (2 * n / (_KURTOSIS - (n - 3) / (n - 1)) for n in (normals, fitted_on))
    ratio = (*degrees, std**2)
    return 2 * float(min(fdtr(*ratio), fdtrc(*ratio)))


def _chance_of_skewness(normals: int, skewness: float) -> float:
    """Of the skewness of a normal sample."""
    from scipy.special import ndtr

    n = normals
    if math.isnan(skewness) or n < _FEWEST_OF_SHAPE:
        return 1.0
    kurtosis = 3 * (n**2 + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    squared = math.sqrt(2 * (kurtosis - 1)) - 1
    scaled = skewness * math.sqrt((n + 1) * (n + 3) / (6 * (n - 2))) * math.sqrt((squared - 1) / 2)
    return 2 * float(ndtr(-abs(math.asinh(scaled)) / math.sqrt(math.log(squared) / 2)))
