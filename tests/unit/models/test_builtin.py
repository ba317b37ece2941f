"""The English language model that the package carries: small, one token a base, and worth its training."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingo_ds.commands.train import train
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import detect
from lingo_ds.models.backbone.builtin import ENGLISH, character_tokenizer

TEXT = "The quick answer is that nobody knows where the old house was, or who lived in it when the war began."


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(ENGLISH, dtype=torch.float32)


def test_is_small_and_says_what_it_learned_from():
    assert sum(path.stat().st_size for path in ENGLISH.iterdir()) < 8e6
    card = (ENGLISH / "README.md").read_text()
    for said in (
        "wordnet-base | WordNet's glosses | WordNet-3.0",
        "perl-doc",
        "Held-out loss",
        "has seen no DNA",
    ):
        assert said in card


def test_a_base_is_one_token_behind_a_sentence():
    tokenizer, before = AutoTokenizer.from_pretrained(ENGLISH), "Domain: core promoters\nSequence: "
    ids = tokenizer(before + "ACGTN")["input_ids"]
    assert len(ids) == 1 + len(before) + 5 and tokenizer.unk_token_id not in ids
    assert ids == character_tokenizer()(before + "ACGTN")["input_ids"]
    config = json.loads((ENGLISH / "config.json").read_text())
    assert config["max_position_embeddings"] == 1024 and config["vocab_size"] == len(tokenizer)


@torch.no_grad()
def test_reads_english_better_than_the_same_letters_shuffled(model):
    tokenizer = AutoTokenizer.from_pretrained(ENGLISH)

    def loss(text):
        ids = torch.tensor(tokenizer(text)["input_ids"])[None]
        return float(cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]))

    letters = "".join(TEXT[k] for k in torch.randperm(len(TEXT), generator=torch.Generator().manual_seed(0)))
    assert loss(TEXT) < 1.9 < loss(letters)


@pytest.mark.slow
def test_learns_promoters_of_people(shared, tmp_path):
    values = {
        "name": "english",
        "output_dir": str(tmp_path / "run"),
        "backbone": {"path": "builtin:english"},
        "data": {
            "path": str(shared / "data" / "gue" / "prom_core_tata"),
            "cache_dir": str(tmp_path / "cache"),
        },
        "train": {"num_epochs": 5, "global_batch_size": 16, "learning_rate": 1e-3},
    }
    metrics = train(RunConfig.model_validate(values), detect())["metrics"]
    assert metrics["test"]["mcc"] > 0.7 and metrics["dev"]["mcc"] > 0.7
