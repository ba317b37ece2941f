"""Where the host would wait for a card, how many operators it starts, and how many layers are gathered."""

import linecache
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._operators import tensors
from tests.pretend import device

CHECKOUT = Path(__file__).resolve().parents[2]
READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique", "aten.equal")
"""Operators whose result, or its size, the host needs."""
INDEXES = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")
COPIES = ("aten.copy_", "aten._to_copy")
FREE = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten._reshape_alias", "aten.lift_fresh")
"""Operators beside views that start no kernel."""


class Place(NamedTuple):
    """Where the host waits.

    Attributes:
        file: of this project, or where none is being run, of a library.
        line: the line's text; of a library the function's name.
        within: function of a library that waits below that line; empty: the line itself does.
        number: the line's, for people: it changes with every edit above it.
    """

    file: str
    line: str
    within: str
    number: int


class Probe(TorchDispatchMode):
    """Counts while `section` is set.

    Attributes:
        section: what is computed now; None: nothing that counts.
        waits: by section and place.
        operators: by section; those that start a kernel on the card.
        gathered: most entries of the watched layers that were whole at once, in layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.section: str | None = None
        self.waits: dict[str, Counter[Place]] = {}
        self.operators: Counter[str] = Counter()
        self.gathered = 0.0
        self._watched: list[nn.Parameter] = []
        self._of_layer = 1

    def watch(self, layers: list[nn.Module]) -> None:
        """Counts how much of these layers is whole at once; weights that always are do not count."""
        self._watched = [p for layer in layers for p in layer.parameters() if not p.ds_persist]
        self._of_layer = sum(p.ds_numel for p in self._watched) // len(layers)

    def __enter__(self) -> "Probe":
        device.observers.append(self._note)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        device.observers.remove(self._note)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        if self.section is None or not any(one.is_cuda for one in tensors((args, kwargs, out))):
            return out
        name = str(operator)
        if not operator.is_view and not name.startswith(FREE):
            self.operators[self.section] += 1
        if waits(name, args, kwargs, out):
            self._note(name)
        whole = sum(p.ds_numel for p in self._watched if p.ds_status.name != "NOT_AVAILABLE")
        self.gathered = max(self.gathered, whole / self._of_layer)
        return out

    def _note(self, what: str) -> None:
        if self.section is not None:
            self.waits.setdefault(self.section, Counter())[place()] += 1

    def during(self, section: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what it does counted in a section."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.section = self.section, section
            try:
                return function(*args, **kwargs)
            finally:
                self.section = before

        return counted


def waits(name: str, args: Any, kwargs: dict[str, Any], out: Any) -> bool:
    """Whether a call of an operator makes the host wait for the card."""
    if name.startswith((*READS, "aten.repeat_interleave.Tensor")):
        return True
    if name.startswith("aten.lift_fresh"):  # torch.tensor(.., device=)
        return out.is_cuda
    if name.startswith(INDEXES):
        indices = list(tensors(args[1]))
        return any(not one.is_cuda or one.dtype in (torch.bool, torch.uint8) for one in indices)
    if name.startswith(COPIES):
        to, source = (args[0], args[1]) if name.startswith("aten.copy_") else (out, args[0])
        if to.is_cuda == source.is_cuda:
            return False
        goes_on = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return not (goes_on and (source if to.is_cuda else to).is_pinned())
    return False


def place() -> Place:
    """The innermost line of this project that is being run, or else the innermost function of a library."""
    frame, function = sys._getframe(1), ("", "", 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(CHECKOUT / "lingo_ds"):
            line = linecache.getline(str(path), frame.f_lineno).strip()
            return Place(str(path.relative_to(CHECKOUT)), line, function[1], frame.f_lineno)
        library = str(path).partition("site-packages/")[2]
        if not function[0] and library.startswith(("deepspeed/", "transformers/")):
            function = (library, frame.f_code.co_name, frame.f_lineno)
        frame = frame.f_back
    return Place(*function[:2], "", function[2])
