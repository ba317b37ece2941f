"""The adapted model: frozen backbone, adapters on its linear maps, learned tokens, and the head on top."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.data.batches import Batch
from lingo_ds.data.packing import Pack
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.hooks import SiteHooks
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.models.adapters.token_embeddings import TokenHooks
from lingo_ds.models.backbone.backbone import Backbone


class AdaptedModel:
    """Turns batches into logits.

    Attributes:
        backbone: the frozen model.
        bank: adapters, head and learned tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: AdapterBank,
        *,
        pooling: str,
        dropout: float,
        shared_inputs: Sequence[Sequence[str]] = (),
    ):
        self.backbone, self.bank, self._pooling = backbone, bank, pooling
        modules = dict(backbone.module.named_modules())
        self._hooks = SiteHooks(modules, bank, dropout=dropout, shared_inputs=shared_inputs)
        self._token_hooks = None
        if bank.layout.token_size:
            self._token_hooks = TokenHooks(backbone.module.get_input_embeddings(), bank)

    @property
    def learns_inside(self) -> bool:
        """Whether a backward pass must go through the backbone: not where the head alone learns."""
        return any(self.bank.layout.ranks) or self.bank.layout.token_size > 0

    def logits(self, batch: Batch | Pack) -> Tensor:
        """(n, outputs) fp32 logits of a padded batch or of a pack."""
        learns_inside = self.learns_inside
        with torch.set_grad_enabled(learns_inside and torch.is_grad_enabled()):
            pooled = self._pooled_pack(batch) if isinstance(batch, Pack) else self._pooled_batch(batch)
        if not learns_inside:
            self.backbone.release()
        return F.linear(pooled.to(self.bank.dtype), self.bank.head_leaf).float()

    def _pooled_batch(self, batch: Batch) -> Tensor:
        device, mask = self.bank.device, batch.attention_mask
        hidden = self.backbone.hidden_states(
            batch.input_ids.to(device, non_blocking=True),
            None if mask is None else mask.to(device, non_blocking=True),
        )
        return pool(hidden, batch.lengths.to(device, non_blocking=True), self._pooling)

    def _pooled_pack(self, pack: Pack) -> Tensor:
        only = None if self._pooling == "mean" else self._pooling
        hidden, packed = self.backbone.packed_states(
            pack.input_ids.to(self.bank.device, non_blocking=True), pack.prefix, pack.lengths, only=only
        )
        if only:
            return hidden[getattr(packed, only)]
        own = torch.stack([part.sum(0) for part in hidden[pack.prefix :].split(list(pack.lengths))])
        tokens = torch.tensor(pack.lengths, device=hidden.device)[:, None] + pack.prefix
        return (own + hidden[: pack.prefix].sum(0)) / tokens

    def follow_bank(self) -> None:
        """Hooks the sites anew, after the bank was compacted or replaced."""
        self._hooks.attach()

    def detach(self) -> None:
        """Takes the adapters off the backbone, which another run may then use."""
        self._hooks.detach()
        if self._token_hooks:
            self._token_hooks.detach()

    def replace(self, layout: BankLayout, master: Tensor) -> None:
        """Puts a saved adapter in the bank's place, for evaluation."""
        self.bank.replace(layout, master)
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
