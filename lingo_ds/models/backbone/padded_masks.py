"""Masks of padded batches on a GPU, made without a look at the padding: the host would wait for the GPU.

transformers reads a mask's values to see whether attention can do without it, and where there is none, the
positions, for packs of its own. Here nothing is read: a causal model does not look behind the tokens of an
example, where padding stands; an encoder's mask is made wherever a batch is padded.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAUSAL, ENCODER = "lingo_ds_causal", "lingo_ds_encoder"
"""Names of the attention implementations among transformers' own."""


def _causal_mask(*args: Any, **how: Any) -> Tensor | None:
    """The mask of a causal layer, with its window if it has one: whatever is padded."""
    return sdpa_mask(*args, **{**how, "attention_mask": None})


def _encoder_mask(*args: Any, **how: Any) -> Tensor | None:
    """The mask of a layer that sees all real tokens; None where nothing is padded."""
    if how.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **{**how, "allow_is_bidirectional_skip": False})


for _name, _mask in ((CAUSAL, _causal_mask), (ENCODER, _encoder_mask)):
    AttentionInterface.register(_name, sdpa_attention_forward)
    AttentionMaskInterface.register(_name, _mask)


class UnreadMasks:
    """The masks of one model, whose family is known to be like this."""

    def __init__(self, module: "PreTrainedModel", *, causal: bool):
        """Makes `module` compute its attention by torch's kernels with these masks."""
        module.set_attn_implementation(CAUSAL if causal else ENCODER)
        self._causal = causal

    def given(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """What the model is given in place of a mask: with one, it does not look at positions."""
        return torch.ones_like(input_ids) if self._causal and attention_mask is None else attention_mask
