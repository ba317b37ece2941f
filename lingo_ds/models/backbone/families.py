"""Facts about each family of language models that is tested: `docs/models.md` is made from this table."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ENCODER = ("query", "key", "value", "output.dense", "intermediate.dense")


class Family(NamedTuple):
    """What is known of the models of one type.

    Attributes:
        models: models of it, by the names people know.
        targets: `adapter.targets: all-linear`, by the ends of the maps' names.
        packs: whether packs are computed, with the outputs of padded batches; else batches are padded.
        encoder: whether a token sees those after it, so that packs share no prefix.
        classifier: whether transformers' <Family>ForSequenceClassification is a map `score` without bias on
            the last real token; else a merged model is a base model with its head in a file beside it.
        experts: whether layers have experts, which stay as they are.
        remark: what else a user should know.
    """

    models: str
    targets: tuple[str, ...]
    packs: bool = True
    encoder: bool = False
    classifier: bool = True
    experts: bool = False
    remark: str = ""


FAMILIES = {
    "llama": Family("Llama 1 to 3, SmolLM 2, Yi, DeepSeek-LLM", GATED),
    "mistral": Family("Mistral 7B, Mistral Nemo", GATED),
    "qwen2": Family("Qwen 2 and 2.5", GATED),
    "qwen3": Family("Qwen 3", GATED),
    "gemma": Family("Gemma 1", GATED),
    "gemma2": Family("Gemma 2", GATED, remark="scores are capped, which costs attention its fast kernels"),
    "gemma3_text": Family("Gemma 3 of text alone (270M, 1B), EmbeddingGemma", GATED),
    "phi": Family("Phi-1, 1.5 and 2", ("q_proj", "k_proj", "v_proj", "self_attn.dense", "fc1", "fc2")),
    "phi3": Family(
        "Phi-3, Phi-4 (14B and mini)", ("qkv_proj", "self_attn.o_proj", "gate_up_proj", "down_proj")
    ),
    "olmo2": Family("OLMo 2", GATED),
    "smollm3": Family("SmolLM 3", GATED),
    "granite": Family("Granite 3 (dense)", GATED, classifier=False),
    "stablelm": Family("StableLM 2, StableLM 3B", GATED),
    "cohere2": Family("Command R7B", GATED, classifier=False),
    "falcon": Family(
        "Falcon 7B to 180B",
        ("query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h"),
        packs=False,
        remark="its attention cannot be replaced",
    ),
    "llama4_text": Family(
        "Llama 4, its text part alone",
        ATTENTION,
        packs=False,
        classifier=False,
        experts=True,
        remark="its attention counts positions itself",
    ),
    "qwen3_moe": Family("Qwen 3 30B-A3B, 235B-A22B", ATTENTION, experts=True),
    "mixtral": Family("Mixtral 8x7B, 8x22B", ATTENTION, experts=True),
    "opt": Family("OPT", ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "gpt_neox": Family(
        "Pythia, GPT-NeoX", ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
    ),
    "gpt2": Family("GPT-2", ("c_attn", "c_proj", "c_fc")),
    "bert": Family(
        "BERT, DNABERT, all-MiniLM",
        ENCODER,
        encoder=True,
        classifier=False,
        remark="DNABERT-2 and GENA-LM have code of their own: see below",
    ),
    "roberta": Family("RoBERTa", ENCODER, encoder=True, classifier=False),
    "esm": Family(
        "ESM-2, Nucleotide Transformer 1 and 2",
        ENCODER,
        encoder=True,
        classifier=False,
        remark="Nucleotide Transformer 2 has code of its own: see below",
    ),
    "modernbert": Family("ModernBERT", ("Wqkv", "Wo", "Wi"), encoder=True, classifier=False),
}
"""Every family that is tested, by the `model_type` of its config.json.

For each one tests hold, of a small random model, in padded batches and packs: logits and gradients, learned
tokens, merged weights and PEFT's format, whole and sharded weights. Other types run in padded batches.
"""

TARGETS = {name: family.targets for name, family in FAMILIES.items()}
"""`adapter.targets: all-linear` by model type; other types adapt every linear map of their decoder layers."""

SHARED_INPUTS = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
)
"""Maps of one module that read the same tensor: the first factors of their adapters are one product."""

FUSED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families whose RMS norms and gates by SiLU fused kernels compute, and liger-kernel their positions, too."""

LEARNS_TOKENS = frozenset(FAMILIES)
"""Families whose input embedding is tested with learned tokens: it looks rows up, and may scale them."""

PACKABLE = frozenset(name for name, family in FAMILIES.items() if family.packs)
"""Families whose packed outputs are tested against padded ones; others are padded."""

CLASSIFIERS = frozenset(name for name, family in FAMILIES.items() if family.classifier)
"""Families whose <Family>ForSequenceClassification is a map `score` without bias on the last real token."""

READS_EMBEDDING = frozenset({"llama4_text"})
"""Families whose forward asks the embedding's weight for its device: DeepSpeed then keeps it gathered."""

EXPERTS = frozenset(name for name, family in FAMILIES.items() if family.experts)
"""Families of mixtures of experts whose weights can be read; others are refused."""


def first_position(config: "PreTrainedConfig") -> int:
    """Position of a text's first token in learned embeddings: some families count from their padding id."""
    counts_on = config.model_type == "roberta" or (
        config.model_type == "esm" and config.position_embedding_type == "absolute"
    )
    return config.pad_token_id + 1 if counts_on else 0
