"""Draws the pictures of a report as SVG or PNG, without a display and without matplotlib's global state."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, SOFT, GRID = "#1b1f24", "#535b66", "#d8dee4"
COLORS = ("#08519c", "#b35806", "#1b7837", "#762a83", "#a50f15", "#01665e", "#543005", "#4d4d4d")
"""Colours with a contrast of 4.5 or more on white, told apart by lightness, too."""

MAX_POINTS = 800
"""Points of a line; more are averaged in groups, or left out of a curve."""

MAX_VECTOR_POINTS = 1500
"""Points of a scatter plot that are drawn one by one; more are one picture inside the SVG."""

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lingo_ds",
    "font.family": ["sans-serif"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Line(NamedTuple):
    """A line with its name in the legend; without a name it is not in there."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray


class Bar(NamedTuple):
    """A bin of a calibration curve: mean probability, frequency with its interval, and number of answers."""

    probability: float
    frequency: float
    low: float
    high: float
    size: int


def draw_roc(lines: Sequence[Line]) -> bytes:
    """Draws rates of true positives over those of false positives."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        axes.text(0.62, 0.56, "guessing", color=SOFT, fontsize=8.5, rotation=33, rotation_mode="anchor")
        _step_lines(axes, lines)
        _unit_square(axes, "false positive rate", "true positive rate")
        _legend(axes, "lower right")

    return _svg(draw)


def draw_precision_recall(lines: Sequence[Line], *, positives: float | None) -> bytes:
    """Draws precision over recall; `positives` is the share of positives, which guessing reaches."""

    def draw(axes: Axes) -> None:
        if positives is not None:
            axes.axhline(positives, color=SOFT, linewidth=1, linestyle=":")
            below = positives > 0.85
            axes.text(
                0.02,
                positives + (-0.02 if below else 0.02),
                "guessing",
                color=SOFT,
                fontsize=8.5,
                va="top" if below else "bottom",
            )
        _step_lines(axes, lines)
        _unit_square(axes, "recall", "precision")
        _legend(axes, "lower left")

    return _svg(draw)


def draw_calibration(bars: Sequence[Bar], *, x_label: str, y_label: str) -> bytes:
    """Draws the frequency of the truth over the probability given, and below how many answers had it."""

    def draw(axes: Axes) -> None:
        probability, frequency, low, high, count = (
            np.array(column, dtype=float) for column in zip(*bars, strict=True)
        )
        axes.set_position((0.14, 0.38, 0.82, 0.59))
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        axes.vlines(probability, low, high, color=COLORS[0], linewidth=1.2)
        axes.plot(probability, frequency, color=COLORS[0], linewidth=1.5, marker="o", markersize=4.5)
        _unit_square(axes, "", y_label)
        axes.tick_params(labelbottom=False)
        below = axes.figure.add_axes((0.14, 0.14, 0.82, 0.18))
        below.bar(probability, count, width=0.06, color=COLORS[0])
        below.set_xlim(-0.02, 1.02)
        below.set_xlabel(x_label)
        below.set_ylabel("answers")
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        _plain(below)

    return _svg(draw, height=4.0)


def draw_scatter(measured: np.ndarray, predicted: np.ndarray, *, name: str) -> bytes:
    """Draws predicted over measured values, both (n,)."""

    def draw(axes: Axes) -> None:
        least = float(min(measured.min(), predicted.min()))
        most = float(max(measured.max(), predicted.max()))
        room = 0.04 * ((most - least) or 1)
        ends = (least - room, most + room)
        axes.plot(ends, ends, color=SOFT, linewidth=1, linestyle=":")
        axes.scatter(
            measured,
            predicted,
            s=9,
            color=COLORS[0],
            alpha=min(0.8, max(0.08, 300 / len(measured))),
            linewidths=0,
            rasterized=len(measured) > MAX_VECTOR_POINTS,
        )
        axes.set_xlim(ends)
        axes.set_ylim(ends)
        axes.set_xlabel(f"measured {name}")
        axes.set_ylabel(f"predicted {name}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(useOffset=False)
        _plain(axes)

    return _svg(draw, left=0.19)


def draw_confusion(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """Draws a large confusion matrix, (classes, classes), as shares of the true class."""

    def draw(axes: Axes) -> None:
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, rasterized=True)
        axes.invert_yaxis()
        every = max(1, len(names) // 20)
        places = np.arange(0, len(names), every)
        shown = [names[k][:12] for k in places.tolist()]
        axes.set_xticks(places + 0.5, shown, rotation=90, fontsize=7)
        axes.set_yticks(places + 0.5, shown, fontsize=7)
        axes.set_xlabel("decided class")
        axes.set_ylabel("true class")
        axes.tick_params(length=0)

    return _svg(draw, height=4.4, left=0.24, bottom=0.24)


def draw_curves(
    lines: Sequence[Line],
    *,
    y_label: str,
    marks: bool = False,
    selected: int | None = None,
    span: float = 0.0,
) -> bytes:
    """Draws numbers over the steps of a run.

    Args:
        lines: one per number; `x` are steps.
        y_label: what the numbers are.
        marks: whether each point has a mark: there are few.
        selected: step whose adapter was kept; None: none is marked.
        span: the least range of the y axis, so that noise does not look like a trend.
    """

    def draw(axes: Axes) -> None:
        for line, color in zip(lines, COLORS, strict=False):
            x, y = averaged(np.asarray(line.x, float), np.asarray(line.y, float))
            mark = "o" if marks else ""
            axes.plot(x, y, color=color, linewidth=1.5, marker=mark, markersize=4, label=_label(line))
        if selected is not None:
            axes.axvline(selected, color=SOFT, linewidth=1, linestyle=":")
        low, high = axes.get_ylim()
        if high - low < span:
            middle = (low + high) / 2
            axes.set_ylim(middle - span / 2, middle + span / 2)
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        _plain(axes)
        _legend(axes, "best")

    return _svg(draw, height=2.7, left=0.17)


def png(pixels: np.ndarray) -> bytes:
    """A picture, (height, width, 3) uint8, as a PNG file."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return file.getvalue()


def averaged(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a line, means of neighbours where there are more than `MAX_POINTS`."""
    if len(x) <= MAX_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve, evenly spaced ones where there are more than `MAX_POINTS`; its ends are kept."""
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(int))
    return x[kept], y[kept]


def _step_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for line, color in zip(lines, COLORS, strict=False):
        x, y = thinned(np.asarray(line.x, float), np.asarray(line.y, float))
        axes.plot(x, y, color=color, linewidth=1.8 if len(lines) < 4 else 1.3, label=_label(line))


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


def _label(line: Line) -> str:
    """A line's name as matplotlib takes it: one that begins with _ is in no legend."""
    return f"\N{ZERO WIDTH SPACE}{line.name}" if line.name else "_"


def _legend(axes: Axes, place: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    if names:
        axes.legend(handles, names, loc=place, framealpha=0.9, edgecolor="none", fontsize=8.5)


def _svg(
    draw: Callable[[Axes], None], *, height: float = 3.4, left: float = 0.14, bottom: float | None = None
) -> bytes:
    """A figure of 4.6 inches; its margins are fixed: a layout that fits itself takes most of the time."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(4.6, height))
        low = bottom or 0.48 / height
        draw(figure.add_axes((left, low, 0.96 - left, 0.97 - low)))
        file = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        return file.getvalue()
