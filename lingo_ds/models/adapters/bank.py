"""AdapterBank: everything that learns, in a few flat tensors that are the same on every process.

fp32 masters, moments and importance; a compute copy in the backbone's dtype; one flat gradient, to which the
backward pass adds where the all-reduce reads it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from lingo_ds.models.adapters.compute_copy import TENSOR_CORE_ROWS, ComputeCopy
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.utils.transfer import on_host, upload

INIT_STD = 0.02
"""Standard deviation of AdaLoRA's new P and Q."""


def triplet_scores(lam_score: Tensor, p_mean: Tensor, q_mean: Tensor) -> Tensor:
    """Score of each triplet: s(lam) + mean_j s(P_ji) + mean_j s(Q_ij), s = S U; all of shape (triplets,)."""
    return torch.add(lam_score, p_mean).add_(q_mean)


class Scalar(IntEnum):
    """Places in `AdapterBank.scalars` of a step's sums over examples and processes."""

    LOSS = 0
    EXAMPLES = 1
    REAL_TOKENS = 2
    ALL_TOKENS = 3
    SHARED_TOKENS = 4
    STOP_REQUESTS = 5


class AdapterBank:
    """All adapters, the head, and learned tokens.

    Attributes:
        layout: places of adapters, head and tokens in a flat tensor.
        scale: alpha / r0, which pruning does not change.
        master: (size,) fp32, the values.
        exp_avg, exp_avg_sq: (size,) fp32, AdamW's moments.
        sensitivity, uncertainty: (adapter_size,) fp32, S and U; None without sampling or with final masks.
        scratch: (adapter_size,) fp32, room for what one step computes of importance; None without it.
        mask: (triplets,) bool; False entries are held, and out of the forward pass.
        moving_rows: per row view 1 where importance averages move, (rows, 1); masked P and Q are held.
        compute: the values as passes use them.
        grad: (size,) fp32, view of `reduce_buffer`.
        scalars: (n,) fp32, view of `reduce_buffer`: the step's sums that ride along in the all-reduce.
        reduce_buffer: (size + n,) fp32, what the one collective of a step sums.
    """

    STATE = ("master", "exp_avg", "exp_avg_sq", "sensitivity", "uncertainty", "mask")
    """Names of the tensors that must agree between processes and that a checkpoint holds."""

    def __init__(
        self,
        layout: BankLayout,
        *,
        scale: float,
        dtype: torch.dtype,
        device: torch.device,
        scalars: int,
        importance: bool,
    ):
        self.layout, self.scale, self.dtype, self.device = layout, scale, dtype, device
        self.master = torch.zeros(layout.size, device=device)
        self.exp_avg = torch.zeros_like(self.master)
        self.exp_avg_sq = torch.zeros_like(self.master)
        self._allocate(scalars, importance=importance)

    def initialize(self, seed: int, *, init: str = "lora", tokens: Tensor | None = None) -> None:
        """Draws new values from `seed` alone; adapters change nothing yet. One process draws for all.

        The head starts at 0: pooled states differ in size by a factor of nine between language models, and a
        head that is drawn would answer loudly on some of them before anything is learned.

        Args:
            seed: seed of all draws.
            init: `lora`: P = 0, lam = 1, Q uniform within 1 / sqrt(d_in), as LoRA's code does (Kaiming with
                a = sqrt 5); `adalora`: lam = 0, P and Q ~ N(0, 0.02^2), as AdaLoRA's (arXiv 2303.10512).
            tokens: (tokens, size) that learned tokens start from; all else starts as it does without them.
        """
        generator, layout = torch.Generator().manual_seed(seed), self.layout
        drawn = torch.randn(layout.size - layout.token_size, generator=generator) * INIT_STD
        values = torch.cat([drawn, drawn.new_zeros(0) if tokens is None else tokens.flatten()])
        layout.lam(values).fill_(init == "lora")
        layout.head(values).zero_()
        if init == "lora":
            for k, site in enumerate(layout.sites):
                views = layout.site(values, k)
                views.p.zero_()
                views.q.uniform_(-1, 1, generator=generator).div_(site.d_in**0.5)
        self.master.copy_(values)
        self.refresh()

    def _allocate(self, scalars: int, *, importance: bool) -> None:
        """Allocates what belongs to new values: importance and masks as at the start, buffers, leaves."""
        layout = self.layout
        self.sensitivity = torch.zeros(layout.adapter_size, device=self.device) if importance else None
        self.uncertainty = torch.zeros(layout.adapter_size, device=self.device) if importance else None
        self.scratch = torch.zeros(layout.adapter_size, device=self.device) if importance else None
        self.mask = torch.ones(layout.triplets, dtype=torch.bool, device=self.device)
        self._reduce_in(torch.zeros(layout.size + scalars, device=self.device))
        self._follow_mask(None)
        self._p_rows, self._q_rows = (upload(rows, self.device) for rows in layout.rows_of_triplets)

    def _reduce_in(self, buffer: Tensor) -> None:
        """Makes a flat buffer of 0 the one in which gradients are summed."""
        layout = self.layout
        self.reduce_buffer = buffer
        self.grad, self.scalars = buffer[: layout.size], buffer[layout.size :]
        on_tensor_cores = self.device.type == "cuda" and self.dtype != torch.float32
        self.compute = ComputeCopy(
            layout,
            self.grad,
            scale=self.scale,
            dtype=self.dtype,
            multiple=TENSOR_CORE_ROWS if on_tensor_cores else 1,
        )

    def move_gradient(self, buffer: Tensor) -> None:
        """Sums gradients in another flat buffer of 0 from now on, as large as `reduce_buffer`.

        Whoever refers to the gradient or to `compute` must look again, as after a compaction.
        """
        self._reduce_in(buffer)
        self.refresh()

    def state(self) -> dict[str, Tensor]:
        """The tensors of `STATE` that this bank has, by name."""
        return {name: value for name in self.STATE if (value := getattr(self, name)) is not None}

    def zero_grad(self, known: Mapping[Scalar, float] | None = None) -> None:
        """Clears gradient and scalars for a new step; some of its sums may be known already."""
        self.reduce_buffer.zero_()
        if known:
            sums = torch.tensor([known.get(which, 0.0) for which in Scalar])
            self.scalars.copy_(on_host(sums, self.device), non_blocking=True)

    def collect_grad(self) -> None:
        """Adds the gradients of a backward pass to the fp32 sum, so that many micro-batches lose nothing."""
        self.compute.collect_grad()

    def finish_grad(self) -> None:
        """Makes the sum of all passes since `zero_grad` the gradient of the masters."""
        self.compute.finish_grad(self.master)

    def refresh(self) -> None:
        """Copies the masters to the compute copy, with m * lam in place of lam."""
        self.compute.refresh(self.master, self.mask)

    def set_mask(self, kept: np.ndarray) -> None:
        """Masks all triplets but the kept ones, (triplets,) of bool. Values and moments stay as they are."""
        self.mask.copy_(upload(kept, self.device))
        gone = [np.flatnonzero(~kept[block.triplet_of_row]) for block in self.layout.blocks]
        rows = [upload(part, self.device) for part in (*gone, np.flatnonzero(~kept))]
        self._follow_mask(None if kept.all() else rows)
        self.refresh()

    def _follow_mask(self, masked_rows: list[Tensor] | None) -> None:
        """Notes which rows are masked, per row view, and makes room to hold their values and moments."""
        self._masked_rows = masked_rows
        self.moving_rows = [view.new_ones(view.shape[0], 1) for view in self.row_views(self.master)]
        self._held = []
        if masked_rows is None:
            return
        for moving, gone in zip(self.moving_rows[:-1], masked_rows[:-1], strict=True):
            moving[gone] = 0
        for flat in (self.master, self.exp_avg, self.exp_avg_sq):
            for view, gone in zip(self.row_views(flat), masked_rows, strict=True):
                self._held.append((view, gone, view.new_empty(len(gone), view.shape[1])))

    def masks_from_tensor(self) -> None:
        """Renews what follows from `mask` and `master`, after these were written from outside."""
        self.set_mask(self.mask.cpu().numpy())

    @torch.no_grad()
    def zero_lam(self, kept: np.ndarray) -> None:
        """Sets lam to 0 outside the kept triplets and leaves them free to grow again."""
        self.layout.lam(self.master).mul_(upload(kept, self.device))
        self.refresh()

    def row_views(self, flat: Tensor) -> list[Tensor]:
        """The blocks of a flat tensor, then lam as a column: views (rows, length) that cover all adapters."""
        return [*(block.of(flat) for block in self.layout.blocks), self.layout.lam(flat)[:, None]]

    def zero_masked_grad(self) -> Tensor:
        """Clears masked triplets' gradient, which counts in no norm; returns lam's as it was, (triplets,)."""
        virtual = self.layout.lam(self.grad)
        if self._masked_rows:
            virtual = virtual.clone()
            for view, gone in zip(self.row_views(self.grad), self._masked_rows, strict=True):
                view.index_fill_(0, gone, 0)
        return virtual

    @contextmanager
    def frozen_masked(self) -> Iterator[None]:
        """Keeps values and moments of masked triplets as they are through the optimizer's step inside."""
        for view, gone, room in self._held:
            torch.index_select(view, 0, gone, out=room)
        yield
        for view, gone, room in self._held:
            view.index_copy_(0, gone, room)

    def scores(self) -> Tensor:
        """Importance of every triplet, (triplets,): arXiv 2303.10512, eq. 7."""
        assert self.sensitivity is not None and self.uncertainty is not None, (
            "importance is no longer averaged"
        )
        score = torch.mul(self.sensitivity, self.uncertainty, out=self.scratch)
        means = torch.cat([block.of(score).mean(1) for block in self.layout.blocks])
        return triplet_scores(self.layout.lam(score), means[self._p_rows], means[self._q_rows])

    def kept_values(self) -> tuple[BankLayout, Tensor]:
        """Layout and values that the forward pass uses now: the adapter as evaluated, saved and exported."""
        kept = self.mask.cpu().numpy()
        (values,) = self.layout.take(kept, self.master)
        return self.layout.keep(kept), values

    def compact(self, kept: np.ndarray) -> None:
        """Stores the kept triplets alone, with their moments. The masks are final: importance is dropped."""
        layout = self.layout
        self.replace(layout.keep(kept), *layout.take(kept, self.master, self.exp_avg, self.exp_avg_sq))

    def replace(
        self,
        layout: BankLayout,
        master: Tensor,
        exp_avg: Tensor | None = None,
        exp_avg_sq: Tensor | None = None,
        *,
        importance: bool = False,
    ) -> None:
        """Replaces the bank's tensors, all triplets kept; importance, if wanted, starts at 0."""
        self.layout, self.master = layout, master
        self.exp_avg = torch.zeros_like(master) if exp_avg is None else exp_avg
        self.exp_avg_sq = torch.zeros_like(master) if exp_avg_sq is None else exp_avg_sq
        self._allocate(len(self.scalars), importance=importance)
        self.refresh()

    def reshape(self, ranks: Sequence[int], *, importance: bool) -> bool:
        """Makes room for another process's or a checkpoint's tensors; True where its own were replaced."""
        if tuple(ranks) == self.layout.ranks and importance == (self.sensitivity is not None):
            return False
        layout = self.layout.with_ranks(ranks)
        self.replace(layout, torch.zeros(layout.size, device=self.device), importance=importance)
        return True
