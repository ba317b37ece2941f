"""Pairs of sequences: how they become text, lose their ends, train, and are not predicted by halves."""

import itertools
from pathlib import Path

import pytest
import torch
import yaml

from lingo_ds.commands.cli import main
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.dna import first_bases
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.training.setup import RunSetup, prepare
from tests.unit.running import command, report_of

ALONE = DistEnv(0, 0, 1, 1, torch.device("cpu"))
FIRST = ["".join(letters) * 3 for letters in itertools.product("ACGT", repeat=2)]
SECOND = ["T" * 2 + one[:8] for one in FIRST]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"{one},{other},{k % 2}\n" for k, (one, other) in enumerate(zip(FIRST, SECOND, strict=True))]
    for split in ("train", "dev", "test"):
        (folder / f"{split}.csv").write_text("sequence1,sequence2,label\n" + "".join(rows))
    return folder


def config(data: Path, **settings) -> dict:
    return {
        "name": "pairs",
        "backbone": {"path": "builtin:tiny"},
        "data": {
            "path": str(data),
            "cache_dir": str(data.parent / "cache"),
            "prefix": "One: {sequence}\nYes?",
            "pair_separator": "\nTwo: ",
            **settings,
        },
        "adapter": {"rank": 2},
        "rank_sampling": {"mode": "off"},
        "train": {"max_steps": 2, "global_batch_size": 8},
    }


def setup(data: Path, **settings) -> RunSetup:
    return prepare(RunConfig.model_validate(config(data, **settings)), ALONE)


def test_a_pair_is_one_text(data):
    found = setup(data)
    tokenizer = read_tokenizer(found.spec.folder)
    for row, (one, other) in enumerate(zip(FIRST, SECOND, strict=True)):
        expected = tokenizer(f"One: {one}\nTwo: {other}\nYes?")["input_ids"]
        assert found.data.splits["train"].tokens(row).tolist() == expected
    assert found.task.pair_separator == "\nTwo: "


def test_of_a_long_pair_both_lose_the_same_share(data):
    whole = setup(data)
    tokenizer = read_tokenizer(whole.spec.folder)  # a token per character
    cut = setup(data, max_length=whole.data.longest - 8)
    assert cut.data.splits["dev"].truncated == len(FIRST)
    length = len(FIRST[0]) + len(SECOND[0]) - 8
    one, other = first_bases(FIRST[3], SECOND[3], length)
    assert (len(FIRST[3]) - len(one), len(SECOND[3]) - len(other)) in ((2, 6), (3, 5), (4, 4))
    expected = tokenizer(f"One: {one}\nTwo: {other}\nYes?")["input_ids"]
    assert cut.data.splits["dev"].tokens(3).tolist() == expected


@pytest.mark.parametrize("bases", range(12))
def test_first_bases_are_as_many_as_asked_for(bases):
    one, other = first_bases("A" * 8, "C" * 4, bases)
    assert len(one) + len(other) == bases and abs(len(one) - 2 * len(other)) <= 2
    assert first_bases("A" * 12, None, bases) == ("A" * bases, None)


def test_the_same_sequences_in_other_pairs_are_no_duplicates(data):
    text = (data / "train.csv").read_text().splitlines()
    (data / "train.csv").write_text("\n".join([*text, f"{FIRST[0]},{SECOND[1]},0", text[1]]))
    assert setup(data).data.duplicates["train"] == 1


def test_pairs_train_and_are_evaluated_but_not_predicted_by_halves(data, tmp_path, capsys):
    recipe, out = tmp_path / "run.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(config(data)))
    assert command("train", recipe, out)[0] == 0
    assert report_of(out)["data"]["rows"]["test"] == len(FIRST)
    assert command("evaluate", recipe, out)[0] == 0
    status, shown = command("evaluate", recipe, out, "data.pair_separator=x")
    assert status == 2 and "data.pair_separator" in shown
    (tmp_path / "new.csv").write_text("sequence\nACGT\n")
    words = ["--adapter", out / "adapter", "--input", tmp_path / "new.csv", "--output", tmp_path / "out.csv"]
    assert main(["predict", *map(str, words)]) == 2
    assert "was trained on pairs of sequences" in capsys.readouterr().err
