"""Backbones after public bug reports: each is named for what it is, by every verb, before data are read."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lingo_ds.models.backbone.spec import read_spec
from tests.unit.commands.test_predict import make_adapter
from tests.unit.every_verb import VERBS, refused

BACKBONES = Path(__file__).parents[3] / "shared" / "field" / "backbones"

pytestmark = pytest.mark.skipif(
    not BACKBONES.is_dir(), reason="the field's inputs (../shared/field) are not here"
)

NAMED = {
    "gptq": ("GPTQ, 4 bits", "before it was quantised", "backbone.quantization=nf4 or int8"),
    "bnb4": ("bitsandbytes, 4 bits", "before it was quantised", "backbone.quantization=nf4 or int8"),
    "mixtral": ("a mixture of experts", "mixtral: 4 in a layer", "not supported", "dense"),
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


@pytest.mark.parametrize("name", ["falcon", "phi3", "modernbert"])
def test_controls_are_backbones(name):
    assert read_spec(BACKBONES / name).model_type == name
