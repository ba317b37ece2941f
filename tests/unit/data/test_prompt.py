"""Templates by name, and templates that read columns of the data."""

import json
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from lingo_ds.config.data_config import DataConfig
from lingo_ds.config.known_tasks import registry
from lingo_ds.config.run_config import PredictConfig, RunConfig
from lingo_ds.config.suite_config import load_runs
from lingo_ds.data.convert import convert_once
from lingo_ds.data.examples import Examples, read_examples
from lingo_ds.data.packing import common_prefix
from lingo_ds.data.prompt import Prompt, make_prompt
from lingo_ds.distributed import process_group
from lingo_ds.evaluation.load_predictor import make_predictor
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.training.setup import prepare
from lingo_ds.utils.errors import Mistake, UserError
from tests.unit.running import command

PUBLISHED = "Domain: {domain}\nSequence: {sequence}\nAnnotation:"
HEAD = "name: prompts\nbackbone: {path: builtin:tiny}\n"
CELLS = ["liver", "skin", "heart muscle"]


@pytest.fixture
def load(tmp_path):
    """A recipe whose data section is given, with overrides."""

    def load(data: str, *overrides: str) -> RunConfig:
        (tmp_path / "run.yaml").write_text(f"{HEAD}data: {data}\n")
        return load_runs(tmp_path / "run.yaml", list(overrides))

    return load


@pytest.fixture
def refused(load):
    def refused(*arguments: str) -> Mistake:
        with pytest.raises(UserError) as caught:
            load(*arguments)
        (mistake,) = caught.value.mistakes
        return mistake

    return refused


# -- by name


def test_published_is_lingos_template(load):
    assert load("{path: here, domain: yeast, prefix: published}").data.prefix == PUBLISHED


def test_none_is_the_sequence_alone(load):
    config = load("{path: here, prefix: published, domain: yeast}", "data.prefix=none")
    assert config.data.prefix is None
    assert make_prompt(config.data.prefix, domain="yeast").render("ACGT") == "ACGT"


@pytest.mark.parametrize("name", list(registry().tasks))
def test_rich_says_organism_assay_and_what_the_label_means(load, name):
    data = load(f"{{task: {name}, root: gue, prefix: rich}}").data
    task = registry().tasks[name]
    text = make_prompt(data.prefix, domain=data.domain).render("ACGT")
    assert text == (
        f"Organism: {task.organism}\nAssay: {task.assay}\nQuestion: {task.question}\n"
        f"Domain: {task.domain}\nSequence: ACGT\nAnnotation:"
    )


def test_a_template_may_name_texts_of_the_task(load):
    data = "{task: tf_0, root: gue, prefix: '{organism}: {sequence} {domain}'}"
    assert load(data).data.prefix == "Homo sapiens (human): {sequence} {domain}"


def test_rich_needs_a_task(refused):
    mistake = refused("{path: here, prefix: rich, domain: yeast}")
    assert mistake.where == "data.prefix (run.yaml:3)"
    assert mistake.rule == "needs a known task for {organism}, {assay}, {question}"


def test_published_without_a_domain_says_so(refused):
    mistake = refused("{path: here, prefix: published}")
    assert mistake.where.startswith("data.domain") and mistake.fix == "set it"


def test_a_name_that_is_no_template_is_refused(refused):
    mistake = refused("{path: here, prefix: publishd}")
    assert mistake.value == "publishd" and mistake.fix.endswith("or published")


# -- columns


@pytest.mark.parametrize(
    "template, columns, text",
    [
        ("{sequence}", (), "ACGT"),
        ("{cell}: {sequence}", ("cell",), "liver: ACGT"),
        ("{cell}{cell} {sequence} {my mark}?", ("cell", "my mark"), "liverliver ACGT {cell}?"),
        ("{domain} {sequence} {cell}", ("cell",), "yeast ACGT liver"),
    ],
)
def test_columns_take_their_places_and_are_not_read_again(template, columns, text):
    prompt = make_prompt(template, domain="yeast")
    assert prompt.columns == columns
    assert prompt.render("ACGT", fields={"cell": "liver", "my mark": "{cell}"}) == text


def test_without_cells_a_prompt_shows_the_columns():
    assert make_prompt("{cell}: {sequence}", domain=None).render("{sequence}") == "{cell}: {sequence}"
    assert Prompt("a", "b").render("ACGT", fields={"a": "x"}) == "aACGTb"


def write_rows(folder: Path, header: str = "cell,sequence,label") -> Path:
    """60 random sequences of three kinds of cell, classes 0 and 1, three times."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        rows = (
            f"{CELLS[k % 3]},{''.join(draw.choice(list('ACGT'), 30))},{int(draw.integers(2))}"
            for k in range(60)
        )
        (folder / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def converted(folder: Path, prefix: str | None) -> Examples:
    config = DataConfig(path=str(folder), prefix=prefix)
    return read_examples(convert_once(config, folder, kind="auto", cache=folder / "cache"))


def test_a_file_gives_the_cells_that_are_asked_for(tmp_path):
    folder = write_rows(tmp_path / "data")
    (batch,) = converted(folder, "{cell}: {sequence}").batches("train", most=60)
    assert batch.column("fields").to_pylist() == [[CELLS[k % 3]] for k in range(60)]
    (batch,) = converted(folder, None).batches("train", most=60)
    assert batch.column("fields").to_pylist() == [[]] * 60


def test_a_column_that_is_not_there_is_told(tmp_path):
    folder = write_rows(tmp_path / "data")
    with pytest.raises(UserError) as caught:
        converted(folder, "{tissue} {cell}: {sequence}")
    mistake = caught.value.mistakes[0]
    assert (mistake.where, mistake.rule) == (f"{folder / 'train.csv'}:1", "has no column 'tissue'")
    assert mistake.fix == "rename a column or set data.prefix"


def test_a_column_of_data_without_columns_is_told(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.fa").write_text(">a|0\nACGT\n>b|1\nACCT\n")
    with pytest.raises(UserError, match=r"'\{tissue\}': is no column of this data"):
        converted(tmp_path, "{tissue}: {sequence}")


@pytest.fixture
def config(tmp_path, shared) -> dict:
    return {
        "name": "cells",
        "backbone": {"path": str(shared / "backbones/stories260k")},
        "data": {
            "path": str(write_rows(tmp_path / "data")),
            "prefix": "Once upon a time in the {cell}: {sequence}.",
            "cache_dir": str(tmp_path / "cache"),
        },
        "train": {"max_steps": 4, "global_batch_size": 8},
        "rank_sampling": {"mode": "off"},
        "zero": {"stage": 0},
    }


def test_each_row_is_tokenised_with_its_own_cells_and_what_all_share_is_found(config, tmp_path, shared):
    setup = prepare(RunConfig(**config), process_group.detect())
    tokenizer = read_tokenizer(shared / "backbones/stories260k")
    train = setup.data.splits["train"]
    for row, line in enumerate((tmp_path / "data/train.csv").read_text().splitlines()[1:]):
        cell, sequence, _ = line.split(",")
        expected = tokenizer(f"Once upon a time in the {cell}: {sequence}.")["input_ids"]
        assert train.tokens(row).tolist() == expected
    ids = [tokenizer(f"Once upon a time in the {cell}: A")["input_ids"] for cell in CELLS]
    shared_by_all = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*ids, strict=False)))
    of_one_cell = common_prefix(train, np.arange(0, 60, 3))
    assert setup.plan.facts.shared_prefix == shared_by_all < of_one_cell


def test_a_long_example_is_cut_inside_the_sequence_with_its_own_cells(config, shared):
    tokenizer = read_tokenizer(shared / "backbones/stories260k")
    config["data"]["max_length"] = 40
    train = prepare(RunConfig(**config), process_group.detect()).data.splits["train"]
    assert train.truncated == 60
    texts = [tokenizer.decode(train.tokens(row)) for row in range(3)]
    assert all(cell in text and text.endswith(".") for cell, text in zip(CELLS, texts, strict=True))


def test_a_run_with_columns_trains_and_its_adapter_says_that_it_needs_them(config, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    status, shown = command("train", tmp_path / "run.yaml", tmp_path / "out")
    assert status == 0, shown
    with pytest.raises(UserError, match=r"reads columns of the data \(cell\)"):
        make_predictor(tmp_path / "out/adapter", PredictConfig(), process_group.detect())
    assert "in the {cell}:" in (tmp_path / "out/adapter/README.md").read_text()
