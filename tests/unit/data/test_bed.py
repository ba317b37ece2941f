"""Intervals of a genome: what is cut out, on which strand, into which split; what is drawn beside them."""

import gzip
import logging
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lingo_ds.config.data_config import DataConfig
from lingo_ds.data.convert import convert_once
from lingo_ds.data.sources.negatives import gc_share
from tests.unit.reading import Read, read, refused


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def genome(tmp_path) -> Path:
    """c1 of 600 and c2, c3 of 300 bases; the first 100 of c2 are N, lower case is masked."""
    rng = random.Random(0)
    chromosomes = {
        name: "".join(rng.choices("ACGT", k=n)) for name, n in (("c1", 600), ("c2", 300), ("c3", 300))
    }
    chromosomes["c2"] = "N" * 100 + chromosomes["c2"][100:200].lower() + chromosomes["c2"][200:]
    path = tmp_path / "g.fa"
    write_fasta(path, chromosomes)
    return path


def write_fasta(path: Path, chromosomes: dict[str, str]) -> None:
    lines = []
    for name, bases in chromosomes.items():
        lines += [f">{name} some words", *(bases[k : k + 50] for k in range(0, len(bases), 50))]
    path.write_text("\n".join(lines) + "\n")


def bases_of(genome: Path) -> dict[str, str]:
    """Chromosomes as a reader of the whole file has them."""
    found: dict[str, str] = {}
    for line in genome.read_text().split("\n"):
        if line.startswith(">"):
            name = line[1:].split()[0]
            found[name] = ""
        else:
            found[name] += line.upper()
    return found


def other_strand(bases: str) -> str:
    return "".join({"A": "T", "C": "G", "G": "C", "T": "A"}.get(base, base) for base in reversed(bases))


def bed(path: Path, text: str) -> Path:
    path.write_text("".join("\t".join(line.split()) + "\n" for line in text.splitlines()))
    return path


BEND = """\
chromosome start end split label
c1 10 20 train 0
c1 590 600 train 1
c2 150 160 valid 1
c3 0 10 test 0
"""


# -- what is cut out


def test_a_header_names_split_and_label(tmp_path, genome, cache):
    bases = bases_of(genome)
    found = read(bed(tmp_path / "x.bed", BEND), cache, intervals={"genome": str(genome)})
    assert found.rows("train") == [(bases["c1"][10:20], 0), (bases["c1"][590:600], 1)]
    assert found.rows("dev") == [(bases["c2"][150:160], 1)] and found.rows("dev")[0][0].isupper()
    assert found.rows("test") == [(bases["c3"][:10], 0)]


@pytest.mark.parametrize(
    "header", ["#chrom\tchromStart\tchromEnd\tsplit\tstrand\tlabel", "chr\tstart\tstop\tsplit\tstrand\tlabel"]
)
def test_the_minus_strand_is_read_the_other_way(tmp_path, genome, cache, header):
    rows = [
        f"c1\t{k}\t{k + 9}\t{split}\t{'+-.'[k % 3]}\t{k % 2}"
        for k in range(6)
        for split in ("train", "dev", "test")
    ]
    (tmp_path / "x.bed").write_text("\n".join([header, *rows]))
    bases = bases_of(genome)["c1"]
    expected = [other_strand(bases[k : k + 9]) if k % 3 == 1 else bases[k : k + 9] for k in range(6)]
    assert read(tmp_path / "x.bed", cache, intervals={"genome": str(genome)}).sequences["dev"] == expected


def test_all_ways_of_writing_bed_are_the_same(tmp_path, genome, cache):
    plain = "c1\t5\t9\ta\t0\t+\nc1\t30\t39\tb\t1\t-\n"
    ways = {
        "plain": plain.encode(),
        "crlf": plain.replace("\n", "\r\n").encode("utf-8-sig"),
        "noise": b"#comment\nbrowser position c1\ntrack name=x\n\n" + plain.replace("\t", " ").encode(),
    }
    for name, raw in ways.items():
        (tmp_path / name).mkdir()
        for split in ("train", "dev", "test"):
            (tmp_path / name / f"{split}.bed").write_bytes(raw)
    (tmp_path / "packed").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "packed" / f"{split}.bed.gz").write_bytes(gzip.compress(plain.encode()))
    settings = {"label_column": "score", "intervals": {"genome": str(genome)}}
    bases = bases_of(genome)["c1"]
    expected = [(bases[5:9], 0), (other_strand(bases[30:39]), 1)]
    for name in [*ways, "packed"]:
        assert read(tmp_path / name, cache, **settings).rows("test") == expected, name
    settings["label_column"] = "name"
    assert read(tmp_path / "plain", cache, **settings).examples.class_names == ("a", "b")


def test_windows_and_flanks(tmp_path, genome, cache):
    (tmp_path / "b").mkdir()
    for split in ("train", "dev", "test"):
        bed(tmp_path / "b" / f"{split}.bed", "c1 0 10 x 0 +\nc1 100 103 x 1 -\nc1 590 600 x 0 .")
    bases = "N" * 50 + bases_of(genome)["c1"] + "N" * 50

    def sequences(**how: int) -> list[str]:
        settings = {"genome": str(genome), **how}
        return read(tmp_path / "b", cache, label_column="score", intervals=settings).sequences["train"]

    def at(start: int, end: int) -> str:
        return bases[start + 50 : end + 50]

    assert sequences(window=20) == [at(-5, 15), other_strand(at(91, 111)), at(585, 605)]
    assert sequences(window=1) == [at(5, 6), other_strand(at(101, 102)), at(595, 596)]
    assert sequences(flank=3) == [at(-3, 13), other_strand(at(97, 106)), at(587, 603)]
    assert sequences()[1] == other_strand(at(100, 103))


def test_chromosomes_make_the_splits(tmp_path, genome, cache, caplog):
    path = bed(tmp_path / "x.bed", "c1 0 9 x 0\nc2 110 119 x 1\nc1 20 29 x 1\nc3 5 9 x 0\nc3 7 9 x 1")
    chromosomes = {"dev_chromosomes": ["c2"], "test_chromosomes": ["c3"]}
    settings = {"label_column": "score", "intervals": {"genome": str(genome), **chromosomes}}
    found = read(path, cache, **settings)
    assert found.examples.rows == {"train": 2, "dev": 1, "test": 2}
    assert "not independent" not in caplog.text


def test_what_splits_have_in_common_is_said(tmp_path, genome, cache):
    text = "c1 0 10 train 0\nc1 30 40 train 1\nc1 9 12 dev 0\nc1 40 45 dev 1\nc3 0 9 test 0"
    found = read(
        bed(tmp_path / "x.bed", "chrom start end split label\n" + text),
        cache,
        intervals={"genome": str(genome)},
    )
    (line,) = found.examples.remarks
    assert line.startswith(
        "splits are not independent: 1 of 2 windows of dev overlap windows of train; "
        "train and dev have 1 chromosomes in common (c1); whole chromosomes are"
    )


def test_a_packed_genome_is_the_same(tmp_path, genome, cache):
    path = bed(tmp_path / "x.bed", BEND)
    plain = read(path, cache, intervals={"genome": str(genome)})
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(genome.read_bytes()))
    assert read(path, cache, intervals={"genome": str(tmp_path / "g.fa.gz")}).sequences == plain.sequences


def test_another_genome_is_converted_anew(tmp_path, genome, cache):
    path = bed(tmp_path / "x.bed", BEND)
    first = read(path, cache, intervals={"genome": str(genome)})
    (tmp_path / "same.fa").write_bytes(genome.read_bytes())
    again = read(path, cache, intervals={"genome": str(tmp_path / "same.fa")})
    assert again.examples.folder == first.examples.folder
    write_fasta(
        tmp_path / "other.fa", {name: other_strand(bases) for name, bases in bases_of(genome).items()}
    )
    assert read(path, cache, intervals={"genome": str(tmp_path / "other.fa")}).sequences != first.sequences


# -- real intervals


def test_yeast_genes_begin_and_end_as_genes_do(shared, cache, caplog):
    home = shared / "data/yeast_chrI_ref"
    found = read(home / "orfs.bed", cache, intervals={"genome": str(home / "chrI.fa"), "negatives": 1})
    genes = [row[0] for split in found.labels for row in found.rows(split) if row[1] == 1]
    others = [row[0] for split in found.labels for row in found.rows(split) if row[1] == 0]
    assert len(genes) == 92 and {gene[:3] for gene in genes} == {"ATG"}
    assert {gene[-3:] for gene in genes} <= {"TAA", "TAG", "TGA"}
    assert {len(gene) for gene in others} <= {len(gene) for gene in genes}
    assert abs(np.mean([gc_share(one) for one in others]) - np.mean([gc_share(one) for one in genes])) < 0.02


def test_groups_of_overlapping_genes_stay_together(shared, cache):
    home = shared / "data/yeast_chrI_ref"
    found = read(
        home / "transcripts_tss.bed",
        cache,
        label_column="strand",
        class_names=["+", "-"],
        intervals={"genome": str(home / "chrI.fa")},
    )
    (remark,) = found.examples.remarks
    assert "chromosomes in common" in remark and "overlap windows" not in remark


def test_intervals_of_another_build_are_refused(shared, cache):
    home = shared / "data/tiny_fasta_bed_vcf"
    found = refused(
        home / "tangermeme_test.bed", cache, intervals={"genome": str(home / "q.fa"), "negatives": 1}
    )
    assert [m.where for m in found] == [f"{home / 'tangermeme_test.bed'}:1"]
    assert "(5 lines: 1, 2, 3, ..)" in found[0].rule
    assert found[0].value == "chr1" and "(there are q, ..)" in found[0].rule


# -- negatives


def drawn(tmp_path: Path, genome: Path, cache: Path, **settings) -> Read:
    path = bed(
        tmp_path / "x.bed",
        "c1 100 120 a 0 +\nc1 300 340 b 0 -\nc2 150 170 c 0 .\nc3 50 60 d 0 .\nc1 400 420 e 0 .",
    )
    chromosomes = {"dev_chromosomes": ["c2"], "test_chromosomes": ["c3"]}
    return read(path, cache, intervals={"genome": str(genome), "negatives": 3, **chromosomes, **settings})


def test_negatives_are_like_their_interval_and_off_all(tmp_path, genome, cache, caplog):
    caplog.set_level(logging.INFO)
    found, bases = drawn(tmp_path, genome, cache), bases_of(genome)
    assert found.labels == {"train": [1, 0, 0, 0] * 3, "dev": [1, 0, 0, 0], "test": [1, 0, 0, 0]}
    assert [len(s) for s in found.sequences["train"]] == [20] * 4 + [40] * 4 + [20] * 4
    taken = {"c1": [(100, 120), (300, 340), (400, 420)], "c2": [(150, 170)], "c3": [(50, 60)]}
    for split, chromosome in (("train", "c1"), ("dev", "c2"), ("test", "c3")):
        for sequence, label in found.rows(split):
            if label == 0:
                plus = sequence if sequence in bases[chromosome] else other_strand(sequence)
                start = bases[chromosome].index(plus)
                assert all(start + len(plus) <= a or b <= start for a, b in taken[chromosome])
                assert sequence.count("N") <= 0.1 * len(sequence)
    assert any(s not in bases["c1"] for s in found.sequences["train"][5:8]), "of a minus strand, too"
    assert "drew 15 windows off the intervals" in caplog.text


def test_a_line_may_lack_the_name_that_negatives_do_not_need(tmp_path, genome, cache):
    path = bed(tmp_path / "x.bed", "c1 10 20 peak\nc1 300 340\nc2 150 170 peak\nc3 50 60")
    chromosomes = {"dev_chromosomes": ["c2"], "test_chromosomes": ["c3"]}
    found = read(path, cache, intervals={"genome": str(genome), "negatives": 1, **chromosomes})
    assert found.labels == {"train": [1, 0, 1, 0], "dev": [1, 0], "test": [1, 0]}


def test_negatives_follow_their_seed(tmp_path, genome, cache):
    first, again, other = (drawn(tmp_path, genome, cache / str(k), seed=k // 2) for k in (0, 1, 2))
    assert first.sequences == again.sequences != other.sequences


def test_a_share_of_negatives_holds_on_average(tmp_path, genome, cache):
    assert drawn(tmp_path, genome, cache, negatives=0.6).labels["train"] == [1, 1, 0, 1]


def test_negatives_have_the_gc_share_of_their_interval(tmp_path, cache):
    rng = random.Random(1)
    rich, poor = ("".join(rng.choices("ACGT", weights=w, k=5000)) for w in ((1, 9, 9, 1), (9, 1, 1, 9)))
    write_fasta(tmp_path / "g.fa", {"c": rich + poor})
    starts = [*range(100, 4000, 400), *range(5100, 9000, 400)]
    path = bed(tmp_path / "x.bed", "\n".join(f"c {start} {start + 50}" for start in starts))
    found = read(
        path,
        cache,
        intervals={"genome": str(tmp_path / "g.fa"), "negatives": 1},
        dev_fraction=0.05,
        test_fraction=0.05,
    )
    shares = [gc_share(s) for split in found.labels for s, label in found.rows(split) if label == 0]
    assert len(shares) == 20 and sum(share > 0.7 for share in shares) == 10 == sum(
        share < 0.3 for share in shares
    )


def test_where_there_is_no_room_it_is_said(tmp_path, genome, cache, caplog):
    path = bed(tmp_path / "x.bed", "c1 0 10\nc1 50 60\nc2 0 300\nc3 0 290")
    chromosomes = {"dev_chromosomes": ["c2"], "test_chromosomes": ["c3"]}
    settings = {"intervals": {"genome": str(genome), "negatives": 1, **chromosomes}}
    found = read(path, cache, **settings)
    assert found.examples.rows == {"train": 4, "dev": 1, "test": 1}
    assert "2 windows found no place off the intervals" in caplog.text


# -- mistakes


@pytest.mark.parametrize(
    "line, says",
    [
        ("c1 10", "some are missing"),
        ("c1 20 10 x 0 +", "is no interval"),
        ("c1 10 10 x 0 +", "is no interval"),
        ("c1 -5 10 x 0 +", "is no interval"),
        ("c1 5 1e3 x 0 +", "is no interval"),
        (f"c1 5 {'9' * 5000} x 0 +", "is no interval"),
        ("c1 590 601 x 0 +", "ends beyond the 600 bases of c1"),
        ("chr1 1 2 x 0 +", "is not in"),
        ("c1 1 2 x 0 *", "is no strand"),
        ("c1 1 2 x", "some are missing"),
        ("c1 1 2 x 0.5 +", "not an integer"),
    ],
)
def test_mistake_in_a_line_is_named(tmp_path, genome, cache, line, says):
    path = bed(tmp_path / "x.bed", f"c1 0 9 x 0 +\nc1 3 9 x 1 +\n{line}\nc1 7 9 x 1 +")
    (mistake,) = refused(path, cache, label_column="score", intervals={"genome": str(genome)})
    assert mistake.where == f"{path}:3" and says in mistake.rule


def test_a_line_of_no_known_split_is_named(tmp_path, genome, cache):
    path = bed(tmp_path / "x.bed", BEND.replace("valid", "holdout"))
    (mistake,) = refused(path, cache, intervals={"genome": str(genome)})
    assert (mistake.where, mistake.value) == (f"{path}:4", "holdout")


@pytest.mark.parametrize(
    "settings, where, says",
    [
        (None, "data.intervals.genome", "is needed to read intervals"),
        ({"genome": "nowhere.fa"}, "data.intervals.genome", "No such file"),
        ({"dev_chromosomes": ["chr2"]}, "data.intervals.dev_chromosomes", "is not in"),
        ({}, "x.bed:1", "has no column 'label'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, genome, cache, settings, where, says):
    path = bed(tmp_path / "x.bed", "c1 0 9\nc1 3 9")
    if settings is not None:
        settings = {"intervals": {"genome": str(genome), **settings}}
    (mistake,) = refused(path, cache, **settings or {})
    assert mistake.where.endswith(where) and says in mistake.rule


def test_chromosomes_beside_files_of_splits_are_refused(tmp_path, genome, cache):
    (tmp_path / "b").mkdir()
    for split in ("train", "dev"):
        bed(tmp_path / "b" / f"{split}.bed", "c1 0 9")
    (mistake,) = refused(tmp_path / "b", cache, intervals={"genome": str(genome), "dev_chromosomes": ["c2"]})
    assert mistake.rule == "cannot be combined with one file per split"


# -- size


@pytest.mark.slow
def test_what_is_held_hardly_grows_with_the_number_of_intervals(tmp_path, cache):
    """Sequences are 500 bytes each; what is remembered of a row is 36 or so."""
    rng = np.random.default_rng(0)
    length, peaks = 22_100_000, {}
    bases = rng.choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()
    write_fasta(tmp_path / "g.fa", {"c": bases})
    for rows in (10_000, 40_000):
        path = tmp_path / f"{rows}.bed"
        places = [(550 * k, 550 * k + 500, k % 2) for k in range(rows)]
        path.write_text("".join(f"c\t{start}\t{end}\tx\t{label}\n" for start, end, label in places))
        peaks[rows] = peak_of(path, tmp_path / "g.fa", cache)
    assert peaks[40_000] - peaks[10_000] < 30_000 * 250


def peak_of(path: Path, genome: Path, cache: Path) -> int:
    """Most bytes that Python and numpy hold at once while a BED is converted."""
    settings = {"path": str(path), "label_column": "score", "intervals": {"genome": str(genome)}}
    config = DataConfig.model_validate(settings)
    tracemalloc.start()
    try:
        convert_once(config, path, kind="multiclass", cache=cache)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
