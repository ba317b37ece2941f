"""Labelled core promoters that are generated, for the quickstart and the tests: nothing is downloaded.

A positive is drawn from published base counts of the TATA box, the initiator and the downstream promoter
element, each at its published distance from the transcription start (TSS). A negative has the same
background and often a TATA box too, but in the wrong place: a model has to learn the places of motifs, not
only the frequencies of bases. The shares of each kind are ours. Nothing here is a measured sequence, and no
score on it says anything about biology.

Positions are relative to the TSS, which is +1; there is no 0. In a file the TSS has index `length // 2 - 1`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

MIN_LENGTH = 70  # -34 to +36: a TATA box that starts at -34 just fits

# Counts of A, C, G, T (rows) by position (columns): Bucher 1990, J Mol Biol 212:563, as JASPAR has them. 389
# TATA boxes, STATAWAAR from the first column (MA0108.2; POL012.1 is the same but for a 10 at G, column 7,
# where only 20 makes the column's sum 389). 303 initiators ("cap signal", POL002.1) from -2.
_TATA_COUNTS = (
    (61, 16, 352, 3, 354, 268, 360, 222, 155, 56, 83, 82, 82, 68, 77),
    (145, 46, 0, 10, 0, 0, 3, 2, 44, 135, 147, 127, 118, 107, 101),
    (152, 18, 2, 2, 5, 0, 20, 44, 157, 150, 128, 128, 128, 139, 140),
    (31, 309, 35, 374, 30, 121, 6, 121, 33, 48, 31, 52, 61, 75, 71),
)
_INITIATOR_COUNTS = (
    (49, 0, 288, 26, 77, 67, 45, 50),
    (48, 303, 0, 81, 95, 118, 85, 96),
    (69, 0, 0, 116, 0, 46, 73, 56),
    (137, 0, 15, 80, 131, 72, 100, 101),
)
# RGWYV from +28: Kutach and Kadonaga 2000, Mol Cell Biol 20:4754, in flies. They give the consensus, so each
# base that it allows is equally likely here.
_DOWNSTREAM_COUNTS = (
    (3, 0, 3, 0, 2),
    (0, 0, 0, 3, 2),
    (3, 6, 0, 0, 2),
    (0, 0, 3, 3, 0),
)
# Probability of the next base (column) after a base (row), A C G T, outside and inside of human CpG islands:
# Durbin, Eddy, Krogh and Mitchison 1998, Biological Sequence Analysis, section 3.1.
_BULK = (
    (0.300, 0.205, 0.285, 0.210),
    (0.322, 0.298, 0.078, 0.302),
    (0.248, 0.246, 0.298, 0.208),
    (0.177, 0.239, 0.292, 0.292),
)
_ISLAND = (
    (0.180, 0.274, 0.426, 0.120),
    (0.171, 0.368, 0.274, 0.188),
    (0.161, 0.339, 0.375, 0.125),
    (0.079, 0.355, 0.384, 0.182),
)

# The first T of a TATA box lies at -33 to -28, mostly at -31 or -30: Ponjavic et al. 2006, Genome Biol 7:R78.
# The weights are ours.
_FIRST_T = np.arange(-33, -27)
_FIRST_T_SHARE = (0.04, 0.12, 0.32, 0.32, 0.14, 0.06)
# From the TSS to a motif's first base. There is no position 0, so +28 is 27 bases further.
_TO_TATA = _FIRST_T - 1
_TO_INITIATOR = -2
_TO_DOWNSTREAM = 27

_ISLAND_SHARE = 0.35  # of all sequences, whatever the label; these have no TATA box
_TATA_SHARE = 0.9  # of the other positives
_DECOY_SHARE = 0.6  # of the other negatives: a TATA box out of place
_INITIATOR_SHARE = 0.8  # of all positives
_DOWNSTREAM_SHARE = 0.8  # of the positives in islands


class _Probabilities(NamedTuple):
    """`background` is (2, 4, 4): bulk or island, base, next base; the others are (width, 4)."""

    background: np.ndarray
    tata: np.ndarray
    initiator: np.ndarray
    downstream: np.ndarray


def write_promoters(
    folder: Path, *, seed: int = 0, train: int = 4000, dev: int = 500, test: int = 500, length: int = 70
) -> None:
    """Writes `train.csv`, `dev.csv` and `test.csv` in GUE's layout: a header `sequence,label`, then the rows.

    Label 1 is a promoter. Each split holds as many of one label as of the other (one negative more if its
    size is odd), shuffled, and no sequence occurs twice in the three files. The same arguments give the same
    bytes.

    Args:
        folder: appears whole or not at all; one that is there is replaced.
        seed: of every draw.
        train, dev, test: rows of each split.
        length: bases of each sequence, at least 70.

    Raises:
        UserError: `length` is too short for the promoter, or a split has fewer than two rows.
    """
    splits = {"train": train, "dev": dev, "test": test}
    _check(splits, length)
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(np.arange(rows) % 2) for rows in splits.values()])
    sequences = _spell(_draw_distinct(rng, labels, length))
    lines = [f"{sequence},{label}\n" for sequence, label in zip(sequences, labels, strict=True)]

    def write(aside: Path) -> None:
        aside.mkdir()
        start = 0
        for split, rows in splits.items():
            text = "sequence,label\n" + "".join(lines[start : start + rows])
            (aside / f"{split}.csv").write_text(text, encoding="ascii", newline="")
            start += rows

    atomic_write(folder, write)


def _check(splits: dict[str, int], length: int) -> None:
    mistakes = [
        Mistake(split, rows, "a split needs a row of each label", "ask for 2 rows or more")
        for split, rows in splits.items()
        if rows < 2
    ]
    if length < MIN_LENGTH:
        mistakes.append(
            Mistake("length", length, "a promoter reaches from -34 to +36", f"ask for {MIN_LENGTH} or more")
        )
    if mistakes:
        raise UserError(mistakes)


def _draw_distinct(rng: np.random.Generator, labels: np.ndarray, length: int) -> np.ndarray:
    """Base codes (0 to 3 for A C G T), (len(labels), length), no two rows equal."""
    codes = _draw(rng, labels, length)
    while True:
        _, first_seen = np.unique(codes, axis=0, return_index=True)
        repeated = np.setdiff1d(np.arange(len(labels)), first_seen)
        if not repeated.size:
            return codes
        codes[repeated] = _draw(rng, labels[repeated], length)


def _draw(rng: np.random.Generator, labels: np.ndarray, length: int) -> np.ndarray:
    """Base codes, (len(labels), length): a promoter where the label is 1, a decoy where it is 0."""
    model = _probabilities()
    tss = length // 2 - 1
    positive = labels == 1
    island = rng.random(len(labels)) < _ISLAND_SHARE
    codes = _draw_background(rng, model.background[island.astype(int)], length)

    def some(rows: np.ndarray, share: float) -> np.ndarray:
        return np.flatnonzero(rows & (rng.random(len(labels)) < share))

    in_place = tss + _TO_TATA
    boxes = some(positive & ~island, _TATA_SHARE)
    _put(rng, codes, boxes, rng.choice(in_place, len(boxes), p=_FIRST_T_SHARE), model.tata)
    decoys = some(~positive & ~island, _DECOY_SHARE)
    out_of_place = np.setdiff1d(
        np.arange(length - len(model.tata) + 1), np.arange(in_place.min() - 2, in_place.max() + 3)
    )
    _put(rng, codes, decoys, rng.choice(out_of_place, len(decoys)), model.tata)

    initiators = some(positive, _INITIATOR_SHARE)
    _put(rng, codes, initiators, np.full(len(initiators), tss + _TO_INITIATOR), model.initiator)
    downstream = some(positive & island, _DOWNSTREAM_SHARE)
    _put(rng, codes, downstream, np.full(len(downstream), tss + _TO_DOWNSTREAM), model.downstream)
    return codes


def _probabilities() -> _Probabilities:
    def by_position(counts: tuple) -> np.ndarray:
        columns = np.array(counts, dtype=float).T
        return columns / columns.sum(1, keepdims=True)

    background = np.array([_BULK, _ISLAND])  # the printed rows sum to 1 only within 0.001
    return _Probabilities(
        background=background / background.sum(2, keepdims=True),
        tata=by_position(_TATA_COUNTS),
        initiator=by_position(_INITIATOR_COUNTS),
        downstream=by_position(_DOWNSTREAM_COUNTS),
    )


def _draw_background(rng: np.random.Generator, transitions: np.ndarray, length: int) -> np.ndarray:
    """Base codes, (rows, length), one stationary Markov chain a row; `transitions` is (rows, 4, 4)."""
    rows = np.arange(len(transitions))
    codes = np.empty((len(transitions), length), dtype=np.int8)
    stationary = np.linalg.matrix_power(transitions, 64)[:, 0]
    codes[:, 0] = _draw_bases(rng, stationary)
    for position in range(1, length):
        codes[:, position] = _draw_bases(rng, transitions[rows, codes[:, position - 1]])
    return codes


def _draw_bases(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """One base code per distribution; `probabilities` is (..., 4)."""
    thresholds = probabilities.cumsum(-1)[..., :3]
    return (rng.random(probabilities.shape[:-1])[..., None] >= thresholds).sum(-1)


def _put(
    rng: np.random.Generator, codes: np.ndarray, rows: np.ndarray, starts: np.ndarray, motif: np.ndarray
) -> None:
    """Overwrites `width` bases from each row's start by a draw from `motif`, (width, 4)."""
    columns = starts[:, None] + np.arange(len(motif))
    codes[rows[:, None], columns] = _draw_bases(rng, np.broadcast_to(motif, (len(rows), *motif.shape)))


def _spell(codes: np.ndarray) -> list[str]:
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[codes]
    return [row.tobytes().decode("ascii") for row in letters]
