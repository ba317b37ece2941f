"""Writes the table of docs/models.md anew, from the families that the code knows.

    python -m scripts.models_table [--check]     # or: make tree

`--check` writes nothing and ends with status 1 where the page is out of date.
"""

import sys
from collections.abc import Iterator

from lingo_ds.models.backbone.families import FAMILIES, Family
from scripts.marked_page import replace_marked, write_or_check
from scripts.readme_tree import ROOT

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: written by `make tree` -->", "<!-- end of table -->"
HEADER = ("`model_type`", "models", "`all-linear` adapts", "batches", "merged, and in stock PEFT", "remarks")


def row(name: str, family: Family) -> tuple[str, ...]:
    """The cells of one family."""
    batches = "padded"
    if family.packs:
        batches = "packed" if family.encoder else "packed, shared prefix"
    form = "a classifier; LoRA and AdaLoRA" if family.classifier else "a base model and its head; not in PEFT"
    experts = "experts stay as they are" if family.experts else ""
    remarks = "; ".join(part for part in (experts, family.remark) if part)
    maps = ", ".join(f"`{target}`" for target in family.targets)
    return f"`{name}`", family.models, maps, batches, form, remarks


def table_lines() -> Iterator[str]:
    """The table in Markdown, sorted as the code is."""
    yield _line(HEADER)
    yield _line(("---",) * len(HEADER))
    for name, family in FAMILIES.items():
        yield _line(row(name, family))


def with_table(page: str) -> str:
    """The page's text with its table as the code is now.

    Raises:
        ValueError: where a mark is missing.
    """
    return replace_marked(page, (BEGIN, END), "\n".join(table_lines()), name=PAGE.name)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    """Writes the table, or with `--check` compares it."""
    return write_or_check(
        argv,
        PAGE,
        with_table,
        described="the table of docs/models.md, from the code",
        outdated="docs/models.md: its table is out of date",
    )


if __name__ == "__main__":
    sys.exit(main())
