"""Tables, JSON lines and BED as spreadsheets, R, pandas and UCSC write them: read, or refused in words."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.data.streams.sequences import Records
from lingo_ds.utils.errors import UserError
from tests.unit.reading import read, refused

DNA = ["ACGTACGTAC", "CCCCGGGGTT", "ACACACACAC", "GTGTGTGTGT"]
SPLITS = ("train", "dev", "test")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write(folder: Path, header: str, *rows: str, name: str = "csv") -> Path:
    for split in SPLITS:
        (folder / f"{split}.{name}").write_text("\n".join([header, *rows]) + "\n")
    return folder


# -- tables


@pytest.mark.parametrize(
    "header, rows",
    [
        ("id,label,sequence", [f"r{k},0,{k},{dna}" for k, dna in enumerate(DNA)]),  # a comma for a point
        ("id,label,sequence", [f"{k + 1},0,{k},{dna}" for k, dna in enumerate(DNA)]),
        ("gene,label,sequence", [f"g{k},{k % 2},0,{dna}" for k, dna in enumerate(DNA)]),
        ("sequence,label", [f"AC,{dna},{k % 2}" for k, dna in enumerate(DNA)]),
    ],
)
def test_a_field_too_many_is_no_name_of_a_row(data, cache, header, rows):
    mistakes = refused(write(data, header, *rows), cache, kind="regression")
    assert all("fields" in str(m.value) and "the header has" in m.rule for m in mistakes)


@pytest.mark.parametrize(
    "header, row",
    [
        ('"sep=;"\nsequence;label', "{dna};{label}"),
        ('sequence;label;"score, log"', "{dna};{label};1"),
        ('"sequence", "label"', '"{dna}", "{label}"'),
        ("#sequence,label", "{dna},{label}"),
        ("# made by hand\n#id\tsequence\tlabel", "a\t{dna}\t{label}"),
    ],
)
def test_headers_of_spreadsheets_are_read(data, cache, header, row):
    rows = [row.format(dna=dna, label=k % 2) for k, dna in enumerate(DNA)]
    assert read(write(data, header, *rows), cache).rows() == [(dna, k % 2) for k, dna in enumerate(DNA)]


def test_tables_of_r_with_blanks_are_named(data, cache):
    rows = [f'"{k}" "{dna}" {k % 2}' for k, dna in enumerate(DNA, 1)]
    for mistake in refused(write(data, '"sequence" "label"', *rows), cache):
        assert mistake.rule == "has blanks between its fields" and "write.csv" in mistake.fix


def test_a_quote_in_a_tsv_swallows_no_rows(data, cache):
    rows = [
        f"{dna}\t{k % 2}\t{note}"
        for k, (dna, note) in enumerate(zip(DNA, ['"5 prime', "", '"', ""], strict=True))
    ]
    mistakes = refused(write(data, "sequence\tlabel\tnote", *rows, name="tsv"), cache)
    assert {m.where.rpartition("/")[2] for m in mistakes} == {f"{split}.tsv:2" for split in SPLITS}
    assert all("begins with a quote" in m.rule for m in mistakes)


def test_an_incomplete_row_is_no_comment_where_ids_begin_so(data, cache):
    rows = [f"#{k},{dna},{k % 2}" for k, dna in enumerate(DNA)]
    mistakes = refused(write(data, "id,sequence,label", *rows, "#9,ACGTTT", "# the end"), cache)
    assert [m.value for m in mistakes] == ["2 fields"] * 3


def test_a_task_is_found_whatever_blanks_are_around_it(data, cache):
    rows = [f"{dna},{k % 2},enh " for k, dna in enumerate(DNA)]
    assert len(read(write(data, "sequence,label,task", *rows), cache, only_task="enh").rows()) == 4
    mistake = refused(data, cache, only_task="Enh")[0]
    assert (mistake.where, mistake.fix) == ("data.only_task", "name one of enh")


def test_numbers_of_rows_by_pandas_are_no_label(data, cache):
    rows = [f"{k},{dna},{k % 2},1" for k, dna in enumerate(DNA)]
    found = read(write(data, ",sequence,a,b", *rows), cache, kind="multilabel")
    assert found.examples.label_columns == ("a", "b")
    mistake = refused(write(data, ",sequence,a,b", *rows, "9,ACGTT,1,7"), cache, kind="multilabel")[0]
    assert mistake.value == "b: 7"


def test_a_column_may_have_the_name_of_a_pattern(data, cache):
    rows = [f"{dna},{k}.5" for k, dna in enumerate(DNA)]
    found = read(
        write(data, "sequence,activity[log2]", *rows), cache, kind="regression", label_column="activity[log2]"
    )
    assert found.examples.label_columns == ("activity[log2]",)


@pytest.mark.parametrize("name", ["test.fa", "test.csv.xz", "test.txt", "Test.xlsx"])
def test_a_test_file_of_another_format_is_not_passed_over(data, cache, name):
    write(data, "sequence,label", *[f"{dna},{k % 2}" for k, dna in enumerate(DNA)])
    (data / "test.csv").unlink()
    (data / name).write_text(">a|1\nACGT\n")
    (mistake,) = refused(data, cache)
    assert mistake.value == data / name and "is not read as test" in mistake.rule


def test_gzip_of_a_file_whose_name_looks_like_bgzip_is_whole(tmp_path, cache):
    """Gzip writes the name where bgzip has its mark."""
    path = tmp_path / "xxBC.csv"
    rows = "\n".join(f"{a}{b}ACGT,{k % 2}" for k, a in enumerate("ACGT") for b in "ACGT")
    with path.open("wb") as raw, gzip.GzipFile("xxBC.csv", "wb", fileobj=raw) as packed:
        packed.write(f"sequence,label\n{rows}\n".encode())
    assert path.read_bytes()[12:14] == b"BC"
    assert read(path, cache).examples.rows["train"] == 12


# -- JSON lines and Parquet


def test_names_that_the_first_object_lacks_are_said(tmp_path, cache, caplog):
    path = tmp_path / "in.jsonl"
    path.write_text('{"sequence": "ACGT"}\n{"id": "b", "sequence": "ACGG"}\n')
    list(Records(path).chunks(most=9, most_bases=99))
    assert "names that the first object lacks are not read: id" in caplog.text


@pytest.mark.parametrize(
    "text, says",
    [
        (json.dumps({"sequence": {"0": "ACGT"}, "label": {"0": 1}}), "holds whole columns in one object"),
        ('{"id": "\\ud800", "sequence": "ACGT"}', "half of a character"),
        ('{"sequence": "ACGT", "cell": "\\ud800"}', "half of a character"),
    ],
)
def test_json_that_cannot_be_meant_is_refused(tmp_path, text, says):
    path = tmp_path / "in.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=says):
        list(Records(path).chunks(most=9, most_bases=99))


def test_parquet_of_bytes_or_packed_is_named(tmp_path, cache):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"sequence": pa.array([b"ACGT", b"AAAA"]), "label": [0, 1]}), path)
    assert refused(path, cache)[0].rule == "is no text"
    packed = tmp_path / "x.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert "packed by gzip" in refused(packed, cache)[0].rule


def test_ids_beyond_a_signed_number_are_text(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": pa.array([2**63], pa.uint64()), "sequence": ["ACGT"]}), path)
    records = Records(path)
    (chunk,) = records.chunks(most=9, most_bases=99)
    assert not records.numbered and list(chunk.ids) == [str(2**63)]


# -- intervals


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text(">chr1\n" + "ACGTACGTTT" * 20 + "\n")
    return path


def both_read(path: Path, genome: Path, cache: Path) -> tuple[list[str], list[str]]:
    """The sequences of a BED in training, as positives, and in prediction."""
    found = read(path, cache, intervals={"genome": str(genome), "negatives": 1, "dev_chromosomes": []})
    positives = [
        sequence
        for split in SPLITS
        for sequence, label in zip(found.sequences[split], found.labels[split], strict=True)
        if label == 1
    ]
    rows = Regions(path, genome=Genome(genome, cache=cache))
    return positives, [one for chunk in rows.chunks(most=99, most_bases=9999) for one in chunk.sequences]


@pytest.mark.parametrize(
    "head",
    [
        "chr1\t10\t17\n",  # shorter than the lines that follow
        "seqnames start end n score strand\n".replace(" ", "\t"),
        "#PeakID\tchr\tstart\tend\tscore\tstrand\n",
        '"chrom"\t"start"\t"end"\t"name"\t"score"\t"strand"\n',
        "# chrom\tstart\tend\tname\tscore\tstrand\n",
    ],
)
def test_training_and_prediction_read_the_same_strands(tmp_path, genome, cache, head):
    path = tmp_path / "x.bed"
    peak = "PeakID" in head
    lines = [f"chr1\t{10 * k}\t{10 * k + 7}\tn{k}\t0\t-" for k in range(2, 14)]
    if peak:
        lines = [f"n{k}\tchr1\t{10 * k}\t{10 * k + 7}\t0\t-" for k in range(2, 14)]
    path.write_text(head + "\n".join(lines) + "\n")
    trained, predicted = both_read(path, genome, cache)
    assert sorted(trained) == sorted(predicted) and "ACGTACG" != predicted[-1] == "CGTACGT"


def test_files_of_splits_keep_their_intervals(tmp_path, data, genome, cache, caplog):
    for number, split in enumerate(SPLITS):
        rows = [f"chr1\t{60 * number + 6 * k}\t{60 * number + 6 * k + 4}\ttrain\t{k % 2}" for k in range(8)]
        (data / f"{split}.bed").write_text("\n".join(["chrom\tstart\tend\tsplit\tlabel", *rows]) + "\n")
    found = read(data, cache, intervals={"genome": str(genome)})
    assert found.examples.rows == {"train": 8, "dev": 8, "test": 8}
    assert "its column 'split' is not read, since files name the splits" in caplog.text


@pytest.mark.parametrize(
    "body, says",
    [("ACGT\n;a note\nACGT\n", "a comment"), ("ACGT ACGT\nACGT ACGT\n", "blanks between its letters")],
)
def test_what_would_shift_the_places_of_a_genome_is_refused(tmp_path, cache, body, says):
    path = tmp_path / "g.fa"
    path.write_text(f">c1\n{body}")
    with pytest.raises(UserError, match=says):
        Genome(path, cache=cache)
