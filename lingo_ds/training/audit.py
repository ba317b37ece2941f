"""Do all processes still hold the same state? A 64-bit fingerprint per part, compared in one collective."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.bank import AdapterBank

logger = logging.getLogger(__name__)

FINGERPRINT_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 21}
"""Entries hashed at a time: what stays in a core's cache; what fills a GPU with 50 MiB of temporaries."""

ODD = 0x5851F42D4C957F2D
"""Knuth's multiplier of a linear congruential generator: odd, and with bits all over."""


class DivergenceError(RuntimeError):
    """Processes hold different state and `rank_sampling.on_divergence` is `raise`."""


class HostState(NamedTuple):
    """A part of the state outside the bank's tensors.

    Attributes:
        name: what a divergence is called.
        read: its value, plain JSON.
        adopt: takes global rank 0's value.
    """

    name: str
    read: Callable[[], Any]
    replace: Callable[[Any], None]


def tensor_fingerprint(tensor: Tensor) -> Tensor:
    """64-bit fingerprint on the tensor's device: a polynomial over chunks of sums of bits times odd numbers.

    A change of one entry changes it, since an odd factor is invertible modulo 2^64. The factors are mixed:
    in line with the places, an exchange of masked triplets could leave the sum as it was.
    """
    words = tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor.view(torch.uint8)
    size = FINGERPRINT_CHUNK.get(tensor.device.type, FINGERPRINT_CHUNK["cuda"])
    weights = _odd_numbers(min(size, len(words)), tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in words.split(size):
        total = total * ODD + chunk.to(torch.int64).mul_(weights[: len(chunk)]).sum()
    return total


def _odd_numbers(count: int, device: torch.device) -> Tensor:
    """(count,) int64 odd numbers without pattern: a multiply-xorshift mix of the place."""
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

    The bank is hashed where it lies; what travels is one 64-bit number per part.

    Attributes:
        bank: whose tensors and layout are compared.
        env: this process's place.
        on_divergence: `repair` or `raise`.
        host: further parts.
        on_new_tensors: called where a repair had to replace the bank's tensors.
        audits: comparisons after a step; the one at the start of a run is not among them.
        divergences, repairs: differences found and mended.
    """

    bank: AdapterBank
    env: DistEnv
    on_divergence: str
    host: Sequence[HostState] = ()
    on_new_tensors: Callable[[], None] = lambda: None
    audits: int = 0
    divergences: int = 0
    repairs: int = 0

    @property
    def parts(self) -> int:
        """Fingerprints that each process gives: of the bank's tensors, its ranks, and the further parts."""
        return len(self.bank.STATE) + 1 + len(self.host)

    def __call__(self, step: int) -> bool:
        """One audit after a step; counts it, and does as `check`."""
        self.audits += 1
        return self.check(step)

    def check(self, step: int) -> bool:
        """Compares. Returns True where a difference was found and repaired from global rank 0.

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
        """Names of all parts, and this process's fingerprints of them; 0 for tensors it has not."""
        state, bank = self.bank.state(), self.bank
        host = {"ranks": bank.layout.ranks, **{part.name: part.read() for part in self.host}}
        nothing = torch.zeros((), dtype=torch.int64, device=bank.device)
        tensors = [tensor_fingerprint(state[name]) if name in state else nothing for name in bank.STATE]
        hashes = torch.tensor([host_fingerprint(value) for value in host.values()], device=bank.device)
        return [*bank.STATE, *host], torch.cat([torch.stack(tensors), hashes])

    def _repair(self) -> None:
        """Makes this process hold what global rank 0 holds."""
        bank = self.bank
        shape = bank.layout.ranks, bank.sensitivity is not None, [part.read() for part in self.host]
        ranks, importance, host = agreement.broadcast_json(shape, self.env)
        if bank.reshape(ranks, importance=importance):
            self.on_new_tensors()
        for part in bank.state().values():
            process_group.broadcast_(part)
        bank.masks_from_tensor()
        for part, value in zip(self.host, host, strict=True):
            part.replace(value)
