"""Backbones with random weights for measurements: what transformers would have written, in several files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks import make_backbone
from benchmarks.make_backbone import SHAPES, config_of, make, weights_of
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.tokenizer import read_tokenizer

PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "mistral-7b": 7_241_732_096,
    "qwen-2.5-0.5b": 494_032_768,
    "qwen-2.5-7b": 7_615_616_512,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
}
"""Entries of the published checkpoints."""

SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "ffn_dim": 40,
    "word_embed_proj_dim": 32,
}


def small(shape: str, folder: Path) -> Path:
    """A config.json of the shape, made small."""
    values = SHAPES[shape] | {key: value for key, value in SMALL.items() if key in SHAPES[shape]}
    if "num_key_value_heads" in values:
        values["num_key_value_heads"] = 2
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("shape", PUBLISHED)
def test_shapes_have_as_many_entries_as_the_published_models(shape):
    assert sum(weight.entries for weight in weights_of(config_of(shape))) == PUBLISHED[shape]


@pytest.mark.parametrize("shape", ["llama-2-7b", "mistral-7b", "qwen-2.5-0.5b", "opt-6.7b"])
def test_transformers_and_lingo_ds_load_the_folder(tmp_path, shape):
    folder = tmp_path / "made"
    make(folder, config_of(str(small(shape, tmp_path))), dtype=torch.float16, shard_bytes=9_000, seed=3)
    assert len(list(folder.glob("*.safetensors"))) > 2
    theirs, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.dtype == torch.float16
    env = DistEnv(0, 0, 1, 1, torch.device("cpu"))
    ours = load_backbone(read_spec(folder), BackboneOptions(), dtype=torch.float32, env=env)
    ids = torch.tensor([read_tokenizer(folder)("ACGT")["input_ids"]])
    hidden = theirs.float().eval().base_model(ids).last_hidden_state
    torch.testing.assert_close(ours.hidden_states(ids, None), hidden)
    assert hidden.std() > 0.1  # neither constant nor vanishing


def test_weights_are_those_of_the_seed_whatever_the_files(tmp_path, monkeypatch):
    config = config_of(str(small("llama-2-7b", tmp_path)))

    def made(name: str, *, shard_bytes: int, seed: int) -> dict[str, torch.Tensor]:
        make(tmp_path / name, config, dtype=torch.bfloat16, shard_bytes=shard_bytes, seed=seed)
        files = [load_file(path) for path in (tmp_path / name).glob("*.safetensors")]
        return {key: value for file in files for key, value in file.items()}

    one, many, other = (
        made("one", shard_bytes=10**9, seed=0),
        made("many", shard_bytes=3_000, seed=0),
        made("other", shard_bytes=10**9, seed=1),
    )
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    assert one.keys() == many.keys() == other.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert torch.equal(one["model.norm.weight"], torch.ones(32, dtype=torch.bfloat16))


def test_a_weight_is_drawn_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(make_backbone, "PIECE", 100)
    weight = make_backbone.Weight("w", (7, 50), 0.0, 1.0)
    pieces = list(make_backbone._values(weight, torch.float32, 0))
    assert [len(piece) for piece in pieces] == [100, 100, 100, 50]
    assert len(torch.cat(pieces).unique()) == 350
