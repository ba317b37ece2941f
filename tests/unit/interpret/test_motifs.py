"""Motifs from attributions whose truth is known: the log odds of bases that were planted."""

import numpy as np
import pytest

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.synthetic_promoters import _INITIATOR_COUNTS, _TATA_COUNTS
from lingo_ds.interpret.explained import Explained
from lingo_ds.interpret.motif_files import read_database, write
from lingo_ds.interpret.motifs import find_motifs

LENGTH = 70


def probabilities(counts: tuple, begin: int = 0, end: int | None = None) -> np.ndarray:
    """(4, width) of published counts."""
    table = np.array(counts, float)[:, begin:end] + 1
    return table / table.sum(0)


PLANTED = {"TATA": probabilities(_TATA_COUNTS, 0, 9), "initiator": probabilities(_INITIATOR_COUNTS)}


@pytest.fixture(scope="module")
def explained() -> list[Explained]:
    """Sequences with a TATA box either way round, which raises the score, and an initiator, which lowers it.

    The effect of a change is that of the planted motif's log odds to a uniform background, with noise.
    """
    draw, found = np.random.default_rng(0), []
    for number in range(120):
        letters, effects = draw.integers(4, size=LENGTH), draw.normal(0, 0.02, (LENGTH, 4))
        for name, sign, begin in (
            ("TATA", 1, 5 + draw.integers(15)),
            ("initiator", -1, 40 + draw.integers(15)),
        ):
            motif = PLANTED[name]
            if name == "TATA" and number % 4 == 0:
                motif = motif[::-1, ::-1]
            places = slice(begin, begin + motif.shape[1])
            letters[places] = [draw.choice(4, p=column) for column in motif.T]
            effects[places] += sign * np.log(motif / 0.25).T
        effects -= effects[np.arange(LENGTH), letters][:, None]
        sequence = "".join(np.array(list("ACGT"))[letters])
        found.append(Explained(number, sequence, effects.astype(np.float32)))
    return found


def test_planted_motifs_are_found_where_they_are(explained, tmp_path):
    motifs = find_motifs(explained)
    rows = write(motifs, tmp_path, known={})
    tata, initiator = sorted(rows[:2], key=lambda row: -row.effect)
    assert tata.effect > 2 and initiator.effect < -1
    assert "TATA" in tata.consensus.replace("W", "A") and tata.sites > 90 and 0.15 < tata.reverse < 0.35
    assert "CA" in initiator.consensus and initiator.reverse < 0.1
    kept = read_database(tmp_path / "motifs.meme")
    assert set(kept) == {f"{row.name} {row.consensus}" for row in rows}
    assert np.allclose(kept[f"motif_1 {rows[0].consensus}"], motifs[0].matrix)
    assert (tmp_path / "logos/motif_1.png").stat().st_size > 1000
    spelled = {False: 0, True: 0}
    for site in motifs[rows.index(tata)].sites:
        stretch = explained[site.sequence].sequence[max(site.begin, 0) : site.end]
        spelled[site.reverse] += "TATA" in (reverse_complement(stretch) if site.reverse else stretch)
    assert spelled[False] > 40 and spelled[True] > 10, "sites lie where the box is"


def test_noise_has_no_motif_of_weight(explained):
    draw = np.random.default_rng(2)
    noise = [one._replace(effects=draw.permuted(one.effects, axis=0)) for one in explained[:40]]
    assert sum(len(motif.sites) for motif in find_motifs(noise)) < 40


def test_nothing_gives_nothing():
    assert find_motifs([]) == []
    assert find_motifs([Explained(0, "ACGTACGT", np.zeros((8, 4), np.float32))]) == []
