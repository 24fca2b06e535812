"""Colors, and where a picture is drawn. matplotlib is imported here, when a picture is asked for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from anomnorm_core.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Each has a contrast of at least 3 on white and on a dark page, and they differ for color-blind people too.
NORMAL = "#3d8fd1"
ANOMALOUS = "#e2622f"
UNLABELLED = "#888888"
F1 = "#259d74"
PRECISION = "#b973c9"
INK = "#7c7c7c"
RAW_MAP, NORMALIZED_MAP = "viridis", "coolwarm"  # the second has its middle, 0.5, at the threshold

# Settings of matplotlib for figures without a ground of their own, for light and dark pages alike.
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
        raise OptionError(f"{argument} holds {axes.size} axes; {rows * columns} matplotlib.axes.Axes are needed.")
    axes = axes.reshape(rows, columns)
    return axes[0, 0].figure, axes


def mark_threshold(axes: "Axes", raw: np.ndarray | float, label: str) -> None:
    """Draw a vertical line at the threshold or, of pixels that have their own, a band over all of them."""
    from matplotlib import rcParams

    low, high, ink = float(np.min(raw)), float(np.max(raw)), rcParams["text.color"]
    if low == high:
        axes.axvline(low, color=ink, linewidth=1.6, label=label)
    else:
        axes.axvspan(low, high, color=ink, alpha=0.25, linewidth=0, label=label)


def put_legend(axes: "Axes") -> None:
    """A legend below the axes, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize="small")
