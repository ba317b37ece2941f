"""The alleles of a VCF as sequences, each window a row of its own: REF's of a line, then one for each ALT."""

from collections.abc import Iterator
from typing import Any

from lingo_ds.data.streams.doubled_ids import DoubledIds
from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.data.streams.skipped import Skipped
from lingo_ds.data.streams.variants import Variant, VariantChunk, Variants


class Alleles:
    """The windows of variants; ids are like `chr1:21:A` for REF and `chr1:21:A>G` for an ALT.

    Attributes:
        variants: the file.
        numbered: False, ids are text.
    """

    numbered = False

    def __init__(self, variants: Variants):
        """Takes the variants whose windows are read."""
        self.variants = variants
        self.doubled = DoubledIds()

    @property
    def skipped(self) -> Skipped:
        """Counts of the variants that the last call of `chunks` left out so far."""
        return self.variants.skipped

    def fingerprint(self) -> dict[str, Any]:
        """Facts that change with the files or with how they are read."""
        return self.variants.fingerprint()

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[Chunk]:
        """The windows after the first `skip`, in chunks that end by `most` windows or `most_bases` bases.

        Raises:
            UserError: as `Variants.chunks` does.
        """
        self.doubled, begin = DoubledIds(), 0
        for chunk in self.variants.chunks(most=most, most_bases=most_bases):
            ids = _ids(chunk)
            for id in ids:
                self.doubled.add(id)
            end, left = begin + len(ids), max(skip - begin, 0)
            if left < len(ids):
                yield Chunk(begin + left, ids[left:], chunk.sequences[left:], chunk.read)
            begin = end


def _ids(chunk: VariantChunk) -> list[str]:
    """The ids of the windows in `chunk.sequences`, of which a line's alternatives share REF's."""
    ids = [""] * len(chunk.sequences)
    for variant, (reference, alternative) in zip(chunk.variants, chunk.places, strict=True):
        ids[reference] = _name(variant)
        ids[alternative] = f"{_name(variant)}>{variant.alt}"
    return ids


def _name(variant: Variant) -> str:
    return f"{variant.chrom}:{variant.pos}:{variant.ref}"
