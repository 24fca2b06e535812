"""Whether fitted statistics describe normal samples that the detector has not seen (clause S9)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomnorm_core.errors import FitWarning, warn

LIMITS = (2.0, 3.0)  # z-scores beyond which normal samples are counted, on either side

_FALSE_WARNINGS = 1e-3  # how often the check may find fault with a fit that has none


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


@dataclass(frozen=True)
class FitCheck:
    """How many normal validation samples lie beyond z = 2 and z = 3, where the normal distribution has few.

    A detector often scores its training data lower and closer together than new data. Statistics fitted on those
    scores then give new normals too large z-scores. Too small ones come from another scale: of the step that scored the
    training data, or of data that were prepared in another way.
    """

    fitted_on: int  # valid samples that the mean and the deviation are of
    normals: int  # normal validation samples with a z-score
    above_2: int  # of those, with z > 2
    above_3: int  # of those, with z > 3
    below_2: int = 0  # of those, with z < -2
    below_3: int = 0  # of those, with z < -3

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
        """Whether there are more than chance allows: a fit without fault gets here about once in a thousand times.

        Chance is both in the normals that were drawn and in the mean and deviation, which were estimated from
        ``fitted_on`` samples; both for normally distributed logarithms.
        """
        return self._is_surprising(self.above_2, self.above_3) or self._is_surprising(self.below_2, self.below_3)

    def _is_surprising(self, *beyond: int) -> bool:
        allowed = _FALSE_WARNINGS / (2 * len(LIMITS))
        return any(self._chance(limit, count) < allowed for limit, count in zip(LIMITS, beyond, strict=True))

    def report(self) -> bool:
        """Give a `FitWarning` where the counts are surprising, and return whether they are."""
        found = []
        if self._is_surprising(self.above_2, self.above_3):
            found.append(
                f"{self.share_above_2:.1%} lie above z = 2 and {self.share_above_3:.1%} above z = 3, where the fitted "
                "distribution has 2.3% and 0.1%: thresholds in sigmas will give more false alarms than they say. A "
                "detector often scores the data that it was trained on lower than new data. Fit on normals that it "
                'has not seen, with source="validation".'
            )
        if self._is_surprising(self.below_2, self.below_3):
            found.append(
                f"{self.share_below_2:.1%} lie below z = -2 and {self.share_below_3:.1%} below z = -3, where the "
                "fitted distribution has 2.3% and 0.1%: thresholds in sigmas will miss more anomalies than they "
                "should. The data of the fit may be scored on another scale than those of the validation (another "
                "step, other transforms or augmentation), or may not be normal. Score both alike, or fit with "
                'source="validation".'
            )
        if found:
            warn(f"of {self.normals} normal validation samples " + " And ".join(found), FitWarning)
        return bool(found)

    def _chance(self, limit: float, beyond: int) -> float:
        """The probability of ``beyond`` or more normals above ``limit`` where the fit has no fault; or below -limit."""
        from scipy.special import bdtrc, chdtri, ndtr, ndtri

        if beyond == 0 or self.fitted_on < 2:
            return 1.0
        # An average over what the estimates can be: the midpoints of equally probable pieces of either.
        probable = (np.arange(512) + 0.5) / 512
        degrees = self.fitted_on - 1
        deviation = np.sqrt(chdtri(degrees, probable) / degrees)  # estimated over true
        mean = ndtri(probable)[:, None] / math.sqrt(self.fitted_on)  # estimated less true, in true deviations
        return float(bdtrc(beyond - 1, self.normals, ndtr(-mean - limit * deviation)).mean())
