"""Maps that read one tensor are one function with their adapters; each still gets what is its own."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lingo_ds.models.adapters import adapted_maps
from lingo_ds.models.adapters.adapted_maps import AdaptedMaps
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site, uniform_layout
from lingo_ds.models.adapters.sites import AdaptedSites, choose_sites
from lingo_ds.utils.errors import UserError
from tests.unit.models.test_packed_forward import (
    CPU,
    LENGTHS,
    folders,
    model_of,
    padded_and_packed,
    result,
    some_examples,
)

__all__ = ["folders"]


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The number of maps of each function that is computed."""
    sizes, forward = [], adapted_maps._AdaptedMaps.forward

    def counting(
        ctx: Any, x: Tensor, anchor: Tensor, maps: AdaptedMaps, training: bool
    ) -> tuple[Tensor, ...]:
        sizes.append(len(maps.maps))
        return forward(ctx, x, anchor, maps, training)

    monkeypatch.setattr(adapted_maps._AdaptedMaps, "forward", staticmethod(counting))
    return sizes


def test_seven_maps_of_a_llama_layer_are_four_functions(folders, counted):
    """q, k, v and gate, up; o and down have theirs."""
    _, pack = padded_and_packed(some_examples(LENGTHS["alike"]), share_prefix=False)
    result(model_of(folders("llama"), packed=True, pooling="mean"), pack)
    assert sorted(counted) == sorted([3, 1, 2, 1] * 2)


def two_maps() -> tuple[list[nn.Linear], AdapterBank, Callable[[int, Tensor, Tensor], Tensor]]:
    """Two maps that read the same tensor, and each one from dense matrices, adapters' input apart."""
    layout = uniform_layout([Site("a", 5, 7), Site("b", 4, 7)], rank=2, head_shape=(2, 5))
    bank = AdapterBank(layout, scale=3.0, dtype=torch.float32, device=CPU, scalars=1, importance=False)
    bank.master.copy_(torch.randn(layout.size, generator=torch.Generator().manual_seed(1)))
    bank.refresh()
    modules = [nn.Linear(7, 5), nn.Linear(7, 4, bias=False)]
    plain = [module.forward for module in modules]

    def dense(place: int, x: Tensor, dropped: Tensor) -> Tensor:
        p, lam, q = layout.site(bank.master, place)
        return plain[place](x) + 3.0 * dropped @ q.T @ torch.diag(lam) @ p

    AdaptedSites({"a": modules[0], "b": modules[1]}, shared_inputs=[("a", "b")]).add(bank, dropout=0.5)
    return [module.eval() for module in modules], bank, dense


def test_outputs_serve_only_the_tensor_they_were_computed_from(counted):
    maps, _, dense = two_maps()
    x, y = torch.randn(3, 7), torch.randn(3, 7)
    for place, given in ((0, x), (1, y), (1, x), (1, x), (0, x)):
        assert torch.allclose(maps[place](given), dense(place, given, given), atol=1e-5)
    assert counted == [2] * 4  # the last was computed with the one before


def test_changed_values_are_seen_by_the_next_forward_of_the_same_tensor():
    maps, bank, _ = two_maps()
    x = torch.randn(3, 7)
    before = [one(x) for one in maps]
    bank.compute.operands([0, 1]).q.mul_(2)
    assert not torch.allclose(maps[0](x), before[0])


def test_one_dropout_serves_all_members():
    maps, _, dense = two_maps()
    x = torch.ones(1, 7)
    torch.manual_seed(0)
    found = [one.train()(x) for one in maps]
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.5)
    for place in (0, 1):
        assert torch.allclose(found[place], dense(place, x, dropped), atol=1e-5)


# On a model


class Maps(nn.Module):
    """Three maps that read one tensor, and one that reads what they put out."""

    SITES = (Site("q", 5, 7), Site("k", 4, 7), Site("v", 3, 7), Site("o", 7, 12))
    TOGETHER = (("q", "k", "v"),)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, d_out, d_in in self.SITES:
            setattr(self, name, nn.Linear(d_in, d_out))
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.o(torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)) / 10)


def hooked(
    shared_inputs: Sequence[Sequence[str]], *, kept: np.ndarray | None = None, has_lam: bool = True
) -> tuple[Maps, AdapterBank]:
    """The maps with an adapter on each, compacted to the kept triplets."""
    layout = uniform_layout(Maps.SITES, rank=4, head_shape=(2, 7), has_lam=has_lam)
    bank = AdapterBank(
        layout, scale=2.0, dtype=torch.get_default_dtype(), device=CPU, scalars=1, importance=False
    )
    bank.master.copy_(torch.randn(layout.size, generator=torch.Generator().manual_seed(1)))
    bank.refresh()
    model = Maps()
    hooks = AdaptedSites(dict(model.named_modules()), shared_inputs=shared_inputs)
    hooks.add(bank)
    if kept is not None:
        bank.compact(kept)
        hooks.attach()
    return model, bank


def two_steps(model: Maps, bank: AdapterBank) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the adapters, of two micro-batches of other values."""
    bank.zero_grad()
    outs = []
    for seed in (2, 3):
        x = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(seed))
        outs.append(model(model(x)))
        outs[-1].square().sum().backward()
        bank.collect_grad()
    bank.finish_grad()
    return torch.stack(outs).detach(), bank.grad[: bank.layout.adapter_size].clone()


KEPT = {
    "all": None,
    "other ranks": np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0], dtype=bool),
    "k gone": np.repeat([True, False, True, True], 4),
    "q and v gone": np.repeat([False, True, False, True], 4),
    "all of them gone": np.repeat([False, False, False, True], 4),
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
def test_gradient_is_that_of_products_by_themselves(float64, has_lam, kept):
    alone, together = (two_steps(*hooked(how, kept=kept, has_lam=has_lam)) for how in ((), Maps.TOGETHER))
    for found, expected in zip(together, alone, strict=True):
        assert (found - expected).norm() < 1e-12 * expected.norm()
    assert (alone[1] != 0).all()  # every entry is at work


@pytest.mark.parametrize("kept", ["all", "k gone", "all of them gone"])
def test_members_are_one_function_whatever_is_left_of_them(counted, kept):
    """So that their sum has the same order for every run of a fleet."""
    model, _ = hooked(Maps.TOGETHER, kept=KEPT[kept])
    model(torch.randn(3, 7))
    assert counted == [3, 1]


def test_member_that_is_called_with_another_tensor_gets_its_own():
    x, y = torch.randn(3, 7), torch.randn(3, 7)
    outputs = []
    for how in ((), Maps.TOGETHER):
        model, _ = hooked(how)
        calls = [(model.q, x), (model.k, y), (model.v, x), (model.v, y), (model.q, x), (model.q, x)]
        outputs.append([map_(given) for map_, given in calls])
    for found, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected)


MAPS = {
    "layers.0.self_attn.q_proj": (32, 32),
    "layers.0.self_attn.v_proj": (16, 32),
    "layers.0.mlp.up_proj": (48, 32),
    "layers.1.self_attn.q_proj": (32, 32),
    "layers.1.self_attn.v_proj": (16, 32),
    "layers.1.mlp.up_proj": (48, 32),
}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", [0, 1, 3, 4]),
        (["v_proj"], [1, 4]),
        (["up_proj", "q_proj"], [0, 2, 3, 5]),  # the backbone's order, not the list's
        (["self_attn.v_proj", "layers.0.mlp.up_proj"], [1, 2, 4]),
        (["q_proj", "layers.0.self_attn.q_proj"], [0, 3]),  # named twice, adapted once
        (r".*\.1\..*_proj", [3, 4, 5]),
        (r"layers\.0\.mlp\.up_proj", [2]),
    ],
    ids=str,
)
def test_choose_sites(targets, expected):
    sites = choose_sites(MAPS, targets=targets, family_default=("q_proj", "v_proj"))
    names = [list(MAPS)[k] for k in expected]
    assert [(site.name, site.d_out, site.d_in) for site in sites] == [(name, *MAPS[name]) for name in names]


@pytest.mark.parametrize("targets", [["qproj"], ["q_proj", "qproj"], "qproj"], ids=str)
def test_target_that_matches_nothing_suggests_the_nearest(targets):
    with pytest.raises(UserError, match=r"error: adapter.targets: 'qproj': .*did you mean q_proj\?"):
        choose_sites(MAPS, targets=targets, family_default=())


def test_every_target_that_matches_nothing_is_named():
    with pytest.raises(UserError) as caught:
        choose_sites(MAPS, targets=["qproj", "proj", "nothing_alike"], family_default=())
    assert [mistake.value for mistake in caught.value.mistakes] == ["qproj", "proj", "nothing_alike"]


def test_list_entry_does_not_match_a_part_of_a_name():
    with pytest.raises(UserError, match="matches no linear map"):
        choose_sites(MAPS, targets=["proj"], family_default=())
