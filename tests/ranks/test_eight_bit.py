"""Maps held and gathered in 8 bits: the rounded model's gradients, whatever the number of processes."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.planning.traffic import Sharding, gathered_bytes
from lingo_ds.utils.resources import resource_path
from tests.ranks.spawn import run_ranks
from tests.ranks.test_traffic import counted_and_foreseen
from tests.ranks.test_world_sizes import assert_same_run, one_and_two
from tests.ranks.test_zero import (
    CONFIGS,
    dense_gradient,
    differences,
    global_batch,
    load_sharded,
    new_bank,
    place,
    random_model,
    sharded_gradient,
    stored_entries,
    watch_peak,
    whole_gradient,
)

BLOCK = 256


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: random_model(config, tmp_path_factory.mktemp(name)) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def rounded(folders, tmp_path_factory) -> dict[str, Path]:
    """The same models with every map's weight as 8 bits leave it, worked out here."""
    made = {}
    for name, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        base = model.base_model
        with torch.no_grad():
            for site in read_spec(folder).linear_maps:
                weight = base.get_submodule(site).weight
                weight.copy_(round_off(weight))
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


def round_off(weight: Tensor) -> Tensor:
    """Each block of entries as whole multiples of a 127th of its largest."""
    made = []
    for block in weight.flatten().split(BLOCK):
        scale = block.abs().max() / 127
        made.append((block / scale).round() * scale)
    return torch.cat(made).view_as(weight)


class Seen(NamedTuple):
    """What one process saw of a model.

    Attributes:
        from_whole: relative difference of two steps' gradients from the rounded model's, held whole: of the
            tensor that differs most.
        from_plain: the same from plain torch's, of all entries together.
        values: of every map, as gathered.
        held: bytes, by the backbone and by its storage, between steps.
        inside: most bytes of storage inside a pass.
        counted: bytes gathered in six passes, and those foreseen.
    """

    from_whole: float
    from_plain: float
    values: dict[str, Tensor]
    held: list[tuple[int, int]]
    inside: int
    counted: list[tuple[int, int]]


def storage(module) -> int:
    return stored_entries(module) * next(module.parameters()).element_size()


def trained(env: DistEnv, folder: Path, rounded: Path, *, group_size: int, checkpointing: bool) -> Seen:
    loaded = load_sharded(folder, env, group_size=group_size, checkpointing=checkpointing, eight_bit=True)
    backbone, module, values, held = loaded.backbone, loaded.backbone.module, {}, []
    for site in loaded.layout.sites:

        def note(one, _args, _output, name=site.name):
            values[name] = one.weight.clone()

        module.get_submodule(site.name).register_forward_hook(note)

    def look() -> None:
        backbone.require_partitioned()
        held.append((backbone.held_bytes(), storage(module)))

    inside = watch_peak(module, lambda: storage(module))
    bank = new_bank(loaded.layout)
    model = AdaptedModel(backbone, bank, pooling="last", dropout=0.0)
    whole = load_backbone(read_spec(rounded), BackboneOptions(), dtype=torch.float32, env=env)
    whole_model = AdaptedModel(whole, new_bank(loaded.layout), pooling="last", dropout=0.0)
    from_whole, from_plain = [], []
    look()
    for step in (1, 2):
        batch = global_batch(step)
        ours = sharded_gradient(model, env, batch, look)
        theirs = whole_gradient(whole_model, bank.master, batch, env.world_size)
        from_whole.append(differences(ours, theirs)[0])
        plain = dense_gradient(rounded, loaded.layout, bank.master, batch)
        from_plain.append(differences(ours, plain)[1])
    sharding, weights = spread_over(group_size, env.world_size), read_spec(folder).weights
    counted = counted_and_foreseen(model, weights, sharding, fresh=False)
    return Seen(max(from_whole), max(from_plain), values, held, max(inside), counted)


def spread_over(group_size: int, world_size: int) -> Sharding:
    return Sharding(
        world_size=world_size,
        local_world_size=world_size,
        zero_stage=3,
        shard_group=group_size,
        entry_bytes=4,
        eight_bit=True,
    )


def every_model(
    rank: int, world_size: int, folders: dict[str, Path], rounded: dict[str, Path], group_sizes: list[int]
) -> dict[tuple[str, int, bool], Seen]:
    env = place(rank, world_size)
    return {
        (name, size, checkpointing): trained(
            env, folder, rounded[name], group_size=size, checkpointing=checkpointing
        )
        for name, folder in folders.items()
        for size in group_sizes
        for checkpointing in (False, True)
    }


def in_bf16(rank: int, world_size: int, folder: Path, rounded: Path) -> tuple[Tensor, Tensor]:
    """Hidden states in bf16 and the rounded dense model's; small weights stay, as in the GPUs' profile."""
    env = place(rank, world_size)
    profile = json.loads(resource_path("ds_configs", "zero3_cpu").read_text())
    profile["zero_optimization"]["stage3_param_persistence_threshold"] = 30
    loaded = load_sharded(
        folder,
        env,
        group_size=world_size,
        checkpointing=False,
        dtype=torch.bfloat16,
        profile=profile,
        eight_bit=True,
    )
    ids = global_batch(1).input_ids[:1]
    with torch.no_grad():
        loaded.backbone.train(False)
        ours = [loaded.backbone.hidden_states(ids, None) for _ in range(2)][-1]
        loaded.backbone.release()
        plain = AutoModel.from_pretrained(rounded, dtype=torch.bfloat16).eval()
        return ours, plain(input_ids=ids).last_hidden_state


def check(
    by_rank: list[dict[tuple[str, int, bool], Seen]], rounded: dict[str, Path], world_size: int
) -> None:
    for by_case in by_rank:
        for (name, size, checkpointing), seen in by_case.items():
            case = (name, size, checkpointing)
            assert seen.from_whole < 1e-5 and seen.from_plain < 1e-5, (case, seen[:2])
            reference = AutoModelForCausalLM.from_pretrained(rounded[name], dtype=torch.float32).base_model
            assert len(seen.values) > 20
            for site, value in seen.values.items():
                torch.testing.assert_close(value, reference.get_submodule(site).weight, rtol=1e-6, atol=0)
            weights = read_spec(rounded[name]).weights
            if size > 1:
                share = gathered_bytes(weights.every, spread_over(size, world_size), above=0) // size
                assert set(seen.held) == {(share, share)}, case
            everything = 4 * sum(weight.entries for weight in weights.every)
            assert seen.held[0][0] < 0.55 * everything / size, case
            assert seen.inside < seen.held[0][0] + 0.75 * everything, case  # never the whole model
            assert all(gathered == foreseen for gathered, foreseen in seen.counted), (case, seen.counted)
            assert (size == 1) == (not any(gathered for gathered, _ in seen.counted))


def test_two_processes_learn_as_the_rounded_model_does(folders, rounded):
    check(run_ranks(every_model, 2, folders, rounded, [1, 2], timeout=400), rounded, 2)


def test_bf16_computes_as_the_rounded_model_in_bf16(folders, rounded):
    for ours, theirs in run_ranks(in_bf16, 2, folders["llama"], rounded["llama"]):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_four_processes_learn_as_the_rounded_model_does(folders, rounded):
    check(run_ranks(every_model, 4, folders, rounded, [2, 4], timeout=500), rounded, 4)


def test_two_processes_learn_what_one_learns(shared, tmp_path: Path):
    one, two = one_and_two(shared, tmp_path, zero={"stage": 3, "quantized_weights": True})
    assert_same_run(two, one)
    assert two.report["zero"] == {"stage": 3, "shard_group": 2, "hpz": 1, "quantized_weights": True}
    assert two.report["sync"]["divergences"] == 0 and two.report["sync"]["audits"] > 0
    sent = two.report["traffic"]["sent"]["inside"]
    order = sum(one["sent"] for one in two.report["traffic"]["collectives"] if one["what"] == "order")
    assert sent["counted"] - order == sent["expected"] > 0
