"""Do all processes still hold the same bank? A 64-bit fingerprint per part, compared in one collective."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from lingo_ds import distributed
from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.distributed import DistEnv

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Entries hashed at a time: bounds the temporary memory at 16 MiB."""


class DivergenceError(RuntimeError):
    """Processes hold different banks and `rank_sampling.on_divergence` is `raise`."""


def fingerprint(tensor: Tensor) -> Tensor:
    """64-bit fingerprint on the tensor's device: every entry's bits times an odd number of its place, summed.

    A change of any one entry changes the sum, since an odd factor is invertible modulo 2^64.
    """
    words = tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor.view(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].to(torch.int64)
        place = torch.arange(start, start + len(part), device=tensor.device)
        total += (part * (place * 0x5851F42D4C957F2D * 2 + 1)).sum()
    return total


@dataclass
class Audit:
    """Compares the banks of all processes and counts what it finds.

    Attributes:
        audits, divergences, repairs: how many comparisons, how many found a difference, how many were mended.
    """

    bank: AdapterBank
    env: DistEnv
    on_divergence: str
    audits: int = 0
    divergences: int = 0
    repairs: int = 0

    def __call__(self, step: int) -> bool:
        """One audit. Returns True where a difference was found and repaired from global rank 0.

        Raises:
            DivergenceError: on every process, where differences are not to be repaired.
        """
        state = self.bank.state()
        prints = distributed.all_gather(torch.stack([fingerprint(part) for part in state.values()])).cpu()
        self.audits += 1
        differs = prints != prints[0]
        if not differs.any():
            return False
        self.divergences += 1
        names = list(state)
        found = "; ".join(
            f"process {rank}: {', '.join(names[part] for part in row.nonzero().flatten().tolist())}"
            for rank, row in enumerate(differs)
            if row.any()
        )
        message = f"step {step}: banks differ from global rank 0's ({found})"
        if self.on_divergence == "raise":
            raise DivergenceError(message)
        if self.env.is_main:
            logger.warning("%s; repaired", message)
        for part in state.values():
            distributed.broadcast_(part)
        self.bank.masks_from_tensor()
        self.repairs += 1
        return True
