"""The adapter bank against autograd and PEFT: forward, gradient, masks, layout, compaction, penalty."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.hooks import SiteHooks
from lingo_ds.models.adapters.layout import BankLayout, Site, uniform_layout
from lingo_ds.models.adapters.lowrank import Orthogonality

CPU = torch.device("cpu")
SITES = (Site("first", 5, 7), Site("second", 6, 5), Site("third", 5, 6))
CLASSES = 3
SCALE = 16 / 4


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Everything inside, the bank's masters included, in this dtype."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


class Frozen(nn.Module):
    """Linear, transformers' Conv1D and Linear in a row, no bias in the last."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(7, 5), Conv1D(6, 5), nn.Linear(6, 5, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def new_bank(
    *,
    ranks: Sequence[int] = (4, 4, 4),
    dtype: torch.dtype | None = None,
    importance: bool = False,
    seed: int = 1,
    sites: Sequence[Site] = SITES,
    has_lam: bool = True,
    hidden: int = 5,
) -> AdapterBank:
    """A bank in which every entry of value, moments and importance is random, lam included."""
    layout = BankLayout(tuple(sites), tuple(ranks), (CLASSES, hidden), has_lam)
    bank = AdapterBank(
        layout,
        scale=SCALE,
        dtype=dtype or torch.get_default_dtype(),
        device=CPU,
        scalars=5,
        importance=importance,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, flat in bank.state().items():
        if name != "mask":
            flat.copy_(torch.randn(flat.shape, generator=generator) / 2)
    bank.refresh()
    return bank


def inputs(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Dense:
    """The same function from separate leaves: P (d_out, rank), the product m * lam, Q (rank, d_in), head.

    LoRA has no product: (0,), which counts as ones.
    """

    def __init__(self, model: Frozen, bank: AdapterBank, flat: Tensor | None = None):
        flat = bank.master if flat is None else flat
        self.model, self.layout, self.scale = model, bank.layout, bank.scale
        self.parts = []
        for k in range(len(bank.layout.sites)):
            p, lam, q = bank.layout.site(flat, k)
            first, last = (int(bank.layout.first_triplet[i]) for i in (k, k + 1))
            product = lam * bank.mask[first:last] if bank.layout.has_lam else lam
            self.parts.append([part.detach().clone().requires_grad_() for part in (p.T, product, q)])
        self.head = bank.layout.head(flat).detach().clone().requires_grad_()

    def weight(self, k: int) -> Tensor:
        """W + alpha / r0 P diag(m lam) Q, or W + alpha / r P Q, as one matrix (d_out, d_in)."""
        module = self.model.get_submodule(self.layout.sites[k].name)
        w = module.weight.T if isinstance(module, Conv1D) else module.weight
        p, product, q = self.parts[k]
        return w + self.scale * (p @ torch.diag(product) if self.layout.has_lam else p) @ q

    def hidden(self, x: Tensor) -> Tensor:
        for k, name in enumerate(("first", "second", "third")):
            x = F.linear(x if k == 0 else torch.tanh(x), self.weight(k), getattr(self.model, name).bias)
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.head.T

    def flat_grad(self) -> Tensor:
        """The leaves' gradients where the bank's buffer has them."""
        flat = torch.zeros(self.layout.size)
        for k, part in enumerate(self.parts):
            views = self.layout.site(flat, k)
            views.p.copy_(part[0].grad.T)
            views.q.copy_(part[2].grad)
            if self.layout.has_lam:
                views.lam.copy_(part[1].grad)
        self.layout.head(flat).copy_(self.head.grad)
        return flat


def hooked(bank: AdapterBank, *, dropout: float = 0.0) -> Frozen:
    model = Frozen()
    model.hooks = SiteHooks(dict(model.named_modules()), bank, dropout=dropout)
    return model.eval()


def logits_of(model: Frozen, bank: AdapterBank, x: Tensor) -> Tensor:
    return model(x.to(bank.dtype)) @ bank.head_leaf.T


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((found - expected).norm() / expected.norm())


def some_kept(triplets: int, *, seed: int = 3) -> np.ndarray:
    kept = np.random.default_rng(seed).random(triplets) < 0.5
    assert 0 < kept.sum() < triplets
    return kept


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 0, 3)], ids=["uniform", "ragged"])
@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
def test_forward_equals_the_dense_map(dtype: torch.dtype, ranks: tuple[int, ...], has_lam: bool):
    bank = new_bank(ranks=ranks, has_lam=has_lam)
    model, x = hooked(bank), inputs(2, 9, 7)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    expected = Dense(Frozen(), bank).logits(x)
    assert distance(logits_of(model, bank, x), expected) < tolerance
    frozen = Frozen()(x) @ bank.head_leaf.T
    assert distance(frozen, expected) > 0.1  # the adapters are no detail of it


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 0, 3)], ids=["uniform", "ragged"])
@pytest.mark.parametrize(
    "has_lam, masked", [(True, False), (True, True), (False, False)], ids=["svd", "svd masked", "lora"]
)
def test_gradient_equals_autograd_on_the_dense_map(
    dtype: torch.dtype, ranks: tuple[int, ...], has_lam: bool, masked: bool
):
    bank = new_bank(ranks=ranks, has_lam=has_lam)
    if masked:
        bank.set_mask(some_kept(bank.layout.triplets))
    model, plain = hooked(bank), Dense(Frozen(), bank)
    bank.zero_grad()
    for seed in (10, 11):  # two micro-batches add up
        x, labels = inputs(8, 7, seed=seed), torch.arange(8) % CLASSES
        F.cross_entropy(logits_of(model, bank, x), labels).backward()
        bank.collect_grad()
        F.cross_entropy(plain.logits(x), labels).backward()
    expected = plain.flat_grad()
    assert (expected != 0).sum() > 0.3 * len(expected)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert distance(bank.grad, expected) < tolerance
    assert not bank.scalars.any()
    bank.zero_grad()
    assert not bank.reduce_buffer.any()


def test_masked_triplet_is_absent_but_its_lam_has_a_gradient(dtype: torch.dtype):
    bank = new_bank()
    kept = some_kept(bank.layout.triplets)
    bank.set_mask(kept)
    model, x = hooked(bank), inputs(8, 7)
    left = AdapterBank(
        bank.layout.keep(kept), scale=SCALE, dtype=dtype, device=CPU, scalars=5, importance=False
    )
    left.replace(left.layout, bank.layout.take(bank.master, kept))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert distance(logits_of(model, bank, x), Dense(Frozen(), left).logits(x)) < tolerance
    bank.zero_grad()
    logits_of(model, bank, x).square().sum().backward()
    bank.collect_grad()
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
    assert layout.head(banks[0].master).all()
    hooked_bank = new_bank()
    hooked_bank.initialize(0, init="adalora")
    x = inputs(2, 9, 7)
    assert torch.equal(hooked(hooked_bank)(x), Frozen()(x))


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
    assert first.layout.head(first.master).all()
    assert not torch.equal(first.layout.head(first.master), other.layout.head(other.master))
    bank, x = initialized(0, has_lam=has_lam, sites=SITES), inputs(2, 9, 7)
    assert torch.equal(hooked(bank)(x), Frozen()(x))
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


BACKBONES = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "resid_pdrop": 0, "embd_pdrop": 0,
             "attn_pdrop": 0},
}  # fmt: skip
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
}


def backbone_and_pefts_lora(
    family: str, *, dropout: float, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """A tiny frozen backbone, and the same one in stock PEFT with LoRA on every linear map."""
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.for_model(family, vocab_size=32, initializer_range=0.2, **BACKBONES[family])
    lora = LoraConfig(
        r=4,
        lora_alpha=int(4 * SCALE),
        lora_dropout=dropout,
        target_modules=TARGETS[family],
        fan_in_fan_out=family == "gpt2",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = AutoModel.from_config(config, dtype=dtype).requires_grad_(False)
        return backbone, get_peft_model(copy.deepcopy(backbone), lora)


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
def test_lora_is_pefts(dtype: torch.dtype, family: str, dropout: float):
    """The same values in stock PEFT's LoRA give the same logits and gradients, of every site and the head."""
    pytest.importorskip("peft")
    ours, theirs = backbone_and_pefts_lora(family, dropout=dropout, dtype=dtype)
    modules, layers = dict(ours.named_modules()), dict(theirs.base_model.model.named_modules())
    adapted = [name for name in modules if name.endswith(tuple(TARGETS[family]))]
    assert len(adapted) == 2 * len(TARGETS[family])
    sites = [Site(name, layers[name].out_features, layers[name].in_features) for name in adapted]
    bank = new_bank(sites=sites, ranks=[4] * len(sites), has_lam=False, hidden=16)
    ours.hooks = SiteHooks(modules, bank, dropout=dropout)
    head = bank.layout.head(bank.master).clone().requires_grad_()
    for k, name in enumerate(adapted):
        values = bank.layout.site(bank.master, k)
        layers[name].lora_A["default"].weight.data.copy_(values.q)
        layers[name].lora_B["default"].weight.data.copy_(values.p.T)

    ids = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(2))
    logits = []
    bank.zero_grad()
    for model, weight in ((ours, bank.head_leaf), (theirs, head)):
        torch.manual_seed(1)  # of dropout
        logits.append(model.train()(input_ids=ids).last_hidden_state[:, -1] @ weight.T)
        F.cross_entropy(logits[-1], torch.arange(4) % CLASSES).backward()
    bank.collect_grad()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert distance(*logits) < tolerance
    assert distance(bank.layout.head(bank.grad), head.grad) < tolerance
    expected = torch.zeros_like(bank.grad)
    bank.layout.head(expected).copy_(head.grad)
    # what reaches the queries of the first layer is so small here that it is mostly rounding
    of_one = 100 * tolerance
    for k, name in enumerate(adapted):
        grads, theirs_k = bank.layout.site(bank.grad, k), bank.layout.site(expected, k)
        theirs_k.q.copy_(layers[name].lora_A["default"].weight.grad)
        theirs_k.p.copy_(layers[name].lora_B["default"].weight.grad.T)
        for found, part in ((grads.q, theirs_k.q), (grads.p, theirs_k.p)):
            assert found.any()
            assert distance(found, part) < of_one, name
    assert distance(bank.grad, expected) < tolerance


def test_dropout_acts_on_the_adapters_input_in_training_only():
    bank = new_bank(sites=[Site("first", 5, 7)], ranks=[4])
    model, x = hooked(bank, dropout=0.5), inputs(8, 7)
    p, lam, q = bank.layout.site(bank.master, 0)
    plain, adapter = Frozen().first(x), SCALE * q.T @ torch.diag(lam) @ p
    assert distance(model.first(x), plain + x @ adapter) < 1e-5
    model.train()
    torch.manual_seed(0)
    found = model.first(x)
    torch.manual_seed(0)
    assert distance(found, plain + F.dropout(x, 0.5) @ adapter) < 1e-5
    assert distance(found, plain + x @ adapter) > 0.1


def test_compute_copy_is_cast_and_masters_stay():
    bank = new_bank(dtype=torch.bfloat16)
    master = bank.master.clone()
    bank.refresh()
    assert torch.equal(bank.master, master)
    assert bank.leaves[0].p.dtype == torch.bfloat16
    assert torch.equal(bank.leaves[0].p, bank.layout.site(master, 0).p.bfloat16())
    assert bank.grad.dtype == torch.float32


def test_bf16_micro_batches_are_summed_in_fp32():
    """Each of 50 small gradients counts; a bf16 sum loses part of each once it has grown."""
    bank = new_bank(dtype=torch.bfloat16)
    model = hooked(bank).to(torch.bfloat16)
    frozen = Frozen()
    frozen.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    truth = Dense(frozen, bank, bank.master.bfloat16().float())  # has the same rounded values
    leaves = [leaf for site in bank.leaves for leaf in site] + [bank.head_leaf]
    exact, naive = ([torch.zeros_like(leaf, dtype=t) for leaf in leaves] for t in (torch.float64, bank.dtype))
    labels = torch.arange(4) % CLASSES
    bank.zero_grad()
    for k in range(50):
        x = (inputs(4, 7, seed=7) + 0.1 * inputs(4, 7, seed=100 + k)).bfloat16()  # of like sign: sums grow
        loss = F.cross_entropy(logits_of(model, bank, x).float(), labels)
        single = torch.autograd.grad(loss, leaves, retain_graph=True)
        for totals in (exact, naive):
            for total, part in zip(totals, single, strict=True):
                total.add_(part)
        loss.backward()
        bank.collect_grad()
        F.cross_entropy(truth.logits(x.float()), labels).backward()
    found = torch.cat([part.flatten() for part in site_parts(bank.layout, bank.grad)])
    expected = torch.cat([part.flatten() for part in site_parts(bank.layout, truth.flat_grad())])
    exact, naive = (torch.cat([total.flatten() for total in totals]).float() for totals in (exact, naive))
    assert distance(found, exact) < 1e-5
    assert distance(naive, exact) > 1e-3
    assert distance(found, expected) < distance(naive, expected)


# -- layout


@st.composite
def layouts(draw: st.DrawFn) -> BankLayout:
    count = draw(st.integers(1, 6))
    lengths = st.integers(1, 5)
    sites = tuple(Site(f"s{k}", draw(lengths), draw(lengths)) for k in range(count))
    ranks = tuple(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    head_shape = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    token_shape = draw(st.sampled_from([(0, 0), (5, 3)]))
    return BankLayout(sites, ranks, head_shape, has_lam=draw(st.booleans()), token_shape=token_shape)


def site_parts(layout: BankLayout, flat: Tensor) -> list[Tensor]:
    """Every view that a forward pass uses, head and learned tokens last."""
    parts = [view for k in range(len(layout.sites)) for view in layout.site(flat, k)]
    return [*parts, layout.head(flat), layout.tokens(flat)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts())
def test_any_layout_covers_the_buffer_once(layout: BankLayout):
    flat = torch.arange(layout.size)
    covered = torch.cat([part.flatten() for part in site_parts(layout, flat)])
    assert sorted(covered.tolist()) == flat.tolist()
    rows = [block.of(flat) for block in layout.blocks]
    adapters = torch.cat([*(block.flatten() for block in rows), layout.lam(flat)])
    assert adapters.tolist() == list(range(layout.adapter_size))
    own = 1 if layout.has_lam else 0  # lam of each triplet
    sizes = [rank * (s.d_out + s.d_in + own) for s, rank in zip(layout.sites, layout.ranks, strict=True)]
    assert layout.adapter_size == sum(sizes)
    beside = layout.head_shape[0] * layout.head_shape[1] + layout.token_shape[0] * layout.token_shape[1]
    assert layout.size == sum(sizes) + beside
    for k, (site, rank) in enumerate(zip(layout.sites, layout.ranks, strict=True)):
        views = layout.site(flat, k)
        assert [view.shape for view in views] == [(rank, site.d_out), (own * rank,), (rank, site.d_in)]
        assert all(view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for view in views)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts())
def test_any_layout_knows_which_row_is_whose(layout: BankLayout):
    flat = torch.arange(layout.size)
    first_of_row = torch.cat([block.of(flat)[:, 0] for block in layout.blocks])
    owner_of_row = np.concatenate([block.triplet_of_row for block in layout.blocks])
    p_rows, q_rows = layout.rows_of_triplets
    for k in range(len(layout.sites)):
        p, lam, q = layout.site(flat, k)
        triplets = range(int(layout.first_triplet[k]), int(layout.first_triplet[k + 1]))
        assert lam.tolist() == [layout.lam_start + triplet for triplet in triplets if layout.has_lam]
        for views, rows, which in ((p, p_rows, k), (q, q_rows, len(layout.sites) + k)):
            assert layout.matrices[which].tolist() == rows[triplets.start : triplets.stop].tolist()
            for slot, triplet in enumerate(triplets):
                assert first_of_row[rows[triplet]] == views[slot, 0]
                assert owner_of_row[rows[triplet]] == triplet


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts(), st.data())
def test_any_selection_equals_selecting_by_hand(layout: BankLayout, data: st.DataObject):
    n = layout.triplets
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    flat = torch.arange(layout.size)
    smaller, taken = layout.keep(kept), layout.take(flat, kept)
    assert smaller.sites == layout.sites
    assert smaller == replace(layout, ranks=smaller.ranks)
    assert len(taken) == smaller.size
    for k in range(len(layout.sites)):
        own = torch.from_numpy(kept[layout.first_triplet[k] : layout.first_triplet[k + 1]])
        assert smaller.ranks[k] == int(own.sum())
        for found, whole in zip(smaller.site(taken, k), layout.site(flat, k), strict=True):
            assert torch.equal(found, whole[own[: len(whole)]])  # LoRA's lam is empty
    assert torch.equal(smaller.head(taken), layout.head(flat))
    assert torch.equal(smaller.tokens(taken), layout.tokens(flat))
    importance = layout.take(flat[: layout.adapter_size], kept)  # has neither head nor tokens
    assert torch.equal(importance, taken[: smaller.adapter_size])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(layouts(), st.data())
def test_any_layout_with_other_ranks_is_one_made_with_them(layout: BankLayout, data: st.DataObject):
    n = len(layout.sites)
    ranks = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    before = layout.size, layout.triplets, layout.ranks
    found = layout.with_ranks(ranks)
    assert found == BankLayout(
        layout.sites, tuple(ranks), layout.head_shape, layout.has_lam, layout.token_shape
    )
    assert found.triplets == sum(ranks)  # nothing that the first had worked out stays
    flat = torch.arange(found.size)
    covered = torch.cat([part.flatten() for part in site_parts(found, flat)])
    assert sorted(covered.tolist()) == flat.tolist()
    assert (layout.size, layout.triplets, layout.ranks) == before
    assert layout.with_ranks(list(layout.ranks)) == layout


@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
def test_head_alone_is_a_bank_that_learns(has_lam: bool):
    """`adapter.method=none`: no site, no triplet, and what is done to every bank does not mind."""
    bank = new_bank(sites=(), ranks=(), has_lam=has_lam)
    bank.initialize(0)
    assert (bank.layout.size, bank.layout.adapter_size, bank.layout.triplets) == (5 * CLASSES, 0, 0)
    model, plain, x = hooked(bank), Dense(Frozen(), bank), inputs(8, 7)
    assert torch.equal(model(x), Frozen()(x))
    bank.zero_grad()
    logits_of(model, bank, x).square().sum().backward()
    (Frozen()(x) @ plain.head.T).square().sum().backward()
    assert bank.head_leaf.any()
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


# -- compaction


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
    assert distance(bank.grad, plain.flat_grad()) < 1e-5


def test_a_site_without_rank_costs_nothing():
    bank = new_bank()
    model, x = hooked(bank), inputs(8, 7)
    bank.compact(np.arange(12) // 4 != 0)
    model.hooks.attach()
    assert not model.first._forward_hooks
    assert torch.equal(model.first(x), Frozen().first(x))
    assert len(model.second._forward_hooks) == len(model.third._forward_hooks) == 1


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


# -- another's tensors


@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
@pytest.mark.parametrize("importance", [True, False], ids=["with importance", "without"])
def test_bank_of_the_right_shape_keeps_its_tensors(has_lam: bool, importance: bool):
    bank = new_bank(ranks=(1, 0, 3), has_lam=has_lam, importance=importance)
    before = [*bank.state().values(), bank.reduce_buffer, bank.head_leaf, *(leaf.q for leaf in bank.leaves)]
    copies = [tensor.clone() for tensor in before]
    assert bank.reshape([1, 0, 3], importance=importance) is False  # ranks as JSON gives them
    after = [*bank.state().values(), bank.reduce_buffer, bank.head_leaf, *(leaf.q for leaf in bank.leaves)]
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
    assert distance(logits_of(model, bank, x), plain.logits(x)) < 1e-5
    assert distance(bank.grad, plain.flat_grad()) < 1e-5


# -- penalty


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 0, 3), (2, 4, 4)], ids=["uniform", "rank 0", "ragged"])
def test_penalty_equals_autograd(dtype: torch.dtype, ranks: tuple[int, ...]):
    """Mean over P and Q of the norm, not of its square; a site of rank 0 has neither."""
    bank, weight = new_bank(ranks=ranks), 0.3
    present = inputs(bank.layout.size, seed=4)
    bank.grad.copy_(present)
    leaf = bank.master.clone().requires_grad_()
    norms = []
    for k, rank in enumerate(ranks):
        if rank:
            p, _, q = bank.layout.site(leaf, k)
            norms += [(rows @ rows.T - torch.eye(rank)).square().sum().sqrt() for rows in (p, q)]
    expected = weight * torch.stack(norms).mean()
    expected.backward()
    found = Orthogonality(bank).add_gradient_(bank, weight=weight)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)
    assert distance(bank.grad - present, leaf.grad) < 10 * tolerance
    assert not bank.layout.lam(leaf.grad).any()
    bank.grad.copy_(present)
    Orthogonality(bank).add_gradient_(bank, weight=2 * weight)  # in proportion to the weight
    assert distance(bank.grad - present, 2 * leaf.grad) < 10 * tolerance


def test_penalty_of_orthonormal_matrices_is_zero_and_finite():
    bank = new_bank(ranks=(4, 4, 4))
    for k in range(3):
        views = bank.layout.site(bank.master, k)
        for matrix in (views.p, views.q):
            matrix.copy_(torch.eye(matrix.shape[1])[:4])
    bank.zero_grad()
    assert Orthogonality(bank).add_gradient_(bank, weight=1.0).item() == 0
    assert torch.equal(bank.grad, torch.zeros_like(bank.grad))
