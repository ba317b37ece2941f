"""`lingo-ds predict` on a VCF and a BED, against what the adapter says of windows written out by hand."""

import gzip
import re
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lingo_ds
from lingo_ds.export.adapter_folder import read_card
from tests.unit.commands.test_predict import (
    CLASSES,
    SMALL_CHUNKS,
    at_part,
    kill_in_the_middle,
    make_adapter,
    predict,
    read,
)
from tests.unit.genomes import C1, C2, write_fasta, write_vcf

VARIANTS = {
    "c1 9 rs1 A G": ("TTACG", "TTGCG"),
    "c1 9 rs1 A AT": ("TTACG", "TTATC"),
    "c1 19 . GG G": ("TTGGN", "TTGNN"),
    "c2 1 . A T": ("NNACG", "NNTCG"),
}
"""Of each variant its windows of 5 bases."""

COLUMNS = ["chrom", "pos", "id", "ref", "alt"]


def read_variants(path: Path) -> dict[str, list]:
    """Columns of an output."""
    if path.name.endswith(".parquet"):
        return pq.read_table(path).to_pydict()
    separator = "\t" if ".tsv" in path.name else ","
    table = pd.read_csv(path, sep=separator, dtype={"chrom": str, "id": str}, keep_default_na=False)
    return table.to_dict("list")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), template=None)


@pytest.fixture(scope="module")
def predictor(adapter):
    return lingo_ds.load(adapter)


def say_in_card(adapter: Path, **data: object) -> None:
    """Lets an adapter's card say more of its training data."""
    update = {"data": {"name": "toys", "fingerprint": "ab", "rows": {"train": 5}, **data}}
    (adapter / "task.json").write_text(read_card(adapter).model_copy(update=update).model_dump_json())


@pytest.fixture
def fasta(tmp_path) -> Path:
    return write_fasta(tmp_path / "g.fa", {"c1": C1, "c2": C2})


@pytest.fixture
def vcf(tmp_path) -> Path:
    return write_vcf(tmp_path / "v.vcf", "c1 9 rs1 A G,AT", "c1 19 . GG G,<DEL>", "c2 1 . A T")


@pytest.mark.parametrize("out", ["out.csv", "out.tsv.gz", "out.parquet"])
def test_variants_get_both_windows_probabilities_and_what_changed(
    adapter, predictor, fasta, vcf, tmp_path, out
):
    more = ("--genome", str(fasta), "--window", "5")
    status, shown = predict(adapter, vcf, tmp_path / out, *more)
    assert status == 0, shown
    assert "4 variants, " in shown and "skipped: 1 with a symbolic allele" in shown
    columns = read_variants(tmp_path / out)
    names = [f"probability_{c}_{of}" for c in range(CLASSES) for of in ("ref", "alt", "delta")]
    assert list(columns) == [*COLUMNS, "label_ref", "label_alt", *names]
    rows = zip(*(columns[name] for name in COLUMNS), strict=True)
    assert [" ".join(str(value) for value in row) for row in rows] == list(VARIANTS)
    for of, windows in zip(("ref", "alt"), zip(*VARIANTS.values(), strict=True), strict=True):
        labels, expected = predictor.predict(list(windows))
        found = np.array([columns[f"probability_{c}_{of}"] for c in range(CLASSES)]).T
        assert found == pytest.approx(expected, abs=1e-5)
        assert columns[f"label_{of}"] == labels.tolist()
    for c in range(CLASSES):
        ref, alt, delta = (np.array(columns[f"probability_{c}_{of}"]) for of in ("ref", "alt", "delta"))
        assert delta == pytest.approx(alt - ref, abs=1e-6)
        assert np.abs(delta).max() > 1e-3, "the oracle tells the alleles apart"


def test_columns_have_types(adapter, fasta, vcf, tmp_path):
    assert predict(adapter, vcf, tmp_path / "out.parquet", "--genome", str(fasta), "--window", "5")[0] == 0
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert schema.field("pos").type == pa.int64() and schema.field("label_alt").type == pa.int64()
    assert schema.field("probability_0_delta").type == pa.float32()


def test_the_window_is_as_long_as_the_training_sequences(adapter, fasta, vcf, tmp_path):
    """Where the adapter says how long they were."""
    status, shown = predict(adapter, vcf, tmp_path / "out.csv", "--genome", str(fasta))
    assert status == 2 and "error: --window: 'nothing': is needed: the adapter does not say" in shown
    known = make_adapter(tmp_path / "known", template=None)
    say_in_card(known, bases=5)
    status, shown = predict(known, vcf, tmp_path / "out.csv", "--genome", str(fasta))
    assert status == 0 and "windows of 5 bases of the forward strand" in shown, shown
    status, shown = predict(adapter, vcf, tmp_path / "same.csv", "--genome", str(fasta), "--window", "5")
    assert status == 0 and (tmp_path / "same.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_intervals_of_a_bed(adapter, predictor, fasta, tmp_path):
    (tmp_path / "r.bed").write_text("c1\t0\t8\tfirst\t0\t-\nc2\t2\t9\n")
    status, shown = predict(adapter, tmp_path / "r.bed", tmp_path / "out.csv", "--genome", str(fasta))
    assert status == 0, shown
    columns = read(tmp_path / "out.csv")
    assert columns["id"] == ["first", "c2:2-9"]
    expected = predictor.predict(["AACCGGTT", "GTRYNNA"]).probabilities
    found = np.array([columns[f"probability_{c}"] for c in range(CLASSES)]).T
    assert found == pytest.approx(expected, abs=1e-5)


def test_peaks_are_intervals(adapter, fasta, tmp_path):
    """Whatever their file is called, and with a header or without."""
    peaks = "c1\t0\t8\tfirst\t9\t-\t5.1\t3\t2.5\t1\n"
    (tmp_path / "r.narrowPeak").write_text(peaks)
    (tmp_path / "r.bed").write_text("chrom\tstrand\tstart\tend\tname\nc1\t-\t0\t8\tfirst\n")
    for name in ("r.narrowPeak", "r.bed"):
        options = ("--genome", str(fasta))
        status, shown = predict(adapter, tmp_path / name, tmp_path / f"{name}.csv", *options)
        assert status == 0, shown
    assert (tmp_path / "r.bed.csv").read_text() == (tmp_path / "r.narrowPeak.csv").read_text()
    assert read(tmp_path / "r.bed.csv")["id"] == ["first"]


RULES = {
    "as in training": (
        {"window": 6},
        [],
        "window=6",
        "as in training: 6 bases around each interval's middle",
    ),
    "its flanks": ({"flank": 2}, [], "flank=2", "as in training: each interval with 2 bases on both sides"),
    "nothing": ({}, [], "", "as in training: each whole interval"),
    "its summits": (
        {"window": 4, "center": "summit"},
        [],
        "window=4 center=summit",
        "each interval's summit",
    ),
    "another window": (
        {"flank": 2},
        ["--window", "6"],
        "window=6",
        "but in training it was: each interval with 2",
    ),
    "a flank instead": ({"window": 6}, ["--flank", "2"], "flank=2", "but in training it was: 6 bases around"),
    "no window": (
        {"window": 6},
        ["--flank", "0"],
        "",
        "each whole interval; but in training it was: 6 bases",
    ),
    "another centre": (
        {"window": 4},
        ["--center", "summit"],
        "window=4 center=summit",
        "but in training it was",
    ),
    "a smaller window": (
        {"window": 8, "center": "summit"},
        ["--window", "4"],
        "window=4 center=summit",
        "but in training it was: 8 bases around each interval's summit",
    ),
    "the same": ({"window": 6}, ["--window", "6"], "window=6", "as in training: 6 bases"),
    "unknown": (None, ["--window", "6"], "window=6", "of the genome is read: 6 bases"),
}
CUT = {
    "": ["CGGTTACG", "AACC"],
    "flank=2": ["ACCGGTTACGTA", "NNAACCGG"],
    "window=6": ["GGTTAC", "NAACCG"],
    "window=4": ["GTTA", "AACC"],
    "window=4 center=summit": ["CCGG", "NAAC"],
}
"""What each rule cuts out of c1 for the peaks 3 to 11 with its summit at 4, and 0 to 4 with its at 1."""


@pytest.mark.parametrize("what", RULES)
def test_intervals_are_cut_as_in_training_unless_options_say_otherwise(predictor, fasta, tmp_path, what):
    trained, options, rule, words = RULES[what]
    adapter = make_adapter(tmp_path / "known", template=None)
    if trained is not None:
        say_in_card(adapter, windows=trained)
    source, peak = tmp_path / "r.narrowPeak", "5.1\t3\t2.5"
    source.write_text(f"c1\t3\t11\ta\t0\t.\t{peak}\t1\nc1\t0\t4\tb\t0\t.\t{peak}\t1\n")
    status, shown = predict(adapter, source, tmp_path / "out.csv", "--genome", str(fasta), *options)
    assert status == 0 and words in " ".join(shown.split()), shown
    assert shown.count("in training it was") == ("but in training" in words), "one warning where they differ"
    columns = read(tmp_path / "out.csv")
    found = np.array([columns[f"probability_{c}"] for c in range(CLASSES)]).T
    assert found == pytest.approx(predictor.predict(CUT[rule]).probabilities, abs=1e-5)


@pytest.mark.parametrize("name", ["v.vcf.bgz", "variants", "v.txt", "v.bed"])
def test_a_vcf_may_have_any_name(adapter, fasta, vcf, tmp_path, name):
    (tmp_path / name).write_bytes(vcf.read_bytes())
    for source in (vcf.name, name):
        options = ("--genome", str(fasta), "--window", "5", "--overwrite")
        status, shown = predict(adapter, tmp_path / source, tmp_path / f"of_{source}.csv", *options)
        assert status == 0, shown
    assert (tmp_path / f"of_{name}.csv").read_bytes() == (tmp_path / "of_v.vcf.csv").read_bytes()


def test_a_home_folder_is_expanded(adapter, fasta, vcf, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ("--genome", "~/g.fa", "--window", "5")
    assert predict(adapter, Path("~/v.vcf"), Path("~/out.csv"), *options)[0] == 0
    assert (tmp_path / "out.csv").exists()


OPTIONS = {
    "what BCF is, before its genome": ("v.bcf", ["--window", "0"], "--input: 'v.bcf': is a BCF: convert it"),
    "no genome": ("v.vcf", [], "error: --genome: 'nothing': is needed for v.vcf, which is a VCF"),
    "absent genome": (
        "v.vcf",
        ["--genome", "absent.fa", "--window", "5"],
        "error: --genome: 'absent.fa': cannot be read",
    ),
    "no window": ("v.vcf", ["--genome", "g.fa", "--window", "0"], "error: --window: '0': must be 1 or more"),
    "genome for sequences": ("s.csv", ["--genome", "g.fa"], "error: --genome: 'g.fa': is for .vcf, .bed"),
    "window for sequences": ("s.csv", ["--window", "7"], "error: --window: '7': is for .vcf, .bed"),
    "strict for sequences": ("s.csv", ["--strict"], "error: --strict: 'True': is for .vcf, .bed"),
    "flank for sequences": ("s.csv", ["--flank", "0"], "error: --flank: '0': is for .vcf, .bed"),
    "centre for variants": (
        "v.vcf",
        ["--genome", "g.fa", "--center", "middle"],
        "--center: 'middle': is for interv",
    ),
    "no flank": ("r.bed", ["--genome", "g.fa", "--flank", "-1"], "error: --flank: '-1': must be 0 or more"),
    "both": (
        "r.bed",
        ["--genome", "g.fa", "--flank", "1", "--window", "3"],
        "--flank: '1': cannot be combined",
    ),
    "summit of what": (
        "r.bed",
        ["--genome", "g.fa", "--center", "summit"],
        "--center: 'summit': needs a window",
    ),
    "no summits": (
        "r.bed",
        ["--genome", "g.fa", "--center", "summit", "--window", "3"],
        "r.bed:1: 'nothing': is no summit: column 10",
    ),
    "strict": ("bad.vcf", ["--genome", "g.fa", "--window", "5", "--strict"], "bad.vcf:4: 'C': is REF, but"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_options_that_cannot_be_are_refused(adapter, fasta, vcf, tmp_path, monkeypatch, what):
    source, options, words = OPTIONS[what]
    write_vcf(tmp_path / "bad.vcf", "c1 9 . C G")
    (tmp_path / "r.bed").write_text("c1\t0\t4\n")
    (tmp_path / "s.csv").write_text("sequence\nACGT\n")
    (tmp_path / "v.bcf").write_bytes(gzip.compress(b"BCF\2\2"))
    monkeypatch.chdir(tmp_path)
    status, shown = predict(adapter, Path(source), Path("out.csv"), *options)
    assert status == 2 and words in shown, shown
    assert not Path("out.csv").exists()


def test_windows_longer_than_the_adapter_reads_are_told(adapter, fasta, vcf, tmp_path):
    more = ("--genome", str(fasta), "--window", "400")
    status, shown = predict(adapter, vcf, tmp_path / "out.csv", *more)
    assert status == 0 and "7 sequences were truncated" in shown and "give a smaller --window" in shown


# -- stopped and resumed


@pytest.fixture(scope="module")
def many(tmp_path_factory, adapter) -> tuple[Path, Path, dict[str, bytes], str]:
    """A genome, a VCF of three chunks with rows to skip, what is to come out of it, and what is skipped."""
    folder, draw = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    bases = "".join(draw.choice(list("ACGT"), 5000))
    fasta = write_fasta(folder / "g.fa", {"c": bases}, width=50)
    rows = []
    for place in range(1, 2000, 9):
        ref = bases[place - 1]
        others = [base for base in "ACGT" if base != ref]
        alleles = ["*", f"{others[0]},{others[1]}", f"{ref}TT", others[2]][place % 4]
        rows.append(f"c {place} . {others[1] if place % 5 == 0 else ref} {alleles}")
    vcf = write_vcf(folder / "v.vcf", *rows)
    for out in ("out.csv", "out.parquet"):
        options = ("--genome", str(fasta), "--window", "31", SMALL_CHUNKS)
        status, shown = predict(adapter, vcf, folder / out, *options)
        assert status == 0, shown
    whole = {out: (folder / out).read_bytes() for out in ("out.csv", "out.parquet")}
    return fasta, vcf, whole, skipped_in(shown)


def skipped_in(shown: str) -> str:
    """How many rows a log says were skipped, and for what."""
    (found,) = re.findall(r"skipped: (\d+ with.*)", shown)
    return found


@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
def test_a_stopped_job_resumes(adapter, many, tmp_path, out):
    fasta, vcf, whole, skipped = many
    options = ("--genome", str(fasta), "--window", "31", SMALL_CHUNKS)
    with at_part(2, lambda: signal.raise_signal(signal.SIGINT)) as first:
        status, shown = predict(adapter, vcf, tmp_path / out, *options)
    assert status == 1 and "variants; run the same command again to resume" in shown
    assert len(first) == 2 and not (tmp_path / out).exists()
    with at_part(0, lambda: None) as second:
        status, shown = predict(adapter, vcf, tmp_path / out, *options)
    assert status == 0 and "resuming after" in shown
    assert second[0] > first[-1], "nothing is computed twice"
    assert (tmp_path / out).read_bytes() == whole[out]
    assert skipped_in(shown) == skipped, "what was skipped before is counted, too"


def test_a_killed_job_resumes(adapter, many, tmp_path):
    fasta, vcf, whole, _ = many
    options = ("--genome", str(fasta), "--window", "31", SMALL_CHUNKS)
    kill_in_the_middle(adapter, vcf, tmp_path / "out.csv", *options)
    with at_part(0, lambda: None) as begun:
        assert predict(adapter, vcf, tmp_path / "out.csv", *options)[0] == 0
    assert begun[0] > 0
    assert (tmp_path / "out.csv").read_bytes() == whole["out.csv"]


@pytest.mark.parametrize("change", ["window", "genome"])
def test_parts_of_another_window_or_genome_are_not_used(adapter, many, tmp_path, change):
    fasta, vcf, whole, _ = many
    other, window = (fasta, "33") if change == "window" else (tmp_path / "g.fa", "31")
    (tmp_path / "g.fa").write_bytes(fasta.read_bytes())
    with at_part(2, lambda: signal.raise_signal(signal.SIGINT)):
        options = ("--genome", str(other), "--window", window, SMALL_CHUNKS)
        assert predict(adapter, vcf, tmp_path / "out.csv", *options)[0] == 1
    options = ("--genome", str(fasta), "--window", "31", SMALL_CHUNKS)
    status, shown = predict(adapter, vcf, tmp_path / "out.csv", *options)
    assert status == 0 and "starts from the beginning" in " ".join(shown.split())
    assert (tmp_path / "out.csv").read_bytes() == whole["out.csv"]
