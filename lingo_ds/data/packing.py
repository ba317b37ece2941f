"""Packs: whole examples without padding in one row of tokens, with their common prefix once.

Own code, since no library shares a prefix inside a pack.

The prefix is found as the longest common token prefix of the pack's examples, so that sharing it cannot
change a result. Who computes which example follows from the examples' lengths alone.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.tokenized import TokenizedSplit

ROWS_COMPARED = 4096
"""Examples whose beginnings are compared at a time."""


class PackedModel(Protocol):
    """A model that computes packs."""

    def pack_places(self, prefix: int, lengths: Sequence[int], /) -> tuple[Any, ...]:
        """What the model must know of where things lie in a pack: tensors on the CPU and plain values."""

    def packed_logits(self, input_ids: Tensor, places: Any, /) -> Tensor:
        """(n, outputs) logits of a pack: (tokens,) ids, and what `pack_places` gave."""


class Pack(NamedTuple):
    """Examples of one forward: [shared prefix | own tokens of example 0 | own tokens of example 1 | ...].

    Attributes:
        input_ids: (tokens,) token ids.
        prefix: tokens of the shared prefix; 0 for none.
        lengths: own tokens of each example, ascending, so that neighbours are of like length.
        labels: (n,) int64 classes, or (n, values) float32 with NaN where unknown.
        rows: (n,) place in the split.
        weights: (n,) 1, or 0 for a dummy row that keeps the number of forwards equal on all processes.
        places: where things lie in it, as the model that will compute it said; None: it was not asked yet.
    """

    input_ids: Tensor
    prefix: int
    lengths: tuple[int, ...]
    labels: Tensor
    rows: Tensor
    weights: Tensor
    places: tuple[Any, ...] | None = None

    @property
    def real_tokens(self) -> int:
        """Tokens of the examples of weight 1, prefixes included."""
        counting = zip(self.lengths, self.weights.tolist(), strict=True)
        return sum(self.prefix + own for own, weight in counting if weight)

    @property
    def computed_tokens(self) -> int:
        """Tokens that the backbone computes."""
        return len(self.input_ids)

    @property
    def shared_tokens(self) -> int:
        """Real tokens that are not computed again, since the pack has the prefix once."""
        return self.prefix * max(int(self.weights.count_nonzero()) - 1, 0)

    def prepared(self, model: PackedModel) -> Self:
        """The pack with all that `model` must know of it before it computes it; the model itself rests."""
        return self._replace(places=model.pack_places(self.prefix, self.lengths))

    def logits(self, model: PackedModel) -> Tensor:
        """(n, outputs) logits that `model` computes."""
        return model.packed_logits(*self.input_for(model))

    def input_for(self, model: PackedModel) -> tuple[Tensor, Any]:
        """(tokens,) token ids, and what `model` says of where things lie in the pack."""
        pack = self.prepared(model) if self.places is None else self
        return pack.input_ids, pack.places


def common_prefix(split: TokenizedSplit, rows: np.ndarray) -> int:
    """Length of the longest common token prefix of examples, one token left to each; `rows` is (n,)."""
    length = int(split.lengths[rows].min()) - 1
    first = split.tokens(int(rows[0]))
    for begin in range(0, len(rows), ROWS_COMPARED):
        same = (split.heads(rows[begin : begin + ROWS_COMPARED], length) == first[:length]).all(axis=0)
        length = length if same.all() else int(same.argmin())
    return length


def make_pack(split: TokenizedSplit, rows: np.ndarray, weights: np.ndarray, *, share_prefix: bool) -> Pack:
    """Packs the examples `rows` (n,) of a split.

    Args:
        split: where they are.
        rows: (n,) their places.
        weights: (n,) 1, or 0 for a dummy row.
        share_prefix: False in an encoder, where a prefix attends to what follows it.
    """
    order = np.argsort(split.lengths[rows], kind="stable")
    rows, weights = rows[order], weights[order]
    prefix = common_prefix(split, rows) if share_prefix and len(rows) > 1 else 0
    tokens = [split.tokens(int(row)) for row in rows]
    input_ids = np.concatenate([tokens[0][:prefix], *(own[prefix:] for own in tokens)])
    return Pack(
        torch.from_numpy(input_ids.astype(np.int64)),
        prefix,
        tuple(len(own) - prefix for own in tokens),
        torch.from_numpy(split.labels[rows]),
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(weights.astype(np.float32)),
    )


def or_dummy_row(part: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A forward's examples with weight 1; where there are none, the first of `rows` with weight 0."""
    return (part, np.ones(len(part))) if len(part) else (rows[:1], np.zeros(1))


def assign_to_ranks(
    lengths: np.ndarray, *, world: int, budget: int, most: int | None = None, turn: int = 0
) -> list[list[np.ndarray]]:
    """Assigns examples to processes: as many packs to each, and nearly as many tokens.

    The longest example goes first, each to the process that has least; a process's packs are filled alike.

    Args:
        lengths: (n,) own tokens of each example.
        world: processes.
        budget: own tokens of a pack at most; a longer example has a pack to itself.
        most: examples of a pack at most.
        turn: rotates the processes, so that over many steps none gets more than another.

    Returns:
        Per process its packs, each the places (k,) of its examples in `lengths`; a pack may be empty where
        there are too few examples.
    """
    shares = _sharding(lengths, world)
    shares = shares[-(turn % world) :] + shares[: -(turn % world)]
    fewest = max(
        max(-(-int(lengths[share].sum()) // budget), -(-len(share) // (most or len(share) or 1)), 1)
        for share in shares
    )
    for count in range(min(fewest, len(lengths)), len(lengths) + 1):
        packs = [[share[part] for part in _sharding(lengths[share], count)] for share in shares]
        if all(_fits(lengths[pack], budget, most) for share in packs for pack in share):
            return packs
    raise AssertionError("one example a pack always fits")


def _fits(lengths: np.ndarray, budget: int, most: int | None) -> bool:
    return len(lengths) <= 1 or (lengths.sum() <= budget and len(lengths) <= (most or len(lengths)))


def _sharding(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Places of the examples in each of `parts` parts of nearly equal tokens, the longest assigned first."""
    loads = [(0, 0, part) for part in range(parts)]
    members: list[list[int]] = [[] for _ in range(parts)]
    for place in np.argsort(-lengths, kind="stable").tolist():
        load, count, part = heapq.heappop(loads)
        members[part].append(place)
        heapq.heappush(loads, (load + int(lengths[place]), count + 1, part))
    return [np.array(sorted(part), dtype=np.int64) for part in members]


def eval_packs(
    split: TokenizedSplit, *, budget: int, rank: int, world: int, share_prefix: bool, least: int = 1
) -> Iterator[Pack]:
    """This process's packs of a whole split, examples of like length together; as many on every process.

    Args:
        split: what is evaluated.
        budget: tokens of a pack, about.
        rank: of this process.
        world: processes.
        share_prefix: as for `make_pack`.
        least: packs at least; where examples are too few, some hold a dummy row alone.
    """
    order = np.argsort(split.lengths, kind="stable")
    ends = np.cumsum(split.lengths[order])
    packs = max(min(-(-int(ends[-1]) // budget), len(order)), least)
    packs = -(-packs // world) * world
    cuts = np.searchsorted(ends, ends[-1] * np.arange(packs + 1) / packs, side="right")
    for place, (begin, end) in enumerate(pairwise(cuts)):
        if place % world != rank:
            continue
        yield make_pack(split, *or_dummy_row(order[begin:end], order), share_prefix=share_prefix)
