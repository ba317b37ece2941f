"""Motifs on disk: a MEME file, tables, logos, and the known motifs that they are like."""

import csv
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lingo_ds.interpret.extras import import_extra
from lingo_ds.interpret.motifs import Motif
from lingo_ds.interpret.pictures import draw_logo
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.files import atomic_write, make_folder

logger = logging.getLogger(__name__)

FEW_KNOWN = 25
"""Fewer known motifs give tomtom's p values too little to compare with."""


class MotifRow(NamedTuple):
    """A line of the table of motifs.

    Attributes:
        name: of the motif.
        consensus: in IUPAC letters.
        sites: how many there are.
        sequences: in how many sequences.
        effect: mean sum of attributions of a site.
        reverse: share of its sites that are on the other strand.
        match: name of the likest known motif; empty: none was given.
        p_value: tomtom's, of that match.
    """

    name: str
    consensus: str
    sites: int
    sequences: int
    effect: float
    reverse: float
    match: str = ""
    p_value: float | None = None


def read_database(path: Path) -> dict[str, np.ndarray]:
    """Known motifs (4, width) by name, of a file in MEME format.

    Raises:
        UserError: where it cannot be read or holds none.
    """
    fix = "give a file in MEME format, e.g. JASPAR's"
    try:
        found: dict[str, np.ndarray] = import_extra("memelite.io", option="--database").read_meme(str(path))
    except (OSError, ValueError, AttributeError, IndexError) as error:
        rule = f"cannot be read as MEME ({reason_of(error)})"
        raise UserError(Mistake("--database", path, rule, fix)) from None
    if not found:
        raise UserError(Mistake("--database", path, "holds no motif", fix))
    if len(found) < FEW_KNOWN:
        logger.warning("%d known motifs: p values of matches want %d or more", len(found), FEW_KNOWN)
    return found


def write(motifs: Sequence[Motif], folder: Path, *, known: Mapping[str, np.ndarray]) -> list[MotifRow]:
    """Writes `motifs.meme`, `motifs.csv`, `motif_sites.csv` and `logos/`; returns the rows of the table.

    Args:
        motifs: what was found.
        folder: where to.
        known: motifs (4, width) by name to compare with; empty: none.
    """
    rows = _rows(motifs, known)
    matrices = {f"{row.name} {row.consensus}": one.matrix for row, one in zip(rows, motifs, strict=True)}
    meme = import_extra("memelite.io", option="--motifs")
    atomic_write(folder / "motifs.meme", lambda aside: meme.write_meme(str(aside), matrices))
    _write_csv(folder / "motifs.csv", list(MotifRow._fields), rows)
    sites = [
        (
            row.name,
            site.sequence,
            site.begin,
            site.end,
            "-" if site.reverse else "+",
            f"{site.attribution:.6g}",
        )
        for row, motif in zip(rows, motifs, strict=True)
        for site in motif.sites
    ]
    header = ["motif", "sequence", "begin", "end", "strand", "attribution"]
    _write_csv(folder / "motif_sites.csv", header, sites)
    logos = folder / "logos"
    shutil.rmtree(logos, ignore_errors=True)
    make_folder(logos, setting="--output")
    for row, motif in zip(rows, motifs, strict=True):
        _draw(motif, logos / f"{row.name}.png", title=f"{row.name}: {row.sites:,} sites {row.effect:+.2f}")
    return rows


def best_matches(motifs: Sequence[Motif], known: Mapping[str, np.ndarray]) -> list[tuple[str, float]]:
    """The likest known motif of each by tomtom (Gupta et al. 2007, Genome Biol 8:R24), with its p value."""
    tomtom = import_extra("memelite", option="--database").tomtom
    text = "comparing %d motifs with %s known ones; the first time tomtom is compiled, which takes a minute"
    logger.info(text, len(motifs), f"{len(known):,}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few known motifs: `read_database` has told
        p_values = tomtom([one.matrix for one in motifs], list(known.values()), n_jobs=1)[0]
    names = list(known)
    return [(names[int(row.argmin())], float(row.min())) for row in np.asarray(p_values)]


def _rows(motifs: Sequence[Motif], known: Mapping[str, np.ndarray]) -> list[MotifRow]:
    matches = best_matches(motifs, known) if known and motifs else [("", None)] * len(motifs)
    return [
        MotifRow(
            f"motif_{number}",
            motif.consensus,
            len(motif.sites),
            len({site.sequence for site in motif.sites}),
            round(motif.effect, 4),
            round(float(np.mean([site.reverse for site in motif.sites])), 4),
            match,
            p_value,
        )
        for number, (motif, (match, p_value)) in enumerate(zip(motifs, matches, strict=True), 1)
    ]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    def write_rows(aside: Path) -> None:
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    atomic_write(path, write_rows)


def _draw(motif: Motif, path: Path, *, title: str) -> None:
    """Draws a motif's letters by their information in bits."""
    from matplotlib.figure import Figure

    matrix = motif.matrix
    bits = 2 + (matrix * np.log2(matrix)).sum(0)
    figure = Figure(figsize=(max(2.5, 0.3 * matrix.shape[1] + 0.8), 1.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    draw_logo(np.column_stack([(matrix * bits).T, np.zeros(matrix.shape[1])]), axes)
    axes.set_ylim(0, 2)
    axes.set_ylabel("bits")
    axes.set_xticks([])
    axes.set_title(title, fontsize=8)
    atomic_write(path, lambda aside: figure.savefig(aside, format="png"))
