"""Packs against padded batches, through the whole adapted model, for every family that is packed."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BertConfig,
    EsmConfig,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import Batch, make_batch
from lingo_ds.data.packing import Pack, make_pack
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.families import PACKABLE
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.training.build_model import build_model
from lingo_ds.training.losses import cross_entropy_sum
from lingo_ds.training.setup import prepare
from tests.unit.data.test_packing import split_of

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)
VOCABULARY, CONTEXT, CLASSES, PREFIX = 97, 64, 3, 9
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
ENCODER = {**COMMON, "intermediate_size": 48, "pad_token_id": 1, "mask_token_id": 3}
FAMILIES = {
    "llama": LlamaConfig(**GATED),
    "mistral": MistralConfig(**GATED, sliding_window=6),
    "qwen2": Qwen2Config(**GATED),
    "qwen2_window": Qwen2Config(**GATED, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": Qwen3Config(**GATED, head_dim=16),
    "opt": OPTConfig(**COMMON, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
    "gpt_neox": GPTNeoXConfig(**COMMON, intermediate_size=48),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
    "phi": PhiConfig(**COMMON, intermediate_size=48, partial_rotary_factor=0.5),
    "bert": BertConfig(**{**ENCODER, "pad_token_id": 0}),
    "esm": EsmConfig(**ENCODER, position_embedding_type="rotary", token_dropout=True),
    "esm_absolute": EsmConfig(**ENCODER, position_embedding_type="absolute", emb_layer_norm_before=True),
}
ENCODERS = ("bert", "esm", "esm_absolute")
LENGTHS = {"alike": [7] * 5, "different": [18, 3, 20, 4, 30, 17, 18]}
"""Own tokens of each example; the different ones are two padded groups and one without padding."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """Folder of a family's random model, in which no two entries are alike."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            torch.manual_seed(0)
            model = AutoModel.from_config(FAMILIES[family])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            made[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[family])
        return made[family]

    return folder


def model_of(
    folder: Path,
    *,
    packed: bool,
    pooling: str,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AdaptedModel:
    """An adapted model with a bank in which every entry is at work; alike for every call on one folder."""
    spec = read_spec(folder)
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    layout = uniform_layout(sites, rank=4, head_shape=(CLASSES, spec.output_size))
    bank = AdapterBank(layout, scale=2.0, dtype=dtype, device=CPU, scalars=5, importance=False)
    bank.master.copy_(0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(3)))
    bank.refresh()
    options = BackboneOptions(activation_checkpointing=checkpointing, packed=packed)
    backbone = load_backbone(spec, options, dtype=dtype, env=ALONE)
    shared = spec.shared_inputs if packed else ()
    return AdaptedModel(backbone, bank, pooling=pooling, dropout=0.0, shared_inputs=shared)


def some_examples(lengths: Sequence[int], *, prefix: int = PREFIX) -> list[list[int]]:
    """Token ids of examples with a common prefix."""
    draw = np.random.default_rng(7)
    common = draw.integers(5, VOCABULARY, prefix).tolist()
    return [[*common, *draw.integers(5, VOCABULARY, length).tolist()] for length in lengths]


def padded_and_packed(examples: list[list[int]], *, share_prefix: bool) -> tuple[Batch, Pack]:
    """The same examples both ways."""
    split, rows, ones = split_of(examples), np.arange(len(examples)), np.ones(len(examples))
    pack = make_pack(split, rows, ones, share_prefix=share_prefix)
    assert pack.prefix == (PREFIX if share_prefix else 0)
    return make_batch(split, rows, ones), pack


class Result(NamedTuple):
    """Logits (n, classes), by row of the split, and the gradient of the whole bank."""

    logits: Tensor
    grad: Tensor


def result(model: AdaptedModel, batch: Batch | Pack) -> Result:
    """Forward and backward, as in training."""
    model.backbone.train()
    model.bank.zero_grad()
    logits = batch.logits(model)
    (cross_entropy_sum(logits, batch.labels, batch.weights) / len(batch.rows)).backward()
    model.bank.collect_grad()
    model.bank.finish_grad()
    return Result(logits.detach()[batch.rows.argsort()], model.bank.grad.clone())


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((found - expected).norm() / expected.norm())


def into_feed_forward(spec: BackboneSpec, layer: str) -> str:
    """A map that opens a layer's feed-forward part: all but the last of these can be."""
    return [name for name in spec.linear_maps if name.startswith(f"{layer}.")][-2]


CASES = [
    (family, pooling, share_prefix)
    for family in FAMILIES
    for pooling in (("last", "mean", "first") if family in ENCODERS else ("last", "mean"))
    for share_prefix in ((False,) if family in ENCODERS else (False, True))
]


# Equal to padded batches


def test_every_family_that_is_packed_is_tested():
    assert {config.model_type for config in FAMILIES.values()} < PACKABLE  # others: test_families


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("family", "pooling", "share_prefix"), CASES)
def test_pack_has_the_logits_and_gradients_of_a_padded_batch(
    folders, family, pooling, share_prefix, checkpointing
):
    padded = model_of(folders(family), packed=False, pooling=pooling)
    packed = model_of(folders(family), packed=True, pooling=pooling, checkpointing=checkpointing)
    for lengths in LENGTHS.values():
        batch, pack = padded_and_packed(some_examples(lengths), share_prefix=share_prefix)
        expected, found = result(padded, batch), result(packed, pack)
        assert expected.logits.std(0).min() > 0.005  # each example has its own
        assert (expected.grad != 0).float().mean() > 0.9
        assert distance(found.logits, expected.logits) < 1e-5
        assert distance(found.grad, expected.grad) < 1e-5


@pytest.mark.parametrize("share_prefix", [False, True])
def test_decoder_pooled_at_its_first_token_is_that_of_a_padded_batch(folders, share_prefix):
    padded = model_of(folders("llama"), packed=False, pooling="first")
    packed = model_of(folders("llama"), packed=True, pooling="first")
    batch, pack = padded_and_packed(some_examples(LENGTHS["different"]), share_prefix=share_prefix)
    assert distance(result(packed, pack).logits, result(padded, batch).logits) < 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "bert"])
def test_bf16_is_as_near_to_fp32_as_a_padded_batch_is(folders, family):
    batch, pack = padded_and_packed(some_examples(LENGTHS["different"]), share_prefix=family != "bert")
    exact = result(model_of(folders(family), packed=False, pooling="last"), batch)
    half = {
        packed: result(
            model_of(folders(family), packed=packed, pooling="last", dtype=torch.bfloat16),
            pack if packed else batch,
        )
        for packed in (False, True)
    }
    for part in Result._fields:
        found, noise = (
            distance(getattr(half[packed], part), getattr(exact, part)) for packed in (True, False)
        )
        assert 1e-4 < noise < 0.1
        assert found < 2 * noise


# What is computed


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_last_layer_runs_for_the_pooled_tokens_alone(folders, family, pooling, checkpointing):
    if pooling == "first" and family not in ENCODERS:
        return
    model = model_of(folders(family), packed=True, pooling=pooling, checkpointing=checkpointing)
    spec = read_spec(folders(family))
    last = into_feed_forward(spec, spec.last_layer)
    first = into_feed_forward(spec, spec.last_layer.replace("1", "0"))
    rows: dict[str, list[int]] = {first: [], last: []}
    for name, seen in rows.items():
        model.backbone.module.get_submodule(name).register_forward_hook(
            lambda _m, args, _out, seen=seen: seen.append(args[0].numel() // args[0].shape[-1])
        )
    _, pack = padded_and_packed(some_examples(LENGTHS["different"]), share_prefix=family not in ENCODERS)
    result(model, pack)
    passes = 2 if checkpointing else 1
    assert rows[first] == [pack.computed_tokens] * passes
    if pooling == "mean":
        assert rows[last] == [pack.computed_tokens] * passes
    else:
        assert rows[last] == [len(pack.rows)]  # once: so little is kept


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bert", "esm_absolute"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_examples_do_not_see_each_other(folders, family, pooling):
    model = model_of(folders(family), packed=True, pooling=pooling)
    examples, share_prefix = some_examples(LENGTHS["different"]), family not in ENCODERS
    _, pack = padded_and_packed(examples, share_prefix=share_prefix)
    before = result(model, pack).logits
    for row in (0, 1, 4):
        changed = [list(example) for example in examples]
        changed[row][PREFIX:] = [(token + 11) % 90 + 5 for token in changed[row][PREFIX:]]
        _, pack = padded_and_packed(changed, share_prefix=share_prefix)
        moved = (result(model, pack).logits - before).abs().amax(1)
        assert moved[row] > 1e-3
        assert moved[torch.arange(len(moved)) != row].max() < 1e-5


def test_maps_that_are_said_to_share_their_input_do(folders):
    """Else their adapters' first factors would be computed anew for each, or from the wrong tensor."""
    expected = {
        ("bert", "encoder.layer.1.attention.self."): [("query", "key", "value")],
        ("llama", "layers.1."): [
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ],
        ("gpt2", "h.1."): [],
    }
    for family in FAMILIES:
        model, seen = model_of(folders(family), packed=True, pooling="mean"), {}
        groups = read_spec(folders(family)).shared_inputs
        for name, module in model.backbone.module.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(
                    lambda _m, args, _o, name=name, seen=seen: seen.update({name: args[0]})
                )
        _, pack = padded_and_packed(some_examples([3, 4]), share_prefix=family not in ENCODERS)
        pack.logits(model)
        for group in groups:
            assert all(seen[name] is seen[group[0]] for name in group), (family, group)
    for (family, layer), names in expected.items():
        groups = read_spec(folders(family)).shared_inputs
        of_layer = [group for group in groups if group[0].startswith(layer)]
        assert of_layer == [tuple(layer + name for name in group) for group in names]


# Families that are not packed


def plain_config(folder: Path, cache: Path, **data: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "backbone": {"path": str(folder), "dtype": "fp32"},
            "data": {"path": "builtin:promoters", "cache_dir": cache, **data},
            "rank_sampling": {"mode": "off"},
            "train": {"max_steps": 100},
        }
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def prepared_with_log(config: RunConfig, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="lingo_ds"):
        logging.getLogger("lingo_ds").addHandler(caplog.handler)  # wherever an earlier test routed it
        found = prepare(config, ALONE)
        logging.getLogger("lingo_ds").removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    return found, [line for line in said if "takes no packs" in line]


def test_family_without_packs_is_padded_and_it_is_said(tmp_path, cache, caplog):
    write_backbone(tmp_path)
    tokens = read_spec(tmp_path).skeleton.config.vocab_size
    config = FalconConfig(vocab_size=tokens, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert read_spec(tmp_path).packable is False
    found, said = prepared_with_log(plain_config(tmp_path, cache), caplog)
    assert said == ["family falcon takes no packs: batches are padded"]
    assert not found.plan.packed
    assert "padded" in found.plan.equations()[0]
    model = build_model(found)
    batch = make_batch(found.data.splits["dev"], np.arange(3), np.ones(3))
    assert batch.logits(model).shape == (3, 2)


def test_packing_can_be_turned_off(tmp_path, cache, caplog):
    write_backbone(tmp_path)
    assert read_spec(tmp_path).packable is True
    found, said = prepared_with_log(plain_config(tmp_path, cache), caplog)
    assert found.plan.packed and not said
    found, said = prepared_with_log(plain_config(tmp_path, cache, packing="off"), caplog)
    assert not found.plan.packed and not said
