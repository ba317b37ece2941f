"""Backbones after public bug reports: each is named for what it is, by every verb, before data are read."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lingo_ds.models.backbone.spec import read_spec
from tests.unit.commands.test_export import export, our_logits, run_snippet, trained
from tests.unit.commands.test_predict import make_adapter
from tests.unit.every_verb import VERBS, give, refused

BACKBONES = Path(__file__).parents[3] / "shared" / "field" / "backbones"

pytestmark = pytest.mark.skipif(
    not BACKBONES.is_dir(), reason="the field's inputs (../shared/field) are not here"
)

NAMED = {
    "gptq": ("GPTQ, 4 bits", "before it was quantised", "backbone.quantization=nf4 or int8"),
    "bnb4": ("bitsandbytes, 4 bits", "before it was quantised", "backbone.quantization=nf4 or int8"),
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", NAMED)
def test_weights_that_cannot_be_used_are_named(name, verb, adapter, tmp_path):
    said = refused(verb, BACKBONES / name, tmp_path, adapter)
    assert all(word in said for word in NAMED[name]), said
    assert "lacks" not in said


@pytest.mark.parametrize("verb", ["train", "plan", "predict", "export"])
def test_own_code_that_was_left_out_is_named_where_weights_do_not_fit(verb, adapter, tmp_path):
    said = refused(verb, BACKBONES / "dnabert2_like", tmp_path, adapter)
    assert "lacks 25 of 37 weights" in said
    assert "its own code (bert_layers.BertModel)" in said
    assert "set backbone.trust_remote_code=true" in said


@pytest.mark.parametrize("verb", ["train", "plan", "predict"])
def test_own_code_that_runs_is_named_where_weights_do_not_fit(verb, adapter, tmp_path):
    trusted = "backbone.trust_remote_code=true"
    said = refused(verb, BACKBONES / "dnabert2_like", tmp_path, adapter, trusted)
    assert "in the model's own code (bert_layers.BertModel)" in said
    assert trusted not in said


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_the_package_that_a_tokenizer_needs_is_named(verb, adapter, tmp_path):
    try:
        AutoTokenizer.from_pretrained(BACKBONES / "spm_only")
    except Exception:
        said = refused(verb, BACKBONES / "spm_only", tmp_path, adapter)
        assert "read with sentencepiece" in said and "pip install sentencepiece" in said
        assert "tokenizer.json" in said and "tiktoken" not in said
    else:
        pytest.skip("sentencepiece is installed")


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("name", ["falcon", "phi3", "modernbert"])
def test_the_card_of_a_merged_model_gives_the_adapters_answers(name, pooling, tmp_path):
    """On sequences of unequal length in one batch."""
    folder = BACKBONES / name
    adapter, saved = trained(tmp_path / "adapter", read_spec(folder), pooling=pooling)
    found = run_snippet(export(adapter, "merged", tmp_path / "merged"))
    expected = our_logits(folder, saved)
    assert torch.allclose(found["logits"], expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01 and not found["tokens"].attention_mask.all()


@pytest.mark.parametrize(
    "name", ["bert_wordpiece", "dnabert1_like", "falcon", "mixtral", "phi3", "modernbert"]
)
def test_controls_are_backbones(name, adapter, tmp_path):
    status, shown = give("plan", BACKBONES / name, tmp_path, adapter)
    assert status == 2 and "no data" in shown, "it got as far as the data"
