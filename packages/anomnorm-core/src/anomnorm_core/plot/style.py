"""Colors, and where a picture is drawn. matplotlib is imported here, when a picture is asked for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from anomnorm_core.errors import OptionError
from anomnorm_core.fit import Threshold
from anomnorm_core.method import Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Each has a contrast of at least 3 on white and on a dark page, and they differ for color-blind people too.
NORMAL = "#3d8fd1"
ANOMALOUS = "#e2622f"
F1 = "#259d74"
PRECISION = "#b973c9"
INK = "#7c7c7c"
FLAGGED, TRUTH = "#ff3df5", "#34e8f0"  # outlines in images, which are of any color
RAW_MAP, NORMALIZED_MAP = "viridis", "coolwarm"  # the second has its middle, 0.5, at the threshold

#: Settings of matplotlib for figures without a ground of their own, for light and dark pages alike.
EITHER_GROUND: Mapping[str, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "xtick.labelcolor", "ytick.color", "ytick.labelcolor"), INK),
    **dict.fromkeys(("figure.facecolor", "figure.edgecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("savefig.facecolor", "savefig.edgecolor"), "none"),
}


def require_matplotlib() -> None:
    """Raise `ModuleNotFoundError` with the remedy where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError(
            'pictures are drawn by matplotlib, which is not installed: pip install "anomnorm-core[plot]"',
            name="matplotlib",
        ) from error


def axes_of(
    ax: Any, rows: int, columns: int, size: tuple[float, float], argument: str = "ax"
) -> "tuple[Figure, np.ndarray]":
    """The figure and the axes to draw into, of shape (rows, columns): those given, or new ones of ``size`` in inches.

    Raises:
        OptionError: there are more or fewer of them.
        ModuleNotFoundError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.axes import Axes

    if ax is None:
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        return figure, axes
    axes = np.asarray(ax, dtype=object)
    if axes.size != rows * columns or not all(isinstance(each, Axes) for each in axes.flat):
        raise OptionError(f"{argument} holds {axes.size} objects; {rows * columns} matplotlib.axes.Axes are needed.")
    axes = axes.reshape(rows, columns)
    return _figure_of(axes[0, 0]), axes


def short(threshold: Threshold) -> str:
    """A threshold in a few characters."""
    low, high = float(np.min(threshold.raw)), float(np.max(threshold.raw))
    raw = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return raw if threshold.sigmas is None else f"{raw} ({threshold.sigmas:.3g} sigmas)"


def text_color() -> str:
    """The color of text in the style in force, which is legible on its ground."""
    from matplotlib import rcParams

    return str(rcParams["text.color"])


def mark_threshold(axes: "Axes", raw: np.ndarray | float, label: str) -> None:
    """Draw a vertical line at the threshold or, of pixels that have their own, a band over all of them."""
    low, high, ink = float(np.min(raw)), float(np.max(raw)), text_color()
    if low == high:
        axes.axvline(low, color=ink, linewidth=1.6, label=label)
    else:
        axes.axvspan(low, high, color=ink, alpha=0.25, linewidth=0, label=label)


def has_log_axis(method: Method, scores: np.ndarray, threshold: np.ndarray) -> bool:
    """Whether raw scores are drawn on a logarithmic axis.

    Those of a method that takes the logarithm, and positive ones of which one is a hundred times as large as most.
    """
    finite = scores[np.isfinite(scores)]
    if method.positive or not finite.size:
        return method.positive
    is_positive = float(finite.min()) > 0 and float(np.min(threshold)) > 0
    return is_positive and float(finite.max()) > 100 * float(np.median(finite))


def raw_axis(axes: "Axes", *, is_log: bool, level: str = "image") -> None:
    """Let x be raw scores: logarithmic where the method takes the logarithm, with plain numbers."""
    axes.set_xlabel(f"raw {level} score" + (" (log scale)" if is_log else ""))
    if is_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        plain_numbers(axes.xaxis, (1.0, 2.0, 5.0) if high < 30 * low else (1.0,))


def plain_numbers(axis: "Axis", steps: tuple[float, ...] = (1.0,)) -> None:
    """Write 0.1, 1 and 10 along a logarithmic axis, and not powers; with these ``steps`` in each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def put_legend(axes: "Axes", columns: int = 2) -> None:
    """A legend below the axes, where it hides nothing."""
    from matplotlib.transforms import ScaledTranslation

    below = axes.transAxes + ScaledTranslation(0, -40 / 72, _figure_of(axes).dpi_scale_trans)  # inches
    look: dict[str, Any] = {"ncols": columns, "frameon": False, "fontsize": "small"}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, **look)


def _figure_of(axes: "Axes") -> "Figure":
    figure = axes.get_figure()
    while figure is not None and not hasattr(figure, "savefig"):  # a part of one
        figure = figure.get_figure()
    if figure is None:
        raise OptionError("the axes belong to no figure any more; give others.")
    return cast("Figure", figure)
