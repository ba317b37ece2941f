"""Small models of the families that `test_families` tries, with what is special about each switched on."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig

from lingo_ds.models.backbone.families import FAMILIES

VOCABULARY, CONTEXT = 128, 80
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
ENCODER = {**COMMON, "intermediate_size": 48}
ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
HEADS = {"head_dim": 16, "query_pre_attn_scalar": 8}

MODELS: dict[str, dict] = {
    "gemma": {**GATED, "head_dim": 16},
    "gemma2": {**GATED, **ALTERNATING, **HEADS, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**GATED, **ALTERNATING, **HEADS},
    "gemma3_text, both ways": {**GATED, **ALTERNATING, **HEADS, "use_bidirectional_attention": True},
    "phi3": {**GATED, "original_max_position_embeddings": CONTEXT},
    "phi3, a part of each head turned": {
        **GATED,
        "original_max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "sliding_window": 12,
    },
    "olmo2": GATED,
    "smollm3": {**GATED, "no_rope_layer_interval": 2},
    "granite": {
        **GATED,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "stablelm": {**GATED, "qk_layernorm": True, "use_qkv_bias": True},
    "stablelm, parallel": {**GATED, "use_parallel_residual": True},
    "cohere2": {**GATED, **ALTERNATING},
    "falcon": COMMON,
    "falcon, new": {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "llama4_text": {
        **GATED,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
        "floor_scale": 4,
        "attention_chunk_size": 8,
    },
    "qwen3_moe": {
        **GATED,
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mixtral": {**GATED, "num_local_experts": 4, "sliding_window": 12},
    "roberta": ENCODER,
    "modernbert": {
        **ENCODER,
        "local_attention": 6,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}
"""Settings of each model; its name begins with its family's."""


def family_of(name: str) -> str:
    return name.split(",")[0]


def is_encoder(name: str) -> bool:
    """Whether a token sees those after it: in some models of a family of decoders, too."""
    return FAMILIES[family_of(name)].encoder or "use_bidirectional_attention" in MODELS[name]


def config_of(name: str) -> PreTrainedConfig:
    return AutoConfig.for_model(family_of(name), **MODELS[name])


def write_model(folder: Path, name: str) -> Path:
    """A folder as on the hub, of a model with its head, in which no two entries are alike."""
    make = AutoModelForMaskedLM if FAMILIES[family_of(name)].encoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make.from_config(config_of(name))
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
