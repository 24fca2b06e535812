"""Whether fitted statistics describe normal samples that the detector has not seen (clause S9)."""

import math
from dataclasses import dataclass

import numpy as np

from anomnorm_core.errors import FitWarning, warn

LIMITS = (2.0, 3.0)  # z-scores above which normal samples are counted

_FALSE_WARNINGS = 1e-3  # how often the check may find fault with a fit that has none


@dataclass(frozen=True)
class FitCheck:
    """How many normal validation samples lie above z = 2 and z = 3, where the normal distribution has few.

    A detector often scores its training data lower and closer together than new data. Statistics fitted on those
    scores then give new normals too large z-scores.
    """

    fitted_on: int  # valid samples that the mean and the deviation are of
    normals: int  # normal validation samples with a z-score
    above_2: int  # of those, with z > 2
    above_3: int  # of those, with z > 3

    @property
    def share_above_2(self) -> float:
        """Share of the normals above z = 2: 0.023 where the fit holds. NaN without any."""
        return self.above_2 / self.normals if self.normals else math.nan

    @property
    def share_above_3(self) -> float:
        """Share of the normals above z = 3: 0.0013 where the fit holds. NaN without any."""
        return self.above_3 / self.normals if self.normals else math.nan

    @property
    def surprising(self) -> bool:
        """Whether there are more than chance allows: a fit without fault gets here about once in a thousand times.

        Chance is both in the normals that were drawn and in the mean and deviation, which were estimated from
        ``fitted_on`` samples; both for normally distributed logarithms.
        """
        return any(
            self._chance(limit, above) < _FALSE_WARNINGS / len(LIMITS)
            for limit, above in zip(LIMITS, (self.above_2, self.above_3), strict=True)
        )

    def report(self) -> bool:
        """Give a `FitWarning` where the counts are surprising, and return whether they are."""
        surprising = self.surprising
        if surprising:
            warn(
                f"of {self.normals} normal validation samples {self.share_above_2:.1%} lie above z = 2 and "
                f"{self.share_above_3:.1%} above z = 3, where the fitted distribution has 2.3% and 0.1%: thresholds in "
                "sigmas will give more false alarms than they say. A detector often scores the data that it was "
                'trained on lower than new data. Fit on normals that it has not seen, with source="validation".',
                FitWarning,
            )
        return surprising

    def _chance(self, limit: float, above: int) -> float:
        """The probability of ``above`` or more normals above ``limit`` where the fit has no fault."""
        from scipy.special import bdtrc, chdtri, ndtr, ndtri

        if above == 0 or self.fitted_on < 2:
            return 1.0
        # An average over what the estimates can be: the midpoints of equally probable pieces of either.
        probable = (np.arange(512) + 0.5) / 512
        degrees = self.fitted_on - 1
        deviation = np.sqrt(chdtri(degrees, probable) / degrees)  # estimated over true
        mean = ndtri(probable)[:, None] / math.sqrt(self.fitted_on)  # estimated less true, in true deviations
        return float(bdtrc(above - 1, self.normals, ndtr(-mean - limit * deviation)).mean())
