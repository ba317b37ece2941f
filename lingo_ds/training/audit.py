"""Whether all processes hold the same state: a 64-bit fingerprint per part, compared in one collective."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.utils.state import Count, State, Stateful

logger = logging.getLogger(__name__)

FINGERPRINT_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 21}
"""Entries hashed at a time: what fits a core's cache; what fills a GPU with 50 MiB of temporaries."""

ODD = 0x5851F42D4C957F2D
"""Knuth's multiplier of a linear congruential generator: odd, with bits set throughout."""


class DivergenceError(RuntimeError):
    """Processes hold different state and `rank_sampling.on_divergence` is `raise`."""


class Seeded(Protocol):
    """A part whose random draws follow from a seed."""

    seed: int


class Seeds:
    """The seeds of all parts that draw at random, as one part of the state."""

    def __init__(self, parts: Mapping[str, Seeded]):
        self._parts = parts

    def state_dict(self) -> dict[str, Any]:
        """The seed of every part, by its name."""
        return {name: part.seed for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives every part the seed that `state_dict` had of it.

        Raises:
            ValueError: where it is of other parts.
        """
        if state.keys() != self._parts.keys():
            raise ValueError(f"seeds of {', '.join(self._parts)} are needed")
        for name, part in self._parts.items():
            part.seed = state[name]


class AuditCounts(State):
    """The counts of an `Audit`."""

    audits: Count
    divergences: Count
    repairs: Count


def tensor_fingerprint(tensor: Tensor) -> Tensor:
    """64-bit fingerprint on the tensor's device: a polynomial over chunks of sums of bits times odd numbers.

    A change of one entry changes it, since an odd factor is invertible modulo 2^64. The factors are mixed:
    in line with the positions, an exchange of masked triplets could leave the sum unchanged.
    """
    words = tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor.view(torch.uint8)
    size = FINGERPRINT_CHUNK.get(tensor.device.type, FINGERPRINT_CHUNK["cuda"])
    weights = _odd_numbers(min(size, len(words)), tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in words.split(size):
        total = total * ODD + chunk.to(torch.int64).mul_(weights[: len(chunk)]).sum()
    return total


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """(count,) int64 odd numbers without pattern: a multiply-xorshift mix of the position."""
    mixed = torch.arange(1, count + 1, device=device).mul_(ODD)
    for shift in (32, 29, 32):
        mixed = mixed.bitwise_xor_(mixed >> shift).mul_(ODD)
    return mixed.bitwise_or_(1)


def host_fingerprint(value: Any) -> int:
    """64-bit fingerprint of plain JSON values."""
    return agreement.text_fingerprint(json.dumps(value))


@dataclass
class Audit:
    """Compares the state of all processes and counts what it finds.

    The bank is hashed on its device; one 64-bit number per part is sent.

    Attributes:
        bank: the bank whose tensors and layout are compared.
        env: this process.
        on_divergence: `repair` or `raise`.
        parts: what must agree beside the bank, by the name that a divergence is reported with.
        interval: steps between audits.
        on_new_tensors: called where a repair had to replace the bank's tensors.
        audits: comparisons after a step; the one at the start of a run is not among them.
        divergences, repairs: differences that were found, and that were repaired.
    """

    bank: AdapterBank
    env: DistEnv
    on_divergence: str
    parts: Mapping[str, Stateful] = field(default_factory=dict)
    interval: int = 1
    on_new_tensors: Callable[[], None] = lambda: None
    audits: int = 0
    divergences: int = 0
    repairs: int = 0

    @property
    def fingerprints(self) -> int:
        """Number of fingerprints of each process: the bank's tensors, its ranks, and the further parts."""
        return len(self.bank.STATE) + 1 + len(self.parts)

    def state_dict(self) -> dict[str, Any]:
        """The counts, as plain JSON values."""
        return {"audits": self.audits, "divergences": self.divergences, "repairs": self.repairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            ValueError: for anything else.
        """
        found = AuditCounts.checked(state)
        self.audits, self.divergences, self.repairs = found.audits, found.divergences, found.repairs

    def __call__(self, step: int) -> bool:
        """Counts one audit after a step, and makes it; see `check`."""
        self.audits += 1
        return self.check(step)

    def check(self, step: int) -> bool:
        """Compares; returns True where a difference was found and repaired from global rank 0.

        Raises:
            DivergenceError: on every process, where differences are not to be repaired.
        """
        names, mine = self._prints()
        prints = process_group.all_gather(mine, what="audit").cpu()
        differs = prints != prints[0]
        if not differs.any():
            return False
        self.divergences += 1
        found = "; ".join(
            f"process {rank}: {', '.join(names[part] for part in row.nonzero().flatten().tolist())}"
            for rank, row in enumerate(differs)
            if row.any()
        )
        message = f"step {step}: processes differ from global rank 0 ({found})"
        if self.on_divergence == "raise":
            raise DivergenceError(message)
        if self.env.is_main:
            logger.warning("%s; repaired", message)
        self._repair()
        self.repairs += 1
        return True

    def _prints(self) -> tuple[list[str], Tensor]:
        """Names of all parts, and this process's fingerprints of them; 0 for missing tensors."""
        state, bank = self.bank.state(), self.bank
        host = {"ranks": bank.layout.ranks, **self._host_states()}
        nothing = torch.zeros((), dtype=torch.int64, device=bank.device)
        tensors = [tensor_fingerprint(state[name]) if name in state else nothing for name in bank.STATE]
        hashes = torch.tensor([host_fingerprint(value) for value in host.values()], device=bank.device)
        return [*bank.STATE, *host], torch.cat([torch.stack(tensors), hashes])

    def _host_states(self) -> dict[str, dict[str, Any]]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def _repair(self) -> None:
        """Makes this process hold what global rank 0 holds."""
        bank = self.bank
        mine = bank.layout.ranks, bank.sensitivity is not None, self._host_states()
        ranks, importance, states = agreement.broadcast_json(mine, self.env)
        if bank.reshape(ranks, importance=importance):
            self.on_new_tensors()
        for tensor in bank.state().values():
            process_group.broadcast_(tensor)
        bank.masks_from_tensor()
        for name, part in self.parts.items():
            part.load_state_dict(states[name])
