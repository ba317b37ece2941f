"""Attention over packs: no padding, one prefix for all examples.

It is the package's own because no library's attention shares the keys of a prefix between sequences. A token
of an example attends to the prefix and to its own example; the prefix attends to itself. In an encoder, where
earlier tokens see later ones, a prefix cannot be shared and is empty.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lingo_ds.models.backbone.flash_support import is_flash
from lingo_ds.models.backbone.pack_places import Bucket, FlashPlaces, Kernel, PackPlaces, PrefixCopies
from lingo_ds.models.ops import attention

if TYPE_CHECKING:
    from lingo_ds.models.backbone.spec import BackboneSpec

flash_attention = torch.ops.aten._flash_attention_forward
"""Torch's operator with its own gradient; `torch.nn.attention.varlen` wraps it in operators of Python."""


def choose_kernel(spec: "BackboneSpec", dtype: torch.dtype, device: torch.device) -> Kernel:
    """What computes a backbone's attention."""
    if spec.softcap is not None:  # which no fast kernel knows
        return "groups"
    if is_flash(dtype, spec.head_size, device):
        return "flash"
    return "cpp" if attention.supports_attention(dtype, device) and not spec.windows_ahead else "groups"


class Rule(NamedTuple):
    """What a layer's attention does beside its products.

    Attributes:
        scale: factor on the scores.
        window: a token sees itself and the `window` - 1 tokens before, in an encoder behind, too; None: all.
        causal: False in an encoder: every token of an example sees those after it.
        softcap: bound that scores come near to and never reach; None: none.
    """

    scale: float
    window: int | None = None
    causal: bool = True
    softcap: float | None = None

    def reach(self, length: int) -> int:
        """Tokens that a token sees to one side, itself included, of so many."""
        return length if self.window is None else self.window


class PackedAttention:
    """The attention of one pack, for every layer."""

    def __init__(self, places: PackPlaces):
        """Takes the pack's places, on the device that computes it."""
        self._places = places
        self._masks: dict[tuple, Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of all tokens.

        Args:
            query: (1, heads, tokens, size); key and value may have fewer heads, in whole groups of query's.
            key: (1, key heads, tokens, size), positions already in it.
            value: likewise.
            rule: of the layer.

        Returns:
            (1, tokens, heads, size).
        """
        places = self._places
        assert rule.causal or not places.prefix, "an encoder shares no prefix"
        if places.flash is not None:
            return _flash(query, key, value, places.flash, rule)
        if places.sequences is not None:
            query, key, value = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
            return attention.attend(
                query, key, value, places.sequences, scale=rule.scale, window=rule.window, causal=rule.causal
            ).unsqueeze(0)
        return self._by_bucket(query, key, value, rule)

    def _by_bucket(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention by torch's own kernels: of the prefix, then of bucket after bucket."""
        (head_q, queries), (head_k, keys), (head_v, values) = map(self._apart, (query, key, value))
        outputs = []
        if head_q is not None and head_k is not None and head_v is not None:
            mask = self._mask(0, self._places.prefix, rule)
            outputs.append(_attend(head_q, head_k, head_v, mask=mask, rule=rule).squeeze(0))
        for bucket, q, k, v in zip(self._places.buckets, queries, keys, values, strict=True):
            q, k, v = (_batched(part, bucket) for part in (q, k, v))
            k, v = _behind(head_k, k), _behind(head_v, v)
            out = _attend(q, k, v, mask=self._allowed(bucket, rule), rule=rule).flatten(0, 1)
            outputs.append(out if bucket.real is None else out[bucket.real])
        return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None]

    def _allowed(self, bucket: Bucket, rule: Rule) -> Tensor | None:
        """What the tokens of a bucket's examples see; None: all of them everything."""
        if rule.causal:  # padding stands behind the tokens of its example, where none of them looks
            return self._mask(self._places.prefix, bucket.width, rule)
        near = None if rule.window is None else self._mask(0, bucket.width, rule)
        if bucket.real is None:
            return near
        real = _real_keys(bucket, 0)[:, None, None]
        return real if near is None else real & near | _itself(bucket.width, real.device)

    def of_one_token(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of one token per example that sees all of it, but for a window: its last or first one.

        Args:
            query: (1, heads, examples, size).
            key: (1, key heads, tokens, size).
            value: likewise.
            rule: of the layer.

        Returns:
            (1, examples, heads, size).
        """
        if self._places.flash_of_one is not None:
            # As the last of its keys: the kernel takes no detour then, whatever the numbers of heads.
            return _flash(query, key, value, self._places.flash_of_one, rule._replace(causal=True))
        counts = [bucket.examples for bucket in self._places.buckets]
        queries = query.squeeze(0).transpose(0, 1).unsqueeze(1).split(counts)
        (key_head, keys), (value_head, values) = self._apart(key), self._apart(value)
        outputs = []
        for bucket, q, k, v in zip(self._places.buckets, queries, keys, values, strict=True):
            k, v = _behind(key_head, _batched(k, bucket)), _behind(value_head, _batched(v, bucket))
            mask = None
            if bucket.real is not None or (rule.window is not None and rule.window < k.shape[1]):
                of_first = self._places.of_first
                mask = _real_keys(bucket, self._places.prefix, rule.window, first=of_first)[:, None, None]
            outputs.append(_attend(q, k, v, mask=mask, rule=rule).flatten(0, 1))
        return torch.cat(outputs)[None]

    def _apart(self, x: Tensor) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Tokens of (1, heads, tokens, size): the prefix's (1, prefix, heads, size), and each bucket's."""
        sizes = [self._places.prefix] * bool(self._places.prefix) + [
            bucket.tokens for bucket in self._places.buckets
        ]
        parts = x.squeeze(0).transpose(0, 1).split(sizes)
        return (parts[0].unsqueeze(0), parts[1:]) if self._places.prefix else (None, parts)

    def _mask(self, before: int, width: int, rule: Rule) -> Tensor:
        """(width, before + width) bool: the tokens that each of the last `width` ones sees."""
        key = before, width, rule.window
        if key not in self._masks:
            query = torch.arange(before, before + width, device=self._places.positions.device)[:, None]
            seen = torch.arange(before + width, device=self._places.positions.device)
            allowed = seen <= query if rule.causal else seen < query + rule.reach(width)
            self._masks[key] = allowed & (seen > query - rule.reach(before + width))
        return self._masks[key]


class JointAttention:
    """The attention of packs that lie one behind the other, each of which sees itself alone."""

    def __init__(self, packs: Sequence[PackPlaces]):
        """Takes the places of all packs, on the device that computes them."""
        self._packs = [PackedAttention(places) for places in packs]
        self._tokens = [places.tokens for places in packs]
        self._examples = [len(places.lengths) for places in packs]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of all tokens, see `PackedAttention`."""
        if len(self._packs) == 1:
            return self._packs[0](query, key, value, rule)
        queries, keys, values = (part.split(self._tokens, dim=2) for part in (query, key, value))
        parts = zip(self._packs, queries, keys, values, strict=True)
        return torch.cat([one(q, k, v, rule) for one, q, k, v in parts], dim=1)

    def of_one_token(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of one token per example, see `PackedAttention.of_one_token`."""
        if len(self._packs) == 1:
            return self._packs[0].of_one_token(query, key, value, rule)
        queries = query.split(self._examples, dim=2)
        keys, values = (part.split(self._tokens, dim=2) for part in (key, value))
        parts = zip(self._packs, queries, keys, values, strict=True)
        return torch.cat([one.of_one_token(q, k, v, rule) for one, q, k, v in parts], dim=1)


def _flash(query: Tensor, key: Tensor, value: Tensor, places: FlashPlaces, rule: Rule) -> Tensor:
    """Flash attention of sequences of different length: torch's operator itself, with its own gradient."""
    query, key, value = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    if places.copies is not None:
        key, value = (_BehindPrefix.apply(part, places.copies) for part in (key, value))
    near = -1 if rule.window is None else rule.window - 1
    left, right = near, 0 if rule.causal else near
    out: Tensor = flash_attention(
        query,
        key,
        value,
        places.of_query,
        places.of_key,
        places.longest_query,
        places.longest_key,
        0.0,  # no dropout
        (left, right) == (-1, 0),
        False,  # no debug mask
        scale=rule.scale,
        window_size_left=left,
        window_size_right=right,
    )[0]
    return out.unsqueeze(0)


class _BehindPrefix(torch.autograd.Function):
    """Keys or values (tokens, heads, size) as flash attention takes them, the prefix's before each example's.

    In the backward pass each copy's gradient is summed in one order, and in fp32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, copies: PrefixCopies) -> Tensor:
        ctx.copies = copies
        return x.index_select(0, copies.source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        copies: PrefixCopies = ctx.copies
        shared = grad.index_select(0, copies.shared).unflatten(0, (copies.sequences, -1)).sum(0)
        return torch.cat([shared, grad.index_select(0, copies.own)]), None


def _batched(own: Tensor, bucket: Bucket) -> Tensor:
    """A bucket's (tokens, heads, size) as (examples, width, heads, size), padded where lengths differ."""
    if bucket.place is not None:
        own = own.index_select(0, bucket.place)
    return own.unflatten(0, (bucket.examples, bucket.width))


def _behind(head: Tensor | None, own: Tensor) -> Tensor:
    """Keys or values (examples, width, heads, size) behind the prefix's, (1, prefix, heads, size)."""
    return own if head is None else torch.cat([head.expand(len(own), -1, -1, -1), own], dim=1)


def _real_keys(bucket: Bucket, prefix: int, window: int | None = None, *, first: bool = False) -> Tensor:
    """(examples, prefix + width) bool: the tokens of each example, the last or first `window` of them."""
    place = torch.arange(prefix + bucket.width, device=bucket.lengths.device)
    end = prefix + bucket.lengths[:, None]
    if window is None:
        return place < end
    return (place < end) & (place < window if first else place >= end - window)


def _itself(width: int, device: torch.device) -> Tensor:
    """(width, width) bool: padding sees itself, since a row that sees nothing would be no numbers."""
    return torch.eye(width, dtype=torch.bool, device=device)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, rule: Rule) -> Tensor:
    """Scaled dot-product attention of (n, queries, heads, size) over (n, keys, key heads, size)."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    if rule.softcap is not None:  # scores are computed again in the backward pass: they are the largest part
        return checkpoint(_capped, query, key, value, mask, rule, use_reentrant=False).transpose(1, 2)
    shared = query.shape[1] > key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=rule.scale, enable_gqa=shared
    )
    return out.transpose(1, 2)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attention whose scores s are cap * tanh(s / cap), as Gemma 2 has it (arXiv 2408.00118)."""
    assert rule.softcap is not None
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    scores = rule.softcap * torch.tanh(query @ key.transpose(-1, -2) * (rule.scale / rule.softcap))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    exact = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=exact).to(value.dtype) @ value
