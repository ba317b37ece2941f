"""What `lingo-ds export` writes is loaded by stock peft and transformers, and gives our logits."""

import contextlib
import json
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
)

from lingo_ds.commands.cli import main
from lingo_ds.data.batches import Batch, attention_mask
from lingo_ds.data.task import make_task
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import BackboneCard, Card, DataCard, SavedAdapter
from lingo_ds.export.adapter_folder import load_adapter, save_adapter
from lingo_ds.export.merge import save_merged
from lingo_ds.export.model_card import CardNotes
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.families import CLASSIFIERS
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.weight_files import weights_fingerprint
from lingo_ds.utils.errors import UserError
from tests.own_memory import own_memory

CLASSES, RANK, ALPHA = 3, 4, 6.0
TEMPLATE = "Domain: {domain}\nSequence: {sequence}\nAnnotation: `"
SETTINGS = {"target_r": 2, "tinit": 3, "tfinal": 4, "deltaT": 5, "total_step": 100, "lora_dropout": 0.1}
DNA = ("ACGTACGTACGTACGT", "TATAAA")
"""What the model card's example classifies."""

LLAMA = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 24}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 80}
KV = {"intermediate_size": 24, "num_key_value_heads": 1}
TINY = {
    "llama": ("llama", LLAMA),
    "llama tied": ("llama", {**LLAMA, "num_hidden_layers": 2, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**SMALL, **KV}),
    "qwen2": ("qwen2", {**SMALL, **KV}),
    "qwen3": ("qwen3", {**SMALL, **KV, "head_dim": 8}),
    "opt": ("opt", {**SMALL, "ffn_dim": 24, "max_position_embeddings": 80, "word_embed_proj_dim": 16}),
    "opt-350m": (
        "opt",
        {
            **SMALL,
            "ffn_dim": 24,
            "max_position_embeddings": 80,
            "word_embed_proj_dim": 8,
            "do_layer_norm_before": False,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 80}),
    "gpt_neox": ("gpt_neox", {**SMALL, "intermediate_size": 24, "max_position_embeddings": 80}),
    "phi": ("phi", {**SMALL, "intermediate_size": 24, "max_position_embeddings": 80}),
    "bert": ("bert", ENCODER),
    "esm": ("esm", {**ENCODER, "mask_token_id": 2, "position_embedding_type": "rotary"}),
}
OTHERS = {
    "falcon": ("falcon", {**SMALL, "max_position_embeddings": 80}),
    "phi3": ("phi3", {**SMALL, **KV, "max_position_embeddings": 80, "original_max_position_embeddings": 80}),
    "modernbert": ("modernbert", {**ENCODER, "cls_token_id": 1, "sep_token_id": 2}),
    "gemma": ("gemma", {**SMALL, **KV, "head_dim": 8, "max_position_embeddings": 80}),
}
"""Families outside the table, whose merged models are base models; Gemma's tokenizer pads on the left."""
DECODERS = [name for name, (family, _) in TINY.items() if family in CLASSIFIERS]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def write_gemma_tokenizer(folder: Path) -> None:
    """Characters, read by Gemma's own class, which pads on the left unless told otherwise."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *map(chr, range(10, 127))]
    tokenizer = GemmaTokenizer(vocab={token: number for number, token in enumerate(letters)}, merges=[])
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"


def write_tokenizer(folder: Path, *, pad: bool, side: str = "right") -> None:
    """Characters; a start token before each text; without `pad` nothing to pad with but </s>."""
    letters = SPECIAL + [chr(code) for code in range(10, 127)]
    vocabulary = {token: number for number, token in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | (
        {"pad_token": "<pad>"} if pad else {}
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **names).save_pretrained(folder)


def write_plain_tokenizer(folder: Path) -> None:
    """Characters, and no special token."""
    letters = {chr(code): code for code in range(10, 127)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="A"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def write_backbone(folder: Path, name: str, *, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as on the hub: the language model with its head, in the family's own names."""
    family, settings = (TINY | OTHERS)[name]
    config = AutoConfig.for_model(
        family, vocab_size=128, pad_token_id=3, bos_token_id=1, eos_token_id=2, **settings
    )
    make = AutoModelForMaskedLM if family in ("bert", "esm", "modernbert") else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    model.to(dtype).save_pretrained(folder)
    if name == "gemma":
        write_gemma_tokenizer(folder)
    else:
        write_tokenizer(folder, pad=name != "gpt2")
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in made:
            made[name] = write_backbone(tmp_path_factory.mktemp("backbone"), name)
        return made[name]

    return folder_of


def random_adapter(spec: BackboneSpec, *, pooling: str = "last", kind: str = "svd") -> SavedAdapter:
    """Ranks 4, 0, 3, 1, 2, 4, ... in mode svd, all 4 in LoRA; no sites for the head alone."""
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    sites = () if kind == "none" else tuple(sites)
    ranks = tuple((4, 0, 3, 1, 2)[k % 5] if kind == "svd" else RANK for k in range(len(sites)))
    layout = BankLayout(sites, ranks, (CLASSES, spec.output_size), has_lam=kind == "svd")
    values = torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) * 0.3
    card = Card(
        task=make_task("toy: a #1 *task*", classes=CLASSES, template=TEMPLATE, domain="toys", max_length=64),
        pooling=pooling,
        backbone=BackboneCard(path=str(spec.folder), fingerprint=weights_fingerprint(spec.folder)),
        step=70,
        at_budget=True,
        dev={"mcc": 0.51234, "auroc": None},
        data=DataCard(name="toys", fingerprint="ab", rows={"train": 1200, "dev": 30}),
    )
    return SavedAdapter(layout, values, ALPHA, RANK, card)


def trained(folder: Path, spec: BackboneSpec, **kinds: str) -> tuple[Path, SavedAdapter]:
    """The adapter folder that a run would leave."""
    adapter = random_adapter(spec, **kinds)
    settings = SETTINGS if adapter.layout.has_lam else {}
    save_adapter(folder, adapter, spec=spec, backbone_path=str(spec.folder), settings=settings)
    return folder, adapter


@torch.no_grad()
def our_logits(spec_folder: Path, adapter: SavedAdapter, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of the example's texts, through a bank as in evaluation, in fp64: the export alone is what rounds."""
    spec = read_spec(spec_folder)
    env = DistEnv(0, 0, 1, 1, torch.device("cpu"))
    backbone = load_backbone(spec, BackboneOptions(), dtype=dtype, env=env)
    bank = AdapterBank(
        adapter.layout,
        scale=adapter.alpha / adapter.rank,
        dtype=dtype,
        device=torch.device("cpu"),
        scalars=5,
        importance=False,
    )
    model = AdaptedModel(backbone, bank, pooling=adapter.card.pooling, dropout=0.0)
    model.replace(adapter.layout, adapter.values)
    model.backbone.train(False)
    texts = [TEMPLATE.replace("{domain}", "toys").replace("{sequence}", dna) for dna in DNA]
    rows = [AutoTokenizer.from_pretrained(spec_folder)(text)["input_ids"] for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    mask = attention_mask(lengths, ids.shape[1])
    return Batch(ids, mask, lengths, torch.zeros(2).long(), torch.arange(2), torch.ones(2)).logits(model)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[list[str]]:
    """Collects what transformers says at warning level: missing and unexpected weights, for one."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log = logging.getLogger("transformers")
    before, handler = log.level, Keep(logging.WARNING)
    log.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def run_snippet(folder: Path) -> dict[str, object]:
    """What the code in the folder's model card computes, run as it stands, in the folder."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        exec(code, names)
    return names


def export(adapter: Path, to: str, output: Path, *options: str) -> Path:
    assert main(["export", "--adapter", str(adapter), "--to", to, "--output", str(output), *options]) == 0
    return output


# -- PEFT's formats


@pytest.mark.filterwarnings("error::UserWarning:peft")  # e.g. missing keys
@pytest.mark.parametrize("kind", ["svd", "lora", "none"])
@pytest.mark.parametrize("to", ["lora", "adalora"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-350m"])
def test_peft_folder_gives_our_logits(name: str, to: str, kind: str, backbone, tmp_path: Path):
    """Through the code in its own model card; layers 1 and 11 have other ranks under similar names."""
    spec = read_spec(backbone(name))
    folder, adapter = trained(tmp_path / "adapter", spec, kind=kind)
    expected = our_logits(backbone(name), adapter)
    out = export(folder, to, tmp_path / "out", "--license", "mit")
    for place in (folder, out):
        found = run_snippet(place)["logits"]
        assert torch.allclose(found, expected, rtol=0, atol=1e-5), place
    assert expected.std() > 0.01 and not torch.allclose(expected[0], expected[1], atol=1e-3)
    again = load_adapter(out, read_spec(backbone(name)))
    assert torch.allclose(our_logits(backbone(name), again), expected, rtol=0, atol=1e-5)
    assert "license: mit" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "opt", "gpt_neox", "phi"])
def test_lora_folder_of_other_families_gives_our_logits(name: str, backbone, tmp_path: Path):
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)))
    found = run_snippet(export(folder, "lora", tmp_path / "out"))["logits"]
    assert torch.allclose(found, our_logits(backbone(name), adapter), rtol=0, atol=1e-5)


def test_every_rank_in_peft_is_the_sites_own(backbone, tmp_path: Path):
    """`layers.1.` must not match `layers.11.`; sites without triplets have no adapter."""
    spec = read_spec(backbone("llama"))
    folder, adapter = trained(tmp_path / "adapter", spec)
    model = run_snippet(export(folder, "lora", tmp_path / "out"))["model"]
    found = {
        name.removeprefix("base_model.model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert found == {site.name: (rank, ALPHA / RANK) for site, rank, _ in adapter.kept()}
    assert len({rank for rank, _ in found.values()}) == 4


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_snippet_pools_as_the_adapter_was_trained(pooling: str, backbone, tmp_path: Path):
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone("qwen2")), pooling=pooling)
    expected = our_logits(backbone("qwen2"), adapter)
    for to in ("lora", "merged"):
        found = run_snippet(export(folder, to, tmp_path / to))["logits"]
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    card = Card.model_validate_json((folder / "task.json").read_text())
    other = card.model_copy(update={"pooling": "last"})
    (folder / "task.json").write_text(other.model_dump_json())
    found = run_snippet(export(folder, "lora", tmp_path / "last"))["logits"]
    assert not torch.allclose(found, expected, rtol=0, atol=1e-2)


def test_way_to_lora_and_back_is_the_same_function(backbone, tmp_path: Path):
    spec = read_spec(backbone("llama"))
    folder, adapter = trained(tmp_path / "adapter", spec)
    lora = export(folder, "lora", tmp_path / "lora")
    back = load_adapter(export(lora, "adalora", tmp_path / "back"), spec)
    assert back.layout.ranks == tuple(rank for _, rank, _ in adapter.kept()) and back.layout.has_lam
    for ours, theirs in zip(adapter.kept(), back.kept(), strict=True):
        one, other = ((site.views.p.T * site.views.lam) @ site.views.q for site in (ours, theirs))
        assert torch.allclose(one, other, atol=1e-6)
    for part in load_adapter(lora, spec).kept():  # the factors of a triplet carry lam in equal shares
        ours = next(site for site in adapter.kept() if site.site == part.site)
        shares = [
            theirs.norm(dim=1) / mine.norm(dim=1)
            for theirs, mine in ((part.views.p, ours.views.p), (part.views.q, ours.views.q))
        ]
        assert torch.allclose(*shares, rtol=1e-4)


# -- merged


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("name", DECODERS)
def test_merged_classifier_gives_our_logits(name: str, kind: str, backbone, tmp_path: Path):
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)), kind=kind)
    out = export(folder, "merged", tmp_path / "out")
    with quiet_libraries() as said:
        found = run_snippet(out)
        model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not said and not any(info.values())
    assert type(model).__name__ == json.loads((out / "config.json").read_text())["architectures"][0]
    assert torch.allclose(found["logits"], our_logits(backbone(name), adapter), rtol=0, atol=1e-5)
    assert model.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert not [path.name for path in out.iterdir() if path.suffix in (".bin", ".pt", ".py", ".pkl")]


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("name", ["bert", "esm"])
def test_merged_encoder_gives_our_logits(name: str, pooling: str, backbone, tmp_path: Path):
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)), pooling=pooling)
    out = export(folder, "merged", tmp_path / "out")
    with quiet_libraries() as said:
        found = run_snippet(out)
        _, info = AutoModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not said and not any(info.values())
    assert torch.allclose(found["logits"], our_logits(backbone(name), adapter), rtol=0, atol=1e-5)
    assert "another head" in (folder / "README.md").read_text()
    assert "head is in head.safetensors" in (out / "README.md").read_text()


BASE_MODELS = [(name, pooling) for name in OTHERS for pooling in ("first", "mean", "last")]
BASE_MODELS += [(name, pooling) for name in DECODERS for pooling in ("first", "mean")]


@pytest.mark.parametrize(("name", "pooling"), BASE_MODELS)
def test_merged_base_model_gives_our_logits(name: str, pooling: str, backbone, tmp_path: Path):
    """Of every family, on texts of unequal length in one batch."""
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)), pooling=pooling)
    out = export(folder, "merged", tmp_path / "out")
    with quiet_libraries() as said:
        found = run_snippet(out)
    assert not [line for line in said if "not initialized" in line or "not used" in line]
    expected = our_logits(backbone(name), adapter)
    assert torch.allclose(found["logits"], expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01 and not found["tokens"].attention_mask.all()
    assert AutoTokenizer.from_pretrained(out).padding_side == "right"


def test_a_tokenizer_that_pads_on_the_left_pads_a_classifiers_texts_on_the_right(tmp_path: Path):
    folder = write_backbone(tmp_path / "backbone", "llama tied")
    write_tokenizer(folder, pad=True, side="left")
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    adapter, saved = trained(tmp_path / "adapter", read_spec(folder))
    out = export(adapter, "merged", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).padding_side == "right"
    assert torch.allclose(run_snippet(out)["logits"], our_logits(folder, saved), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_tokenizer_without_special_tokens_gives_our_logits(pooling: str, tmp_path: Path):
    """As a classifier and as a base model, in one batch."""
    folder = write_backbone(tmp_path / "backbone", "mistral")
    write_plain_tokenizer(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    adapter, saved = trained(tmp_path / "adapter", read_spec(folder), pooling=pooling)
    found = run_snippet(export(adapter, "merged", tmp_path / "out"))
    assert torch.allclose(found["logits"], our_logits(folder, saved), rtol=0, atol=1e-5)
    assert not found["tokens"].attention_mask.all()


def test_merged_base_of_a_decoder_says_where_the_head_is(backbone, tmp_path: Path):
    folder, _ = trained(tmp_path / "adapter", read_spec(backbone("gpt2")), pooling="mean")
    out = export(folder, "merged", tmp_path / "out")
    _, info = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert list(load_file(out / "head.safetensors")) == ["score.weight"]


def test_weights_without_the_family_prefix_are_found(backbone, tmp_path: Path):
    """GPT-2 on the hub: `h.0.attn...`, no `transformer.`, no head."""
    plain = AutoModelForCausalLM.from_pretrained(backbone("gpt2")).transformer
    plain.save_pretrained(tmp_path / "plain")
    write_tokenizer(tmp_path / "plain", pad=False)
    folder, adapter = trained(tmp_path / "adapter", read_spec(tmp_path / "plain"))
    out = export(folder, "merged", tmp_path / "out")
    assert torch.allclose(run_snippet(out)["logits"], our_logits(tmp_path / "plain", adapter), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_reported(dtype: torch.dtype, tmp_path: Path):
    """In the backbone's own dtype, per map and in all, as a recount over the files finds it."""
    backbone = write_backbone(tmp_path / "backbone", "qwen2", dtype=dtype)
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone))
    out = export(folder, "merged", tmp_path / "out")
    report = json.loads((out / "merge.json").read_text())["rounding"]
    before, after = (load_file(path / "model.safetensors") for path in (backbone, out))
    lost, delta = 0.0, 0.0
    for site, _, views in adapter.kept():
        change = ALPHA / RANK * (views.p.double().T * views.lam.double()) @ views.q.double()
        name = f"model.{site.name}.weight"
        assert after[name].dtype == dtype
        difference = before[name].double() + change - after[name].double()
        told = report["maps"][site.name]
        assert told["largest"] == pytest.approx(float(difference.abs().max()), abs=1e-6)
        assert told["relative_rms"] == pytest.approx(float(difference.norm() / change.norm()), rel=1e-2)
        half_a_step = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
        assert told["largest"] <= half_a_step * (before[name].double() + change).abs().max()
        lost, delta = lost + difference.square().sum(), delta + change.square().sum()
    assert report["total"]["relative_rms"] == pytest.approx(float((lost / delta).sqrt()), rel=1e-2)
    assert report["maps"].keys() == {site.name for site, _, _ in adapter.kept()}
    assert AutoModelForSequenceClassification.from_pretrained(out).dtype == dtype
    found = run_snippet(out)["logits"].float()
    assert torch.allclose(found, our_logits(backbone, adapter), rtol=0.1, atol=0.3)


def test_rounding_is_shown_and_dtype_can_be_chosen(backbone, tmp_path: Path, capsys):
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone("gpt2")))
    capsys.readouterr()
    whole, half = (export(folder, "merged", tmp_path / name, "--dtype", name) for name in ("fp32", "bf16"))
    shown = capsys.readouterr().out
    report = json.loads((half / "merge.json").read_text())["rounding"]
    assert "rounding to fp32 took 0.00%" in shown
    assert f"rounding to bf16 took {report['total']['relative_rms']:.2%}" in shown
    worst = max(report["maps"], key=lambda name: report["maps"][name]["relative_rms"])
    assert f"  {worst}: {report['maps'][worst]['relative_rms']:.2%}" in shown
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert torch.allclose(run_snippet(whole)["logits"], our_logits(backbone("gpt2"), adapter), atol=1e-5)


def test_fp16_that_cannot_hold_a_weight_is_refused(backbone, tmp_path: Path, capsys):
    spec = read_spec(backbone("qwen2"))
    adapter = random_adapter(spec)
    adapter.layout.site(adapter.values, 0).lam.fill_(1e7)
    save_adapter(tmp_path / "a", adapter, spec=spec, backbone_path=str(spec.folder), settings=SETTINGS)
    arguments = ["--adapter", str(tmp_path / "a"), "--to", "merged", "--output", str(tmp_path / "out")]
    error = refused(capsys, *arguments, "--dtype", "fp16")
    assert error.startswith("error: --dtype: 'fp16': ") and "q_proj" in error
    assert not (tmp_path / "out").exists()


def test_memory_is_a_shard_and_a_map(tmp_path: Path):
    """A model of 8 shards, every map adapted, written while memory that is no file's grows by two at most."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=128,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        pad_token_id=3,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "backbone")
    size = sum(parameter.nbytes for parameter in model.parameters())
    del model
    write_tokenizer(tmp_path / "backbone", pad=True)
    spec = read_spec(tmp_path / "backbone")
    adapter, shard = random_adapter(spec, kind="lora"), size // 8
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], own_memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    before = own_memory("RssAnon")
    watcher.start()
    try:
        merged = save_merged(
            tmp_path / "out",
            adapter,
            spec=spec,
            backbone_path="x",
            dtype=None,
            shard_bytes=shard,
            notes=CardNotes(),
        )
    finally:
        done.set()
        watcher.join()
    assert merged.shards >= 8
    libraries = 24 << 20  # what they allocate when first used
    assert peak[0] - before < 2 * shard + libraries < size / 2.5
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert file.stat().st_size <= shard + (1 << 16)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("pad", [True, False])
def test_tokenizer_reads_as_the_backbones(pad: bool, backbone, tmp_path: Path):
    """And has something to pad with that no text ends with."""
    name = "qwen2" if pad else "gpt2"
    folder, _ = trained(tmp_path / "adapter", read_spec(backbone(name)))
    out = export(folder, "merged", tmp_path / "out")
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (backbone(name), out))
    text = "Sequence: ACGTN\n<s>\u00e9"
    assert theirs(text)["input_ids"] == ours(text)["input_ids"]
    assert (theirs.pad_token, theirs.padding_side) == ("<pad>" if pad else "</s>", "right")
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == theirs.pad_token_id


# -- the model card


def test_card_says_what_the_adapter_is(backbone, tmp_path: Path):
    folder, adapter = trained(tmp_path / "run" / "adapter", read_spec(backbone("llama")))
    report = {
        "task": {"name": adapter.card.task.name},
        "selected_step": 70,
        "metrics": {"test": {"mcc": 0.25}},
    }
    (tmp_path / "run/report.json").write_text(json.dumps(report))
    text = (export(folder, "lora", tmp_path / "out") / "README.md").read_text()
    import yaml

    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == str(backbone("llama")) and front["datasets"] == ["toys"]
    assert (front["license"], front["library_name"]) == ("other", "peft")
    assert "| mcc | 0.5123 | 0.2500 |" in text and "| auroc | undefined | undefined |" in text
    assert "1,200 train, 30 dev" in text and "After step 70, at its rank budget" in text
    assert r"# toy: a \#1 \*task\*" in text
    assert "Domain: toys\nSequence: {sequence}\nAnnotation: `\n```" in text
    ranks = [rank for site, rank, _ in adapter.kept() if site.name.endswith("mlp.up_proj")]
    assert (
        f"| mlp.up_proj | {len(ranks)} | {min(ranks)} | {sum(ranks) / len(ranks):.2f} | {max(ranks)} |"
        in text
    )
    assert f"{adapter.layout.triplets:,} triplets" in text
    own = (folder / "README.md").read_text()
    assert f"{adapter.layout.size:,} learned" in own
    assert f"{adapter.layout.size - adapter.layout.triplets:,} learned" in text, "lam went into the factors"
    (tmp_path / "run/report.json").write_text(json.dumps(report | {"selected_step": 71}))
    text = (export(folder, "lora", tmp_path / "other") / "README.md").read_text()
    assert "test" not in text.split("## Metrics")[1].split("##")[0], "the report is of another adapter"


# -- the user's mistakes


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["export", *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and len(error.split(": ")) >= 5
    return error


@pytest.fixture
def run(backbone, tmp_path: Path) -> Path:
    return trained(tmp_path / "adapter", read_spec(backbone("qwen2")))[0]


def test_output_that_is_there_is_kept(run: Path, tmp_path: Path, capsys):
    arguments = ["--adapter", str(run), "--to", "lora", "--output", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("dear")
    assert "exists already" in refused(capsys, *arguments)
    assert "is not an earlier export" in refused(capsys, *arguments, "--overwrite")
    assert (tmp_path / "out/letter.txt").read_text() == "dear"
    (tmp_path / "out/letter.txt").rename(tmp_path / "letter.txt")
    (tmp_path / "out").rmdir()
    assert main(["export", *arguments]) == 0
    assert "exists already" in refused(capsys, *arguments)
    arguments[3] = "merged"
    assert main(["export", *arguments, "--overwrite"]) == 0
    assert (tmp_path / "out/merge.json").is_file() and not (tmp_path / "out/task.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "letter.txt", "out"]


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_adapter_and_backbone_are_not_written_over(to: str, run: Path, backbone, tmp_path: Path, capsys):
    for output in (run, run.parent, backbone("qwen2")):
        error = refused(capsys, "--adapter", str(run), "--to", to, "--output", str(output), "--overwrite")
        assert "is or holds what is read" in error
    assert (run / "task.json").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written(run: Path, tmp_path: Path, capsys):
    (tmp_path / "locked").mkdir(mode=0o555)
    error = refused(capsys, "--adapter", str(run), "--to", "lora", "--output", str(tmp_path / "locked/out"))
    assert "--output" in error


def test_full_disk_is_said_in_one_line(run: Path, tmp_path: Path, capsys):
    """The kernel's limit on a file's size stands for the disk's: the write fails half-way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        arguments = ("--adapter", str(run), "--to", "merged", "--output", str(tmp_path / "out"))
        error = refused(capsys, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        signal.signal(signal.SIGXFSZ, before)
    assert error.startswith("error: --output: ") and "cannot be written" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_output_below_a_file(run: Path, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("x")
    error = refused(capsys, "--adapter", str(run), "--to", "lora", "--output", str(tmp_path / "file/out"))
    assert error.startswith("error: --output: ")


def test_other_mistakes_are_one_line(run: Path, backbone, tmp_path: Path, capsys):
    basic = ["--adapter", str(run), "--to", "merged", "--output", str(tmp_path / "out")]
    assert "was trained on" in refused(capsys, *basic, "--backbone", str(backbone("opt")))
    assert "is not a folder" in refused(capsys, *basic, "--backbone", "/nowhere/at/all")
    assert "is no option" in refused(capsys, *basic, "train.max_steps=3")
    assert "stay fp32" in refused(capsys, *basic[:2], "--to", "lora", *basic[4:], "--dtype", "bf16")
    for size in ("0", "-1", "inf", "nan"):
        assert refused(capsys, *basic, f"--shard-gb={size}").startswith("error: --shard-gb: ")
    assert "task.json is missing" in refused(capsys, "--adapter", str(tmp_path / "none"), *basic[2:])
    assert not (tmp_path / "out").exists()


def test_backbone_that_moved_is_named(run: Path, backbone, tmp_path: Path, capsys):
    moved = tmp_path / "moved"
    moved.symlink_to(backbone("qwen2"))
    card = json.loads((run / "task.json").read_text())
    card["backbone"]["path"] = "/nowhere/at/all"
    (run / "task.json").write_text(json.dumps(card))
    basic = ["--adapter", str(run), "--to", "lora", "--output", str(tmp_path / "out")]
    assert "is not a folder" in refused(capsys, *basic)
    assert main(["export", *basic, "--backbone", str(moved)]) == 0
    found = [
        json.loads((tmp_path / "out" / name).read_text()) for name in ("task.json", "adapter_config.json")
    ]
    assert found[0]["backbone"]["path"] == found[1]["base_model_name_or_path"] == str(backbone("qwen2"))


# -- folders from strangers

ONE = "base_model.model.model.layers.0.self_attn.q_proj"


def rewrite(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reweigh(folder: Path, key: str, change: Callable[[Tensor], Tensor]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors | {key: change(tensors[key])}, path)


def claim_huge(folder: Path) -> None:
    """A header that says 2 TiB, in a file that is as long but has no blocks on disk."""
    huge = 1 << 41
    tensors = {f"{ONE}.lora_A": ([huge // 64, 16], 0), "base_model.model.score.weight": ([3, 16], huge)}
    sizes = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * shape[0] * shape[1]]}
        for name, (shape, at) in tensors.items()
    }
    header = json.dumps(sizes).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + huge + 192)


def replace_text(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def link_out(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


CONFIG, TASK, WEIGHTS = "adapter_config.json", "task.json", "adapter_model.safetensors"
HOSTILE = {
    "alpha is NaN": (lambda f: replace_text(f, CONFIG, '"lora_alpha": 6.0', '"lora_alpha": NaN'), "NaN"),
    "alpha is too large": (lambda f: replace_text(f, CONFIG, ": 6.0", ": 1e999"), "1e999"),
    "alpha is a long number": (lambda f: rewrite(f, CONFIG, lora_alpha=10**400), "float"),
    "alpha is negative": (lambda f: rewrite(f, CONFIG, lora_alpha=-6.0), "lora_alpha"),
    "alpha is 0": (lambda f: rewrite(f, CONFIG, lora_alpha=0), "lora_alpha"),
    "alpha is true": (lambda f: rewrite(f, CONFIG, lora_alpha=True), "lora_alpha"),
    "alpha is text": (lambda f: rewrite(f, CONFIG, lora_alpha="6"), "lora_alpha"),
    "rank is there twice": (lambda f: replace_text(f, CONFIG, "{", '{"init_r": 5,'), "twice"),
    "rank is a fraction": (lambda f: rewrite(f, CONFIG, init_r=4.5), "init_r"),
    "rank is huge": (lambda f: rewrite(f, CONFIG, init_r=10**9), "init_r"),
    "rank is below a site's": (lambda f: rewrite(f, CONFIG, init_r=3), "rank 4"),
    "another function": (lambda f: rewrite(f, CONFIG, use_dora=True), "use_dora"),
    "config is large": (lambda f: rewrite(f, CONFIG, note="x" * (17 << 20)), "holds more than"),
    "config is deep": (lambda f: (f / CONFIG).write_text("[" * 200_000), "deep"),
    "config is a link out": (lambda f: link_out(f, CONFIG), "link out"),
    "weights are a link out": (lambda f: link_out(f, WEIGHTS), "link out"),
    "card is a link out": (lambda f: link_out(f, TASK), "link out"),
    "card is a pipe": (lambda f: ((f / TASK).unlink(), os.mkfifo(f / TASK)), "not a regular file"),
    "card has a field more": (lambda f: rewrite(f, TASK, trust_remote_code=True), "trust_remote_code"),
    "card has no such pooling": (lambda f: rewrite(f, TASK, pooling="max"), "pooling"),
    "card has another format": (lambda f: rewrite(f, TASK, format=4), "format"),
    "card has other classes": (lambda f: replace_text(f, TASK, '"classes": 3', '"classes": 4'), r"\(4, 16\)"),
    "card has many classes": (lambda f: replace_text(f, TASK, '"classes": 3', '"classes": 99999'), "classes"),
    "card has no room for DNA": (lambda f: replace_text(f, TASK, "{sequence}", ""), "sequence"),
    "metric is infinite": (lambda f: replace_text(f, TASK, "0.51234", "Infinity"), "Infinity"),
    "header says 2 TiB": (claim_huge, "the most that"),
    "weights are not finite": (lambda f: reweigh(f, f"{ONE}.lora_A", lambda t: t * torch.inf), "not finite"),
    "head is not finite": (
        lambda f: reweigh(f, "base_model.model.score.weight", lambda t: t * torch.nan),
        "not finite",
    ),
    "weights are whole numbers": (lambda f: reweigh(f, f"{ONE}.lora_A", lambda t: t.int()), "I32"),
    "a site has rank 0": (lambda f: reweigh(f, f"{ONE}.lora_A", lambda t: t[:0].clone()), "lam|rank"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage, says", HOSTILE.values(), ids=HOSTILE)
def test_damaged_folder_is_one_clear_error(damage: Callable, says: str, run: Path, backbone):
    spec = read_spec(backbone("qwen2"))
    damage(run)
    with pytest.raises(UserError, match=says) as caught:
        load_adapter(run, spec)
    (mistake,) = caught.value.mistakes
    assert str(run) in mistake.where and "\n" not in str(mistake)


LORA_HOSTILE = {
    "rank of another map": {"rank_pattern": {"^model\\.layers\\.9\\.mlp\\.up_proj": 4}},
    "regex of its own": {"rank_pattern": {"(a+)+": 4}},
    "ranks as a list": {"rank_pattern": [4]},
    "another scale": {"alpha_pattern": {"^model\\.layers\\.0\\.mlp\\.up_proj": 7.0}},
    "a rank that is not the file's": {
        "rank_pattern": {"^model\\.layers\\.0\\.mlp\\.up_proj": 2},
        "alpha_pattern": {"^model\\.layers\\.0\\.mlp\\.up_proj": 3.0},
    },
    "a rank of 0": {"rank_pattern": {"^model\\.layers\\.0\\.mlp\\.up_proj": 0}},
    "another scaling rule": {"use_rslora": True},
}


@pytest.mark.parametrize("changes", LORA_HOSTILE.values(), ids=LORA_HOSTILE)
def test_patterns_that_say_something_else_are_refused(changes: dict, backbone, tmp_path: Path):
    spec = read_spec(backbone("qwen2"))
    folder, _ = trained(tmp_path / "adapter", spec, kind="lora")
    load_adapter(folder, spec)
    rewrite(folder, CONFIG, **changes)
    with pytest.raises(UserError, match=r"pattern|rank|rslora"):
        load_adapter(folder, spec)


def test_exported_settings_are_known_numbers_only(run: Path, tmp_path: Path):
    rewrite(run, CONFIG, auto_mapping={"parent_library": "evil"}, tinit="soon", beta1=0.5, revision="evil")
    out = json.loads((export(run, "adalora", tmp_path / "out") / CONFIG).read_text())
    assert (out["beta1"], out["tinit"], out["revision"]) == (0.5, 0, None)
    assert "auto_mapping" not in out


def test_no_weight_file_holds_more_than_it_should(run: Path, backbone, tmp_path: Path):
    """The language model's own head is left out, and nothing is there twice."""
    out = export(run, "merged", tmp_path / "out")
    with safe_open(out / "model.safetensors", "pt") as file:
        names = set(file.keys())
    base = {f"model.{name}" for name in read_spec(backbone("qwen2")).skeleton.state_dict()}
    assert names == base | {"score.weight"}


def test_every_family_is_a_classifier_or_not():
    assert {family for family, _ in TINY.values()} - {"bert", "esm"} < CLASSIFIERS  # others: test_families
