"""Passes that hold several runs, against each run alone: the same gradients, whatever else is in the pass."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lingo_ds.data.batches import Batch, make_batch
from lingo_ds.data.packing import Pack, make_pack
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank, Scalar
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.carrier import Carrier
from lingo_ds.training.joint_pass import Work, compute_step, passes
from lingo_ds.training.losses import cross_entropy_sum
from lingo_ds.training.optimizer_step import OptimizerStep
from tests.unit.data.test_packing import split_of
from tests.unit.models.test_packed_forward import ALONE, CPU, VOCABULARY, folders  # noqa: F401
from tests.unit.training.test_optimizer_step import config_of

TOLERANCE = {True: 1e-6, False: 2e-6}
"""Of packs and of padded batches, which in a pass of several are as wide as the widest."""


class Kind(NamedTuple):
    """What one run of a pass is: its adapters, and its examples."""

    targets: str = "all-linear"
    rank: int = 4
    tokens: int = 0
    dropout: float = 0.0
    classes: int = 3
    prefix: int = 9
    lengths: tuple[int, ...] = (7, 12, 7, 20)


KINDS = {
    "all maps": Kind(),
    "few maps": Kind(targets=r".*(layers|h|layer)\.0\..*", rank=2, prefix=4, lengths=(3, 30)),
    "head alone": Kind(rank=0, prefix=0, lengths=(5, 5, 5)),
    "learned tokens": Kind(tokens=5, classes=2, prefix=0, lengths=(11,)),
    "dropout": Kind(dropout=0.3, rank=8, lengths=(9, 9)),
}


def work_of(backbone: Carrier, spec: BackboneSpec, name: str, *, packed: bool, pooling: str) -> Work:
    """A run of this kind on a backbone, whose every entry is at work."""
    kind = KINDS[name]
    sites = choose_sites(spec.linear_maps, targets=kind.targets, family_default=spec.target_names)
    layout = uniform_layout(
        sites,
        rank=kind.rank,
        head_shape=(kind.classes, spec.output_size),
        token_shape=(kind.tokens, spec.embedding_shape[1] if kind.tokens else 0),
    )
    bank = AdapterBank(
        layout, scale=2.0, dtype=torch.float32, device=CPU, scalars=len(Scalar), importance=False
    )
    draw = torch.Generator().manual_seed(len(name))
    bank.master.copy_(0.3 * torch.randn(layout.size, generator=draw))
    bank.refresh()
    model = AdaptedModel(backbone, bank, pooling=pooling, dropout=kind.dropout)
    examples = examples_of(kind, seed=len(name), share_prefix=spec.causal)
    step = OptimizerStep(bank, config_of())
    return Work(
        model,
        [forward_of(examples, packed=packed, share_prefix=spec.causal)],
        examples=len(kind.lengths),
        loss=cross_entropy_sum,
        optimizer_step=step,
        tokens=100,
        seed=(0, 1, 0),
    )


def examples_of(kind: Kind, *, seed: int, share_prefix: bool) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    common = draw.integers(5, VOCABULARY, kind.prefix if share_prefix else 0).tolist()
    most = VOCABULARY + kind.tokens
    return [[*common, *draw.integers(5, most, length).tolist()] for length in kind.lengths]


def forward_of(examples: list[list[int]], *, packed: bool, share_prefix: bool) -> Batch | Pack:
    split, rows, ones = split_of(examples), np.arange(len(examples)), np.ones(len(examples))
    if packed:
        return make_pack(split, rows, ones, share_prefix=share_prefix)
    return make_batch(split, rows, ones)


def carrier_of(folder: Path, *, packed: bool, checkpointing: bool = False) -> tuple[Carrier, BackboneSpec]:
    spec = read_spec(folder)
    options = BackboneOptions(packed=packed, activation_checkpointing=checkpointing)
    backbone = load_backbone(spec, options, dtype=torch.float32, env=ALONE)
    return Carrier(backbone, shared_inputs=spec.shared_inputs), spec


def gradients(works: Sequence[Work], **settings: object) -> tuple[list[Tensor], list[list[float]]]:
    """The gradient of every run's bank after one step, and what was measured of it."""
    measured = compute_step(works, **settings)
    return [work.model.bank.grad.clone() for work in works], measured


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("family", "packed", "pooling"),
    [
        ("llama", True, "last"),
        ("llama", True, "mean"),
        ("llama", False, "last"),
        ("gpt2", True, "last"),
        ("qwen2_window", True, "last"),
        ("bert", True, "first"),
        ("bert", False, "mean"),
    ],
)
def test_a_runs_gradient_is_that_of_the_run_alone(folders, family, packed, pooling, checkpointing):  # noqa: F811
    """Five runs of other maps, ranks, prefixes, lengths, heads, tokens and dropout."""
    carrier, spec = carrier_of(folders(family), packed=packed, checkpointing=checkpointing)
    alone = {}
    for name in KINDS:
        work = work_of(carrier, spec, name, packed=packed, pooling=pooling)
        ((grad,), (measured,)) = gradients([work])
        alone[name] = grad, measured
        work.model.detach()
    works = [work_of(carrier, spec, name, packed=packed, pooling=pooling) for name in KINDS]
    for budget in (None, 250):
        together, measured = gradients(works, budget=budget)
        for name, grad, own in zip(KINDS, together, measured, strict=True):
            expected, theirs = alone[name]
            assert distance(grad, expected) < TOLERANCE[packed], name
            assert own == pytest.approx(theirs, rel=1e-5), name


def test_runs_of_other_poolings_share_a_pass(folders):  # noqa: F811
    carrier, spec = carrier_of(folders("llama"), packed=True)
    kinds = [("all maps", "last"), ("few maps", "mean")]
    alone = []
    for name, pooling in kinds:
        work = work_of(carrier, spec, name, packed=True, pooling=pooling)
        alone += gradients([work])[0]
        work.model.detach()
    works = [work_of(carrier, spec, name, packed=True, pooling=pooling) for name, pooling in kinds]
    for found, expected in zip(gradients(works)[0], alone, strict=True):
        assert distance(found, expected) < TOLERANCE[True]


@pytest.mark.parametrize("packed", [True, False])
def test_a_run_that_is_not_finite_leaves_the_others_alone(folders, packed):  # noqa: F811
    carrier, spec = carrier_of(folders("llama"), packed=packed)
    names = ["all maps", "few maps", "dropout"]
    works = [work_of(carrier, spec, name, packed=packed, pooling="last") for name in names]
    expected = gradients(works)[0]
    works[1].model.bank.master.fill_(math.nan)
    works[1].model.bank.refresh()
    found, measured = gradients(works)
    assert math.isnan(measured[1][0])
    for place in (0, 2):
        assert distance(found[place], expected[place]) < TOLERANCE[packed]


def test_passes_hold_one_forward_of_a_run_and_no_more_tokens_than_allowed():
    def work(forwards: int, tokens: int) -> Work:
        return Work(None, [None] * forwards, 1, None, None, tokens, (0, 0, 0))

    works = [work(2, 60), work(1, 30), work(1, 200), work(2, 30)]
    found = [[(works.index(one.work), one.place) for one in part] for part in passes(works, 100)]
    assert found == [[(0, 0), (1, 0)], [(2, 0)], [(3, 0)], [(0, 1), (3, 1)]]
    assert [len(part) for part in passes(works, None)] == [4, 2]
