"""English prose from packages of a Debian installation, each collection under a free licence.

`python -m scripts.english_text` lists the collections, their licences and the characters of prose in each.
"""

import gzip
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/usr/share")
MIN_PARAGRAPH_CHARS = 60
"""Shorter paragraphs are headings and table cells."""

_TYPOGRAPHY = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00a0": " ",
        "\u00e9": "e",
        "\u00e8": "e",
        "\u00b7": "-",
    }
)


class Collection(NamedTuple):
    """Documents of one kind.

    Attributes:
        package: Debian package that contains them.
        what: their name in the model card.
        licence: licence under which they are distributed.
        files: glob pattern below /usr/share.
        paragraphs: splits one file's text into paragraphs and removes markup.
    """

    package: str
    what: str
    licence: str
    files: str
    paragraphs: Callable[[str], Iterator[str]]


class Document(NamedTuple):
    """One file's prose: paragraphs of ASCII, a line each."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the document is for measuring, not for training: one in fifty is, by its name."""
        return hashlib.sha256(self.name.encode()).digest()[0] < 5


def documents(collection: Collection) -> Iterator[Document]:
    """The prose of a collection, file by file in the order of their names; files without any are left out."""
    for path in sorted({path.resolve() for path in ROOT.glob(collection.files)}):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix in (".gz", ".dz") else raw).decode("utf-8", "replace")
        lines = [line for line in map(_plain, collection.paragraphs(text)) if _is_prose(line)]
        if lines:
            yield Document(str(path.relative_to(ROOT)), "\n".join(lines) + "\n")


def _plain(paragraph: str) -> str:
    return re.sub(r"\s+", " ", paragraph.translate(_TYPOGRAPHY)).strip()


def _is_prose(line: str) -> bool:
    """Whether a paragraph is made of sentences: long enough, nearly all letters, with a sentence's end."""
    letters = sum(c.isalpha() or c in " ,.'" for c in line)
    return (
        line.isascii()
        and len(line) >= MIN_PARAGRAPH_CHARS
        and letters >= 0.93 * len(line)
        and line[-1] in '.:;!?)"'
    )


def _blocks(text: str) -> Iterator[str]:
    return (block for block in re.split(r"\n\s*\n", text) if block.strip())


def _restructured(text: str) -> Iterator[str]:
    """Paragraphs of reStructuredText, without directives, roles replaced by their text."""
    for block in _blocks(text):
        if re.match(r"\s*(\.\. |:\w+:|>>> |[=~^*+-]{4,})", block):
            continue
        block = re.sub(r":[\w:+-]+:`[!~]?([^`<]*?)\s*(<[^`]*>)?`", r"\1", block)
        block = re.sub(r"`([^`<]*?)\s*<[^`]*>`_+", r"\1", block)
        yield re.sub(r"``|`_?|\*\*?|\|", "", block.replace("::", ":"))


def _pod(text: str) -> Iterator[str]:
    """Paragraphs of Perl's documentation, without verbatim ones, formatting codes replaced by their text."""
    for block in _blocks(text):
        if block[0] in " \t=":
            continue
        for _ in range(3):  # codes are nested
            block = re.sub(r"[BCFILSX]<+\s*([^<>]*?)\s*>+", lambda code: code[1].split("|")[0], block)
        yield re.sub(r"E<\w+>", " ", block)


def _dictionary(text: str) -> Iterator[str]:
    """Paragraphs of a dictionary of dict.org, references in braces replaced by their text."""
    return (re.sub(r"[{}]", "", block) for block in _blocks(text))


def _glosses(text: str) -> Iterator[str]:
    """Lines of WordNet's data files: the words of each meaning, and its gloss."""
    for line in text.splitlines():
        head, _, gloss = line.partition(" | ")
        if gloss and not head.startswith(" "):
            fields = head.split()
            count = int(fields[3], 16)
            words = ", ".join(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
            yield f"{words}: {gloss.strip()}."


COLLECTIONS = (
    Collection(
        "python3.11-doc",
        "Python's documentation",
        "PSF-2.0",
        "doc/python3*/html/_sources/**/*.rst.txt",
        _restructured,
    ),
    Collection("perl-doc", "Perl's documentation", "Artistic or GPL-1+", "perl/5*/pod/*.pod", _pod),
    Collection("dict-jargon", "The Jargon File", "public domain", "dictd/jargon.dict.dz", _dictionary),
    Collection("wordnet-base", "WordNet's glosses", "WordNet-3.0", "wordnet/data.*", _glosses),
)


def main() -> None:
    """Prints a line for each collection."""
    for collection in COLLECTIONS:
        found = list(documents(collection))
        characters = sum(len(document.text) for document in found)
        print(  # noqa: T201
            f"{collection.package:16} {collection.licence:20} {len(found):5} files "
            f"{characters:12,} characters"
        )


if __name__ == "__main__":
    main()
