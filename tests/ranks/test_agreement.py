"""Do processes agree, and is it noticed where they do not? Faults are put into real processes' memory."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lingo_ds.distributed import agreement, job, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site, uniform_layout
from lingo_ds.training.audit import FINGERPRINT_CHUNK, Audit, DivergenceError, tensor_fingerprint
from lingo_ds.utils.errors import Mistake, UserError
from tests.ranks.spawn import run_ranks
from tests.state_parts import parts_of

CPU, HOST = torch.device("cpu"), socket.gethostname()
PARTS = AdapterBank.STATE
SITES = [Site("first", 6, 5), Site("second", 5, 6), Site("third", 6, 6)]


def place(rank: int, world_size: int) -> DistEnv:
    return DistEnv(rank, rank, world_size, world_size, CPU)


def new_bank(*, masked: bool = True) -> AdapterBank:
    """A bank in the middle of a run, the same on every process."""
    layout = uniform_layout(SITES, rank=4, head_shape=(2, 6))
    bank = AdapterBank(layout, scale=2.0, dtype=torch.bfloat16, device=CPU, scalars=5, importance=True)
    generator = torch.Generator().manual_seed(5)
    for name in PARTS[:-1]:
        getattr(bank, name).normal_(generator=generator)
    if masked:
        kept = np.arange(layout.triplets) % 3 > 0
        bank.set_mask(kept)
    bank.refresh()
    return bank


def flip(tensor: torch.Tensor, entry: int, bit: int) -> None:
    """Flips one bit of one entry, as a cosmic ray would."""
    if tensor.dtype == torch.bool:
        tensor[entry] = ~tensor[entry]
    else:
        word = tensor.view(torch.int32)
        word[entry] ^= torch.tensor(-(2**31) if bit == 31 else 1 << bit, dtype=torch.int32)


def bits(bank: AdapterBank) -> dict[str, bytes]:
    """What a process holds, to the bit: the audited parts, and the compute copy."""
    parts = {name: value.numpy().tobytes() for name, value in bank.state().items()}
    parts["compute"] = bank.compute.values.view(torch.int16).numpy().tobytes()
    return parts


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Messages of the audit's log."""
    said, handler, log = [], logging.Handler(), logging.getLogger("lingo_ds.training.audit")
    handler.emit = lambda record: said.append(f"{record.levelname} {record.getMessage()}")
    log.addHandler(handler)
    yield said
    log.removeHandler(handler)


class Collectives(TorchDispatchMode):
    """Notes every collective that is made inside: its name, and the bytes that this process puts in."""

    def __init__(self):
        super().__init__()
        self.made: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            groups = [[leaf for leaf in tree_leaves(arg) if torch.is_tensor(leaf)] for arg in args]
            put_in = [group for group in groups if group][-1]  # outputs come first
            self.made.append((func.__name__.partition(".")[0], sum(tensor.nbytes for tensor in put_in)))
        return func(*args, **(kwargs or {}))


class Repair(NamedTuple):
    """One injected fault: what was found, said, and held before and after."""

    found: bool
    said: list[str]
    counts: tuple[int, int, int]
    before: dict[str, bytes]
    after: dict[str, bytes]


FAULTS = {
    "master, lowest bit": [(1, "master", 0, 0)],
    "master, sign of the head's last": [(1, "master", -1, 31)],
    "exp_avg": [(1, "exp_avg", 17, 9)],
    "exp_avg_sq": [(1, "exp_avg_sq", 17, 30)],
    "sensitivity": [(1, "sensitivity", 3, 1)],
    "uncertainty": [(1, "uncertainty", -1, 22)],
    "mask, one more": [(1, "mask", 0, 0)],
    "mask, one less": [(1, "mask", 1, 0)],
    "two parts": [(1, "master", 5, 4), (1, "uncertainty", 6, 7)],
    "on process 0": [(0, "master", 8, 3)],
    "the same on both": [(0, "exp_avg", 2, 5), (1, "exp_avg", 2, 5)],
    "none": [],
}


def inject(rank: int, bank: AdapterBank, faults: list[tuple[int, str, int, int]]) -> None:
    for process, part, entry, bit in faults:
        if process == rank:
            flip(getattr(bank, part), entry, bit)
            bank.masks_from_tensor()  # the damage spreads to what follows from it


def repair(rank: int, env: DistEnv, faults: list) -> Repair:
    bank = new_bank()
    audit = Audit(bank, env, "repair")
    with logged() as said:
        assert not audit(1)
        inject(rank, bank, faults)
        before = bits(bank)
        found = audit(2)
        after = bits(bank)
        assert not audit(3)
    return Repair(found, said, (audit.audits, audit.divergences, audit.repairs), before, after)


def not_repaired(rank: int, env: DistEnv) -> tuple[str, dict[str, bytes], dict[str, bytes]]:
    bank = new_bank()
    audit = Audit(bank, env, "raise")
    assert not audit(6)
    inject(rank, bank, FAULTS["sensitivity"])
    before = bits(bank)
    with pytest.raises(DivergenceError) as caught:
        audit(7)
    return str(caught.value), before, bits(bank)


AGREED = {"seed": [3, 3, 3], "optimizer": [17, 1.0, 0], "kept triplets": "0110"}
OUTSIDE = {
    "seed": {"seed": [3, 4, 3]},
    "optimizer": {"optimizer": [17, 0.5, 0]},
    "kept triplets": {"kept triplets": "0101"},
    "all": {"seed": [0, 0, 0], "optimizer": [0, 1.0, 0], "kept triplets": ""},
}


class Outside(NamedTuple):
    """State that lies in no tensor, wrong on process 1: what was found and said, and the state afterwards."""

    found: bool
    said: list[str]
    values: dict[str, Any]
    bank_is_untouched: bool
    found_again: bool


def outside(rank: int, env: DistEnv, wrong: dict[str, Any]) -> Outside:
    bank, values = new_bank(), {**AGREED, **(wrong if rank == 1 else {})}
    audit, before = Audit(bank, env, "repair", parts=parts_of(values)), bits(bank)
    with logged() as said:
        return Outside(audit(2), said, values, bits(bank) == before, audit(3))


RESIZED = {
    "not compacted": ((2, 0), None),
    "the first not compacted": (None, (2, 0)),
    "other ranks": ((3, 0), (3, 1)),
    "nothing left": ((3, 0), (99, 98)),
}
"""Which triplets each process keeps: those whose number leaves, (divisor, remainder); None: not compacted."""


class Resized(NamedTuple):
    """Banks of different ranks: what was said, new tensors that were told, and the bank afterwards."""

    said: list[str]
    told: int
    ranks: tuple[int, ...]
    before: dict[str, bytes]
    after: dict[str, bytes]
    summed: float


def resized(rank: int, env: DistEnv, keeps: tuple[tuple[int, int] | None, ...]) -> Resized:
    bank, told = new_bank(), []
    if keeps[rank]:
        divisor, remainder = keeps[rank]
        bank.compact(np.arange(bank.layout.triplets) % divisor == remainder)
    audit = Audit(bank, env, "repair", on_new_tensors=lambda: told.append(bank.layout.ranks))
    before = bits(bank)
    with logged() as said:
        assert audit(12)
    after = bits(bank)
    bank.zero_grad()
    bank.grad.fill_(rank + 1)
    summed = float(
        process_group.all_reduce_(bank.reduce_buffer)[: len(bank.grad)].mean()
    )  # as the next step does
    assert not audit(13)
    assert told in ([], [bank.layout.ranks])
    return Resized(said, len(told), bank.layout.ranks, before, after, summed)


def traffic(env: DistEnv) -> dict[str, list[tuple[str, int]]]:
    """The collectives of an audit that finds nothing: before and after the final mask, of a small bank."""
    bank, made = new_bank(), {}
    for name in ("before", "after"):
        with Collectives() as collectives:
            assert not Audit(bank, env, "raise", parts=parts_of(dict(AGREED)))(1)
        made[name] = collectives.made
        bank.compact(np.arange(bank.layout.triplets) % 2 > 0)
    with Collectives() as collectives:
        torch.distributed.barrier()
        process_group.all_reduce_(torch.zeros(3))
        process_group.all_gather(torch.zeros(5))
        process_group.broadcast_(torch.zeros(7, dtype=torch.uint8))
    return {**made, "others": collectives.made}


def after_compacting(rank: int, env: DistEnv) -> tuple[bool, list[str], dict[str, bytes]]:
    """The final mask has dropped triplets and importance; the audit still finds what is left."""
    bank = new_bank()
    audit = Audit(bank, env, "repair")
    kept = np.arange(bank.layout.triplets) % 2 > 0
    bank.compact(kept)
    assert not audit(1)
    inject(rank, bank, [(1, "exp_avg_sq", 4, 12)])
    with logged() as said:
        found = audit(2)
    return found, said, bits(bank)


def audits(rank: int, world_size: int) -> dict[str, Any]:
    env = place(rank, world_size)
    return {
        "repair": {name: repair(rank, env, faults) for name, faults in FAULTS.items()},
        "raise": not_repaired(rank, env),
        "compacted": after_compacting(rank, env),
        "outside": {name: outside(rank, env, wrong) for name, wrong in OUTSIDE.items()},
        "resized": {name: resized(rank, env, keeps) for name, keeps in RESIZED.items()},
        "traffic": traffic(env),
        "agreement": small_collectives(rank, env),
    }


def error_of(work: Callable[[], Any]) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return "no error"


def mistaken() -> None:
    raise UserError(Mistake("data.path", "/nowhere", "is not a folder", "give one"))


VALUE = {"text": "Z\u00fcrich\n", "numbers": [1, -2.5, 1e300, None, True], "nested": {"empty": [], "": {}}}


def other_versions(rank: int, env: DistEnv) -> None:
    """As if the second process were on another host, with another torch."""
    facts = {"host": f"node{rank}", "processes": 1, "cores": 1, "versions": {"torch": ("2.0", "9.9")[rank]}}
    with mock.patch.object(job, "own_facts", lambda _env: facts):
        job.require_alike(env)


def small_collectives(rank: int, env: DistEnv) -> dict[str, Any]:
    """The small collectives, each with something to disagree on."""
    done = []
    seen = {
        "equal": error_of(lambda: agreement.require_equal("seed: 0", "config", env)),
        "different": error_of(lambda: agreement.require_equal(f"seed: {rank}", "config", env)),
        "alike": error_of(lambda: job.require_alike(env)),
        "other versions": error_of(lambda: other_versions(rank, env)),
        "first fails": error_of(
            lambda: agreement.run_once_per_host(lambda: done.append("fails") or mistaken(), env)
        ),
        "first works": error_of(lambda: agreement.run_once_per_host(lambda: done.append("works"), env)),
        "done": done,
        "second fails": error_of(
            lambda: agreement.raise_on_all(
                UserError(Mistake("train.csv:3", "X", "is no base", "correct it")) if rank == 1 else None, env
            )
        ),
        "json": [
            agreement.broadcast_json(VALUE if rank == 0 else None, env),
            agreement.broadcast_json(VALUE if rank == 1 else "unused", env, source=1),
            agreement.broadcast_json(None, env),
            agreement.broadcast_json(rank, env),
            len(agreement.broadcast_json("x" * 300_000 if rank == 0 else None, env)),
        ],
        "all": agreement.all_gather_json([rank, str(rank) * 1000 * rank, None], env),
        "sum": process_group.all_reduce_(torch.tensor([1.0, rank])).tolist(),
        "gathered": process_group.all_gather(torch.tensor([[rank, 7]])).tolist(),
        "broadcast": process_group.broadcast_(torch.tensor([rank + 5])).tolist(),
    }
    torch.distributed.barrier()
    return seen


# The tests


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    """What two processes saw of every fault and every disagreement."""
    return run_ranks(audits, 2)


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("none", "the same on both")])
def test_flipped_bit_is_found_named_and_repaired(seen, name):
    first, second = (process["repair"][name] for process in seen)
    faults = FAULTS[name]
    assert first.before != second.before  # the fault was there
    assert first.found and second.found
    assert first.counts == second.counts == (3, 1, 1)
    parts = ", ".join(part for part in PARTS if part in [fault[1] for fault in faults])
    expected = f"WARNING step 2: processes differ from global rank 0 (process 1: {parts}); repaired"
    assert first.said == [expected]
    assert second.said == []  # once per job
    assert first.after == second.after == first.before  # bit for bit what process 0 held


@pytest.mark.parametrize("name", ["none", "the same on both"])
def test_nothing_is_found_where_processes_agree(seen, name):
    for process in seen:
        repaired = process["repair"][name]
        assert not repaired.found
        assert repaired.said == []
        assert repaired.counts == (3, 0, 0)
        assert repaired.after == repaired.before


def test_divergence_can_end_the_run_on_every_process(seen):
    first, second = (process["raise"] for process in seen)
    assert first[0] == second[0]
    assert "step 7" in first[0]
    assert "process 1: sensitivity" in first[0]
    assert first[1] == first[2]
    assert second[1] == second[2]  # nothing was changed


def test_audit_covers_the_bank_after_its_final_mask(seen):
    first, second = (process["compacted"] for process in seen)
    assert first[0] and second[0]
    assert "(process 1: exp_avg_sq)" in first[1][0]
    assert first[2] == second[2]
    assert "sensitivity" not in first[2]


@pytest.mark.parametrize("name", OUTSIDE)
def test_state_outside_the_bank_is_named_and_repaired(seen, name):
    first, second = (process["outside"][name] for process in seen)
    parts = ", ".join(OUTSIDE[name])
    expected = f"WARNING step 2: processes differ from global rank 0 (process 1: {parts}); repaired"
    assert (first.said, second.said) == ([expected], [])
    for process in (first, second):
        assert process.found
        assert process.values == AGREED
        assert process.bank_is_untouched
        assert not process.found_again


ALL = "master, exp_avg, exp_avg_sq, sensitivity, uncertainty, mask, ranks"


@pytest.mark.parametrize(
    ("name", "parts", "ranks"),
    [
        ("not compacted", ALL, (2, 2, 2)),
        ("the first not compacted", ALL, (4, 4, 4)),
        ("other ranks", "master, exp_avg, exp_avg_sq, ranks", (2, 1, 1)),
        ("nothing left", "master, exp_avg, exp_avg_sq, mask, ranks", (2, 1, 1)),
    ],
)
def test_bank_of_other_ranks_gets_those_of_the_first_process(seen, name, parts, ranks):
    first, second = (process["resized"][name] for process in seen)
    assert first.said == [
        f"WARNING step 12: processes differ from global rank 0 (process 1: {parts}); repaired"
    ]
    assert first.ranks == second.ranks == ranks
    assert first.before != second.before
    assert first.after == second.after == first.before
    assert (first.told, second.told) == (0, 1)  # whoever holds the old tensors
    assert first.summed == second.summed == 3.0


def test_agreeing_processes_send_one_number_per_part(seen):
    for process in seen:
        made = process["traffic"]
        parts = len([*PARTS, "ranks", *AGREED])
        assert made["before"] == made["after"] == [("allgather_", 8 * parts)]
        assert 8 * parts <= 8 * 12
        # what would be seen of others
        assert [name for name, _ in made["others"]] == ["barrier", "allreduce_", "allgather_", "broadcast_"]
        assert [size for _, size in made["others"][1:]] == [12, 20, 7]


def test_require_equal_names_the_process_that_differs(seen):
    for process in seen:
        assert process["agreement"]["equal"] == "no error"
        message = process["agreement"]["different"]
        assert message.startswith(f"error: config: 'processes [1] ({HOST})': differs from that of process 0")


def test_a_host_with_other_versions_is_named_before_anything_is_read(seen):
    for process in (one["agreement"] for one in seen):
        assert process["alike"] == "no error"
        assert process["other versions"] == (
            "error: host node1: 'torch 9.9': is 2.0 on node0: install the same versions on all hosts"
        )


def test_mistake_of_the_first_on_a_host_ends_every_process(seen):
    first, second = (process["agreement"] for process in seen)
    assert first["first fails"] == "error: data.path: '/nowhere': is not a folder: give one"
    assert second["first fails"].startswith("error: ")
    assert second["first fails"] == first["first fails"]
    assert first["first works"] == second["first works"] == "no error"
    assert first["done"] == ["fails", "works"]  # once per host
    assert second["done"] == []


def test_mistake_of_another_process_ends_the_first_too(seen):
    first, second = (process["agreement"] for process in seen)
    assert second["second fails"] == "error: train.csv:3: 'X': is no base: correct it"
    assert first["second fails"] == second["second fails"]


def test_shared_values_arrive_unchanged_on_every_process(seen):
    for process in (one["agreement"] for one in seen):
        assert process["json"] == [VALUE, VALUE, None, 0, 300_000]
        assert process["all"] == [[0, "", None], [1, "1" * 1000, None]]
        assert process["sum"] == [2.0, 1.0]
        assert process["gathered"] == [[[0, 7]], [[1, 7]]]
        assert process["broadcast"] == [5]


def test_single_process_agrees_with_itself():
    alone = DistEnv(0, 0, 1, 1, CPU)
    agreement.require_equal("seed: 0", "config", alone)
    assert agreement.broadcast_json(VALUE, alone) == VALUE
    assert agreement.all_gather_json([1, "a"], alone) == [[1, "a"]]
    assert process_group.all_gather(torch.tensor([3])).tolist() == [[3]]
    assert not Audit(new_bank(), alone, "raise")(1)
    with pytest.raises(UserError, match="is not a folder"):
        agreement.run_once_per_host(mistaken, alone)


# The fingerprint by itself


@pytest.mark.parametrize("bit", range(32))
def test_fingerprint_changes_with_every_bit(bit):
    tensor = torch.randn(50, generator=torch.Generator().manual_seed(0))
    before = tensor_fingerprint(tensor)
    for entry in (0, 1, 49):
        changed = tensor.clone()
        flip(changed, entry, bit)
        assert tensor_fingerprint(changed) != before


def test_fingerprint_tells_zeros_nans_places_and_chunks_apart():
    chunk = FINGERPRINT_CHUNK["cpu"]
    base = torch.zeros(chunk + 10)
    prints = {int(tensor_fingerprint(base))}
    for entry, value in [(0, -0.0), (0, float("nan")), (1, 1.0), (2, 1.0), (chunk - 1, 1.0), (chunk, 1.0)]:
        changed = base.clone()
        changed[entry] = value
        prints.add(int(tensor_fingerprint(changed)))
    assert len(prints) == 7
    swapped = torch.tensor([1.0, 2.0, 3.0])
    assert tensor_fingerprint(swapped) != tensor_fingerprint(swapped[[1, 0, 2]])
