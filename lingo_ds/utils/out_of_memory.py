"""Errors of a full memory, of a GPU or the host, told apart from all others and put into words."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from lingo_ds.utils.errors import LoneError, Mistake
from lingo_ds.utils.units import as_bytes

FULL = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
"""What torch's allocators, cuBLAS and CUDA say of a full memory; on the CPU that is a plain RuntimeError."""

ASKED = re.compile(r"tried to allocate ([\d.]+ ?[KMG]iB|\d+ bytes)", re.IGNORECASE)
FREE = re.compile(r"total capacity of ([\d.]+ ?[KMG]iB) of which ([\d.]+ ?[KMG]iB) is free", re.IGNORECASE)


class Remedy(NamedTuple):
    """The setting that decides how much memory is taken.

    Attributes:
        setting: its name.
        value: what it is now, set by the user or by the plan.
        fix: what to do about it.
    """

    setting: str
    value: object
    fix: str


def describe_shortage(error: BaseException) -> str | None:
    """How much memory was asked for and how much was free, as far as the error says; None: another error."""
    text = str(error)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and FULL.search(text)):
        return None
    asked, free = ASKED.search(text), FREE.search(text)
    words = f"{_readable(asked[1])} more did not fit" if asked else "no more fitted"
    return f"{words}, {free[2]} of {free[1]} were free" if free else words


def _readable(size: str) -> str:
    number, _, unit = size.partition(" ")
    return as_bytes(int(number)) if unit == "bytes" else size


@contextmanager
def report_out_of_memory(phase: str, remedy: Callable[[], Remedy]) -> Iterator[None]:
    """Reports a full memory as the user's to correct, with the setting to lower.

    Args:
        phase: what is done inside, to end `out of memory in ..`.
        remedy: makes the setting that decides how much this phase takes; called only where it is needed.

    Raises:
        LoneError: in place of such an error. Other processes may have had enough memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        shortage = describe_shortage(error)
        if shortage is None:
            raise
        setting, value, fix = remedy()
        mistake = Mistake(setting, value, f"out of memory in {phase}: {shortage}", fix)
        traceback.clear_frames(error.__traceback__)  # they refer to tensors: who goes on needs the memory
        raise LoneError(mistake) from None
