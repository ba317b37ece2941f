"""The adapter bank: initial values, masks, importance, compaction, and tensors of another."""

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site, uniform_layout
from tests.unit.models.dense_adapters import (
    CLASSES,
    CPU,
    SCALE,
    SITES,
    Dense,
    Frozen,
    distance,
    hooked,
    inputs,
    logits_of,
    new_bank,
    some_kept,
)


def test_masked_triplet_is_absent_but_its_lam_has_a_gradient(dtype: torch.dtype):
    bank = new_bank()
    kept = some_kept(bank.layout.triplets)
    bank.set_mask(kept)
    model, x = hooked(bank), inputs(8, 7)
    left = AdapterBank(
        bank.layout.keep(kept), scale=SCALE, dtype=dtype, device=CPU, scalars=5, importance=False
    )
    left.replace(left.layout, *bank.layout.take(kept, bank.master))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert distance(logits_of(model, bank, x), Dense(Frozen(), left).logits(x)) < tolerance
    bank.zero_grad()
    logits_of(model, bank, x).square().sum().backward()
    bank.collect_grad()
    bank.finish_grad()
    for k, rank in enumerate(bank.layout.ranks):
        gone = ~kept[k * rank : (k + 1) * rank]
        p, lam, q = bank.layout.site(bank.grad, k)
        assert not p[gone].any()
        assert not q[gone].any()
        assert lam[gone].all()
        assert p[~gone].all()
        assert q[~gone].all()


def test_masked_lam_gradient_is_the_slope_of_bringing_it_back():
    """Central difference in the product m * lam at 0, on the dense map."""
    torch.set_default_dtype(torch.float64)
    try:
        bank = new_bank()
        kept = np.ones(12, bool)
        kept[[1, 6]] = False
        bank.set_mask(kept)
        model, x = hooked(bank), inputs(8, 7)
        bank.zero_grad()
        logits_of(model, bank, x).square().sum().backward()
        bank.collect_grad()
        bank.finish_grad()
        for k, slot in ((0, 1), (1, 2)):
            losses = []
            for nudge in (1e-5, -1e-5):
                plain = Dense(Frozen(), bank)
                plain.parts[k][1].data[slot] += nudge
                losses.append(plain.logits(x).square().sum().item())
            slope = (losses[0] - losses[1]) / 2e-5
            assert bank.layout.site(bank.grad, k).lam[slot].item() == pytest.approx(slope, rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_masking_changes_no_value_and_unmasking_brings_all_back():
    bank = new_bank(importance=True)
    model, x = hooked(bank), inputs(8, 7)
    before, state = logits_of(model, bank, x), {name: t.clone() for name, t in bank.state().items()}
    kept = some_kept(bank.layout.triplets)
    bank.set_mask(kept)
    masked = logits_of(model, bank, x)
    assert distance(masked, before) > 0.01
    assert all(torch.equal(value, state[name]) for name, value in bank.state().items() if name != "mask")
    assert bank.mask.tolist() == kept.tolist()
    bank.set_mask(np.ones_like(kept))
    assert torch.equal(logits_of(model, bank, x), before)


def test_mask_written_from_outside_is_taken_up():
    """As after a broadcast or a checkpoint: `moving_rows` of an earlier mask must not stay."""
    bank, other = new_bank(importance=True), new_bank(importance=True)
    first, second = some_kept(12, seed=3), some_kept(12, seed=4)
    assert (first != second).any()
    other.set_mask(first)
    assert other.moving_rows
    bank.set_mask(second)
    other.mask.copy_(bank.mask)
    other.masks_from_tensor()
    x = inputs(8, 7)
    assert torch.equal(logits_of(hooked(bank), bank, x), logits_of(hooked(other), other, x))
    for found, expected in zip(other.moving_rows, bank.moving_rows, strict=True):
        assert torch.equal(found, expected)
    held = sum(int((rows == 0).sum()) for rows in bank.moving_rows)
    assert held == 2 * int((~second).sum())  # a P column and a Q row of each; lam goes on


def test_zeroed_lam_leaves_the_mask_at_one():
    bank = new_bank()
    before, kept = bank.master.clone(), some_kept(12)
    bank.zero_lam(kept)
    assert bank.mask.all()
    lam = bank.layout.lam(bank.master)
    assert not lam[~torch.from_numpy(kept)].any()
    bank.layout.lam(before)[~torch.from_numpy(kept)] = 0
    assert torch.equal(bank.master, before)
    x = inputs(8, 7)
    expected = Dense(Frozen(), bank, before).logits(x)
    assert distance(logits_of(hooked(bank), bank, x), expected) < 1e-5


def test_new_adapter_as_adaloras_is_the_identity_and_comes_from_the_seed_alone():
    layout = uniform_layout(
        [Site("first", 5, 7), Site("second", 6, 5), Site("wide", 400, 300)], rank=4, head_shape=(3, 5)
    )
    banks = [
        AdapterBank(layout, scale=4.0, dtype=torch.float32, device=CPU, scalars=5, importance=True)
        for _ in range(3)
    ]
    for bank, seed, noise in zip(banks, (0, 0, 1), (5, 6, 5), strict=True):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        bank.initialize(seed, init="adalora")
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(banks[0].master, banks[1].master)
    assert not torch.equal(banks[0].master, banks[2].master)
    p, lam, q = layout.site(banks[0].master, 2)
    assert not lam.any()
    for matrix in (p, q):
        assert matrix.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(matrix.mean().item()) < 0.002
    assert not layout.head(banks[0].master).any()
    hooked_bank = new_bank()
    hooked_bank.initialize(0, init="adalora")
    x = inputs(2, 9, 7)
    assert distance(hooked(hooked_bank)(x), Frozen()(x)) < 1e-6


WIDE = [Site("first", 5, 7), Site("second", 6, 5), Site("wide", 400, 300), Site("alike", 400, 300)]


def initialized(seed: int, *, has_lam: bool = False, sites: Sequence[Site] = WIDE) -> AdapterBank:
    """A bank with the values that training begins with."""
    layout = uniform_layout(sites, rank=4, head_shape=(CLASSES, 5), has_lam=has_lam)
    bank = AdapterBank(layout, scale=SCALE, dtype=torch.float32, device=CPU, scalars=5, importance=False)
    bank.initialize(seed)
    return bank


@pytest.mark.parametrize("has_lam", [False, True], ids=["lora", "svd"])
def test_new_adapter_as_loras_is_the_identity_and_comes_from_the_seed_alone(has_lam: bool):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = initialized(0, has_lam=has_lam)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(initialized(0, has_lam=has_lam).master, first.master)
    other = initialized(1, has_lam=has_lam)
    for k in range(len(WIDE)):
        p, lam, q = first.layout.site(first.master, k)
        assert not p.any()
        assert (lam == 1).all() and len(lam) == (4 if has_lam else 0)
        assert not torch.equal(q, other.layout.site(other.master, k).q)
    assert not first.layout.head(first.master).any()  # nothing is answered before anything is learned
    bank, x = initialized(0, has_lam=has_lam, sites=SITES), inputs(2, 9, 7)
    assert distance(hooked(bank)(x), Frozen()(x)) < 1e-6
    bank.zero_grad()
    hooked(bank)(x).square().sum().backward()
    for k in range(len(SITES)):  # what keeps it the identity does not keep it from learning
        assert bank.layout.site(bank.grad, k).p.any()


@pytest.mark.parametrize("has_lam", [False, True], ids=["lora", "svd"])
def test_new_adapter_as_loras_has_uniform_rows_within_the_bound(has_lam: bool):
    bank = initialized(0, has_lam=has_lam)
    whole = [bank.layout.site(bank.master, k).q for k in range(len(WIDE))]
    for site, q in zip(WIDE, whole, strict=True):
        bound = site.d_in**-0.5
        assert bound / 2 < q.abs().max() <= bound
        assert scipy.stats.kstest(q.flatten() / bound, "uniform", args=(-1, 2)).pvalue > 0.01
    assert not torch.equal(whole[2], whole[3])


def test_new_lora_is_drawn_as_pefts():
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        frozen = nn.ModuleDict({"wide": nn.Linear(300, 400)})
        theirs = peft.get_peft_model(frozen, peft.LoraConfig(r=4, target_modules=["wide"])).state_dict()
    bank = initialized(0)
    p, _, q = bank.layout.site(bank.master, 2)
    their_q, their_p = (theirs[f"base_model.model.wide.lora_{part}.default.weight"] for part in "AB")
    assert torch.equal(p.T, their_p)
    assert q.shape == their_q.shape
    assert scipy.stats.ks_2samp(q.flatten(), their_q.flatten()).pvalue > 0.01


def test_compute_copy_is_cast_and_masters_stay():
    bank = new_bank(dtype=torch.bfloat16)
    master = bank.master.clone()
    bank.refresh()
    assert torch.equal(bank.master, master)
    (p,) = bank.compute.operands([0]).p
    assert p.dtype == torch.bfloat16
    assert torch.equal(p, bank.layout.site(master, 0).p.bfloat16())
    assert bank.grad.dtype == torch.float32


def test_bf16_micro_batches_are_summed_in_fp32():
    """Each of 50 small gradients counts; a bf16 sum loses part of each once it has grown."""
    bank = new_bank(dtype=torch.bfloat16)
    model = hooked(bank).to(torch.bfloat16)
    frozen = Frozen()
    frozen.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    truth = Dense(frozen, bank, bank.master.bfloat16().float())  # has the same rounded values
    alone = new_bank(dtype=torch.bfloat16)
    model_alone = hooked(alone).to(torch.bfloat16)
    exact, naive = (torch.zeros_like(bank.grad, dtype=t) for t in (torch.float64, bank.dtype))
    labels = torch.arange(4) % CLASSES
    bank.zero_grad()
    for k in range(50):
        x = (inputs(4, 7, seed=7) + 0.1 * inputs(4, 7, seed=100 + k)).bfloat16()  # of like sign: sums grow
        F.cross_entropy(logits_of(model, bank, x).float(), labels).backward()
        bank.collect_grad()
        alone.zero_grad()
        F.cross_entropy(logits_of(model_alone, alone, x).float(), labels).backward()
        alone.collect_grad()
        alone.finish_grad()
        exact += alone.grad
        naive += alone.grad
        F.cross_entropy(truth.logits(x.float()), labels).backward()
    bank.finish_grad()
    found, expected = bank.grad, truth.flat_grad()
    assert distance(found, exact) < 1e-5
    assert distance(naive, exact) > 1e-3
    assert distance(found, expected) < distance(naive, expected)


@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
def test_head_alone_is_a_bank_that_learns(has_lam: bool):
    """`adapter.method=none`: no site, no triplet, and what is done to every bank does not mind."""
    bank = new_bank(sites=(), ranks=(), has_lam=has_lam)
    bank.initialize(0)
    assert (bank.layout.size, bank.layout.adapter_size, bank.layout.triplets) == (5 * CLASSES, 0, 0)
    model, plain, x = hooked(bank), Dense(Frozen(), bank), inputs(8, 7)
    assert torch.equal(model(x), Frozen()(x))
    bank.zero_grad()
    (logits_of(model, bank, x) - 1).square().sum().backward()
    (Frozen()(x) @ plain.head.T - 1).square().sum().backward()
    assert bank.grad.any()
    assert distance(bank.grad, plain.head.grad.flatten()) < 1e-5
    bank.masks_from_tensor()
    bank.zero_masked_grad()
    layout, values = bank.kept_values()
    assert layout == bank.layout
    assert torch.equal(values, bank.master)


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 0, 3), (0, 0, 2)])
def test_scores_equal_those_of_each_site(ranks: tuple[int, ...]):
    bank = new_bank(ranks=ranks, importance=True)
    score = bank.sensitivity * bank.uncertainty
    padded = torch.cat([score, torch.zeros(bank.layout.size - bank.layout.adapter_size)])
    expected = []
    for k in range(len(ranks)):
        p, lam, q = bank.layout.site(padded, k)
        expected += [(lam[i] + p[i].mean() + q[i].mean()).item() for i in range(ranks[k])]
    assert bank.scores().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kept", [some_kept(12), np.arange(12) // 4 != 1], ids=["ragged", "a site at 0"])
def test_compaction_keeps_logits_and_moments(kept: np.ndarray):
    bank = new_bank(importance=True)
    model, x = hooked(bank), inputs(2, 9, 7)
    bank.set_mask(kept)
    before = logits_of(model, bank, x).detach()
    old = bank.layout
    state = {name: bank.state()[name].clone() for name in ("master", "exp_avg", "exp_avg_sq")}
    bank.compact(kept)
    model.hooks.attach()
    assert sum(bank.layout.ranks) == bank.layout.triplets == kept.sum()
    assert torch.allclose(logits_of(model, bank, x), before, rtol=1e-6, atol=1e-6)
    for name, flat in state.items():
        now = bank.state()[name]
        assert len(now) == bank.layout.size < old.size
        assert torch.equal(bank.layout.head(now), old.head(flat))
        for k in range(3):
            own = torch.from_numpy(kept[4 * k : 4 * k + 4])
            for found, whole in zip(bank.layout.site(now, k), old.site(flat, k), strict=True):
                assert torch.equal(found, whole[own])
    assert set(bank.state()) == {"master", "exp_avg", "exp_avg_sq", "mask"}  # importance has done its work
    assert bank.mask.all()
    assert len(bank.mask) == kept.sum()
    bank.zero_grad()  # gradients arrive in the new, smaller buffer
    plain = Dense(Frozen(), bank)
    logits_of(model, bank, x).square().sum().backward()
    plain.logits(x).square().sum().backward()
    bank.finish_grad()
    assert distance(bank.grad, plain.flat_grad()) < 1e-5


def test_a_site_without_rank_costs_nothing():
    bank = new_bank()
    model, x = hooked(bank), inputs(8, 7)
    bank.compact(np.arange(12) // 4 != 0)
    model.hooks.attach()
    assert "forward" not in vars(model.first)
    assert torch.equal(model.first(x), Frozen().first(x))
    assert "forward" in vars(model.second)
    assert "forward" in vars(model.third)


def test_kept_values_are_what_the_forward_pass_uses():
    bank = new_bank()
    kept, x = some_kept(12), inputs(8, 7)
    bank.set_mask(kept)
    expected = logits_of(hooked(bank), bank, x)
    layout, values = bank.kept_values()
    assert layout.triplets == kept.sum()
    other = new_bank(seed=9)
    other.replace(layout, values)
    assert torch.allclose(logits_of(hooked(other), other, x), expected, rtol=1e-6, atol=1e-6)
    assert not other.exp_avg.any()
    assert not other.exp_avg_sq.any()


@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
@pytest.mark.parametrize("importance", [True, False], ids=["with importance", "without"])
def test_bank_of_the_right_shape_keeps_its_tensors(has_lam: bool, importance: bool):
    bank = new_bank(ranks=(1, 0, 3), has_lam=has_lam, importance=importance)
    before = [*bank.state().values(), bank.reduce_buffer, bank.compute.head, bank.compute.values]
    copies = [tensor.clone() for tensor in before]
    assert bank.reshape([1, 0, 3], importance=importance) is False  # ranks as JSON gives them
    after = [*bank.state().values(), bank.reduce_buffer, bank.compute.head, bank.compute.values]
    for now, then, values in zip(after, before, copies, strict=True):
        assert now is then
        assert torch.equal(now, values)


@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
@pytest.mark.parametrize(
    "ranks, had, importance",
    [
        ((1, 0, 3), True, False),  # a checkpoint from after the final mask
        ((4, 4, 4), False, True),  # a repair that brings back what one process had cut
        ((2, 4, 1), False, False),
        ((4, 4, 4), True, False),
        ((1, 0, 3), True, True),
    ],
)
def test_bank_takes_on_the_shape_of_another(
    has_lam: bool, ranks: tuple[int, ...], had: bool, importance: bool
):
    start = (4, 4, 4) if had else (1, 0, 3)
    bank = new_bank(ranks=start, has_lam=has_lam, importance=had, seed=8)
    other = new_bank(ranks=ranks, has_lam=has_lam, importance=importance)
    assert bank.reshape(list(ranks), importance=importance) is True
    assert bank.layout == other.layout
    sizes = [rank * (d_out + d_in + has_lam) for (_, d_out, d_in), rank in zip(SITES, ranks, strict=True)]
    adapters, whole = sum(sizes), sum(sizes) + 5 * CLASSES
    expected = {"master": whole, "exp_avg": whole, "exp_avg_sq": whole, "mask": sum(ranks)}
    if importance:
        expected |= {"sensitivity": adapters, "uncertainty": adapters}
    assert {name: len(value) for name, value in bank.state().items()} == expected
    assert (len(bank.grad), len(bank.scalars), len(bank.reduce_buffer)) == (whole, 5, whole + 5)
    assert bank.mask.all()
    for name, value in bank.state().items():
        value.copy_(other.state()[name])
    bank.masks_from_tensor()
    model, x = hooked(bank), inputs(8, 7)
    plain = Dense(Frozen(), other)
    bank.zero_grad()
    logits_of(model, bank, x).square().sum().backward()
    plain.logits(x).square().sum().backward()
    bank.finish_grad()
    assert distance(logits_of(model, bank, x), plain.logits(x)) < 1e-5
    assert distance(bank.grad, plain.flat_grad()) < 1e-5
