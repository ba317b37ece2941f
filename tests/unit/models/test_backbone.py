"""Loading a frozen backbone from its files, against transformers' own loading; no process group."""

import json
import logging
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    EsmConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    T5Config,
)
from transformers.pytorch_utils import Conv1D

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapters.hooks import choose_sites
from lingo_ds.models.backbone import fused_cpu
from lingo_ds.models.backbone.backbone import Backbone, BackboneOptions, load_backbone
from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.models.backbone.families import TARGETS
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.models.backbone.weight_files import weights_fingerprint
from lingo_ds.utils.errors import UserError

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)
VOCABULARY, CONTEXT, PAD = 97, 64, 1
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
OPT = {**COMMON, "ffn_dim": 48, "dropout": 0.1, "attention_dropout": 0.1}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

# Dropout is on wherever a family's config has it: a frozen backbone must run without.
FAMILIES = {
    "llama": LlamaConfig(**GATED, attention_dropout=0.1),
    "llama3_rope": LlamaConfig(**GATED, rope_parameters=LLAMA3_ROPE),
    "mistral": MistralConfig(**GATED, sliding_window=8, attention_dropout=0.1),
    "qwen2": Qwen2Config(**GATED, attention_dropout=0.1),
    "qwen3": Qwen3Config(**GATED, head_dim=16, attention_dropout=0.1),
    "opt": OPTConfig(**OPT, word_embed_proj_dim=32),
    "opt_projected": OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False),  # like opt-350m
    "gpt_neox": GPTNeoXConfig(**COMMON, intermediate_size=48, hidden_dropout=0.1, attention_dropout=0.1),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, n_inner=48,
        bos_token_id=0, eos_token_id=2,
    ),
    "phi": PhiConfig(
        **COMMON, intermediate_size=48, partial_rotary_factor=0.5, resid_pdrop=0.1, embd_pdrop=0.1,
        attention_dropout=0.1,
    ),
}  # fmt: skip


def random_model(config: PreTrainedConfig, *, tied: bool, seed: int = 0) -> nn.Module:
    """A causal language model in which no two entries are alike: biases and norms are random too."""
    config = type(config).from_dict({**config.to_dict(), "tie_word_embeddings": tied})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model: nn.Module, folder: Path, **how) -> Path:
    model.save_pretrained(folder, **how)
    return folder


def load(folder: Path, *, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Backbone:
    return load_backbone(
        read_spec(folder), BackboneOptions(activation_checkpointing=checkpointing), dtype=dtype, env=ALONE
    )


@pytest.fixture(autouse=True)
def unfused(monkeypatch) -> None:
    """What is loaded is compared to the bit, and fused kernels round otherwise: see test_cpu_fused."""
    monkeypatch.setattr(fused_cpu, "library", lambda: None)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What lingo_ds warned of: its own loggers only, wherever an earlier test routed them."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("lingo_ds").addHandler(handler)
    yield said
    logging.getLogger("lingo_ds").removeHandler(handler)


def some_input() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of three examples and the mask of their padding."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, VOCABULARY, (3, 13), generator=generator)
    mask = (torch.arange(13) < torch.tensor([[13], [9], [4]])).long()
    return input_ids.where(mask.bool(), torch.tensor(PAD)), mask


def assert_same_model(backbone: Backbone, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Bit-equal hidden states, with and without padding, and bit-equal buffers."""
    plain = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    input_ids, mask = some_input()
    real = mask.bool()
    with torch.no_grad():
        for given in (mask, None):
            ours = backbone.hidden_states(input_ids, given)
            theirs = plain(input_ids=input_ids, attention_mask=given, use_cache=False).last_hidden_state
            assert ours.dtype == dtype
            shown = real if given is not None else slice(None)
            torch.testing.assert_close(ours[shown], theirs[shown], rtol=0, atol=0)
    ours, theirs = dict(backbone.module.named_buffers()), dict(plain.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        assert ours[name].dtype == buffer.dtype, name
        assert torch.equal(ours[name], buffer), name
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


# Equal to transformers' own loading


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_causal_model_loads_as_transformers_loads_it(tmp_path, family, tied):
    folder = save(random_model(FAMILIES[family], tied=tied), tmp_path)
    assert_same_model(load(folder), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_base_model_without_prefix_loads(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=True).base_model, tmp_path)
    keys = load_file(folder / "model.safetensors").keys()
    assert not any(key.startswith(("model.", "transformer.", "gpt_neox.")) for key in keys)
    assert_same_model(load(folder), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_has_the_same_hidden_states_and_full_precision_buffers(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=True), tmp_path)
    assert_same_model(load(folder, dtype=torch.bfloat16), folder, torch.bfloat16)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_has_no_dropout(tmp_path, family):
    backbone = load(save(random_model(FAMILIES[family], tied=True), tmp_path))
    input_ids, mask = some_input()
    with torch.no_grad():
        evaluated = backbone.hidden_states(input_ids, mask)
        backbone.train()
        assert backbone.module.training
        trained = backbone.hidden_states(input_ids, mask)
    assert torch.equal(trained, evaluated)


def test_real_backbone_loads_as_transformers_loads_it(shared):
    folder = shared / "backbones" / "stories260k"
    assert_same_model(load(folder), folder)
    assert_same_model(load(folder, dtype=torch.bfloat16), folder, torch.bfloat16)


# Linear maps and targets


def decoder_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear map inside the decoder layers, found without lingo_ds."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    inside = {id(module) for stack in stacks for module in stack.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_name_every_linear_map_of_the_layers(tmp_path, family):
    model = random_model(FAMILIES[family], tied=True).base_model
    spec = read_spec(save(model, tmp_path))
    names = TARGETS[spec.model_type]
    expected = decoder_maps(model)
    for name in names:
        assert [n for n in expected if n.endswith(f".{name}")], name
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    assert [site.name for site in sites] == list(expected)
    for site in sites:
        assert expected[site.name](torch.zeros(site.d_in)).shape == (site.d_out,)


@pytest.mark.parametrize("family", FAMILIES)
def test_spec_counts_what_the_model_has(tmp_path, family):
    model = random_model(FAMILIES[family], tied=True).base_model
    spec = read_spec(save(model, tmp_path))
    input_ids, mask = some_input()
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert (spec.layers, spec.hidden_size, spec.ffn_size, spec.context) == (
        2,
        32,
        FFN.get(family, 48),
        CONTEXT,
    )
    assert spec.layer_parameters == sum(p.numel() for p in layers[0].parameters())
    assert spec.layer_classes == (type(layers[0]),)
    assert spec.output_size == model(input_ids=input_ids, attention_mask=mask)[0].shape[-1]


FFN = {"gpt2": 96, "gpt_neox": 96, "qwen3": 64}
"""Widest side of a map, where it is not the feed-forward part's: fused query, key, value; 4 heads of 16."""


def test_unknown_family_adapts_every_map_and_says_so(tmp_path, warnings):
    model = random_model(StableLmConfig(**GATED), tied=False).base_model
    spec = read_spec(save(model, tmp_path))
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    assert [site.name for site in sites] == list(decoder_maps(model))
    assert len(warnings) == 1
    assert "stablelm" in warnings[0]
    assert_same_model(load(tmp_path), tmp_path)


MAPS = {
    "layers.0.self_attn.q_proj": (32, 32),
    "layers.0.self_attn.v_proj": (16, 32),
    "layers.0.mlp.up_proj": (48, 32),
    "layers.1.self_attn.q_proj": (32, 32),
    "layers.1.self_attn.v_proj": (16, 32),
    "layers.1.mlp.up_proj": (48, 32),
}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", [0, 1, 3, 4]),
        (["v_proj"], [1, 4]),
        (["up_proj", "q_proj"], [0, 2, 3, 5]),  # the backbone's order, not the list's
        (["self_attn.v_proj", "layers.0.mlp.up_proj"], [1, 2, 4]),
        (["q_proj", "layers.0.self_attn.q_proj"], [0, 3]),  # named twice, adapted once
        (r".*\.1\..*_proj", [3, 4, 5]),
        (r"layers\.0\.mlp\.up_proj", [2]),
    ],
    ids=str,
)
def test_choose_sites(targets, expected):
    sites = choose_sites(MAPS, targets=targets, family_default=("q_proj", "v_proj"))
    names = [list(MAPS)[k] for k in expected]
    assert [(site.name, site.d_out, site.d_in) for site in sites] == [(name, *MAPS[name]) for name in names]


@pytest.mark.parametrize("targets", [["qproj"], ["q_proj", "qproj"], "qproj"], ids=str)
def test_target_that_matches_nothing_suggests_the_nearest(targets):
    with pytest.raises(UserError, match=r"error: adapter.targets: 'qproj': .*did you mean q_proj\?"):
        choose_sites(MAPS, targets=targets, family_default=())


def test_every_target_that_matches_nothing_is_named():
    with pytest.raises(UserError) as caught:
        choose_sites(MAPS, targets=["qproj", "proj", "nothing_alike"], family_default=())
    assert [mistake.value for mistake in caught.value.mistakes] == ["qproj", "proj", "nothing_alike"]


def test_list_entry_does_not_match_a_part_of_a_name():
    with pytest.raises(UserError, match="matches no linear map"):
        choose_sites(MAPS, targets=["proj"], family_default=())


# Mistakes in the files


def refuse(folder: Path, *words: str) -> None:
    """Loading must end in a message that has all words, not in a traceback."""
    with pytest.raises(UserError) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith("error: ")
    assert all(word in text for word in words), text


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(random_model(FAMILIES["llama"], tied=True), tmp_path)


@pytest.fixture
def sharded(tmp_path) -> Path:
    return save(random_model(FAMILIES["llama"], tied=True), tmp_path, max_shard_size="20KB")


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_index(folder: Path, change) -> dict[str, str]:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return index["weight_map"]


LAST = "model.layers.1.mlp.down_proj.weight"


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


OLD_BUFFERS = {
    "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "gpt_neox": [
        "gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq",
    ],
    "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
}  # fmt: skip


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
    refuse(folder, str(folder), "no model.safetensors", "converted")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "not json",
        "[]",
        "{}",
        '{"model_type": "no_such_family"}',
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}',
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "max_position_embeddings": -1}',
        '{"model_type": "clip", "max_position_embeddings": 77}',
        '{"a":' * 5000,
    ],
)
def test_unusable_config(folder, text):
    path = folder / "config.json"
    path.unlink() if text is None else path.write_text(text)
    refuse(folder, str(folder))


@pytest.mark.parametrize("text", ['{"tokenizer_class": []}', '{"unk_token": []}', '{"a":' * 5000, "[]"])
def test_unusable_tokenizer(folder, text):
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match="has no usable tokenizer"):
        read_tokenizer(folder)


def test_weights_that_are_no_file_are_refused_rather_than_waited_for(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refuse(folder, "has no model.safetensors")
    with pytest.raises(UserError, match="is no file"):
        weights_fingerprint(folder)


def test_encoder_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=97, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    refuse(save(AutoModel.from_config(config), tmp_path), "t5")


# Cheap shapes


def test_shapes_of_seven_billion_parameters_need_no_memory_and_no_weights(tmp_path):
    LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    ).save_pretrained(tmp_path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    spec = read_spec(tmp_path)
    seconds = time.monotonic() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (
        1 if sys.platform == "darwin" else 1024
    )
    assert spec.parameters == 6_607_343_616
    assert spec.layer_parameters == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert len(spec.linear_maps) == 32 * 7
    assert spec.linear_maps["layers.31.mlp.down_proj"] == (4096, 11008)
    assert {parameter.device.type for parameter in spec.skeleton.parameters()} == {"meta"}
    assert grown < 100 * 2**20
    assert seconds < 20


def test_parameters_have_memory_again_after_a_spec_was_read(folder):
    read_spec(folder)
    assert nn.Linear(2, 2).weight.device == CPU


# Activation checkpointing


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_recomputes_and_changes_no_gradient(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=True), tmp_path)
    input_ids, mask = some_input()
    gradients, calls = [], []
    for checkpointing in (False, True):
        backbone = load(folder, checkpointing=checkpointing)
        name, linear = next(iter(decoder_maps(backbone.module).items()))
        d_out = linear(torch.zeros(read_spec(folder).linear_maps[name][1])).numel()
        added = torch.linspace(-0.1, 0.1, d_out).requires_grad_()
        seen = []
        linear.register_forward_hook(
            lambda _m, _a, out, seen=seen, added=added: seen.append(1) or out + added
        )
        backbone.train()
        hidden = backbone.hidden_states(input_ids, mask)
        F.normalize(hidden[mask.bool()], dim=-1)[:, 0].sum().backward()
        gradients.append(added.grad)
        calls.append(len(seen))
    assert calls == [1, 2]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


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


ENCODERS = {
    "bert": BertConfig(**{**COMMON, "pad_token_id": 0}, intermediate_size=48),
    "esm": EsmConfig(
        **COMMON, intermediate_size=48, position_embedding_type="rotary", token_dropout=True, mask_token_id=3
    ),
    "esm_absolute": EsmConfig(
        **COMMON, intermediate_size=48, position_embedding_type="absolute", mask_token_id=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ENCODERS)
def test_encoder_loads_as_transformers_loads_it_without_pooler_and_contact_head(tmp_path, family, warnings):
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = save(model, tmp_path)
    heads = [p for name, p in model.named_parameters() if name.startswith(("pooler", "contact_head"))]
    assert heads
    spec, backbone = read_spec(folder), load(folder)
    assert not spec.causal
    assert spec.parameters == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in heads)
    names = [name for name, _ in backbone.module.named_parameters()]
    assert not any("pooler" in name or "contact_head" in name for name in (*names, *spec.linear_maps))
    assert_same_model(backbone, folder)
    change_tensors(  # as in the checkpoint of a masked language model
        folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("pooler")]
    )
    assert_same_model(load(folder), folder)
    assert not warnings


@pytest.mark.parametrize("kept", ["none", "one for each layer, as in the first checkpoints"])
def test_rotary_frequencies_of_an_encoder_need_not_be_in_the_file(tmp_path, kept, warnings):
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS["esm"])
    whole, folder = save(model, tmp_path / "whole"), save(model, tmp_path / "folder")
    old = {f"encoder.layer.{k}.attention.self.rotary_embeddings.inv_freq": torch.ones(4) for k in (0, 1)}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "inv_freq" in key]:
            del tensors[key]
        tensors.update({} if kept == "none" else old)

    change_tensors(folder, change)
    assert_same_model(load(folder), whole)
    assert not warnings


def test_activation_checkpointing_rests_in_evaluation(tmp_path):
    folder = save(random_model(FAMILIES["llama"], tied=True), tmp_path)
    backbone = load(folder, checkpointing=True)
    backbone.train()
    backbone.train(False)
    assert_same_model(backbone, folder)


def test_fused_kernels_are_refused_without_a_gpu(folder):
    with pytest.raises(UserError, match=r"backbone\.fused_kernels: 'liger': needs a GPU: set it to off"):
        load_backbone(read_spec(folder), BackboneOptions(liger=True), dtype=torch.float32, env=ALONE)
