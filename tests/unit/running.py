"""The command line, called in this process, and what a run left."""

import contextlib
import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingo_ds.commands.cli import main
from lingo_ds.data.batches import Prefetcher
from lingo_ds.monitor import rank_plots, report_plots


def command(verb: str, recipe: Path, out: Path, *overrides: str, drawn: bool = False) -> tuple[int, str]:
    """Exit status and stderr of `lingo-ds VERB`, in this process; pictures are blank unless `drawn`."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), pytest.MonkeyPatch.context() as patch:
        if not drawn:  # drawing takes as long as the training
            for name in ("draw_rank_map", "draw_budget", "draw_shares", "draw_scores"):
                blank = np.zeros((8, 8, 3), np.uint8)
                patch.setattr(rank_plots, name, lambda *_, _blank=blank, **__: _blank)
            patch.setattr(report_plots, "_svg", lambda *_, **__: b"<svg xmlns='http://www.w3.org/2000/svg'/>")
        status = main([verb, "--config", str(recipe), f"output_dir={out}", *overrides])
    return status, shown.getvalue()


@contextlib.contextmanager
def at_step(step: int, action: Callable[[], Any]) -> Iterator[None]:
    """Inside, training does something else when it takes up the batch of a step."""
    original = Prefetcher.at

    def at(self: Prefetcher, now: int):
        if now == step:
            action()
        return original(self, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prefetcher, "at", at)
        yield


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def once(action: Callable[[], Any]) -> Callable[[], Any]:
    """The action, the first time only: several runs take up the batch of a step."""
    left = [action]
    return lambda: left.pop()() if left else None


def crash() -> None:
    raise RuntimeError("the machine is on fire")


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
