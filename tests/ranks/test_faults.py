"""Real training on two processes, one of which goes wrong: the audit finds it, names it and undoes it.

The oracle is the same run without a fault: what is undone before the next step leaves no trace in it.
"""

import hashlib
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.rank_sampling.sampler import MaskEvent
from lingo_ds.training.audit import DivergenceError
from lingo_ds.training.build_model import build_model
from lingo_ds.training.fleet import run_alone
from lingo_ds.training.selection import Best
from lingo_ds.training.session import Session
from lingo_ds.training.setup import prepare
from lingo_ds.training.trainer import Trainer
from tests.ranks.spawn import run_ranks
from tests.ranks.test_agreement import Collectives, flip, logged

STEPS, INTERVAL, FINAL = 16, 3, 12
"""Masks change after steps 3, 6 and 9, and for the last time after step 12."""

RARELY = 5
"""`audit_interval` of the runs in which a fault acts for some steps: audits after 0, 5, 10, 12, 15 and 16."""

# Faults

broadcast = process_group.broadcast_


class Fault(NamedTuple):
    """What goes wrong on one process.

    Attributes:
        step: after which; 0: at the start.
        act: changes the session before the step's audit, if there is one.
        around: a context for what the processes agree on then: the start values, or the step's masks.
        process: on which.
    """

    step: int
    act: Callable[[Session], None] | None = None
    around: Callable[[Session | None], AbstractContextManager] | None = None
    process: int = 1


def flipped(step: int, part: str, entry: int, bit: int = 0, *, process: int = 1) -> Fault:
    """One bit of the bank."""
    return Fault(step, lambda session: flip(getattr(session.model.bank, part), entry, bit), process=process)


def changed(step: int, *names: str, by: float) -> Fault:
    """Changes numbers outside the bank; a name is the way to one from the session."""

    def act(session: Session) -> None:
        for name in names:
            *way, last = name.split(".")
            owner = reduce(getattr, way, session)
            setattr(owner, last, getattr(owner, last) + by)

    return Fault(step, act)


def forgotten(step: int) -> Fault:
    """What the sampler remembers of its last mask."""

    def act(session: Session) -> None:
        session.sampler.kept[0] ^= True

    return Fault(step, act)


def miscounted(step: int) -> Fault:
    """AdamW's own count of steps, for its bias correction."""

    def act(session: Session) -> None:
        for state in session.optimizer_step.optimizer.state.values():
            state["step"] += 3

    return Fault(step, act)


def arriving(step: int, damaged: Callable[[torch.Tensor, Session | None], torch.Tensor]) -> Fault:
    """A broadcast whose tensor arrives damaged; `damaged` takes part in it."""
    return Fault(
        step,
        around=lambda session: mock.patch.object(
            process_group, "broadcast_", lambda tensor, **_: damaged(tensor, session)
        ),
    )


def missed(step: int) -> Fault:
    """A broadcast that leaves what the process holds as it was."""

    def keep_own(tensor: torch.Tensor, _: Session | None) -> torch.Tensor:
        broadcast(tensor.clone())
        return tensor

    return arriving(step, keep_own)


def inverted(step: int) -> Fault:
    """Masks that keep what should go."""
    return arriving(step, lambda tensor, _: ~broadcast(tensor))


def exchanged(step: int) -> Fault:
    """Masks in which a kept and a pruned triplet of one site have changed places."""

    def exchange(tensor: torch.Tensor, session: Session | None) -> torch.Tensor:
        kept = np.unpackbits(broadcast(tensor).numpy())
        first = session.model.bank.layout.first_triplet
        sites = [kept[start:end] for start, end in pairwise(first)]
        site = next(site for site in sites if 0 < site.sum() < len(site))
        site[[site.argmax(), site.argmin()]] = 0, 1
        return torch.from_numpy(np.packbits(kept))

    return arriving(step, exchange)


def not_compacted(*, process: int) -> Fault:
    """A final mask that is agreed on and then not applied."""
    return Fault(
        FINAL,
        around=lambda session: mock.patch.object(session.model.bank, "compact", lambda kept: None),
        process=process,
    )


class Case(NamedTuple):
    """Faults, and what the audits say: by the step of the audit the parts that differ."""

    faults: list[Fault]
    found: dict[int, str]
    audit_interval: int = 1


SEEDS = ("batches.seed", "sampler.seed")
VALUES = "master, exp_avg, exp_avg_sq"

UNDONE = {
    "master": Case([flipped(7, "master", 40)], {7: "master"}),
    "master, sign": Case([flipped(13, "master", -1, 31)], {13: "master"}),
    "master, exponent": Case([flipped(4, "master", 500, 30)], {4: "master"}),
    "exp_avg": Case([flipped(1, "exp_avg", 1000, 12)], {1: "exp_avg"}),
    "exp_avg_sq": Case([flipped(STEPS, "exp_avg_sq", 9, 30)], {STEPS: "exp_avg_sq"}),
    "sensitivity": Case([flipped(5, "sensitivity", 77, 23)], {5: "sensitivity"}),
    "uncertainty": Case([flipped(8, "uncertainty", -1, 29)], {8: "uncertainty"}),
    "mask": Case([flipped(7, "mask", 5)], {7: "mask"}),
    "seed of batches and dropout": Case([changed(4, SEEDS[0], by=1)], {4: "seed"}),
    "seed of masks": Case([changed(8, SEEDS[1], by=1)], {8: "seed"}),
    "all seeds": Case([changed(10, *SEEDS, by=2**40)], {10: "seed"}),
    "steps taken": Case([changed(6, "optimizer_step.steps_taken", by=-2)], {6: "optimizer"}),
    "loss scale": Case([changed(6, "optimizer_step.loss_scale.value", by=1.0)], {6: "optimizer"}),
    "AdamW's steps": Case([miscounted(4)], {5: "master"}),  # no state of ours: found by what it does
    "skipped steps": Case([changed(6, "optimizer_step.skipped", by=1)], {6: "optimizer"}),
    "best on dev": Case([changed(6, "best.stale", by=1)], {6: "selection"}),
    "kept triplets": Case([forgotten(7)], {7: "kept triplets"}),
    "start values missed": Case([missed(0)], {0: "master"}),
    "mask missed": Case([missed(6)], {6: "mask, kept triplets"}),
    "mask inverted": Case([inverted(9)], {9: "mask, kept triplets"}),
    "final mask missed": Case([missed(FINAL)], {FINAL: f"{VALUES}, mask, ranks, kept triplets"}),
    "final mask inverted": Case([inverted(FINAL)], {FINAL: f"{VALUES}, ranks, kept triplets"}),
    "final mask of the same ranks": Case([exchanged(FINAL)], {FINAL: f"{VALUES}, kept triplets"}),
    "final mask not applied": Case(
        [not_compacted(process=1)], {FINAL: f"{VALUES}, sensitivity, uncertainty, mask, ranks"}
    ),
    "audited rarely: start values and final mask missed": Case(
        [missed(0), missed(FINAL)],
        {0: "master", FINAL: f"{VALUES}, mask, ranks, kept triplets"},
        RARELY,
    ),
    "one after the other": Case(
        [missed(0), flipped(2, "master", 0), changed(2, SEEDS[0], by=1), missed(9), missed(FINAL)],
        {
            0: "master",
            2: "master, seed",
            9: "mask, kept triplets",
            FINAL: f"{VALUES}, mask, ranks, kept triplets",
        },
    ),
}
"""On process 1, and undone before it acts on what both hold."""

ACTING = {
    "master": Case([flipped(6, "master", 40, 24)], {10: f"{VALUES}, sensitivity, uncertainty"}, RARELY),
    # the head has no importance; its huge entry makes step 10 one that is skipped
    "master of the head": Case([flipped(6, "master", -1, 24)], {10: "master"}, RARELY),
    "master, exponent": Case([flipped(8, "master", -1, 30)], {10: "master"}, RARELY),
    "seed of batches and dropout": Case([changed(7, SEEDS[0], by=1)], {10: "seed"}, RARELY),
    "mask missed": Case([missed(6)], {10: f"{VALUES}, sensitivity, uncertainty, kept triplets"}, RARELY),
    "the first's master": Case([flipped(7, "master", -1, 23, process=0)], {7: "master"}),
    "the first's final mask not applied": Case(
        [not_compacted(process=0)], {FINAL: f"{VALUES}, sensitivity, uncertainty, mask, ranks"}
    ),
}
"""What process 0 holds is changed, by its own fault or through the gradient of process 1."""

ENDED = {name: UNDONE[name] for name in ("mask", "all seeds", "start values missed", "final mask missed")}
"""With `on_divergence: raise`."""


# What the processes do


class Seen(NamedTuple):
    """One process's run.

    Attributes:
        found: steps whose audit found something.
        said: warnings of the audits.
        counts: audits, divergences, repairs.
        sent: by step, the collectives of its audit.
        states: by step, a digest of all that its audit left for the next step.
        masks: by step, 1 for each triplet in use, 0 for each other one that is stored.
        bank: the final tensors, to the bit.
        ranks: the final ones.
        events: changes of the masks.
        best: the chosen evaluation.
        skipped: steps whose gradient was not finite.
        error: what ended the run.
    """

    found: list[int]
    said: list[str]
    counts: tuple[int, int, int]
    sent: dict[int, list[tuple[str, int]]]
    states: dict[int, str]
    masks: dict[int, str]
    bank: dict[str, bytes]
    ranks: tuple[int, ...]
    events: list[MaskEvent]
    best: Best
    skipped: int
    error: str | None


class FaultySampler:
    """The session's sampler, with faults in what it agrees on and after it."""

    def __init__(self, session: Session, faults: list[Fault]):
        self._session, self._faults = session, faults

    def after_step(self, step: int) -> MaskEvent | None:
        with around(self._faults, step, self._session):
            event = self._session.sampler.after_step(step)
        for fault in self._faults:
            if fault.step == step and fault.act:
                fault.act(self._session)
        return event


class WatchedAudit:
    """The session's audit; notes what it finds, sends and leaves."""

    def __init__(self, session: Session):
        self._session, self._audit = session, session.audit
        self.env, self.interval = session.audit.env, session.audit.interval
        self.found: list[int] = []
        self.sent: dict[int, list[tuple[str, int]]] = {}
        self.states: dict[int, str] = {}
        self.masks: dict[int, str] = {}

    def __call__(self, step: int) -> None:
        self._watched(self._audit, step)

    def check(self, step: int) -> None:
        self._watched(self._audit.check, step)

    def _watched(self, audit: Callable[[int], bool], step: int) -> None:
        with Collectives() as collectives:
            if audit(step):
                self.found.append(step)
        self.sent[step], self.states[step] = collectives.made, digest(self._session)
        self.masks[step] = "".join("01"[int(value)] for value in self._audit.bank.mask)


def around(faults: list[Fault], step: int, session: Session | None) -> ExitStack:
    """The contexts of a step's faults."""
    stack = ExitStack()
    for fault in faults:
        if fault.step == step and fault.around:
            stack.enter_context(fault.around(session))
    return stack


def run_with(faults: list[Fault], config: RunConfig, env: DistEnv) -> Seen:
    """One training run in which this process's share of `faults` happens."""
    mine, error = [fault for fault in faults if fault.process == env.global_rank], None
    setup = prepare(config, env)
    with around(mine, 0, None):
        model = build_model(setup)
    session = Session(setup, model)
    audit = WatchedAudit(session)
    trainer = Trainer(
        plan=setup.plan,
        model=model,
        batches=session.batches,
        loss=session.loss,
        optimizer_step=session.optimizer_step,
        sampler=FaultySampler(session, mine),
        audit=audit,
        hooks=session.trainer.hooks,
    )
    with logged() as said, closing(session.batches):
        try:
            run_alone(trainer.steps(1), timeout=900)
        except DivergenceError as divergence:
            error = str(divergence)
    return Seen(
        found=audit.found,
        said=said,
        counts=(session.audit.audits, session.audit.divergences, session.audit.repairs),
        sent=audit.sent,
        states=audit.states,
        masks=audit.masks,
        bank={name: tensor.numpy().tobytes() for name, tensor in model.bank.state().items()},
        ranks=model.bank.layout.ranks,
        events=session.sampler.events,
        best=session.best,
        skipped=session.optimizer_step.skipped,
        error=error,
    )


def digest(session: Session) -> str:
    """A digest of everything that the next step starts from."""
    bank, update = session.model.bank, session.optimizer_step
    seeds = [reduce(getattr, name.split("."), session) for name in SEEDS]
    total = hashlib.sha256(repr([seeds, update.state_dict(), session.sampler.kept.tolist()]).encode())
    steps = [state["step"] for state in update.optimizer.state.values()]
    for tensor in (*bank.state().values(), bank.compute.values, *bank.moving_rows, *steps):
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def all_runs(rank: int, world_size: int, settings: dict[str, Any]) -> dict[str, dict[str, Seen]]:
    env = DistEnv(rank, rank, world_size, world_size, torch.device("cpu"))

    def seen_of(case: Case, **sampling: Any) -> Seen:
        sampling = {**settings["rank_sampling"], "audit_interval": case.audit_interval, **sampling}
        return run_with(case.faults, RunConfig.model_validate({**settings, "rank_sampling": sampling}), env)

    return {
        "none": {"often": seen_of(Case([], {})), "rarely": seen_of(Case([], {}, RARELY))},
        "undone": {name: seen_of(case) for name, case in UNDONE.items()},
        "acting": {name: seen_of(case) for name, case in ACTING.items()},
        "ended": {name: seen_of(case, on_divergence="raise") for name, case in ENDED.items()},
    }


# The tests


def write_data(folder: Path) -> None:
    """A few random sequences of different lengths."""
    draw = random.Random(0)
    for split, rows in {"train": 60, "dev": 20, "test": 4}.items():
        lines = [f"{''.join(draw.choices('ACGT', k=draw.randint(10, 40)))},{row % 2}" for row in range(rows)]
        (folder / f"{split}.csv").write_text("\n".join(["sequence,label", *lines]) + "\n")


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict[str, dict[str, Seen]]]:
    """All runs, as each of the two processes saw them."""
    folder = tmp_path_factory.mktemp("faults")
    write_data(folder)
    settings = {
        "name": "faults",
        "seed": 3,
        "output_dir": str(folder / "run"),
        "backbone": {"path": "builtin:tiny", "dtype": "fp32"},
        "data": {"path": str(folder), "cache_dir": str(folder / "cache")},
        "adapter": {"rank": 4, "dropout": 0.1},
        "rank_sampling": {
            "mode": "exact",
            "target_rank": 2,
            "interval": INTERVAL,
            "rho": 0.3,
            "orthogonality": 0.1,
            "t_init": 2,
            "t_final": STEPS - FINAL,
        },
        "train": {"global_batch_size": 8, "max_steps": STEPS, "eval_steps": STEPS},
        "zero": {"stage": 0},
    }
    return run_ranks(all_runs, 2, settings, timeout=400)


@pytest.fixture
def undisturbed(seen) -> Seen:
    """The oracle."""
    return seen[0]["none"]["often"]


def audited(interval: int) -> list[int]:
    return [step for step in range(STEPS + 1) if step % interval == 0 or step in (FINAL, STEPS)]


def assert_found_and_named(case: Case, first: Seen, second: Seen) -> None:
    """By the audits that should, as what it is, and counted."""
    assert first.said == [
        f"WARNING step {step}: processes differ from global rank 0 (process 1: {parts}); repaired"
        for step, parts in case.found.items()
    ]
    assert second.said == []  # once per job
    steps = audited(case.audit_interval)
    for process in (first, second):
        assert process.error is None
        assert list(process.states) == steps
        assert process.found == list(case.found)
        assert process.counts == (
            len(steps) - 1,
            len(case.found),
            len(case.found),
        )  # start not counted


def assert_same_run(ours: Seen, theirs: Seen) -> None:
    """Bit for bit, at the end and after every audit that both made."""
    assert ours.bank == theirs.bank
    assert ours.ranks == theirs.ranks
    assert ours.best == theirs.best
    common = ours.states.keys() & theirs.states.keys()
    assert {step: ours.masks[step] for step in common} == {step: theirs.masks[step] for step in common}
    assert {step: ours.states[step] for step in common} == {step: theirs.states[step] for step in common}


def test_oracle_samples_ranks_and_selects(undisturbed):
    """Else there would be little to disturb."""
    events = undisturbed.events
    assert [(event.step, event.final) for event in events] == [(3, False), (6, False), (9, False), (12, True)]
    assert [event.kept for event in events] == [event.budget for event in events]
    assert all(event.returned for event in events[1:])
    assert len({undisturbed.masks[event.step] for event in events}) == 4
    assert undisturbed.masks[FINAL] == "1" * sum(undisturbed.ranks)
    assert len(set(undisturbed.ranks)) > 2
    assert len(set(undisturbed.states.values())) == STEPS + 1
    assert undisturbed.best.at_budget


@pytest.mark.parametrize("name", ["often", "rarely"])
def test_audits_of_an_undisturbed_run_change_nothing(seen, undisturbed, name):
    first, second = (process["none"][name] for process in seen)
    assert_found_and_named(Case([], {}, {"often": 1, "rarely": RARELY}[name]), first, second)
    for process in (first, second):
        assert_same_run(process, undisturbed)
        assert process.events == undisturbed.events


def test_audit_of_a_run_that_agrees_sends_ten_numbers(seen):
    """The bank stays where it is: six tensors, ranks, seed, optimizer and kept triplets are a number each."""
    for process in seen:
        sent = process["none"]["often"].sent
        assert list(sent) == audited(1)
        assert all(made == [("allgather_", 8 * 11)] for made in sent.values())


@pytest.mark.parametrize("name", UNDONE)
def test_fault_is_found_at_once_and_leaves_no_trace(seen, undisturbed, name):
    case, (first, second) = UNDONE[name], (process["undone"][name] for process in seen)
    assert_found_and_named(case, first, second)
    assert_same_run(first, undisturbed)
    assert first.events == undisturbed.events
    if name == "AdamW's steps":
        assert second.states.pop(4) != undisturbed.states[4]  # nothing is seen before the next step
    assert_same_run(second, undisturbed)


@pytest.mark.parametrize("name", UNDONE)
def test_both_processes_report_the_same_mask_events(seen, undisturbed, name):
    assert seen[1]["undone"][name].events == undisturbed.events


@pytest.mark.parametrize("name", ACTING)
def test_fault_that_acted_for_some_steps_leaves_both_processes_alike(seen, undisturbed, name):
    case, (first, second) = ACTING[name], (process["acting"][name] for process in seen)
    assert_found_and_named(case, first, second)
    assert first.bank != undisturbed.bank  # it did act
    assert_same_run(second, first)


def test_only_the_steps_are_lost_that_a_fault_made_not_finite(seen):
    for process in seen:
        lost = {name: run.skipped for name, run in process["acting"].items() if run.skipped}
        assert lost == {"master, exponent": 1}  # step 10, until its audit


def test_repair_gives_back_what_a_final_mask_took(seen, undisturbed):
    """Process 0 is right even where it is the one that failed."""
    for process in seen:
        run = process["acting"]["the first's final mask not applied"]
        assert run.ranks == (4,) * len(undisturbed.ranks)
        assert run.masks[FINAL] == run.masks[STEPS] == undisturbed.masks[9]
        assert "sensitivity" in run.bank


@pytest.mark.parametrize("name", ENDED)
def test_divergence_ends_both_processes_where_it_is_not_to_be_repaired(seen, name):
    [(step, parts)] = ENDED[name].found.items()
    for process in seen:
        run = process["ended"][name]
        assert run.error == f"step {step}: processes differ from global rank 0 (process 1: {parts})"
        assert run.said == []
        assert run.counts == (step, 1, 0)
        assert list(run.states) == list(range(step))  # no step and no repair after it
