"""The folder of `lingo-ds explain` after its table: pictures, motifs, and what is told of them."""

import heapq
import logging
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lingo_ds.data.one_hot import BASES
from lingo_ds.distributed import watchdog
from lingo_ds.interpret.explained import Explained, is_of_job, read_explained
from lingo_ds.interpret.pictures import draw_explained, picture_name
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import make_folder

logger = logging.getLogger(__name__)

TABLES = {"ism": "effects.parquet", "integrated-gradients": "attributions.parquet"}
"""The table of each method."""

STRONGEST = 5
"""Effects that the summary tells."""


def require_folder(folder: Path, table: Path, facts: dict[str, Any], *, overwrite: bool) -> None:
    """Checks that a job may write into a folder: it is new, or holds an unfinished or the same job.

    Raises:
        UserError: where it cannot be written, or its table is another job's and may not be replaced.
    """
    make_folder(folder, setting="--output")
    if table.exists() and not overwrite and not is_of_job(table, facts):
        rule = f"holds {table.name} of another adapter, input or options"
        raise UserError(Mistake("--output", folder, rule, "name another folder, or give --overwrite"))


def draw_pictures(table: Path, folder: Path, *, most: int, scale: str) -> int:
    """Draws the first sequences of a table; returns how many."""
    taken: set[str] = set()
    if most:
        make_folder(folder, setting="--output")
        for one in islice(read_explained(table), most):
            watchdog.beat()
            draw_explained(one, folder / f"{picture_name(one.id, taken)}.png", scale=scale)
    return len(taken)


class _Effect(NamedTuple):
    """One number of the summary, ordered by its size."""

    size: float
    id: str
    position: int
    change: str
    value: float


def print_summary(table: Path, scale: str, *, drawn: int) -> None:
    """Prints how many sequences were explained, and the strongest effects."""
    count, strongest = 0, list[_Effect]()
    for one in read_explained(table):
        count += 1
        strongest = heapq.nlargest(STRONGEST, [*strongest, *_strongest(one)])
    ism = table.name == TABLES["ism"]
    show = _printer()
    show(f"{count:,} sequences, {'effects on' if ism else 'attributions to'} the {scale}: {table}")
    for effect in strongest:
        show(f"  {effect.id}  position {effect.position}  {effect.change}  {effect.value:+.3f}")
    if drawn:
        cap = f" of the first {drawn:,}; --pictures N draws more" if drawn < count else ""
        show(f"pictures{cap}: {table.parent / 'pictures'}")


def _strongest(one: Explained) -> list[_Effect]:
    flat = one.effects.ravel()
    width = one.effects.shape[1]
    found = []
    for place in np.argsort(-np.abs(flat), kind="stable")[:STRONGEST].tolist():
        position, base = divmod(place, width)
        own = one.sequence[position]
        change = f"{own}>{BASES[base]}" if width == 4 else own
        found.append(_Effect(abs(float(flat[place])), str(one.id), position + 1, change, float(flat[place])))
    return found


def write_motifs(table: Path, folder: Path, *, database: Path | None) -> None:
    """Finds the motifs of a table's sequences, writes them and prints a line for each."""
    from lingo_ds.interpret import motif_files, motifs

    known = motif_files.read_database(database) if database else {}
    found = motifs.find_motifs(list(read_explained(table)))
    rows = motif_files.write(found, folder, known=known)
    show = _printer()
    show(f"{len(found):,} motifs: {folder / 'motifs.meme'}, {folder / 'motifs.csv'}")
    for row in rows:
        match = f"  like {row.match} (p {row.p_value:.1e})" if row.match else ""
        show(f"  {row.name}  {row.consensus}  {row.sites:,} sites, each {row.effect:+.2f}{match}")
    if not found:
        show("  none: more sequences, or sequences that hold what the adapter looks for, may show some")


def _printer() -> Any:
    return lambda text: logs.results.print(text, highlight=False, markup=False, soft_wrap=True)
