"""What a decoder layer does beside its products, fused on a CPU: `kernels/elementwise.cpp`.

transformers writes norms, gates and rotary positions out in five to ten operations each, every one of which
reads and writes whole tensors; here each tensor is read once and written once.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lingo_ds.models.backbone.families import FUSED
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.ops.compiled import library
from lingo_ds.models.ops.elementwise import RMSNorm, Rotary, SiLUGate


def may_fuse(spec: BackboneSpec, dtype: torch.dtype, device: str) -> bool:
    """Whether there are fused functions for a backbone: on `cpu`, in fp32, for some families."""
    return spec.model_type in FUSED and dtype == torch.float32 and device == "cpu"


def fuse(spec: BackboneSpec, *, dtype: torch.dtype, device: torch.device) -> None:
    """Puts the fused functions into the skeleton's modules, where there are any and they can be compiled.

    Modules that are not transformers' own may compute something else and stay as they are.
    Rotary positions change for every fp32 model of the family in this process, by rounding.
    """
    source = type(spec.skeleton).__module__
    known = may_fuse(spec, dtype, device.type) and source.startswith("transformers.models.")
    if not known or library() is None:
        return
    for module in spec.skeleton.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = _FusedNorm(module)
        elif hasattr(module, "gate_proj") and "SiLU" in type(module.act_fn).__name__:
            module.forward = _FusedGate(module)
    modeling = sys.modules[source]
    if not isinstance(modeling.apply_rotary_pos_emb, _FusedRotary):
        modeling.apply_rotary_pos_emb = _FusedRotary(modeling.apply_rotary_pos_emb)


class _FusedNorm:
    """In place of an RMS norm's forward; like a map, it keeps itself and no weight, see `FrozenForward`."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        return RMSNorm.apply(x, self.weight, self.epsilon())

    def weight(self) -> Tensor:
        """(size,); a sharded one must be whole now."""
        return self._module.weight.detach()

    def epsilon(self) -> float:
        """Added to the mean square."""
        return self._module.variance_epsilon


class _FusedGate:
    """In place of a feed-forward part's forward."""

    def __init__(self, module: nn.Module):
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self._module.gate_proj(x), self._module.up_proj(x)
        return self._module.down_proj(SiLUGate.apply(gate, up))


class _FusedRotary:
    """In place of a family's `apply_rotary_pos_emb`, which stands in for anything but fp32 rows of tokens."""

    def __init__(self, original: Callable[..., tuple[Tensor, Tensor]]):
        self._original = original

    def __call__(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Query and key, (1, heads, tokens, size), turned by their places' angles, (1, tokens, size)."""
        served = len(query) == len(cos) == 1 and unsqueeze_dim == 1 and library() is not None
        if not served or any(x.device.type != "cpu" or x.dtype != torch.float32 for x in (query, key, cos)):
            return self._original(query, key, cos, sin, unsqueeze_dim)
        cos, sin = cos.contiguous(), sin.contiguous()
        return Rotary.apply(query, cos, sin), Rotary.apply(key, cos, sin)
