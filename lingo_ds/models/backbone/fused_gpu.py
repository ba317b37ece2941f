"""Fused kernels for what a decoder layer does beside its products: liger-kernel's, on a GPU."""

import torch
from transformers.utils import is_liger_kernel_available

from lingo_ds.models.backbone.families import FUSED
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.utils.errors import Mistake, UserError

LIGER_KERNELS = {"rope": True, "rms_norm": True, "swiglu": True}
LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Liger's kernels for a language model's loss: there is none here."""


def use_liger(spec: BackboneSpec, *, device: torch.device) -> None:
    """Puts liger-kernel's norms, rotary positions and gates into the skeleton.

    Rotary positions change for every model of the family in this process.

    Raises:
        UserError: without a GPU, without the package, or for another family.
    """
    setting, asked = "backbone.fused_kernels", "liger"
    if device.type != "cuda":
        raise UserError(Mistake(setting, asked, "needs a GPU", "set it to off"))
    if not is_liger_kernel_available():
        raise UserError(Mistake(setting, asked, "needs liger-kernel", "pip install lingo_ds[gpu]"))
    if spec.model_type not in FUSED:
        rule = f"is for {', '.join(sorted(FUSED))}, not {spec.model_type}"
        raise UserError(Mistake(setting, asked, rule, "set it to off"))
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(spec.skeleton, {**LIGER_KERNELS, **LOSSES})
