"""From the label cells of an example to what is learned."""

import math
import re

VALUE_KINDS = ("multilabel", "regression")
"""Kinds of task whose target is a list of floats."""


class BadTarget(ValueError):
    """Label cells that mean nothing for the task."""

    def __init__(self, value: object, rule: str, fix: str):
        super().__init__(f"{value!r}: {rule}")
        self.value, self.rule, self.fix = value, rule, fix


def read_target(cells: tuple[str | int | float | None, ...], *, kind: str) -> int | list[float]:
    """A class number, or one float per cell for `VALUE_KINDS` (NaN: unknown).

    Raises:
        BadTarget: where a cell is something else.
    """
    if kind in VALUE_KINDS:
        return [_number(cell) for cell in cells]
    (cell,) = cells
    if type(cell) is int and cell >= 0:
        return cell
    text = cell.strip() if isinstance(cell, str) else cell
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,9}", text):
        shown = "" if text is None else text
        raise BadTarget(shown, "label is not an integer from 0", "number the classes 0, 1, 2, ..")
    return int(text)


def _number(cell: str | int | float | None) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise BadTarget(cell, "label is not a number", "write a number, or nothing where unknown") from None
