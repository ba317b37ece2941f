"""The backbones that need no download: a small English language model, and a tiny random one for tests.

The English one lies beside this module, as `scripts/pretrain_backbone.py` wrote it: a causal language model
that reads one token per character.

The random one is written when it is needed: a stand-in with a real model's shape. It is good enough for
adapters of rank 8 to learn the promoters of `data/synthetic_promoters.py` within a few epochs by the scale of
its weights (instead of 0.02) and by a rotary base that tells neighbouring bases apart.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from lingo_ds.utils.files import atomic_write

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

ENGLISH = Path(__file__).resolve().parent / "english"
"""The folder of the English language model."""
CONTEXT = 1024  # tokens
ROTARY_BASE = 100.0  # the usual 10,000 spends most of the few frequencies on distances longer than a promoter

_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
_CHARACTERS = ("\n", "\t", *(chr(code) for code in range(32, 127)))
_EMBEDDING_STD = 1.0
_LINEAR_STD = 0.1  # about 1 / sqrt(hidden size): a map puts out vectors of its input's size


def write_backbone(folder: Path, *, seed: int = 0) -> None:
    """Writes a stand-in for a frozen LLM: `config.json`, `model.safetensors` and the tokenizer's files.

    Llama architecture, 3 layers, hidden size 64, 157 thousand float32 parameters, tied embeddings, 1024
    tokens of context. The tokenizer gives `<s>`, then one token per printable ASCII character, newline or
    tab; anything else is `<unk>`. The same seed gives the same bytes, and torch's global random state is left
    as it was.

    Args:
        folder: appears whole or not at all; one that is there is replaced.
        seed: of the weights.
    """
    model, tokenizer = _random_model(seed), character_tokenizer()

    def write(aside: Path) -> None:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    atomic_write(folder, write)
    logger.info("wrote a random backbone of %d parameters to %s", model.num_parameters(), folder)


def _random_model(seed: int) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM  # slow to import

    config = LlamaConfig(
        **token_ids(),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights of its own
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, _EMBEDDING_STD, generator=generator)
            elif isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, _LINEAR_STD, generator=generator)
    return model


def token_ids() -> dict[str, Any]:
    """What a model's config says of `character_tokenizer`."""
    names = ("unk_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(_SPECIAL) + len(_CHARACTERS), **{name: k for k, name in enumerate(names)}}


def character_tokenizer() -> "PreTrainedTokenizerFast":
    """Gives `<s>`, then one token per printable ASCII character, newline or tab; all else is `<unk>`."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
