"""Memory of a step where layers are large: one layer beside a process's own part, and what it keeps."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from lingo_ds.distributed import process_group
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone import deepspeed_config
from lingo_ds.models.backbone.gathers import GatheredInPlace
from tests.own_memory import forget_peak, own_memory
from tests.ranks.spawn import run_ranks
from tests.ranks.test_zero import (
    VOCABULARY,
    global_batch,
    load_sharded,
    new_bank,
    place,
    sharded_gradient,
    stored_entries,
    watch_peak,
)

MIB = 1024**2
LAYERS, HIDDEN, INNER = 4, 1024, 4096
LAYER = 4 * (4 * HIDDEN**2 + 3 * HIDDEN * INNER)
"""Bytes of the maps of a layer, 64 MiB."""


class Steps(NamedTuple):
    """Two steps of one process.

    Attributes:
        gradients: of both.
        gathered: most bytes of whole weights that it had while a map ran.
        grown: most bytes beyond what was resident before them.
    """

    gradients: list[Tensor]
    gathered: int
    grown: int


def gathered(rank: int, world_size: int) -> tuple[list[Tensor], int, int]:
    """What is gathered three times, each of other values, and by how much memory grew; bytes of the whole."""
    place(rank, world_size)
    own = torch.full((16 * MIB,), float(rank))
    seen = []
    forget_peak()
    before = own_memory("VmRSS")
    for step in range(3):
        whole = torch.empty(world_size * len(own))
        GatheredInPlace(whole, own + step, None).wait()
        seen.append(whole[:: 8 * MIB].clone())
        del whole
    return seen, own_memory("VmHWM") - before, 4 * world_size * len(own)


def two_steps(
    rank: int, world_size: int, folder: Path, large: list[int], eight_bit: bool = False
) -> list[Steps]:
    """Training with each of `large`, the bytes from which a layer is large."""
    env = place(rank, world_size)
    made = []
    for limit in large:
        deepspeed_config.LARGE_LAYER = limit
        loaded = load_sharded(folder, env, group_size=world_size, checkpointing=False, eight_bit=eight_bit)
        model = AdaptedModel(loaded.backbone, new_bank(loaded.layout), pooling="last", dropout=0.0)
        module = loaded.backbone.module
        held = watch_peak(module, lambda module=module: stored_entries(module))
        forget_peak()
        before, parts = own_memory("VmRSS"), stored_entries(module)
        steps = [
            sharded_gradient(model, env, global_batch(k), loaded.backbone.require_partitioned) for k in (1, 2)
        ]
        gathered = 4 * (max(held) - parts)
        made.append(Steps([t for step in steps for t in step], gathered, own_memory("VmHWM") - before))
        del model, loaded, module
    process_group.stop()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from transformers import LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_gather_takes_no_memory_beside_its_result():
    for seen, grown, whole in run_ranks(gathered, 2):
        for step, values in enumerate(seen):
            assert values.tolist() == [step, step, step + 1, step + 1]
        assert whole <= grown < 1.7 * whole  # the next part of the group's own is 0.5


def test_a_large_layer_is_held_alone_and_changes_no_number(folder):
    """The first steps of a process load libraries, 150 MiB: what they take is not counted."""
    for _, sparing, plain in run_ranks(two_steps, 2, folder, [LAYER, LAYER, 1000 * LAYER]):
        assert all(map(torch.equal, sparing.gradients, plain.gradients))
        assert LAYER <= sparing.gathered < 1.1 * LAYER  # with its norms
        assert plain.gathered > 2 * LAYER
        assert sparing.grown < 1.5 * LAYER
        assert plain.grown > 3 * LAYER  # no layer alone, and gloo's own copies


def test_a_large_layer_in_8_bits_is_held_alone_too(folder):
    for _, sparing, plain in run_ranks(two_steps, 2, folder, [LAYER, LAYER, 1000 * LAYER], True):
        assert all(map(torch.equal, sparing.gradients, plain.gradients))
        assert LAYER <= sparing.gathered < 1.1 * LAYER
        assert plain.gathered > 2 * LAYER
        assert sparing.grown < 1.5 * LAYER  # a quarter of it on its way
        assert plain.grown > 2 * LAYER
