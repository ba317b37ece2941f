"""Adapters' forward term and penalty, against autograd and PEFT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel

from lingo_ds.models.adapters.layout import Site
from lingo_ds.models.adapters.orthogonality import Orthogonality
from lingo_ds.models.adapters.sites import AdaptedSites
from lingo_ds.models.ops.matmul import supports_matmul
from tests.unit.models.dense_adapters import (
    CLASSES,
    SCALE,
    Dense,
    Frozen,
    distance,
    hooked,
    inputs,
    logits_of,
    new_bank,
    some_kept,
)


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 0, 3)], ids=["uniform", "ragged"])
@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
def test_forward_equals_the_dense_map(dtype: torch.dtype, ranks: tuple[int, ...], has_lam: bool):
    bank = new_bank(ranks=ranks, has_lam=has_lam)
    model, x = hooked(bank), inputs(2, 9, 7)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    expected = Dense(Frozen(), bank).logits(x)
    assert distance(logits_of(model, bank, x), expected) < tolerance
    frozen = Frozen()(x) @ bank.compute.head.T
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
    bank.finish_grad()
    expected = plain.flat_grad()
    assert (expected != 0).sum() > 0.3 * len(expected)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert distance(bank.grad, expected) < tolerance
    assert not bank.scalars.any()
    bank.zero_grad()
    assert not bank.reduce_buffer.any()


class OneDNNProducts(TorchDispatchMode):
    """Shapes (d_out, d_in) of the weights of products that oneDNN computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "mkldnn" in str(func):
            self.weights.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not supports_matmul(torch.float32, torch.device("cpu")), reason="no oneDNN on this CPU")
def test_onednn_meets_no_product_of_an_adapters_rank():
    """It keeps compiled code for each shape: ranks differ after the final mask, as do lengths of packs."""
    bank = new_bank(ranks=(2, 1, 3), has_lam=True)
    model = hooked(bank)
    bank.zero_grad()
    with OneDNNProducts() as seen:
        logits_of(model, bank, inputs(8, 7)).sum().backward()
    frozen = {tuple(p.shape) for p in Frozen().parameters() if p.ndim == 2}
    assert seen.weights and set(seen.weights) <= frozen | {shape[::-1] for shape in frozen}


BACKBONES = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
        "attn_pdrop": 0,
    },
}


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
    ours.hooks = AdaptedSites(modules)
    ours.hooks.add(bank, dropout=dropout)
    head = bank.layout.head(bank.master).clone().requires_grad_()
    for k, name in enumerate(adapted):
        values = bank.layout.site(bank.master, k)
        layers[name].lora_A["default"].weight.data.copy_(values.q)
        layers[name].lora_B["default"].weight.data.copy_(values.p.T)

    ids = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(2))
    logits = []
    bank.zero_grad()
    for model, weight in ((ours, bank.compute.head), (theirs, head)):
        torch.manual_seed(1)  # of dropout
        logits.append(model.train()(input_ids=ids).last_hidden_state[:, -1] @ weight.T)
        F.cross_entropy(logits[-1], torch.arange(4) % CLASSES).backward()
    bank.collect_grad()
    bank.finish_grad()
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
