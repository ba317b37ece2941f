"""The adapted model on packs: logits and gradients are those of padded batches, in every packed family.

The oracle is the same model on padded batches, with transformers' own attention.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, BertConfig, EsmConfig, FalconConfig

from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.adapters.layout import Site, uniform_layout
from lingo_ds.adapters.sites import choose_sites
from lingo_ds.backbone.backbone import load_backbone
from lingo_ds.backbone.families import PACKABLE
from lingo_ds.backbone.spec import BackboneSpec, read_spec
from lingo_ds.data.loader import make_batch
from lingo_ds.data.packing import Pack, make_pack
from lingo_ds.data.tokenize import FEATURES, TokenizedSplit
from lingo_ds.model import AdaptedModel
from tests.unit.test_backbone import CONTEXT, FAMILIES, PAD, VOCABULARY, random_model, save

CPU = torch.device("cpu")
CLASSES = 3
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": CONTEXT + 2, "pad_token_id": PAD,
}  # fmt: skip
ENCODERS = {
    "bert": BertConfig(**COMMON),
    "esm": EsmConfig(**COMMON, position_embedding_type="rotary", mask_token_id=5, token_dropout=True),
    "esm_absolute": EsmConfig(**COMMON, position_embedding_type="absolute", mask_token_id=5),
}
LENGTHS = {"equal": [20] * 5, "mixed": [4, 4, 19, 20, 21, 22, 40, 5]}


class Model(NamedTuple):
    """An adapted model with random values in all of its bank."""

    spec: BackboneSpec
    adapted: AdaptedModel
    bank: AdapterBank


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A backbone of every family."""
    made = {}
    for name, config in FAMILIES.items():
        made[name] = save(random_model(config, tied=True), tmp_path_factory.mktemp(name))
    for name, config in ENCODERS.items():
        torch.manual_seed(0)
        made[name] = save(AutoModel.from_config(config), tmp_path_factory.mktemp(name))
    return made


def adapted_model(
    folder: Path,
    *,
    packed: bool,
    pooling: str = "last",
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> Model:
    spec = read_spec(folder)
    backbone = load_backbone(
        spec, dtype=dtype, device=CPU, activation_checkpointing=checkpointing, ds_config=None, group=None,
        packed=packed,
    )  # fmt: skip
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    layout = uniform_layout(sites, rank=4, head_shape=(CLASSES, spec.output_size))
    bank = AdapterBank(layout, scale=2.0, dtype=dtype, device=CPU, scalars=1, importance=False)
    bank.master.copy_(torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) / 4)
    bank.refresh()
    shared = spec.shared_inputs if packed else ()
    model = AdaptedModel(backbone, bank, pooling=pooling, dropout=0.0, shared_inputs=shared)
    backbone.train()
    return Model(spec, model, bank)


def examples(prefix: int, lengths: Sequence[int], *, seed: int = 0) -> TokenizedSplit:
    """Random tokens behind a common prefix; the first own tokens differ, so that the prefix is no longer."""
    generator = np.random.default_rng(seed)
    common = generator.integers(6, VOCABULARY, prefix).tolist()
    ids = [
        [*common, 6 + k, *generator.integers(6, VOCABULARY, own - 1).tolist()]
        for k, own in enumerate(lengths)
    ]
    labels = [k % CLASSES for k in range(len(ids))]
    columns = {"input_ids": ids, "label": labels, "truncated": [False] * len(ids)}
    return TokenizedSplit(datasets.Dataset.from_dict(columns, features=FEATURES))


def outcome(model: Model, split: TokenizedSplit, *, packed: bool) -> tuple[Tensor, Tensor]:
    """Logits in the split's order, and the bank's gradient of a loss over all examples."""
    rows, ones = np.arange(len(split)), np.ones(len(split))
    if packed:
        batch: Any = make_pack(split, rows, ones, share_prefix=model.spec.causal)
    else:
        batch = make_batch(split, rows, ones)
    model.bank.zero_grad()
    logits = model.adapted.logits(batch)
    F.cross_entropy(logits, batch.labels, reduction="sum").backward()
    model.bank.collect_grad()
    return logits.detach()[torch.argsort(batch.rows)], model.bank.grad.clone()


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_packs_are_padded_batches(folder: Path, split: TokenizedSplit, **how: Any) -> None:
    padded, packed = (adapted_model(folder, packed=packed, **how) for packed in (False, True))
    expected, found = (outcome(model, split, packed=model is packed) for model in (padded, packed))
    assert expected[1].norm() > 0.1
    assert distance(found[0], expected[0]) < 1e-5
    assert distance(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("prefix", [0, 13])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoders(folders, family: str, prefix: int, lengths: str):
    split = examples(prefix, LENGTHS[lengths])
    assert_packs_are_padded_batches(folders[family], split)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_with_activation_checkpointing(folders, family: str):
    assert_packs_are_padded_batches(folders[family], examples(13, LENGTHS["mixed"]), checkpointing=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_mean_pooling_counts_the_prefix(folders, family: str):
    assert_packs_are_padded_batches(folders[family], examples(13, LENGTHS["mixed"]), pooling="mean")


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(folders, family: str, pooling: str):
    """Their common beginning is not shared: it sees what follows it."""
    split = examples(7, LENGTHS["mixed"])
    assert make_pack(split, np.arange(8), np.ones(8), share_prefix=False).prefix == 0
    assert not read_spec(folders[family]).causal
    assert_packs_are_padded_batches(folders[family], split, pooling=pooling)


@pytest.mark.parametrize("family", ["llama", "mistral", "opt"])
def test_bf16_is_off_no_further_than_padded_bf16(folders, family: str):
    split = examples(13, LENGTHS["mixed"])
    exact = outcome(adapted_model(folders[family], packed=False), split, packed=False)
    padded, packed = (
        outcome(adapted_model(folders[family], packed=packed, dtype=torch.bfloat16), split, packed=packed)
        for packed in (False, True)
    )
    for found, usual, expected in zip(packed, padded, exact, strict=True):
        assert distance(found, expected) < 2 * distance(usual, expected)


def test_an_example_sees_no_neighbour(folders):
    """Other tokens in one example change its own logits alone."""
    model = adapted_model(folders["llama"], packed=True)
    split, other = examples(13, LENGTHS["mixed"]), examples(13, LENGTHS["mixed"])
    changed = np.array(other.tokens(6))
    changed[20:] = (changed[20:] + 3) % VOCABULARY
    columns = {"input_ids": [other.tokens(k) if k != 6 else changed for k in range(8)], "label": other.labels}
    columns["truncated"] = [False] * 8
    other = TokenizedSplit(datasets.Dataset.from_dict(columns, features=FEATURES))
    before, after = (outcome(model, one, packed=True)[0] for one in (split, other))
    moved = (before - after).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [k == 6 for k in range(8)]


@pytest.mark.parametrize(("pooling", "rows"), [("last", 8), ("mean", 13 + sum(LENGTHS["mixed"]))])
def test_last_layer_runs_for_what_is_pooled(folders, pooling: str, rows: int):
    model, seen = adapted_model(folders["llama"], packed=True, pooling=pooling), []
    layer = model.adapted.backbone.module.get_submodule(model.spec.last_layer)
    layer.mlp.down_proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[-2]))
    outcome(model, examples(13, LENGTHS["mixed"]), packed=True)
    assert seen == [rows]


def test_maps_that_read_one_tensor_share_a_product(folders, monkeypatch):
    """q, k, v and gate, up: two products a layer where there were five; o and down have theirs."""
    from lingo_ds.adapters import sites

    counted, project = [], sites.project
    monkeypatch.setattr(
        sites, "project", lambda x, of, **how: counted.append(len(of)) or project(x, of, **how)
    )
    model = adapted_model(folders["llama"], packed=True, pooling="mean")
    outcome(model, examples(0, LENGTHS["equal"]), packed=True)
    assert sorted(counted) == sorted([3, 1, 2, 1] * 2)


def test_shared_product_serves_only_its_own_input():
    from lingo_ds.adapters.sites import SharedProjection

    layout = uniform_layout([Site("a", 5, 7), Site("b", 4, 7)], rank=2, head_shape=(2, 5))
    bank = AdapterBank(layout, scale=1.0, dtype=torch.float32, device=CPU, scalars=1, importance=False)
    bank.initialize(0)
    x, y = torch.randn(3, 7), torch.randn(3, 7)
    projection = SharedProjection(bank.leaves, dropout=0.0)
    first = projection(0, x, training=True)
    assert torch.allclose(first, x @ bank.leaves[0].q.T)
    assert torch.allclose(projection(1, y, training=True), y @ bank.leaves[1].q.T)
    assert torch.allclose(projection(1, x, training=True), x @ bank.leaves[1].q.T)
    assert torch.allclose(projection(1, x, training=True), x @ bank.leaves[1].q.T)  # asked twice


def test_families_without_pluggable_attention_are_padded(tmp_path, caplog):
    config = FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    folder = save(AutoModel.from_config(config), tmp_path)
    with caplog.at_level(logging.WARNING):
        spec = read_spec(folder)
    assert "falcon" not in PACKABLE and not spec.packable and spec.causal
    assert all(read_spec(save(random_model(config, tied=True), tmp_path / name)).packable
               for name, config in list(FAMILIES.items())[:2])  # fmt: skip


def test_old_names_of_layer_norms_are_found(folders, tmp_path):
    """BERT's first checkpoints say gamma and beta; both folders give the same model."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folders["bert"] / "model.safetensors")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights.items()
    }
    assert sum("gamma" in key for key in old) == 5
    save_file({key: value.clone() for key, value in old.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders["bert"] / "config.json").read_bytes())
    split = examples(0, LENGTHS["equal"])
    new_model, old_model = (adapted_model(folder, packed=True) for folder in (folders["bert"], tmp_path))
    assert torch.equal(outcome(new_model, split, packed=True)[0], outcome(old_model, split, packed=True)[0])


def test_pack_is_what_the_model_was_given(folders):
    """One forward computes the prefix once: what the pack says is what the first layer sees."""
    model, seen = adapted_model(folders["opt"], packed=True), []
    first = next(iter(model.spec.linear_maps))
    model.adapted.backbone.module.get_submodule(first).register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape[-2])
    )
    split = examples(13, LENGTHS["equal"])
    pack = make_pack(split, np.arange(5), np.ones(5), share_prefix=True)
    assert isinstance(pack, Pack) and pack.prefix == 13
    model.adapted.logits(pack)
    assert seen == [13 + 5 * 20] == [pack.computed_tokens]
