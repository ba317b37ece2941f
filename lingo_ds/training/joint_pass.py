"""The gradient of one step of one or more runs, in passes that hold forwards of all of them.

The backbone is frozen, so that its products and gathers serve every run of a pass; each run's adapters act on
its own tokens, and its loss, its clip and its optimizer know of no other.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.batches import Batch, Forward
from lingo_ds.data.packing import Pack
from lingo_ds.distributed import watchdog
from lingo_ds.models.adapted_model import AdaptedModel, joint_packed_logits, joint_padded_logits
from lingo_ds.models.adapters.bank import Scalar
from lingo_ds.training.losses import Loss
from lingo_ds.training.optimizer_step import OptimizerStep, reduce_gradients, share_buffer
from lingo_ds.utils.transfer import to_device


class Work(NamedTuple):
    """What a run needs before it can go on: the gradient of one step.

    Attributes:
        model: the run's model.
        forwards: this process's forwards of the step.
        examples: examples of the step on all processes.
        loss: the task's loss.
        optimizer_step: moves the run's bank.
        tokens: of a forward at most, on any process.
        seed: of what the adapters drop, with the step and the process: (seed, step, global rank).
    """

    model: AdaptedModel
    forwards: Sequence[Forward]
    examples: int
    loss: Loss
    optimizer_step: OptimizerStep
    tokens: int
    seed: tuple[int, int, int]


class Member(NamedTuple):
    """One forward of a run in a pass: its place among those of the step."""

    work: Work
    place: int

    @property
    def forward(self) -> Forward:
        """The examples."""
        return self.work.forwards[self.place]


def compute_step(
    works: Sequence[Work], *, budget: int | None = None, stop: bool = False
) -> list[list[float]]:
    """Computes and reduces the gradients of one step of every run; call on all processes.

    Args:
        works: the runs, in the same order on every process.
        budget: most tokens of a pass of several forwards; None: as many as there are.
        stop: whether this process was asked to stop.

    Returns:
        What `OptimizerStep.measure` gives of each run.
    """
    steps = [work.optimizer_step for work in works]
    if share_buffer(steps):
        works[0].model.follow_bank()
    compute_gradients(works, budget=budget)
    if stop:
        for work in works:
            work.model.bank.scalars[Scalar.STOP_REQUESTS].add_(1)
    return reduce_gradients(steps)


def compute_gradients(works: Sequence[Work], *, budget: int | None) -> None:
    """Leaves this process's share of the gradient of every run's global batch in the run's bank."""
    backbone = works[0].model.backbone
    backbone.train()
    for work in works:
        work.model.bank.zero_grad(_counts(work.forwards))
    for members in passes(works, budget):
        _add_gradients(members)
        watchdog.beat()
    for work in works:
        work.model.bank.finish_grad()
    backbone.require_partitioned()


def passes(works: Sequence[Work], budget: int | None) -> Iterator[list[Member]]:
    """The forwards of all runs as passes, the same on every process: each holds one of a run at most.

    What the adapters of padded examples drop follows their width, so that those have a pass to themselves.
    """
    for place in range(max(len(work.forwards) for work in works)):
        members: list[Member] = []
        tokens = 0
        for work in works:
            if place >= len(work.forwards):
                continue
            one = Member(work, place)
            if isinstance(one.forward, Batch) and work.model.tenant.dropout:
                yield [one]
                continue
            if members and budget is not None and tokens + work.tokens > budget:
                yield members
                members, tokens = [], 0
            members.append(one)
            tokens += work.tokens
        if members:
            yield members


def dropout_seed(seed: int, step: int, global_rank: int, place: int) -> int:
    """The seed of what one forward's adapters drop, from what a resumed run knows, too."""
    return int(np.random.SeedSequence([seed, step, global_rank, place]).generate_state(1, np.uint64)[0])


def _counts(forwards: Sequence[Forward]) -> dict[Scalar, float]:
    """What is known of a step's sums before it is computed."""
    return {
        Scalar.EXAMPLES: sum(float(one.weights.sum()) for one in forwards),
        Scalar.REAL_TOKENS: sum(one.real_tokens for one in forwards),
        Scalar.ALL_TOKENS: sum(one.computed_tokens for one in forwards),
        Scalar.SHARED_TOKENS: sum(one.shared_tokens for one in forwards),
    }


def _add_gradients(members: Sequence[Member]) -> None:
    """Adds to every run's gradient the share of its mean loss that one pass gives."""
    for work, place in members:
        if work.model.tenant.dropout:
            work.model.tenant.dropout_seed = dropout_seed(*work.seed, place)
    device = members[0].work.model.bank.device
    forwards = [to_device(one.forward, device) for one in members]
    works = [one.work for one in members]
    logits = _logits([work.model for work in works], forwards)
    each = list(zip(works, forwards, logits, strict=True))
    losses = [work.loss(own, one.labels, one.weights) for work, one, own in each]
    factors = [work.optimizer_step.loss_scale.value / work.examples for work in works]
    scales = [torch.full_like(loss, factor) for loss, factor in zip(losses, factors, strict=True)]
    torch.autograd.backward(losses, scales)
    for work, loss in zip(works, losses, strict=True):
        work.model.bank.collect_grad()
        work.model.bank.scalars[Scalar.LOSS].add_(loss.detach())


def _logits(models: Sequence[AdaptedModel], forwards: Sequence[Forward]) -> list[Tensor]:
    """(n, outputs) logits of each run's forward, all computed in one pass."""
    if len(forwards) == 1:
        return [forwards[0].logits(models[0])]
    packs = [one for one in forwards if isinstance(one, Pack)]
    if packs:
        assert len(packs) == len(forwards), "a backbone takes packs or padded batches"
        return joint_packed_logits(
            models, [pack.input_for(own) for own, pack in zip(models, packs, strict=True)]
        )
    batches = [one for one in forwards if isinstance(one, Batch)]
    return joint_padded_logits(models, [(one.input_ids, one.attention_mask, one.lengths) for one in batches])
