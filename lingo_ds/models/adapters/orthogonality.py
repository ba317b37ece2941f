"""The penalty that keeps P and Q near orthogonal (arXiv 2303.10512)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Block
from lingo_ds.utils.transfer import upload


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
