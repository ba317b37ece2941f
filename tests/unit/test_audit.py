"""Fingerprints tell any two banks apart that differ in one bit or in the order of entries."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lingo_ds import distributed
from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.adapters.layout import Site, uniform_layout
from lingo_ds.distributed import DistEnv
from lingo_ds.training import audit as audit_module
from lingo_ds.training.audit import Audit, DivergenceError, fingerprint

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
    before = fingerprint(tensor)
    tensor.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert fingerprint(tensor) != before
    tensor.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert fingerprint(tensor) == before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=300), st.data())
def test_any_flipped_mask_entry_changes_it(values: list[bool], data: st.DataObject):
    tensor = torch.tensor(values)
    before = fingerprint(tensor)
    place = data.draw(st.integers(0, len(values) - 1))
    tensor[place] = not values[place]
    assert fingerprint(tensor) != before


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 999), st.integers(0, 999))
def test_any_two_swapped_entries_change_it(first: int, second: int):
    """A plain sum would not notice that two entries, or two sites, changed places."""
    tensor = floats(1000)
    assume(tensor[first] != tensor[second])
    swapped = tensor.clone()
    swapped[[first, second]] = swapped[[second, first]]
    assert fingerprint(swapped) != fingerprint(tensor)
    mask = tensor > tensor.median()
    if mask[first] != mask[second]:
        moved = mask.clone()
        moved[[first, second]] = moved[[second, first]]
        assert fingerprint(moved) != fingerprint(mask)


def test_entries_beyond_the_first_chunk_count(monkeypatch: pytest.MonkeyPatch):
    """Where a chunk ends changes nothing, and each chunk knows its place."""
    tensor = floats(1000)
    whole = fingerprint(tensor)
    for chunk in (1, 7, 999, 1000):
        monkeypatch.setattr(audit_module, "CHUNK", chunk)
        assert fingerprint(tensor) == whole
    monkeypatch.setattr(audit_module, "CHUNK", 100)
    assert fingerprint(torch.cat([tensor[100:200], tensor[:100], tensor[200:]])) != whole


@pytest.mark.parametrize(
    "tensor", [floats(1000), floats(1000) > 0, torch.zeros(0)], ids=["float", "bool", "none"]
)
def test_clones_are_equal(tensor: Tensor):
    print_ = fingerprint(tensor)
    assert (print_.dtype, print_.ndim) == (torch.int64, 0)
    assert fingerprint(tensor.clone()) == print_


def test_no_two_of_many_small_changes_collide():
    base = floats(1000)
    prints = {int(fingerprint(base))}
    for place in range(1000):
        changed = base.clone()
        changed.view(torch.int32)[place] ^= 1
        prints.add(int(fingerprint(changed)))
    assert len(prints) == 1001


# -- the audit itself, with the other process's fingerprints put in by hand


def new_bank(seed: int = 0) -> AdapterBank:
    layout = uniform_layout([Site("a", 5, 7), Site("b", 6, 5)], rank=3, head_shape=(2, 5))
    bank = AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=5, importance=True)
    bank.initialize(seed)
    return bank


class Other:
    """Stands in for the collectives of two processes; `bank` is that of global rank 0, this process is 1."""

    def __init__(self, bank: AdapterBank, monkeypatch: pytest.MonkeyPatch):
        self.parts = [part.clone() for part in bank.state().values()]
        self.sent = 0
        monkeypatch.setattr(distributed, "all_gather", self.all_gather)
        monkeypatch.setattr(distributed, "broadcast_", self.broadcast_)

    def all_gather(self, prints: Tensor) -> Tensor:
        return torch.stack([torch.stack([fingerprint(part) for part in self.parts]), prints])

    def broadcast_(self, part: Tensor) -> Tensor:
        self.sent += 1
        return part.copy_(self.parts[self.sent - 1])


SECOND = DistEnv(1, 1, 2, 2, CPU)


def test_equal_banks_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    bank = new_bank()
    other = Other(bank, monkeypatch)
    audit = Audit(bank, SECOND, "raise")
    assert [audit(step) for step in (100, 200)] == [False, False]
    assert (audit.audits, audit.divergences, audit.repairs, other.sent) == (2, 0, 0, 0)


@pytest.mark.parametrize("part", ["master", "exp_avg", "exp_avg_sq", "sensitivity", "uncertainty", "mask"])
def test_any_part_that_differs_is_repaired_from_the_first_process(part: str, monkeypatch: pytest.MonkeyPatch):
    reference, bank = new_bank(), new_bank()
    kept = np.array([1, 0, 1, 1, 1, 1], bool)
    reference.set_mask(kept)
    bank.set_mask(kept)
    Other(reference, monkeypatch)
    if part == "mask":
        bank.set_mask(np.roll(kept, 1))
    else:
        bank.state()[part].view(torch.int32)[-1] ^= 1
        bank.refresh()
    audit = Audit(bank, SECOND, "repair")
    assert audit(100)
    assert (audit.audits, audit.divergences, audit.repairs) == (1, 1, 1)
    for name, value in reference.state().items():
        assert torch.equal(bank.state()[name], value), name
    for mine, theirs in zip(bank.leaves, reference.leaves, strict=True):  # what the next forward uses
        assert all(map(torch.equal, mine, theirs))
    for mine, theirs in zip(bank.moving_rows, reference.moving_rows, strict=True):
        assert torch.equal(mine, theirs)


def test_difference_can_end_the_run_and_says_where(monkeypatch: pytest.MonkeyPatch):
    bank = new_bank()
    Other(bank, monkeypatch)
    bank.exp_avg[3] = 1.0
    bank.mask[0] = False
    audit, before = Audit(bank, SECOND, "raise"), bank.master.clone()
    with pytest.raises(DivergenceError, match=r"step 7: .*process 1: exp_avg, mask"):
        audit(7)
    assert (audit.divergences, audit.repairs) == (1, 0)
    assert torch.equal(bank.master, before)


def test_repair_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    bank = new_bank()
    other = Other(bank, monkeypatch)
    other.parts[0][2] += 1
    first = Audit(bank, DistEnv(0, 0, 2, 2, CPU), "repair")
    with caplog.at_level(logging.WARNING):
        assert first(42)
    assert "step 42" in caplog.text
    assert "master" in caplog.text


def test_one_process_agrees_with_itself():
    audit = Audit(new_bank(), DistEnv(0, 0, 1, 1, CPU), "raise")
    assert not audit(1)
    assert audit.audits == 1
