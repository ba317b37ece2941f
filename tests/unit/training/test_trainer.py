"""The training loop: what it tells hooks, in which order, and how it ends."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from lingo_ds.data.batches import Batch, attention_mask
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.training.audit import Audit
from lingo_ds.training.callbacks import skip_limit
from lingo_ds.training.fleet import run_alone
from lingo_ds.training.joint_pass import dropout_seed
from lingo_ds.training.losses import cross_entropy_sum
from lingo_ds.training.optimizer_step import OptimizerStep
from lingo_ds.training.trainer import Outcome, StepInfo, Trainer
from lingo_ds.utils.errors import UserError
from tests.unit.training.test_optimizer_step import batch, config_of, hooked, new_bank

LENGTHS = torch.full((8,), 10)
ONE = Batch(
    torch.ones(8, 12).long(),
    attention_mask(LENGTHS, 12),
    LENGTHS,
    torch.arange(8) % 3,
    torch.arange(8),
    torch.ones(8),
)


def new_trainer(logits: Callable[[int], Tensor] | None = None, *, max_skipped: int = 3) -> Trainer:
    """A trainer of five steps over one batch; `logits` takes the number of the forward, from 1."""
    bank = new_bank()
    frozen, asked = hooked(bank), []

    def padded_logits(*_: object) -> Tensor:
        asked.append(len(asked) + 1)
        return frozen(batch(0)[0] * (logits(asked[-1]) if logits else 1.0)) @ bank.compute.head.T

    step = OptimizerStep(bank, config_of(lr_schedule="constant"))
    trainer = Trainer(
        plan=SimpleNamespace(steps=5, warmup_steps=0, schedule=None, learning_rate=0.02, forward_tokens=8),
        model=SimpleNamespace(
            bank=bank,
            backbone=SimpleNamespace(train=lambda: None, require_partitioned=lambda: None),
            padded_logits=padded_logits,
            tenant=SimpleNamespace(dropout=0.0),
        ),
        loss=cross_entropy_sum,
        batches=SimpleNamespace(seed=0, rows_at=lambda step: np.arange(8), at=lambda step: [ONE]),
        optimizer_step=step,
        sampler=None,
        audit=Audit(bank, DistEnv(0, 0, 1, 1, torch.device("cpu")), "raise", interval=2),
        hooks=[skip_limit(step, max_skipped, backbone="b")],
    )
    trainer.bank = bank
    return trainer


def run(trainer: Trainer, first_step: int) -> Outcome:
    """The whole loop, from a step on."""
    return run_alone(trainer.steps(first_step), timeout=60)


def test_the_loop_goes_on_after_a_skipped_step_and_says_so(caplog: pytest.LogCaptureFixture):
    """Step 3 of 5 has a loss that is not a number."""
    states = []
    trainer = new_trainer(lambda forward: math.nan if forward == 3 else 1.0)
    trainer.add_hook(lambda info: states.append((info.stats.skipped, trainer.bank.master.clone())))
    outcome = run(trainer, 1)
    assert (outcome.steps, outcome.skipped, outcome.reason) == (5, 1, "finished")
    assert [skipped for skipped, _ in states] == [False, False, True, False, False]
    moved = [not torch.equal(a, b) for (_, a), (_, b) in pairwise(states)]
    assert moved == [True, False, True, True]
    assert "step 3" in caplog.text


def test_too_many_skipped_steps_in_a_row_end_the_run():
    trainer = new_trainer(lambda forward: math.nan if forward in (2, 4, 5) else 1.0, max_skipped=2)
    steps = []
    trainer.add_hook(lambda info: steps.append(info.step))
    with pytest.raises(UserError, match=r"train.max_skipped: '2': .* in 2 steps in a row, the last one 5"):
        run(trainer, 1)
    assert steps == [1, 2, 3, 4]


def test_a_first_loss_that_is_no_number_is_the_backbones():
    trainer = new_trainer(lambda forward: math.nan)
    with pytest.raises(UserError, match=r"backbone\.path: 'b': gives values that are not finite before"):
        run(trainer, 1)


def test_hooks_are_called_in_order_and_when_they_are_due():
    trainer, called = new_trainer(), []

    def note(name: str) -> Callable[[StepInfo], None]:
        return lambda info: called.append((info.step, name))

    trainer.add_hook(note("first"), before=lambda step: called.append((step, "before")))
    trainer.add_hook(note("second"), due=lambda info: info.step % 2 == 0)
    assert run(trainer, 4).steps == 5
    assert called == [(4, "before"), (4, "first"), (4, "second"), (5, "before"), (5, "first")]


def test_a_hook_reads_what_earlier_ones_found_and_may_end_the_run():
    trainer, found = new_trainer(), []

    def stop(info: StepInfo) -> None:
        info.end = "early stopping"

    trainer.add_hook(stop, due=lambda info: info.step == 2)
    trainer.add_hook(lambda info: found.append(info.end))
    assert run(trainer, 1) == (2, 0, "early stopping")
    assert found == [None, "early stopping"]


def test_a_step_tells_what_it_did():
    trainer, told = new_trainer(), []
    trainer.add_hook(told.append)
    run(trainer, 1)
    assert [info.step for info in told] == [1, 2, 3, 4, 5]
    assert [info.audited for info in told] == [False, True, False, True, True]  # the last step always
    assert {(info.learning_rate, info.micro_batches, info.stats.examples) for info in told} == {(0.02, 1, 8)}
    assert all(0 <= info.input_seconds <= info.seconds for info in told)
    assert {(info.mask_event, info.evaluation, info.traffic, info.end) for info in told} == {(None,) * 4}


def test_dropout_follows_the_seed_and_resumes_exactly():
    def dropped(*place: int) -> torch.Tensor:
        torch.manual_seed(dropout_seed(*place))
        return torch.nn.functional.dropout(torch.ones(64), 0.5)

    first = dropped(0, 7, 0, 0)
    assert torch.equal(first, dropped(0, 7, 0, 0))
    for other in ((1, 7, 0, 0), (0, 8, 0, 0), (0, 7, 1, 0), (0, 7, 0, 1)):
        assert not torch.equal(first, dropped(*other))
