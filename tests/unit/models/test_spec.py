"""Shapes of a backbone, read without its weights."""

import resource
import sys
import time

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    Starcoder2Config,
)

from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.families import TARGETS
from lingo_ds.models.backbone.spec import read_spec
from tests.unit.models.random_models import (
    CONTEXT,
    FAMILIES,
    GATED,
    assert_same_model,
    decoder_maps,
    load,
    random_model,
    save,
    some_input,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_name_every_linear_map_of_the_layers(tmp_path, family):
    model = random_model(FAMILIES[family], tied=True).base_model
    spec = read_spec(save(model, tmp_path))
    names = TARGETS[spec.model_type]
    expected = decoder_maps(model)
    for name in names:
        assert [n for n in expected if n.endswith(f".{name}")], name
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    assert [site.name for site in sites] == list(expected)
    for site in sites:
        assert expected[site.name](torch.zeros(site.d_in)).shape == (site.d_out,)


@pytest.mark.parametrize("family", FAMILIES)
def test_spec_counts_what_the_model_has(tmp_path, family):
    model = random_model(FAMILIES[family], tied=True).base_model
    spec = read_spec(save(model, tmp_path))
    input_ids, mask = some_input()
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert (spec.layers, spec.hidden_size, spec.ffn_size, spec.context) == (
        2,
        32,
        FFN.get(family, 48),
        CONTEXT,
    )
    assert spec.layer_parameters == sum(p.numel() for p in layers[0].parameters())
    assert spec.layer_classes == (type(layers[0]),)
    assert spec.output_size == model(input_ids=input_ids, attention_mask=mask)[0].shape[-1]


FFN = {"gpt2": 96, "gpt_neox": 96, "qwen3": 64}
"""Widest side of a map, where it is not the feed-forward part's: fused query, key, value; 4 heads of 16."""


def test_unknown_family_adapts_every_map_and_says_so(tmp_path, warnings):
    model = random_model(Starcoder2Config(**GATED), tied=False).base_model
    spec = read_spec(save(model, tmp_path))
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    assert [site.name for site in sites] == list(decoder_maps(model))
    assert len(warnings) == 1
    assert "starcoder2" in warnings[0]
    assert_same_model(load(tmp_path), tmp_path)


def test_shapes_of_seven_billion_parameters_need_no_memory_and_no_weights(tmp_path):
    LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    ).save_pretrained(tmp_path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    spec = read_spec(tmp_path)
    seconds = time.monotonic() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (
        1 if sys.platform == "darwin" else 1024
    )
    assert spec.parameters == 6_607_343_616
    assert spec.layer_parameters == 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert len(spec.linear_maps) == 32 * 7
    assert spec.linear_maps["layers.31.mlp.down_proj"] == (4096, 11008)
    assert {parameter.device.type for parameter in spec.skeleton.parameters()} == {"meta"}
    assert grown < 100 * 2**20
    assert seconds < 20
