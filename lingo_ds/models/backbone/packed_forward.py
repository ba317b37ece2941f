"""Runs a transformers model on packs: its attention replaced, its last layer cut to what is used.

Packing is the package's own because no library shares a prefix between the examples of a row of tokens.
Two tricks: an exception ends the last layer's forward once its keys and values are known, and the packs that
attention works on are a global, since transformers calls the attention function without them.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lingo_ds.models.backbone.pack_places import PackPlaces, wanted_tokens
from lingo_ds.models.backbone.packed_attention import JointAttention, Rule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "lingo_ds_packed"
"""Name of the attention implementation among transformers' own."""


class _Captured(Exception):
    """Ends a layer's forward once its keys and values are known."""


class _ActivePacks:
    """The packs of the last forward, for the attention function, until the next forward begins.

    A recomputation in the backward pass, and threads of autograd, need it after the forward is over.
    """

    packs: JointAttention | None = None
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
    softcap: float | None = None,
    **_ignored: object,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it in every layer."""
    assert _ActivePacks.packs is not None, "packed attention outside of a pack"
    if _ActivePacks.capturing:
        _ActivePacks.captured = key, value
        raise _Captured
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(scale, sliding_window, getattr(module, "is_causal", True), softcap)
    if (seen := _ActivePacks.captured) is not None:
        return _ActivePacks.packs.of_one_token(query, *seen, rule), None
    return _ActivePacks.packs(query, key, value, rule), None


# There is no mask function of that name: transformers then makes no mask, and reads no positions from a GPU
# to find out whether they are those of packs of its own.
AttentionInterface.register(NAME, _packed_attention)


class PackedForward:
    """A transformers model that computes packs."""

    def __init__(self, module: "PreTrainedModel", last_layer: str):
        """Replaces the attention of `module`, and the forward of the layer with the name `last_layer`."""
        module.set_attn_implementation(NAME)
        self._last_layer = LastLayerForTokens(module.get_submodule(last_layer))

    def begin(self, packs: Sequence[PackPlaces]) -> Tensor:
        """Makes all following attention that of the packs with these places, on their device.

        Returns:
            (1, tokens) the position of every token.
        """
        _ActivePacks.packs = JointAttention(packs)
        self._last_layer.begin(wanted_tokens(packs))
        return torch.cat([one.positions for one in packs], dim=1) if len(packs) > 1 else packs[0].positions


class LastLayerForTokens:
    """Forward of the last layer for one token per example, where only those are used.

    Keys and values come from all tokens: the layer's forward runs until its attention has them, then again
    with the wanted tokens alone. Its output elsewhere is 0. Nothing there is recomputed in the backward pass:
    what would be kept is small anyway.

    Attributes:
        wanted: (examples,) places in the pack; None: the layer runs for all tokens.
    """

    def __init__(self, layer: nn.Module):
        self.wanted: Tensor | None = None
        self._recompute = False
        self._layer: Any = layer  # of any family, which mypy knows no attributes of
        self._forward: Callable[..., Any] = layer.forward
        layer.forward = self

    def begin(self, wanted: Tensor | None) -> None:
        """Sets the tokens of the next forward, before transformers asks whether the layer is recomputed."""
        self.wanted = wanted
        if hasattr(self._layer, "gradient_checkpointing"):
            self._recompute |= self._layer.gradient_checkpointing
            self._layer.gradient_checkpointing = self._recompute and wanted is None

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The layer's output for `hidden` (1, tokens, size)."""
        if self.wanted is None:
            return self._forward(hidden, *args, **kwargs)
        wanted, tokens = self.wanted, hidden.shape[1]
        try:
            with suppress(_Captured):
                _ActivePacks.capturing = True
                self._forward(hidden, *args, **kwargs)
            _ActivePacks.capturing = False
            out = self._forward(*_select((hidden, *args), wanted, tokens), **_select(kwargs, wanted, tokens))
        finally:
            _ActivePacks.capturing, _ActivePacks.captured = False, None
        out = out[0] if isinstance(out, tuple) else out
        return torch.zeros_like(hidden).index_copy(1, wanted, out)


def _select(value: Any, wanted: Tensor, tokens: int) -> Any:
    """A forward's arguments with every (1, tokens, ..) tensor among them cut to the wanted tokens."""
    if isinstance(value, Tensor):
        return value.index_select(1, wanted) if value.ndim > 1 and value.shape[1] == tokens else value
    if isinstance(value, tuple):
        return tuple(_select(part, wanted, tokens) for part in value)
    if isinstance(value, dict):
        return {name: _select(part, wanted, tokens) for name, part in value.items()}
    return value
