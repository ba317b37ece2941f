"""Running a transformers model on packs: its attention replaced, its last layer cut to what is used."""

from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from lingo_ds.models.backbone.packed_attention import PackedAttention

NAME = "lingo_ds_packed"
"""Of the attention implementation, among transformers' own."""


class _Captured(Exception):
    """Ends a layer's forward once its keys and values are known."""


class _ActivePack:
    """What the attention function works on: the pack of the last forward, until the next one begins.

    A recomputation in the backward pass, and threads of autograd, need it after the forward is over.
    """

    pack: PackedAttention | None = None
    capturing: bool = False
    captured: tuple[Tensor, Tensor] | None = None


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_ignored: object,
) -> tuple[Tensor, None]:
    """What transformers calls in every attention layer."""
    assert _ActivePack.pack is not None, "packed attention outside of a pack"
    if _ActivePack.capturing:
        _ActivePack.captured = key, value
        raise _Captured
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _ActivePack.captured is not None:
        return _ActivePack.pack.of_one_token(
            query, *_ActivePack.captured, scale=scale, window=sliding_window
        ), None
    causal = getattr(module, "is_causal", True)
    return _ActivePack.pack(query, key, value, scale=scale, window=sliding_window, causal=causal), None


AttentionInterface.register(NAME, _packed_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def begin(pack: PackedAttention) -> None:
    """Makes all following attention that of `pack`."""
    _ActivePack.pack = pack


class LastLayerForTokens:
    """In place of the last layer's forward: runs it for one token per example, where only those are used.

    Keys and values come from all tokens: the layer's forward runs until its attention has them, then again
    with the wanted tokens alone. What it puts out elsewhere is 0. Nothing there is recomputed in the backward
    pass: what would be kept is small anyway.

    Attributes:
        wanted: (examples,) places in the pack; None: the layer runs for all tokens.
    """

    def __init__(self, layer: nn.Module):
        self.wanted: Tensor | None = None
        self._layer, self._forward = layer, layer.forward
        layer.forward = self

    def __call__(self, hidden: Tensor, *args: object, **kwargs: object) -> Tensor:
        """The layer's output for `hidden` (1, tokens, size)."""
        if self.wanted is None:
            return self._forward(hidden, *args, **kwargs)
        recompute = getattr(self._layer, "gradient_checkpointing", False)
        self._layer.gradient_checkpointing = False
        try:
            with suppress(_Captured):
                _ActivePack.capturing = True
                self._forward(hidden, *args, **kwargs)
            _ActivePack.capturing = False
            out = self._forward(
                *self._cut((hidden, *args), hidden.shape[1]), **self._cut(kwargs, hidden.shape[1])
            )
        finally:
            _ActivePack.capturing, _ActivePack.captured = False, None
            self._layer.gradient_checkpointing = recompute
        out = out[0] if isinstance(out, tuple) else out
        return torch.zeros_like(hidden).index_copy(1, self.wanted, out)

    def _cut(self, value: object, tokens: int) -> object:
        """Every (1, tokens, ..) tensor in a forward's arguments, as that of the wanted tokens."""
        if isinstance(value, Tensor):
            return (
                value.index_select(1, self.wanted) if value.ndim > 1 and value.shape[1] == tokens else value
            )
        if isinstance(value, tuple):
            return tuple(self._cut(part, tokens) for part in value)
        if isinstance(value, dict):
            return {name: self._cut(part, tokens) for name, part in value.items()}
        return value
