"""Learned tokens: ids behind the backbone's vocabulary, whose embeddings are in the banks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lingo_ds.models.adapters.tenants import PassRows


class TokenHooks:
    """Hooks on the frozen input embedding that return each run's own rows for the ids behind its own.

    They come after those of a sharded backbone, which therefore gathers the embedding's weight for the lookup
    and never for a backward pass: the gradient goes to the banks alone.

    Attributes:
        first: the id of the first learned token.
    """

    def __init__(self, embedding: nn.Embedding, rows: PassRows):
        """Sets the hooks; `rows` tells which rows of a pass are whose."""
        self.first, self._rows = embedding.num_embeddings, rows
        self._scale: Tensor | None = getattr(embedding, "embed_scale", None)  # Gemma's multiplies its rows
        self._ids: Tensor | None = None
        self._mixtures: Tensor | None = None
        embedding.register_forward_pre_hook(self._clamp_ids)
        embedding.register_forward_hook(self._insert_learned)

    @contextmanager
    def mixing(self, mixtures: Tensor) -> Iterator[None]:
        """Inside, a learned token is a mixture of all of them, through which gradients go to its shares.

        Args:
            mixtures: (.., learned tokens) shares of each, for ids (..); read where an id is a learned one.
        """
        self._mixtures = mixtures
        try:
            yield
        finally:
            self._mixtures = None

    def _clamp_ids(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Notes the ids and passes on those that the frozen embedding has rows for."""
        self._ids, *others = args
        return self._ids.clamp(max=self.first - 1), *others

    def _insert_learned(self, _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Embeddings (.., size) with those of the banks in their places."""
        ids = self._ids
        assert ids is not None, "the embedding's forward was not begun"
        self._ids = None
        shares = self._rows.of(ids.numel())
        if len(shares) == 1:
            return self._learned(ids, output, shares[0].tenant.bank.compute.tokens)
        ids, embedded = ids.flatten(), output.flatten(0, -2)
        parts = [
            self._learned(ids[share.rows], embedded[share.rows], share.tenant.bank.compute.tokens)
            for share in shares
        ]
        return torch.cat(parts).view(output.shape)

    def _learned(self, ids: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        """Embeddings with a bank's `rows` (tokens, size) in place of the ids behind the vocabulary.

        As a product with one-hot rows, exact in every dtype, whose gradient is a product too: the same sum in
        the same order at every run, which scattered additions on a GPU are not.
        """
        if not len(rows):
            return output
        places = torch.arange(self.first, self.first + len(rows), device=ids.device)
        chosen = ids[..., None] == places if self._mixtures is None else self._mixtures.view(*ids.shape, -1)
        learned = chosen.to(rows.dtype) @ rows
        if self._scale is not None:
            learned = learned * self._scale.to(learned)
        return torch.where((ids >= self.first)[..., None], learned, output)
