"""The adapted model: a frozen backbone, one run's adapters on its linear maps, learned tokens, and head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.models.backbone.backbone import Backbone
from lingo_ds.models.backbone.pack_places import PackPlaces
from lingo_ds.models.carrier import Carrier, PackedPart, PaddedPart
from lingo_ds.utils.transfer import to_device

Pooling = Literal["last", "mean", "first"]
"""Ways from an example's hidden states to one vector: its last real token, their mean, its first token."""


class AdaptedModel:
    """A backbone with one run's adapters and its head, which turns token ids into logits.

    Attributes:
        carrier: the backbone, which may carry the adapters of other runs, too.
        bank: adapters, head and learned tokens.
        tenant: the run among those that the carrier has.
        pooling: the way from an example's hidden states to one vector.
    """

    def __init__(
        self,
        backbone: Backbone | Carrier,
        bank: AdapterBank,
        *,
        pooling: Pooling,
        dropout: float,
        shared_inputs: Sequence[Sequence[str]] = (),
    ):
        """Puts a bank on a backbone, or beside those that a carrier has.

        Args:
            backbone: what carries it.
            bank: adapters, head and learned tokens.
            pooling: the way from an example's hidden states to one vector.
            dropout: probability of dropping an entry of the adapters' input in training.
            shared_inputs: names of maps that read the same tensor, where the backbone has no carrier yet.
        """
        if isinstance(backbone, Backbone):
            backbone = Carrier(backbone, shared_inputs=shared_inputs)
        self.carrier, self.bank, self.pooling = backbone, bank, pooling
        self.tenant = self.carrier.add(bank, dropout=dropout)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self.carrier.backbone

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
        (logits,) = joint_padded_logits([self], [(input_ids, attention_mask, lengths)])
        return logits

    def pack_places(self, prefix: int, lengths: Sequence[int]) -> PackPlaces:
        """The places of a pack on the CPU: any thread may ask for them, ahead of the forward.

        Args:
            prefix: tokens of the shared prefix, 0 for none.
            lengths: own tokens of each example.
        """
        pooled = None if self.pooling == "mean" else self.pooling
        return self.backbone.pack_places(prefix, lengths, pooled=pooled)

    def packed_logits(self, input_ids: Tensor, places: PackPlaces) -> Tensor:
        """Logits of the examples of a pack, (n, outputs) fp32.

        Args:
            input_ids: (tokens,), the shared prefix, then every example's own tokens.
            places: what `pack_places` gave for its n examples.
        """
        (logits,) = joint_packed_logits([self], [(input_ids, places)])
        return logits

    def mixed_logits(self, input_ids: Tensor, mixtures: Tensor, *, packed: bool) -> Tensor:
        """Logits (n, outputs) fp32 of examples of one length whose learned tokens are mixtures of them.

        Args:
            input_ids: (n, length) token ids.
            mixtures: (n, length, learned tokens) shares, read where an id is a learned one.
            packed: whether the backbone was loaded for packs.
        """
        count, length = input_ids.shape
        with self.carrier.mixing(mixtures):
            if packed:
                places = self.pack_places(0, [length] * count)
                return self.packed_logits(input_ids.flatten(), places)
            lengths = torch.full((count,), length, device=input_ids.device)
            return self.padded_logits(input_ids, None, lengths)

    def head(self, pooled: Tensor) -> Tensor:
        """(n, outputs) fp32 logits of the pooled hidden states, (n, size)."""
        return F.linear(pooled.to(self.bank.dtype), self.bank.compute.head).float()

    def follow_bank(self) -> None:
        """Adapts the maps anew after the bank was compacted or replaced."""
        self.carrier.follow_banks()

    def detach(self) -> None:
        """Removes the adapters from the backbone, which other runs may go on to use."""
        self.carrier.remove(self.tenant)

    def replace(self, layout: BankLayout, master: Tensor) -> None:
        """Replaces the bank's layout and values by a saved adapter's, for evaluation."""
        self.bank.replace(layout, master)
        self.follow_bank()


def joint_packed_logits(
    models: Sequence[AdaptedModel], packs: Sequence[tuple[Tensor, PackPlaces]]
) -> list[Tensor]:
    """Logits of one pack of each of several runs on one carrier, in one pass; see `packed_logits`."""
    pooled = joint_packed_pooled(models, packs)
    return [model.head(own) for model, own in zip(models, pooled, strict=True)]


def joint_packed_pooled(
    models: Sequence[AdaptedModel], packs: Sequence[tuple[Tensor, PackPlaces]]
) -> list[Tensor]:
    """What the heads read of one pack of each of several runs, (n, size) of each, in one pass."""
    packs = [to_device(pack, model.bank.device) for model, pack in zip(models, packs, strict=True)]
    with _pass_of(models) as carrier:
        parts = [PackedPart(model.tenant, *pack) for model, pack in zip(models, packs, strict=True)]
        states = carrier.packed_states(parts)
        return [pool_pack(hidden, part.places) for hidden, part in zip(states, parts, strict=True)]


def joint_padded_logits(
    models: Sequence[AdaptedModel], batches: Sequence[tuple[Tensor, Tensor | None, Tensor]]
) -> list[Tensor]:
    """Logits of padded examples of several runs on one carrier, in one pass; see `padded_logits`."""
    pooled = joint_padded_pooled(models, batches)
    return [model.head(own) for model, own in zip(models, pooled, strict=True)]


def joint_padded_pooled(
    models: Sequence[AdaptedModel], batches: Sequence[tuple[Tensor, Tensor | None, Tensor]]
) -> list[Tensor]:
    """What the heads read of padded examples of several runs, (n, size) of each, in one pass."""
    batches = [to_device(batch, model.bank.device) for model, batch in zip(models, batches, strict=True)]
    each = list(zip(models, batches, strict=True))
    with _pass_of(models) as carrier:
        parts = [PaddedPart(model.tenant, ids, mask) for model, (ids, mask, _) in each]
        states = carrier.padded_states(parts)
        return [
            pool(hidden, lengths, model.pooling)
            for hidden, (model, (*_, lengths)) in zip(states, each, strict=True)
        ]


@contextmanager
def _pass_of(models: Sequence[AdaptedModel]) -> Iterator[Carrier]:
    """The carrier of all; gradients through it where something learns inside it and the caller wants them."""
    carrier, inside = models[0].carrier, any(model.learns_inside for model in models)
    with torch.set_grad_enabled(inside and torch.is_grad_enabled()):
        yield carrier
    if not inside:
        carrier.backbone.release()


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
