"""The index of a FASTA by which stretches of it are found (`.fai`): made, and compared with its file."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lingo_ds.data.readers.unpacked_bytes import UnpackedBytes
from lingo_ds.utils.errors import Mistake, UserError

HEADER_BYTES = (1 << 9, 1 << 12, 1 << 16)
"""Bytes before a contig in which its header is looked for; few first, since an assembly may have many."""

TAIL_BYTES = 1 << 9
"""Bytes behind a contig that are read at a time to see what follows."""

INDEX_LINE = re.compile(r"[^\t]+(\t[0-9]{1,18}){4}\r?")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Contig(NamedTuple):
    """A line of an index.

    Attributes:
        name: the first word of its header.
        bases: all of its bases.
        offset: bytes of the file before its first base.
        line_bases, line_bytes: of each of its lines, without and with the line's end.
    """

    name: str
    bases: int
    offset: int
    line_bases: int
    line_bytes: int

    def place_of(self, base: int) -> int:
        """Bytes of the file before a base, counted from 0."""
        if not self.line_bases:
            return self.offset
        lines, rest = divmod(base, self.line_bases)
        return self.offset + lines * self.line_bytes + rest

    @property
    def end(self) -> int:
        """Bytes of the file up to the last base, without the end of its line."""
        return self.place_of(self.bases - 1) + 1 if self.bases else self.offset


def index_to_text(contigs: Iterable[Contig]) -> str:
    """The contigs as a `.fai`."""
    return "".join("\t".join(map(str, contig)) + "\n" for contig in contigs)


def index_from_text(text: str) -> list[Contig]:
    """The contigs of a `.fai`.

    Raises:
        ValueError: for a line that is none, or a name that is there twice.
    """
    contigs: dict[str, Contig] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if not INDEX_LINE.fullmatch(line):
            raise ValueError(f"its line {number} is not name, length, offset, bases and bytes of a line")
        name, *numbers = line.split("\t")
        contig = Contig(name, *map(int, numbers))
        if name in contigs:
            raise ValueError(f"its line {number} has {name!r} a second time")
        if contig.bases and not 0 < contig.line_bases <= contig.line_bytes:
            raise ValueError(f"its line {number} has no possible length of lines")
        contigs[name] = contig
    return list(contigs.values())


# -- made from the file


@dataclass
class _Open:
    """The contig whose lines are being read.

    Attributes:
        name, line: its name, and the line of its header.
        offset: bytes of the file before its first base.
        bases, line_bases, line_bytes: as in `Contig`.
        short: number of a line that is shorter than the first; 0: none was yet.
        blank: number of a blank line; 0: none was yet.
    """

    name: str
    line: int
    offset: int
    bases: int = 0
    line_bases: int = 0
    line_bytes: int = 0
    short: int = 0
    blank: int = 0

    def add(self, line: bytes, number: int) -> Mistake | None:
        """Takes a line that is no header, and returns what is wrong with it or with those before."""
        if line.startswith(b";") or len(line.split()) > 1:
            what = "a comment" if line.startswith(b";") else "a line with blanks between its letters"
            rule = f"stands inside of {self.name!r}, whose bases are read by their places"
            return Mistake(str(number), what, rule, "remove it")
        bases = len(line.rstrip())
        alike = bases == self.line_bases and (len(line) == self.line_bytes or not line.endswith(b"\n"))
        if bases and alike and not (self.short or self.blank):
            self.bases += bases
            return None
        if not bases:
            self.blank = self.blank or number
            return None
        if self.blank:
            rule = f"stands inside of {self.name!r}, which goes on in line {number}"
            return Mistake(str(self.blank), "a blank line", rule, "remove the line")
        if not self.line_bases:
            self.line_bases, self.line_bytes = bases, len(line)
        elif self.short or bases > self.line_bases:
            rule = (
                f"is not as long as the first of {self.name!r} ({self.line_bases} bases), or ends otherwise"
            )
            fix = "give all lines but a contig's last one length, e.g. seqkit seq -w 60 FILE > NEW"
            return Mistake(str(self.short or number), "a line", rule, fix)
        else:
            self.short = number
        self.bases += bases
        return None


def index_fasta(lines: Iterable[bytes], path: Path) -> list[Contig]:
    """The contigs of a FASTA file. Blank lines may stand between them and at the end.

    Args:
        lines: all of the file, unpacked, each with its end.
        path: names the file in mistakes.

    Raises:
        UserError: where it is no FASTA, or cannot be read by places; naming the line.
    """
    contigs: list[Contig] = []
    seen: dict[str, int] = {}
    for one in _contigs(lines, path):
        if one.name in seen:
            rule = f"is the name of the contig in line {seen[one.name]}, too"
            raise UserError(Mistake(f"{path}:{one.line}", one.name, rule, "rename one of them"))
        seen[one.name] = one.line
        contigs.append(Contig(one.name, one.bases, one.offset, one.line_bases, one.line_bytes))
    if not contigs:
        rule, fix = "has no header, a line like >chr1", "give a FASTA"
        raise UserError(Mistake(str(path), path.name, rule, fix))
    return contigs


def _contigs(lines: Iterable[bytes], path: Path) -> Iterator[_Open]:
    place, one = 0, None
    for number, line in enumerate(lines, 1):
        place += len(line)
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if line.startswith(b">"):
            if one:
                yield one
            one = _Open(_name_of(line, f"{path}:{number}"), number, place)
        elif one:
            if mistake := one.add(line, number):
                raise UserError(mistake._replace(where=f"{path}:{mistake.where}"))
        elif line.strip() and not line.startswith(b";"):
            shown, rule = line[:80].decode(errors="replace").strip(), "comes before the first header"
            raise UserError(Mistake(f"{path}:{number}", shown, rule, "begin with a line like >chr1"))
    if one:
        yield one


def _name_of(header: bytes, where: str) -> str:
    """The first word of a header.

    Raises:
        UserError: where it has none.
    """
    shown = header[:80].decode(errors="replace").strip()
    if b"\r" in header.rstrip():
        rule, fix = "is followed by line ends of \\r alone", "give the file Unix line ends: mac2unix FILE"
        raise UserError(Mistake(where, shown.split("\r")[0], rule, fix))
    words = header[1:].split(maxsplit=1)
    if not words:
        raise UserError(Mistake(where, shown, "the header has no name", "write one behind >"))
    try:
        return words[0].decode()
    except UnicodeDecodeError:
        raise UserError(Mistake(where, shown, "is not UTF-8", "save the file as plain UTF-8")) from None


# -- compared with the file


def require_fit(contigs: list[Contig], file: UnpackedBytes) -> None:
    """Checks that an index belongs to a file: the header before each contig, ends of its lines, what follows.

    Raises:
        ValueError: where it does not; the message names the contig.
        OSError, zlib.error: where the file cannot be read.
    """
    headers = {_header_before(contig, file) for contig in contigs}
    for contig in contigs:
        if contig.bases:
            _require_lines(contig, file)
        follows = _header_behind(contig, file)
        if follows is not None and follows not in headers:
            raise ValueError(f"it lacks the contig behind {contig.name!r}")
    if file.read(0, 1) == b">" and 0 not in headers:
        raise ValueError("it lacks the first contig")


def _header_before(contig: Contig, file: UnpackedBytes) -> int:
    """Bytes of the file before a contig's header."""
    for most in HEADER_BYTES:
        begin = max(contig.offset - most, 0)
        before = file.read(begin, contig.offset)
        if len(before) < contig.offset - begin or not before.endswith(b"\n"):
            break
        line = before.rfind(b"\n", 0, -1) + 1
        if line or not begin:
            header = before[line:].removeprefix(BYTE_ORDER_MARK)
            if not header.startswith(b">") or header[1:].split()[:1] != [contig.name.encode()]:
                break
            return begin + line
    raise ValueError(
        f"contig {contig.name!r}: the file does not have its header before byte {contig.offset:,}"
    )


def _require_lines(contig: Contig, file: UnpackedBytes) -> None:
    """Checks the first, a middle and the last of a contig's lines that others follow, and its last line."""
    followed = (contig.bases - 1) // contig.line_bases
    for line in {0, followed // 2, followed - 1} if followed else ():
        begin = contig.place_of(line * contig.line_bases)
        behind = begin + contig.line_bases
        end = file.read(behind, behind + min(contig.line_bytes - contig.line_bases, TAIL_BYTES))
        if not (end.isspace() and end.endswith(b"\n")) or _is_broken(begin, behind, file):
            raise ValueError(f"contig {contig.name!r}: its lines do not have {contig.line_bases:,} bases")
    if _is_broken(contig.place_of(followed * contig.line_bases), contig.end, file):
        raise ValueError(f"contig {contig.name!r}: it does not have {contig.bases:,} bases")


def _is_broken(begin: int, end: int, file: UnpackedBytes) -> bool:
    """Whether a stretch of the file is not all bases of one line; of a long one both ends are looked at."""
    most = HEADER_BYTES[-1]
    for one in {(begin, min(begin + most, end)), (max(end - most, begin), end)}:
        text = file.read(*one)
        if len(text) < one[1] - one[0] or text.split() != [text] or b">" in text:
            return True
    return False


def _header_behind(contig: Contig, file: UnpackedBytes) -> int | None:
    """Bytes of the file before the header that follows a contig; None: it is the last one."""
    place = contig.end
    while piece := file.read(place, place + TAIL_BYTES):
        rest = piece.lstrip()
        place += len(piece) - len(rest)
        if rest:
            if rest.startswith(b">") and file.read(place - 1, place) == b"\n":
                return place
            raise ValueError(f"contig {contig.name!r}: it goes on behind its {contig.bases:,} bases")
    return None
