"""Labelled tables as people reported them of programs like this one, from ../shared/field."""

from pathlib import Path

import pytest

from lingo_ds.commands.cli import main
from tests.unit.reading import read, refused
from tests.unit.running import command


@pytest.fixture(scope="session")
def field(shared: Path) -> Path:
    return shared / "field"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "name, classes",
    [
        ("good", None),
        ("A02_label_float", None),
        ("A03_label_savetxt", None),
        ("A06_label_4mC", ("4mC", "5mC", "6mA")),
        ("A06b_label_mixed", ("5UTR", "promoter")),
        ("A07_semicolon", None),
        ("A08_sep_line", None),
        ("A10_r_rownames", None),
        ("A14_plain_named_gz", None),
        ("A14b_gz_named_csv", None),
        ("A26b_trailing_comma", None),
    ],
)
def test_tables_that_are_plain_are_read(field, cache, name, classes):
    found = read(field / name, cache)
    assert found.examples.class_names == classes
    assert all(set(sequence) <= set("ACGTN") for sequence in found.sequences["train"])
    if classes is None and name != "good":
        good = read(field / "good", cache).rows()
        assert found.rows() == good[: len(found.rows())] or len(found.rows()) > 0


@pytest.mark.parametrize(
    "name, says",
    [
        ("A01_kmers", "is a list of 3-mers"),
        ("A09_utf16", "save the file as plain UTF-8"),
        ("A12_nan_sequence", "sequence is missing"),
        ("A13_no_header", "the file has no header"),
        ("A33_label_nan", "label is missing"),
    ],
)
def test_tables_that_are_not_are_refused_in_one_line_a_file(field, cache, name, says):
    mistakes = refused(field / name, cache)
    assert all(says in str(mistake) for mistake in mistakes)
    assert len(mistakes) <= 3, "one line for each file"
    assert all(name in mistake.where for mistake in mistakes)


def recipe(folder: Path, data: Path, backbone: Path, **more: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(
        f"name: run\nbackbone: {{path: {backbone}}}\ndata: {{path: {data}, cache_dir: {folder / 'cache'}}}\n"
        "adapter: {rank: 2}\nrank_sampling: {target_rank: 1, interval: 2}\n"
        "train: {max_steps: 12, global_batch_size: 8, learning_rate: 1.0e-4}\n"
    )
    return path


def shown_by(folder: Path, run: Path, *settings: str) -> tuple[int, str]:
    status, shown = command("train", run, folder / "out", *settings)
    return status, " ".join(shown.split())


def test_rows_of_one_class_are_said(field, shared, tmp_path):
    backbone = shared / "backbones/stories260k"
    run = recipe(tmp_path, field / "A20_imbalanced", backbone)
    status, shown = shown_by(tmp_path, run, "train.learning_rate=3e-3")
    assert status == 0 and "rows of class in train / dev / test" in shown
    assert "every prediction is class 0: raise train.learning_rate where the loss has hardly moved" in shown
    status, shown = shown_by(tmp_path, recipe(tmp_path, field / "A20b_dev_one_class", backbone))
    assert status == 0 and "dev holds only class 0" in shown
    status, shown = shown_by(tmp_path, recipe(tmp_path, field / "A20b_dev_one_class", backbone))
    assert "dev holds only class 0" in shown, "a cached conversion says the same"


@pytest.mark.parametrize("backbone, data", [("bert_wordpiece", "tf0"), ("dnabert1_like", "good")])
def test_tokenizers_that_lose_the_dna_are_refused(field, tmp_path, backbone, data):
    run = recipe(tmp_path, field / data, field / "backbones" / backbone)
    status, shown = shown_by(tmp_path, run)
    assert status == 2 and "data.tokens: 'text': loses the DNA: 100.0% of the bases" in shown
    status, shown = shown_by(tmp_path, run, "data.tokens=nucleotides")
    assert status == 0, shown


def test_predict_refuses_what_its_tokenizer_loses(field, tmp_path, capsys):
    """An adapter of short sequences, which WordPiece reads, meets words of more than a hundred letters."""
    status, shown = shown_by(tmp_path, recipe(tmp_path, field / "good", field / "backbones/bert_wordpiece"))
    assert status == 0, shown
    long = tmp_path / "long.csv"
    long.write_text("sequence\n" + ("ACGT" * 30 + "\n") * 5)
    words = ["--adapter", str(tmp_path / "out/adapter"), "--input", str(long), "--output"]
    assert main(["predict", *words, str(tmp_path / "long.out.csv")]) == 2
    assert "loses the DNA: 100.0% of the bases became unknown tokens" in capsys.readouterr().err
    assert not (tmp_path / "long.out.csv").exists()


def test_config_can_be_run_from_anywhere(field, shared, tmp_path, monkeypatch):
    monkeypatch.chdir(field)
    run = recipe(tmp_path, Path("good"), shared / "backbones/stories260k")
    assert shown_by(tmp_path, run)[0] == 0
    monkeypatch.chdir("/")
    assert main(["evaluate", "--config", str(tmp_path / "out/config.yaml")]) == 0
