"""Building a backbone's module without its weights."""

import pytest
from torch import nn
from transformers import (
    AutoModel,
    T5Config,
)

from lingo_ds.models.backbone.spec import read_spec
from tests.unit.models.random_models import CPU, refuse, save


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "not json",
        "[]",
        "{}",
        '{"model_type": "no_such_family"}',
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}',
        '{"model_type": "llama", "num_hidden_layers": 1000000000}',
        '{"model_type": "llama", "max_position_embeddings": -1}',
        '{"model_type": "clip", "max_position_embeddings": 77}',
        '{"a":' * 5000,
    ],
)
def test_unusable_config(folder, text):
    path = folder / "config.json"
    path.unlink() if text is None else path.write_text(text)
    refuse(folder, str(folder))


def test_encoder_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=97, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    refuse(save(AutoModel.from_config(config), tmp_path), "t5")


def test_parameters_have_memory_again_after_a_spec_was_read(folder):
    read_spec(folder)
    assert nn.Linear(2, 2).weight.device == CPU
