"""Tokenizers of every kind read DNA, as text and by base: without padding, with marks, with bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from tests.unit.running import command

PREFIX = "Domain: {domain}\nSequence: {sequence}\nAnnotation:"
DOMAIN = "toys"
TEXTS = ["ACGTACGATATATAACGCGC" * 4, "Domain: toys\nSequence: \nAnnotation:"]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: pieces of several letters, no mark of a text, and no token to pad with."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["</s>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama's: <s> and a mark of a space before every text, bytes for what it has no letter for."""
    letters = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        *"ACGTacdeinotuqSD:",
    ]
    merges = [("A", "C"), ("G", "T"), ("AC", "GT")]
    vocabulary = {token: k for k, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def wrapped() -> PreTrainedTokenizerFast:
    """As BERT's: marks at both ends, a token to pad with, a letter a token."""
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(10, 127))]
    tokenizer = Tokenizer(models.WordLevel({one: k for k, one in enumerate(letters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte level": byte_level,
    "sentencepiece": sentencepiece,
    "wrapped": wrapped,
}


@pytest.fixture(params=KINDS)
def recipe(request, shared, tmp_path) -> Path:
    """A recipe on a small model with a tokenizer of each kind."""
    folder, tokenizer = tmp_path / "backbone", KINDS[request.param]()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copytree(shared / "field/good", tmp_path / "data", copy_function=shutil.copyfile)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: run\nbackbone: {{path: {folder}}}\n"
        f"data: {{path: {tmp_path / 'data'}, cache_dir: {tmp_path / 'cache'}, domain: {DOMAIN}}}\n"
        "adapter: {rank: 2}\nrank_sampling: {mode: 'off'}\n"
        "train: {max_steps: 2, global_batch_size: 8, learning_rate: 1.0e-2}\n"
    )
    return path


def said_of_tokens(shown: str) -> str:
    (line,) = (line for line in shown.splitlines() if "data: tokens:" in line)
    return line.partition("tokens: ")[2]


def test_bases_in_a_token_are_counted_and_said_once(recipe, tmp_path):
    """Against the tokenizer itself, by where its tokens lie in the text."""
    status, shown = command("train", recipe, tmp_path / "out", f"data.prefix={json.dumps(PREFIX)}")
    assert status == 0, shown
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "backbone")
    rows = [line.split(",")[0] for line in (tmp_path / "data/train.csv").read_text().splitlines()[1:]]
    before = PREFIX.replace("{domain}", DOMAIN).partition("{sequence}")[0]
    inside, all_tokens = 0, 0
    for dna in rows:
        text = PREFIX.replace("{domain}", DOMAIN).replace("{sequence}", dna)
        found = tokenizer(text, return_offsets_mapping=True)
        spans = [(start, end) for start, end in found["offset_mapping"] if end > start]
        inside += sum(end > len(before) and start < len(before) + len(dna) for start, end in spans)
        all_tokens += len(found["input_ids"])
    bases, said = sum(map(len, rows)), said_of_tokens(shown)
    around = round((all_tokens - inside) / len(rows))
    assert f"{around} for the text around" in said
    if inside == bases:
        assert said.startswith(f"one for each base, {inside / len(rows):.1f} in an example")
    else:
        assert float(said.split()[0]) == pytest.approx(bases / inside, abs=0.03)
        assert "data.tokens=nucleotides reads one for each base" in said


def test_bases_are_read_one_by_one_whatever_the_tokenizer_does(recipe, tmp_path):
    status, shown = command(
        "train", recipe, tmp_path / "out", f"data.prefix={json.dumps(PREFIX)}", "data.tokens=nucleotides"
    )
    assert status == 0, shown
    assert said_of_tokens(shown).startswith("one for each base")
