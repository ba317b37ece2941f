"""The picture of an explained sequence: a logo of what each base adds, over the effects of all changes."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from lingo_ds.data.one_hot import BASES, one_hot
from lingo_ds.interpret.explained import Explained
from lingo_ds.interpret.extras import import_extra
from lingo_ds.utils.files import atomic_write

MOST_BASES = 200
"""Bases of a picture; of a longer sequence the stretch with the strongest attributions is drawn."""

COLORS = {"A": "#2a9d3a", "C": "#2563c9", "G": "#e08a00", "T": "#d62839", "N": "#888888"}
"""Colours of letters, as sequence logos have them."""


def picture_name(id: str | int, taken: set[str]) -> str:
    """A file name for an id, other than those that are taken, to which it is added."""
    name = plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", str(id)).strip(".")[:100] or "sequence"
    number = 1
    while name in taken:
        number += 1
        name = f"{plain}_{number}"
    taken.add(name)
    return name


def draw_explained(one: Explained, path: Path, *, scale: str) -> None:
    """Draws a sequence as PNG; `scale` says what the effects are changes of.

    Raises:
        UserError: where logomaker is not installed.
    """
    from matplotlib.figure import Figure

    begin, end = strongest_stretch(one.attributions)
    attributions, width = one.attributions[begin:end], end - begin
    heat = one.effects.shape[1] == 4
    figure = Figure(
        figsize=(max(6.0, 0.14 * width + 1.6), 3.4 if heat else 2.3), dpi=100, layout="constrained"
    )
    axes = figure.subplots(1 + heat, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 + heat])[:, 0]
    draw_logo(_heights(one.sequence[begin:end], attributions), axes[0])
    axes[0].set_ylabel("attribution")
    part = f", bases {begin + 1} to {end} of {len(one.sequence)}" if width < len(one.sequence) else ""
    axes[0].set_title(f"{one.id}: {scale}{part}", fontsize=10)
    if heat:
        _draw_heat_map(one.effects[begin:end], one.sequence[begin:end], axes[1], figure)
    step = 10 if width > 30 else 5
    ticks = [place for place in range(width) if (begin + place + 1) % step == 0]
    axes[-1].set_xticks(ticks, [str(begin + place + 1) for place in ticks], fontsize=8)
    axes[-1].set_xlabel("position, counted from 1")
    atomic_write(path, lambda aside: figure.savefig(aside, format="png"))


def strongest_stretch(attributions: np.ndarray) -> tuple[int, int]:
    """Begin and end of the `MOST_BASES` with the largest sum of absolute attributions (length,)."""
    if len(attributions) <= MOST_BASES:
        return 0, len(attributions)
    sums = np.convolve(np.abs(attributions), np.ones(MOST_BASES), mode="valid")
    begin = int(sums.argmax())
    return begin, begin + MOST_BASES


def draw_logo(heights: np.ndarray, axes: Any) -> None:
    """Draws letters of heights (length, 5), of A C G T N, into axes of matplotlib."""
    logomaker, pandas = (import_extra(name, option="pictures") for name in ("logomaker", "pandas"))
    letters = pandas.DataFrame(heights, columns=list("ACGTN"))
    logomaker.Logo(letters, ax=axes, color_scheme=COLORS, show_spines=False, baseline_width=0.5)
    axes.spines["left"].set_visible(True)
    axes.tick_params(labelsize=8)


def _heights(sequence: str, attributions: np.ndarray) -> np.ndarray:
    """(length, 5) with each attribution at its base."""
    is_base = one_hot([sequence], width=len(sequence))[0].numpy().T
    return np.column_stack([is_base, 1 - is_base.sum(1)]) * attributions[:, None]


def _draw_heat_map(effects: np.ndarray, sequence: str, axes: Any, figure: Any) -> None:
    """Draws effects (length, 4): red raises the score, blue lowers it, a dot is the sequence's own base."""
    largest = max(float(np.abs(effects).max()), 1e-9)
    image = axes.imshow(effects.T, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
    own = [(x, BASES.index(letter)) for x, letter in enumerate(sequence.replace("U", "T")) if letter in BASES]
    if own:
        axes.plot(*np.array(own).T, ".", color="black", markersize=3)
    axes.set_yticks(range(4), list(BASES), fontsize=8)
    axes.set_ylabel("changed to")
    figure.colorbar(image, ax=axes, label="effect", pad=0.01, aspect=8)
