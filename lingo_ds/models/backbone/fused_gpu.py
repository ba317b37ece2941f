"""Fused norms, rotary positions and gates on a GPU: liger-kernel's."""

import torch
from transformers.utils.import_utils import is_liger_kernel_available

from lingo_ds.models.backbone.families import FUSED
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.utils.errors import Mistake, UserError

LIGER_KERNELS = {"rope": True, "rms_norm": True, "swiglu": True}
LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Liger-kernel's losses of a language model, which is not trained here."""


def use_liger(spec: BackboneSpec, *, device: torch.device) -> None:
    """Replaces the skeleton's norms, rotary positions and gates by liger-kernel's.

    liger-kernel has no way that leaves the rest of the process alone: beside the forwards of this model's
    norms and gates it replaces names in transformers' module of the family. From then on every model of the
    family computes rotary positions by liger-kernel, and a model that is built later has its norms and gates.

    Raises:
        UserError: without a GPU, without the package, or for another family.
    """
    setting, value = "backbone.fused_kernels", "liger"
    if device.type != "cuda":
        raise UserError(Mistake(setting, value, "needs a GPU", "set it to off"))
    if not is_liger_kernel_available():
        raise UserError(Mistake(setting, value, "needs liger-kernel", "pip install lingo_ds[gpu]"))
    if spec.model_type not in FUSED:
        rule = f"is for {', '.join(sorted(FUSED))}, not {spec.model_type}"
        raise UserError(Mistake(setting, value, rule, "set it to off"))
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(spec.skeleton, {**LIGER_KERNELS, **LOSSES})
