"""Motifs of explained sequences: stretches of strong attributions, grouped by what is alike among them.

The stretches ("seqlets") are found by tangermeme's recursive caller. Two are compared as TF-MoDISco does
(arXiv 1811.00416): by the attributions of their bases, at the best offset and strand. Groups are grown from
the seqlet that has most alike, once around its own pattern and once around the group's mean.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lingo_ds.data.one_hot import BASES, one_hot
from lingo_ds.distributed import watchdog
from lingo_ds.interpret.explained import Explained
from lingo_ds.interpret.extras import import_extra

LEAST_SEQLET, MOST_SEQLET = 4, 25
"""Bases of a seqlet."""

MOST_SEQLETS = 4000
"""Seqlets that are grouped, the most significant: each is compared with each."""

WINDOW, MARGIN, MOST_SHIFT = 31, 3, 8
"""Bases of what is compared around a seqlet's middle; how far beyond its ends attributions count; offsets."""

ALIKE = 0.65
"""Least cosine of the attributions of two stretches of a group."""

LEAST_SITES = 5
"""Sites of a motif."""

CORE, FLANK = 0.15, 2
"""Share of the largest mean attribution with which a motif begins and ends; bases kept around that."""

SIGNIFICANCE = 0.01
"""The threshold of tangermeme's caller."""


class MotifSite(NamedTuple):
    """Where a motif lies.

    Attributes:
        sequence: number of the sequence.
        begin, end: of the motif in it, 0-based and half-open; it may reach over an end of the sequence.
        reverse: whether it is on the other strand.
        attribution: sum over its bases.
    """

    sequence: int
    begin: int
    end: int
    reverse: bool
    attribution: float


class Motif(NamedTuple):
    """What several stretches have in common.

    Attributes:
        matrix: (4, width) share of A, C, G and T at each position.
        sites: where it lies.
    """

    matrix: np.ndarray
    sites: list[MotifSite]

    @property
    def effect(self) -> float:
        """Mean attribution of a site: it is negative where the motif lowers the score."""
        return float(np.mean([site.attribution for site in self.sites]))

    @property
    def consensus(self) -> str:
        """IUPAC letters of the bases that have at least half of the share of the commonest one."""
        return "".join(_LETTERS[tuple(column >= column.max() / 2)] for column in self.matrix.T)


_LETTERS = {
    tuple(base in bases for base in BASES): letter
    for letter, bases in {
        **{base: base for base in BASES},
        **{"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"},
        **{"B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"},
    }.items()
}


class _Windows(NamedTuple):
    """Seqlets, each with what lies around its middle.

    Attributes:
        sequences: (n,) number of its sequence.
        begins: (n,) first position of its window.
        patterns: (n, 4, WINDOW) attributions of its bases, of norm 1; 0 farther than MARGIN outside it.
        bases: (n, 4, WINDOW) one-hot; 0 outside the sequence.
        attributions: (n, WINDOW) of the positions, with their sign.
    """

    sequences: np.ndarray
    begins: np.ndarray
    patterns: np.ndarray
    bases: np.ndarray
    attributions: np.ndarray


def find_motifs(explained: Sequence[Explained]) -> list[Motif]:
    """The motifs of sequences, those first whose sites have most attribution together.

    Those that raise the score and those that lower it are looked for apart.

    Raises:
        UserError: where tangermeme is not installed.
    """
    if not explained:
        return []
    found = [motif for sign in (1, -1) for motif in _of_sign(explained, sign)]
    return sorted(found, key=lambda motif: -abs(motif.effect) * len(motif.sites))


def _of_sign(explained: Sequence[Explained], sign: int) -> Iterator[Motif]:
    length = max(len(one.sequence) for one in explained)
    attributions = np.zeros((len(explained), length))
    bases = one_hot([one.sequence for one in explained], width=length).numpy().astype(np.float64)
    for row, one in enumerate(explained):
        attributions[row, : len(one.sequence)] = one.attributions
    if length < LEAST_SEQLET or not (sign * attributions > 0).any():
        return
    caller = import_extra("tangermeme.seqlet", option="--motifs")
    watchdog.beat()
    seqlets = caller.recursive_seqlets(
        sign * attributions,
        threshold=SIGNIFICANCE,
        min_seqlet_len=LEAST_SEQLET,
        max_seqlet_len=min(MOST_SEQLET, length),
    )
    spans = seqlets.iloc[:MOST_SEQLETS, :3].to_numpy(dtype=int)
    windows = _windows(spans, attributions, bases, sign)
    left = np.ones(len(spans), bool)
    alike = _similarity(windows.patterns, windows.patterns)[0] >= ALIKE
    while left.sum() >= LEAST_SITES:
        counts = (alike & left).sum(1) * left
        seed = int(counts.argmax())
        if counts[seed] < LEAST_SITES:
            return
        members = np.flatnonzero(alike[seed] & left)
        pattern = _mean_pattern(windows, members, windows.patterns[seed])
        around, _, _ = _similarity(windows.patterns, pattern[None])
        wider = np.flatnonzero((around[:, 0] >= ALIKE) & left)
        members = np.union1d(members, wider)
        left[members] = False
        yield _motif(windows, members, pattern)


def _windows(spans: np.ndarray, attributions: np.ndarray, bases: np.ndarray, sign: int) -> _Windows:
    """What lies around seqlets (n, 3) of sequence, begin, end."""
    half, count = WINDOW // 2, len(spans)
    edge = [(0, 0), (WINDOW, WINDOW)]
    padded, padded_bases = np.pad(attributions, edge), np.pad(bases, [(0, 0), *edge])
    found = _Windows(
        spans[:, 0],
        np.zeros(count, int),
        np.zeros((count, 4, WINDOW)),
        np.zeros((count, 4, WINDOW)),
        np.zeros((count, WINDOW)),
    )
    for row, (sequence, begin, end) in enumerate(spans):
        weights = np.maximum(sign * attributions[sequence, begin:end], 0)
        middle = begin + int(np.average(np.arange(end - begin), weights=weights + 1e-12).round())
        first = middle - half
        places = slice(first + WINDOW, first + 2 * WINDOW)
        near = np.arange(first, first + WINDOW)
        near = (near >= begin - MARGIN) & (near < end + MARGIN)
        found.begins[row] = first
        found.bases[row] = padded_bases[sequence][:, places]
        found.attributions[row] = padded[sequence, places]
        pattern = found.bases[row] * found.attributions[row] * near
        found.patterns[row] = pattern / max(np.linalg.norm(pattern), 1e-12)
    return found


def _similarity(patterns: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines (n, m) of patterns (n, 4, WINDOW) and others (m, 4, WINDOW) at the best offset and strand.

    Returns:
        The cosines; by how many bases each pattern is moved to the right for it; whether it is turned around.
    """
    shape = len(patterns), len(others)
    best, shifts, turned = np.full(shape, -np.inf), np.zeros(shape, int), np.zeros(shape, bool)
    flat = others.reshape(len(others), -1)
    for reverse in (False, True):
        strand = patterns[:, ::-1, ::-1] if reverse else patterns
        for shift in sorted(range(-MOST_SHIFT, MOST_SHIFT + 1), key=abs):
            found = _moved(strand, shift).reshape(len(patterns), -1) @ flat.T
            better = found > best + 1e-9
            best[better], shifts[better], turned[better] = found[better], shift, reverse
    return best, shifts, turned


def _moved(windows: np.ndarray, shift: int) -> np.ndarray:
    """Windows (.., WINDOW) moved to the right, with 0 where nothing comes from."""
    moved = np.zeros_like(windows)
    if shift >= 0:
        moved[..., shift:] = windows[..., : windows.shape[-1] - shift]
    else:
        moved[..., :shift] = windows[..., -shift:]
    return moved


def _mean_pattern(windows: _Windows, members: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """The mean of the members' patterns, each where it is most like `pattern`, of norm 1."""
    _, shifts, turned = _similarity(windows.patterns[members], pattern[None])
    parts = [
        _moved(own[::-1, ::-1] if reverse else own, shift)
        for own, shift, reverse in zip(windows.patterns[members], shifts[:, 0], turned[:, 0], strict=True)
    ]
    mean = np.mean(parts, axis=0)
    if turned.mean() > 0.5:  # most sites shall read forward
        mean = mean[::-1, ::-1]
    return np.asarray(mean / max(np.linalg.norm(mean), 1e-12))


def _motif(windows: _Windows, members: np.ndarray, pattern: np.ndarray) -> Motif:
    """The motif of members, over the stretch where the mean attribution is not small."""
    _, shifts, turned = _similarity(windows.patterns[members], pattern[None])
    strength = np.abs(pattern).sum(0)
    core = np.flatnonzero(strength >= CORE * strength.max())
    begin, end = max(core[0] - FLANK, 0), min(core[-1] + 1 + FLANK, WINDOW)
    counts, sites = np.zeros((4, end - begin)), []
    for member, shift, reverse in zip(members, shifts[:, 0].tolist(), turned[:, 0].tolist(), strict=True):
        own = windows.bases[member]
        counts += _moved(own[::-1, ::-1] if reverse else own, shift)[:, begin:end]
        first, last = begin - shift, end - shift
        if reverse:
            first, last = WINDOW - last, WINDOW - first
        inside = windows.attributions[member, max(first, 0) : max(last, 0)]
        start = int(windows.begins[member])
        sites.append(
            MotifSite(
                int(windows.sequences[member]), start + first, start + last, reverse, float(inside.sum())
            )
        )
    return Motif((counts + 0.25) / (counts + 0.25).sum(0), sites)
