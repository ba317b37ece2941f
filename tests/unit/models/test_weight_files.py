"""A backbone's weight files: which weight is read from where, and what is refused."""

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    LlamaConfig,
)

from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.models.backbone.weight_files import WeightFiles, fill_whole, weights_fingerprint
from lingo_ds.utils.errors import UserError
from tests.unit.models.random_models import (
    ALONE,
    FAMILIES,
    GATED,
    VOCABULARY,
    assert_same_model,
    change_tensors,
    load,
    random_model,
    refuse,
    save,
    some_input,
)

pytestmark = pytest.mark.usefixtures("unfused")

LAST = "model.layers.1.mlp.down_proj.weight"

OLD_BUFFERS = {
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "gpt_neox": [
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq",
    ],
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_fp16_files_are_cast_to_the_compute_dtype(tmp_path, dtype):
    folder = save(random_model(FAMILIES["llama"], tied=True).half(), tmp_path)
    stored = load_file(folder / "model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {torch.float16}
    assert_same_model(load(folder, dtype=dtype), folder, dtype)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_weights_in_several_files(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=False), tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_same_model(load(folder), folder)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_tied_embeddings_stored_only_as_lm_head(tmp_path, family):
    model = random_model(FAMILIES[family], tied=True)
    folder, aside = save(model, tmp_path / "as_head"), save(model, tmp_path / "as_embedding")
    tensors = load_file(folder / "model.safetensors")
    embedding = next(key for key in tensors if key.endswith(("embed_tokens.weight", "wte.weight")))
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors.pop(embedding)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_same_model(load(folder), aside)


def bytes_read() -> int:
    """Bytes that this process asked files for, ever; pages of a memory map are not among them."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count reads")
def test_an_untied_head_of_the_language_model_is_never_read(tmp_path):
    """It is a tenth of a small model; here it is most of the file."""
    config = LlamaConfig(**{**GATED, "vocab_size": 60_000})
    folder = save(random_model(config, tied=False), tmp_path)
    spec = read_spec(folder)
    files, module = WeightFiles(folder, spec.skeleton), spec.skeleton
    before = bytes_read()
    fill_whole(module, files, dtype=torch.float32, device=torch.device("cpu"))
    read, head = bytes_read() - before, 60_000 * GATED["hidden_size"] * 4
    own = sum(p.numel() for p in module.parameters()) * 4
    assert own <= read < own + head // 10


def test_a_file_that_holds_only_the_head_is_never_opened(tmp_path):
    folder = save(random_model(FAMILIES["llama"], tied=False), tmp_path, max_shard_size="20KB")
    expected = load_backbone(read_spec(folder), BackboneOptions(), dtype=torch.float32, env=ALONE)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (of_head,) = {file for key, file in index.items() if key == "lm_head.weight"}
    if [key for key, file in index.items() if file == of_head] != ["lm_head.weight"]:
        pytest.fail("the head shares its file with other weights")
    (folder / of_head).write_bytes(b"nothing of use")
    ids = some_input()[0]
    found = load_backbone(read_spec(folder), BackboneOptions(), dtype=torch.float32, env=ALONE)
    assert torch.equal(found.hidden_states(ids, None), expected.hidden_states(ids, None))


@pytest.fixture
def sharded(tmp_path) -> Path:
    return save(random_model(FAMILIES["llama"], tied=True), tmp_path, max_shard_size="20KB")


def change_index(folder: Path, change) -> dict[str, str]:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return index["weight_map"]


def test_missing_weight(folder):
    change_tensors(folder, lambda tensors: tensors.pop(LAST))
    refuse(folder, str(folder), "lacks 1 of", "layers.1.mlp.down_proj.weight")


def test_missing_embedding_of_an_untied_model(tmp_path):
    folder = save(random_model(FAMILIES["llama"], tied=False), tmp_path)
    change_tensors(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    refuse(folder, "lacks 1 of", "embed_tokens.weight")  # lm_head.weight is something else here


def test_weights_of_another_family(folder):
    save(random_model(FAMILIES["gpt2"], tied=True), folder)
    (folder / "config.json").write_text(json.dumps(FAMILIES["llama"].to_dict()))
    refuse(folder, "lacks", "weights", "config.json")


def test_weight_outside_the_layers_is_pointed_out_and_left(folder, warnings):
    change_tensors(folder, lambda tensors: tensors.update({"model.vision.weight": torch.ones(3)}))
    assert_same_model(load(folder), folder)
    assert len(warnings) == 1
    assert "1 weights" in warnings[0] and "model.vision.weight" in warnings[0]


@pytest.mark.parametrize("key", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_weight_that_the_layers_have_no_place_for_is_refused(folder, key):
    change_tensors(folder, lambda tensors: tensors.update({key: torch.ones(3)}))
    with pytest.raises(UserError, match="no place in the layers") as refused:
        load(folder)
    assert key in str(refused.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_computed_buffers_in_a_checkpoint_are_no_surprise(tmp_path, family, warnings):
    folder = save(random_model(FAMILIES[family], tied=False), tmp_path)
    load(folder)
    assert not warnings


@pytest.mark.parametrize("family", OLD_BUFFERS)
def test_buffers_that_old_checkpoints_carry_are_no_surprise(tmp_path, family, warnings):
    folder = save(random_model(FAMILIES[family], tied=False), tmp_path)
    old = {name: torch.ones(4) for name in OLD_BUFFERS[family]}
    change_tensors(folder, lambda tensors: tensors.update(old))
    assert_same_model(load(folder), folder)
    assert not warnings


def test_weight_of_another_shape(folder):
    change_tensors(folder, lambda tensors: tensors.update({LAST: torch.zeros(32, 47)}))
    refuse(folder, LAST, "(32, 47)", "(32, 48)")


def test_weight_in_whole_numbers(folder):
    """Codes of a backbone that something else quantised are no weights."""
    change_tensors(folder, lambda tensors: tensors.update({LAST: tensors[LAST].to(torch.int8)}))
    refuse(folder, LAST, "'I8'", "none of F64, F32, F16, BF16", "backbone.quantization")


def test_index_names_an_absent_file(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[-1]
    gone.unlink()
    refuse(sharded, "model.safetensors.index.json", gone.name, "not in the folder")


@pytest.mark.parametrize("absolute", [False, True])
def test_index_names_a_file_outside_the_folder(sharded, tmp_path_factory, absolute):
    outside = tmp_path_factory.mktemp("outside") / "model.safetensors"
    outside.write_bytes(sorted(sharded.glob("*.safetensors"))[-1].read_bytes())
    file = str(outside) if absolute else os.path.relpath(outside, sharded)
    assert (sharded / file).exists()
    change_index(sharded, lambda weights: weights.update({LAST: file}))
    refuse(sharded, "model.safetensors.index.json", "in the folder")


def test_index_names_the_wrong_file_for_a_weight(sharded):
    def swap(weights: dict[str, str]) -> None:
        weights[LAST] = next(file for file in weights.values() if file != weights[LAST])

    change_index(sharded, swap)
    refuse(sharded, LAST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": null}',
        '{"weight_map": "x"}',
    ],
)
def test_index_that_is_none(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    refuse(sharded, "model.safetensors.index.json")


@pytest.mark.parametrize("left", [0, 4, 100, -1], ids=lambda left: f"{left} bytes")
def test_truncated_file(folder, left):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refuse(folder, str(file), "cannot be read")


def test_truncated_file_among_several(sharded):
    file = sorted(sharded.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1])
    refuse(sharded, str(file), "cannot be read")


def test_only_pickle_files(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refuse(folder, str(folder), "pickle", "save_pretrained")


def test_pickle_files_load_once_they_are_converted_as_told(tmp_path, monkeypatch):
    model = random_model(FAMILIES["opt"], tied=True).half()
    folder = save(model, tmp_path / "old")
    character_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError) as refused:
        load(folder)
    (mistake,) = refused.value.mistakes
    *_, python, option, code = shlex.split(mistake.fix)
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code)
    assert load_file(tmp_path / "converted" / "model.safetensors")["decoder.embed_tokens.weight"].dtype == (
        torch.float16
    )
    assert_same_model(load(tmp_path / "converted"), save(model.float(), tmp_path / "plain"))
    read_tokenizer(tmp_path / "converted")


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    refuse(folder, str(folder), "no model.safetensors", "as safetensors")


def test_weights_that_are_no_file_are_refused_rather_than_waited_for(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refuse(folder, "has no model.safetensors")
    with pytest.raises(UserError, match="is not a file"):
        weights_fingerprint(folder)


def test_old_names_of_layer_norms_are_found(tmp_path):
    """BERT's first checkpoints say gamma and beta."""
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    folder = save(AutoModel.from_config(config), tmp_path / "new")
    weights = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(folder / "model.safetensors").items()
    }
    assert sum("gamma" in key for key in weights) == 5
    (tmp_path / "old").mkdir()
    save_file(weights, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "config.json").write_bytes((folder / "config.json").read_bytes())
    input_ids, mask = some_input()
    new, old = (load(tmp_path / name).hidden_states(input_ids, mask) for name in ("new", "old"))
    assert torch.equal(new, old)
