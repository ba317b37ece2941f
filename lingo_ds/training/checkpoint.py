"""Checkpoints of a few megabytes: the bank and the state of the run's other parts.

An own format, since all that learns is a few megabytes that every process holds: any world size resumes it,
no byte of the backbone is in it and no pickle. A thread writes it, from a copy, while training continues.
"""

import hashlib
import logging
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write, clear_leftovers
from lingo_ds.utils.safe_read import own_file, read_regular
from lingo_ds.utils.state import Stateful, first_error

logger = logging.getLogger(__name__)

BANK, STATE, SUMS = "bank.safetensors", "state.json", "SHA256SUMS"
MAX_STATE_BYTES = 256 * 2**20
"""Largest state.json that is read."""

LATER_PARTS = {"collapse"}
"""Parts that checkpoints of earlier versions do not hold."""

MAX_SUMS_BYTES = 2**12
"""Largest SHA256SUMS that is read."""


class RunState(BaseModel, extra="forbid"):
    """The content of `state.json`.

    Attributes:
        format: version of this format; no other one is read.
        step: finished steps.
        examples: examples seen so far; with the seed they give the place in the data.
        ranks: rank of each of the bank's sites.
        schedule: fields of the budget's schedule; None without sampling.
        total_steps: steps of the whole run.
        parts: what `state_dict` gave of each part of the run, by its name.
        compatibility: what must be equal for a run to resume from here.
        config: all settings, for a reader.
        versions: versions of this package and its libraries.
    """

    format: Literal[3] = 3
    step: NonNegativeInt
    examples: NonNegativeInt
    ranks: list[NonNegativeInt]
    schedule: dict[str, int] | None
    total_steps: PositiveInt
    parts: dict[str, dict[str, Any]]
    compatibility: dict[str, Any]
    config: dict[str, Any]
    versions: dict[str, str]


class Checkpoint(NamedTuple):
    """A checkpoint whose sums fit and whose state could be read."""

    path: Path
    state: RunState


@dataclass
class CheckpointCounts:
    """How many checkpoints a run wrote, and the time that they took.

    Attributes:
        written, failed: checkpoints that were written, and that could not be.
        stall_seconds: time in which the loop waited for them.
        last: step of the last one that was written.
    """

    written: int = 0
    failed: int = 0
    stall_seconds: float = 0.0
    last: int | None = None


class CheckpointStore:
    """The `checkpoints/` folder of a run: one `step-XXXXXXXX` folder per checkpoint.

    Attributes:
        folder: its path.
        counts: counts so far.
    """

    def __init__(self, folder: Path, keep_last: int, *, keep_first: bool = False):
        """`keep_last` checkpoints stay, the one of the best step, and with `keep_first` that of the start."""
        self.folder, self._keep_last, self._keep_first = folder, keep_last, keep_first
        self.counts = CheckpointCounts()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._writer: threading.Thread | None = None

    def save(self, state: RunState, bank: AdapterBank, *, best_step: int) -> None:
        """Copies the bank and lets the thread write; waits only while an earlier one is still being written.

        Where a checkpoint cannot be written, a warning is logged and training continues; earlier ones stay.
        """
        start = time.perf_counter()
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_jobs, name="checkpoints", daemon=True)
            self._writer.start()
        tensors = {name: value.to("cpu", copy=True) for name, value in bank.state().items()}
        self._jobs.join()
        self._jobs.put(lambda: self._write(state, tensors, best_step))
        self.counts.stall_seconds += time.perf_counter() - start

    def finish(self) -> None:
        """Waits until what was saved is on disk."""
        start = time.perf_counter()
        if self._writer is not None:
            self._jobs.join()
            self._jobs.put(None)
            self._writer.join()
            self._writer = None
        self.counts.stall_seconds += time.perf_counter() - start

    def _write_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def _write(self, state: RunState, tensors: dict[str, Tensor], best_step: int) -> None:
        def write(aside: Path) -> None:
            aside.mkdir()
            save_file(tensors, aside / BANK)
            (aside / STATE).write_text(state.model_dump_json())
            sums = [f"{_sha256(aside / name)}  {name}" for name in (BANK, STATE)]
            (aside / SUMS).write_text("\n".join(sums) + "\n")

        try:
            atomic_write(self._path(state.step), write)
            kept = {self._path(best_step), *([self._path(0)] if self._keep_first else [])}
            for old in self._steps()[: -self._keep_last]:
                if old not in kept:
                    shutil.rmtree(old)
        except (OSError, SafetensorError) as error:
            self.counts.failed += 1
            last = f"the last one is of step {self.counts.last}" if self.counts.last else "there is none yet"
            logger.warning(
                "checkpoint of step %d: not written (%s): training continues; %s", state.step, error, last
            )
        else:
            self.counts.written += 1
            self.counts.last = state.step

    def at(self, *steps: int) -> Checkpoint | None:
        """The checkpoint of the first of these steps that has one that is not damaged."""
        for path in map(self._path, steps):
            try:
                return read_checkpoint(path)
            except UserError as error:
                logger.warning("%s", error.mistakes[0])
        return None

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which training will take anew."""
        for path in self._steps():
            if path > self._path(step):
                shutil.rmtree(path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; what a killed run was writing is removed."""
        clear_leftovers(self.folder)
        for path in reversed(self._steps()):
            try:
                return read_checkpoint(path)
            except UserError as error:
                logger.warning("%s; trying an older checkpoint", error.mistakes[0])
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Checks a checkpoint's sums and reads its state; `load_bank` reads its tensors.

    Raises:
        UserError: where it is incomplete, damaged, altered, or no checkpoint.
    """
    try:
        files = {name: own_file(path, name) for name in (BANK, STATE, SUMS)}
        sums = read_regular(files[SUMS], most=MAX_SUMS_BYTES).decode().split()
        for name in (BANK, STATE):
            if sums[sums.index(name) - 1] != _sha256(files[name]):
                raise ValueError(f"{name} does not fit {SUMS}")
        state = RunState.model_validate_json(read_regular(files[STATE], most=MAX_STATE_BYTES))
    except ValidationError as error:
        raise _damaged(path, f"{STATE}: {first_error(error)}") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return Checkpoint(path, state)


def load_parts(checkpoint: Checkpoint, parts: Mapping[str, Stateful]) -> None:
    """Restores the run's parts from a checkpoint, once its bank is loaded.

    Parts of `LATER_PARTS` stay as they are where it does not hold them.

    Raises:
        UserError: where it holds other parts, or a part's state is not what that part saves.
    """
    path, found = checkpoint.path, checkpoint.state.parts
    parts = {name: part for name, part in parts.items() if name in found or name not in LATER_PARTS}
    if found.keys() != parts.keys():
        raise _damaged(path, f"{STATE}: parts: {', '.join(found)}; {', '.join(parts)} are needed")
    for name, part in parts.items():
        try:
            part.load_state_dict(found[name])
        except ValueError as error:
            raise _damaged(path, f"{STATE}: {name}: {error}") from None


def load_bank(checkpoint: Checkpoint, bank: AdapterBank, env: DistEnv) -> None:
    """Loads a checkpoint's tensors into the bank of every process: read on global rank 0, then broadcast.

    Raises:
        UserError: on every process, where the tensors do not fit the bank.
    """
    path, ranks = checkpoint.path, checkpoint.state.ranks
    tensors: dict[str, Tensor] = {}
    with agreement.errors_raised_on_all(env):
        if len(ranks) != len(bank.layout.ranks) or any(
            ours < theirs for ours, theirs in zip(bank.layout.ranks, ranks, strict=True)
        ):
            raise _damaged(path, "its ranks do not fit the backbone's maps")
    found = _shapes(path) if env.is_main else {}
    bank.reshape(ranks, importance=agreement.broadcast_json("sensitivity" in found, env))
    with agreement.errors_raised_on_all(env):
        if env.is_main:
            expected = {name: (list(value.shape), _dtype_name(value)) for name, value in bank.state().items()}
            if found != expected:
                raise _damaged(path, f"{BANK} does not hold this bank's tensors")
            tensors = load_file(path / BANK)
    with torch.no_grad():
        for name, value in bank.state().items():
            if env.is_main:
                value.copy_(tensors[name])
            process_group.broadcast_(value)
    bank.masks_from_tensor()


def _shapes(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of every tensor, from the header: nothing is allocated that a file only claims."""
    try:
        with safe_open(path / BANK, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (OSError, SafetensorError):
        return {}


def _dtype_name(value: Tensor) -> str:
    return {torch.float32: "F32", torch.bool: "BOOL"}[value.dtype]


def _damaged(path: Path, reason: object) -> UserError:
    return UserError(
        Mistake(
            "checkpoint.resume", path, f"is incomplete or damaged ({reason})", "choose another checkpoint"
        )
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
