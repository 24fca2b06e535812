"""Pictures of a normalizer and its scores, of any of the packages: drawn by matplotlib, the extra ``plot``.

All functions take an optional ``ax`` to draw into and return ``(figure, axes)``. They follow the style in force
(``matplotlib.style.use("dark_background")``). Under ``matplotlib.rc_context(EITHER_GROUND)`` figures have no ground of
their own, and their ink is legible on a light one and on a dark one: for web pages.
"""

from anomnorm_core.plot.false_alarm_rates import false_alarms
from anomnorm_core.plot.map_rows import maps
from anomnorm_core.plot.score_histograms import scores
from anomnorm_core.plot.style import EITHER_GROUND
from anomnorm_core.plot.threshold_curves import thresholds

__all__ = ["EITHER_GROUND", "false_alarms", "maps", "scores", "thresholds"]
