"""Memory, work, bytes and seconds of a job elsewhere: against autograd and sums by hand; and advice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lingo_ds.commands.cli import main
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.packing import make_pack
from lingo_ds.distributed.process_group import detect
from lingo_ds.planning.cost.advice import advise
from lingo_ds.planning.cost.elsewhere import Cluster, Lengths, make_job, read_shapes
from lingo_ds.planning.cost.estimate import estimate_step, ring_seconds
from lingo_ds.planning.cost.footprint import kept_per_token, memory_parts
from lingo_ds.planning.cost.machine import ACHIEVED, GPUS, Wire, gpu_machine, link_rate
from lingo_ds.planning.cost.scenario import with_budget
from lingo_ds.planning.cost.work import pass_work
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.planning.traffic import Collective, step_traffic
from lingo_ds.training.setup import build_model, prepare
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.units import GIB

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
SIZES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8},
}  # fmt: skip
DATA = Lengths(rows=100_000, tokens=128)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders that hold nothing but a config.json."""
    made = {size: tmp_path_factory.mktemp(size) for size in SIZES}
    for size, folder in made.items():
        (folder / "config.json").write_text(json.dumps(LLAMA | SIZES[size]))
    return made


@pytest.fixture(scope="module")
def plan(folders):
    """Makes the job of a model in a place, and with it the function that plans a changed config there."""
    shapes = {}

    def make(size, *, hosts=1, gpus=8, gpu="h200", link="400Gb", tokens=8192, **sections):
        sections = {"train": {"max_steps": 1000}} | sections
        sections["train"].setdefault("global_batch_size", hosts * gpus * tokens // DATA.tokens)
        config = RunConfig(
            name="x", backbone={"path": str(folders[size])} | sections.pop("backbone", {}),
            data={"path": "absent"}, **sections,
        )  # fmt: skip
        if size not in shapes:
            shapes[size] = read_shapes(config, detect(), DATA)
        place = Cluster(hosts=hosts, per_host=gpus, machine=gpu_machine(gpu, link))

        def again(changed):
            return make_job(changed, shapes[size], place)

        return config, again(config), again

    return make


# -- memory


def test_what_a_layer_keeps_by_hand(plan):
    """bf16: two norms' inputs in fp32, q, k, v, gate, silu, up, the inputs of all maps, and the ranks."""
    _, job, _ = plan("7B")
    hidden, inner = 4096, 11008
    assert job.layer.kept(2) == 2 * 2 * hidden + 3 * hidden + 3 * inner + (3 * hidden + inner) + 2 * 8 * 7
    assert job.layer.kept(4) == job.layer.kept(2) - 2 * hidden
    _, large, _ = plan("70B")
    assert (large.layer.queries, large.layer.keys) == (8192, 1024)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_what_autograd_keeps_is_what_is_planned(tmp_path, targets):
    config = RunConfig(
        name="x", output_dir=tmp_path / "run",
        backbone={"path": "builtin:tiny"}, data={"path": "builtin:promoters", "cache_dir": tmp_path},
        adapter={"targets": targets}, train={"max_steps": 100},
    )  # fmt: skip
    setup = prepare(config, detect())
    model = build_model(setup)
    pack = make_pack(setup.data.splits["train"], np.arange(16), np.ones(16), share_prefix=False)
    model.backbone.train()
    others = [*model.backbone.module.parameters(), *model.backbone.module.buffers(), model.bank._compute]
    known = {tensor.untyped_storage().data_ptr() for tensor in others}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # the tensor: no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pack.logits(model).sum()
    place = Cluster(hosts=1, per_host=1, machine=gpu_machine("h200"), device="cpu")
    job = make_job(config, read_shapes(config, detect(), None), place)
    seen = sum(size for size, _ in kept.values())
    assert kept_per_token(job) * len(pack.input_ids) == pytest.approx(seen, rel=0.12)


def test_parts_of_memory(plan):
    _, job, _ = plan("7B", zero={"stage": 3, "shard_group": 8})
    memory = estimate_step(job).memory
    facts = job.plan.facts
    assert memory["backbone"] == -(-facts.backbone_parameters // 8) * 2
    assert memory["moments"] == 8 * facts.bank_parameters
    assert memory["gathered layers"] >= 3 * facts.layer_parameters * 2
    _, whole, _ = plan("7B", zero={"stage": 0})
    assert "gathered layers" not in estimate_step(whole).memory
    _, again, _ = plan("7B", zero={"stage": 0}, backbone={"activation_checkpointing": True})
    assert estimate_step(again).memory["activations"] < estimate_step(whole).memory["activations"] / 10
    without, with_it = estimate_step(whole).kept_by_layer
    assert with_it < without / 10


def test_the_largest_budget_fits_and_no_larger_one(plan):
    _, job, _ = plan("7B", tokens=65536)
    most = estimate_step(job).most_tokens
    fits = estimate_step(with_budget(job, most)).model_bytes
    assert fits <= USABLE_MEMORY * job.machine.memory_bytes
    tokens = with_budget(job, most).tokens
    room = USABLE_MEMORY * job.machine.memory_bytes - fits
    each = job.machine.heap.kept * kept_per_token(job)
    assert room < (most - tokens / with_budget(job, most).plan.accumulation + most * 0.01) * each + GIB


# -- work


def test_frozen_maps_cost_four_flops_an_entry_and_token(plan):
    _, job, _ = plan("7B")
    flops = pass_work(job).flops["frozen maps"]
    entries = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert flops == pytest.approx(4 * entries * job.tokens, rel=0.03)  # the last layer is cut
    assert flops < 4 * entries * job.tokens
    _, again, _ = plan("7B", backbone={"activation_checkpointing": True})
    assert pass_work(again).flops["computed again"] == pytest.approx(flops / 2, rel=0.03)


def test_shared_prefix_is_computed_once_a_pack(folders):
    config = RunConfig(
        name="x", backbone={"path": str(folders["7B"])}, data={"path": "absent"},
        train={"global_batch_size": 64, "max_steps": 1000},
    )  # fmt: skip
    place = Cluster(hosts=1, per_host=1, machine=gpu_machine("h200"))
    shared = Lengths(rows=1000, tokens=128, shared=100)
    job = make_job(config, read_shapes(config, detect(), shared), place)
    assert job.tokens == 64 * 28 + 100 * job.plan.accumulation


# -- communication


def test_bytes_are_those_of_the_formula(plan):
    _, job, _ = plan("7B", hosts=2, zero={"stage": 3, "shard_group": 8})
    reduce_buffer = 4 * (job.plan.facts.bank_parameters + 6)
    expected = step_traffic(
        job.weights, job.sharding, micro_batches=job.plan.accumulation, reduce_buffer=reduce_buffer
    )
    assert tuple(one.collective for one in estimate_step(job).sent) == expected


def test_seconds_of_a_ring_by_hand():
    machine = replace(
        gpu_machine("h100"), inside=Wire(100e9, 1e-6, 1.0), between=Wire(10e9, 10e-6, 1.0), trees=False
    )
    gather = Collective("all_gather", "forward", 8, 1, 8 * 10**9)
    assert ring_seconds(machine, gather, calls=32) == pytest.approx(7e9 / 100e9 + 32 * 7e-6)
    wide = replace(gather, group=16, hosts=2)
    assert ring_seconds(machine, wide, calls=1) == pytest.approx(7.5e9 / 10e9 + 14e-6 + 10e-6)
    reduce = Collective("all_reduce", "bank", 16, 2, 16 * 10**6)
    assert ring_seconds(machine, reduce, calls=1) == pytest.approx(30e6 / 10e9 + 28e-6 + 20e-6)
    trees = replace(machine, trees=True)
    many = Collective("all_reduce", "bank", 512, 64, 512)
    assert ring_seconds(trees, many, calls=1) < ring_seconds(machine, many, calls=1) / 5


@pytest.mark.parametrize(
    "text, rate", [("400Gb", 50e9), ("8x400Gb", 400e9), ("100Mb", 12.5e6), ("2.5Gbit", 312.5e6)]
)
def test_links(text, rate):
    assert link_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["400", "400GB", "0Gb", "fast", "x400Gb"])
def test_links_that_are_none(text):
    with pytest.raises(UserError, match="--link"):
        link_rate(text)


def test_copies_inside_hosts_scale_where_one_over_all_does_not(plan):
    def rate(hosts, **zero):
        return estimate_step(plan("7B", hosts=hosts, zero=zero)[1]).tokens_per_second / hosts

    assert rate(64) >= 0.95 * rate(1)
    assert rate(64, stage=3, shard_group=512, hpz="off") < 0.9 * rate(1, stage=3, shard_group=8)


def test_gathers_hide_behind_computing_as_far_as_it_lasts(plan):
    _, job, _ = plan("70B", hosts=2, zero={"stage": 3, "shard_group": 16, "hpz": "off"})
    fast, slow = (
        estimate_step(replace(job, machine=replace(job.machine, between=Wire(rate, 1e-6, 1.0))))
        for rate in (1e12, 1e9)
    )
    assert fast.exposed < 0.03 * fast.compute
    gathers = [one for one in slow.sent if one.collective.name == "all_gather"]
    total = sum(one.seconds for one in gathers)
    assert sum(one.exposed for one in gathers) == pytest.approx(total - slow.compute, rel=0.05)


def test_every_gpu_has_a_peak():
    for name in GPUS:
        machine = gpu_machine(name)
        assert 1e13 < machine.products[0] / ACHIEVED["products"] < 1e16, name


# -- 8 bits


def test_maps_in_8_bits_by_hand(plan):
    """Llama 2 7B over eight: 32 layers of maps at 1 + 4 / 256 bytes an entry, all else in bf16."""
    zero = {"stage": 3, "shard_group": 8}
    _, full, _ = plan("7B", zero=zero)
    _, packed, _ = plan("7B", zero=zero | {"quantized_weights": True})
    hidden, inner, layers = 4096, 11008, 32
    maps = layers * (4 * hidden**2 + 3 * hidden * inner)
    rest = 32000 * hidden + (2 * layers + 1) * hidden
    before, after = (memory_parts(job)["backbone"] for job in (full, packed))
    assert before == pytest.approx(2 * (maps + rest) / 8, rel=1e-6)
    assert after == pytest.approx((2 * rest + maps * (1 + 4 / 256)) / 8, rel=1e-6)
    forward = next(one for one in estimate_step(packed).sent if one.collective.what == "forward").collective
    assert forward.payload == 2 * 32000 * hidden + maps * 260 // 256  # norms stay
    unpacked = [part.moved for part in (pass_work(packed).forward, pass_work(full).forward)]
    assert unpacked[0] - unpacked[1] == pytest.approx(3 * maps * packed.plan.accumulation, rel=1e-6)
    assert "maps in 8 bits" in "".join(packed.plan.equations())
    assert "8 bits" not in "".join(full.plan.equations())


def test_a_whole_copy_is_not_in_8_bits(plan):
    _, whole, _ = plan("7B", zero={"quantized_weights": True})
    assert whole.plan.zero_stage == 0
    assert memory_parts(whole) == memory_parts(plan("7B")[1])


def test_what_is_held_in_8_bits_has_no_second_copy(plan):
    zero = {"stage": 3, "shard_group": 32, "quantized_weights": True}
    assert plan("7B", hosts=4, zero=zero)[1].plan.secondary_group == 1
    with pytest.raises(UserError, match=r"zero.hpz.*zero.shard_group=8"):
        plan("7B", hosts=4, zero=zero | {"hpz": 8})


# -- advice


def test_advice_for_a_copy_that_needs_a_group(plan):
    config, job, again = plan("70B", gpu="h100")
    stage, *rest = advise(config, job, again)
    assert "shard_group" in stage or "group 4" in stage
    assert any(line.startswith("recompute") for line in rest)


def test_advice_for_a_slow_network_says_so(plan):
    config, job, again = plan("7B", hosts=8, link="1Gb", tokens=1024)
    assert any(line.startswith("network") for line in advise(config, job, again))
    fast = plan("7B", hosts=8)
    assert not any(line.startswith("network") for line in advise(*fast))


def test_advice_where_a_copy_reaches_over_hosts_weighs_hpz(plan):
    zero = {"stage": 3, "shard_group": 32}
    config, job, again = plan("7B", hosts=4, zero=zero | {"hpz": "off"})
    lines = advise(config, job, again)
    assert any(line.startswith("hpZ        set") for line in lines)
    assert any(line.startswith("hpZ        keep over 8") for line in advise(*plan("7B", hosts=4, zero=zero)))
    assert "set zero.stage=0" in lines[0]
    alone = advise(*plan("7B", hosts=4, gpus=1, zero={"stage": 3, "shard_group": 4}))
    assert not any(line.startswith("hpZ") for line in alone)


def test_advice_on_8_bits_follows_the_network(plan):
    zero = {"stage": 3, "shard_group": 64, "hpz": "off"}

    def line(link: str, on: bool) -> str:
        lines = advise(*plan("7B", hosts=8, link=link, zero=zero | {"quantized_weights": on}))
        return next((line for line in lines if line.startswith("8 bits")), "")

    assert "set zero.quantized_weights=true" in line("10Gb", False)
    assert "less time a step" in line("10Gb", True) and "keep" in line("10Gb", True)
    assert line("64x400Gb", False) == ""
    assert "set zero.quantized_weights=false" in line("64x400Gb", True)
    assert not any(one.startswith("8 bits") for one in advise(*plan("7B", zero={"quantized_weights": True})))


def test_needless_checkpointing_is_advised_against(plan):
    config, job, again = plan("7B", backbone={"activation_checkpointing": True})
    assert any("activation_checkpointing=false" in line for line in advise(config, job, again))


# -- command line


def arguments(folders, tmp_path, *more):
    recipe = tmp_path / "r.yaml"
    backbone, train = f"backbone: {{path: {folders['7B']}}}", "train: {global_batch_size: 4096}"
    recipe.write_text(f"name: x\n{backbone}\ndata: {{path: absent}}\n{train}\n")
    return ["plan", "--config", str(recipe), *more]


def test_plan_of_a_folder_with_a_config_alone(folders, tmp_path, capsys):
    file = tmp_path / "plan.json"
    there = ["--hosts", "8", "--gpus", "8", "--gpu", "h200", "--link", "400Gb"]
    told = ["--tokens", "128", "--rows", "1000000", "--json", str(file)]
    assert main(arguments(folders, tmp_path, *there, *told)) == 0
    said = capsys.readouterr().out
    for word in (
        "machine    8 hosts x 8 NVIDIA H200",
        "peak",
        "flops",
        "sent",
        "step",
        "rate",
        "budget",
        "stage",
    ):
        assert f"\n{word}" in said
    written = json.loads(file.read_text())
    assert written["prediction"]["seconds"] > 0 and written["plan"]["facts"]["world_size"] == 64
    assert written["advice"]


@pytest.mark.parametrize(
    "more, where",
    [
        (["--gpu", "h300"], "--gpu"),
        (["--gpu", "h200", "--tokens", "128"], "--tokens"),
        (["--gpu", "h200", "--rows", "128"], "--rows"),
        (["--hosts", "2"], "--hosts"),
        (["--gpu", "h200", "--tokens", "99999", "--rows", "10"], "--tokens"),
        (["--gpu", "h200", "--tokens", "9", "--rows", "10", "--shared", "9"], "--shared"),
    ],
)
def test_mistakes_are_the_users(folders, tmp_path, capsys, more, where):
    assert main(arguments(folders, tmp_path, *more)) == 2
    assert capsys.readouterr().err.startswith(f"error: {where}: ")
