"""Importance and masks: numbers worked out by hand, golden numbers in float64, stock PEFT's RankAllocator."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.bank import AdapterBank, Scalar, triplet_scores
from lingo_ds.models.adapters.layout import Site, SiteViews, uniform_layout
from lingo_ds.rank_sampling.importance import update_importance_
from lingo_ds.rank_sampling.masks import best_triplets
from lingo_ds.rank_sampling.sampler import RankSampler
from lingo_ds.rank_sampling.schedule import BudgetSchedule
from lingo_ds.training.optimizer_step import OptimizerStep

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)


def update(*tensors: Tensor, moving: Tensor, **betas: float) -> None:
    """One update of S and U by a product, each of one part."""
    update_importance_(*tensors, moving=[moving], parts=lambda whole: [whole], **betas)


def config_of(**sampling: object) -> RunConfig:
    """A sharp clip and weight decay: neither may reach the importance."""
    return RunConfig.model_validate(
        {
            "name": "t",
            "backbone": {"path": "b"},
            "data": {"path": "d"},
            "rank_sampling": sampling,
            "train": {"max_grad_norm": 1e-3, "weight_decay": 0.1},
        }
    )


def put(into: SiteViews, p: Tensor, lam: Tensor, q: Tensor) -> None:
    """Writes P (d_out, rank), lam (rank,) and Q (rank, d_in) of the method's page into a site's views."""
    for view, value in zip(into, (p.T, lam, q), strict=True):
        view.copy_(value)


def test_averages_by_hand():
    # w g = 6, then 2. S: 0.15 * 6 = 0.9; 0.85 * 0.9 + 0.15 * 2 = 1.065.
    # U: 0.15 |6 - 0.9| = 0.765; 0.85 * 0.765 + 0.15 |2 - 1.065| = 0.7905.
    s, u = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    moving = torch.ones(1, dtype=torch.float64)
    for w, g, expected in ((-2.0, 3.0, (0.9, 0.765)), (0.5, 4.0, (1.065, 0.7905))):
        weight, grad = (torch.tensor([x], dtype=torch.float64) for x in (w, g))
        update(s, u, weight * grad, beta1=0.85, beta2=0.85, moving=moving)
        assert (s.item(), u.item()) == pytest.approx(expected, rel=1e-12)


def test_the_two_averages_have_their_own_beta():
    s, u = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    update(s, u, 4 * one, beta1=0.5, beta2=0.75, moving=one)
    assert (s.item(), u.item()) == pytest.approx((2.0, 0.5), rel=1e-12)


def test_held_rows_stay_bit_identical():
    generator = torch.Generator().manual_seed(0)
    s, u, weight, grad = (torch.rand(4, 3, generator=generator) for _ in range(4))
    s_before, u_before = s.clone(), u.clone()
    moving = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    update(s, u, weight * grad, beta1=0.85, beta2=0.85, moving=moving)
    for before, now in ((s_before, s), (u_before, u)):
        assert torch.equal(now[1::2], before[1::2])
        assert (now[::2] != before[::2]).all()


def test_golden_scores_of_the_mathematics_alone(golden: dict):
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in golden["values"].items()}
    s = {name: torch.zeros_like(value) for name, value in values.items()}
    u = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in golden["steps"]:
        for name, grad in step["grads"].items():
            update(
                s[name],
                u[name],
                values[name] * torch.tensor(grad, dtype=torch.float64),
                beta1=golden["beta1"],
                beta2=golden["beta2"],
                moving=torch.ones(1, dtype=torch.float64),
            )
        for site, expected in step["scores"].items():
            score = {part: s[f"{site}.{part}"] * u[f"{site}.{part}"] for part in ("P", "lam", "Q")}
            found = triplet_scores(score["lam"], score["P"].mean(0), score["Q"].mean(1))
            assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=0)


def test_golden_scores_and_masks_of_the_bank(golden: dict, dtype: torch.dtype):
    sites = [Site(name, d_out, d_in) for name, (d_out, d_in) in golden["sites"].items()]
    layout = uniform_layout(sites, rank=golden["rank"], head_shape=(2, 3))
    bank = AdapterBank(layout, scale=1.0, dtype=dtype, device=CPU, scalars=len(Scalar), importance=True)
    update = OptimizerStep(bank, config_of(beta1=golden["beta1"], beta2=golden["beta2"]))

    def parts(numbers: dict, site: Site) -> list[Tensor]:
        return [torch.tensor(numbers[f"{site.name}.{part}"]) for part in ("P", "lam", "Q")]

    for k, site in enumerate(sites):
        put(layout.site(bank.master, k), *parts(golden["values"], site))
    values = bank.master.clone()
    assert bank.master.dtype == dtype
    for step in golden["steps"]:
        bank.zero_grad()
        for k, site in enumerate(sites):
            put(layout.site(bank.grad, k), *parts(step["grads"], site))
        update.step(learning_rate=0.0)  # the page's values are fixed
        scores = bank.scores()
        expected = [score for site in sites for score in step["scores"][site.name]]
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        assert scores.tolist() == pytest.approx(expected, rel=tolerance, abs=0), step["step"]
        mask = best_triplets(scores.double().numpy(), step["budget"])
        by_hand = [bool(bit) for site in sites for bit in step["deterministic_mask"][site.name]]
        assert mask.tolist() == by_hand, step["step"]
    assert torch.equal(bank.master, values)


def test_masks_equal_those_of_stock_peft():
    """Values and gradients drawn anew at each step go into both; PEFT zeroes what ours zeroes."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    rank, target, total, t_init, t_final, interval = 4, 2, 12, 2, 2, 2
    llama = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = transformers.LlamaModel(llama)
    maps = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    sites = [Site(name, module.out_features, module.in_features) for name, module in maps.items()]
    theirs = peft.get_peft_model(
        model,
        peft.AdaLoraConfig(
            init_r=rank,
            target_r=target,
            tinit=t_init,
            tfinal=t_final,
            deltaT=interval,
            total_step=total,
            target_modules=list(maps),
        ),
    )
    layout = uniform_layout(sites, rank=rank, head_shape=(2, 16))
    bank = AdapterBank(
        layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=len(Scalar), importance=True
    )
    config = config_of(mode="deterministic", pruned_value="zero", interval=interval, target_rank=target)
    update = OptimizerStep(bank, config)
    schedule = BudgetSchedule(
        initial=rank * len(sites),
        target=target * len(sites),
        t_init=t_init,
        t_final=t_final,
        total=total,
        interval=interval,
    )
    sampler = RankSampler(bank, schedule, config.rank_sampling, seed=0, env=ALONE, on_compact=lambda: None)
    generator = torch.Generator().manual_seed(0)
    compared = []
    for step in range(1, total + 1):
        bank.zero_grad()
        lams = []
        for k, site in enumerate(sites):
            layer = theirs.base_model.model.get_submodule(site.name)
            matching = [layer.lora_B["default"], layer.lora_E["default"], layer.lora_A["default"]]
            shapes = [(site.d_out, rank), (rank, 1), (rank, site.d_in)]
            values, grads = ([torch.randn(s, generator=generator) for s in shapes] for _ in range(2))
            for parameter, value, grad in zip(matching, values, grads, strict=True):
                parameter.data.copy_(value)
                parameter.grad = grad.clone()
            lams.append(matching[1])
            for flat, (p, lam, q) in ((bank.master, values), (bank.grad, grads)):
                put(layout.site(flat, k), p, lam.flatten(), q)
        if step < schedule.final_step:  # PEFT's importance ends one step before its final mask
            update.step(learning_rate=0.0)
        event = sampler.after_step(step)
        theirs.base_model.update_and_allocate(step)
        zeroed = np.array([value.item() == 0 for lam in lams for value in lam])
        assert zeroed.any() == (event is not None), step
        if event:
            assert np.array_equal(~zeroed, sampler.kept), step
            assert event.kept == schedule.budget_at(step)
            compared.append(step)
        if step == schedule.final_step:
            assert event.final
            assert layout.keep(~zeroed).ranks == bank.layout.ranks
            assert len(set(bank.layout.ranks)) > 1  # not a pattern that any mask would have
            break
        if event:  # what was zeroed is zero in both, and nothing is held
            assert np.array_equal(layout.lam(bank.master).numpy() == 0, zeroed)
            assert bank.mask.all()
    assert compared == [4, 6, 8, 10]
