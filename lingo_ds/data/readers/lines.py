"""Text files as streams of lines, plain or gzipped; bytes that are no text are reported by their line."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from lingo_ds.data.readers.content import cut_short_mistake, foreign_mistake, packing_of, read_head
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import require_regular

READ_BYTES = 1 << 20
"""Bytes decoded at a time; a longer line is decoded whole."""


PACKED_SUFFIXES = (".gz", ".bgz", ".bgzip")
"""Endings of packed files; whether a file is packed, its first bytes say."""


def suffix_of(path: Path) -> str:
    """The ending that tells a file's format, in lower case, without a `.gz` or `.bgz` behind one of text."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] and endings[-1] in PACKED_SUFFIXES and endings[-2:-1] != [".parquet"]:
        endings.pop()
    return endings[-1] if endings else ""


def stem_of(path: Path) -> str:
    """A file's name without the endings that `suffix_of` looks at."""
    name = path.name
    for ending in PACKED_SUFFIXES:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return name[: -len(suffix_of(path)) or None]


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Opens a regular file for reading.

    Raises:
        UserError: where there is none, or where it may not be read.
    """
    try:
        require_regular(path)
        raw = path.open("rb")
    except OSError as error:
        raise UserError(
            Mistake(str(path), "file", error.strerror or "cannot be read", "check the path")
        ) from None
    with raw:
        yield raw


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, see `read_lines`.

    Raises:
        UserError: where it cannot be read, or is no UTF-8 text.
    """
    with opened(path) as raw:
        yield from read_lines(raw, path)


def read_lines(raw: BufferedReader, path: Path) -> Iterator[str]:
    r"""The lines of an open file, each with its end (\n, \r\n or \r), without a byte order mark.

    Args:
        raw: the file's bytes from its beginning, unpacked here where they are gzipped.
        path: names the file in mistakes.

    Raises:
        UserError: for a format that is not text or not read here, or a packed file that was cut short; naming
            the line of a byte that is no text, after the lines before it were given.
    """
    head = read_head(raw)
    if mistake := foreign_mistake(head, path) or cut_short_mistake(raw, path):
        raise UserError(mistake)
    packed = packing_of(raw.peek(16)) != "none"
    file = gzip.GzipFile(fileobj=raw) if packed else raw
    number, codec = 0, "utf-8-sig"
    for block in line_blocks(file, path):
        good, mistake = _before_what_is_no_text(block)
        yield from io.StringIO(good.decode(codec), newline="")
        if mistake:
            line = number + good.count(b"\n") + 1
            raise UserError(mistake._replace(where=f"{path}:{line}"))
        number, codec = number + block.count(b"\n"), "utf-8"


def cut_line_mistake(line: str, where: str, *, fields: int, width: int) -> Mistake | None:
    """The mistake in a line that was cut short: it has no end, and fewer fields than the file has columns."""
    if line.endswith(("\n", "\r")) or fields >= width:
        return None
    rule = "is a line without an end: the file was cut short"
    return Mistake(where, f"{fields} of {width} columns", rule, "copy the file again, or complete the line")


def line_blocks(file: BufferedReader | gzip.GzipFile, path: Path) -> Iterator[bytes]:
    r"""The bytes of an open file in blocks that end behind a \n.

    Raises:
        UserError: where it cannot be read further.
    """
    pieces: list[bytes] = []
    number = 0
    try:
        while piece := file.read1(READ_BYTES):  # not read(), which loses what it read before an error
            end = piece.rfind(b"\n") + 1
            if end:
                block = b"".join([*pieces, piece[:end]])
                number += block.count(b"\n")
                yield block
                pieces = []
            pieces.append(piece[end:])
    except (OSError, EOFError, zlib.error) as error:
        rule = f"cannot be read further ({error})"
        raise UserError(Mistake(f"{path}:{number + 1}", "line", rule, "copy the file again")) from None
    if rest := b"".join(pieces):
        yield rest


def _before_what_is_no_text(block: bytes) -> tuple[bytes, Mistake | None]:
    """The lines before one with a NUL byte or invalid UTF-8, and the mistake in that one."""
    zero, bad = block.find(b"\0"), None
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = error.start
    if zero >= 0 and (bad is None or zero < bad):
        bad, value, rule = zero, "NUL byte", "is not text"
    elif bad is not None:
        value, rule = f"byte 0x{block[bad]:02x}", "is not UTF-8"
    else:
        return block, None
    return block[: block.rfind(b"\n", 0, bad) + 1], Mistake("", value, rule, "save the file as plain UTF-8")
