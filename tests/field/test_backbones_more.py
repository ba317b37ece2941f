"""Backbones that look right and are not, and models whose exported code must answer as the adapter does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

import lingo_ds
from lingo_ds.commands.cli import main
from lingo_ds.models.backbone.skeleton import build_skeleton
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.utils.errors import UserError
from tests.unit.commands.test_export import run_snippet
from tests.unit.every_verb import give, refused
from tests.unit.running import command

DNA = ["ACGTACGTACGTACGT", "TATAAA"]


@pytest.fixture
def stories(shared: Path, tmp_path: Path) -> Path:
    """A copy of a small backbone, to be spoiled."""
    return Path(
        shutil.copytree(shared / "backbones/stories260k", tmp_path / "stories", copy_function=shutil.copyfile)
    )


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: run\nbackbone: {{path: {shared / 'backbones/stories260k'}}}\n"
        f"data: {{path: {shared / 'field/good'}, cache_dir: {tmp_path / 'cache'}}}\n"
        "adapter: {rank: 2}\nrank_sampling: {target_rank: 1, interval: 1}\n"
        "train: {max_steps: 4, global_batch_size: 8, learning_rate: 1.0e-2}\n"
    )
    return path


def trained(recipe: Path, out: Path, *settings: str) -> Path:
    status, shown = command("train", recipe, out, *settings)
    assert status == 0, shown
    return out / "adapter"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- tokenizers


def test_another_tokenizer_than_that_of_the_training_is_refused(stories, recipe, tmp_path):
    """A and C exchanged: every answer would be that of another sequence."""
    adapter = trained(recipe, tmp_path / "out")
    assert lingo_ds.load(adapter, f"backbone.path={stories}").predict(DNA).labels.shape == (2,)
    content = json.loads((stories / "tokenizer.json").read_text())
    known = content["model"]["vocab"]
    known["A"], known["C"] = known["C"], known["A"]
    (stories / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has another tokenizer than the adapter was trained with"):
        lingo_ds.load(adapter, f"backbone.path={stories}")
    words = ["--adapter", str(adapter), "--backbone", str(stories), "--to", "merged", "--output"]
    assert main(["export", *words, str(tmp_path / "merged")]) == 2


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_a_tokenizer_that_does_not_fit_is_told_before_data_are_read(stories, tmp_path, verb):
    content = json.loads((stories / "tokenizer.json").read_text())
    content["model"]["vocab"] = {token: 2 * number for token, number in content["model"]["vocab"].items()}
    (stories / "tokenizer.json").write_text(json.dumps(content))
    assert "an embedding of 512 rows" in refused(verb, stories, tmp_path, tmp_path)


@pytest.mark.parametrize("tokens", ["text", "nucleotides"])
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_code_of_a_card_pads_with_no_token_that_its_texts_end_with(recipe, tmp_path, tokens, form):
    """The prompt ends with the only token to pad with, and both strands are read."""
    prefix = 'data.prefix="DNA {sequence}</s>"'
    settings = (prefix, f"data.tokens={tokens}", "data.reverse_complement=average")
    adapter = trained(recipe, tmp_path / "out", *settings)
    folder = adapter
    if form == "merged":
        folder = tmp_path / "merged"
        assert main(["export", "--adapter", str(adapter), "--to", "merged", "--output", str(folder)]) == 0
    found = run_snippet(folder)["probabilities"]
    expected = lingo_ds.load(adapter).predict(DNA).probabilities
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert abs(expected[0, 0] - expected[1, 0]) > 1e-3


# -- weights


def test_a_single_file_of_weights_is_read_before_an_index(stories, recipe, tmp_path, caplog):
    """As transformers does; here the index names a file of zeros."""
    expected = trained(recipe, tmp_path / "one")
    weights = load_file(stories / "model.safetensors")
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    save_file(zeros, stories / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (stories / "model.safetensors.index.json").write_text(json.dumps(index))
    found = trained(recipe, tmp_path / "other", f"backbone.path={stories}")
    one, other = (lingo_ds.load(adapter).predict(DNA).probabilities for adapter in (expected, found))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", ["gptq file", "gptq names", "mlx", "wrapped"])
def test_weights_that_are_not_as_they_seem_are_named(stories, tmp_path, how):
    weights = load_file(stories / "model.safetensors")
    says = "are quantised already"
    if how == "gptq file":
        (stories / "quantize_config.json").write_text('{"bits": 4}')
    elif how == "mlx":
        edit(stories / "config.json", quantization={"group_size": 64, "bits": 4})
    else:
        ending, before = (".qweight", "") if how == "gptq names" else (".weight", "module.")
        says = "'module.model' before the names" if before else says
        names = {name: before + name.replace("proj.weight", f"proj{ending}") for name in weights}
        save_file({names[name]: value for name, value in weights.items()}, stories / "model.safetensors")
    assert says in refused("plan", stories, tmp_path, tmp_path)


def test_a_plan_for_elsewhere_warns_of_weights_that_training_refuses(stories, tmp_path):
    weights = load_file(stories / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj" in name))
    save_file(weights, stories / "model.safetensors", metadata={"format": "pt"})
    lengths = ("--tokens", "50", "--rows", "10000")
    status, shown = give("plan --gpu", stories, tmp_path, tmp_path, *lengths)
    assert status == 0 and "train would refuse the backbone: backbone.path" in " ".join(shown.split())


def test_weights_that_are_no_numbers_are_not_blamed_on_the_learning_rate(stories, recipe, tmp_path):
    weights = load_file(stories / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name][0, 0] = torch.nan
    save_file(weights, stories / "model.safetensors", metadata={"format": "pt"})
    status, shown = command("train", recipe, tmp_path / "out", f"backbone.path={stories}")
    assert status == 2 and "not finite before anything is learned" in shown and "learning_rate" not in shown


# -- shapes


def tiny(folder: Path, family: str, **settings: object) -> Path:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    config = AutoConfig.for_model(family, **(sizes | {"intermediate_size": 24} | settings))
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["esm", "roberta"])
def test_positions_behind_a_padding_id_are_no_context(tmp_path, family):
    more = {"position_embedding_type": "absolute", "mask_token_id": 2} if family == "esm" else {}
    folder = tiny(tmp_path / "b", family, max_position_embeddings=34, pad_token_id=3, **more)
    assert read_spec(folder).context == 30


def test_a_frozen_backbone_drops_nothing_out_in_training(tmp_path):
    more = {
        "residual_dropout": 0.5,
        "embedding_dropout": 0.5,
        "attention_dropout": 0.5,
        "num_key_value_heads": 1,
    }
    skeleton = build_skeleton(tiny(tmp_path / "b", "starcoder2", **more), trust_remote_code=False)
    rates = [value for name, value in vars(skeleton.module.config).items() if "drop" in name]
    assert rates and not any(rates)
    assert not any(inner.p for inner in skeleton.module.modules() if isinstance(inner, torch.nn.Dropout))


def test_heads_that_do_not_divide_are_refused_before_data(tmp_path):
    folder = tiny(tmp_path / "b", "llama", num_key_value_heads=1)
    edit(folder / "config.json", num_key_value_heads=3)
    said = refused("plan", folder, tmp_path, tmp_path)
    assert "num_key_value_heads is 3, which does not divide 2 attention heads" in said
