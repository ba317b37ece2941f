"""ComputeCopy: the bank's values as forward and backward passes use them, and the gradient that these leave.

An adapter is scale P ((m lam) (Q x)), arXiv 2303.10512, eq. 3. Here scale * m * lam is multiplied into the
rows of Q once a step, so that an adapter is two products and nothing between them. A backward pass leaves in
Q's place the gradient D of those scaled rows. Once a step, after all of its packs,

    gradient of lam_i = scale Q_i . D_i        gradient of Q_i = scale m_i lam_i D_i

which saves a product of all tokens' entries and their sum at every adapter of every pack.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lingo_ds.models.adapters.layout import BankLayout, Block
from lingo_ds.utils.transfer import upload

TENSOR_CORE_ROWS = 8
"""Ranks are filled up to a multiple of it in half precision on a GPU, whose fast products need it."""


class Operands(NamedTuple):
    """What passes use of one or more sites, and where a backward pass adds the gradients.

    Attributes:
        p: of each site (rank, d_out).
        q: (sum of ranks, d_in), scale * m * lam in it; sites that read the same tensor are one matrix.
        p_grads: like p.
        q_grad: like q: the gradient of what is in `q`.
    """

    p: list[Tensor]
    q: Tensor
    p_grads: list[Tensor]
    q_grad: Tensor


class _RowBlock(NamedTuple):
    """All rows of one length.

    Attributes:
        masters, copy: the block in either layout.
        rows: its rows, counted over all blocks of the masters.
        q_rows: those of them that are Q's, at the end of the block.
        places: (rows,) where they are in the copy's block; None: at the same places.
    """

    masters: Block
    copy: Block
    rows: slice
    q_rows: slice
    places: Tensor | None


class ComputeCopy:
    """The values in the compute dtype.

    Attributes:
        layout: the masters' layout with ranks filled up.
        values: (size of that layout,).
        head, tokens: leaves of autograd; their gradients go where those of adapters go.
    """

    def __init__(
        self, layout: BankLayout, grad: Tensor, *, scale: float, dtype: torch.dtype, multiple: int = 1
    ):
        """Makes room.

        Args:
            layout: the masters'.
            grad: (size,) fp32, the gradient of the masters; passes add to it directly where they can.
            scale: alpha / r0.
            dtype: compute dtype.
            multiple: ranks are filled up to a multiple of it with rows of 0.
        """
        self._masters, self._scale, self._grad = layout, scale, grad
        self.layout = layout.with_ranks([math.ceil(rank / multiple) * multiple for rank in layout.ranks])
        self.values = torch.zeros(self.layout.size, dtype=dtype, device=grad.device)
        direct = dtype == grad.dtype and self.values.shape == grad.shape
        self._own_grad = grad if direct else torch.zeros_like(self.values)
        self.head, self.tokens = (
            _leaf(part(self.values), part(self._own_grad)) for part in (self.layout.head, self.layout.tokens)
        )
        self._blocks = _row_blocks(layout, self.layout, grad.device)
        triplets = np.concatenate([np.zeros(0, int), *(block.triplet_of_row for block in layout.blocks)])
        of_q = np.zeros(len(triplets), bool)
        for block in self._blocks:
            of_q[block.q_rows] = True
        # The factor of a row is looked up: of P's in the last place, which is 1.
        self._factors = torch.full((layout.triplets + 1,), scale, device=grad.device)
        self._factors[-1:].fill_(1)
        self._factor_of_row = upload(np.where(of_q, triplets, layout.triplets), grad.device)
        self._row_factors = self._factors.index_select(0, self._factor_of_row)
        self._q_row_of_triplet = upload(layout.rows_of_triplets[1], grad.device)

    def are_adjacent(self, sites: Sequence[int]) -> bool:
        """Whether the rows of these sites' Q are one matrix, the first site's first."""
        of_q = [self.layout.site(self.values, k).q for k in sites]
        ends = [q.storage_offset() + q.numel() for q in of_q]
        return [q.storage_offset() for q in of_q[1:]] == ends[:-1] and len({q.shape[1] for q in of_q}) == 1

    def operands(self, sites: Sequence[int]) -> Operands:
        """The operands of sites that read the same tensor; see `are_adjacent`."""
        of, to = ([self.layout.site(flat, k) for k in sites] for flat in (self.values, self._own_grad))
        shape = sum(len(one.q) for one in of), of[0].q.shape[1]
        q, q_grad = (first.q.as_strided(shape, (shape[1], 1)) for first in (of[0], to[0]))
        return Operands([one.p for one in of], q, [one.p for one in to], q_grad)

    @torch.no_grad()
    def refresh(self, master: Tensor, mask: Tensor) -> None:
        """Renews the values.

        Args:
            master: (size,) fp32.
            mask: (triplets,) bool.
        """
        if self._masters.has_lam:
            lam = torch.mul(self._masters.lam(master), mask)
            torch.mul(lam, self._scale, out=self._factors[:-1])
            torch.index_select(self._factors, 0, self._factor_of_row, out=self._row_factors)
        for block in self._blocks:
            values, found = block.masters.of(master), block.copy.of(self.values)
            factors = self._row_factors[block.rows, None]
            if block.places is None:
                torch.mul(values, factors, out=found)
            else:
                scaled = torch.mul(values, factors, out=torch.empty_like(values, dtype=found.dtype))
                found.index_copy_(0, block.places, scaled)
        self.values[self.layout.adapter_size :].copy_(master[self._masters.adapter_size :])

    @torch.no_grad()
    def collect_grad(self) -> None:
        """Adds what a pass left to the fp32 gradient, so that many packs lose nothing."""
        if self._own_grad is self._grad:
            return
        if self._own_grad.shape == self._grad.shape:
            self._grad.add_(self._own_grad)
        else:
            for block in self._blocks:
                assert block.places is not None, "other ranks have other places"
                found = block.copy.of(self._own_grad)
                block.masters.of(self._grad).add_(found.index_select(0, block.places))
            after = self._own_grad[self.layout.adapter_size :]
            self._grad[self._masters.adapter_size :].add_(after)
        self._own_grad.zero_()

    @torch.no_grad()
    def finish_grad(self, master: Tensor) -> None:
        """Makes the sum of all packs the gradient of lam and Q, see above; `master` is (size,) fp32."""
        dots = torch.empty(len(self._row_factors), 1, 1, device=master.device)
        for block in self._blocks:
            grad = block.masters.of(self._grad)
            count = block.q_rows.stop - block.q_rows.start
            if self._masters.has_lam and count:
                q, of_q = block.masters.of(master)[-count:], grad[-count:]
                torch.bmm(q[:, None], of_q[:, :, None], out=dots[block.q_rows])
            grad.mul_(self._row_factors[block.rows, None])
        if self._masters.has_lam:
            lam = self._masters.lam(self._grad)
            torch.index_select(dots.flatten(), 0, self._q_row_of_triplet, out=lam).mul_(self._scale)


def _row_blocks(masters: BankLayout, copy: BankLayout, device: torch.device) -> list[_RowBlock]:
    """The blocks of two layouts of the same sites, of which the copy's may have more rows."""
    places = np.zeros(sum(block.rows for block in masters.blocks), int)
    for rows_of_one, room in zip(masters.matrices, copy.matrices, strict=True):
        places[rows_of_one] = room[: len(rows_of_one)]
    found, first, first_in_copy = [], 0, 0
    for block, in_copy in zip(masters.blocks, copy.blocks, strict=True):
        rows = slice(first, first + block.rows)
        of_p = sum(
            r for site, r in zip(masters.sites, masters.ranks, strict=True) if site.d_out == block.length
        )
        moved = upload(places[rows] - first_in_copy, device) if copy.ranks != masters.ranks else None
        found.append(_RowBlock(block, in_copy, rows, slice(first + of_p, rows.stop), moved))
        first, first_in_copy = rows.stop, first_in_copy + in_copy.rows
    return found


def _leaf(values: Tensor, grads: Tensor) -> Tensor:
    leaf = values.detach().requires_grad_()
    leaf.grad = grads
    return leaf
