"""Copies from the host to a GPU that nobody waits for: they start in pinned memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
ALIGNED = 16
"""Bytes at whose multiples each tensor of a block begins: more than any dtype's own."""


def on_host(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Values on the CPU, in pinned memory where they are to go to a GPU."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copies values to a device; a CPU gets the values themselves."""
    return on_host(values, device).to(device, non_blocking=True)


def pinned(value: T) -> T:
    """The same tuple, nested ones included, with all its tensors in one block of pinned memory."""
    sizes: dict[int, int] = {}
    map_tensors(value, lambda tensor: sizes.setdefault(id(tensor), tensor.nbytes))
    starts, total = {}, 0
    for key, size in sizes.items():
        starts[key] = total
        total += -(-size // ALIGNED) * ALIGNED
    block = torch.empty(total, dtype=torch.uint8, pin_memory=True)
    return map_tensors(value, lambda tensor: _part(block, starts[id(tensor)], tensor).copy_(tensor))


def to_device(value: T, device: torch.device) -> T:
    """The same tuple, nested ones included, with all its tensors on a device: one copy for each block."""
    if device.type == "cpu":
        return value
    blocks: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return tensor.to(device, non_blocking=True)
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in blocks:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            blocks[key] = whole.to(device, non_blocking=True)
        return _part(blocks[key], int(tensor.storage_offset()) * tensor.element_size(), tensor)

    return map_tensors(value, move)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tuple, nested ones included, with what `change` gives in place of each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [map_tensors(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _part(block: Tensor, start: int, like: Tensor) -> Tensor:
    """The bytes of a block from `start` on as a tensor like another one, which is contiguous."""
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape)
