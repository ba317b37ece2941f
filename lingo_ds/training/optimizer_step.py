"""One optimizer step on the flat bank: reduce, check, importance, clip, AdamW.

A handful of kernels for any number of sites.
"""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed import process_group
from lingo_ds.models.adapters.bank import AdapterBank, Scalar
from lingo_ds.models.adapters.orthogonality import Orthogonality
from lingo_ds.planning.plan import RunPlan
from lingo_ds.rank_sampling.importance import update_importance_
from lingo_ds.training.lr_schedule import learning_rate_factor
from lingo_ds.utils.state import Count, State

ALIGNED_ENTRIES = 16
"""Entries of fp32 in the 64 bytes at whose multiples buffers begin."""


class StepStats(NamedTuple):
    """What one optimizer step did.

    Attributes:
        loss: mean loss per example of the global batch, without the penalty.
        penalty: the weighted orthogonality penalty.
        grad_norm: norm of what may move, before clipping; not finite where the step was skipped.
        examples: examples of the global batch.
        real_tokens: its tokens without padding.
        all_tokens: tokens that were computed, padding included.
        shared_tokens: real tokens that needed no computing, since a pack holds its prefix once.
        stop: True where some process was asked to stop.
        skipped: True where the gradient was not finite and nothing was changed.
    """

    loss: float
    penalty: float
    grad_norm: float
    examples: int
    real_tokens: int
    all_tokens: int
    shared_tokens: int
    stop: bool
    skipped: bool


class OptimizerState(State):
    """What an optimizer step remembers beside the bank's moments; see `OptimizerStep` and `LossScale`."""

    steps_taken: Count
    skipped: Count
    skipped_in_a_row: Count
    loss_scale: Annotated[float, Field(ge=1)]
    good_steps: Count


class OptimizerStep:
    """Applies the gradient that the backward passes left in the bank.

    Every process does the same to the same numbers.

    Attributes:
        bank: the bank that it moves.
        steps_taken: steps that changed the bank; skipped ones do not count in AdamW's bias correction.
        skipped: steps whose gradient was not finite.
        skipped_in_a_row: how many of them came last; overflows that fp16's loss scale made do not count.
        loss_scale: factor on the loss in the backward pass.
        rate_factor: factor on the plan's learning rate.
        optimizer: torch's AdamW over the bank's tensors.
    """

    def __init__(self, bank: AdapterBank, config: RunConfig):
        self.bank, self._train, self._sampling = bank, config.train, config.rank_sampling
        self.steps_taken = self.skipped = self.skipped_in_a_row = 0
        self.rate_factor = 1.0
        self.loss_scale = LossScale(enabled=bank.dtype == torch.float16)
        self.rebuild()

    def rebuild(self) -> None:
        """Sets up the optimizer over the bank's tensors; call again once the bank was compacted or loaded."""
        bank, train = self.bank, self._train
        self._parameter = torch.nn.Parameter(bank.master)
        self._parameter.grad = bank.grad
        self.optimizer = torch.optim.AdamW(
            [self._parameter],
            betas=train.adam_betas,
            eps=train.adam_eps,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.optimizer.state[self._parameter] = {
            "step": torch.full((), float(self.steps_taken), device=bank.device),
            "exp_avg": bank.exp_avg,
            "exp_avg_sq": bank.exp_avg_sq,
        }
        self._orthogonality = Orthogonality(bank) if self._sampling.orthogonality else None

    def state_dict(self) -> dict[str, Any]:
        """Counts and loss scale, as plain JSON values; the moments are in the bank."""
        return {
            "steps_taken": self.steps_taken,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "loss_scale": self.loss_scale.value,
            "good_steps": self.loss_scale.good_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, once the bank is loaded.

        Raises:
            ValueError: for anything else.
        """
        found = OptimizerState.checked(state)
        self.loss_scale.load(found.loss_scale, found.good_steps)
        self.steps_taken, self.skipped = found.steps_taken, found.skipped
        self.skipped_in_a_row = found.skipped_in_a_row
        self.rebuild()

    def learning_rate_at(self, step: int, plan: RunPlan) -> float:
        """The learning rate at a step (1-based) of a plan."""
        factor = learning_rate_factor(
            step, steps=plan.steps, warmup_steps=plan.warmup_steps, decay=self._train.lr_schedule
        )
        return plan.learning_rate * self.rate_factor * factor

    def step(self, *, learning_rate: float) -> StepStats:
        """Reduces the gradient over all processes and moves the bank; nothing moves if it is not finite."""
        (sums,) = reduce_gradients([self])
        return self.move(sums, learning_rate=learning_rate)

    @torch.no_grad()
    def measure(self) -> list[Tensor]:
        """Makes the reduced gradient what moves the bank, and measures it.

        Returns:
            Flat fp32 tensors on the bank's device: norm of what may move, norm of lam's gradient, the
            weighted penalty, and the step's sums in `Scalar`'s order.
        """
        bank = self.bank
        if self.loss_scale.value != 1:
            bank.grad.div_(self.loss_scale.value)
        penalty = (
            self._orthogonality.add_gradient_(bank, weight=self._sampling.orthogonality)
            if self._orthogonality
            else bank.grad.new_zeros(())
        )
        self._virtual = bank.zero_masked_grad()
        norms = (bank.grad.norm(), self._virtual.norm(), penalty)
        return [*(one.unsqueeze(0) for one in norms), bank.scalars]

    @torch.no_grad()
    def move(self, measured: Sequence[float], *, learning_rate: float) -> StepStats:
        """Moves the bank, unless its gradient is not finite.

        Args:
            measured: the numbers that `measure` gave.
            learning_rate: of this step.
        """
        bank = self.bank
        grad_norm, virtual_norm, penalty, *sums = measured
        finite = math.isfinite(grad_norm + virtual_norm)
        self.loss_scale.follow(finite)
        self._count_skipped(finite)
        if not finite:
            return _stats(sums, penalty, grad_norm=math.nan, skipped=True)
        self._update_importance(self._virtual)
        if self._train.max_grad_norm is not None and grad_norm > self._train.max_grad_norm:
            bank.grad.mul_(self._train.max_grad_norm / grad_norm)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        with bank.frozen_masked():
            self.optimizer.step()
        bank.refresh()
        self.steps_taken += 1
        return _stats(sums, penalty, grad_norm=grad_norm, skipped=False)

    def _count_skipped(self, finite: bool) -> None:
        if finite:
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += self.loss_scale.value <= 1

    def _update_importance(self, lam_grad: Tensor) -> None:
        """Updates importance, where the bank keeps it: lam's from the gradient of the product m * lam."""
        bank, sampling, layout = self.bank, self._sampling, self.bank.layout
        if bank.sensitivity is None or bank.uncertainty is None or bank.scratch is None:
            return
        own = slice(layout.adapter_size)
        product = torch.mul(bank.master[own], bank.grad[own], out=bank.scratch)
        torch.mul(layout.lam(bank.master), lam_grad, out=layout.lam(product))
        update_importance_(
            bank.sensitivity,
            bank.uncertainty,
            product,
            beta1=sampling.beta1,
            beta2=sampling.beta2,
            moving=bank.moving_rows,
            parts=bank.row_views,
        )


def reduce_gradients(steps: Sequence[OptimizerStep]) -> list[list[float]]:
    """Sums the gradients of one or more runs over all processes, and measures each.

    A GPU is waited for once, when all gradients are whole: norms and sums are read together.

    Returns:
        What `OptimizerStep.measure` gives of each.
    """
    for buffer in _whole_buffers([step.bank.reduce_buffer for step in steps]):
        process_group.all_reduce_(buffer, what="bank")
    measured = [step.measure() for step in steps]
    sizes = [sum(map(len, parts)) for parts in measured]
    read = iter(torch.cat([part for parts in measured for part in parts]).tolist())
    return [list(islice(read, size)) for size in sizes]


def share_buffer(steps: Sequence[OptimizerStep]) -> bool:
    """Lets several runs sum their gradients in one buffer, so that one collective reduces them all.

    Returns:
        True where gradients were moved: the maps must be adapted anew. False: they shared one already.
    """
    banks = [step.bank for step in steps]
    if len(_whole_buffers([bank.reduce_buffer for bank in banks])) == 1:
        return False
    sizes = [len(bank.reduce_buffer) for bank in banks]
    room = torch.zeros(sum(map(_aligned, sizes)), device=banks[0].device)
    for step, size, part in zip(steps, sizes, room.split([*map(_aligned, sizes)]), strict=True):
        step.bank.move_gradient(part[:size])
        step.rebuild()
    return True


def _aligned(entries: int) -> int:
    """Entries with room behind them, so that the next begin where a buffer of their own would.

    Products on a CPU differ in the last bit with the place of their operands.
    """
    return -(-entries // ALIGNED_ENTRIES) * ALIGNED_ENTRIES


def _whole_buffers(buffers: Sequence[Tensor]) -> list[Tensor]:
    """The buffers, those that fill one storage together as one."""
    by_storage: dict[int, list[Tensor]] = {}
    for buffer in buffers:
        by_storage.setdefault(buffer.untyped_storage().data_ptr(), []).append(buffer)
    whole = []
    for parts in by_storage.values():
        storage = parts[0].untyped_storage()
        filled = sum(_aligned(len(part)) * part.itemsize for part in parts) == storage.nbytes()
        entries = storage.nbytes() // parts[0].itemsize
        whole += [parts[0].as_strided((entries,), (1,), 0)] if filled else parts
    return whole


def _stats(sums: Sequence[float], penalty: float, *, grad_norm: float, skipped: bool) -> StepStats:
    """The statistics of a step, from its sums in `Scalar`'s order."""
    return StepStats(
        loss=sums[Scalar.LOSS] / max(sums[Scalar.EXAMPLES], 1.0),
        penalty=penalty,
        grad_norm=grad_norm,
        examples=round(sums[Scalar.EXAMPLES]),
        real_tokens=round(sums[Scalar.REAL_TOKENS]),
        all_tokens=round(sums[Scalar.ALL_TOKENS]),
        shared_tokens=round(sums[Scalar.SHARED_TOKENS]),
        stop=sums[Scalar.STOP_REQUESTS] > 0,
        skipped=skipped,
    )


class LossScale:
    """Dynamic loss scale for fp16, else 1: halved after an overflow, doubled after 1,000 good steps."""

    def __init__(self, *, enabled: bool):
        self._enabled = enabled
        self.good_steps = 0
        self.value = 2.0**15 if enabled else 1.0

    def load(self, value: float, good_steps: int) -> None:
        """Continues from a saved value.

        Raises:
            ValueError: where it is of a run in another precision.
        """
        if not self._enabled and (value, good_steps) != (1.0, 0):
            raise ValueError("loss_scale: is of a run in fp16, which this one is not")
        self.value, self.good_steps = value, good_steps

    def follow(self, finite: bool) -> None:
        """Adapts the scale to one step's gradient."""
        if not self._enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self.good_steps % 1000 == 0:
            self.value *= 2
