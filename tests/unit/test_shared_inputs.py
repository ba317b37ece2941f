"""Adapters of maps that read one tensor share their first product; each still gets what is its own."""

import torch

from lingo_ds.adapters import sites
from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.adapters.layout import Site, uniform_layout
from lingo_ds.adapters.sites import SharedProjection
from tests.unit.test_attention import (
    CPU,
    LENGTHS,
    folders,
    model_of,
    padded_and_packed,
    result,
    some_examples,
)

__all__ = ["folders"]


def projection() -> tuple[SharedProjection, AdapterBank]:
    layout = uniform_layout([Site("a", 5, 7), Site("b", 4, 7)], rank=2, head_shape=(2, 5))
    bank = AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=1, importance=False)
    bank.initialize(0)
    return SharedProjection(bank.leaves, dropout=0.5), bank


def test_five_maps_of_a_llama_layer_need_two_products(folders, monkeypatch):
    """q, k, v and gate, up; o and down have theirs."""
    counted, project = [], sites.project
    monkeypatch.setattr(
        sites, "project", lambda x, of, **how: counted.append(len(of)) or project(x, of, **how)
    )
    _, pack = padded_and_packed(some_examples(LENGTHS["alike"]), share_prefix=False)
    result(model_of(folders("llama"), packed=True, pooling="mean"), pack)
    assert sorted(counted) == sorted([3, 1, 2, 1] * 2)


def test_product_serves_only_the_tensor_it_was_computed_from():
    shared, bank = projection()
    x, y = torch.randn(3, 7), torch.randn(3, 7)
    assert torch.allclose(shared(0, x, training=False), x @ bank.leaves[0].q.T)
    assert torch.allclose(shared(1, y, training=False), y @ bank.leaves[1].q.T)
    for _ in range(2):
        assert torch.allclose(shared(1, x, training=False), x @ bank.leaves[1].q.T)


def test_changed_values_are_seen_by_the_next_forward_of_the_same_tensor():
    shared, bank = projection()
    x = torch.randn(3, 7)
    shared(0, x, training=False)
    with torch.no_grad():
        bank.leaves[0].q.mul_(2)
    assert torch.allclose(shared(0, x, training=False), x @ bank.leaves[0].q.T)


def test_one_dropout_serves_all_members():
    shared, bank = projection()
    x = torch.ones(1, 7)
    torch.manual_seed(0)
    found = [shared(place, x, training=True) for place in (0, 1)]
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.5)
    for place in (0, 1):
        assert torch.allclose(found[place], dropped @ bank.leaves[place].q.T)
