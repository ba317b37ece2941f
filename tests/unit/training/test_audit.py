"""Fingerprints tell banks apart that differ in one bit or in the order of entries; audits mend them."""

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site, uniform_layout
from lingo_ds.training import audit as audit_module
from lingo_ds.training.audit import Audit, DivergenceError, host_fingerprint, tensor_fingerprint
from tests.state_parts import Value, parts_of

CPU = torch.device("cpu")


def floats(size: int, seed: int = 0) -> Tensor:
    """Of very different sizes, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * 10.0 ** torch.randint(
        -30, 30, (size,), generator=generator
    )
    return torch.where(torch.rand(size, generator=generator) < 0.2, 0.0, values)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 999), st.integers(0, 31), st.integers(0, 3))
def test_any_flipped_bit_of_a_float_changes_it(place: int, bit: int, seed: int):
    """Sign of zero, last digit, NaN: whatever the bit means."""
    tensor = floats(1000, seed)
    before = tensor_fingerprint(tensor)
    tensor.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert tensor_fingerprint(tensor) != before
    tensor.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert tensor_fingerprint(tensor) == before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=300), st.data())
def test_any_flipped_mask_entry_changes_it(values: list[bool], data: st.DataObject):
    tensor = torch.tensor(values)
    before = tensor_fingerprint(tensor)
    place = data.draw(st.integers(0, len(values) - 1))
    tensor[place] = not values[place]
    assert tensor_fingerprint(tensor) != before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 999), st.integers(0, 999))
def test_any_two_swapped_entries_change_it(first: int, second: int):
    """A plain sum would not notice that two entries, or two sites, changed places."""
    tensor = floats(1000)
    assume(tensor[first] != tensor[second])
    swapped = tensor.clone()
    swapped[[first, second]] = swapped[[second, first]]
    assert tensor_fingerprint(swapped) != tensor_fingerprint(tensor)
    mask = tensor > tensor.median()
    if mask[first] != mask[second]:
        moved = mask.clone()
        moved[[first, second]] = moved[[second, first]]
        assert tensor_fingerprint(moved) != tensor_fingerprint(mask)


@pytest.mark.parametrize("chunk", [1, 7, 100, 999, 1000, 5000])
def test_entries_of_every_chunk_count_and_know_their_place(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(audit_module.FINGERPRINT_CHUNK, "cpu", chunk)
    tensor = floats(1000)
    prints = {int(tensor_fingerprint(tensor))}
    for place in (0, 1, 99, 100, 499, 998, 999):
        changed = tensor.clone()
        changed.view(torch.int32)[place] ^= 1
        prints.add(int(tensor_fingerprint(changed)))
    for first, second in ((0, 100), (99, 199), (3, 903), (200, 801)):  # the same place of two chunks, or not
        assert tensor[first] != tensor[second]
        swapped = tensor.clone()
        swapped[[first, second]] = swapped[[second, first]]
        prints.add(int(tensor_fingerprint(swapped)))
    prints.add(int(tensor_fingerprint(torch.cat([tensor[100:200], tensor[:100], tensor[200:]]))))
    prints.add(int(tensor_fingerprint(torch.cat([tensor, torch.ones(1)]))))
    assert len(prints) == 14


def test_masks_of_one_budget_are_told_apart():
    """All masks that keep 4 of 8 triplets, 70 of them: what two draws of one step can differ in."""
    masks = [torch.tensor([k in chosen for k in range(8)]) for chosen in combinations(range(8), 4)]
    assert len({int(tensor_fingerprint(mask)) for mask in masks}) == len(masks)


def test_small_differences_of_neighbours_are_told_apart():
    """Processes that drift apart differ in many last digits at once."""
    tensor = floats(1000).abs() + 1
    prints = {int(tensor_fingerprint(tensor))}
    for place in range(990):
        drifted = tensor.clone()
        drifted.view(torch.int32)[place : place + 4] += torch.tensor([1, -1, -1, 1], dtype=torch.int32)
        prints.add(int(tensor_fingerprint(drifted)))
    assert len(prints) == 991


@pytest.mark.parametrize(
    "tensor", [floats(1000), floats(1000) > 0, torch.zeros(0)], ids=["float", "bool", "none"]
)
def test_clones_are_equal(tensor: Tensor):
    print_ = tensor_fingerprint(tensor)
    assert (print_.dtype, print_.ndim) == (torch.int64, 0)
    assert tensor_fingerprint(tensor.clone()) == print_


def test_no_two_of_many_small_changes_collide():
    base = floats(1000)
    prints = {int(tensor_fingerprint(base))}
    for place in range(1000):
        changed = base.clone()
        changed.view(torch.int32)[place] ^= 1
        prints.add(int(tensor_fingerprint(changed)))
    assert len(prints) == 1001


def test_values_outside_the_bank_are_told_apart():
    values = [[0, 1.0, 0], [1, 1.0, 0], [0, 2.0, 0], [0, 1.0], "0110", "0111", "110", 0, None, (4, 2), (2, 4)]
    assert len({host_fingerprint(value) for value in values}) == len(values)
    assert all(-(2**63) <= host_fingerprint(value) < 2**63 for value in values)
    assert host_fingerprint((4, 2)) == host_fingerprint([4, 2])  # a tuple arrives as a list


# -- the audit itself, on two processes that are two threads


def new_bank(seed: int = 0) -> AdapterBank:
    layout = uniform_layout([Site("a", 5, 7), Site("b", 6, 5)], rank=3, head_shape=(2, 5))
    bank = AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=5, importance=True)
    bank.initialize(seed)
    return bank


def used_bank() -> AdapterBank:
    """In the middle of a run."""
    bank = new_bank()
    for k, name in enumerate(bank.STATE[:-1]):
        getattr(bank, name).copy_(floats(len(getattr(bank, name)), seed=k))
    bank.refresh()
    return bank


def kept(text: str) -> np.ndarray:
    return np.array([char == "1" for char in text])


def assert_same_bank(bank: AdapterBank, reference: AdapterBank) -> None:
    """To the bit, with what follows from the state: what the next forward and update use."""
    assert bank.layout == reference.layout
    assert bank.state().keys() == reference.state().keys()
    for name, value in reference.state().items():
        assert torch.equal(bank.state()[name], value), name
    assert len(bank.reduce_buffer) == len(reference.reduce_buffer)
    assert torch.equal(bank.compute.values, reference.compute.values)
    for mine, theirs in zip(bank.moving_rows, reference.moving_rows, strict=True):
        assert torch.equal(mine, theirs)


class Two:
    """Stands in for two processes and their collectives.

    Attributes:
        made: the collectives of process 1, each with its bytes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[tuple[str, int]] = []
        self._me, self._held = threading.local(), [None, None]
        self._meet = threading.Barrier(2, timeout=10)
        for module, name in (
            (process_group, "all_gather"),
            (process_group, "broadcast_"),
            (agreement, "broadcast_json"),
        ):
            monkeypatch.setattr(module, name, getattr(self, name))

    def run(self, *audits: Callable[[int], bool], step: int = 100) -> list[bool | DivergenceError]:
        """How the audit of each process ends."""

        def one(rank: int) -> bool | DivergenceError:
            self._me.rank = rank
            try:
                return audits[rank](step)
            except DivergenceError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, (0, 1)))

    def all_gather(self, part: Tensor, **_: Any) -> Tensor:
        return torch.stack(self._exchange("all_gather", part.clone(), part.nbytes))

    def broadcast_(self, part: Tensor, **_: Any) -> Tensor:
        return part.copy_(self._exchange("broadcast", part.clone(), part.nbytes)[0])

    def broadcast_json(self, value: Any, env: DistEnv) -> Any:
        text = json.dumps(value)
        return json.loads(self._exchange("broadcast_json", text, len(text))[0])

    def _exchange(self, name: str, value: Any, size: int) -> list[Any]:
        if self._me.rank == 1:
            self.made.append((name, size))
        self._held[self._me.rank] = value
        self._meet.wait()
        held = list(self._held)
        self._meet.wait()
        return held


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Two:
    return Two(monkeypatch)


def audits_of(*banks: AdapterBank, on_divergence: str = "repair", **settings: Any) -> list[Audit]:
    return [
        Audit(bank, DistEnv(rank, rank, 2, 2, CPU), on_divergence, **settings)
        for rank, bank in enumerate(banks)
    ]


class Outside:
    """State that lies in no tensor."""

    def __init__(self, **values: Any):
        self.values = values

    @property
    def parts(self) -> dict[str, Value]:
        return parts_of(self.values)


def counts(audit: Audit) -> tuple[int, int, int]:
    return audit.audits, audit.divergences, audit.repairs


def test_processes_that_agree_are_left_alone(two: Two):
    audits = audits_of(used_bank(), used_bank(), on_divergence="raise", parts=Outside(seed=[1, 2]).parts)
    assert two.run(*audits) == two.run(*audits) == [False, False]
    assert [counts(audit) for audit in audits] == [(2, 0, 0)] * 2
    assert_same_bank(audits[1].bank, used_bank())


def test_agreeing_takes_one_small_collective(two: Two):
    """However large the bank."""
    large = uniform_layout([Site("a", 500, 700)], rank=30, head_shape=(2, 500))
    for layout in (new_bank().layout, large):
        banks = [
            AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=5, importance=True)
            for _ in range(2)
        ]
        outside = Outside(seed=[1, 2], optimizer=[5, 1.0, 0], kept="01" * 500)
        two.made.clear()
        two.run(*audits_of(*banks, parts=outside.parts))
        assert two.made == [("all_gather", 8 * 10)]


class Copies(TorchFunctionMode):
    """Notes the size of every tensor of which the host asks values."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        moves = func is Tensor.to and any(
            isinstance(value, str | torch.device) for value in (*args, *(kwargs or {}).values())
        )
        if moves or getattr(func, "__name__", "") in (
            "cpu",
            "numpy",
            "tolist",
            "item",
            "__array__",
            "__bool__",
            "__int__",
            "__float__",
            "__index__",
        ):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_no_tensor_of_the_bank_comes_to_the_host():
    layout = uniform_layout([Site("a", 50, 70), Site("b", 60, 50)], rank=30, head_shape=(2, 50))
    bank = AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=5, importance=True)
    assert min(map(len, bank.state().values())) == 60
    audit = Audit(bank, DistEnv(0, 0, 1, 1, CPU), "raise", parts=Outside(seed=[1]).parts)
    with Copies() as copies:
        audit(1)
    assert copies.sizes  # the fingerprints
    assert max(copies.sizes) <= 12
    with Copies() as copies:
        bank.masks_from_tensor()
    assert max(copies.sizes) == 60  # as it would be seen


@pytest.mark.parametrize("part", AdapterBank.STATE)
def test_any_part_that_differs_is_repaired_from_the_first_process(part: str, two: Two):
    reference, bank = used_bank(), used_bank()
    for each in (reference, bank):
        each.set_mask(kept("101111"))
    if part == "mask":
        bank.set_mask(kept("110111"))
    else:
        bank.state()[part].view(torch.int32)[-1] ^= 1
        bank.refresh()
    audits = audits_of(reference, bank)
    assert two.run(*audits) == [True, True]
    assert [counts(audit) for audit in audits] == [(1, 1, 1)] * 2
    unharmed = used_bank()
    unharmed.set_mask(kept("101111"))
    for each in (reference, bank):
        assert_same_bank(each, unharmed)
    assert two.run(*audits) == [False, False]


SHAPES = {
    "not compacted": ("101100", None),
    "the first not compacted": (None, "101100"),
    "other ranks": ("101100", "001110"),
    "nothing left": ("101100", "000000"),
    "nothing left in the first": ("000000", "101100"),
    "other triplets of the same sites": ("101100", "110100"),
    "importance on one": ("111111", None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_banks_of_different_shape_become_like_the_first(name: str, two: Two):
    def bank_of(text: str | None) -> AdapterBank:
        bank = used_bank()
        if text:
            bank.compact(kept(text))
        return bank

    theirs, ours = SHAPES[name]
    first, second = bank_of(theirs), bank_of(ours)
    audits = audits_of(first, second)
    seen_by_update = [[], []]
    for audit, shapes in zip(audits, seen_by_update, strict=True):
        audit.on_new_tensors = lambda bank=audit.bank, shapes=shapes: shapes.append(
            (bank.layout.ranks, [id(tensor) for tensor in (bank.master, bank.grad, bank.compute.values)])
        )
    assert two.run(*audits) == [True, True]
    for each in (first, second):
        assert_same_bank(each, bank_of(theirs))
    replaced = name != "other triplets of the same sites"
    assert seen_by_update[0] == []
    # what was told is what stays: whoever built on it then builds on the repaired tensors
    tensors = [id(tensor) for tensor in (second.master, second.grad, second.compute.values)]
    assert seen_by_update[1] == [(first.layout.ranks, tensors)] * replaced
    assert two.run(*audits) == [False, False]


def test_other_ranks_are_named(two: Two):
    first, second = new_bank(), new_bank()
    first.compact(kept("101100"))
    second.compact(kept("100110"))
    for bank in (first, second):
        bank.master.zero_()  # values of other length that are equal as far as they go
    ending = two.run(*audits_of(first, second, on_divergence="raise"), step=12)
    assert {str(error) for error in ending} == {
        "step 12: processes differ from global rank 0 (process 1: ranks)"
    }


OUTSIDE = {"seed": [3, 3, 3], "optimizer": [17, 32768.0, 4], "kept triplets": "110101"}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("seed", [3, 4, 3]),
        ("seed", [3, 3, 2**63 - 1]),
        ("optimizer", [18, 32768.0, 4]),
        ("optimizer", [17, 16384.0, 4]),
        ("kept triplets", "110110"),
    ],
)
def test_state_outside_the_bank_is_compared_and_repaired(name, other, two: Two, caplog):
    first, second = Outside(**OUTSIDE), Outside(**{**OUTSIDE, name: other})
    audits = audits_of(used_bank(), used_bank())
    audits[0].parts, audits[1].parts = first.parts, second.parts
    with caplog.at_level(logging.WARNING):
        assert two.run(*audits, step=9) == [True, True]
    assert caplog.messages == [f"step 9: processes differ from global rank 0 (process 1: {name}); repaired"]
    assert first.values == second.values == OUTSIDE
    for audit in audits:
        assert_same_bank(audit.bank, used_bank())
    assert two.run(*audits) == [False, False]
    assert [counts(audit) for audit in audits] == [(2, 1, 1)] * 2


def test_state_outside_the_bank_is_loaded_once_the_bank_is_the_first_ones(two: Two):
    """The optimizer is set up again over the bank: it must not keep tensors that are gone."""
    first, second, seen = used_bank(), used_bank(), []
    first.compact(kept("101100"))

    class Optimizer:
        def state_dict(self) -> dict[str, Any]:
            return {"value": 5}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            seen.append(second.master.clone())

    audits = audits_of(first, second)
    audits[0].parts, audits[1].parts = Outside(optimizer=6).parts, {"optimizer": Optimizer()}
    assert two.run(*audits) == [True, True]
    assert torch.equal(seen[0], first.master)


def test_difference_can_end_the_run_and_says_where(two: Two):
    first, second = used_bank(), used_bank()
    second.exp_avg[3] = 1.0
    second.mask[0] = False
    outside = Outside(seed=8)
    audits = audits_of(first, second, on_divergence="raise")
    audits[0].parts, audits[1].parts = Outside(seed=7).parts, outside.parts
    before = {name: value.clone() for name, value in second.state().items()}
    ending = two.run(*audits, step=7)
    assert [type(error) for error in ending] == [DivergenceError] * 2
    assert {str(error) for error in ending} == {
        "step 7: processes differ from global rank 0 (process 1: exp_avg, mask, seed)"
    }
    assert [counts(audit) for audit in audits] == [(1, 1, 0)] * 2
    for name, value in before.items():
        assert torch.equal(second.state()[name], value), name
    assert outside.values == {"seed": 8}


def test_check_at_the_start_is_no_audit_but_finds_and_repairs(two: Two):
    banks = new_bank(0), new_bank(1)
    audits = audits_of(*banks)
    for audit in audits:
        audit.audits = 4
    assert two.run(*(audit.check for audit in audits), step=0) == [True, True]
    assert [counts(audit) for audit in audits] == [(4, 1, 1)] * 2
    assert_same_bank(banks[1], new_bank(0))


def test_one_process_agrees_with_itself():
    audit = Audit(new_bank(), DistEnv(0, 0, 1, 1, CPU), "raise", parts=Outside(seed=1).parts)
    assert not audit(1)
    assert audit.audits == 1
