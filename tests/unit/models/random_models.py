"""Small random models of every family, on disk and loaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.pytorch_utils import Conv1D

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.backbone import Backbone, BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
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
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        n_inner=48,
        bos_token_id=0,
        eos_token_id=2,
    ),
    "phi": PhiConfig(
        **COMMON,
        intermediate_size=48,
        partial_rotary_factor=0.5,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attention_dropout=0.1,
    ),
}


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


def decoder_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear map inside the decoder layers, found without lingo_ds."""
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    inside = {id(module) for stack in stacks for module in stack.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear | Conv1D)
    }


def refuse(folder: Path, *words: str) -> None:
    """Loading must end in a message that has all words, not in a traceback."""
    with pytest.raises(UserError) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith("error: ")
    assert all(word in text for word in words), text


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
