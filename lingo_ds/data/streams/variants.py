"""Variants of a VCF as windows of the genome: one with the reference allele, one with the alternative.

A window of `window` bases begins so that the middle base of REF is its base window // 2, counted from 0.
With ALT in REF's place, what is before it stays where it is and what follows moves up or down. The window
keeps its length: an insertion pushes the last bases out, a deletion lets more of the genome in. Beyond an end
of the contig there is N. Windows are of the forward strand.

Only alleles of A, C, G and T are scored. Where the genome has a code of several bases, REF holds the first of
them in the alphabet (VCF 4.3, section 1.6.1), and so does the window.

The text is read here and not by a library, so that every mistake names its file and line.
"""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from lingo_ds.data.dna import letters_mistake
from lingo_ds.data.mistakes import MistakeLog
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.lines import cut_line_mistake, read_lines
from lingo_ds.data.streams.sequences import file_facts, require_readable
from lingo_ds.data.streams.skipped import BEYOND, MISMATCH, Skipped
from lingo_ds.utils.errors import Mistake, UserError

COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT"]
"""The first columns of a VCF, which are all that is read."""

MISSING_ALLELE = "with a missing allele (. or none)"
SYMBOLIC = "with a symbolic allele (*, <..>, a breakend)"
AMBIGUOUS = "with an allele of other letters than A, C, G and T"
TOO_LONG = "longer than their window"

FIRST_BASE = str.maketrans("RYMKSWBDHV", "ACAGCACAAA")
"""Of each code of several bases the one that REF has, the first in the alphabet; N stays N."""


class Variant(NamedTuple):
    """One alternative allele as its file has it; `pos` counts from 1."""

    chrom: str
    pos: int
    id: str
    ref: str
    alt: str


class VariantChunk(NamedTuple):
    """Neighbouring variants of a file, and the windows around them.

    Attributes:
        begin: place of the first one among the file's variants that can be predicted, counted from 0.
        ids: place of each window's variant.
        sequences: windows: of each line of the file the one with REF, then one for each ALT.
        variants: one for each ALT.
        places: of each variant's two windows, REF's and ALT's, in `sequences`.
        read: share of the file that was read so far, 0 to 1.
    """

    begin: int
    ids: list[str]
    sequences: list[str]
    variants: list[Variant]
    places: list[tuple[int, int]]
    read: float

    @property
    def size(self) -> int:
        """Rows of the output that the chunk makes."""
        return len(self.variants)


class VariantWindows(NamedTuple):
    """The windows of one line, with REF and with each ALT; `found` is what the genome has in REF's place."""

    found: str
    reference: str
    alternatives: list[str]


class _Line(NamedTuple):
    """The variants of one line and their windows, REF's first; or the mistake in it."""

    variants: list[Variant]
    windows: list[str]
    mistake: Mistake | None = None


class Variants:
    """A VCF file, plain or gzipped; its header is checked at once, its lines are read by `chunks`.

    Attributes:
        window: bases of a window.
        skipped: counts of what the last call of `chunks` left out so far.
    """

    def __init__(self, path: Path, *, genome: Genome, window: int, strict: bool = False):
        """Takes the file, the genome that it was called on, and the bases of a window.

        Raises:
            UserError: where the file cannot be read, or is no VCF.
        """
        self._path, self._genome, self.window, self._strict = path, genome, window, strict
        self._size = require_readable(path, fix="give a VCF")
        self.skipped = Skipped(strict=strict)
        self._width = self._read_head()

    def fingerprint(self) -> dict[str, Any]:
        """Facts that change with the files or with how they are read."""
        return {**file_facts(self._path), "genome": file_facts(self._genome.path), "window": self.window}

    def chunks(self, *, skip: int = 0, most: int, most_bases: int) -> Iterator[VariantChunk]:
        """All variants after the first `skip`, in chunks that end by `most` windows or `most_bases` bases.

        Raises:
            UserError: with all mistakes of the file, before the chunk that the first of them is in; and where
                nothing in the whole file can be predicted.
        """
        self.skipped = Skipped(strict=self._strict)
        number, mistakes, chunk = 0, MistakeLog(), VariantChunk(skip, [], [], [], [], 0.0)
        with self._path.open("rb") as raw, mistakes.of_what_ends_early():
            for line in self._lines(raw):
                if line.mistake:
                    mistakes.add(line.mistake)
                number += len(line.variants)
                if mistakes or number <= skip:  # with a mistake the rest is read to find all others
                    continue
                _add(chunk, line)
                windows = len(chunk.sequences)
                if windows >= most or windows * self.window >= most_bases:
                    yield chunk._replace(read=raw.tell() / self._size)
                    chunk = VariantChunk(number, [], [], [], [], 0.0)
        mistakes.raise_if_any()
        if not number:
            self.skipped.require_none(self._path)
        if chunk.variants:
            yield chunk._replace(read=1.0)

    def _read_head(self) -> int:
        """The number of columns."""
        with self._path.open("rb") as raw:
            lines = enumerate(read_lines(raw, self._path), 1)
            number, line = next((one for one in lines if not one[1].startswith("##")), (1, ""))
        names = line.rstrip("\r\n").split("\t")
        if names[: len(COLUMNS)] != COLUMNS:
            rule = f"is not the line {' '.join(COLUMNS)} .. of a VCF, with tabs"
            fix = "put that line before the variants"
            if line.split()[: len(COLUMNS)] == COLUMNS:
                rule, fix = "has blanks between its columns", "replace them by tabs, in all lines"
            raise UserError(Mistake(f"{self._path}:{number}", line.strip(), rule, fix))
        return len(names)

    def _lines(self, raw: BufferedReader) -> Iterator[_Line]:
        for number, text in enumerate(read_lines(raw, self._path), 1):
            if text.startswith("#") or not text.strip():
                continue
            where = f"{self._path}:{number}"
            fields = text.rstrip("\r\n").split("\t", len(COLUMNS))
            mistake = cut_line_mistake(text, where, fields=text.count("\t") + 1, width=self._width)
            mistake = mistake or _field_mistake(fields, where)
            if mistake:
                yield _Line([], [], mistake)
            else:
                yield self._line(fields, where)

    def _line(self, fields: list[str], where: str) -> _Line:
        """The variants of a sound line that can be predicted; the others are counted."""
        chrom, pos, name, ref = fields[0], int(fields[1]), fields[2], fields[3]
        alleles = self._usable(ref, fields[4].split(","), where)
        if not alleles:
            return _Line([], [])
        if chrom not in self._genome.lengths:
            mistake = self.skipped.add_missing(chrom, self._genome, where=where, count=len(alleles))
            return _Line([], [], mistake)
        length = self._genome.lengths[chrom]
        if not 1 <= pos <= length - len(ref) + 1:
            mistake = Mistake(
                where,
                pos,
                f"is beyond {chrom}, which has {length:,} bases in the genome",
                "give the genome that the file was called on",
            )
            return _Line([], [], self.skipped.add(BEYOND, count=len(alleles), mistake=mistake))
        windows = make_windows(self._genome, chrom, pos, ref, alleles, window=self.window)
        if windows.found.translate(FIRST_BASE) != ref.upper():
            mistake = Mistake(
                where,
                ref,
                f"is REF, but the genome has {windows.found!r} at {chrom}:{pos}",
                "give the genome that the file was called on",
            )
            return _Line([], [], self.skipped.add(MISMATCH, count=len(alleles), mistake=mistake))
        variants = [Variant(chrom, pos, name, ref, alt) for alt in alleles]
        return _Line(variants, [windows.reference, *windows.alternatives])

    def _usable(self, ref: str, alleles: list[str], where: str) -> list[str]:
        """The alleles that are sequences and fit into the window; the others are counted."""
        room, of_ref = self.window - _bases_before(ref, self.window), _reason_to_skip(ref)
        usable = []
        for alt in alleles:
            reason = of_ref or _reason_to_skip(alt)
            if reason is None and max(len(ref), len(alt)) > room:
                reason = TOO_LONG
            if reason is None:
                usable.append(alt)
                continue
            fix = "give a larger --window" if reason == TOO_LONG else "write the bases where they are known"
            mistake = Mistake(where, f"{ref}>{alt}", f"is among the variants {reason}", fix)
            self.skipped.add(reason, mistake=mistake, fits=True)
        return usable


def make_windows(
    genome: Genome, chrom: str, pos: int, ref: str, alleles: list[str], *, window: int
) -> VariantWindows:
    """The windows around one line's variants, which the module's docstring describes; `pos` counts from 1."""
    before = _bases_before(ref, window)
    begin = pos - 1 - before
    more = max(len(ref) - min(map(len, alleles)), 0)
    text = genome.fetch(chrom, begin, begin + window + more)
    head, found, tail = text[:before], text[before : before + len(ref)], text[before + len(ref) :]
    reference, *alternatives = [(head + allele.upper() + tail)[:window] for allele in [ref, *alleles]]
    return VariantWindows(found, reference, alternatives)


def _bases_before(ref: str, window: int) -> int:
    """Bases of a window before REF."""
    return window // 2 - (len(ref) - 1) // 2


def _reason_to_skip(allele: str) -> str | None:
    """Why an allele is not scored; None: it is definite DNA."""
    if allele in ("", "."):
        return MISSING_ALLELE
    if _is_symbolic(allele):
        return SYMBOLIC
    return AMBIGUOUS if allele.upper().strip("ACGT") else None


def _is_symbolic(allele: str) -> bool:
    """Whether an allele is `*`, `<DEL>`, a breakend like `G]17:198982]` or a single one like `G.`."""
    return allele[:1] in "*<." or allele[-1:] == "." or "[" in allele or "]" in allele


def _field_mistake(fields: list[str], where: str) -> Mistake | None:
    if len(fields) < len(COLUMNS):
        value, rule = (
            f"{len(fields)} columns",
            "a variant has CHROM, POS, ID, REF and ALT, with tabs between them",
        )
        return Mistake(where, value, rule, "complete the line")
    _, pos, _, ref, alt = fields[: len(COLUMNS)]
    if not (pos.isascii() and pos.isdigit() and len(pos) < 12):
        return Mistake(where, pos, "POS is no whole number", "write the base's place, counted from 1")
    for name, alleles in (("REF", [ref]), ("ALT", alt.split(","))):
        for allele in alleles:
            if not _is_symbolic(allele) and letters_mistake(allele, where):
                return Mistake(where, allele, f"{name} is no sequence of bases", "correct the allele")
    return None


def _add(chunk: VariantChunk, line: _Line) -> None:
    first = len(chunk.sequences)
    chunk.sequences.extend(line.windows)
    chunk.variants.extend(line.variants)
    chunk.places.extend((first, first + 1 + k) for k in range(len(line.variants)))
    if line.variants:
        chunk.ids.extend([f"{line.variants[0].chrom}:{line.variants[0].pos}"] * len(line.windows))
