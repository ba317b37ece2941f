"""One-hot bases: what the baselines read of a sequence or a pair of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.dna import reverse_complement

CHANNELS = "ACGT"

_CHANNEL_OF = torch.full((256,), len(CHANNELS), dtype=torch.uint8)
for _letter, _channel in {**{base: k for k, base in enumerate(CHANNELS)}, "U": 3}.items():
    _CHANNEL_OF[ord(_letter)] = _CHANNEL_OF[ord(_letter.lower())] = _channel

_ROWS_OF_CHANNELS = torch.cat([torch.eye(len(CHANNELS)), torch.zeros(1, len(CHANNELS))])
"""(5, 4): A, C, G, T, and zeros for what is no base."""


class OneHotSplit(NamedTuple):
    """Rows of a split.

    Attributes:
        bases: (rows, 4, positions) float32.
        labels: (rows,) int64 classes, or (rows, outputs) float32 with NaN where unknown.
        reverse: the bases of the other strand, same shape; None where it is not read.
    """

    bases: Tensor
    labels: np.ndarray
    reverse: Tensor | None = None


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
    return torch.stack([(channels == k).float().mean(-1) for k in range(len(CHANNELS))], dim=1)


def other_strand(sequence: str) -> str:
    """The reverse complement of a sequence in any case."""
    return reverse_complement(sequence.upper())
