"""Attention over packs: no padding, one prefix for all examples.

It is the package's own because no library's attention shares the keys of a prefix between sequences. A pack
is one row of tokens, [prefix | own tokens of example 0 | own tokens of example 1 | ...]. A token of an
example attends to the prefix and to its own example; the prefix attends to itself. In an encoder, where
earlier tokens see later ones, a prefix cannot be shared and is empty.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lingo_ds.models.backbone.flash_support import is_flash, varlen_options
from lingo_ds.models.ops import attention

MAX_PADDING = 0.15
"""Neighbours whose lengths differ are one batched product while less than this part of it is padding."""


class Bucket(NamedTuple):
    """Neighbouring examples whose attention is one batched product.

    Attributes:
        tokens: own tokens of all examples.
        examples: number of examples.
        width: own tokens of the longest.
        place: (examples * width,) which token is at each place, 0 in padding; None where nothing is padded.
        real: (tokens,) the places among (examples * width) that are no padding; None likewise.
        lengths: (examples,) own tokens of each.
    """

    tokens: int
    examples: int
    width: int
    place: Tensor | None
    real: Tensor | None
    lengths: Tensor


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
    """The attention of one pack, for every layer.

    Attributes:
        prefix: tokens of the shared prefix.
        tokens: tokens of the whole pack.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], device: torch.device):
        """Takes the own tokens of every example; packs whose neighbours are of like length are fastest."""
        self.prefix, self.tokens = prefix, prefix + sum(lengths)
        self._lengths, self._device = list(lengths), device
        self._masks: dict[tuple, Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """(1, tokens): 0, 1, .. in the prefix; every example continues where the prefix ended."""
        own = torch.tensor(self._lengths)
        starts = own.cumsum(0) - own
        positions = torch.arange(self.tokens - self.prefix) - starts.repeat_interleave(own) + self.prefix
        return torch.cat([torch.arange(self.prefix), positions])[None].to(self._device)

    @cached_property
    def last(self) -> Tensor:
        """(examples,): place of each example's last token."""
        return (torch.tensor(self._lengths).cumsum(0) + (self.prefix - 1)).to(self._device)

    @cached_property
    def first(self) -> Tensor:
        """(examples,): place of each example's first token; the prefix's, where there is one."""
        if self.prefix:
            return torch.zeros(len(self._lengths), dtype=torch.long, device=self._device)
        own = torch.tensor(self._lengths)
        return (own.cumsum(0) - own).to(self._device)

    @cached_property
    def _buckets(self) -> list[Bucket]:
        groups: list[list[int]] = []
        for length in self._lengths:
            group = [*(groups[-1] if groups else []), length]
            if groups and sum(group) >= (1 - MAX_PADDING) * len(group) * max(group):
                groups[-1].append(length)
            else:
                groups.append([length])
        return [self._bucket(group) for group in groups]

    def _bucket(self, group: list[int]) -> Bucket:
        lengths, width = torch.tensor(group), max(group)
        if min(group) == width:
            return Bucket(sum(group), len(group), width, None, None, lengths.to(self._device))
        real = (torch.arange(width) < lengths[:, None]).flatten().nonzero().flatten()
        place = torch.zeros(len(group) * width, dtype=torch.long)
        place[real] = torch.arange(len(real))
        real, place, lengths = (part.to(self._device) for part in (real, place, lengths))
        return Bucket(sum(group), len(group), width, place, real, lengths)

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
        assert rule.causal or not self.prefix, "an encoder shares no prefix"
        if rule.softcap is None and is_flash(query):
            return self._varlen(query, key, value, rule)
        both_sides = rule.window is not None and not rule.causal  # which the kernel does not know
        if rule.softcap is None and not both_sides and attention.supports_attention(query):
            query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
            return attention.attend(
                query, key, value, self._sequences, scale=rule.scale, window=rule.window, causal=rule.causal
            )[None]
        return self._by_bucket(query, key, value, rule)

    def _by_bucket(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention by torch's own kernels: of the prefix, then of bucket after bucket."""
        (head_q, queries), (head_k, keys), (head_v, values) = map(self._apart, (query, key, value))
        outputs = []
        if head_q is not None and head_k is not None and head_v is not None:
            mask = self._mask(0, self.prefix, rule)
            outputs.append(_attend(head_q, head_k, head_v, mask=mask, rule=rule).squeeze(0))
        for bucket, q, k, v in zip(self._buckets, queries, keys, values, strict=True):
            q, k, v = (_batched(part, bucket) for part in (q, k, v))
            k, v = _behind(head_k, k), _behind(head_v, v)
            allowed: Tensor | None = None
            if rule.causal:  # padding stands behind the tokens of its example, where none of them looks
                allowed = self._mask(self.prefix, bucket.width, rule)
            else:
                allowed = None if rule.window is None else self._mask(0, bucket.width, rule)
                if bucket.real is not None:
                    real = _real_keys(bucket, 0)[:, None, None]
                    allowed = real if allowed is None else real & allowed | _itself(bucket.width, real.device)
            out = _attend(q, k, v, mask=allowed, rule=rule).flatten(0, 1)
            outputs.append(out if bucket.real is None else out[bucket.real])
        return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None]

    def of_one_token(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule, *, first: bool) -> Tensor:
        """Attention of one token per example that sees all of it, but for a window: its last or first one.

        Args:
            query: (1, heads, examples, size).
            key: (1, key heads, tokens, size).
            value: likewise.
            rule: of the layer.
            first: whether it is the first one.

        Returns:
            (1, examples, heads, size).
        """
        counts = [bucket.examples for bucket in self._buckets]
        queries = query.squeeze(0).transpose(0, 1).unsqueeze(1).split(counts)
        (key_head, keys), (value_head, values) = self._apart(key), self._apart(value)
        outputs = []
        for bucket, q, k, v in zip(self._buckets, queries, keys, values, strict=True):
            k, v = _behind(key_head, _batched(k, bucket)), _behind(value_head, _batched(v, bucket))
            mask = None
            if bucket.real is not None or (rule.window is not None and rule.window < k.shape[1]):
                mask = _real_keys(bucket, self.prefix, rule.window, first=first)[:, None, None]
            outputs.append(_attend(q, k, v, mask=mask, rule=rule).flatten(0, 1))
        return torch.cat(outputs)[None]

    def _apart(self, x: Tensor) -> tuple[Tensor | None, Sequence[Tensor]]:
        """Tokens of (1, heads, tokens, size): the prefix's (1, prefix, heads, size), and each bucket's."""
        sizes = [self.prefix] * bool(self.prefix) + [bucket.tokens for bucket in self._buckets]
        parts = x.squeeze(0).transpose(0, 1).split(sizes)
        return (parts[0].unsqueeze(0), parts[1:]) if self.prefix else (None, parts)

    def _mask(self, before: int, width: int, rule: Rule) -> Tensor:
        """(width, before + width) bool: the tokens that each of the last `width` ones sees."""
        key = before, width, rule.window
        if key not in self._masks:
            query = torch.arange(before, before + width, device=self._device)[:, None]
            seen = torch.arange(before + width, device=self._device)
            allowed = seen <= query if rule.causal else seen < query + rule.reach(width)
            self._masks[key] = allowed & (seen > query - rule.reach(before + width))
        return self._masks[key]

    def _varlen(self, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention by a flash kernel for sequences of different length; keys of the prefix are gathered."""
        from torch.nn.attention.varlen import varlen_attn

        of_query, of_key, gather, longest = self._varlen_places
        key, value = (part[0].transpose(0, 1)[gather] for part in (key, value))
        near = -1 if rule.window is None else rule.window - 1
        sees = (near, 0 if rule.causal else near)
        heads = query.shape[1] // key.shape[1]
        options: dict[str, Any] = {"scale": rule.scale, "window_size": sees}
        if heads > 1 and "enable_gqa" in varlen_options():
            options["enable_gqa"] = True
        elif heads > 1:
            key, value = (part.repeat_interleave(heads, dim=1) for part in (key, value))
        attend: Any = varlen_attn  # its parameters differ between versions of torch
        out: Tensor = attend(
            query[0].transpose(0, 1), key, value, of_query, of_key, longest, self.prefix + longest, **options
        )
        return out[None]

    @cached_property
    def _sequences(self) -> Tensor:
        """(n, 3) on the CPU, of a prefix and each example: first token, own tokens, tokens seen before."""
        own = torch.tensor(self._lengths)
        starts = own.cumsum(0) - own + self.prefix
        examples = torch.stack([starts, own, torch.full_like(own, self.prefix)], dim=1)
        return torch.cat([torch.tensor([[0, self.prefix, 0]]), examples]) if self.prefix else examples

    @cached_property
    def _varlen_places(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Starts of the sequences among queries and gathered keys; the keys' places; the longest sequence."""
        own = torch.tensor(self._lengths)
        counts = torch.cat([torch.tensor([self.prefix] * bool(self.prefix), dtype=torch.long), own])
        prefix, start, gather = torch.arange(self.prefix), self.prefix, []
        if self.prefix:
            gather.append(prefix)
        for length in self._lengths:
            gather += [prefix, torch.arange(start, start + length)]
            start += length
        seen = torch.cat([counts[: len(counts) - len(own)], own + self.prefix])
        of_query, of_key = (F.pad(part.cumsum(0), (1, 0)).int().to(self._device) for part in (counts, seen))
        return of_query, of_key, torch.cat(gather).to(self._device), int(counts.max())


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
