"""Draws docs/pictures/rooms.svg anew from the import rules of pyproject.toml.

    python -m scripts.rooms_picture [--output FILE]     # or: make picture

One row per floor, one box per room; a room with rules of its own shows its layers, and a room that imports a
library which no other may shows which module does it.
"""

import argparse
import re
import sys
import textwrap
from html import unescape
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from scripts.import_rules import PACKAGE, ImportRules, read_rules
from scripts.readme_tree import ROOT, first_line

WIDTH = 12.0
"""Inches of the picture."""

LEFT = 0.75
"""Inches left of the rooms, for the arrow and the numbers of floors."""

GAP, PAD, LINE = 0.14, 0.10, 0.165
"""Inches between boxes, inside a box's edge, and for one line of small text."""

FILLS = ("#fbe3d6", "#fcefc9", "#e6f0d0", "#d5ecdf", "#d3e6f1", "#dddff2", "#e9e9e9")
"""Colours of the floors, from the top."""


def labels(svg: str) -> list[str]:
    """The texts of a picture, in the order in which they are drawn."""
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def draw(root: Path, output: Path) -> None:
    """Draws the rooms of the checkout at `root` into an SVG file whose texts stay texts."""
    rules = read_rules(root)
    floors = rules.floors[PACKAGE]
    rooms = [[_Room(name, rules, root, len(floor)) for name in floor] for floor in floors]
    heights = [max(room.height for room in floor) for floor in rooms]
    height = sum(heights) + GAP * (len(floors) + 1)
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": PACKAGE, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.axis("off")
        _draw_arrow(axes, height)
        top = GAP
        for number, (floor, floor_height) in enumerate(zip(rooms, heights, strict=True)):
            axes.text(LEFT - 0.12, top + floor_height / 2, str(len(floors) - number), ha="right", va="center")
            for place, room in enumerate(floor):
                room.draw(
                    axes, LEFT + place * (room.width + GAP), top, floor_height, FILLS[number % len(FILLS)]
                )
            top += floor_height + GAP
        figure.savefig(output, format="svg", metadata={"Date": None})


def _draw_arrow(axes: Axes, height: float) -> None:
    axes.annotate("", xy=(0.3, height - GAP), xytext=(0.3, GAP), arrowprops={"arrowstyle": "-|>", "lw": 1.5})
    axes.text(0.16, height / 2, "imports", rotation=90, ha="center", va="center", fontsize=9)


class _Room:
    """One box: a room's name, its sentence, its own layers and its seams."""

    def __init__(self, name: str, rules: ImportRules, root: Path, neighbours: int):
        self.name = name
        self.width = (WIDTH - LEFT - GAP * neighbours) / neighbours
        columns = int(self.width / 0.07)
        sentence = first_line(root / PACKAGE / name / "__init__.py")
        self._sentence = textwrap.wrap(sentence, columns)
        layers = rules.floors.get(f"{PACKAGE}.{name}", [])
        self._layers = [textwrap.wrap(" | ".join(layer), columns - 3) for layer in layers]
        self._seams = [
            f"{seam.library} is imported by {module.partition('.')[2]}"
            for seam in rules.seams
            for module in seam.modules
            if module.partition(".")[0] == name
        ]
        self.height = (
            2 * PAD
            + LINE * (1.3 + len(self._sentence) + len(self._seams))
            + sum(self._layer_height(lines) + 0.05 for lines in self._layers)
        )

    @staticmethod
    def _layer_height(lines: list[str]) -> float:
        return LINE * len(lines) + 0.08

    def draw(self, axes: Axes, left: float, top: float, height: float, fill: str) -> None:
        """Draws the box at (left, top), as high as its floor."""
        _box(axes, left, top, self.width, height, fill)
        at = top + PAD
        axes.text(left + PAD, at, self.name, fontsize=11, fontweight="bold", va="top")
        at += 1.3 * LINE
        at = self._write(axes, left + PAD, at, self._sentence)
        for lines in self._layers:
            _box(axes, left + PAD, at, self.width - 2 * PAD, self._layer_height(lines), "white")
            self._write(axes, left + 1.6 * PAD, at + 0.04, lines)
            at += self._layer_height(lines) + 0.05
        self._write(axes, left + PAD, at + 0.02, self._seams, style="italic")

    @staticmethod
    def _write(axes: Axes, left: float, at: float, lines: list[str], style: str = "normal") -> float:
        for line in lines:
            axes.text(left, at, line, fontsize=8, va="top", style=style)
            at += LINE
        return at


def _box(axes: Axes, left: float, top: float, width: float, height: float, fill: str) -> None:
    style = "round,pad=0,rounding_size=0.05"
    axes.add_patch(
        FancyBboxPatch((left, top), width, height, style, facecolor=fill, edgecolor="#555555", lw=0.8)
    )


def main(argv: list[str] | None = None) -> int:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description="the rooms and floors of the package, from its import rules")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/pictures/rooms.svg", metavar="FILE")
    draw(ROOT, parser.parse_args(argv).output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
