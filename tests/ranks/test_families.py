"""Every family under ZeRO-3 on two processes: plain torch's gradients, in full precision and in 8 bits."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from tests.ranks.spawn import run_ranks
from tests.ranks.test_zero import (
    dense_gradient,
    differences,
    global_batch,
    load_sharded,
    new_bank,
    partition_entries,
    place,
    sharded_gradient,
    stored_entries,
)
from tests.unit.models.family_table import MODELS, write_model


class Seen(NamedTuple):
    """What a process saw of a model: relative differences of gradients, and the entries that it held.

    Attributes:
        exact: two steps' gradients from plain torch's.
        rounded: one step's with maps in 8 bits from plain torch's.
        kept: experts' weights that the forward pass keeps for the backward pass.
        held: most entries between two steps.
        share: what it should hold.
    """

    exact: list[float]
    rounded: float
    kept: int
    held: int
    share: int


def compute(rank: int, world_size: int, folders: dict[str, Path]) -> dict[str, Seen]:
    env = place(rank, world_size)
    return {name: _compute(env, folder) for name, folder in folders.items()}


def _compute(env: DistEnv, folder: Path) -> Seen:
    held, exact, share, saved = [], [], 0, []

    def note(shapes: list[torch.Size], kept: Tensor) -> Tensor:
        shapes.append(kept.shape)
        return kept

    for eight_bit in (False, True):
        loaded = load_sharded(
            folder, env, group_size=env.world_size, checkpointing=False, eight_bit=eight_bit
        )
        model = AdaptedModel(loaded.backbone, new_bank(loaded.layout), pooling="last", dropout=0.0)
        module = loaded.backbone.module

        def look(backbone=loaded.backbone, module=module, eight_bit=eight_bit) -> None:
            backbone.require_partitioned()
            if not eight_bit:
                held.append(stored_entries(module))

        experts = [p.ds_shape for n, p in module.named_parameters() if ".experts." in n]
        for step in (1,) if eight_bit else (1, 2):
            batch = global_batch(step)
            with torch.autograd.graph.saved_tensors_hooks(partial(note, saved), lambda kept: kept):
                ours = sharded_gradient(model, env, batch, look)
            plain = dense_gradient(folder, loaded.layout, model.bank.master, batch)
            exact.append(differences(ours, plain)[1])
        share = share or partition_entries(module, env.world_size)
    assert len(saved) > 10
    return Seen(exact[:2], exact[2], sum(shape in experts for shape in saved), max(held), share)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict[str, Seen]]:
    folders = {name: write_model(tmp_path_factory.mktemp("family"), name) for name in MODELS}
    return run_ranks(compute, 2, folders, timeout=300)


@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_model_has_plain_torchs_gradients(seen, name):
    for of_process in seen:
        found = of_process[name]
        assert max(found.exact) < 2e-5
        assert found.held <= found.share and found.kept == 0
        assert 1e-5 < found.rounded < 0.2
