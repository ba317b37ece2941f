"""FASTA, folders of classes, one-hot arrays and data sets of the `datasets` library."""

import gzip
import os
from pathlib import Path

import datasets
import h5py
import numpy as np
import pytest
import scipy.io

from lingo_ds.data.sources import deepsea
from tests.unit.reading import read, refused


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_splits(home: Path, name: str, text: str) -> None:
    """The same file as train, dev and test."""
    for split in ("train", "dev", "test"):
        (home / name.format(split)).write_text(text)


# -- FASTA


def test_the_label_stands_in_the_header(home, cache):
    write_splits(home, "{}.fna", ";a comment\n>chr1:5-9|0\nACgt\nNN\n\n>s2|1\r\nTTGACA\n")
    assert read(home, cache).rows() == [("ACGTNN", 0), ("TTGACA", 1)]


def test_a_task_may_stand_in_the_header(home, cache):
    text = ">a|1|enhancers\nACGT\n>b|0|enhancers\nAA\n>c|2|splice\nCC\n>d|1\nGG\n"
    write_splits(home, "{}.fa", text)
    assert read(home, cache, only_task="enhancers").rows() == [("ACGT", 1), ("AA", 0)]
    assert read(home, cache).rows() == [("ACGT", 1), ("AA", 0), ("CC", 2), ("GG", 1)]


def test_one_fasta_may_be_one_class(home, cache):
    for split in ("train", "valid", "test"):
        (home / split).mkdir()
        (home / split / "promoter.fa").write_text(">a|7\nACGT\n>b\nAAAA\n")
        (home / split / "background.fa.gz").write_bytes(gzip.compress(b">c\nCC\nCC\n"))
    found = read(home, cache)
    assert found.rows("dev") == [("CCCC", 0), ("ACGT", 1), ("AAAA", 1)]
    assert found.examples.class_names == ("background", "promoter")


def test_fasta_of_classes_without_splits_is_split(home, cache):
    for name, base in (("promoter", "A"), ("other", "C")):
        (home / f"{name}.fasta").write_text("".join(f">{k}\n{base * (k + 1)}\n" for k in range(20)))
    found = read(home, cache)
    assert found.examples.rows == {"train": 32, "dev": 4, "test": 4}
    assert all(
        label == (sequence[0] == "A") for split in found.labels for sequence, label in found.rows(split)
    )


@pytest.mark.parametrize(
    "text, line, says",
    [
        (">a\nACGT\n>b|1\nAA\n", 1, "the header holds no label"),
        (">a|1|x|y\nACGT\n>b|1\nAA\n", 1, "the header holds no label"),
        (">a|0\nACGT\n>b|1\nAA\nA-A\n", 5, "position 2 is no IUPAC"),
        (">a|0\n>b|1\nAA\n", 1, "sequence is missing"),
        ("ACGT\n>b|1\nAA\n", 1, "before the first header"),
        (">a|0\nACGT\n>b|\nAA\n", 3, "label is missing"),
    ],
)
def test_mistake_in_fasta_is_named_by_file_and_line(home, cache, text, line, says):
    write_splits(home, "{}.fa", ">a|0\nACGT\n>b|1\nAA\n")
    (home / "train.fa").write_text(text)
    (mistake,) = refused(home, cache)
    assert mistake.where == f"{home / 'train.fa'}:{line}" and says in mistake.rule


# -- folders of classes


def test_a_folder_may_be_one_class(home, cache):
    for split in ("train", "test"):
        for name, sequences in (("positive", ["ACGT\n", "AC\nGT\n\nNN"]), ("negative", ["CCCC"] * 20)):
            (home / split / name).mkdir(parents=True)
            for k, text in enumerate(sequences):
                (home / split / name / f"{k:02}.txt").write_text(text)
    (home / "test" / "negative" / "19.txt").unlink()
    (home / "test" / "negative" / "99.txt.gz").write_bytes(gzip.compress(b"GG"))
    for k in range(18):
        (home / "train" / "positive" / f"more{k}.txt").write_text("T" * (k + 1))
        (home / "train" / "negative" / f"{k:02}.txt").write_text("G" * (k + 1))
    found = read(home, cache)
    assert found.examples.class_names == ("negative", "positive")
    assert found.rows("test") == [("CCCC", 0)] * 19 + [("GG", 0), ("ACGT", 1), ("ACGTNN", 1)]
    assert (found.examples.rows["train"], found.examples.rows["dev"]) == (36, 4)


def test_mistake_in_a_folder_of_a_class_names_the_file(home, cache):
    for name, text in (("a", "ACGT"), ("b", "AC?T"), ("c", "")):
        (home / name).mkdir()
        (home / name / "1.txt").write_text(text)
    assert [m.where for m in refused(home, cache)] == [str(home / "b/1.txt"), str(home / "c/1.txt")]
    (home / "b/1.txt").unlink()
    (home / "c/1.txt").unlink()
    (mistake,) = refused(home, cache)
    assert mistake.value == "0 rows" and mistake.rule.endswith("(2 files: b, c)")


def test_changed_files_of_a_folder_are_converted_anew(home, cache):
    for name in ("a", "b"):
        (home / name).mkdir()
        for k in range(10):
            (home / name / f"{k}.txt").write_text("ACGT"[k % 4] * (k + 1))
    first = read(home, cache)
    assert read(home, cache).examples.folder == first.examples.folder
    (home / "a" / "9.txt").write_text("T" * 10)
    os.utime(home / "a" / "9.txt", ns=(0, 0))
    assert read(home, cache).examples.folder != first.examples.folder


# -- one-hot arrays

SEQUENCES = ["ACGTN", "TTTAA", "GGCNC", "ACACA"]
LABELS = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]], dtype=np.uint8)


def one_hot(order: str) -> np.ndarray:
    """(4 examples, 4 channels, 5 positions)."""
    return np.array([[[base == one for one in text] for base in order] for text in SEQUENCES], dtype=np.uint8)


def as_hdf5(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["trainxdata"], file["traindata"] = x.transpose(2, 1, 0), y.T  # as MATLAB 7.3 has it


def as_matlab_5(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    scipy.io.savemat(path, {"validxdata": x, "validdata": y})


def as_npz(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    np.savez(path, x=x, y=y)


def as_packed_npz(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    np.savez_compressed(
        path, labels=y.astype(np.float64), sequences=np.ascontiguousarray(x.transpose(0, 2, 1))
    )


@pytest.mark.parametrize(
    "write, ending, order",
    [
        (as_hdf5, ".mat", "AGCT"),
        (as_matlab_5, ".mat", "AGCT"),
        (as_npz, ".npz", "ACGT"),
        (as_packed_npz, ".npz", "ACGT"),
    ],
)
@pytest.mark.parametrize("given", [None, "TGCA"])
def test_arrays_become_sequences(home, cache, monkeypatch, write, ending, order, given):
    monkeypatch.setattr(deepsea, "EXAMPLES_PER_READ", 3)
    for split in ("train", "valid", "test"):
        write(home / f"{split}{ending}", one_hot(given or order), LABELS)
    found = read(home, cache, kind="multilabel", one_hot_order=given)
    assert found.sequences["train"] == found.sequences["dev"] == SEQUENCES
    assert np.array_equal(found.labels["train"], LABELS) and found.examples.classes == 3


def test_what_is_not_one_hot_is_named_by_row(home, cache):
    x = one_hot("ACGT").astype(np.float32)
    x[1, :, 2] = 0.25
    x[3, :2, 0] = 1
    for split in ("train", "dev", "test"):
        as_npz(home / f"{split}.npz", one_hot("ACGT"), LABELS)
    as_npz(home / "train.npz", x, LABELS)
    path = home / "train.npz"
    (mistake,) = refused(home, cache, kind="multilabel")
    assert mistake.where == f"{path}, row 1" and "(2 rows: 1, 3)" in mistake.rule


def test_arrays_that_are_no_data_are_refused(home, cache):
    (home / "train.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    as_npz(home / "dev.npz", one_hot("ACGT")[:2], LABELS)
    np.savez(home / "test.npz", x=np.array([{}], dtype=object), y=LABELS)
    with h5py.File(home / "other.h5", "w") as file:
        file["x"], file["y"] = one_hot("ACGT").transpose(2, 1, 0), LABELS.T
    found = refused(home, cache, kind="multilabel")
    assert [m.where for m in found] == [str(home / name) for name in ("train.mat", "dev.npz", "test.npz")]
    with h5py.File(home / "train.mat", "w") as file:
        file["x"] = h5py.ExternalLink("other.h5", "x")
        file["y"] = h5py.ExternalLink("other.h5", "y")
    (mistake, *_) = refused(home, cache, kind="multilabel")
    assert mistake.where == str(home / "train.mat") and "has not one array" in mistake.rule


# -- data sets of the library


def test_a_saved_data_set_is_read(home, cache):
    rows = {"sequence": ["acgt", "GGNN"], "label": [1, 0], "task": ["a", "b"]}
    split = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=split, validation=split, test=split).save_to_disk(home)
    assert read(home, cache).rows("dev") == [("ACGT", 1), ("GGNN", 0)]
    (mistake,) = refused(home, cache, only_task="b")
    assert mistake.rule == "is the only label"


def test_class_labels_and_lists_of_a_data_set(home, cache):
    features = datasets.Features(
        sequence=datasets.Value("string"), label=datasets.List(datasets.Value("float32"))
    )
    rows = {"sequence": [f"A{'C' * k}" for k in range(10)], "label": [[0.5, k] for k in range(10)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(home)
    found = read(home, cache, kind="regression")
    assert found.examples.rows == {"train": 8, "dev": 1, "test": 1}
    assert all(label == [0.5, len(sequence) - 1] for sequence, label in found.rows())


def test_mistakes_of_a_data_set_are_named(home, cache):
    datasets.Dataset.from_dict({"sequence": ["ACGT", "AXA", None], "label": [0, 1, 1]}).save_to_disk(home)
    where = [m.where for m in refused(home, cache)]
    assert where == [f"{home}, split train, row 1", f"{home}, split train, row 2"]
    (mistake,) = refused(home, cache, label_column="class")
    assert "has no column 'class'" in mistake.rule
    (mistake,) = refused(home / "nowhere", cache, format="dataset")
    assert (mistake.where, "no data set that can be read" in mistake.rule) == ("data.path", True)
