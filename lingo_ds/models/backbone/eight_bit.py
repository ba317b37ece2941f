"""Frozen maps in 8 bits, held and gathered: whole numbers from -127 to 127, and a scale per block of entries.

These are the weights of ZeRO++ (arXiv 2306.10209, section 3.1), in a form for weights that do not learn: they
are quantised once, at loading. Blocks are counted from a weight's first entry and are never cut, so that a
weight is the same on any number of processes. DeepSpeed 0.19.8 has a GPU kernel for this that is compiled
where it runs; its blocks follow from the number of processes, and where maps are gathered together its form
for frozen weights casts them to whole numbers.

A part is one tensor of bytes: the numbers of its entries, then their scales (fp32).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_INT8 = 127

BLOCKS_PER_UNPACK = 1024
"""Blocks that are unpacked at a time on a CPU, where they then stay in its cache."""

ENTRIES_PER_READ = 1 << 20
"""Entries that are read and packed at a time: whole blocks."""

SCALE_BLOCK = 256
"""Entries of a map in 8 bits that share a scale."""

SCALE_BYTES = 4
"""Bytes of such a scale."""


def packed_entries(entries: int, parts: int) -> int:
    """Entries of each process's part of a map in 8 bits: whole blocks, so that no part changes a scale."""
    return math.ceil(entries / (parts * SCALE_BLOCK)) * SCALE_BLOCK


def packed_bytes(entries: int) -> int:
    """Bytes of that many entries in 8 bits, with the scales of their blocks."""
    return entries + math.ceil(entries / SCALE_BLOCK) * SCALE_BYTES


def pack(part: Tensor, read: Callable[[int, Tensor], None]) -> None:
    """Fills a part with what is read for it, piece by piece, on the device where it is.

    Args:
        part: (bytes,) uint8, `packed_bytes` of whole blocks.
        read: function of (first entry in the part, fp32 tensor to fill).
    """
    values, scales = split(part)
    entries = values.numel()
    room = torch.empty(min(entries, ENTRIES_PER_READ), device=part.device)
    for start in range(0, entries, ENTRIES_PER_READ):
        piece = room[: entries - start]
        read(start, piece)
        first, blocks = start // SCALE_BLOCK, piece.view(-1, SCALE_BLOCK)
        _pack(blocks, values[first : first + len(blocks)], scales[first : first + len(blocks)])


def _pack(blocks: Tensor, values: Tensor, scales: Tensor) -> None:
    """Fills numbers and scales; overwrites the (blocks, SCALE_BLOCK) fp32 entries that they are made of."""
    torch.amax(blocks.abs(), 1, keepdim=True, out=scales).div_(MAX_INT8)
    # where all of a block is 0, so is its scale, and 0 / 0 is 0 here
    values.copy_(blocks.div_(scales).nan_to_num_(0, MAX_INT8, -MAX_INT8).round_())


def split(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers and scales of parts (.., bytes) uint8.

    Returns:
        (.., blocks, SCALE_BLOCK) int8 and (.., blocks, 1) fp32, views of the parts.
    """
    blocks = parts.shape[-1] // packed_bytes(SCALE_BLOCK)
    entries = blocks * SCALE_BLOCK
    values = parts[..., :entries].view(torch.int8).unflatten(-1, (blocks, SCALE_BLOCK))
    return values, parts[..., entries:].view(torch.float32).unsqueeze(-1)


def unpack(parts: Tensor, out: Tensor) -> None:
    """Fills `out` (members * entries,), of any dtype, from every member's part of a map (members, bytes)."""
    values, scales = split(parts)
    out = out.view(values.shape)
    if out.is_cuda:
        torch.mul(values, scales, out=out)
        return
    for to, numbers, by in zip(out, values, scales, strict=True):
        multiply_out(numbers, by, to, rows=BLOCKS_PER_UNPACK)


def multiply_out(values: Tensor, scales: Tensor, out: Tensor, *, rows: int) -> None:
    """Fills `out` with values times scales, a few rows at a time, which stay in a CPU's cache as fp32."""
    for to, numbers, by in zip(*(tensor.split(rows) for tensor in (out, values, scales)), strict=True):
        to.copy_(numbers.float().mul_(by))
