"""Norms and gates of a decoder layer, fused on a CPU: `kernels/elementwise.cpp`.

transformers writes them out in five to ten operations each, every one of which reads and writes whole
tensors; here each tensor is read once and written once. Rotary positions stay transformers' own: attention
modules call a function of their file, which could only be replaced for every model of the process.
"""

from typing import Any

import torch
from torch import Tensor

from lingo_ds.models.backbone.families import FUSED
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.ops.compiled import library
from lingo_ds.models.ops.elementwise import RMSNorm, SiLUGate


def may_fuse(spec: BackboneSpec, dtype: torch.dtype, device: str) -> bool:
    """Whether there are fused functions for a backbone: on `cpu`, in fp32, for some families."""
    return spec.model_type in FUSED and dtype == torch.float32 and device == "cpu"


def fuse(spec: BackboneSpec, *, dtype: torch.dtype, device: torch.device) -> None:
    """Replaces the forward of this skeleton's norms and gates, where the kernels can be compiled.

    Modules that are not transformers' own may compute something else and stay as they are.
    """
    own = type(spec.skeleton).__module__.startswith("transformers.models.")
    known = may_fuse(spec, dtype, device.type) and own
    if not known or library() is None:
        return
    for module in spec.skeleton.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = _FusedNorm(module)
        elif hasattr(module, "gate_proj") and "SiLU" in type(module.act_fn).__name__:
            module.forward = _FusedGate(module)


class _FusedNorm:
    """In place of an RMS norm's forward; like a map, it keeps itself and no weight, see `FrozenForward`."""

    def __init__(self, module: Any):
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = RMSNorm.apply(x, self.weight, self.epsilon())
        return out

    def weight(self) -> Tensor:
        """(size,); a sharded one must be whole now."""
        weight: Tensor = self._module.weight
        return weight.detach()

    def epsilon(self) -> float:
        """Added to the mean square."""
        return float(self._module.variance_epsilon)


class _FusedGate:
    """In place of a feed-forward part's forward."""

    def __init__(self, module: Any):
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self._module.gate_proj(x), self._module.up_proj(x)
        out: Tensor = self._module.down_proj(SiLUGate.apply(gate, up))
        return out
