"""Tables of labelled sequences: what is read, what is tolerated, and what is refused and where."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.reading import read, refused

GOOD = "sequence,label\nACGTACGT,0\nTTTTACGT,1\nGGGGACGT,0\n"
ROWS = [("ACGTACGT", 0), ("TTTTACGT", 1), ("GGGGACGT", 0)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good folder in GUE's layout."""
    home = tmp_path / "data"
    home.mkdir()
    for split in ("train", "dev", "test"):
        (home / f"{split}.csv").write_text(GOOD)
    return home


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


# -- good files


def test_good_folder_is_read(folder, cache):
    (folder / "dev.csv").write_text("id,label,sequence,more\n7,1,acgt,x\n8,0,NNNN,\n")
    found = read(folder, cache)
    assert (found.rows("train"), found.rows("dev")) == (ROWS, [("ACGT", 1), ("NNNN", 0)])
    assert found.examples.rows == {"train": 3, "dev": 2, "test": 3}
    assert (found.examples.classes, found.examples.class_names, found.examples.bases) == (2, None, 8)


def test_promoters_of_gue_are_read_as_they_are_known(shared, cache):
    found = read(shared / "data/gue/prom_core_tata", cache)
    assert found.examples.rows == {"train": 4904, "dev": 613, "test": 613}
    assert {len(sequence) for split in found.sequences.values() for sequence in split} == {70}
    assert {label for split in found.labels.values() for label in split} == {0, 1}
    duplicates = found.examples.duplicates
    assert (duplicates["train"], duplicates["test_in_train"]) == (57, 16)
    lines = (shared / "data/gue/prom_core_tata/dev.csv").read_text().split()[1:]
    assert [f"{sequence},{label}" for sequence, label in found.rows("dev")] == lines


def test_duplicates_by_hand(folder, cache):
    for split, letters in (("train", "AGGAC"), ("dev", "GT"), ("test", "AATN")):
        rows = [f"{letter},{k % 2}\n" for k, letter in enumerate(letters)]
        (folder / f"{split}.csv").write_text("sequence,label\n" + "".join(rows))
    found = read(folder, cache).examples.duplicates
    assert found == {"train": 2, "dev_in_train": 1, "test_in_train": 2, "test_in_dev": 1}


def as_parquet(path: Path) -> None:
    pq.write_table(
        pa.table({"label": [0, 1, 0], "other": [None] * 3, "sequence": [row[0] for row in ROWS]}), path
    )


def as_parquet_of_small_integers_and_categories(path: Path) -> None:
    sequences = pa.array([row[0] for row in ROWS]).dictionary_encode()
    pq.write_table(pa.table({"label": pa.array([0, 1, 0], pa.uint8()), "sequence": sequences}), path)


FORMATS = {
    "train.csv": lambda path: path.write_text(GOOD),
    "train.tsv": lambda path: path.write_text(GOOD.replace(",", "\t")),
    "train.csv.gz": lambda path: path.write_bytes(gzip.compress(GOOD.encode())),
    "train.jsonl": lambda path: path.write_text(
        "".join(json.dumps({"label": label, "sequence": sequence}) + "\n" for sequence, label in ROWS)
    ),
    "training.ndjson.gz": lambda path: path.write_bytes(
        gzip.compress(
            b'{"sequence": "ACGTACGT", "label": 0}\n\n'
            b'{"label": true, "x": 1, "sequence": "TTTTACGT"}\n'
            b'{"label": "0", "sequence": "ggggacgt"}'
        )
    ),
    "train.parquet": as_parquet,
    "TRAIN.PARQUET": as_parquet_of_small_integers_and_categories,
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_of_any_format_is_the_same(folder, cache, name):
    (folder / "train.csv").unlink()
    FORMATS[name](folder / name)
    assert read(folder, cache).rows() == ROWS


@pytest.mark.parametrize(
    "raw",
    [
        GOOD.lower().encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        GOOD.encode("utf-8-sig"),
        GOOD.replace("\n", "\n\n").encode(),
        GOOD.strip().encode(),
        (GOOD + "\n\r\n\n").encode(),
        GOOD.replace("ACGTACGT", '"ACGTACGT"').encode(),
        GOOD.replace("ACGTACGT", "  ACGTACGT ").replace(",1", ", 1").encode(),
        ("# from a paper, table 2\n" + GOOD + "# the end\n").encode(),
        GOOD.replace(",", ";").encode(),
        GOOD.replace(",", "\t").encode(),
        GOOD.replace(",", " | ").encode(),
        ("sep=;\n" + GOOD.replace(",", ";")).encode("utf-8-sig"),
        ("sep=\t\r\n" + GOOD.replace(",", "\t")).encode(),
        GOOD.replace("sequence,label", '"sequence","label"')
        .replace("\nA", '\n"1",A')
        .replace("\nT", '\n"2",T')
        .replace("\nG", '\n"3",G')
        .encode(),
        gzip.compress(GOOD.encode()),
    ],
    ids=[
        "lower case",
        "CRLF",
        "CR",
        "BOM",
        "blank lines",
        "no last newline",
        "blank end",
        "quotes",
        "spaces",
        "comments",
        "semicolons",
        "tabs",
        "bars",
        "sep line",
        "sep line of a tab",
        "names of rows",
        "gzip",
    ],
)
def test_spelling_that_means_the_same_is_tolerated(folder, cache, raw):
    (folder / "train.csv").write_bytes(raw)
    assert read(folder, cache).rows() == ROWS


def test_a_complete_row_is_no_comment(folder, cache):
    (folder / "train.csv").write_text("id,sequence,label\n#1,ACGT,0\n# note\n#2,TTTT,1\n")
    assert read(folder, cache).rows() == [("ACGT", 0), ("TTTT", 1)]


def test_every_iupac_letter_is_legal(folder, cache):
    letters = "ACGTUNRYSWKMBDHV"
    (folder / "train.csv").write_text(f"sequence,label\n{letters},0\n{letters.lower()},1\n")
    assert read(folder, cache).sequences["train"] == [letters, letters]


def test_columns_may_have_other_names(folder, cache):
    for path in folder.iterdir():
        path.write_text("class, dna \n1,ACGT\n0,AAAA\n")
    found = read(folder, cache, sequence_column="dna", label_column="class")
    assert found.rows() == [("ACGT", 1), ("AAAA", 0)]


@pytest.mark.parametrize("columns", [{}, {"sequence_column": "sequence1", "pair_column": "sequence2"}])
def test_three_columns_are_pairs(folder, cache, columns):
    for path in folder.iterdir():
        path.write_text("sequence1,sequence2,label\nACGT,ttt,0\nAAAA,GGGGG,1\n")
    found = read(folder, cache, **columns)
    assert found.rows() == [("ACGT", 0), ("AAAA", 1)]
    assert found.pairs["train"] == ["TTT", "GGGGG"]


def test_a_mistake_in_the_second_sequence_is_one(folder, cache):
    (folder / "dev.csv").write_text("sequence1,sequence2,label\nACGT,TTX,0\nAAAA,,1\n")
    assert [(m.where, m.value) for m in refused(folder, cache)] == [
        (f"{folder / 'dev.csv'}:2", "X"),
        (f"{folder / 'dev.csv'}:3", ""),
    ]


def test_one_file_may_be_all_there_is(tmp_path, cache):
    rows = [
        f"{'ACGT' * 5}{'ACGT'[k // 16 % 4]}{'ACGT'[k // 4 % 4]}{'ACGT'[k % 4]},{k % 2}\n" for k in range(60)
    ]
    (tmp_path / "all.csv").write_text("sequence,label\n" + "".join(rows))
    found = read(tmp_path / "all.csv", cache, dev_fraction=0.2, test_fraction=0.1)
    assert found.examples.rows == {"train": 42, "dev": 12, "test": 6}
    together = [row for split in ("train", "dev", "test") for row in found.rows(split)]
    assert sorted(f"{sequence},{label}\n" for sequence, label in together) == sorted(rows)


def test_only_examples_of_one_task(folder, cache):
    for path in folder.iterdir():
        path.write_text("sequence,label,task\nACGT,0,a\nAAAA,1,b\nCCCC,1,a\n")
    assert read(folder, cache, only_task="a").rows() == [("ACGT", 0), ("CCCC", 1)]
    mistake = refused(folder, cache, only_task="c")[0]
    assert (mistake.where, mistake.value, mistake.fix) == ("data.only_task", "c", "name one of a, b")


def test_rice_has_58_labels_and_no_dev_split(shared, cache):
    names = (shared / "data/danqplant_rice_multilabel/labels.txt").read_text().split()
    path = shared / "data/danqplant_rice_multilabel"
    found = read(path, cache, kind="multilabel", label_column=names)
    assert found.examples.classes == 58
    assert found.examples.rows == {"train": 95, "dev": 10, "test": 76}
    lines = (path / "test.csv").read_text().splitlines()[1:]
    assert found.labels["test"] == [[float(cell) for cell in line.split(",")[1:]] for line in lines]


def test_labels_may_be_named_by_a_pattern_or_left_unnamed(shared, cache):
    path = shared / "data/danqplant_rice_multilabel"
    names = tuple((path / "labels.txt").read_text().split())
    found = [read(path, cache, kind="multilabel", **how) for how in ({}, {"label_column": list(names)})]
    assert found[0].examples.label_columns == names and found[0].labels == found[1].labels
    some = read(path, cache, kind="multilabel", label_column="*_H3K4*").examples
    assert some.label_columns == tuple(name for name in names if "_H3K4" in name)
    assert read(path, cache, kind="multilabel", label_column="*").examples.label_columns == names
    assert 0 < some.classes < 58
    (mistake,) = refused(path, cache, kind="multilabel", label_column="no_*")
    assert "has no column like 'no_*'" in mistake.rule


def test_unnamed_labels_are_all_columns_that_are_not_read_otherwise(folder, cache):
    """And in every file by the names that the first one has, in its order."""
    (folder / "train.csv").write_text("id,sequence,b,a\nx,ACGT,0,1\ny,AAAA,1,1\n")
    for name in ("dev", "test"):
        (folder / f"{name}.csv").write_text("a,b,sequence,id\n1,0,ACGC,x\n")
    found = read(folder, cache, kind="multilabel")
    assert found.examples.label_columns == ("b", "a")
    assert found.labels["train"] == [[0, 1], [1, 1]] and found.labels["dev"] == [[0, 1]]


def test_a_column_names_the_splits_of_a_single_table(tmp_path, cache):
    path = tmp_path / "all.csv"
    path.write_text("sequence,label,split\nACGT,0,train\nAAAA,1,Validation\nCCCC,1,TRAIN\nGGGG,0,test\n")
    found = read(path, cache)
    assert found.sequences == {"train": ["ACGT", "CCCC"], "dev": ["AAAA"], "test": ["GGGG"]}
    path.write_text("sequence,label,split\nACGT,0,train\nAAAA,1,fold 3\n")
    (mistake,) = refused(path, cache)
    assert (mistake.where, mistake.value, mistake.rule) == (f"{path}:3", "fold 3", "is no split")


def test_a_split_column_beside_files_of_splits_is_left_alone_and_said(folder, cache, caplog):
    for path in folder.iterdir():
        path.write_text("sequence,label,split\nACGT,0,test\nAAAA,1,test\n")
    assert read(folder, cache).examples.rows == {"train": 2, "dev": 2, "test": 2}
    assert "its column 'split' is not read, since files name the splits" in caplog.text


def test_rows_that_contradict_each_other_are_named(folder, cache):
    (folder / "train.csv").write_text("sequence,label\nACGT,0\nAAAA,1\nacgt,0\nCCCC,0\nCCCC,1\n")
    (folder / "dev.csv").write_text("sequence,label\nAAAA,0\nAAAC,1\n")
    (remark,) = read(folder, cache).examples.remarks
    places = f"e.g. in {folder / 'train.csv'}:5 and {folder / 'train.csv'}:6"
    assert remark.startswith("2 sequences have different labels in different rows") and places in remark
    assert read(folder, cache).examples.remarks == (remark,), "also from the cache"


def test_measured_values_and_prompts_of_their_own_do_not_contradict(folder, cache):
    for path in folder.iterdir():
        path.write_text("sequence,label,tissue\nACGT,0,liver\nAAAA,1,liver\nACGT,1,lung\n")
    assert read(folder, cache, kind="regression").examples.remarks == ()
    assert read(folder, cache, prefix="{tissue}: {sequence}").examples.remarks == ()
    assert len(read(folder, cache).examples.remarks) == 1


def test_a_list_in_a_column_is_several_labels(tmp_path, cache):
    rows = [{"sequence": "ACGT", "label": [0, 1, None]}, {"sequence": "ACGA", "label": [1, 1, 0]}]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(tmp_path, cache, kind="multilabel").labels["train"]
    assert str(found) == "[[0.0, 1.0, nan], [1.0, 1.0, 0.0]]"
    (tmp_path / "dev.jsonl").write_text(json.dumps({"sequence": "ACGT", "label": [0]}))
    (mistake,) = refused(tmp_path, cache, kind="multilabel")
    assert (mistake.where, mistake.value) == (f"{tmp_path / 'dev.jsonl'}:1", "1 values")


# -- names of classes


def test_names_are_numbered_in_their_order(folder, cache):
    for path in folder.iterdir():
        path.write_text("sequence,label\nACGT,promoter\nAAAA,enhancer\nCCCC,other\n")
    found = read(folder, cache)
    assert found.examples.class_names == ("enhancer", "other", "promoter")
    assert found.labels["train"] == found.labels["test"] == [2, 0, 1]


def test_the_order_of_names_may_be_given(folder, cache):
    for path in folder.iterdir():
        path.write_text("sequence,label\nACGT,yes\nAAAA,no\n")
    found = read(folder, cache, class_names=["yes", "no"])
    assert (found.examples.class_names, found.labels["dev"]) == (("yes", "no"), [0, 1])
    mistakes = refused(folder, cache, class_names=["Yes", "no"])
    assert [(m.where, m.value) for m in mistakes] == [
        (f"{folder / f'{split}.csv'}:2", "yes") for split in ("train", "dev", "test")
    ]


def test_names_and_numbers_do_not_mix(folder, cache):
    (folder / "train.csv").write_text("sequence,label\nACGT,yes\nAAAA,1\nCCCC,no\n")
    (folder / "dev.csv").unlink()
    (folder / "test.csv").unlink()
    (mistake,) = refused(folder, cache)
    assert (mistake.where, mistake.value) == (f"{folder / 'train.csv'}:3", "1")


def test_a_name_that_training_never_shows_is_refused(folder, cache):
    for path in folder.iterdir():
        path.write_text("sequence,label\nACGT,b\nAAAA,c\n")
    (folder / "test.csv").write_text("sequence,label\nACGT,b\nAAAA,d\n")
    (mistake,) = refused(folder, cache)
    assert (mistake.where, mistake.value) == (f"{folder / 'test.csv'}:3", "d")
    assert "does not occur in train" in mistake.rule


# -- mistakes


@pytest.mark.parametrize(
    "text, line, says",
    [
        ("seq,label\nACGT,0\n", 1, "no column 'sequence'"),
        ("sequence,lable\nACGT,0\n", 1, "no column 'label'"),
        ("sequence,label,label\nACGT,0,1\n", 1, "names two columns"),
        ("sequence label\nACGT 0\n", 1, "blanks between its names"),
        ("ACGTACGTAC,0\nACGTACGTAA,1\n", 1, "the file has no header"),
        ("sequence,label\nACGT,0\n,1\n", 3, "missing"),
        ("sequence,label\n  ,0\nACGT,1\n", 2, "missing"),
        ("sequence,label\nACGT,0\n\nACXT,1\n", 4, "position 3 is no IUPAC nucleotide"),
        ("sequence,label\nACGT,0\nAC-T,1\n", 3, "position 3 is no IUPAC nucleotide"),
        ("sequence,label\nACGT,0\nAC GT,1\n", 3, "position 3 is no IUPAC nucleotide"),
        ("sequence,label\nACGT,0\nACG\u00df,1\n", 3, "position 4 is no IUPAC nucleotide"),
        ("sequence,label\nACGT,0\nACGT,1.5\n", 3, "not an integer"),
        ("sequence,label\nACGT,0\nACGT,-1\n", 3, "not an integer"),
        ("sequence,label\nACGT,0\nACGT,yes\n", 3, "no number"),
        ("sequence,label\nACGT,0\nACGT,\n", 3, "label is missing"),
        ("sequence,label\nACGT,0\nACGT,None\n", 3, "label is missing"),
        ("sequence,label\nACGT,0\nnan,1\n", 3, "sequence is missing"),
        ("sequence,label\nACG CGT GTT,0\n", 2, "3-mers: give the plain sequence, here ACGTT"),
        ("sequence,label\nACGT,0\nACGT\n", 3, "the header has 2"),
        ("sequence,label\nACGT,0\nACGT,1,1\n", 3, "the header has 2"),
        ('sequence,label\nACGT,0\n"AC"GT,1\nACGT,1\n', 3, "quote"),
        ('sequence,label\nACGT,0\n"ACGT,1\nACGT,1\nACGT,0\n', 3, "quote"),
        ("sequence,label\nACGT,0\nAC\0T,1\n", 3, "NUL"),
    ],
)
def test_mistake_in_a_row_is_named_by_file_and_line(folder, cache, text, line, says):
    (folder / "train.csv").write_text(text)
    mistakes = refused(folder, cache)
    assert {mistake.where for mistake in mistakes} == {f"{folder / 'train.csv'}:{line}"}
    assert all(says in str(mistake) and mistake.fix for mistake in mistakes)


@pytest.mark.parametrize(
    "text, line, says",
    [
        ('{"sequence": "ACGT", "label": 0}\n{"sequence": "ACGT"\n', 2, "no JSON object"),
        ("[1]\n", 1, "is one JSON array"),
        ('{"sequence": "ACGT", "label": 0}\n\n{"sequence": 7, "label": 0}\n', 3, "position 1 is no IUPAC"),
        ('{"sequence": "ACGT", "label": 0}\n{"sequence": "A"}\n', 2, "label is missing"),
        ('{"seq": "ACGT", "label": 0}\n', 1, "no column 'sequence'"),
        ('{"sequence": "ACGT", "label": 0}\n{"sequence": "A", "label": {"a": 1}}\n', 2, "not an integer"),
    ],
)
def test_mistake_in_json_lines_is_named_by_file_and_line(folder, cache, text, line, says):
    (folder / "train.csv").unlink()
    (folder / "train.jsonl").write_text(text)
    mistakes = refused(folder, cache)
    assert {mistake.where for mistake in mistakes} == {f"{folder / 'train.jsonl'}:{line}"}
    assert says in str(mistakes[0])


def test_mistake_in_parquet_is_named_by_row(folder, cache):
    (folder / "train.csv").unlink()
    path = folder / "train.parquet"
    pq.write_table(pa.table({"sequence": ["ACGT", None, "AXA"], "label": [0, 1, None]}), path)
    assert [m.where for m in refused(folder, cache)] == [f"{path}, row 1", f"{path}, row 2", f"{path}, row 2"]
    path.write_bytes(path.read_bytes()[:-20])
    (mistake,) = refused(folder, cache)
    assert mistake.where == str(path) and "no readable Parquet" in mistake.rule


def test_unbalanced_quote_in_a_large_file_is_found_where_it_is(folder, cache, shared):
    rows = (shared / "data/gue/prom_core_tata/train.csv").read_text().splitlines(keepends=True)
    rows[99] = '"' + rows[99]
    (folder / "train.csv").write_text("".join(rows))
    (mistake,) = refused(folder, cache)
    assert mistake.where == f"{folder / 'train.csv'}:100"


@pytest.mark.parametrize("lines", [1, 200_000])
def test_file_that_is_not_utf8_is_named_by_line(folder, cache, lines):
    good = b"ACGT,0\n" * lines
    (folder / "dev.csv").write_bytes(b"sequence,label\n" + good + b"ACG\xe9,1\nACGT,0\n")
    (mistake,) = refused(folder, cache)
    assert mistake.where == f"{folder / 'dev.csv'}:{lines + 2}"
    assert (mistake.value, mistake.rule) == ("byte 0xe9", "is not UTF-8")


def test_a_packed_file_that_is_cut_is_named(folder, cache):
    (folder / "dev.csv").unlink()
    path = folder / "dev.csv.gz"
    path.write_bytes(gzip.compress((GOOD + "ACGT,1\n" * 1000).encode(), mtime=0)[:-8])
    (mistake,) = refused(folder, cache)
    assert mistake.where == f"{path}:1005" and "cannot be read further" in mistake.rule


@pytest.mark.parametrize("text", ["", "\n"])
def test_file_without_a_header_is_empty(folder, cache, text):
    (folder / "test.csv").write_text(text)
    (mistake,) = refused(folder, cache)
    assert (mistake.where, mistake.rule) == (f"{folder / 'test.csv'}:1", "is empty")


@pytest.mark.parametrize("text", ["sequence,label\n", "sequence,label\n\n\n"])
def test_file_without_rows_is_refused(folder, cache, text):
    (folder / "test.csv").write_text(text)
    (mistake,) = refused(folder, cache)
    assert mistake.where == str(folder / "test.csv") and "no examples" in mistake.rule


def test_a_folder_needs_a_file_to_train_on(folder, cache):
    (folder / "train.csv").unlink()
    (mistake,) = refused(folder, cache)
    assert (mistake.where, mistake.value) == ("data.path", folder) and "no file train.*" in mistake.rule


def test_two_files_of_one_split_are_refused(folder, cache):
    (folder / "valid.csv").write_text(GOOD)
    (mistake,) = refused(folder, cache)
    assert (mistake.value, mistake.rule) == (folder / "valid.csv", "is the dev split, and so is dev.csv")


@pytest.mark.parametrize(
    "name, says",
    [
        ("nowhere", "is not there (a data set on the hub needs data.format=dataset)"),
        ("nowhere.csv", "No such file or directory"),
        ("data/x.docx", "is no folder, and the ending is none of .csv"),
        ("x" * 300, "is not there"),
        ("a\0b", "is not there"),
        (".", "holds no train file of a known kind"),
    ],
)
def test_what_is_no_data_is_refused(tmp_path, cache, name, says):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.docx").touch()
    (mistake,) = refused(tmp_path / name, cache)
    assert mistake.rule.startswith(says)


def test_settings_that_mean_nothing_there_are_refused(folder, cache):
    (mistake,) = refused(folder, cache, intervals={"genome": "g.fa"})
    assert (mistake.where, mistake.rule) == (
        "data.intervals",
        "has no meaning for data.path, which is read as table",
    )


def test_labels_run_from_zero_without_a_gap(folder, cache):
    (folder / "train.csv").write_text("sequence,label\nACGT,0\nACGT,3\nACGT,1\nACGT,3\n")
    (mistake,) = refused(folder, cache)
    assert (mistake.where, mistake.value) == (f"{folder / 'train.csv'}:3", 3)
    assert "no row has 2" in mistake.rule
    (folder / "train.csv").write_text("sequence,label\nACGT,2\nACGT,1\n")
    (mistake,) = refused(folder, cache)
    assert "no row has 0" in mistake.rule


def test_one_class_is_no_task(folder, cache):
    (folder / "train.csv").write_text("sequence,label\nACGT,0\nTTTT,0\n")
    (mistake,) = refused(folder, cache)
    assert mistake.where == str(folder / "train.csv") and "at least two classes" in mistake.fix


def test_label_that_training_never_shows_is_refused(folder, cache):
    (folder / "dev.csv").write_text("sequence,label\nACGT,0\nACGT,4\n")
    (folder / "test.csv").write_text("sequence,label\nACGT,0\n\nACGT,1\nACGT,2\n")
    mistakes = refused(folder, cache)
    assert [(m.where, m.value) for m in mistakes] == [
        (f"{folder / 'dev.csv'}:3", 4),
        (f"{folder / 'test.csv'}:5", 2),
    ]


def test_classes_that_differ_in_case_or_blanks_alone_are_refused(folder, cache):
    for path in folder.iterdir():
        path.write_text("sequence,label\nACGT,Alu\nAAAA,L 1\n")
    (folder / "dev.csv").write_text("sequence,label\nACGT,alu\nAAAA,L1\nACGA,Alu\n")
    first, second = refused(folder, cache)
    assert (first.where, first.value) == (f"{folder / 'dev.csv'}:2", "alu") and "'Alu'" in first.rule
    assert (second.where, second.value) == (f"{folder / 'dev.csv'}:3", "L1") and "'L 1'" in second.rule
    names = ["Alu", "alu", "L1", "L 1"]
    (folder / "train.csv").write_text("sequence,label\n" + "".join(f"ACGT,{name}\n" for name in names))
    assert read(folder, cache, class_names=names).examples.classes == 4


def test_mistakes_of_all_files_are_reported_together(folder, cache):
    (folder / "train.csv").write_text("sequence,label\nACXT,1.5\nACGT,1\n,0\n")
    (folder / "dev.csv").write_text("sequence,label\nACGT\n")
    (folder / "test.csv").unlink()
    (folder / "test.csv").mkdir()
    (folder / "test.tsv").symlink_to("nowhere")
    where = [mistake.where.removeprefix(str(folder)) for mistake in refused(folder, cache)]
    assert where == ["/train.csv:2", "/train.csv:2", "/train.csv:4", "/dev.csv:2", "/test.tsv"]


def test_a_hopeless_file_is_not_reported_row_by_row(folder, cache):
    (folder / "train.csv").write_text("sequence,label\n" + "XXXX,0\n" * 500)
    (mistake,) = refused(folder, cache)
    assert mistake.where == f"{folder / 'train.csv'}:2"
    assert mistake.rule.endswith("(500 lines: 2, 3, 4, ..)")


def test_what_is_no_file_is_refused_rather_than_waited_for(folder, cache):
    (folder / "dev.csv").unlink()
    os.mkfifo(folder / "dev.csv")
    (folder / "test.csv").unlink()
    (folder / "test.csv").symlink_to("/dev/zero")
    assert [mistake.rule for mistake in refused(folder, cache)] == [
        "is not a regular file (2 files: dev.csv, test.csv)"
    ]


def test_nothing_is_left_of_a_conversion_that_failed(folder, cache):
    (folder / "dev.csv").write_text("sequence,label\nXCGT,0\n")
    refused(folder, cache)
    assert list((cache / "examples").iterdir()) == []
