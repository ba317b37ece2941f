"""Facts about each family of language models: its adapted maps, and what packing needs to know."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "mistral": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen3": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "gpt_neox": ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "phi": ("q_proj", "k_proj", "v_proj", "self_attn.dense", "fc1", "fc2"),
    "bert": ("query", "key", "value", "output.dense", "intermediate.dense"),
    "esm": ("query", "key", "value", "output.dense", "intermediate.dense"),
}
"""`adapter.targets: all-linear` by model type; other types adapt every linear map of their decoder layers."""

SHARED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
)
"""Maps of one module that read the same tensor: the first factors of their adapters are one product."""

FUSED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families whose RMS norms and gates by SiLU fused kernels compute, and liger-kernel their positions, too."""

LEARNS_TOKENS = frozenset(TARGETS)
"""Families whose input embedding only looks rows up, so that it can have learned tokens; tested."""

PACKABLE = frozenset(TARGETS)
"""Families whose packed outputs are tested against padded ones; others are padded."""

CLASSIFIERS = frozenset(TARGETS) - {"bert", "esm"}
"""Families whose <Family>ForSequenceClassification is a map `score` without bias on the last real token."""


def first_position(config: "PreTrainedConfig") -> int:
    """Position of a text's first token in learned embeddings: ESM counts from its padding id."""
    counts_on = config.model_type == "esm" and config.position_embedding_type == "absolute"
    return config.pad_token_id + 1 if counts_on else 0
