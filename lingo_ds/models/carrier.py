"""A backbone with the adapters and learned tokens of one or more runs on it, and passes of several runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.sites import AdaptedSites
from lingo_ds.models.adapters.tenants import Tenant
from lingo_ds.models.adapters.token_embeddings import TokenHooks
from lingo_ds.models.backbone.backbone import Backbone
from lingo_ds.models.backbone.pack_places import PackPlaces


class PackedPart(NamedTuple):
    """One run's pack in a pass: its token ids (tokens,), and their places."""

    tenant: Tenant
    input_ids: Tensor
    places: PackPlaces


class PaddedPart(NamedTuple):
    """One run's padded examples in a pass.

    Attributes:
        tenant: the run.
        input_ids: (n, length) token ids, padded on the right.
        attention_mask: (n, length), 1 on real tokens; None where nothing is padded.
    """

    tenant: Tenant
    input_ids: Tensor
    attention_mask: Tensor | None


class Carrier:
    """A backbone that carries the adapters of one or more runs.

    Attributes:
        backbone: the frozen model.
    """

    def __init__(self, backbone: Backbone, *, shared_inputs: Sequence[Sequence[str]] = ()):
        """Takes a backbone that carries nothing yet; `shared_inputs` names maps that read the same tensor."""
        self.backbone = backbone
        self._sites = AdaptedSites(dict(backbone.module.named_modules()), shared_inputs=shared_inputs)
        self._token_hooks: TokenHooks | None = None

    @property
    def tenants(self) -> list[Tenant]:
        """The runs that it carries."""
        return self._sites.tenants

    @property
    def first_learned(self) -> int:
        """The id of the first learned token: the rows of the frozen embedding."""
        return self._token_hooks.first if self._token_hooks else 0

    def add(self, bank: AdapterBank, *, dropout: float) -> Tenant:
        """Puts a bank's adapters and learned tokens on the backbone."""
        if bank.layout.token_size and self._token_hooks is None:
            embedding = self.backbone.module.get_input_embeddings()
            assert isinstance(embedding, nn.Embedding), "learned tokens need an embedding that looks rows up"
            self._token_hooks = TokenHooks(embedding, self._sites.rows)
        return self._sites.add(bank, dropout=dropout)

    def remove(self, tenant: Tenant) -> None:
        """Takes a run's adapters off the backbone."""
        self._sites.remove(tenant)

    def follow_banks(self) -> None:
        """Adapts the maps anew after some bank was compacted or replaced."""
        self._sites.attach()

    def mixing(self, mixtures: Tensor) -> AbstractContextManager[None]:
        """Inside, learned tokens are mixtures, see `TokenHooks.mixing`; for passes of one run alone."""
        assert self._token_hooks is not None, "a run without learned tokens has none to mix"
        return self._token_hooks.mixing(mixtures)

    def packed_states(self, parts: Sequence[PackedPart]) -> list[Tensor]:
        """Last hidden states of each run's pack, (tokens, size), computed in one pass."""
        tenants, ids, places = zip(*parts, strict=True)
        tokens = [len(one) for one in ids]
        self._sites.rows.begin(tenants, tokens, [len(one.lengths) for one in places])
        hidden = self.backbone.packed_states(_joined(ids), places)
        return list(hidden.split(tokens)) if len(parts) > 1 else [hidden]

    def padded_states(self, parts: Sequence[PaddedPart]) -> list[Tensor]:
        """Last hidden states of each run's padded examples, (n, length, size), computed in one pass."""
        width = max(part.input_ids.shape[1] for part in parts)
        counts = [len(part.input_ids) for part in parts]
        self._sites.rows.begin([part.tenant for part in parts], [n * width for n in counts])
        ids = _joined([_widened(part.input_ids, width) for part in parts])
        hidden = self.backbone.hidden_states(ids, _joined_mask(parts, width))
        if len(parts) == 1:
            return [hidden]
        own = zip(hidden.split(counts), parts, strict=True)
        return [states[:, : part.input_ids.shape[1]] for states, part in own]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _widened(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[1])) if x.shape[1] < width else x


def _joined_mask(parts: Sequence[PaddedPart], width: int) -> Tensor | None:
    """(n, width), 1 on real tokens of all parts; None where nothing is padded."""
    if all(part.attention_mask is None and part.input_ids.shape[1] == width for part in parts):
        return None
    masks = []
    for _, ids, mask in parts:
        masks.append(_widened(torch.ones_like(ids) if mask is None else mask, width))
    return _joined(masks)
