"""Adapters with learned nucleotides in other software: through the code in their own model card."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lingo_ds.commands.cli import main
from lingo_ds.data.batches import Batch, attention_mask
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.tokenization import ExampleText, NucleotideTokens
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import SavedAdapter
from lingo_ds.export.adapter_folder import load_adapter, save_adapter
from lingo_ds.export.model_card import task_notes
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.utils.errors import UserError
from tests.unit.commands.test_export import (
    DECODERS,
    DNA,
    SETTINGS,
    TINY,
    backbone,  # noqa: F401
    export,
    quiet_libraries,
    random_adapter,
    run_snippet,
    write_backbone,
    write_plain_tokenizer,
)

ENCODERS = [name for name in TINY if name not in DECODERS]


def with_nucleotides(spec: BackboneSpec, **kinds: str) -> SavedAdapter:
    """A random adapter whose tokens are random too."""
    adapter = random_adapter(spec, **kinds)
    layout = replace(adapter.layout, token_shape=(5, spec.embedding_shape[1]))
    tokens = torch.randn(layout.token_size, generator=torch.Generator().manual_seed(2)) * 0.3
    card = adapter.card.model_copy(update={"task": replace(adapter.card.task, tokens="nucleotides")})
    return replace(adapter, layout=layout, values=torch.cat([adapter.values, tokens]), card=card)


def trained(folder: Path, spec: BackboneSpec, **kinds: str) -> tuple[Path, SavedAdapter]:
    """The adapter folder that a run would leave."""
    adapter = with_nucleotides(spec, **kinds)
    settings = SETTINGS if adapter.layout.has_lam else {}
    notes = task_notes(adapter.card.task, spec, read_tokenizer(spec.folder))
    save_adapter(folder, adapter, spec=spec, backbone_path=str(spec.folder), settings=settings, notes=notes)
    return folder, adapter


@torch.no_grad()
def our_logits(folder: Path, adapter: SavedAdapter) -> Tensor:
    """Of the example's sequences, through a bank as in evaluation."""
    spec, device = read_spec(folder), torch.device("cpu")
    frozen = load_backbone(spec, BackboneOptions(), dtype=torch.float32, env=DistEnv(0, 0, 1, 1, device))
    bank = AdapterBank(
        adapter.layout, scale=adapter.scale, dtype=torch.float32, device=device, scalars=5, importance=False
    )
    bank.master.copy_(adapter.values)
    bank.refresh()
    model = AdaptedModel(frozen, bank, pooling=adapter.card.pooling, dropout=0.0)
    model.backbone.train(False)
    task = adapter.card.task
    tokenize = NucleotideTokens(AutoTokenizer.from_pretrained(folder), spec.embedding_shape[0])
    prompt = make_prompt(task.template, domain=task.domain)
    rows = [tokens.ids for tokens in tokenize([ExampleText(one) for one in DNA], prompt, 80)]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    mask = attention_mask(lengths, ids.shape[1])
    return Batch(ids, mask, lengths, torch.zeros(2).long(), torch.arange(2), torch.ones(2)).logits(model)


@pytest.mark.filterwarnings("error::UserWarning:peft")  # e.g. missing keys
@pytest.mark.parametrize("kind", ["svd", "lora", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_stock_peft_gives_our_logits(name: str, kind: str, backbone: Callable, tmp_path: Path):  # noqa: F811
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)), kind=kind)
    expected = our_logits(backbone(name), adapter)
    assert expected.std() > 0.01 and not torch.allclose(expected[0], expected[1], atol=1e-3)
    for to in (None, "lora", "adalora"):
        place = export(folder, to, tmp_path / to) if to else folder
        found = run_snippet(place)
        assert torch.allclose(found["logits"], expected, rtol=0, atol=2e-5), place  # sums in another order
        again = load_adapter(place, read_spec(backbone(name)))
        assert torch.equal(again.layout.tokens(again.values), adapter.layout.tokens(adapter.values))
    key = next(key for key in load_file(folder / "adapter_model.safetensors") if "trainable_tokens" in key)
    assert key.endswith(f"{read_spec(backbone(name)).embedding}.token_adapter.trainable_tokens_delta")


@pytest.mark.parametrize("kind", ["svd", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_merged_classifier_gives_our_logits(name: str, kind: str, backbone: Callable, tmp_path: Path):  # noqa: F811
    """The embedding has five rows more; tied or not makes no difference to a classifier."""
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)), kind=kind)
    out = export(folder, "merged", tmp_path / "out")
    with quiet_libraries() as said:
        found = run_snippet(out)
        model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not said and not any(info.values())
    assert torch.allclose(found["logits"], our_logits(backbone(name), adapter), rtol=0, atol=1e-5)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 128 + 5


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("name", ["bert", "esm", "qwen2"])
def test_merged_base_model_gives_our_logits(name: str, pooling: str, backbone: Callable, tmp_path: Path):  # noqa: F811
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone(name)), pooling=pooling)
    out = export(folder, "merged", tmp_path / "out")
    assert torch.allclose(run_snippet(out)["logits"], our_logits(backbone(name), adapter), rtol=0, atol=1e-5)


def test_the_card_says_how_dna_is_read(backbone: Callable, tmp_path: Path):  # noqa: F811
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone("llama")))
    assert json.loads((folder / "task.json").read_text())["task"]["tokens"] == "nucleotides"
    said = (folder / "README.md").read_text()
    assert "one token per base" in said
    assert f"{5 * 16} in the embeddings of A, C, G, T and N" in said
    assert f"{adapter.layout.size:,} learned parameters" in said
    exported = export(folder, "lora", tmp_path / "lora")
    assert "one token per base" in (exported / "README.md").read_text()


def drop_rows(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "trainable" not in k}, folder / "adapter_model.safetensors"
    )


def fewer_rows(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k: v[:4] if "trainable" in k else v for k, v in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def other_ids(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["trainable_token_indices"]["model.embed_tokens"][0] = 3
    (folder / "adapter_config.json").write_text(json.dumps(config))


def say_text(folder: Path) -> None:
    card = json.loads((folder / "task.json").read_text())
    card["task"]["tokens"] = "text"
    (folder / "task.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_rows, "trainable_tokens_delta is missing"),
        (fewer_rows, "'tokens (4, 16)': is not (5, 16)"),
        (other_ids, "trainable_token_indices"),
        (say_text, "trainable_token_indices"),
    ],
)
def test_an_altered_folder_is_refused(change: Callable, words: str, backbone: Callable, tmp_path: Path):  # noqa: F811
    folder, _ = trained(tmp_path / "adapter", read_spec(backbone("llama")))
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy")
    load_adapter(folder, read_spec(backbone("llama")))
    with pytest.raises(UserError) as refused:
        load_adapter(tmp_path / "copy", read_spec(backbone("llama")))
    assert words in str(refused.value)


def test_merging_fits_the_command_line(backbone: Callable, tmp_path: Path):  # noqa: F811
    folder, _ = trained(tmp_path / "adapter", read_spec(backbone("gpt2")))
    arguments = ["export", "--adapter", str(folder), "--to", "merged", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--dtype", "bf16", "--shard-gb", "0.00001"]) == 0
    assert torch.isfinite(run_snippet(tmp_path / "out")["logits"]).all()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_learned_rows_are_rounded_once_and_reported(dtype: str, tmp_path: Path, capsys):
    """Over a backbone in bf16: with `--dtype fp32` the rows in fp32 are kept to the bit."""
    place = write_backbone(tmp_path / "backbone", "qwen2", dtype=torch.bfloat16)
    folder, adapter = trained(tmp_path / "adapter", read_spec(place), kind="none")
    out = export(folder, "merged", tmp_path / "out", "--dtype", dtype)
    rows = adapter.layout.tokens(adapter.values)
    stored = load_file(out / "model.safetensors")["model.embed_tokens.weight"][128:]
    rounded = rows.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    assert torch.equal(stored, rounded)
    report = json.loads((out / "merge.json").read_text())["rounding"]
    lost = rows - rounded
    for told in (report["maps"]["embed_tokens"], report["total"]):
        assert told["relative_rms"] == pytest.approx(float(lost.norm() / rows.norm()), rel=1e-4)
        assert told["largest"] == pytest.approx(float(lost.abs().max()))
    assert ("embed_tokens: " in capsys.readouterr().out) == (dtype == "bf16")


def test_a_tokenizer_without_special_tokens_gives_our_logits(tmp_path: Path):
    """With nothing to pad with, the card's code pads by itself."""
    place = write_backbone(tmp_path / "backbone", "mistral")
    write_plain_tokenizer(place)
    folder, adapter = trained(tmp_path / "adapter", read_spec(place))
    found = run_snippet(export(folder, "merged", tmp_path / "out"))
    assert torch.allclose(found["logits"], our_logits(place, adapter), rtol=0, atol=1e-5)
