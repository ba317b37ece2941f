"""Places of a pack's tokens, for each of attention's kernels: worked out on the CPU, ahead of the forward.

A pack is one row of tokens, [prefix | own tokens of example 0 | own tokens of example 1 | ...]. Nothing here
touches a GPU, so that the thread that reads the data can do it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Kernel = Literal["flash", "cpp", "groups"]
"""Ways to compute attention: flash attention, `kernels/attention.cpp`, torch's own for group after group."""

Pooled = Literal["last", "first"]
"""The token of an example whose hidden state stands for it."""

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


class PrefixCopies(NamedTuple):
    """The keys that flash attention takes: each sequence's own behind a copy of the prefix.

    Attributes:
        sequences: copies of the prefix.
        source: (keys,) which token of the pack each of them is.
        shared: (sequences * prefix,) the places of the prefix's copies among them.
        own: (tokens - prefix,) the places of the examples' own tokens among them.
    """

    sequences: int
    source: Tensor
    shared: Tensor
    own: Tensor


class FlashPlaces(NamedTuple):
    """Sequences as flash attention for different lengths takes them.

    Attributes:
        of_query: (sequences + 1,) int32, where each one's queries start; the last is their number.
        of_key: (sequences + 1,) int32, likewise of keys.
        longest_query: most queries of a sequence.
        longest_key: most keys of a sequence.
        copies: how keys come from the pack's; None: they are the pack's.
    """

    of_query: Tensor
    of_key: Tensor
    longest_query: int
    longest_key: int
    copies: PrefixCopies | None


class PackPlaces(NamedTuple):
    """Where what lies in a pack; only what its kernel and its pooling need is there.

    Attributes:
        kernel: what computes attention.
        prefix: tokens of the shared prefix.
        lengths: own tokens of each example.
        positions: (1, tokens) int64: every example continues where the prefix ended.
        pooled: (examples,) place of the token that stands for each example; None: all of them do.
        of_first: whether it is its example's first token, not the last.
        shortened: whether the last layer is computed for these tokens alone.
        counts: (examples, 1) tokens of each example with the prefix, where all stand for it.
        flash: of flash attention, for all tokens.
        flash_of_one: of flash attention, for one token per example, which sees all of it.
        sequences: (n, 3) int64 for the C++ kernel: first token, own tokens and tokens seen before, of a
            prefix and each example.
        buckets: groups of examples, for torch's own attention.
    """

    kernel: Kernel
    prefix: int
    lengths: tuple[int, ...]
    positions: Tensor
    pooled: Tensor | None = None
    of_first: bool = False
    shortened: bool = False
    counts: Tensor | None = None
    flash: FlashPlaces | None = None
    flash_of_one: FlashPlaces | None = None
    sequences: Tensor | None = None
    buckets: tuple[Bucket, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the pack."""
        return self.positions.shape[1]


def wanted_tokens(packs: Sequence[PackPlaces]) -> Tensor | None:
    """(examples,) places, among the tokens of all packs, that the last layer is computed for; None: all."""
    wanted, first = [], 0
    for places in packs:
        if places.pooled is None or not places.shortened:
            return None
        wanted.append(places.pooled + first if first else places.pooled)
        first += places.tokens
    return torch.cat(wanted) if len(wanted) > 1 else wanted[0]


def find_places(
    prefix: int,
    lengths: Sequence[int],
    *,
    kernel: Kernel,
    pooled: Pooled | None,
    shortened: bool = False,
    first_position: int = 0,
) -> PackPlaces:
    """Works out the places of a pack; packs whose neighbours are of like length are fastest.

    Args:
        prefix: tokens of the shared prefix, 0 for none.
        lengths: own tokens of each example.
        kernel: what computes attention.
        pooled: the token that stands for each example; None: all of them do.
        shortened: whether the last layer is computed for these tokens alone.
        first_position: position of a text's first token.
    """
    own = np.array(lengths, np.int64)
    ends = own.cumsum() + prefix
    positions = np.arange(prefix + own.sum()) + first_position
    positions[prefix:] -= (ends - own - prefix).repeat(own)
    places = PackPlaces(kernel, prefix, tuple(lengths), torch.from_numpy(positions[None]))
    if pooled is None:
        places = places._replace(counts=torch.from_numpy(own[:, None] + prefix))
    else:
        firsts = np.zeros_like(own) if prefix else ends - own
        places = places._replace(
            pooled=torch.from_numpy(ends - 1 if pooled == "last" else firsts),
            of_first=pooled == "first",
            shortened=shortened,
        )
    if kernel == "flash":
        one = _flash_places(np.ones_like(own), own, prefix) if shortened else None
        head = np.array([prefix] * bool(prefix), np.int64)
        queries, keys = np.concatenate([head, own]), np.concatenate([head * 0, own])
        return places._replace(flash=_flash_places(queries, keys, prefix), flash_of_one=one)
    if kernel == "cpp":
        places = places._replace(sequences=_sequences(prefix, own, ends))
    if kernel == "groups" or shortened:
        places = places._replace(buckets=tuple(map(_bucket, _groups(lengths))))
    return places


def _flash_places(queries: np.ndarray, own: np.ndarray, prefix: int) -> FlashPlaces:
    """Of sequences with these numbers of queries and of own keys, each behind the prefix."""
    keys = own + prefix
    copies = _prefix_copies(own, prefix) if prefix else None
    return FlashPlaces(_starts(queries), _starts(keys), int(queries.max()), int(keys.max()), copies)


def _starts(counts: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int32))


def _prefix_copies(own: np.ndarray, prefix: int) -> PrefixCopies:
    keys = own + prefix
    shared = ((keys.cumsum() - keys)[:, None] + np.arange(prefix)).ravel()
    at = np.arange(own.sum()) + (np.arange(1, len(own) + 1) * prefix).repeat(own)
    source = np.empty(keys.sum(), np.int64)
    source[shared] = np.tile(np.arange(prefix), len(own))
    source[at] = np.arange(prefix, prefix + own.sum())
    return PrefixCopies(len(own), *map(torch.from_numpy, (source, shared, at)))


def _sequences(prefix: int, own: np.ndarray, ends: np.ndarray) -> Tensor:
    examples = np.stack([ends - own, own, np.full_like(own, prefix)], axis=1)
    return torch.from_numpy(np.concatenate([[[0, prefix, 0]], examples]) if prefix else examples)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """The lengths in groups of neighbours that are not padded much."""
    groups: list[list[int]] = []
    for length in lengths:
        group = [*(groups[-1] if groups else []), length]
        if groups and sum(group) >= (1 - MAX_PADDING) * len(group) * max(group):
            groups[-1].append(length)
        else:
            groups.append([length])
    return groups


def _bucket(group: list[int]) -> Bucket:
    lengths, width = torch.tensor(group), max(group)
    if min(group) == width:
        return Bucket(sum(group), len(group), width, None, None, lengths)
    real = (torch.arange(width) < lengths[:, None]).flatten().nonzero().flatten()
    place = torch.zeros(len(group) * width, dtype=torch.long)
    place[real] = torch.arange(len(real))
    return Bucket(sum(group), len(group), width, place, real, lengths)
