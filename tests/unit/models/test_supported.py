"""What is no backbone is named for what it is, from the names of its files and its config.json."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, Qwen2MoeConfig, T5Config

from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.models.backbone.hub import backbone_address, find_backbone
from lingo_ds.models.backbone.own_code import own_code
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.supported import convert_command, read_config, require_supported
from lingo_ds.utils.errors import UserError
from tests.unit.models.random_models import (
    ALONE,
    FAMILIES,
    assert_same_model,
    load,
    random_model,
    save,
    some_input,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def change_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def said_of(path: object, *, weights: bool = True) -> str:
    """The mistake that a path is refused with, in one or more lines."""
    with pytest.raises(UserError) as refused:
        read_spec(find_backbone(str(path), weights=weights))
    return str(refused.value)


QUANTISED = {
    "GPTQ, 4 bits": {"quant_method": "gptq", "bits": 4},
    "AWQ, 4 bits": {"quant_method": "awq", "bits": 4},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes, 8 bits": {"load_in_8bit": True},
    "FP8": {"quant_method": "fp8"},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
    "anything": {"quant_method": "anything"},
    "does not name": {"group_size": 64},
}


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("weights", [True, False])
def test_quantised_weights_are_named_by_their_method(folder, name, weights):
    change_config(folder, quantization_config=QUANTISED[name])
    said = said_of(folder, weights=weights)
    assert name in said and "before it was quantised" in said and "backbone.quantization=nf4 or int8" in said


@pytest.mark.parametrize(
    "setting", ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"]
)
def test_experts_are_counted(folder, setting):
    read_spec(folder)
    change_config(folder, **{setting: 1})
    read_spec(folder)
    change_config(folder, **{setting: 8})
    assert "is a mixture of experts (llama: 8 in a layer), which is not supported" in said_of(folder)
    change_config(folder, **{setting: None}, text_config={setting: 4})
    assert "4 in a layer" in said_of(folder)


def test_experts_that_only_transformers_knows_of_are_counted(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_moe"}')
    assert f"{Qwen2MoeConfig().num_experts} in a layer" in said_of(tmp_path, weights=False)


def test_everything_that_is_wrong_is_told_at_once(folder):
    change_config(folder, num_experts=8, quantization_config={"quant_method": "mxfp4"})
    assert len(said_of(folder).splitlines()) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder or a part of one (t5)"),
        (
            {"model_type": "t5", "is_encoder_decoder": False, "architectures": ["T5EncoderModel"]},
            "a part of one (t5)",
        ),
        ({"model_type": "bart"}, "is an encoder-decoder or a part of one (bart)"),
        ({"model_type": "vit"}, "reads images (vit)"),
        ({"model_type": "wav2vec2"}, "reads sound (wav2vec2)"),
        ({"model_type": "whisper"}, "reads sound (whisper)"),
        ({"model_type": "gemma3"}, "reads images (gemma3)"),
        ({"model_type": "made_up", "vision_config": {}}, "reads images (made_up)"),
        ({"model_type": "mamba"}, "is of type mamba, whose layers cannot be used here"),
        ({"model_type": "evo_9"}, "is of type evo_9, which transformers"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_families_that_are_not_supported_are_named(folder, settings, words):
    (folder / "config.json").write_text(json.dumps(settings))
    assert words in said_of(folder)


def test_encoder_decoders_and_pictures_of_transformers_own_classes(tmp_path):
    T5Config().save_pretrained(tmp_path / "t5")
    CLIPConfig().save_pretrained(tmp_path / "clip")
    assert "is an encoder-decoder or a part of one (t5)" in said_of(tmp_path / "t5", weights=False)
    assert "reads images (clip)" in said_of(tmp_path / "clip", weights=False)


def test_families_of_the_table_read_text_alone(tmp_path):
    for name, config in FAMILIES.items():
        config.save_pretrained(tmp_path / name)
        require_supported(read_config(tmp_path / name), name)
        read_spec(tmp_path / name)


# -- files


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def only(folder: Path, *names: str) -> None:
    """No weights but empty files of these names."""
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).touch()


def as_adapter(folder: Path, *, own: bool = False) -> None:
    empty(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    if own:
        (folder / "task.json").touch()


def as_run(folder: Path) -> None:
    empty(folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "task.json").touch()


def without_config(folder: Path, *names: str) -> None:
    (folder / "config.json").unlink()
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


FILES = {
    "empty": (empty, "is an empty folder"),
    "no config": (without_config, "has no config.json"),
    "config below": (lambda f: without_config(f, "inner/config.json"), "inner"),
    "config is text": (lambda f: (f / "config.json").write_text("hello"), "that is not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no object"),
    "PEFT adapter": (as_adapter, "an adapter in PEFT's format, no backbone: set backbone.path=some/base"),
    "our adapter": (lambda f: as_adapter(f, own=True), "an adapter of this program, no backbone"),
    "run": (as_run, "is the folder of a run of this program, no backbone"),
    "GGUF without config": (lambda f: without_config(f, "m.Q4.gguf"), "llama.cpp (m.Q4.gguf)"),
    "GGUF": (lambda f: only(f, "m.Q4.gguf"), "llama.cpp (m.Q4.gguf)"),
    "pickle": (lambda f: only(f, "pytorch_model.bin"), "only as pickle files"),
    "TensorFlow": (lambda f: only(f, "tf_model.h5"), "only for other libraries than PyTorch (tf_model.h5)"),
    "Flax": (lambda f: only(f, "flax_model.msgpack"), "other libraries than PyTorch (flax_model.msgpack)"),
    "shards without index": (
        lambda f: only(f, "model-00001-of-00002.safetensors"),
        "parts of the weights (model-00001-of-00002.safetensors) without model.safetensors.index.json",
    ),
    "other name": (lambda f: only(f, "w.fp16.safetensors"), "has no model.safetensors, only w.fp16.saf"),
    "maker's format": (lambda f: without_config(f, "params.json"), "maker's own format"),
    "lfs weights": (lambda f: (f / "model.safetensors").write_bytes(POINTER), "(model.safetensors)"),
    "lfs config": (lambda f: (f / "config.json").write_bytes(POINTER), "git-lfs pointers"),
    "lfs tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(POINTER), "`git lfs pull`"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_named_for_what_they_are(folder, name):
    change, words = FILES[name]
    change(folder)
    said = said_of(folder)
    assert words in said and str(folder) in said, said


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.txt"])
def test_a_file_is_not_a_folder(tmp_path, name):
    (tmp_path / name).touch()
    said = said_of(tmp_path / name)
    assert str(tmp_path / name) in said
    assert ("is a file" if name == "x.txt" else f"with config.json: {tmp_path}") in said


def test_a_plan_needs_no_weights_and_says_where_training_would(folder, warnings):
    (folder / "model.safetensors").unlink()
    find_backbone(str(folder), weights=False)
    assert not warnings
    (folder / "pytorch_model.bin").touch()
    find_backbone(str(folder), weights=False)
    assert len(warnings) == 1 and "only as pickle files" in warnings[0]


def test_the_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_backbone(f"~/{folder.name}") == folder
    assert backbone_address(f"~/{folder.name}") == str(folder)


# -- the command that converts pickle files


@pytest.mark.usefixtures("unfused")
@pytest.mark.parametrize("name", ["old", 'it\'s "old"'])
def test_the_command_that_converts_pickle_files_runs(tmp_path, name):
    model = random_model(FAMILIES["llama"], tied=True)
    folder = save(model, tmp_path / name)
    character_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    command = said_of(folder).split("that you trust once: ")[1]
    assert "..." not in command, "cut"
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=here, capture_output=True)
    plain = save(model, tmp_path / "plain")
    assert_same_model(load(find_backbone(str(tmp_path / "converted"))), plain)


def test_a_hub_ids_command_names_the_id_and_its_revision():
    (*_, code) = shlex.split(convert_command("facebook/opt-125m", revision="refs/pr/1"))
    compile(code, "command", "exec")
    assert 'from_pretrained("facebook/opt-125m", revision="refs/pr/1")' in code


# -- code of a model's own

OWN = {
    "fits": "from transformers import LlamaModel\nclass Own(LlamaModel):\n    pass\n",
    "lacks a package": "import no_such_package_at_all\nclass Own:\n    pass\n",
    "no sdpa": "from transformers import LlamaModel\nclass Own(LlamaModel):\n    _supports_sdpa = False\n",
    "no interface": (
        "from transformers import LlamaModel\nclass Own(LlamaModel):\n"
        "    def forward(self, tokens):\n        return tokens\n"
    ),
    "returns a pair": (
        "from transformers import LlamaModel\nclass Own(LlamaModel):\n"
        "    def forward(self, input_ids=None, attention_mask=None, use_cache=None):\n"
        "        return super().forward(input_ids, attention_mask).last_hidden_state, None\n"
    ),
    "fails": "raise RuntimeError('not on this machine')\nclass Own:\n    pass\n",
}
WHY = {
    "lacks a package": ("no_such_package_at_all", "install the packages"),
    "no sdpa": ("scaled_dot_product_attention", "trust_remote_code=false"),
    "no interface": ("does not take input_ids and attention_mask", "trust_remote_code=false"),
    "fails": ("not on this machine", "trust_remote_code=false"),
}


def give_code(folder: Path, name: str) -> None:
    change_config(folder, auto_map={"AutoModel": "own_model.Own"})
    (folder / "own_model.py").write_text(OWN[name])


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory, monkeypatch) -> None:
    """Transformers copies code into a folder that is not the user's."""
    from transformers import dynamic_module_utils
    from transformers.utils import hub

    place = str(tmp_path_factory.mktemp("modules"))
    for module in (hub, dynamic_module_utils):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", place, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def test_own_code_that_is_left_out_is_told_once(folder, warnings):
    give_code(folder, "fits")
    read_spec(folder)
    assert len(warnings) == 1
    assert "own_model.Own" in warnings[0] and "backbone.trust_remote_code=true" in warnings[0]


def test_own_code_that_is_trusted_is_run(folder, warnings):
    give_code(folder, "fits")
    spec = read_spec(folder, trust_remote_code=True)
    assert type(spec.skeleton).__name__ == "Own" and not spec.packable
    assert not any("trust_remote_code" in one for one in warnings)


@pytest.mark.parametrize("name", WHY)
def test_own_code_that_fails_says_why(folder, name):
    give_code(folder, name)
    with pytest.raises(UserError) as refused:
        read_spec(folder, trust_remote_code=True)
    said = str(refused.value)
    assert "has its own code (own_model.Own), which cannot be used here" in said
    assert all(word in said for word in WHY[name]), said


def test_own_code_that_returns_something_else_says_so(folder):
    give_code(folder, "returns a pair")
    backbone = load_backbone(
        read_spec(folder, trust_remote_code=True), BackboneOptions(), dtype=torch.float32, env=ALONE
    )
    with pytest.raises(UserError, match=r"own code \(Own\), which returns tuple without last_hidden_state"):
        backbone.hidden_states(*some_input())


def test_own_code_of_an_unknown_type_is_named_with_its_setting(folder):
    change_config(folder, model_type="evo_9", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"})
    said = said_of(folder)
    assert "evo_9" in said and "has its own code (m.M): set backbone.trust_remote_code=true" in said


def test_a_tokenizers_own_code_is_not_the_models():
    assert own_code({"auto_map": {"AutoTokenizer": ["t.T", None]}}) is None
