"""A run over a quantised backbone as a user meets it: train, evaluate, predict, resume, export."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import lingo_ds
from lingo_ds.data.batches import Batch, attention_mask
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import SavedAdapter
from lingo_ds.export.adapter_folder import read_card
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from tests.first_rows import first_rows
from tests.unit.commands.test_export import DNA, TEMPLATE, export, run_snippet, trained, write_tokenizer
from tests.unit.running import at_step, command, contents, ctrl_c, report_of

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs pip install lingo_ds[quant]")

from bitsandbytes.autograd._functions import MatMul8bitFp  # noqa: E402

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)
STEPS = 12
RECIPE = """\
name: small
backbone: {{path: {backbone}, quantization: nf4}}
data: {{path: {data}, cache_dir: {cache}}}
rank_sampling: {{target_rank: 4, interval: 3, t_init: 3, t_final: 3}}
train: {{global_batch_size: 8, max_steps: {steps}, eval_steps: 6}}
checkpoint: {{every: 6}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shared) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = {"train": 120, "dev": 40, "test": 40}
    data = first_rows(shared / "data/gue/prom_core_tata", folder / "data", rows)
    backbone = shared / "backbones/stories260k"
    text = RECIPE.format(backbone=backbone, data=data, cache=folder / "cache", steps=STEPS)
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    out = tmp_path_factory.mktemp("run") / "finished"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    assert "holds 260,032 of 260,032 backbone entries, in 0.3 MiB" in shown
    return out


def test_the_run_says_what_it_was_trained_over(finished):
    assert report_of(finished)["parameters"]["quantization"] == "nf4"
    assert read_card(finished / "adapter").backbone.quantization == "nf4"
    assert "quantised to nf4 (4 bits, double quantisation)" in (finished / "adapter/README.md").read_text()
    plan = json.loads((finished / "plan.json").read_text())
    assert plan["bytes_per_process"]["backbone"] < 4 * 260_032 / 2
    assert report_of(finished)["rank_sampling"]["kept_triplets"] == 140


def test_evaluate_gives_the_same_metrics_and_warns_over_another_backbone(finished, recipe, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    expected = report_of(finished)["metrics"]["test"]
    status, shown = command("evaluate", recipe, out)
    assert status == 0 and "trained with nf4" not in shown
    assert json.loads((out / "evaluation.json").read_text())["metrics"]["test"] == expected
    status, shown = command("evaluate", recipe, out, "backbone.quantization=none")
    said = " ".join(shown.split())
    assert status == 0 and "backbone.quantization: none, but" in said and "trained with nf4" in said
    assert json.loads((out / "evaluation.json").read_text())["metrics"]["test"] != expected


def test_predict_uses_the_quantisation_of_training_unless_told_otherwise(finished, recipe):
    table = pq.read_table(finished / "predictions/test.parquet").to_pydict()
    lines = (recipe.parent / "data/test.csv").read_text().splitlines()[1:]
    dna = [line.split(",")[0] for line in lines]
    expected = torch.tensor(table["probability_1"])
    ours = torch.tensor(lingo_ds.load(finished / "adapter").predict(dna).probabilities)[:, 1]
    torch.testing.assert_close(ours, expected.to(ours.dtype), rtol=1e-4, atol=1e-5)
    other = lingo_ds.load(finished / "adapter", "backbone.quantization=none").predict(dna).probabilities
    assert (torch.tensor(other)[:, 1] - ours).abs().max() > 1e-3


def test_a_stopped_run_goes_on_to_the_same_adapter_and_over_the_same_backbone_alone(
    finished, recipe, tmp_path
):
    with at_step(8, ctrl_c):
        assert command("train", recipe, tmp_path / "stopped")[0] == 0
    assert report_of(tmp_path / "stopped")["outcome"] == "interrupted"
    status, shown = command("train", recipe, tmp_path / "stopped", "backbone.quantization=int8")
    assert status == 2 and "backbone.quantization: 'int8': " in shown and "was written with 'nf4'" in shown
    assert command("train", recipe, tmp_path / "stopped")[0] == 0
    ours, theirs = (contents(out / "adapter") for out in (tmp_path / "stopped", finished))
    assert ours["adapter_model.safetensors"] == theirs["adapter_model.safetensors"]


@pytest.mark.parametrize("setting", ["zero.stage=3", "zero.shard_group=2"])
def test_sharding_is_refused_before_anything_is_read(recipe, tmp_path, setting):
    status, shown = command("train", recipe, tmp_path / "out", setting, "data.path=nowhere")
    assert status == 2
    assert shown.count("error:") == 1 and "backbone.quantization: 'nf4': is for whole copies" in shown


def test_the_merged_model_is_made_of_the_files_own_weights(finished, tmp_path):
    """Bit by bit what the same adapter gives that was trained over them."""
    plain = Path(shutil.copytree(finished / "adapter", tmp_path / "plain"))
    card = read_card(plain)
    unquantised = card.backbone.model_copy(update={"quantization": "none"})
    (plain / "task.json").write_text(card.model_copy(update={"backbone": unquantised}).model_dump_json())
    ours, theirs = (
        export(folder, "merged", tmp_path / name)
        for folder, name in ((finished / "adapter", "ours"), (plain, "theirs"))
    )
    weights = load_file(ours / "model.safetensors")
    assert contents(ours)["model.safetensors"] == contents(theirs)["model.safetensors"]
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert "added to the files' own, unquantised weights" in (ours / "README.md").read_text()
    assert "quantised" not in (theirs / "README.md").read_text()


# Stock PEFT over transformers' own quantised model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """Of sizes for which bitsandbytes' product is right on every CPU: multiples of 64."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder, pad=True)
    return folder


@torch.no_grad()
def our_logits(folder: Path, adapter: SavedAdapter, quantization: str) -> torch.Tensor:
    spec = read_spec(folder)
    frozen = load_backbone(spec, BackboneOptions(quantization=quantization), dtype=torch.float32, env=ALONE)
    bank = AdapterBank(
        adapter.layout, scale=adapter.scale, dtype=torch.float32, device=CPU, scalars=0, importance=False
    )
    model = AdaptedModel(frozen, bank, pooling="last", dropout=0.0)
    model.replace(adapter.layout, adapter.values)
    frozen.train(False)
    tokenizer = read_tokenizer(folder)
    texts = [TEMPLATE.replace("{domain}", "toys").replace("{sequence}", dna) for dna in DNA]
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = attention_mask(lengths, ids.shape[1])
    return Batch(ids, mask, lengths, torch.zeros(2).long(), torch.arange(2), torch.ones(2)).logits(model)


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_code_in_the_readme_gives_our_logits(backbone, tmp_path, monkeypatch, quantization, kind):
    """But for what bitsandbytes' modules round in evaluation: activations in int8, all to bf16 in nf4."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    monkeypatch.setattr(
        bitsandbytes, "matmul", lambda x, w, bias, state: MatMul8bitFp.apply(x, w, None, bias, state)
    )
    folder, adapter = trained(tmp_path / "adapter", read_spec(backbone), kind=kind)
    card = read_card(folder)
    over = card.backbone.model_copy(update={"quantization": quantization})
    (folder / "task.json").write_text(card.model_copy(update={"backbone": over}).model_dump_json())
    out = export(folder, "lora" if kind == "lora" else "adalora", tmp_path / "out")
    ours, plain = (our_logits(backbone, adapter, kind) for kind in (quantization, "none"))
    found = run_snippet(out)["logits"].float()
    assert (found - ours).norm() < 1e-4 * ours.norm()
    assert (found - plain).norm() > 1e-3 * plain.norm()
