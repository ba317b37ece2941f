"""Spellings of a cell that has no content."""

SPELLINGS = frozenset(("", "na", "n/a", "<na>", "#na", "#n/a", "#n/a n/a", "null", "none", "nan", "-nan"))
"""What pandas, R, SQL and spreadsheets write for it, in lower case; pandas reads the same back as missing."""


def is_missing(cell: object) -> bool:
    """Whether a cell of a table says that there is nothing: empty, null, not a number, or spelled so."""
    if isinstance(cell, str):
        return len(cell) < 20 and cell.strip().lower() in SPELLINGS
    return cell is None or cell != cell  # a float that is not a number
