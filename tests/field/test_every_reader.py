"""Each kind of fault that people reported, in every kind of file, in training and in prediction."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio import bgzf

from lingo_ds.data.readers.content import BGZIP_END
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.data.streams.sequences import Records
from lingo_ds.data.streams.variants import Variants
from lingo_ds.utils.errors import Mistake, UserError
from tests.unit.reading import read, refused

Row = tuple[str | None, str | float | None]
GOOD: list[Row] = [("ACGTACGTAC", "0"), ("CCCCGGGGTT", "1"), ("ACACACACAC", "0")]


def as_csv(path: Path, rows: list[Row], delimiter: str = ",") -> None:
    lines = [delimiter.join("" if cell is None else str(cell) for cell in row) for row in rows]
    path.write_text("\n".join([f"sequence{delimiter}label", *lines]) + "\n")


def as_tsv(path: Path, rows: list[Row]) -> None:
    as_csv(path, rows, "\t")


def as_json(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps({"sequence": one, "label": other}) + "\n" for one, other in rows))


def as_parquet(path: Path, rows: list[Row]) -> None:
    table = pa.table({"sequence": [row[0] for row in rows], "label": [row[1] for row in rows]})
    pq.write_table(table, path)


def as_fasta(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(f">x|{label or ''}\n{sequence or ''}\n" for sequence, label in rows))


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "csv": as_csv,
    "tsv": as_tsv,
    "jsonl": as_json,
    "parquet": as_parquet,
    "fa": as_fasta,
}
SPELLINGS = ["NA", "nan", "NULL", "None", "n/a", " ", None]


def predicted(path: Path) -> list[Mistake]:
    with pytest.raises(UserError) as caught:
        list(Records(path).chunks(most=100, most_bases=1000))
    return caught.value.mistakes


@pytest.fixture(params=WRITERS)
def written(request, tmp_path) -> Callable[[list[Row]], Path]:
    def write(rows: list[Row]) -> Path:
        path = tmp_path / f"train.{request.param}"
        WRITERS[request.param](path, rows)
        return path

    return write


def test_the_good_rows_are_read(written, tmp_path):
    rows = [(a + b + "ACGT", str(k % 2)) for k, a in enumerate("ACGT") for b in "ACGT"]
    path = written(rows)
    assert read(path, tmp_path / "cache").examples.rows == {"train": 12, "dev": 2, "test": 2}
    assert sum(chunk.size for chunk in Records(path).chunks(most=100, most_bases=1000)) == 16


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_missing_sequence_is_none(written, tmp_path, spelling):
    path = written([*GOOD, (spelling, "1"), (spelling, "0")])
    for mistakes in (refused(path, tmp_path / "cache"), predicted(path)):
        (mistake,) = mistakes
        assert mistake.rule.startswith("sequence is missing (2 ") and mistake.where.startswith(str(path))


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("first", ["0", "promoter"])
def test_a_missing_label_is_no_class(written, tmp_path, spelling, first):
    rows: list[Row] = [(sequence, first) for sequence, _ in GOOD]
    (mistake,) = refused(written([*rows, ("ACGTTT", spelling), ("ACGTTA", spelling)]), tmp_path / "cache")
    assert mistake.rule.startswith("label is missing (2 ")


def test_k_mers_are_no_sequence(written, tmp_path):
    path = written([*GOOD, ("ACG CGT GTT", "1"), ("TTA TAC ACC CCC", "0")])
    for mistakes in (refused(path, tmp_path / "cache"), predicted(path)):
        (mistake,) = mistakes
        assert "is a list of 3-mers (2 " in mistake.rule and "here ACGTT.." in mistake.fix


# -- files that were cut short, pointers to files, and formats that are not read


def test_bgzip_without_its_end_is_refused_in_every_reader(tmp_path):
    fasta = ">c1\n" + "ACGT" * 30 + "\n"
    (tmp_path / "g.fa").write_text(fasta)
    genome = Genome(tmp_path / "g.fa", cache=tmp_path / "cache")
    vcf = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nc1\t9\t.\tA\tG\t.\t.\t.\n"
    readers: dict[str, tuple[str, Callable[[Path], object]]] = {
        "a.csv.gz": (
            "sequence,label\nACGT,0\nAAAA,1\n",
            lambda path: list(Records(path).chunks(most=9, most_bases=9)),
        ),
        "b.jsonl.gz": (
            '{"sequence": "ACGT"}\n',
            lambda path: list(Records(path).chunks(most=9, most_bases=9)),
        ),
        "c.fa.gz": (fasta, lambda path: list(Records(path).chunks(most=9, most_bases=9))),
        "d.vcf.bgz": (
            vcf,
            lambda path: list(Variants(path, genome=genome, window=5).chunks(most=9, most_bases=9)),
        ),
        "e.bed.gz": (
            "c1\t1\t5\n",
            lambda path: list(Regions(path, genome=genome).chunks(most=9, most_bases=9)),
        ),
        "g.fa.gz": (fasta, lambda path: Genome(path, cache=tmp_path / "cache").fetch("c1", 0, 4)),
        "train.csv.gz": ("sequence,label\nACGT,0\nAAAA,1\n" * 9, lambda path: read(path, tmp_path / "cache")),
    }
    for name, (text, reader) in readers.items():
        path = tmp_path / name
        with bgzf.BgzfWriter(str(path), "wb") as out:
            out.write(text.encode())
        path.write_bytes(path.read_bytes().removesuffix(BGZIP_END))
        with pytest.raises(UserError, match="was cut short: it lacks the end block"):
            reader(path)


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet", "train.fa", "train.bed"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    (tmp_path / "g.fa").write_text(">c1\nACGT\n")
    settings = {"intervals": {"genome": str(tmp_path / "g.fa")}} if name.endswith(".bed") else {}
    for place in (path, tmp_path):
        mistakes = refused(place, tmp_path / "cache", **settings)
        assert any(
            "pointer of git-lfs" in mistake.rule and "git lfs pull" in mistake.fix for mistake in mistakes
        )
