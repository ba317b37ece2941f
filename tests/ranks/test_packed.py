"""Packs over two processes that share a backbone under ZeRO-3: the gradient is that of one padded batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, OPTConfig

from lingo_ds.data.batches import PackBudget, TrainBatches, make_batch
from lingo_ds.distributed import process_group
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from tests.ranks.spawn import run_ranks
from tests.ranks.test_zero import new_bank, new_layout, place, random_model, zero_config
from tests.unit.data.test_packing import split_of
from tests.unit.models.test_packed_forward import LENGTHS, PREFIX, distance, some_examples

CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
    "opt": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        pad_token_id=1,
    ),
}
BATCH = len(LENGTHS["different"])


def backward(model: AdaptedModel, batches: list) -> torch.Tensor:
    model.bank.zero_grad()
    for batch in batches:
        loss = F.cross_entropy(batch.logits(model), batch.labels, reduction="none")
        (loss * batch.weights).sum().backward()
        model.bank.collect_grad()
    model.bank.finish_grad()
    return model.bank.grad


def gradients(rank: int, world_size: int, folder: Path, checkpointing: bool) -> dict[str, float | list[int]]:
    """The summed gradient of packs on the shards, against a whole copy's of all examples padded."""
    env = place(rank, world_size)
    split = split_of(some_examples(LENGTHS["different"]))
    models = {}
    for name in ("packed", "padded"):
        spec = read_spec(folder)
        layout = new_layout(spec)
        ds_config = zero_config(spec, layout, world_size, dtype="fp32") if name == "packed" else None
        options = BackboneOptions(
            activation_checkpointing=checkpointing, ds_config=ds_config, packed=name == "packed"
        )
        backbone = load_backbone(spec, options, dtype=torch.float32, env=env)
        backbone.train()
        models[name] = AdaptedModel(
            backbone, new_bank(layout), pooling="last", dropout=0.0, shared_inputs=spec.shared_inputs
        )
    batches = TrainBatches(
        split,
        seed=0,
        batch=BATCH,
        rank=rank,
        world=world_size,
        forwards=PackBudget(50, PREFIX),
    )
    packs = batches.at(1)
    found = process_group.all_reduce_(backward(models["packed"], packs).clone())
    models["packed"].backbone.require_partitioned()
    expected = backward(models["padded"], [make_batch(split, np.arange(BATCH), np.ones(BATCH))])
    return {
        "apart": distance(found, expected),
        "rows": [int(row) for pack in packs for row in pack.rows],
        "packs": [len(packs)],
        "prefixes": [pack.prefix for pack in packs],
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", CONFIGS)
def test_packs_on_shards_give_the_padded_gradient(tmp_path, family: str, checkpointing: bool):
    folder = random_model(CONFIGS[family], tmp_path)
    seen = run_ranks(gradients, 2, folder, checkpointing)
    for one in seen:
        assert one["apart"] < 1e-5
    assert sorted(seen[0]["rows"] + seen[1]["rows"]) == list(range(BATCH))
    assert seen[0]["packs"] == seen[1]["packs"] != [1], "several packs, as many on both"
    assert PREFIX in seen[0]["prefixes"] + seen[1]["prefixes"]
