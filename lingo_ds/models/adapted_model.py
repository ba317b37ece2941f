"""The adapted model: a frozen backbone, adapters on its linear maps, learned tokens, and the head."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.models.adapters.sites import AdaptedSites
from lingo_ds.models.adapters.token_embeddings import TokenHooks
from lingo_ds.models.backbone.backbone import Backbone
from lingo_ds.models.backbone.pack_places import PackPlaces
from lingo_ds.utils.transfer import to_device

Pooling = Literal["last", "mean", "first"]
"""Ways from an example's hidden states to one vector: its last real token, their mean, its first token."""


class AdaptedModel:
    """A backbone with adapters and a head, which turns token ids into logits.

    Attributes:
        backbone: the frozen model.
        bank: adapters, head and learned tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        bank: AdapterBank,
        *,
        pooling: Pooling,
        dropout: float,
        shared_inputs: Sequence[Sequence[str]] = (),
    ):
        self.backbone, self.bank, self._pooling = backbone, bank, pooling
        modules = dict(backbone.module.named_modules())
        self._sites = AdaptedSites(modules, bank, dropout=dropout, shared_inputs=shared_inputs)
        self._token_hooks = None
        if bank.layout.token_size:
            embedding = backbone.module.get_input_embeddings()
            assert isinstance(embedding, nn.Embedding), "learned tokens need an embedding that looks rows up"
            self._token_hooks = TokenHooks(embedding, bank)

    @property
    def learns_inside(self) -> bool:
        """Whether a backward pass goes through the backbone: it does not where the head alone learns."""
        return any(self.bank.layout.ranks) or self.bank.layout.token_size > 0

    def padded_logits(self, input_ids: Tensor, attention_mask: Tensor | None, lengths: Tensor) -> Tensor:
        """Logits of padded examples, (n, outputs) fp32.

        Args:
            input_ids: (n, length) token ids, padded on the right.
            attention_mask: (n, length), 1 on real tokens; None where nothing is padded.
            lengths: (n,) real tokens.
        """
        inputs = (input_ids, attention_mask, lengths)
        input_ids, attention_mask, lengths = to_device(inputs, self.bank.device)
        with self._backbone_grad():
            hidden = self.backbone.hidden_states(input_ids, attention_mask)
            pooled = pool(hidden, lengths, self._pooling)
        return self._head(pooled)

    def pack_places(self, prefix: int, lengths: Sequence[int]) -> PackPlaces:
        """The places of a pack on the CPU: any thread may ask for them, ahead of the forward.

        Args:
            prefix: tokens of the shared prefix, 0 for none.
            lengths: own tokens of each example.
        """
        pooled = None if self._pooling == "mean" else self._pooling
        return self.backbone.pack_places(prefix, lengths, pooled=pooled)

    def packed_logits(self, input_ids: Tensor, places: PackPlaces) -> Tensor:
        """Logits of the examples of a pack, (n, outputs) fp32.

        Args:
            input_ids: (tokens,), the shared prefix, then every example's own tokens.
            places: what `pack_places` gave for its n examples.
        """
        input_ids, places = to_device((input_ids, places), self.bank.device)
        with self._backbone_grad():
            hidden = self.backbone.packed_states(input_ids, places)
            pooled = pool_pack(hidden, places)
        return self._head(pooled)

    def _backbone_grad(self) -> torch.set_grad_enabled:
        """Gradients through the backbone, where something learns inside it and the caller wants gradients."""
        return torch.set_grad_enabled(self.learns_inside and torch.is_grad_enabled())

    def _head(self, pooled: Tensor) -> Tensor:
        """(n, outputs) fp32 logits of the pooled hidden states, (n, size)."""
        if not self.learns_inside:
            self.backbone.release()
        return F.linear(pooled.to(self.bank.dtype), self.bank.compute.head).float()

    def follow_bank(self) -> None:
        """Adapts the maps anew after the bank was compacted or replaced."""
        self._sites.attach()

    def detach(self) -> None:
        """Removes the adapters from the backbone, which another run may then use."""
        self._sites.detach()
        if self._token_hooks:
            self._token_hooks.detach()

    def replace(self, layout: BankLayout, master: Tensor) -> None:
        """Replaces the bank's layout and values by a saved adapter's, for evaluation."""
        self.bank.replace(layout, master)
        self.follow_bank()


def pool(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """Hidden states (n, length, size), of which `lengths` (n,) are real, to one vector each, (n, size)."""
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * real[..., None]).sum(1) / lengths[:, None]


def pool_pack(hidden: Tensor, places: PackPlaces) -> Tensor:
    """Hidden states of a pack, (tokens, size), to one vector for each example, (n, size)."""
    if places.pooled is not None:
        return hidden.index_select(0, places.pooled)
    assert places.counts is not None, "there are counts where no token stands for its example"
    prefix = places.prefix
    own = torch.stack([part.sum(0) for part in hidden[prefix:].split(places.lengths)])
    return (own + hidden[:prefix].sum(0)) / places.counts
