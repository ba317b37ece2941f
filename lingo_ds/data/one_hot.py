"""One-hot bases: what needs no tokens reads them."""

from collections.abc import Sequence

import torch
from torch import Tensor

BASES = "ACGT"
"""The bases, in the order of every array and table that has one entry for each."""

_CHANNEL_OF = torch.full((256,), len(BASES), dtype=torch.uint8)
for _letter, _channel in {**{base: k for k, base in enumerate(BASES)}, "U": 3}.items():
    _CHANNEL_OF[ord(_letter)] = _CHANNEL_OF[ord(_letter.lower())] = _channel

_ROWS_OF_CHANNELS = torch.cat([torch.eye(len(BASES)), torch.zeros(1, len(BASES))])
"""(5, 4): A, C, G, T, and zeros for what is no base."""


def one_hot(sequences: Sequence[str], *, width: int, bin: int = 1) -> Tensor:
    """One-hot bases (rows, 4, ceil(width / bin)) in the order A, C, G, T; U counts as T.

    Any other letter, such as N, is zero in all four, and so is what a sequence lacks at its right end; one
    that is longer than `width` loses its end. A position of several bases is their mean.

    Args:
        sequences: in any case.
        width: bases of the longest.
        bin: bases that one position stands for.
    """
    positions = -(-width // bin)
    text = "".join(sequence[:width].ljust(positions * bin) for sequence in sequences)
    letters = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    channels = _CHANNEL_OF[letters.long()].view(len(sequences), positions, bin)
    if bin == 1:
        return _ROWS_OF_CHANNELS[channels[..., 0].long()].mT.contiguous()
    return torch.stack([(channels == k).float().mean(-1) for k in range(len(BASES))], dim=1)
