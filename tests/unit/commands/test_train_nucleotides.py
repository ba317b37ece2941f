"""`data.tokens: nucleotides` as a user meets it: real promoters, going on, evaluating, predicting."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

import lingo_ds
from lingo_ds.export.adapter_folder import load_adapter
from lingo_ds.models.backbone.spec import read_spec
from tests.first_rows import first_rows
from tests.unit.running import at_step, command, contents, crash, report_of

STEPS, HIDDEN = 120, 64
ROWS = {"train": 1600, "dev": 200, "test": 200}
RECIPE = """\
name: bases
backbone: {{path: {backbone}}}
data:
  path: {data}
  cache_dir: {cache}
  tokens: nucleotides
  domain: human core promoters
  prefix: "Domain: {{domain}}\\nSequence: {{sequence}}\\nAnnotation:"
adapter: {{rank: 4}}
rank_sampling: {{target_rank: 2, interval: 10, t_init: 10, t_final: 40, audit_interval: 20}}
train: {{global_batch_size: 16, max_steps: {steps}, eval_steps: 40, learning_rate: 3.0e-3}}
zero: {{stage: 0}}
checkpoint: {{every: 50}}
"""


@pytest.fixture(scope="module")
def backbone(shared) -> Path:
    return shared / "backbones/stories260k"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shared, backbone) -> Path:
    """A recipe over rows of the human core promoters with TATA box."""
    folder = tmp_path_factory.mktemp("recipe")
    first_rows(shared / "data/gue/prom_core_tata", folder / "data", ROWS)
    text = RECIPE.format(backbone=backbone, data=folder / "data", cache=folder / "cache", steps=STEPS)
    (folder / "bases.yaml").write_text(text)
    return folder / "bases.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    out = tmp_path_factory.mktemp("run") / "finished"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    return out


def rows_of(adapter: Path) -> torch.Tensor:
    tensors = load_file(adapter / "adapter_model.safetensors")
    return next(value for name, value in tensors.items() if "trainable_tokens" in name)


def letters_rows(backbone: Path) -> torch.Tensor:
    vocabulary = json.loads((backbone / "tokenizer.json").read_text())["model"]["vocab"]
    with safe_open(backbone / "model.safetensors", "pt") as file:
        return file.get_tensor("model.embed_tokens.weight")[[vocabulary[letter] for letter in "ACGTN"]]


def test_it_learns_real_promoters(finished, backbone):
    report = report_of(finished)
    assert report["task"]["tokens"] == "nucleotides"
    assert report["metrics"]["test"]["auroc"] > 0.65 and report["metrics"]["dev"]["auroc"] > 0.65
    moved = rows_of(finished / "adapter") - letters_rows(backbone)
    assert (moved[:4].norm(dim=1) > 0.05).all(), "A, C, G and T learn"
    assert moved[4].norm() == 0, "these sequences have no N"


def test_they_count_among_what_is_trained(finished, backbone):
    report, spec = report_of(finished), read_spec(backbone)
    adapters = 4 * sum(d_out + d_in + 1 for d_out, d_in in spec.linear_maps.values())
    trainable = adapters + 2 * HIDDEN + 5 * HIDDEN
    assert report["parameters"]["trainable"] == trainable
    assert report["parameters"]["fraction"] == trainable / spec.parameters
    assert report["parameters"]["saved"] == load_adapter(finished / "adapter", spec).layout.size
    assert report["sync"] == {"audits": 6, "divergences": 0, "repairs": 0}
    assert f"head {2 * HIDDEN}, tokens {5 * HIDDEN})" in (finished / "train.log").read_text()


def test_one_token_per_base(finished, backbone):
    facts = json.loads((finished / "plan.json").read_text())["facts"]
    text = "Domain: human core promoters\nSequence: " + "A" * 70 + "\nAnnotation:"
    by_character = len(AutoTokenizer.from_pretrained(backbone)(text)["input_ids"])
    assert facts["longest"] == facts["mean_tokens"] == by_character
    assert facts["token_parameters"] == 5 * HIDDEN


def test_a_crashed_run_goes_on_to_the_same_bits(finished, recipe, tmp_path):
    with at_step(53, crash), pytest.raises(RuntimeError, match="on fire"):
        command("train", recipe, tmp_path / "out")
    status, shown = command("train", recipe, tmp_path / "out")
    assert status == 0 and "continuing with step 51" in " ".join(shown.split())
    assert contents(tmp_path / "out/adapter") == contents(finished / "adapter")
    last = f"checkpoints/step-{STEPS:08d}/bank.safetensors"
    assert (tmp_path / "out" / last).read_bytes() == (finished / last).read_bytes()


def test_text_does_not_go_on_from_it(finished, recipe, tmp_path):
    resume = f"checkpoint.resume={finished / f'checkpoints/step-{STEPS:08d}'}"
    status, shown = command("train", recipe, tmp_path / "out", "data.tokens=text", resume)
    assert status == 2 and "was written with 'nucleotides'" in " ".join(shown.split())


def test_evaluate_gives_the_reports_numbers_again(finished, recipe):
    before = report_of(finished)["metrics"]["test"]
    assert command("evaluate", recipe, finished)[0] == 0
    assert json.loads((finished / "evaluation.json").read_text())["metrics"]["test"] == before
    status, shown = command("evaluate", recipe, finished, "data.tokens=text")
    assert status == 2 and "data.tokens" in shown


def test_predict_says_of_the_test_file_what_the_run_said(finished, recipe):
    lines = (recipe.parent / "data/test.csv").read_text().splitlines()[1:]
    sequences = [line.partition(",")[0] for line in lines]
    table = pq.read_table(finished / "predictions/test.parquet").to_pydict()
    found = lingo_ds.load(finished / "adapter").predict(sequences)
    assert found.labels.tolist() == table["predicted"]
    assert found.probabilities[:, 1] == pytest.approx(np.array(table["probability_1"]), abs=1e-5)
    assert np.ptp(found.probabilities) > 0.1


def test_packed_and_padded_learn_the_same(recipe, tmp_path):
    quick = ("train.max_steps=6", "train.eval_steps=3", "rank_sampling.mode=off", "checkpoint.every=null")
    values = []
    for packing in ("auto", "off"):
        status, shown = command("train", recipe, tmp_path / packing, *quick, f"data.packing={packing}")
        assert status == 0, shown
        tensors = load_file(tmp_path / packing / "adapter/adapter_model.safetensors")
        values.append(torch.cat([tensors[name].flatten() for name in sorted(tensors)]))
    packed, padded = (report_of(tmp_path / packing)["throughput"] for packing in ("auto", "off"))
    assert packed["shared_prefix_fraction"] > 0.2 and padded["shared_prefix_fraction"] == 0
    assert (values[0] - values[1]).norm() < 1e-4 * values[1].norm()


def test_alone_with_the_head_they_learn_too(recipe, tmp_path, backbone):
    """`adapter.method: none`: the backward pass goes through a backbone without adapters."""
    quick = ("train.max_steps=10", "train.eval_steps=5", "rank_sampling.mode=off", "adapter.method=none")
    status, shown = command("train", recipe, tmp_path / "out", *quick)
    assert status == 0, shown
    assert report_of(tmp_path / "out")["parameters"]["trainable"] == 7 * HIDDEN
    moved = rows_of(tmp_path / "out/adapter") - letters_rows(backbone)
    assert (moved[:4].norm(dim=1) > 0).all()
