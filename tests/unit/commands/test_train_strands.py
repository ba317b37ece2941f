"""`data.reverse_complement`: both strands in training and in evaluation."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lingo_ds
from lingo_ds.data.batches import MicroBatches, PackBudget, TrainBatches, epoch_order, strands_drawn
from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.packing import common_prefix
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.task import Task
from lingo_ds.data.token_cache import tokenized_split
from lingo_ds.data.tokenization import TextTokens
from lingo_ds.data.tokenized import COUNTS, TokenizedSplit
from lingo_ds.evaluation.answers import answers, mean_of_strands
from lingo_ds.export.adapter_folder import read_card
from tests.unit.running import at_step, command, contents, ctrl_c, report_of

TEMPLATE = "DNA {sequence}:"


def letters() -> PreTrainedTokenizerFast:
    """A tokenizer of one token per letter, whose id is the letter's byte."""
    made = Tokenizer(models.WordLevel({chr(byte): byte for byte in range(128)}, unk_token=chr(0)))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=chr(0))


def text_of(tokens) -> str:
    return bytes(np.asarray(tokens).tolist()).decode()


def random_sequences(rows: int, *, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("ACGTN"), draw.integers(5, 40))) for _ in range(rows)]


def split_of(sequences: list[str], *, both: bool = True, max_length: int = 100) -> TokenizedSplit:
    labels = [row % 2 for row in range(len(sequences))]
    prompt = make_prompt(TEMPLATE, domain=None)
    return tokenized_split(
        sequences,
        labels,
        tokenize=TextTokens(letters()),
        prompt=prompt,
        max_length=max_length,
        both_strands=both,
    )


# -- tokenised data


def test_each_row_has_the_text_of_its_strand():
    sequences = random_sequences(1100)
    both = split_of(sequences).both_strands()
    strands = sequences + [reverse_complement(one) for one in sequences]
    assert len(both) == 2200
    assert [text_of(both.tokens(row)) for row in range(2200)] == [f"DNA {one}:" for one in strands]
    assert both.lengths.tolist() == [len(one) + 5 for one in strands]
    assert both.labels.tolist() == 2 * [row % 2 for row in range(1100)]
    assert text_of(both.heads(np.array([1100]), 6)[0]) == f"DNA {strands[1100]}"[:6]


def test_one_strand_alone_takes_no_room():
    one = split_of(["AACC", "A"], both=False)
    assert one.table.column_names == ["input_ids", "label", *COUNTS]
    assert one.widest is one and len(split_of(["AACC", "A"]).widest) == 4


def test_a_strand_that_is_too_long_is_cut_and_counted():
    split = split_of(["A" * 10 + "C" * 10, "ACGT"], max_length=17)
    texts = [text_of(split.both_strands().tokens(row)) for row in range(4)]
    assert texts == ["DNA AAAAAAAAAACC:", "DNA ACGT:", "DNA GGGGGGGGGGTT:", "DNA ACGT:"]
    assert split.truncated == split.both_strands().truncated == 1


# -- batches


def batches(split: TokenizedSplit, *, world: int = 1, rank: int = 0, packed: bool = False, **other):
    settings = {"seed": 5, "batch": 16, "either_strand": True} | other
    if packed:
        both = split.both_strands()
        forwards = PackBudget(120, common_prefix(both, np.arange(len(both))))
    else:
        forwards = MicroBatches(3, math.ceil(math.ceil(settings["batch"] / world) / 3))
    return TrainBatches(split, forwards=forwards, rank=rank, world=world, **settings)


def texts_at(loader: TrainBatches, step: int) -> list[tuple[int, str]]:
    """(row, text) of each example of a step that counts."""
    found = []
    for part in loader.at(step):
        begin = 0
        for k, (row, length) in enumerate(zip(part.rows.tolist(), part.lengths, strict=True)):
            if part.input_ids.ndim == 2:
                tokens = part.input_ids[k, :length]
            else:
                own = part.input_ids[part.prefix :][begin : begin + length]
                tokens, begin = torch.cat([part.input_ids[: part.prefix], own]), begin + length
            if part.weights[k]:
                found.append((row, text_of(tokens)))
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_reads_each_example_once_on_the_strand_drawn(packed, world):
    sequences = random_sequences(100)
    split = split_of(sequences)
    steps = -(-100 // 16)
    for epoch in (0, 1):
        drawn = strands_drawn(100, seed=5, epoch=epoch)
        found = [
            example
            for step in range(epoch * steps + 1, (epoch + 1) * steps + 1)
            for rank in range(world)
            for example in texts_at(batches(split, world=world, rank=rank, packed=packed), step)
        ]
        expected = [(reverse_complement(one) if drawn[row] else one) for row, one in enumerate(sequences)]
        assert dict((row % 100, text) for row, text in found) == {
            row: f"DNA {one}:" for row, one in enumerate(expected)
        }
        assert len(found) == 100
        assert all((row >= 100) == drawn[row % 100] for row, _ in found)


def test_about_half_are_read_on_the_other_strand_and_not_the_same_in_each_epoch():
    drawn = np.stack([strands_drawn(10_000, seed=1, epoch=epoch) for epoch in range(8)])
    assert np.abs(drawn.mean(1) - 0.5).max() < 0.03
    times = Counter(drawn.sum(0).tolist())
    expected = [10_000 * math.comb(8, k) / 2**8 for k in range(9)]
    assert [times[k] for k in range(9)] == pytest.approx(expected, rel=0.3, abs=30), "independent draws"
    assert strands_drawn(50, seed=1, epoch=0).tolist() != strands_drawn(50, seed=2, epoch=0).tolist()


def test_the_global_batch_is_the_same_at_any_number_of_processes():
    split = split_of(random_sequences(50))
    for step in (1, 4, 9):
        of_world = [
            sorted(
                one for rank in range(world) for one in texts_at(batches(split, world=world, rank=rank), step)
            )
            for world in (1, 2, 4)
        ]
        assert of_world[0] == of_world[1] == of_world[2]


def test_going_on_at_a_step_needs_no_steps_before():
    split = split_of(random_sequences(50))
    walked = batches(split)
    for step in range(1, 12):
        assert walked.rows_at(step).tolist() == batches(split).rows_at(step).tolist()


def test_without_it_the_order_is_as_before():
    split = split_of(random_sequences(50))
    order = epoch_order(50, seed=5, epoch=0)
    assert batches(split, either_strand=False).rows_at(1).tolist() == order[:16].tolist()
    assert (batches(split).rows_at(1) % 50).tolist() == order[:16].tolist()


# -- means


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_the_mean_is_of_answers(kind):
    draw = np.random.default_rng(0)
    logits = (draw.normal(size=(40, 3)) * 9).astype(np.float32)
    logits[3] = [-80, 0, 80]
    task = Task("t", kind, 3, None, None, 9, mean=(1.0, 2.0, 3.0), scale=(2.0, 1.0, 0.5))
    one, other = answers(logits[:20], task), answers(logits[20:], task)
    found = mean_of_strands(logits, task)
    assert found.shape == (20, 3) and np.isfinite(found).all()
    assert answers(found, task) == pytest.approx((one + other) / 2, rel=1e-5, abs=1e-6)


# -- runs

STEPS = 14
RECIPE = """\
name: strands
backbone: {{path: builtin:tiny}}
data: {{path: {data}, cache_dir: {cache}, prefix: "DNA {{sequence}}:", reverse_complement: both}}
adapter: {{rank: 4}}
rank_sampling: {{target_rank: 2, interval: 2, t_init: 2, t_final: 4}}
train: {{global_batch_size: 8, max_steps: 14, eval_steps: 7, learning_rate: 1.0e-2}}
zero: {{stage: 0}}
checkpoint: {{every: 14}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "data").mkdir()
    for seed, (split, rows) in enumerate({"train": 70, "dev": 20, "test": 30}.items()):
        lines = [f"{one},{row % 2}" for row, one in enumerate(random_sequences(rows, seed=seed))]
        (folder / f"data/{split}.csv").write_text("\n".join(["sequence,label", *lines]) + "\n")
    (folder / "r.yaml").write_text(RECIPE.format(data=folder / "data", cache=folder / "cache"))
    return folder / "r.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    out = tmp_path_factory.mktemp("run") / "finished"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    return out


@pytest.fixture(scope="module")
def one_strand(tmp_path_factory, finished) -> Path:
    """The same adapter, reading one strand."""
    folder = Path(shutil.copytree(finished / "adapter", tmp_path_factory.mktemp("one") / "adapter"))
    card = json.loads((folder / "task.json").read_text())
    assert card.pop("average_strands") is True
    (folder / "task.json").write_text(json.dumps(card))
    return folder


def test_predictions_are_the_mean_of_two_explicit_ones(finished, one_strand):
    sequences = random_sequences(30, seed=2)
    plain = lingo_ds.load(one_strand)
    one = plain.predict(sequences).probabilities
    other = plain.predict([reverse_complement(s) for s in sequences]).probabilities
    assert np.abs(one - other).max() > 1e-3, "the oracle tells the strands apart"
    both = lingo_ds.load(finished / "adapter", "batch_tokens=128")
    found = both.predict(sequences).probabilities
    assert found == pytest.approx((one + other) / 2, abs=1e-6)
    swapped = both.predict([reverse_complement(s) for s in sequences]).probabilities
    assert swapped == pytest.approx(found, abs=1e-6), "both strands are told the same"
    assert lingo_ds.load(finished / "adapter", "packing=off").predict(
        sequences
    ).probabilities == pytest.approx(found, abs=1e-5)


def test_palindromes_are_predicted_as_by_one_strand(finished, one_strand):
    palindromes = [one + reverse_complement(one) for one in random_sequences(8, seed=9)]
    alone = lingo_ds.load(one_strand).predict(palindromes).probabilities
    assert lingo_ds.load(finished / "adapter").predict(palindromes).probabilities == pytest.approx(
        alone, abs=1e-6
    )


def test_test_was_evaluated_as_predict_does_it(finished, recipe):
    lines = (recipe.parent / "data/test.csv").read_text().splitlines()[1:]
    sequences = [line.partition(",")[0] for line in lines]
    table = pq.read_table(finished / "predictions/test.parquet").to_pydict()
    found = np.array([table["probability_0"], table["probability_1"]]).T
    labels, expected = lingo_ds.load(finished / "adapter").predict(sequences)
    assert found == pytest.approx(expected, abs=1e-5)
    right = [int(label) == int(line.partition(",")[2]) for label, line in zip(labels, lines, strict=True)]
    assert report_of(finished)["metrics"]["test"]["accuracy"] == pytest.approx(np.mean(right))
    assert (
        "mean of the probabilities of a sequence and of its reverse complement"
        in (finished / "adapter/README.md").read_text()
    )


def test_evaluating_again_gives_the_same(finished, recipe):
    before = report_of(finished)["metrics"]["test"]
    assert command("evaluate", recipe, finished)[0] == 0
    again = json.loads((finished / "evaluation.json").read_text())["metrics"]["test"]
    assert again == pytest.approx(before, abs=1e-6)


def test_a_resumed_run_ends_as_one_that_went_through(finished, recipe, tmp_path):
    with at_step(10, ctrl_c):
        assert command("train", recipe, tmp_path / "out")[0] == 0
    assert report_of(tmp_path / "out")["outcome"] == "interrupted"
    assert command("train", recipe, tmp_path / "out")[0] == 0
    name = f"checkpoints/step-{STEPS:08d}/bank.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes()
    assert contents(tmp_path / "out/adapter") == contents(finished / "adapter")


@pytest.mark.parametrize(("value", "changes", "card"), [("augment", True, False), ("average", False, True)])
def test_each_half_alone(finished, recipe, tmp_path, value, changes, card):
    """Averaging leaves the training alone; augmenting leaves the evaluation alone."""
    losses = {}
    for name in ("off", value):
        settings = (f"data.reverse_complement={name}", "rank_sampling.mode=off", "train.max_steps=3")
        assert command("train", recipe, tmp_path / name, *settings, "checkpoint.every=3")[0] == 0
        losses[name] = (tmp_path / name / "checkpoints/step-00000003/bank.safetensors").read_bytes()
    assert (losses["off"] != losses[value]) == changes
    assert read_card(tmp_path / value / "adapter").average_strands == card
    assert not read_card(tmp_path / "off/adapter").average_strands


def test_a_strand_specific_task_refuses_it(recipe, tmp_path):
    status, shown = command("train", recipe, tmp_path / "out", "data.strand_specific=true")
    assert status == 2
    assert "error: data.reverse_complement" in shown and "'both': gives the label of one strand to" in shown
    settings = ("data.strand_specific=true", "data.reverse_complement=off", "train.max_steps=1")
    assert command("train", recipe, tmp_path / "out", *settings, "rank_sampling.mode=off")[0] == 0
