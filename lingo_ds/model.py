"""The adapted model: frozen backbone, adapters on its linear maps, and the head on top."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.adapters.layout import BankLayout
from lingo_ds.adapters.sites import SiteHooks
from lingo_ds.backbone.backbone import Backbone
from lingo_ds.data.loader import Batch


class AdaptedModel:
    """Turns batches into logits.

    Attributes:
        backbone: the frozen model.
        bank: adapters and head.
    """

    def __init__(self, backbone: Backbone, bank: AdapterBank, *, pooling: str, dropout: float):
        self.backbone, self.bank, self._pooling = backbone, bank, pooling
        self._hooks = SiteHooks(dict(backbone.module.named_modules()), bank, dropout=dropout)

    def logits(self, batch: Batch) -> Tensor:
        """(n, classes) fp32 logits of a batch."""
        device, mask = self.bank.device, batch.attention_mask
        adapted = any(self.bank.layout.ranks)  # else nothing in the backbone needs a backward pass
        with torch.set_grad_enabled(adapted and torch.is_grad_enabled()):
            hidden = self.backbone.hidden_states(
                batch.input_ids.to(device), None if mask is None else mask.to(device)
            )
        if not adapted:
            self.backbone.release()
        pooled = pool(hidden, batch.lengths.to(device), self._pooling)
        return F.linear(pooled.to(self.bank.dtype), self.bank.head_leaf).float()

    def follow_bank(self) -> None:
        """Hooks the sites anew, after the bank was compacted or replaced."""
        self._hooks.attach()

    def adopt(self, layout: BankLayout, master: Tensor) -> None:
        """Puts a saved adapter in the bank's place, for evaluation."""
        self.bank.adopt(layout, master)
        self.follow_bank()


def pool(hidden: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Hidden states (n, length, size) to one vector per example, (n, size).

    `last` real token, `mean` or `first`.
    """
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * real[..., None]).sum(1) / lengths[:, None]
