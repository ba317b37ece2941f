"""Every single-base change of sequences, as a stream that never holds all of them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.one_hot import BASES
from lingo_ds.data.streams.sequences import Chunk


class Original(NamedTuple):
    """A sequence whose bases are changed.

    Attributes:
        id: of the sequence.
        sequence: upper-case DNA.
    """

    id: str | int
    sequence: str


class MutantChunk(NamedTuple):
    """Neighbouring sequences of a stream of mutants.

    Attributes:
        ids: of the original of each sequence.
        sequences: upper-case DNA.
        originals: those whose first sequence is in this chunk.
        read: share of the file that was read so far, 0 to 1.
    """

    ids: list[str | int]
    sequences: list[str]
    originals: list[Original]
    read: float


def changes(sequence: str) -> Iterator[tuple[int, int]]:
    """Every change of one base to another: its position, and the place of the new base in `BASES`.

    A base that is not known, e.g. N, is changed to each of the four. U is T.
    """
    for position, letter in enumerate(sequence):
        for place, base in enumerate(BASES):
            if base != ("T" if letter == "U" else letter):
                yield position, place


def mutant_chunks(
    chunks: Iterable[Chunk], *, both_strands: bool, most: int, most_bases: int
) -> Iterator[MutantChunk]:
    """Each sequence, then all its changes in the order of `changes`.

    Args:
        chunks: the sequences.
        both_strands: whether each is followed by its reverse complement.
        most: sequences with which a chunk ends.
        most_bases: bases with which a chunk ends.
    """
    found, bases, read = MutantChunk([], [], [], 0.0), 0, 0.0
    for chunk in chunks:
        for number, (id, sequence) in enumerate(zip(chunk.ids, chunk.sequences, strict=True), 1):
            found.originals.append(Original(id, sequence))
            for mutant in _with_mutants(sequence):
                found.sequences.extend([mutant, reverse_complement(mutant)] if both_strands else [mutant])
                found.ids.extend([id] * (1 + both_strands))
                bases += len(mutant) * (1 + both_strands)
                if len(found.sequences) >= most or bases >= most_bases:
                    share = (number - 1) / len(chunk.ids)
                    yield found._replace(read=read + share * (chunk.read - read))
                    found, bases = MutantChunk([], [], [], 0.0), 0
        read = chunk.read
    if found.sequences:
        yield found._replace(read=1.0)


def _with_mutants(sequence: str) -> Iterator[str]:
    yield sequence
    for position, place in changes(sequence):
        yield sequence[:position] + BASES[place] + sequence[position + 1 :]
