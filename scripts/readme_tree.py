"""Writes README's tree of files anew, each line from the first docstring line of its module.

    python -m scripts.readme_tree [--check]     # or: make tree

Between the two marks in README.md lie one line per room and, folded below it, one line per file. `--check`
writes nothing and ends with status 1 where README is out of date.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.import_rules import PACKAGE, read_rules
from scripts.marked_page import replace_marked, write_or_check

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tree: written by `make tree` -->", "<!-- end of tree -->"

WIDTH = 22
"""Columns of a file's name; a longer one stands two blanks before its sentence."""

OUTER = ("launchers", "scripts", "benchmarks")
"""Folders of Python files outside of the package."""


def first_line(module: Path) -> str:
    """The first line of a module's docstring.

    Raises:
        ValueError: where there is none.
    """
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    if not docstring:
        raise ValueError(f"{module}: has no docstring")
    return docstring.splitlines()[0]


def rooms(root: Path) -> list[Path]:
    """The rooms of the package from the top floor down, each followed by the packages inside it."""
    floors = read_rules(root).floors[PACKAGE]
    tops = [root / PACKAGE / name for floor in floors for name in floor]
    return [found.parent for top in tops for found in sorted(top.rglob("__init__.py"))]


def room_lines(root: Path) -> Iterator[str]:
    """One line for each room of the package and each package inside a room."""
    package = root / PACKAGE
    yield _line(f"{PACKAGE}/", first_line(package / "__init__.py"), depth=0)
    for room in rooms(root):
        yield _line(
            f"{room.name}/", first_line(room / "__init__.py"), depth=len(room.relative_to(package).parts)
        )


def file_lines(root: Path) -> Iterator[str]:
    """One line for each module, below the path of its folder."""
    folders = [*rooms(root), *(root / name for name in OUTER)]
    for folder in folders:
        modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        if modules:
            yield f"{folder.relative_to(root)}/"
            yield from (_line(path.name, first_line(path), depth=1) for path in modules)


def tree(root: Path) -> str:
    """What lies between the two marks of README.md."""
    listing = "```\n{}\n```"
    return "\n".join(
        (
            listing.format("\n".join(room_lines(root))),
            "\n<details><summary>Every file</summary>\n",
            listing.format("\n".join(file_lines(root))),
            "\n</details>",
        )
    )


def with_tree(readme: str, root: Path) -> str:
    """README's text with its tree as the code is now.

    Raises:
        ValueError: where a mark is missing.
    """
    return replace_marked(readme, (BEGIN, END), tree(root), name="README.md")


def _line(name: str, sentence: str, *, depth: int) -> str:
    indent = "  " * depth
    return f"{indent}{name:<{WIDTH - len(indent)}}  {sentence}"


def main(argv: list[str] | None = None) -> int:
    """Writes the tree, or with `--check` compares it."""
    return write_or_check(
        argv,
        ROOT / "README.md",
        lambda readme: with_tree(readme, ROOT),
        described="README's tree of files, from docstrings",
        outdated="README.md: its tree is out of date",
    )


if __name__ == "__main__":
    sys.exit(main())
