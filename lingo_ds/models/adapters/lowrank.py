"""The adapter's forward term, and the penalty that keeps P and Q near orthogonal (arXiv 2303.10512)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Block, SiteViews
from lingo_ds.models.ops import matmul
from lingo_ds.utils.transfer import upload


def project(x: Tensor, sites: Sequence[SiteViews], *, dropout: float, training: bool) -> tuple[Tensor, ...]:
    """(m lam) (Q dropout(x)) of maps that read the same x, in one product: (tokens, rank) for each.

    Args:
        x: input of the frozen maps, (.., d_in).
        sites: q (rank, d_in), lam (rank,), already masked, or (0,) in LoRA, in the compute dtype.
        dropout: probability of dropping an entry of x.
        training: whether dropout acts.
    """
    flat = x.reshape(-1, x.shape[-1]).to(sites[0].q.dtype)
    q, lam = sites[0].q, sites[0].lam
    if len(sites) > 1:
        q, lam = torch.cat([site.q for site in sites]), torch.cat([site.lam for site in sites])
    hidden = matmul.linear(F.dropout(flat, dropout, training) if dropout else flat, q)
    if len(lam):
        hidden = hidden * lam
    return hidden.split([len(site.q) for site in sites], dim=1)


def add_adapter_(output: Tensor, projected: Tensor, site: SiteViews, *, scale: float) -> Tensor:
    """Adds an adapter in place: W x + scale P ((m lam) (Q dropout(x))), arXiv 2303.10512, eq. 3.

    Args:
        output: W x, (tokens, d_out) or (batch, tokens, d_out); nobody else may hold it.
        projected: result of `project`, (tokens, rank).
        site: p (rank, d_out).
        scale: alpha / r0.
    """
    return matmul.add_product_(output, projected, site.p, scale=scale)


class _Batch(NamedTuple):
    """All matrices whose rows are those of one block, filled up with zero rows to `most` rows each.

    Attributes:
        block: the block.
        rows: (matrices, most) the block's row at each place; in a zero row, the number of its rows.
        identity: (matrices, most, most) the identity matrix, 0 in zero rows.
        filled: (n,) the places among (matrices * most) that are no zero rows.
        filled_rows: (n,) the block's row at each of these.
    """

    block: Block
    rows: Tensor
    identity: Tensor
    filled: Tensor
    filled_rows: Tensor


class Orthogonality:
    """gamma * mean over all P and Q of ||P^T P - I||_F and ||Q Q^T - I||_F, with its gradient in closed form.

    All matrices that share a row length are one batched product; those with fewer rows (after pruning) are
    filled up with a zero row.
    """

    def __init__(self, bank: AdapterBank):
        layout = bank.layout
        filled = [rows for rows in layout.matrices if len(rows)]
        self._count = len(filled)
        self._batches: list[_Batch] = []
        first = 0
        for block in layout.blocks:
            inside = [rows - first for rows in filled if first <= rows[0] < first + block.rows]
            first += block.rows
            if not inside:
                continue
            index = np.full((len(inside), max(map(len, inside))), block.rows)
            for row, rows in zip(index, inside, strict=True):
                row[: len(rows)] = rows
            real = torch.from_numpy(index.ravel() < block.rows)
            self._batches.append(
                _Batch(
                    block,
                    rows=upload(index, bank.device),
                    identity=torch.diag_embed(upload(real.view(index.shape).float(), bank.device)),
                    filled=upload(real.nonzero().flatten(), bank.device),
                    filled_rows=upload(index.ravel()[real.numpy()], bank.device),
                )
            )

    @torch.no_grad()
    def add_gradient_(self, bank: AdapterBank, *, weight: float) -> Tensor:
        """Adds the penalty's gradient to the bank's flat gradient; returns the weighted penalty, a scalar."""
        total = torch.zeros((), device=bank.device)
        for block, index, identity, filled, filled_rows in self._batches:
            rows = torch.cat([block.of(bank.master), bank.master.new_zeros(1, block.length)])[index]
            excess = rows @ rows.mT - identity
            norm = excess.flatten(1).norm(dim=1)
            total += norm.sum()
            grad = (2 * weight / self._count) * (excess @ rows) / norm.clamp_min(1e-12)[:, None, None]
            block.of(bank.grad).index_add_(0, filled_rows, grad.flatten(0, 1).index_select(0, filled))
        return total * (weight / self._count)
