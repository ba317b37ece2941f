"""The backbone is checked before any data are looked for, by every verb that takes one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingo_ds.commands.cli import main
from lingo_ds.models.backbone import weight_files
from lingo_ds.models.backbone.builtin import write_backbone
from tests.unit.commands.test_predict import make_adapter
from tests.unit.every_verb import VERBS, give, refused

LAST = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def backbone(tmp_path) -> Path:
    write_backbone(tmp_path / "backbone")
    return tmp_path / "backbone"


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[LAST]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def widen_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {LAST: torch.zeros(3, 5)}, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100_000)


def lose_a_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_the_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def not_fetched(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")


DAMAGED = {
    "a tensor is missing": (lose_a_tensor, "lacks 1 of", VERBS[:2] + VERBS[3:]),
    "a tensor is small": (widen_a_tensor, "(3, 5)", VERBS[:2] + VERBS[3:]),
    "cut": (cut, "is cut off after 100,000 of 6", VERBS[:2] + VERBS[3:]),
    "a shard is missing": (lose_a_shard, "named in the index but not in the folder", VERBS[:2] + VERBS[3:]),
    "git-lfs": (not_fetched, "git lfs pull", VERBS[:2] + VERBS[3:]),
    "no tokenizer": (lose_the_tokenizer, "has no tokenizer files", ("train", "plan")),
}


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name in DAMAGED for verb in DAMAGED[name][2]])
def test_what_a_backbone_lacks_is_found_before_data_are_looked_for(name, verb, backbone, adapter, tmp_path):
    change, words, _ = DAMAGED[name]
    change(backbone)
    said = refused(verb, backbone, tmp_path, adapter)
    assert words in said, said


def test_a_good_backbone_gets_as_far_as_the_data(backbone, adapter, tmp_path):
    for verb in VERBS[:3]:
        status, shown = give(verb, backbone, tmp_path, adapter)
        assert status == 2 and "no data" in shown


def test_a_plan_for_elsewhere_needs_no_weights(backbone, tmp_path, capsys):
    (backbone / "model.safetensors").unlink()
    words = ["--config", "quickstart", f"output_dir={tmp_path / 'run'}", f"backbone.path={backbone}"]
    elsewhere = ["--gpu", "h200", "--tokens", "70", "--rows", "1000"]
    assert main(["plan", *words, *elsewhere]) == 0
    assert main(["plan", *words]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err


def test_weights_are_checked_once(backbone, adapter, tmp_path, monkeypatch):
    """A backbone that fitted is not built again, until its weights change."""
    checked = []
    original = weight_files.WeightFiles

    def count(*args: object, **how: object) -> weight_files.WeightFiles:
        checked.append(args)
        return original(*args, **how)

    monkeypatch.setattr(weight_files, "WeightFiles", count)
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path / "cache"))
    for _ in range(3):
        give("plan", backbone, tmp_path, adapter)
    assert len(checked) == 1
    write_backbone(backbone, seed=1)
    give("plan", backbone, tmp_path, adapter)
    assert len(checked) == 2
    lose_a_tensor(backbone)
    assert "lacks 1 of" in refused("plan", backbone, tmp_path, adapter)


# -- the folder of a run as an adapter


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_the_adapter_in_a_runs_folder_is_found(verb, adapter, tmp_path):
    assert (adapter.parent / "adapter").is_dir()
    (tmp_path / "new.csv").write_text("sequence\nACGT\n")
    for number, folder in enumerate((adapter, adapter.parent)):
        words = ["--adapter", str(folder), "--output", str(tmp_path / f"out{number}.csv")]
        more = {"predict": ["--input", str(tmp_path / "new.csv")], "export": ["--to", "lora"]}[verb]
        assert main([verb, *words, *more]) == 0
    one, other = tmp_path / "out0.csv", tmp_path / "out1.csv"
    if verb == "export":
        one, other = one / "adapter_model.safetensors", other / "adapter_model.safetensors"
    assert one.read_bytes() == other.read_bytes()


def test_python_finds_the_adapter_in_a_runs_folder(adapter):
    import lingo_ds

    one, other = lingo_ds.load(adapter), lingo_ds.load(adapter.parent)
    assert (one.predict(["ACGT"]).probabilities == other.predict(["ACGT"]).probabilities).all()


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_what_was_looked_for_is_told(verb, adapter, tmp_path, capsys):
    words = ["--output", str(tmp_path / "out.csv")]
    words += {"predict": ["--input", str(tmp_path / "none.csv")], "export": ["--to", "lora"]}[verb]
    assert main([verb, "--adapter", str(tmp_path), *words]) == 2
    assert "task.json is missing, and adapter/task.json too" in capsys.readouterr().err
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    for path in adapter.iterdir():
        (tmp_path / "run/adapter" / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "run/adapter/adapter_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    assert main([verb, "--adapter", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert "git-lfs pointers" in said and "adapter_model.safetensors" in said and "git lfs pull" in said
