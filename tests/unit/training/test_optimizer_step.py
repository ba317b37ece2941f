"""One optimizer step against torch's AdamW on dense parameters; what is held, skipped, scaled, counted."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingo_ds.config.run_config import RunConfig
from lingo_ds.models.adapters.bank import AdapterBank, Scalar
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.adapters.sites import AdaptedSites
from lingo_ds.training.optimizer_step import LossScale, OptimizerStep

CPU = torch.device("cpu")
SITES = (Site("first", 5, 7), Site("second", 6, 5))
CLASSES, EXAMPLES, SCALE = 3, 8, 4.0


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 5), nn.Linear(5, 6)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def config_of(*, sampling: dict | None = None, **train: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "backbone": {"path": "b"},
            "data": {"path": "d"},
            "rank_sampling": sampling or {},
            "train": train,
        }
    )


def new_bank(*, dtype: torch.dtype | None = None, rank: int = 4, seed: int = 1) -> AdapterBank:
    """Random values, lam included; fresh moments and importance."""
    bank = AdapterBank(
        BankLayout(SITES, (rank,) * len(SITES), (CLASSES, 6)),
        scale=SCALE,
        dtype=dtype or torch.get_default_dtype(),
        device=CPU,
        scalars=len(Scalar),
        importance=True,
    )
    generator = torch.Generator().manual_seed(seed)
    bank.master.copy_(torch.randn(bank.layout.size, generator=generator) / 2)
    bank.refresh()
    return bank


def hooked(bank: AdapterBank) -> Frozen:
    model = Frozen().to(bank.dtype)
    model.hooks = AdaptedSites(dict(model.named_modules()))
    model.hooks.add(bank)
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(EXAMPLES, 7, generator=generator)
    return x, torch.randint(CLASSES, (EXAMPLES,), generator=generator)


def backward(model: Frozen, bank: AdapterBank, step: int, *, loss_scale: float = 1.0) -> float:
    """The step's mean loss in two micro-batches, as the trainer does it; returns it."""
    bank.zero_grad()
    total = 0.0
    x, labels = batch(step)
    for part, of in zip(x.split([5, 3]), labels.split([5, 3]), strict=True):
        logits = model(part.to(bank.dtype)) @ bank.compute.head.T
        loss = F.cross_entropy(logits.float() if bank.dtype == torch.float16 else logits, of, reduction="sum")
        (loss * (loss_scale / EXAMPLES)).backward()
        bank.collect_grad()
        total += loss.item()
        bank.scalars[Scalar.LOSS] += loss.detach()
        bank.scalars[Scalar.EXAMPLES] += len(part)
        bank.scalars[Scalar.REAL_TOKENS] += 10 * len(part)
        bank.scalars[Scalar.ALL_TOKENS] += 12 * len(part)
    bank.finish_grad()
    return total / EXAMPLES


def put_gradient(bank: AdapterBank, step: int = 0, *, scale: float = 1.0) -> None:
    """A random gradient, where no model is needed."""
    bank.zero_grad()
    generator = torch.Generator().manual_seed(500 + step)
    bank.grad.copy_(torch.randn(bank.grad.shape, generator=generator) * scale)


def copies(bank: AdapterBank) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in bank.state().items()}


def assert_same(bank: AdapterBank, before: dict[str, Tensor]) -> None:
    state = bank.state()
    assert state.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(state[name], value), name


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class Dense:
    """P (d_out, rank), lam, Q (rank, d_in) of each site and the head, each a parameter of torch's AdamW."""

    def __init__(self, bank: AdapterBank, *, weight_decay: float, max_norm: float | None, gamma: float):
        self.model, self.layout, self.max_norm, self.gamma = Frozen(), bank.layout, max_norm, gamma
        sites = [bank.layout.site(bank.master, k) for k in range(len(SITES))]
        self.parts = [[nn.Parameter(t.clone()) for t in (p.T, lam, q)] for p, lam, q in sites]
        self.head = nn.Parameter(bank.layout.head(bank.master).clone())
        self.parameters = [parameter for part in self.parts for parameter in part] + [self.head]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=weight_decay, foreach=False)

    def loss(self, step: int) -> Tensor:
        x, labels = batch(step)
        for k, module in enumerate((self.model.first, self.model.second)):
            p, lam, q = self.parts[k]
            x = torch.tanh(x) if k else x
            x = module(x) + SCALE * ((x @ q.T) * lam) @ p.T
        return F.cross_entropy(x @ self.head.T, labels)

    def penalty(self) -> Tensor:
        gram = [m for p, _, q in self.parts for m in (p.T @ p, q @ q.T)]
        return self.gamma * torch.stack([torch.linalg.norm(m - torch.eye(len(m))) for m in gram]).mean()

    def step(self, step: int, learning_rate: float) -> tuple[float, float, float]:
        """Returns loss, penalty and gradient norm."""
        self.optimizer.zero_grad()
        loss, penalty = self.loss(step), self.penalty()
        (loss + penalty).backward()
        norm = torch.stack([parameter.grad.norm() for parameter in self.parameters]).norm().item()
        for parameter in self.parameters:
            if self.max_norm is not None and norm > self.max_norm:
                parameter.grad.mul_(self.max_norm / norm)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return loss.item(), penalty.item(), norm

    def flat(self) -> Tensor:
        """The parameters where the bank's buffer has them."""
        out = torch.zeros(self.layout.size)
        with torch.no_grad():
            for k, (p, lam, q) in enumerate(self.parts):
                for view, value in zip(self.layout.site(out, k), (p.T, lam, q), strict=True):
                    view.copy_(value)
            self.layout.head(out).copy_(self.head)
        return out


@pytest.mark.parametrize(
    ("weight_decay", "max_norm", "gamma"),
    [(0.0, None, 0.0), (0.1, None, 0.0), (0.1, 0.3, 0.0), (0.0, 0.3, 0.5), (0.0, 1e6, 0.5)],
    ids=["plain", "decay", "decay and clip", "clip and penalty", "penalty"],
)
def test_steps_equal_adamw_on_dense_parameters(
    float64: None, weight_decay: float, max_norm: float | None, gamma: float
):
    bank = new_bank()
    dense = Dense(bank, weight_decay=weight_decay, max_norm=max_norm, gamma=gamma)
    config = config_of(sampling={"orthogonality": gamma}, weight_decay=weight_decay, max_grad_norm=max_norm)
    model, update, start = hooked(bank), OptimizerStep(bank, config), bank.master.clone()
    norms = []
    for step in range(1, 13):
        learning_rate = 0.05 * min(step / 4, 1.0)  # warm-up
        backward(model, bank, step)
        stats = update.step(learning_rate=learning_rate)
        loss, penalty, norm = dense.step(step, learning_rate)
        assert (stats.loss, stats.penalty, stats.grad_norm) == pytest.approx((loss, penalty, norm), rel=1e-9)
        assert distance(bank.master, dense.flat()) < 1e-10
        norms.append(norm)
    if max_norm == 0.3:
        assert max(norms) > 0.3  # it did clip
    assert distance(bank.master, start) > 0.1
    assert update.steps_taken == 12


def test_fp32_steps_stay_close_to_adamw():
    bank = new_bank()
    dense = Dense(bank, weight_decay=0.1, max_norm=0.3, gamma=0.0)
    model, update = hooked(bank), OptimizerStep(bank, config_of(weight_decay=0.1, max_grad_norm=0.3))
    for step in range(1, 11):
        backward(model, bank, step)
        update.step(learning_rate=0.01)
        dense.step(step, 0.01)
    assert distance(bank.master, dense.flat()) < 1e-5


def test_forward_follows_the_masters():
    bank = new_bank()
    model, update = hooked(bank), OptimizerStep(bank, config_of())
    losses = []
    for _ in range(30):  # one batch, so the loss must fall
        losses.append(backward(model, bank, 0))
        update.step(learning_rate=0.02)
    assert losses[-1] < 0.5 * losses[0]


def test_stats_are_sums_over_the_step():
    bank = new_bank()
    model, update = hooked(bank), OptimizerStep(bank, config_of(sampling={"orthogonality": 0.5}))
    mean = backward(model, bank, 1)
    stats = update.step(learning_rate=0.01)
    assert stats.loss == pytest.approx(mean, rel=1e-6)  # no penalty in it
    assert stats.penalty > 0.1
    assert (stats.examples, stats.real_tokens, stats.all_tokens) == (8, 80, 96)
    assert (stats.stop, stats.skipped) == (False, False)
    put_gradient(bank)
    bank.scalars[Scalar.STOP_REQUESTS] += 1
    assert update.step(learning_rate=0.01).stop


def test_penalty_reaches_the_gradient_once_however_many_micro_batches(float64: None):
    """PITFALLS 15: beside a gradient of zero the step's norm is that of the penalty alone."""
    bank, gamma = new_bank(), 0.7
    dense = Dense(bank, weight_decay=0.0, max_norm=None, gamma=gamma)
    dense.penalty().backward()
    expected = torch.stack([p.grad.norm() for p in dense.parameters if p.grad is not None]).norm().item()
    update = OptimizerStep(bank, config_of(sampling={"orthogonality": gamma}, max_grad_norm=None))
    bank.zero_grad()
    for _ in range(3):
        bank.collect_grad()
    bank.finish_grad()
    assert update.step(learning_rate=0.0).grad_norm == pytest.approx(expected, rel=1e-9)


# -- masked triplets


def rows_of(bank: AdapterBank, flat: Tensor, kept: np.ndarray, *, masked: bool) -> Tensor:
    """Entries of a flat tensor that belong to masked, or to kept, triplets; without lam."""
    parts = []
    for k, rank in enumerate(bank.layout.ranks):
        own = torch.from_numpy(kept[k * rank : (k + 1) * rank] != masked)
        p, _, q = bank.layout.site(flat, k)
        parts += [p[own].flatten(), q[own].flatten()]
    return torch.cat(parts)


KEPT = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)


def trained_and_masked(config: RunConfig) -> tuple[AdapterBank, OptimizerStep, Frozen]:
    bank = new_bank()
    model, update = hooked(bank), OptimizerStep(bank, config)
    for step in range(1, 4):
        backward(model, bank, step)
        update.step(learning_rate=0.02)
    bank.set_mask(KEPT)
    return bank, update, model


@pytest.mark.parametrize("gamma", [0.0, 0.5], ids=["", "with penalty"])
def test_nothing_of_a_masked_triplet_moves(gamma: float):
    config = config_of(sampling={"orthogonality": gamma}, weight_decay=0.1)
    bank, update, model = trained_and_masked(config)
    before, gone = copies(bank), torch.from_numpy(~KEPT)
    for step in range(4, 9):
        backward(model, bank, step)
        update.step(learning_rate=0.02)
    for name in ("master", "exp_avg", "exp_avg_sq"):
        now, then = bank.state()[name], before[name]
        assert torch.equal(rows_of(bank, now, KEPT, masked=True), rows_of(bank, then, KEPT, masked=True)), (
            name
        )
        assert torch.equal(bank.layout.lam(now)[gone], bank.layout.lam(then)[gone]), name
        assert (rows_of(bank, now, KEPT, masked=False) != rows_of(bank, then, KEPT, masked=False)).all(), name
        assert (bank.layout.lam(now)[~gone] != bank.layout.lam(then)[~gone]).all(), name
        assert (bank.layout.head(now) != bank.layout.head(then)).all(), name


@pytest.mark.parametrize("gamma", [0.0, 0.5], ids=["", "with penalty"])
def test_importance_of_masked_p_and_q_is_held_and_lams_goes_on(gamma: float):
    bank, update, model = trained_and_masked(config_of(sampling={"orthogonality": gamma}))
    before = copies(bank)
    head = torch.zeros(bank.layout.size - bank.layout.adapter_size)
    for step in range(4, 7):
        backward(model, bank, step)
        update.step(learning_rate=0.02)
    for name in ("sensitivity", "uncertainty"):
        now, then = (torch.cat([flat, head]) for flat in (bank.state()[name], before[name]))
        held, was = (rows_of(bank, flat, KEPT, masked=True) for flat in (now, then))
        assert torch.equal(held, was), name
        assert was.all(), name
        moved = rows_of(bank, now, KEPT, masked=False) != rows_of(bank, then, KEPT, masked=False)
        assert moved.all(), name
        assert (bank.layout.lam(now) != bank.layout.lam(then)).all(), name


def test_masked_lam_is_judged_by_the_gradient_of_the_product(float64: None):
    """S <- 0.85 S + 0.15 |lam g| with the held lam and g the slope at m lam = 0, from the dense model."""
    bank, update, model = trained_and_masked(config_of(max_grad_norm=1e-3))
    before, gone = bank.layout.lam(bank.sensitivity).clone(), torch.from_numpy(~KEPT)
    dense = Dense(bank, weight_decay=0.0, max_norm=None, gamma=0.0)
    with torch.no_grad():
        for k, (_, lam, _) in enumerate(dense.parts):
            lam.mul_(torch.from_numpy(KEPT[4 * k : 4 * k + 4]))
    dense.loss(9).backward()
    slope = torch.cat([lam.grad for _, lam, _ in dense.parts])
    assert slope[gone].all()
    expected = 0.85 * before + 0.15 * (bank.layout.lam(bank.master) * slope).abs()
    backward(model, bank, 9)
    update.step(learning_rate=0.02)
    assert distance(bank.layout.lam(bank.sensitivity), expected) < 1e-12
    assert (bank.layout.lam(bank.sensitivity)[gone] != 0.85 * before[gone]).all()


def test_norm_counts_only_what_may_move(float64: None):
    bank, update, model = trained_and_masked(config_of(max_grad_norm=None))
    backward(model, bank, 9)
    flat, virtual = bank.grad.clone(), bank.grad.norm().item()
    bank.layout.lam(flat)[torch.from_numpy(~KEPT)] = 0  # P and Q of masked triplets have no gradient
    stats = update.step(learning_rate=0.02)
    assert stats.grad_norm == pytest.approx(flat.norm().item(), rel=1e-12)
    assert stats.grad_norm < 0.999 * virtual


def test_a_triplet_that_comes_back_moves_again():
    bank, update, model = trained_and_masked(config_of())
    back = KEPT | (np.arange(8) == 1)
    bank.set_mask(back)
    before = [part[1].clone() for part in bank.layout.site(bank.master, 0)]
    backward(model, bank, 9)
    update.step(learning_rate=0.02)
    assert all(
        (part[1] != was).all() for part, was in zip(bank.layout.site(bank.master, 0), before, strict=True)
    )


# -- skipped steps and loss scale


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("place", [0, -1], ids=["first", "head"])
def test_step_with_a_gradient_that_is_not_finite_changes_nothing(value: float, masked: bool, place: int):
    config = config_of(sampling={"orthogonality": 0.1}, weight_decay=0.1)
    runs = []
    for poisoned in (False, True):
        bank = new_bank()
        update = OptimizerStep(bank, config)
        for step in range(3):
            put_gradient(bank, step)
            update.step(learning_rate=0.02)
        if masked:
            bank.set_mask(KEPT)
        if poisoned:
            before, taken, compute = copies(bank), update.steps_taken, bank.compute.values.clone()
            put_gradient(bank, 7)
            bank.grad[place] = value
            stats = update.step(learning_rate=0.02)
            assert stats.skipped
            assert not math.isfinite(stats.grad_norm)
            assert_same(bank, before)
            assert torch.equal(bank.compute.values, compute)
            assert update.steps_taken == taken == 3
        put_gradient(bank, 8)
        stats = update.step(learning_rate=0.02)
        assert not stats.skipped
        assert update.steps_taken == 4
        runs.append(copies(bank))
    assert_same(bank, runs[0])  # as if the bad step had not been: bias correction and all


def test_masked_lam_without_a_finite_gradient_skips_too():
    bank = new_bank()
    update = OptimizerStep(bank, config_of())
    bank.set_mask(KEPT)
    before = copies(bank)
    put_gradient(bank)
    bank.layout.lam(bank.grad)[1] = math.inf
    assert update.step(learning_rate=0.02).skipped
    assert_same(bank, before)


def test_fp16_loss_scale_does_not_reach_importance_or_step():
    """A power of two goes in and comes out: bit-identical to the unscaled gradient."""
    scaled, plain = new_bank(dtype=torch.float16), new_bank()
    config = config_of(weight_decay=0.1, max_grad_norm=1.0)
    updates = [OptimizerStep(bank, config) for bank in (scaled, plain)]
    assert [update.loss_scale.value for update in updates] == [2.0**15, 1.0]
    for step in range(4):
        put_gradient(scaled, step, scale=updates[0].loss_scale.value)
        put_gradient(plain, step)
        stats = [update.step(learning_rate=0.02) for update in updates]
        assert stats[0] == stats[1]
    assert_same(scaled, copies(plain))
    assert scaled.sensitivity.any()


def test_fp16_gradient_is_near_the_fp32_one():
    half, full = new_bank(dtype=torch.float16), new_bank()
    update = OptimizerStep(half, config_of())
    backward(hooked(half), half, 1, loss_scale=update.loss_scale.value)
    backward(hooked(full), full, 1)
    assert distance(half.grad / update.loss_scale.value, full.grad) < 0.02


def test_fp16_overflow_halves_the_scale_and_is_skipped():
    bank = new_bank(dtype=torch.float16)
    update, before = OptimizerStep(bank, config_of()), copies(bank)
    for expected in (2.0**14, 2.0**13):
        put_gradient(bank)
        bank.grad[3] = math.inf
        assert update.step(learning_rate=0.02).skipped
        assert update.loss_scale.value == expected
    assert_same(bank, before)
    put_gradient(bank, scale=update.loss_scale.value)
    assert not update.step(learning_rate=0.02).skipped
    plain = new_bank()
    put_gradient(plain)
    OptimizerStep(plain, config_of()).step(learning_rate=0.02)
    assert_same(bank, copies(plain))


def test_loss_scale_grows_after_a_thousand_good_steps_and_never_falls_below_one():
    scale = LossScale(enabled=True)
    for _ in range(999):
        scale.follow(True)
    assert scale.value == 2.0**15
    scale.follow(True)
    assert scale.value == 2.0**16
    for finite in (*[True] * 400, *[False] * 30):
        scale.follow(finite)
    assert scale.value == 1.0
    for _ in range(999):
        scale.follow(True)
    assert scale.value == 1.0  # a thousand in a row, counted from the last overflow
    scale.follow(True)
    assert scale.value == 2.0
    off = LossScale(enabled=False)
    for finite in (False, *[True] * 1000):
        off.follow(finite)
    assert off.value == 1.0


# -- importance, compaction, restoring


def test_importance_is_taken_before_clipping_and_before_the_step(float64: None):
    clipped, free = new_bank(), new_bank()
    values = clipped.master.clone()
    updates = [
        OptimizerStep(bank, config_of(max_grad_norm=limit)) for bank, limit in ((clipped, 1e-3), (free, None))
    ]
    for bank, update in zip((clipped, free), updates, strict=True):
        put_gradient(bank)
        update.step(learning_rate=0.02)
    assert torch.equal(clipped.sensitivity, free.sensitivity)
    assert torch.equal(clipped.uncertainty, free.uncertainty)
    assert distance(clipped.exp_avg, free.exp_avg) > 0.9  # it did clip
    put_gradient(free)
    expected = 0.15 * (values * free.grad).abs()[: free.layout.adapter_size]
    assert distance(clipped.sensitivity, expected) < 1e-12


@pytest.mark.parametrize("betas", [(0.5, 0.85), (0.85, 0.5)])
def test_importance_has_the_configs_betas(float64: None, betas: tuple[float, float]):
    bank = new_bank()
    update = OptimizerStep(bank, config_of(sampling={"beta1": betas[0], "beta2": betas[1]}))
    put_gradient(bank)
    instant = (bank.master * bank.grad).abs()[: bank.layout.adapter_size]
    update.step(learning_rate=0.0)
    s = (1 - betas[0]) * instant
    assert distance(bank.sensitivity, s) < 1e-12
    assert distance(bank.uncertainty, (1 - betas[1]) * (instant - s).abs()) < 1e-12


def test_compaction_between_steps_equals_going_on_with_a_mask(float64: None):
    """Dropping masked triplets from storage changes nothing of what is left, at any later step."""
    config = config_of(weight_decay=0.1, max_grad_norm=0.3)
    banks = []
    for compact in (False, True):
        bank, update, model = trained_and_masked(config)
        if compact:
            bank.compact(KEPT)
            update.rebuild()
            model.hooks.attach()
        for step in range(4, 9):
            backward(model, bank, step)
            update.step(learning_rate=0.02)
        assert update.steps_taken == 8
        banks.append(bank)
    masked, compacted = banks
    assert compacted.sensitivity is None
    for name in ("master", "exp_avg", "exp_avg_sq"):
        expected = masked.layout.take(KEPT, masked.state()[name])[0]
        assert distance(compacted.state()[name], expected) < 1e-10


def test_restored_update_goes_on_bit_identically():
    """As after loading a checkpoint into a new process."""
    config = config_of(weight_decay=0.1)
    bank = new_bank()
    update = OptimizerStep(bank, config)
    for step in range(5):
        put_gradient(bank, step)
        update.step(learning_rate=0.02)
        if step == 2:
            saved, state = copies(bank), update.state_dict()
    other = new_bank(seed=9)
    for name, value in other.state().items():
        value.copy_(saved[name])
    other.masks_from_tensor()
    second = OptimizerStep(other, config)
    second.load_state_dict(json.loads(json.dumps(state)))
    for step in (3, 4):
        put_gradient(other, step)
        second.step(learning_rate=0.02)
    assert_same(other, copies(bank))
