"""Every family of `families.FAMILIES`, as a small random model: what docs/models.md says of it is true.

Families that are in the table from its beginning are tried by the tests of packs, tokens and exports.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, EsmConfig, Starcoder2Config

from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.families import ATTENTION, FAMILIES
from lingo_ds.models.backbone.skeleton import build_skeleton
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.weight_files import WeightFiles
from lingo_ds.utils.errors import UserError
from tests.unit.commands.test_export import export, our_logits, run_snippet, trained, write_tokenizer
from tests.unit.models import test_packed_forward
from tests.unit.models.family_table import GATED, MODELS, VOCABULARY, family_of, is_encoder, write_model
from tests.unit.models.random_models import ALONE, change_tensors
from tests.unit.models.test_token_embeddings import (
    adapted,
    backward,
    batches,
    distance,
    examples_of,
    plain_result,
)

MIXTURES = [name for name in MODELS if FAMILIES[family_of(name)].experts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a model of the table, with a tokenizer of characters."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_model(tmp_path_factory.mktemp("family"), name)
            write_tokenizer(made[name], pad=True)
        return made[name]

    return folder


def test_every_family_is_tried():
    older = {config.model_type for config in test_packed_forward.FAMILIES.values()}
    assert older | {family_of(name) for name in MODELS} == set(FAMILIES)


@pytest.mark.parametrize("name", MODELS)
def test_targets_are_linear_maps_of_every_layer(folders, name):
    spec, family = read_spec(folders(name)), FAMILIES[family_of(name)]
    found = {target: [n for n in spec.linear_maps if n.endswith(f".{target}")] for target in family.targets}
    assert all(len(maps) >= spec.layers for maps in found.values()), found
    if not family.experts:
        assert {n for maps in found.values() for n in maps} == set(spec.linear_maps)
    assert (spec.packable, spec.causal) == (family.packs, not is_encoder(name))


POOLINGS = [
    (name, pooling)
    for name in MODELS
    for pooling in (("last", "mean", "first") if is_encoder(name) else ("last", "mean"))
]


@pytest.mark.parametrize(("name", "pooling"), POOLINGS)
def test_logits_and_gradients_are_those_of_a_plain_model(folders, name, pooling):
    """In padded batches, and in packs with and without a shared prefix; the nucleotides' rows learn, too."""
    examples = examples_of(VOCABULARY)
    models = {packed: adapted(folders(name), packed=packed, pooling=pooling) for packed in (False, True)}
    bank = models[False].bank
    with torch.no_grad():  # away from the letters' rows
        bank.layout.tokens(bank.master).add_(torch.randn(bank.layout.token_shape))
        models[True].bank.master.copy_(bank.master)
    expected = plain_result(folders(name), bank.layout, bank.master, examples, pooling)
    assert expected[0].std(0).min() > 0.005, "each example has its own"
    given = {"padded": batches(examples, share_prefix=False)[0]}
    if FAMILIES[family_of(name)].packs:
        given["packed"] = batches(examples, share_prefix=False)[1]
        if not is_encoder(name):
            given["shared"] = batches(examples, share_prefix=True)[1]
    for how, batch in given.items():
        model = models[how != "padded"]
        model.bank.refresh()
        logits, grad = backward(model, batch)
        assert distance(logits, expected[0]) < 2e-5, how
        assert distance(grad, expected[1]) < 5e-5, how


@pytest.mark.parametrize("name", [name for name in MODELS if FAMILIES[family_of(name)].packs])
def test_recomputed_activations_of_a_pack_give_the_same(folders, name):
    pack = batches(examples_of(VOCABULARY), share_prefix=not is_encoder(name))[1]
    kept, again = (
        backward(adapted(folders(name), packed=True, checkpointing=on), pack) for on in (False, True)
    )
    assert torch.equal(kept[0], again[0]) and distance(again[1], kept[1]) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_a_merged_model_gives_our_logits(folders, name, tmp_path):
    """By the code of its card: a classifier where transformers has this one, else a base model and a head."""
    adapter, saved = trained(tmp_path / "adapter", read_spec(folders(name)))
    out = export(adapter, "merged", tmp_path / "merged")
    kind = AutoModelForSequenceClassification if FAMILIES[family_of(name)].classifier else AutoModel
    more = {"add_pooling_layer": False} if name == "roberta" else {}
    _, info = kind.from_pretrained(out, output_loading_info=True, **more)
    assert not any(info.values()), info
    expected = our_logits(folders(name), saved, dtype=dtype_of(name))
    assert torch.allclose(run_snippet(out)["logits"], expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.01 and not torch.allclose(expected[0], expected[1], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_stock_peft_gives_our_logits_where_it_can(folders, name, tmp_path):
    pytest.importorskip("peft")
    adapter, saved = trained(tmp_path / "adapter", read_spec(folders(name)))
    out = export(adapter, "lora", tmp_path / "lora")
    if not FAMILIES[family_of(name)].classifier:
        assert "stock PEFT cannot load the folder" in (out / "README.md").read_text()
        return
    expected = our_logits(folders(name), saved, dtype=dtype_of(name))
    assert torch.allclose(run_snippet(out)["logits"], expected, rtol=0, atol=2e-5)


def dtype_of(name: str) -> torch.dtype:
    """In which a model computes its expected logits: fp64, where transformers' class can do that."""
    only_fp32 = family_of(name) == "gemma2" or FAMILIES[family_of(name)].experts
    return torch.float32 if only_fp32 else torch.float64


@pytest.mark.parametrize("name", MODELS)
def test_maps_quantised_to_int8_compute_nearly_the_same(folders, name):
    pytest.importorskip("bitsandbytes")
    ids = torch.tensor([examples_of(VOCABULARY - 5)[0]])
    exact, rounded = (
        load_backbone(
            read_spec(folders(name)), BackboneOptions(quantization=how), dtype=torch.float32, env=ALONE
        ).hidden_states(ids, None)
        for how in ("none", "int8")
    )
    assert 1e-5 < distance(rounded, exact) < 0.1


# -- mixtures of experts


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_left_alone_and_it_is_said(folders, name, caplog):
    caplog.set_level(logging.INFO, logger="lingo_ds")
    spec = read_spec(folders(name))
    assert FAMILIES[name].targets == ATTENTION and spec.experts == 4
    assert "adapters are on the attention, the 4 experts of a layer stay as they are" in caplog.text
    assert not [n for n in spec.linear_maps if "router" in n or n.endswith(".gate")]
    inside = [n for n, _ in spec.skeleton.named_parameters() if ".experts." in n]
    assert len(inside) >= spec.layers


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_any_range_of_experts_is_read_from_the_files_that_hold_each_apart(folders, name):
    skeleton = build_skeleton(folders(name), trust_remote_code=False).module
    files, plain = WeightFiles(folders(name), skeleton), AutoModel.from_pretrained(folders(name))
    names = [n for n, _ in skeleton.named_parameters() if ".experts." in n]
    assert len(names) == 4
    for weight in names:
        expected = plain.get_parameter(weight)
        assert torch.equal(files.shaped(weight), expected)
        for start, count in ((0, expected.numel()), (1, 700), (1151, 2), (expected.numel() - 3, 3)):
            out = torch.empty(count)
            files.read_into(out, weight, start)
            assert torch.equal(out, expected.flatten()[start : start + count]), (weight, start)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_a_file_that_lacks_an_expert_is_refused(folders, name, tmp_path):
    write_model(tmp_path, name)
    gone = "experts.2.w3.weight" if name == "mixtral" else "experts.2.up_proj.weight"
    change_tensors(tmp_path, lambda tensors: tensors.pop(next(key for key in tensors if gone in key)))
    skeleton = build_skeleton(tmp_path, trust_remote_code=False).module
    with pytest.raises(UserError, match=r"lacks 1 of \d+ weights, e.g. layers.0.mlp.experts.gate_up_proj"):
        WeightFiles(tmp_path, skeleton)


@pytest.mark.parametrize("chosen", [0, None, "two"])
def test_a_number_of_experts_that_is_none_is_refused(folders, chosen, tmp_path):
    shutil.copytree(folders("mixtral"), tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    (tmp_path / "copy/config.json").write_text(json.dumps(config | {"num_experts_per_tok": chosen}))
    with pytest.raises(UserError, match="num_experts_per_tok"):
        read_spec(tmp_path / "copy")


# -- families outside of the table


def test_a_family_outside_of_the_table_learns_in_padded_batches_and_it_is_said(tmp_path, caplog):
    AutoModel.from_config(Starcoder2Config(**GATED)).save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    assert not spec.packable
    said = [record.message for record in caplog.records if "starcoder2" in record.message]
    assert len(said) == 1 and "is not tested" in said[0] and "batches are padded" in said[0]
    examples = examples_of(VOCABULARY)
    model = adapted(tmp_path)
    expected = plain_result(tmp_path, model.bank.layout, model.bank.master, examples, "last")
    logits, grad = backward(model, batches(examples, share_prefix=False)[0])
    assert distance(logits, expected[0]) < 2e-5 and distance(grad, expected[1]) < 5e-5


# -- encoders of DNA with code of their own


@pytest.fixture
def gated_esm(tmp_path) -> Path:
    """Files as those of Nucleotide Transformer 2: an ESM's, whose feed-forward parts have twice the width."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = EsmConfig(
        **sizes, vocab_size=VOCABULARY, pad_token_id=3, mask_token_id=4, max_position_embeddings=80
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [key for key in tensors if key.endswith("intermediate.dense.weight")]:
            tensors[name] = torch.cat([tensors[name], tensors[name]])

    change_tensors(tmp_path, widen)
    described = json.loads((tmp_path / "config.json").read_text())
    described["auto_map"] = {"AutoModel": "own.Own", "AutoConfig": "own.Config"}
    (tmp_path / "config.json").write_text(json.dumps(described))
    return tmp_path


def test_weights_of_an_encoders_own_code_are_refused_with_the_way_out(gated_esm):
    skeleton = build_skeleton(gated_esm, trust_remote_code=False).module
    with pytest.raises(UserError) as error:
        WeightFiles(gated_esm, skeleton)
    assert "intermediate.dense.weight" in str(error.value) and "own.Own" in str(error.value)
    assert "set backbone.trust_remote_code=true to run that code" in str(error.value)


def test_an_encoders_own_code_runs_in_padded_batches(tmp_path):
    """As DNABERT-2 and GENA-LM are used: with the switch, every map adapted."""
    write_model(tmp_path, "roberta")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from transformers import RobertaConfig, RobertaModel\n"
        "class Own(RobertaModel):\n    config_class = RobertaConfig\n"
    )
    spec = read_spec(tmp_path, trust_remote_code=True)
    assert not spec.packable and not spec.target_names and len(spec.linear_maps) == 2 * 6
    options, (batch, _) = BackboneOptions(), batches(examples_of(VOCABULARY - 5), share_prefix=False)
    own, known = (
        load_backbone(one, options, dtype=torch.float32, env=ALONE) for one in (spec, read_spec(tmp_path))
    )
    mask = (torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]).long()
    found, expected = (one.hidden_states(batch.input_ids, mask) for one in (own, known))
    assert type(own.module).__name__ == "Own" and torch.equal(found, expected)
