"""What is known of each family of language models: the linear maps that adapters go to."""

TARGETS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "mistral": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen3": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "gpt_neox": ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "phi": ("q_proj", "k_proj", "v_proj", "self_attn.dense", "fc1", "fc2"),
}
"""`adapter.targets: all-linear` by model type; other types adapt every linear map of their decoder layers."""

DROPOUT_SETTINGS = (
    "dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "resid_dropout", "embed_dropout", "emb_pdrop", "ffn_dropout",
)  # fmt: skip
"""Dropout settings in the families' configs. A frozen backbone runs without: its output must not vary."""
