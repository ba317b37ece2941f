"""Fused norms, gates and rotary positions in place of those that transformers writes out in many operations.

On the CPU they are the package's own (`kernels/elementwise.cpp`), which read and write each tensor once; on a
GPU the norm is torch's, gates and positions are liger-kernel's where it is installed. Only modules of the
loaded model are changed: other models of the process keep what they have.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils.import_utils import is_liger_kernel_available

from lingo_ds.models.backbone.families import FUSED
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.ops import elementwise
from lingo_ds.models.ops.compiled import library
from lingo_ds.utils.errors import Mistake, UserError

FusedKernels = Literal["auto", "off", "liger"]
"""Values of `backbone.fused_kernels`."""

ROTARY = "apply_rotary_pos_emb"
"""Name under which attention modules of transformers call the function of rotary positions."""


class Functions(NamedTuple):
    """The fused functions that there are; None: transformers' own stays.

    Attributes:
        norm: of x (.., size), a function that returns the weight (size,), and epsilon.
        gate: silu(gate) * up, of two tensors of one shape.
        rotary: of queries, keys, cosines and sines as transformers' own.
    """

    norm: Callable[[Tensor, Callable[[], Tensor], float], Tensor]
    gate: Callable[[Tensor, Tensor], Tensor] | None = None
    rotary: Callable[..., tuple[Tensor, Tensor]] | None = None


def may_fuse(spec: BackboneSpec, kernels: FusedKernels, dtype: torch.dtype, device: str) -> bool:
    """Whether the CPU has fused functions for a backbone: in fp32, for some families."""
    return kernels != "off" and spec.model_type in FUSED and dtype == torch.float32 and device == "cpu"


def fuse(spec: BackboneSpec, kernels: FusedKernels, *, dtype: torch.dtype, device: torch.device) -> None:
    """Replaces forwards of this skeleton's modules by fused ones, where there are any.

    Modules that are not transformers' own may compute something else and stay as they are.

    Raises:
        UserError: where liger-kernel is asked for and cannot be used.
    """
    if kernels == "liger":
        _require_liger(spec, device)
    own = type(spec.skeleton).__module__.startswith("transformers.models.")
    functions = _functions(spec, kernels, dtype, device) if own else None
    if functions is None:
        return
    for module in spec.skeleton.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = FusedNorm(module, functions.norm)
        elif functions.gate and hasattr(module, "gate_proj") and "SiLU" in type(module.act_fn).__name__:
            module.forward = FusedGate(module, functions.gate)
        elif functions.rotary and ROTARY in _names_in(type(module).forward):
            module.forward = _with_names(module, {ROTARY: functions.rotary})


def _functions(
    spec: BackboneSpec, kernels: FusedKernels, dtype: torch.dtype, device: torch.device
) -> Functions | None:
    """The functions for a family, dtype and device; None: none."""
    if kernels == "off" or spec.model_type not in FUSED:
        return None
    if device.type == "cuda":
        return _with_liger() if is_liger_kernel_available() else Functions(elementwise.TorchRMSNorm.apply)
    if may_fuse(spec, kernels, dtype, device.type) and library() is not None:
        return Functions(elementwise.RMSNorm.apply, elementwise.SiLUGate.apply)
    return None


def _require_liger(spec: BackboneSpec, device: torch.device) -> None:
    setting, value = "backbone.fused_kernels", "liger"
    if device.type != "cuda":
        raise UserError(Mistake(setting, value, "needs a GPU", "set it to auto"))
    if not is_liger_kernel_available():
        raise UserError(Mistake(setting, value, "needs liger-kernel", "pip install lingo_ds[gpu]"))
    if spec.model_type not in FUSED:
        rule = f"is for {', '.join(sorted(FUSED))}, not {spec.model_type}"
        raise UserError(Mistake(setting, value, rule, "set it to auto"))


def _with_liger() -> Functions:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    return Functions(elementwise.TorchRMSNorm.apply, LigerSiLUMulFunction.apply, liger_rotary_pos_emb)


class FusedNorm:
    """In place of an RMS norm's forward; like a map, it keeps itself and no weight, see `FrozenMap`."""

    def __init__(self, module: Any, norm: Callable[[Tensor, Callable[[], Tensor], float], Tensor]):
        self._module, self._norm = module, norm

    def __call__(self, x: Tensor) -> Tensor:
        """(.., size), normalised over the last dimension."""
        return self._norm(x, self.weight, float(self._module.variance_epsilon))

    def weight(self) -> Tensor:
        """(size,); a sharded one must be whole now."""
        weight: Tensor = self._module.weight
        return weight.detach()


class FusedGate:
    """In place of a feed-forward part's forward."""

    def __init__(self, module: Any, gate: Callable[[Tensor, Tensor], Tensor]):
        self._module, self._gate = module, gate

    def __call__(self, x: Tensor) -> Tensor:
        """(.., size) to (.., size)."""
        out: Tensor = self._module.down_proj(self._gate(self._module.gate_proj(x), self._module.up_proj(x)))
        return out


def _names_in(function: Any) -> tuple[str, ...]:
    """Names that a function's own code looks up; of a wrapper the wrapper's, so that it stays as it is."""
    return function.__code__.co_names if isinstance(function, FunctionType) else ()


def _with_names(module: nn.Module, names: dict[str, Callable[..., Any]]) -> MethodType:
    """The module's forward, with other functions behind some of the names of its file."""
    function = type(module).forward
    assert isinstance(function, FunctionType)
    copied = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return MethodType(copied, module)
