"""Memory of a process by part: by hand, and against what autograd keeps."""

import numpy as np
import pytest
import torch

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.packing import make_pack
from lingo_ds.distributed.process_group import detect
from lingo_ds.planning.cost.elsewhere import Cluster, make_scenario, read_shapes
from lingo_ds.planning.cost.estimate import estimate_step
from lingo_ds.planning.cost.footprint import kept_per_token, memory_parts
from lingo_ds.planning.cost.machine import gpu_machine
from lingo_ds.planning.cost.scenario import with_budget
from lingo_ds.planning.cost.work import pass_work
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.training.build_model import build_model
from lingo_ds.training.setup import prepare
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.units import GIB


def test_what_a_layer_keeps_by_hand(plan):
    """bf16: two norms' inputs in fp32, q, k, v, gate, silu, up, the inputs of all maps, and the ranks."""
    _, scenario, _ = plan("7B")
    hidden, inner = 4096, 11008
    assert scenario.layer.kept(2) == 2 * 2 * hidden + 3 * hidden + 3 * inner + (3 * hidden + inner) + 8 * 7
    assert scenario.layer.kept(4) == scenario.layer.kept(2) - 2 * hidden
    _, large, _ = plan("70B")
    assert (large.layer.queries, large.layer.keys) == (8192, 1024)


def test_dropout_keeps_a_bool_for_each_entry_on_a_gpu(plan):
    """bf16: the mask of all maps' inputs, and attention's output, which the output map no longer shares."""
    _, plain, _ = plan("7B")
    _, dropped, _ = plan("7B", adapter={"dropout": 0.1})
    hidden, inner = 4096, 11008
    assert dropped.layer.kept(2) - plain.layer.kept(2) == (3 * hidden + inner) // 2 + hidden
    more = [memory_parts(one)["activations"] / one.plan.forward_tokens for one in (plain, dropped)]
    assert more[1] > 1.1 * more[0]
    assert dropped.plan.facts.kept_in_layer > plain.plan.facts.kept_in_layer


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_what_autograd_keeps_is_what_is_planned(tmp_path, targets, dropout):
    config = RunConfig(
        name="x",
        output_dir=tmp_path / "run",
        backbone={"path": "builtin:tiny"},
        data={"path": "builtin:promoters", "cache_dir": tmp_path},
        adapter={"targets": targets, "dropout": dropout},
        train={"max_steps": 100},
    )
    setup = prepare(config, detect())
    model = build_model(setup)
    pack = make_pack(setup.data.splits["train"], np.arange(16), np.ones(16), share_prefix=False)
    model.backbone.train()
    others = [
        *model.backbone.module.parameters(),
        *model.backbone.module.buffers(),
        model.bank.compute.values,
    ]
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
    scenario = make_scenario(config, read_shapes(config, detect(), None), place)
    seen = sum(size for size, _ in kept.values())
    assert kept_per_token(scenario) * len(pack.input_ids) == pytest.approx(seen, rel=0.12)


def test_parts_of_memory(plan):
    _, scenario, _ = plan("7B", zero={"stage": 3, "shard_group": 8})
    memory = estimate_step(scenario).memory
    facts = scenario.plan.facts
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
    _, scenario, _ = plan("7B", tokens=65536)
    most = estimate_step(scenario).most_tokens
    fits = estimate_step(with_budget(scenario, most)).model_bytes
    assert fits <= USABLE_MEMORY * scenario.machine.memory_bytes
    tokens = with_budget(scenario, most).tokens
    room = USABLE_MEMORY * scenario.machine.memory_bytes - fits
    each = scenario.machine.holes * kept_per_token(scenario)
    assert room < (most - tokens / with_budget(scenario, most).plan.accumulation + most * 0.01) * each + GIB


def test_maps_in_8_bits_by_hand(plan):
    """Llama 2 7B over eight: 32 layers of maps at 1 + 4 / 256 bytes an entry, all else in bf16."""
    zero = {"stage": 3, "shard_group": 8}
    _, full, _ = plan("7B", zero=zero)
    _, packed, _ = plan("7B", zero=zero | {"quantized_weights": True})
    hidden, inner, layers = 4096, 11008, 32
    maps = layers * (4 * hidden**2 + 3 * hidden * inner)
    rest = 32000 * hidden + (2 * layers + 1) * hidden
    before, after = (memory_parts(scenario)["backbone"] for scenario in (full, packed))
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
