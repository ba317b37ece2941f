"""Learned tokens: ids behind the backbone's vocabulary, whose embeddings are in the bank."""

import torch
from torch import Tensor, nn

from lingo_ds.models.adapters.bank import AdapterBank


class TokenHooks:
    """Hooks on the frozen input embedding that return the bank's rows for the ids behind its own.

    They come after those of a sharded backbone, which therefore gathers the embedding's weight for the lookup
    and never for a backward pass: the gradient goes to the bank alone.
    """

    def __init__(self, embedding: nn.Embedding, bank: AdapterBank):
        self._first, self._bank = embedding.num_embeddings, bank
        self._scale: Tensor | None = getattr(embedding, "embed_scale", None)  # Gemma's multiplies its rows
        self._ids: Tensor | None = None
        self._handles = [
            embedding.register_forward_pre_hook(self._clamp_ids),
            embedding.register_forward_hook(self._insert_learned),
        ]

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def _clamp_ids(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Notes the ids and passes on those that the frozen embedding has rows for."""
        self._ids, *others = args
        return self._ids.clamp(max=self._first - 1), *others

    def _insert_learned(self, _module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Embeddings (.., size) with the bank's in their places.

        As a product with one-hot rows, exact in every dtype, whose gradient is a product too: the same sum in
        the same order at every run, which scattered additions on a GPU are not.
        """
        ids, rows = self._ids, self._bank.compute.tokens
        assert ids is not None, "the embedding's forward was not begun"
        self._ids = None
        places = torch.arange(self._first, self._first + len(rows), device=ids.device)
        learned = (ids[..., None] == places).to(rows.dtype) @ rows
        if self._scale is not None:
            learned = learned * self._scale.to(learned)
        return torch.where((ids >= self._first)[..., None], learned, output)
