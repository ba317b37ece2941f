"""Draws rank map, budget, shares and scores, without a display and without matplotlib's global state."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lingo_ds.monitor.rank_statistics import ScoreHistogram, budget_shares, place_of

_DPI = 110
_MAX_ANNOTATED_LAYERS = 64
_INK, _FAINT, _ABSENT = "#222222", "#d9d9d9", "#eeeeee"
_BUDGET, _KEPT, _RETURNED = "#b8b8b8", "#08519c", "#f2a65a"
_MAX_NAMED_LAYERS = 40


class _Grid(NamedTuple):
    """Kept ranks by position: `ranks` (kinds, layers) is nan where a layer has no site of that kind."""

    ranks: np.ndarray
    kinds: list[str]
    layers: list[int | None]


def draw_rank_map(kept: Mapping[str, int], *, initial_rank: int, title: str) -> np.ndarray:
    """Draws the rank that each site kept: one row per kind of module, one column per layer.

    Args:
        kept: site name (`layers.3.self_attn.q_proj`) to kept rank; the first number in a name is the layer.
        initial_rank: rank of an unpruned site, the dark end of the colours.
        title: text above the map.

    Returns:
        A picture, (height, width, 3) uint8.
    """
    grid = _arrange(kept)
    rows, columns = grid.ranks.shape
    cell = min(0.62, max(0.22, 15 / columns))  # inches
    size = (max(5.0, 2.4 + cell * columns), 1.1 + 0.38 * rows)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    colors = colormaps["Blues"].with_extremes(bad=_ABSENT)
    ranks = np.ma.masked_invalid(grid.ranks)
    mesh = axes.pcolormesh(ranks, cmap=colors, vmin=0, vmax=initial_rank, edgecolors="white", linewidth=1)
    if columns <= _MAX_ANNOTATED_LAYERS:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9 if cell > 0.4 else 7}
        for (row, column), rank in np.ma.ndenumerate(ranks):
            ink = "white" if rank > 0.55 * initial_rank else _INK
            axes.text(column + 0.5, row + 0.5, f"{rank:.0f}", color=ink, **style)
    every = 1 if columns <= _MAX_NAMED_LAYERS else 4
    shown = ["-" if layer is None else str(layer) for layer in grid.layers]
    axes.set_xticks(np.arange(columns)[::every] + 0.5, shown[::every])
    axes.set_yticks(np.arange(rows) + 0.5, grid.kinds)
    axes.invert_yaxis()
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", fontsize=9)
    axes.set_title(title, fontsize=11, loc="left")
    inch = 1 / max(2.6, cell * columns)  # one inch as a fraction of the map's width
    beside = axes.inset_axes((1 + 0.12 * inch, 0, 0.16 * inch, 1))
    bar = figure.colorbar(mesh, cax=beside, ticks=MaxNLocator(4, integer=True))
    bar.set_label("kept rank", fontsize=9)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.outline.set_visible(False)
    return _pixels(figure)


def draw_budget(history: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Draws the rank budget, the kept and the returned triplets at each mask event.

    Args:
        history: (step, budget, kept, returned) per mask event, all but the step in triplets.

    Returns:
        A picture, (height, width, 3) uint8.
    """
    steps, budget, kept, returned = np.asarray(history, dtype=np.int64).reshape(-1, 4).T
    figure = Figure(figsize=(6.4, 3.4), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    events = axes.twinx()
    axes.set_zorder(events.get_zorder() + 1)  # lines are drawn in front of bars
    axes.patch.set_visible(False)
    apart = np.median(np.diff(steps)) if len(steps) > 1 else 1  # the final mask may follow closely
    bars = events.bar(steps, returned, width=0.6 * apart, color=_RETURNED, label="returned (right axis)")
    (wide,) = axes.plot(steps, budget, color=_BUDGET, linewidth=6, marker="o", markersize=6, label="budget")
    (thin,) = axes.plot(steps, kept, color=_KEPT, linewidth=1.5, marker="o", markersize=3, label="kept")
    axes.set_xlim(0, steps.max(initial=1) + apart)
    events.set_ylim(0, max(4, 3 * returned.max(initial=0)))  # bars stay in the lower third
    axes.set_ylim(0, max(1, 1.08 * max(budget.max(initial=0), kept.max(initial=0))))
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel("triplets", fontsize=9)
    events.set_ylabel("returned", fontsize=9)
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    for one in (axes, events):
        one.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        one.tick_params(length=0, labelsize=8)
        one.spines[["top", "left", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    figure.legend(
        handles=[wide, thin, bars],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=9,
        borderpad=0.2,
    )
    return _pixels(figure)


def draw_shares(kept: Mapping[str, int]) -> np.ndarray:
    """Draws the share of the kept triplets of each layer and of each kind of map.

    Args:
        kept: site name to kept rank.

    Returns:
        A picture, (height, width, 3) uint8.
    """
    shares = budget_shares(kept)
    layers, kinds = shares["by_layer"], shares["by_kind"]
    size = (max(7.0, 4.6 + 0.12 * len(layers)), max(2.6, 0.9 + 0.26 * len(kinds)))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    left.bar(range(len(layers)), list(layers.values()), color=_KEPT, width=0.8)
    every = 1 if len(layers) <= _MAX_NAMED_LAYERS / 2 else 4
    left.set_xticks(range(len(layers))[::every], list(layers)[::every])
    left.set_xlabel("layer", fontsize=9)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set_title("share of the kept triplets", fontsize=11, loc="left")
    right.barh(range(len(kinds)), list(kinds.values()), color=_KEPT, height=0.8)
    right.set_yticks(range(len(kinds)), list(kinds))
    right.invert_yaxis()
    right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes, grid in ((left, "y"), (right, "x")):
        axes.grid(axis=grid, color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[["top", "left", "right"]].set_visible(False)
    return _pixels(figure)


def draw_scores(scores: ScoreHistogram) -> np.ndarray:
    """Draws the scores of kept and pruned triplets at one mask event, stacked, on a logarithmic axis.

    Returns:
        A picture, (height, width, 3) uint8.
    """
    figure = Figure(figsize=(6.4, 2.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    edges, widths = np.array(scores.edges[:-1]), np.diff(scores.edges)
    bars: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.4}
    axes.bar(edges, scores.pruned, widths, color=_BUDGET, label="pruned", **bars)
    axes.bar(edges, scores.kept, widths, bottom=scores.pruned, color=_KEPT, label="kept", **bars)
    axes.set_xscale("log")
    axes.set_xlabel("score of a triplet", fontsize=9)
    axes.set_ylabel("triplets", fontsize=9)
    axes.set_title(f"step {scores.step}", fontsize=11, loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both", labelsize=8)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return _pixels(figure)


def _arrange(kept: Mapping[str, int]) -> _Grid:
    """Sorts sites by layer, the first number in a name, and by kind, the rest, in order of appearance."""
    placed = {name: place_of(name) for name in kept}
    several_stacks = len({stack for stack, _, _ in placed.values() if stack}) > 1
    suffix_of = {
        name: f"{stack}.{rest}" if stack and several_stacks else rest
        for name, (stack, _, rest) in placed.items()
    }
    kinds = list(dict.fromkeys(suffix_of.values()))
    layers = sorted({layer for _, layer, _ in placed.values()}, key=lambda layer: (layer is None, layer))
    ranks = np.full((max(1, len(kinds)), max(1, len(layers))), np.nan)
    for name, rank in kept.items():
        ranks[kinds.index(suffix_of[name]), layers.index(placed[name][1])] = rank
    return _Grid(ranks, kinds or [""], layers or [None])


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
