"""Learned nucleotides over two processes that share a backbone under ZeRO-3: the plain model's gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, EsmConfig

from lingo_ds.data.batches import MicroBatches, PackBudget, TrainBatches
from lingo_ds.distributed import process_group
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from tests.first_rows import first_rows
from tests.ranks.spawn import run_ranks
from tests.ranks.test_packed import backward
from tests.ranks.test_world_sizes import train_on
from tests.ranks.test_zero import CLASSES, CONFIGS, CPU, SCALE, VOCABULARY, place, zero_config
from tests.unit.data.test_packing import split_of
from tests.unit.models.test_token_embeddings import LETTERS, distance, examples_of, plain_result

FAMILIES = {
    **CONFIGS,
    "bert": BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "esm": EsmConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=1,
        mask_token_id=3,
        position_embedding_type="rotary",
        token_dropout=True,
    ),
}
"""Llama, OPT with another width of embeddings than of layers, GPT-2, and encoders."""


def gathers_of_the_embedding(backbone) -> list[bool]:
    """Notes, whenever an embedding's weight is made whole, whether a backward pass is under way."""
    seen, weight = [], backbone.module.get_input_embeddings().weight
    original = weight.all_gather_coalesced

    def counted(params, *args, **kwargs):
        if any(param is weight for param in params):
            seen.append(torch._C._current_graph_task_id() != -1)
        return original(params, *args, **kwargs)

    for param in backbone.module.parameters():
        param.all_gather_coalesced = counted
    return seen


def sharded(
    rank: int, world_size: int, folder: Path, *, packed: bool, checkpointing: bool, adapters: bool
) -> dict[str, Any]:
    """The summed gradient on the shards, against a plain model's, and the rows that were read at loading."""
    env = place(rank, world_size)
    spec = read_spec(folder)
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    layout = uniform_layout(
        sites if adapters else [],
        rank=4,
        head_shape=(CLASSES, spec.output_size),
        token_shape=(5, spec.embedding_shape[1]),
    )
    options = BackboneOptions(
        activation_checkpointing=checkpointing,
        ds_config=zero_config(spec, layout, world_size, dtype="fp32"),
        packed=packed,
        embedding_rows=LETTERS,
    )
    backbone = load_backbone(spec, options, dtype=torch.float32, env=env)
    gathers = gathers_of_the_embedding(backbone)
    bank = AdapterBank(layout, scale=SCALE, dtype=torch.float32, device=CPU, scalars=5, importance=False)
    bank.master.copy_(0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(3)))
    bank.refresh()
    model = AdaptedModel(backbone, bank, pooling="last", dropout=0.0, shared_inputs=spec.shared_inputs)
    backbone.train()
    examples = examples_of(VOCABULARY)
    forwards = PackBudget(60, 6 if spec.causal else 0) if packed else MicroBatches(2, 2)
    batches = TrainBatches(
        split_of(examples),
        seed=0,
        batch=len(examples),
        forwards=forwards,
        rank=rank,
        world=world_size,
    )
    apart = []
    for step in (1, 2):
        found = process_group.all_reduce_(backward(model, batches.at(step)).clone())
        backbone.require_partitioned()
        with torch.no_grad():
            backbone.train(False)
            batches.at(step)[0].logits(model)
            backbone.release()
            backbone.train()
        backbone.require_partitioned()
        _, expected = plain_result(folder, layout, bank.master, examples, "last")
        apart.append([distance(found, expected), distance(layout.tokens(found), layout.tokens(expected))])
        bank.master.sub_(0.05 * found)
        bank.refresh()
    return {
        "apart": float(np.max(apart)),
        "rows": backbone.embedding_rows.numpy(),
        "in_backward": gathers.count(True),
        "in_forward": gathers.count(False),
    }


CASES = {
    "packed": {"packed": True, "checkpointing": False, "adapters": True},
    "padded, recomputed": {"packed": False, "checkpointing": True, "adapters": True},
    "packed, recomputed, without adapters": {"packed": True, "checkpointing": True, "adapters": False},
}


def all_cases(rank: int, world_size: int, folders: dict[str, Path]) -> dict[tuple[str, str], dict]:
    return {
        (family, case): sharded(rank, world_size, folder, **how)
        for family, folder in folders.items()
        for case, how in CASES.items()
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A random base model of each family, in which no two entries are alike."""
    made = {}
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        model = AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


def test_shards_give_the_plain_gradient(folders):
    for seen in run_ranks(all_cases, 2, folders, timeout=400):
        assert len(seen) == len(FAMILIES) * len(CASES)
        for case, one in seen.items():
            assert one["apart"] < 2e-5, case
            assert np.array_equal(one["rows"], read_rows(folders[case[0]])), case
            assert one["in_backward"] == 0 < one["in_forward"], case


def read_rows(folder: Path) -> np.ndarray:
    return AutoModel.from_pretrained(folder).get_input_embeddings().weight[list(LETTERS)].detach().numpy()


def test_a_run_of_two_processes_is_that_of_one(shared, tmp_path):
    """Tokenised once, started from rows of a sharded embedding, sampled, saved, read back and tested."""
    first_rows(shared / "data/gue/prom_core_tata", tmp_path / "data", {"train": 61, "dev": 21, "test": 19})
    settings = {
        "name": "bases",
        "backbone": {"path": str(shared / "backbones/stories260k"), "dtype": "fp32"},
        "data": {
            "path": str(tmp_path / "data"),
            "cache_dir": str(tmp_path / "cache"),
            "tokens": "nucleotides",
            "prefix": "Sequence: {sequence}\nAnnotation:",
        },
        "adapter": {"rank": 4},
        "rank_sampling": {"target_rank": 2, "interval": 2, "audit_interval": 5},
        "train": {"global_batch_size": 11, "max_steps": 12, "eval_steps": 6},
    }
    runs = [
        train_on(processes, settings, tmp_path / str(processes), stage)
        for processes, stage in ((1, 0), (2, 3))
    ]
    one, two = (run.adapter for run in runs)
    assert one.keys() == two.keys() and sum("trainable_tokens" in name for name in one) == 1
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    for split in ("dev", "test"):
        ours, theirs = (run.report["metrics"][split] for run in runs)
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert runs[1].report["sync"]["divergences"] == 0 < runs[1].report["sync"]["audits"]
    assert runs[1].report["zero"]["stage"] == 3
