"""`lingo-ds plan --gpu`: a job on machines that are not here, of a folder with a config.json alone."""

import json
from pathlib import Path

import pytest

from lingo_ds.commands.cli import main


@pytest.fixture
def backbone(tmp_path) -> Path:
    """Llama 2 7B without weights and tokenizer."""
    folder = tmp_path / "7B"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def arguments(backbone, tmp_path, *more):
    recipe = tmp_path / "r.yaml"
    sections = f"backbone: {{path: {backbone}}}\ndata: {{path: absent}}", "train: {global_batch_size: 4096}"
    recipe.write_text("\n".join(["name: x", *sections]))
    return ["plan", "--config", str(recipe), *more]


def test_plan_of_a_folder_with_a_config_alone(backbone, tmp_path, capsys):
    file = tmp_path / "plan.json"
    there = ["--hosts", "8", "--gpus", "8", "--gpu", "h200", "--link", "400Gb"]
    told = ["--tokens", "128", "--rows", "1000000", "--json", str(file)]
    assert main(arguments(backbone, tmp_path, *there, *told)) == 0
    said = capsys.readouterr().out
    for word in (
        "machine    8 hosts x 8 NVIDIA H200",
        "peak",
        "flops",
        "sent",
        "step",
        "rate",
        "budget",
    ):
        assert f"\n{word}" in said
    written = json.loads(file.read_text())
    assert written["prediction"]["seconds"] > 0 and written["plan"]["facts"]["world_size"] == 64
    advice = written["advice"]
    assert [one["setting"] for one in advice if one["best"]] == ["as planned (zero.stage=0)"]
    for one in advice:
        assert one["setting"] in said and (one["seconds"] is None or f"{one['seconds']:.4f}" in said)


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
def test_mistakes_are_the_users(backbone, tmp_path, capsys, more, where):
    assert main(arguments(backbone, tmp_path, *more)) == 2
    assert capsys.readouterr().err.startswith(f"error: {where}: ")
