"""Pages of which a part, between two marks, is written from the code: written anew, or checked."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def replace_marked(page: str, marks: tuple[str, str], part: str, *, name: str) -> str:
    """A page's text with `part` between its two marks.

    Raises:
        ValueError: where a mark is missing; `name` is the page's.
    """
    begin, end = marks
    if begin not in page or end not in page:
        raise ValueError(f"{name}: has no lines {begin} and {end}")
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n{part}\n{end}{rest.partition(end)[2]}"


def write_or_check(
    argv: Sequence[str] | None, page: Path, renewed: Callable[[str], str], *, described: str, outdated: str
) -> int:
    """Writes a page anew, or with `--check` compares it; the exit status.

    Args:
        argv: arguments of the command line; None: the process's own.
        page: the file.
        renewed: makes its text as it should be of the text as it is.
        described: what the command writes, for its help.
        outdated: what to say of a page that is out of date.
    """
    parser = argparse.ArgumentParser(description=described)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 where the page is out of date"
    )
    check = parser.parse_args(argv).check
    before = page.read_text()
    after = renewed(before)
    if not check:
        page.write_text(after)
    elif before != after:
        sys.stderr.write(f"{outdated}: make tree\n")
        return 1
    return 0
