"""Weights that are kept in host memory or on NVMe: the dense model's gradients, in real processes."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone import zero
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.utils.errors import UserError
from tests.ranks.spawn import run_ranks
from tests.ranks.test_zero import (
    VOCABULARY,
    dense_gradient,
    differences,
    global_batch,
    load_sharded,
    micro_batch,
    new_bank,
    place,
    random_model,
    sharded_gradient,
)

MIB = 2**20
CPU = torch.device("cpu")
ROUNDING = 1e-3
"""Of float32 in wide layers with large weights; a range from the wrong place makes a difference of 1."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """35 MB: what DeepSpeed leaves in memory (halves of up to 1 MiB) is the embedding, k, v and the norms."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=1000,
        num_hidden_layers=3,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    return random_model(config, tmp_path_factory.mktemp("offloaded"))


def train(rank: int, world_size: int, folder: Path, profile: str, disk: Path) -> dict[str, Any]:
    """Two steps' gradients with an evaluation between them, and what a process holds and has on disk."""
    env = place(rank, world_size)
    settings = read_profile(ZeroConfig(profile=profile, nvme_path=disk), env)
    loaded = load_sharded(folder, env, group_size=world_size, checkpointing=False, profile=settings)
    model = AdaptedModel(loaded.backbone, new_bank(loaded.layout), pooling="last", dropout=0.0)
    from_plain = []
    for step in (1, 2):
        ours = sharded_gradient(model, env, global_batch(step), loaded.backbone.require_partitioned)
        theirs = dense_gradient(folder, loaded.layout, model.bank.master, global_batch(step))
        from_plain.append(differences(ours, theirs)[0])
        with torch.no_grad():
            loaded.backbone.train(False)
            for rows in ([0, 1], [2, 3, 4], [5]):
                micro_batch(global_batch(step), rows).logits(model)
            loaded.backbone.release()
        loaded.backbone.require_partitioned()
    module = loaded.backbone.module
    own = [file for file in disk.rglob("*.swp") if f"rank{rank}" in file.parts]
    return {
        "from plain": max(from_plain),
        "held": loaded.backbone.held_entries(),
        "shares": sorted(-(-p.ds_numel // world_size) for p in module.parameters()),
        "on disk": sorted(file.stat().st_size for file in own),
    }


def test_weights_in_host_memory(folder, tmp_path):
    for seen in run_ranks(train, 2, folder, "zero3_offload", tmp_path):
        assert seen["from plain"] < ROUNDING
        assert seen["held"] >= sum(seen["shares"])  # what is small stays whole beside its share
        assert not seen["on disk"]


@pytest.mark.slow  # DeepSpeed compiles its reader first
def test_weights_on_nvme(folder, tmp_path):
    try:
        zero.require_nvme(CPU)
    except UserError as error:
        pytest.skip(str(error))
    tools = {"PATH": f"{Path(os.sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # ninja
    for seen in run_ranks(train, 2, folder, "zero3_nvme", tmp_path, timeout=500, env=tools):
        large = [share for share in seen["shares"] if 4 * share >= MIB]
        assert len(large) == 3 * 5  # q, o, gate, up, down of each layer
        assert seen["from plain"] < ROUNDING
        assert seen["on disk"] == [-(-4 * share // 512) * 512 for share in large]
        assert seen["held"] < sum(seen["shares"]) - sum(large) + len(seen["shares"]) + 1


def test_nvme_without_its_library_is_told_in_words(monkeypatch):
    monkeypatch.setattr(zero.AsyncIOBuilder, "is_compatible", lambda self: False)
    with pytest.raises(UserError) as raised:
        zero.require_nvme(CPU)
    (mistake,) = raised.value.mistakes
    assert mistake.where == "zero.profile" and "libaio" in mistake.rule and "libaio-dev" in mistake.fix


def test_nvme_on_a_gpu_without_the_cuda_toolkit_is_told_in_words(monkeypatch):
    monkeypatch.setattr(zero.AsyncIOBuilder, "is_compatible", lambda self: True)
    monkeypatch.setattr(zero.cpp_extension, "CUDA_HOME", None)
    zero.require_nvme(CPU)
    with pytest.raises(UserError) as raised:
        zero.require_nvme(torch.device("cuda", 0))
    (mistake,) = raised.value.mistakes
    assert mistake.where == "zero.profile" and "CUDA toolkit" in mistake.rule and "CUDA_HOME" in mistake.fix


def test_fp16_where_deepspeed_has_none_is_told_in_words(monkeypatch):
    monkeypatch.setattr(zero.get_accelerator(), "supported_dtypes", lambda: [torch.float32, torch.bfloat16])
    zero.require_dtype(torch.bfloat16)
    with pytest.raises(UserError, match=r"backbone\.dtype: 'fp16': .*: take bf16 or fp32"):
        zero.require_dtype(torch.float16)


def test_nvme_needs_a_folder(tmp_path):
    env = place(0, 1)
    env = DistEnv(0, 0, 1, 1, CPU)
    with pytest.raises(UserError, match=r"zero\.nvme_path"):
        read_profile(ZeroConfig(profile="zero3_nvme"), env)
    disk = tmp_path / "disk"
    profile = read_profile(ZeroConfig(profile="zero3_nvme", nvme_path=disk), env)
    assert profile["zero_optimization"]["offload_param"]["nvme_path"] == str(disk) and disk.is_dir()
