"""Places of the adapters in the flat buffer: rows of equal length together, so few kernels serve all sites.

The buffer is [block of rows | block of rows | ... | lam | head | tokens]; LoRA has no lam. One block holds
all rows of one length d: the columns of P of every site with d_out = d, then the rows of Q of every site
with d_in = d, in site order. P is therefore stored transposed, (rank, d_out). A sum over the rows of a block
is one view and one reduction, whatever the number of sites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lingo_ds.utils.transfer import upload


class Site(NamedTuple):
    """One adapted linear map (.., d_in) -> (.., d_out) of the backbone, by its module name."""

    name: str
    d_out: int
    d_in: int


class Block(NamedTuple):
    """Rows of one length; `triplet_of_row` (rows,) is the triplet that each row belongs to."""

    start: int
    rows: int
    length: int
    triplet_of_row: np.ndarray

    def of(self, flat: Tensor) -> Tensor:
        """This block of a flat tensor, as a view of shape (rows, length)."""
        return flat[self.start : self.start + self.rows * self.length].view(self.rows, self.length)


class SiteViews(NamedTuple):
    """One site's part of a flat tensor: p (rank, d_out), lam (rank,), or (0,) in LoRA, q (rank, d_in)."""

    p: Tensor
    lam: Tensor
    q: Tensor


@dataclass(frozen=True)
class BankLayout:
    """Places of all adapters, of the head and of learned tokens in one flat buffer.

    Attributes:
        sites: the adapted maps, in the order that breaks ties between equal scores.
        ranks: triplets of each site; 0 is legal.
        head_shape: (classes, hidden) of the head.
        has_lam: False in LoRA, whose triplets are pairs of a P column and a Q row.
        token_shape: (tokens, size) of input embeddings that are learned; (0, 0): none are.
    """

    sites: tuple[Site, ...]
    ranks: tuple[int, ...]
    head_shape: tuple[int, int]
    has_lam: bool = True
    token_shape: tuple[int, int] = (0, 0)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values, see `from_json`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The layout whose `to_json` went through JSON, which knows lists alone."""
        tokens, size = values["token_shape"]
        classes, hidden = values["head_shape"]
        return cls(
            sites=tuple(Site(*site) for site in values["sites"]),
            ranks=tuple(values["ranks"]),
            head_shape=(classes, hidden),
            has_lam=values["has_lam"],
            token_shape=(tokens, size),
        )

    @cached_property
    def triplets(self) -> int:
        """Number of triplets over all sites."""
        return sum(self.ranks)

    @cached_property
    def first_triplet(self) -> np.ndarray:
        """(sites + 1,): the triplets of site k are first_triplet[k] .. first_triplet[k + 1]."""
        return np.concatenate([[0], np.cumsum(self.ranks)]).astype(np.int64)

    @cached_property
    def _placed(self) -> tuple[list[Block], np.ndarray, np.ndarray]:
        """The blocks; (P or Q, site) starts of the rows in the flat buffer, and counted over all blocks."""
        blocks: list[Block] = []
        at, first_row = np.zeros((2, len(self.sites)), int), np.zeros((2, len(self.sites)), int)
        start = row = 0
        for length in sorted({d for site in self.sites for d in (site.d_out, site.d_in)}):
            owners = [np.zeros(0, int)]
            block_start = start
            for which, dims in enumerate(
                ([site.d_out for site in self.sites], [site.d_in for site in self.sites])
            ):
                for k in (k for k, d in enumerate(dims) if d == length):
                    at[which, k], first_row[which, k] = start, row
                    owners.append(np.arange(self.first_triplet[k], self.first_triplet[k + 1]))
                    start += self.ranks[k] * length
                    row += self.ranks[k]
            triplet_of_row = np.concatenate(owners)
            blocks.append(Block(block_start, len(triplet_of_row), length, triplet_of_row))
        return blocks, at, first_row

    @property
    def blocks(self) -> list[Block]:
        """The blocks of P and Q rows, by row length."""
        return self._placed[0]

    @cached_property
    def lam_start(self) -> int:
        """Where lam begins: the number of entries of all P and Q."""
        return sum(block.rows * block.length for block in self.blocks)

    @property
    def adapter_size(self) -> int:
        """Entries of all adapters, head and tokens left out."""
        return self.lam_start + (self.triplets if self.has_lam else 0)

    @property
    def head_size(self) -> int:
        """Entries of the head."""
        return self.head_shape[0] * self.head_shape[1]

    @property
    def token_size(self) -> int:
        """Entries of all learned tokens."""
        return self.token_shape[0] * self.token_shape[1]

    @property
    def size(self) -> int:
        """Entries of the whole buffer."""
        return self.adapter_size + self.head_size + self.token_size

    @cached_property
    def matrices(self) -> list[np.ndarray]:
        """For every P, then every Q, its rows counted over all blocks: one (rank,) array each."""
        first_row = self._placed[2]
        return [
            first_row[which, k] + np.arange(rank) for which in (0, 1) for k, rank in enumerate(self.ranks)
        ]

    @cached_property
    def rows_of_triplets(self) -> tuple[np.ndarray, np.ndarray]:
        """The row, counted over all blocks, of each triplet's P column and Q row: two (triplets,) arrays."""
        rows = np.concatenate([*self.matrices, np.zeros(0, int)])
        return rows[: self.triplets], rows[self.triplets :]

    def lam(self, flat: Tensor) -> Tensor:
        """All lam of a flat tensor, a view of shape (triplets,), or (0,) in LoRA."""
        return flat[self.lam_start : self.adapter_size]

    def head(self, flat: Tensor) -> Tensor:
        """The head of a flat tensor, a view of shape (classes, hidden)."""
        return flat[self.adapter_size : self.adapter_size + self.head_size].view(self.head_shape)

    def tokens(self, flat: Tensor) -> Tensor:
        """The learned tokens of a flat tensor, a view of shape (tokens, size)."""
        return flat[self.size - self.token_size : self.size].view(self.token_shape)

    def site(self, flat: Tensor, k: int) -> SiteViews:
        """Views of site k's adapter in a flat tensor."""
        (_, d_out, d_in), rank = self.sites[k], self.ranks[k]
        p_start, q_start = (int(start) for start in self._placed[1][:, k])
        lam_first = int(self.first_triplet[k])
        return SiteViews(
            flat[p_start : p_start + rank * d_out].view(rank, d_out),
            self.lam(flat)[lam_first : lam_first + rank],
            flat[q_start : q_start + rank * d_in].view(rank, d_in),
        )

    def keep(self, kept: np.ndarray) -> "BankLayout":
        """The layout of the kept triplets alone; `kept` is (triplets,) of bool."""
        return self.with_ranks([int(kept[a:b].sum()) for a, b in pairwise(self.first_triplet)])

    def with_ranks(self, ranks: Sequence[int]) -> "BankLayout":
        """The layout of the same sites with other ranks."""
        return replace(self, ranks=tuple(ranks))

    def take(self, kept: np.ndarray, *flats: Tensor) -> list[Tensor]:
        """Flat tensors of this layout, on one device, cut to the layout that `keep(kept)` gives.

        Rows keep their order inside a block, so the parts are simply joined again. A tensor without head and
        tokens (importance has none) stays without them.
        """
        device = flats[0].device
        rows = [upload(np.flatnonzero(kept[block.triplet_of_row]), device) for block in self.blocks]
        triplets = upload(np.flatnonzero(kept if self.has_lam else kept[:0]), device)
        taken = []
        for flat in flats:
            parts = [
                block.of(flat).index_select(0, own).flatten()
                for block, own in zip(self.blocks, rows, strict=True)
            ]
            lam = self.lam(flat).index_select(0, triplets)
            taken.append(torch.cat([*parts, lam, flat[self.adapter_size :]]))
        return taken


def uniform_layout(
    sites: Sequence[Site],
    *,
    rank: int,
    head_shape: tuple[int, int],
    has_lam: bool = True,
    token_shape: tuple[int, int] = (0, 0),
) -> BankLayout:
    """The layout of a new bank: every site with the same rank."""
    return BankLayout(tuple(sites), (rank,) * len(sites), head_shape, has_lam, token_shape)
