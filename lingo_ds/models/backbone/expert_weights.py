"""Weights of experts: transformers holds those of a layer in one tensor, files on the hub hold each apart.

In memory lie, one expert after the other, its gate and its projection up; in another tensor its projections
down. So any range of a tensor in memory is ranges of a few tensors in the files.
"""

import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from torch.utils.checkpoint import checkpoint

QWEN = ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight", "mlp.experts.{}.down_proj.weight")
MIXTRAL = tuple(f"block_sparse_moe.experts.{{}}.{one}.weight" for one in ("w1", "w3", "w2"))
NAMES = {"qwen3_moe": QWEN, "mixtral": MIXTRAL}
"""Names in the files of an expert's gate, projection up and projection down, by model type."""

MIXTRAL_ROUTER = ("mlp.gate.weight", "block_sparse_moe.gate.weight")
"""Name of the router's weight in transformers' module, and in Mixtral's files."""

JOINED = re.compile(r"(.*\.)mlp\.experts\.(gate_up_proj|down_proj)")


class Piece(NamedTuple):
    """Part of a range of a tensor in memory: a weight in the files, its first entry, and how many."""

    key: str
    start: int
    entries: int


class Parts(NamedTuple):
    """The weights in the files that make up one tensor in memory, in its order, all of one shape."""

    keys: tuple[str, ...]
    shape: tuple[int, ...]

    def pieces(self, start: int, count: int) -> Iterator[Piece]:
        """The pieces of `count` entries of the tensor in memory from `start` on."""
        size = math.prod(self.shape)
        while count:
            place, first = divmod(start, size)
            taken = min(size - first, count)
            yield Piece(self.keys[place], first, taken)
            start, count = start + taken, count - taken


def expert_parts(family: str, name: str, shape: tuple[int, ...]) -> Parts | None:
    """The parts of a weight with a name and a shape in the module; None where it is not of experts.

    Args:
        family: model type.
        name: of the weight, with the prefix that names in the files have.
        shape: (experts, d_out, d_in).
    """
    found = JOINED.fullmatch(name)
    if found is None or family not in NAMES:
        return None
    layer, which = found.groups()
    kinds = NAMES[family][:2] if which == "gate_up_proj" else NAMES[family][2:]
    experts, d_out, d_in = shape
    keys = tuple(layer + kind.format(one) for one in range(experts) for kind in kinds)
    return Parts(keys, (d_out // len(kinds), d_in))


def recompute_experts(module: nn.Module) -> None:
    """Makes the experts of a sharded model keep their inputs alone, and compute again in the backward pass.

    Their products would keep the weights for it, and with them all experts that the forward pass gathered.
    """
    for name, inner in module.named_modules():
        if name.endswith(".experts"):
            own: Any = inner  # mypy knows no methods that are assigned to
            own.forward = partial(checkpoint, inner.forward, use_reentrant=False)
