"""Pictures of the calibration study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alarms import ALL, CONFIDENCE, RATES, SIZES, Row

Mean = Callable[[Row], Any]  # of `calibration.Study`
COLORS = {"training": "#b2182b", "sigmas": "#ef8a62", "identity": "#a6a6a6", "rate": "#2166ac", "confidence": "#67a9cf"}
PANELS = ((ALL, "training", "fitted on training data"), (5, "validation", "5 validation normals"))
PANELS += ((20, "validation", "20 validation normals"), (ALL, "validation", "all validation normals"))
LINES = (
    ("sigmas", "identity", "identity", "sigmas, identity"),
    ("sigmas", "log", "sigmas", "sigmas, log"),
    ("false_alarm_rate", "log", "rate", "false_alarm_rate, log"),
)


def draw_reliability(mean: Mean, path: Path) -> None:
    """Observed against promised rates; filled marks are guaranteed."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.3), sharex=True, sharey=True, layout="constrained")
    for axis, (size, fitted_on, title) in zip(axes, PANELS, strict=True):
        ends = 0.8 * RATES[-1], 1.3 * RATES[0]
        axis.plot(ends, ends, color="black", linewidth=0.8)
        axis.fill_between(ends, ends, [1.3 * end for end in ends], color="#dddddd", linewidth=0)
        for rule, transform, color, label in LINES:
            means = [mean(Row(rule, transform, rate, fitted_on, size)) for rate in RATES]
            values = [each.value for each in means]
            axis.plot(RATES, values, color=COLORS[color], label=label, linewidth=1.2)
            guaranteed = fitted_on == "validation"
            for rate, each in zip(RATES, means, strict=True):
                face = COLORS[color] if each.guaranteed and guaranteed else "white"
                axis.plot(rate, each.value, "o", color=COLORS[color], markerfacecolor=face, markersize=4)
        axis.set(xscale="log", yscale="log", title=title, xlabel="promised")
        axis.title.set_fontsize(10)
        axis.set_xticks([0.001, 0.01, 0.1], ["0.1%", "1%", "10%"])
        axis.set_yticks([0.001, 0.01, 0.1], ["0.1%", "1%", "10%"])
        axis.minorticks_off()
    axes[0].set_ylabel("observed false-alarm rate")
    axes[0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_by_size(mean: Mean, path: Path) -> None:
    """What a promise of one percent gives, by how many normals there are."""
    from matplotlib import pyplot

    rate = 0.01
    lines = (
        ("sigmas", "log", "sigmas", "sigmas for 1%"),
        ("false_alarm_rate", "identity", "identity", "false_alarm_rate=0.01, identity"),
        ("false_alarm_rate", "log", "rate", "false_alarm_rate=0.01, log"),
        ("confidence", "log", "confidence", f"the same, confidence={CONFIDENCE}"),
    )
    figure, axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    axis.axhline(rate, color="black", linewidth=0.8)
    training = mean(Row("sigmas", "log", rate, "training", ALL)).value
    axis.axhline(training, color=COLORS["training"], linewidth=1.2, label="sigmas for 1%, fitted on training data")
    for rule, transform, color, label in lines:
        means = [mean(Row(rule, transform, rate, "validation", size)) for size in SIZES]
        axis.plot(SIZES, [each.value for each in means], color=COLORS[color], label=label, linewidth=1.2)
        for size, each in zip(SIZES, means, strict=True):
            face = COLORS[color] if each.guaranteed else "white"
            axis.plot(size, each.value, "o", color=COLORS[color], markerfacecolor=face, markersize=5)
    axis.set(xscale="log", yscale="log", xlabel="validation normals", ylabel="observed false-alarm rate")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2]
    axis.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
