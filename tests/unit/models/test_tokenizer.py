"""A backbone's own tokenizer."""

import json
from pathlib import Path

import pytest

from lingo_ds.models.backbone import tokenizer
from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.utils.errors import UserError


@pytest.mark.parametrize("text", ['{"tokenizer_class": []}', '{"unk_token": []}', '{"a":' * 5000, "[]"])
def test_unusable_tokenizer(folder, text):
    character_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(UserError, match="has no usable tokenizer"):
        read_tokenizer(folder)


def said_of(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_tokenizer(folder)
    return str(refused.value)


def test_without_files_that_is_said(folder):
    assert "has no tokenizer files: add tokenizer.json" in said_of(folder)


def test_a_vocabulary_that_needs_a_package_names_it(folder, monkeypatch):
    """Transformers itself names tiktoken, which does not read these files."""
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    said = said_of(folder)
    assert "read with sentencepiece and protobuf, not installed here" in said
    assert "`pip install sentencepiece protobuf`, or add the model's tokenizer.json" in said
    assert "tiktoken" not in said
    (folder / "tokenizer.json").write_text("{}")
    assert "sentencepiece" not in said_of(folder)


def test_pointers_of_git_lfs_are_named(folder):
    character_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
    said = said_of(folder)
    assert "git-lfs pointers" in said and "(tokenizer.json)" in said and "git lfs pull" in said


def test_a_tokenizer_with_its_own_code_names_the_setting(folder):
    (folder / "vocab.txt").write_text("A\nC\n")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own_tokenizer.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own_tokenizer.py").write_text("class Own:\n    pass\n")
    (folder / "config.json").write_text('{"model_type": "unheard_of"}')
    said = said_of(folder)
    assert "has a tokenizer with its own code: set backbone.trust_remote_code=true" in said
