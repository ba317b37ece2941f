"""Two real language models of English, Gemma 3 270M and Qwen 2.5 0.5B: packs, training, and what is exported.

They are made by `../shared/backbones/real_llms.sh` from a package registry, once: into the folder that
REAL_MODELS names, or `models` in the folder of temporary files.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

import lingo_ds
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.families import FAMILIES
from lingo_ds.models.backbone.spec import read_spec
from tests.unit.commands.test_export import export, run_snippet
from tests.unit.models.random_models import ALONE
from tests.unit.models.test_token_embeddings import adapted, backward, batches, distance
from tests.unit.running import command, report_of

pytestmark = pytest.mark.slow

MODELS = {"gemma270": "gemma3_text", "qwen05": "qwen2"}
PROMPT = "Domain: human core promoters\nSequence: {}\nAnnotation:"
DNA = ["ACGTACGTACGTACGT", "TATAAA", "GGGCGGGGCTATAAAAGGCGC", "CAT"]


@pytest.fixture(scope="module", params=MODELS)
def folder(request, shared) -> Path:
    place = Path(os.environ.get("REAL_MODELS", Path(tempfile.gettempdir()) / "models")) / request.param
    if not (place / "model.safetensors").is_file():
        made = subprocess.run(
            [shared / "backbones/real_llms.sh", request.param, place, sys.executable], capture_output=True
        )
        if made.returncode:
            pytest.skip(f"{request.param} could not be made: {made.stderr[-200:]!r}")
    return place


@pytest.fixture(scope="module")
def examples(folder) -> list[list[int]]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)([PROMPT.format(dna) for dna in DNA])["input_ids"]


def test_hidden_states_are_transformers_own(folder, examples):
    """In padded batches and in packs with a shared prefix; nothing is compared but the last token's."""
    assert read_spec(folder).model_type == MODELS[folder.name]
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.stack([plain(input_ids=torch.tensor([ids]))[0][0, -1] for ids in examples])
    del plain
    batch, pack = batches(examples, share_prefix=True)
    for packed in (False, True):
        options = BackboneOptions(packed=packed)
        backbone = load_backbone(read_spec(folder), options, dtype=torch.float32, env=ALONE)
        with torch.no_grad():
            if packed:
                places = backbone.pack_places(pack.prefix, pack.lengths, pooled="last")
                states = backbone.packed_states(pack.input_ids, [places])
                found, rows = states[places.pooled], pack.rows
            else:
                mask = (torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]).long()
                states = backbone.hidden_states(batch.input_ids, mask)
                found, rows = states[torch.arange(len(examples)), batch.lengths - 1], batch.rows
        assert distance(found, expected[rows]) < 1e-5, packed


def test_a_pack_has_the_gradients_of_a_padded_batch(folder, examples):
    batch, pack = batches(examples, share_prefix=True)
    results = []
    for packed, one in ((True, pack), (False, batch)):
        model = adapted(folder, packed=packed, learned=False)
        model.bank.master.mul_(0.03)  # adapters about as large as trained ones
        model.bank.refresh()
        results.append(backward(model, one))
    (logits, grad), (theirs, expected) = results
    assert distance(logits, theirs) < 1e-4 and distance(grad, expected) < 1e-3


@pytest.fixture(scope="module")
def run(folder, shared, tmp_path_factory) -> Path:
    """Three steps on a few rows."""
    place = tmp_path_factory.mktemp("run")
    (place / "data").mkdir()
    for name, rows in (("train", 12), ("dev", 8), ("test", 8)):
        lines = (shared / f"data/gue/prom_core_tata/{name}.csv").read_text().splitlines()[: rows + 1]
        (place / f"data/{name}.csv").write_text("\n".join(lines) + "\n")
    recipe = place / "run.yaml"
    recipe.write_text(
        f"name: real\nbackbone: {{path: {folder}}}\n"
        f"data: {{path: {place / 'data'}, domain: human core promoters, cache_dir: {place / 'cache'}}}\n"
        'adapter: {rank: 2}\nrank_sampling: {mode: "off"}\n'
        "train: {max_steps: 3, global_batch_size: 4, learning_rate: 1.0e-4}\n"
    )
    status, shown = command("train", recipe, place / "out")
    assert status == 0, shown
    assert "bases in each" in shown or "one for each base" in shown
    return place / "out"


def test_three_steps_train(run):
    report = report_of(run)
    assert report["steps"] == 3 and np.isfinite(report["metrics"]["dev"]["brier"])


@pytest.mark.parametrize("to", ["merged", "lora"])
def test_what_is_exported_gives_the_same_probabilities(folder, run, tmp_path, to):
    """By the code of its model card, in fp32: the files' bf16 alone moves them by some hundredths."""
    expected = lingo_ds.load(run / "adapter").predict(DNA[:2]).probabilities
    assert FAMILIES[MODELS[folder.name]].classifier
    options = ("--dtype", "fp32") if to == "merged" else ()
    out = export(run / "adapter", to, tmp_path / to, *options)
    card = out / "README.md"
    card.write_text(card.read_text().replace("num_labels=2,", "num_labels=2, dtype=torch.float32,"))
    np.testing.assert_allclose(run_snippet(out)["probabilities"].numpy(), expected, atol=1e-4)
