"""Pages of HTML that need nothing but themselves: blocks of text, tables and pictures in, one file out.

The page brings its style, its one script (which sorts tables) and its pictures along, and its own policy
forbids a browser to fetch anything or to run any other script. All text is escaped by Jinja2.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lingo_ds.utils.files import atomic_write

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("html_report.html.jinja")
SCRIPT = Path(__file__).with_name("html_report.js")


@dataclass(frozen=True)
class LinkCell:
    """A cell that leads to a file beside the page, or to a page of the web.

    Attributes:
        text: what is shown.
        href: where it leads.
    """

    text: str
    href: str
    kind: ClassVar[str] = "link"


@dataclass(frozen=True)
class Shaded:
    """A cell on a blue ground.

    Attributes:
        text: what is shown.
        share: how blue, from 0 to 1.
        note: small text below.
    """

    text: str
    share: float
    note: str = ""
    kind: ClassVar[str] = "shaded"


@dataclass(frozen=True)
class Bases:
    """A cell with DNA in it, in letters of equal width that may be broken anywhere."""

    text: str
    kind: ClassVar[str] = "bases"


@dataclass(frozen=True)
class Ranged:
    """A cell with a number and its interval.

    Attributes:
        text: the number.
        interval: its interval, in words; empty: there is none.
    """

    text: str
    interval: str = ""
    kind: ClassVar[str] = "ranged"


Cell = str | LinkCell | Shaded | Bases | Ranged


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: its header.
        numeric: whether its cells are numbers, set to the right.
    """

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph; `strong`: the one that is to be read first."""

    text: str
    strong: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Warnings:
    """What a reader must know before believing the rest; no box where there is none."""

    items: Sequence[str]
    kind: ClassVar[str] = "warnings"


@dataclass(frozen=True)
class KeyFacts:
    """Short answers in large letters: what is asked, the answer, and a remark."""

    items: Sequence[tuple[str, str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class PageTable:
    """A table whose first column names its rows; a click on a header sorts it where it is `sortable`."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A picture, as bytes of an SVG or PNG file.

    Attributes:
        title: shown above it.
        data: the file.
        alt: what is to be seen on it, in words, for those who cannot see it.
        note: shown below it.
    """

    title: str
    data: bytes
    alt: str
    note: str = ""

    @property
    def uri(self) -> str:
        """The picture as an address that holds all of it."""
        form = "png" if self.data.startswith(b"\x89PNG") else "svg+xml"
        return f"data:image/{form};base64,{b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, as many as fit."""

    items: Sequence[Picture]
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    title: str
    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Definitions:
    """Terms and what they mean, folded away."""

    title: str
    items: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "definitions"


Block = Text | Warnings | KeyFacts | PageTable | Pictures | Code | Definitions


@dataclass(frozen=True)
class PageSection:
    """A part of a page under a heading.

    Attributes:
        anchor: its name in links, of small letters.
        title: its heading.
        blocks: what is in it, in order.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: its heading.
        kicker: small text above the heading: what kind of page it is.
        lead: a sentence below the heading.
        sections: its parts; one without blocks is left out.
        foot: small text at the end.
    """

    title: str
    kicker: str
    lead: str
    sections: Sequence[PageSection]
    foot: str


def render(page: Page) -> str:
    """The page as HTML."""
    script = SCRIPT.read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [section for section in page.sections if section.blocks]
    return _template().render(page=page, sections=sections, script=script, digest=digest)


def write_page(path: Path, page: Page) -> None:
    """Writes a page; a reader sees the old file or the whole new one.

    Raises:
        OSError: where it cannot be written.
    """
    text = render(page)
    atomic_write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined  # not needed before a run ends

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
