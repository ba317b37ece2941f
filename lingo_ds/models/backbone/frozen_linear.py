"""Replaces the backbone's frozen linear maps by those that keep no weight for the backward pass."""

import torch

from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.ops import matmul
from lingo_ds.models.ops.frozen_map import FrozenMap


def freeze_maps(spec: BackboneSpec, *, dtype: torch.dtype, device: torch.device, sharded: bool) -> None:
    """Replaces the forward of the linear maps inside the layers, where that saves time or memory.

    Time where oneDNN is faster. Memory where weights are sharded: torch's own map keeps a view of each weight
    for the backward pass, and with it all of the model that was gathered in the forward pass.
    """
    if not sharded and not matmul.supports_matmul(dtype, device):
        return
    for name in spec.linear_maps:
        module = spec.skeleton.get_submodule(name)
        module.forward = FrozenMap(module)
