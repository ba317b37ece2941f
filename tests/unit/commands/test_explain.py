"""`lingo-ds explain`, against predictions of every changed sequence by the public API."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import lingo_ds
from lingo_ds.commands import explain as explain_module
from lingo_ds.commands.cli import main
from lingo_ds.data.dna import reverse_complement
from lingo_ds.evaluation.prediction_file import PredictionFile
from tests.unit.kinds_of_adapter import random_adapter

SEQUENCES = {"first": "ACGTTGCANTGC", "chr1:5-9": "TTGACCA", "third": "GGCUAT"}
SMALL_CHUNKS = "batch_tokens=8"
"""A setting under which a sequence's changes are several chunks."""


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return random_adapter(
        tmp_path_factory.mktemp("text"), classes=3, kind="multiclass", names=("a", "b", "c")
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    return random_adapter(tmp_path_factory.mktemp("bases"), tokens="nucleotides")


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "new.fa"
    path.write_text("".join(f">{name}\n{dna}\n" for name, dna in SEQUENCES.items()))
    return path


def explain(adapter: Path, source: Path, out: Path, *more: str) -> tuple[int, str]:
    """Exit status and what `lingo-ds explain` says, in this process."""
    shown = io.StringIO()
    files = ["--adapter", str(adapter), "--input", str(source), "--output", str(out)]
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        status = main(["explain", *files, *more])
    return status, shown.getvalue()


def log_odds(adapter: Path, sequences: list[str], place: int) -> np.ndarray:
    p = lingo_ds.load(adapter).predict(sequences).probabilities[:, place].astype(float)
    return np.log(p / (1 - p))


def brute_force(adapter: Path, place: int, *, both: bool) -> list[tuple]:
    """Every row of the table by predictions of whole sequences, one list for all."""
    rows, changed = [], []
    for number, (name, dna) in enumerate(SEQUENCES.items()):
        for position, own in enumerate(dna):
            for base in "ACGT":
                rows.append((name, number, position, own, base))
                same = base == own.replace("U", "T")
                mutant = dna if same else dna[:position] + base + dna[position + 1 :]
                changed += [dna, mutant]
    scores = log_odds(adapter, changed, place)
    if both:
        scores = (scores + log_odds(adapter, list(map(reverse_complement, changed)), place)) / 2
    effects = scores[1::2] - scores[::2]
    return [(*row, effect) for row, effect in zip(rows, effects, strict=True)]


@pytest.mark.parametrize("both", [False, True])
def test_effects_are_those_of_brute_force(text, fasta, tmp_path, both):
    options = ["--target", "b", "--pictures", "1", SMALL_CHUNKS, *(["--both-strands"] if both else [])]
    status, shown = explain(text, fasta, tmp_path / "out", *options)
    assert status == 0 and "log odds of class b" in shown, shown
    table = pq.read_table(tmp_path / "out/effects.parquet").to_pydict()
    expected = brute_force(text, 1, both=both)
    found = list(zip(*table.values(), strict=True))
    assert [row[:-1] for row in found] == [row[:-1] for row in expected]
    effects = np.array([row[-1] for row in expected])
    assert np.abs(effects).max() > 0.1
    assert np.allclose(table["effect"], effects, atol=2e-4)
    assert [path.name for path in (tmp_path / "out/pictures").iterdir()] == ["first.png"]
    assert "--pictures N draws more" in shown


def test_a_stopped_job_goes_on_and_gives_the_same_table(text, fasta, tmp_path, monkeypatch):
    options = ["--target", "a", "--pictures", "0", SMALL_CHUNKS]
    assert explain(text, fasta, tmp_path / "whole", *options)[0] == 0
    write_part = PredictionFile.write_part

    def stop_after_first(self, begin, *rest, **more):
        assert not begin, "killed"
        write_part(self, begin, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFile, "write_part", stop_after_first)
        with pytest.raises(AssertionError, match="killed"):
            explain(text, fasta, tmp_path / "out", *options)
    status, shown = explain(text, fasta, tmp_path / "out", *options)
    assert status == 0 and "resuming after 1 finished sequences" in shown, shown
    tables = [pq.read_table(tmp_path / name / "effects.parquet") for name in ("whole", "out")]
    assert tables[0].drop(["effect"]).equals(tables[1].drop(["effect"]))
    assert np.allclose(*(table["effect"].to_numpy() for table in tables), atol=1e-5)
    # the table is there: neither the backbone nor the input is computed again
    monkeypatch.setattr(explain_module, "build_predictor", lambda *_: pytest.fail("computed again"))
    assert explain(text, fasta, tmp_path / "out", "--target", "a", "--pictures", "2", SMALL_CHUNKS)[0] == 0
    assert sorted(p.name for p in (tmp_path / "out/pictures").iterdir()) == ["chr1_5-9.png", "first.png"]
    status, shown = explain(text, fasta, tmp_path / "out", "--target", "b", SMALL_CHUNKS)
    assert status == 2 and "of another adapter, input or options" in shown


def test_both_alleles_of_a_variant_are_explained(text, tmp_path):
    lines = ["chr1\t7\trs1\tA\tG,AC\n", "chr1\t3\t.\tT\t<DEL>\n", "chr1\t12\t.\tGC\tG\n"]
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"
    (tmp_path / "calls.vcf").write_text(head + "".join(lines))
    (tmp_path / "genome.fa").write_text(">chr1\nGGTTGCATTACGCAATGC\n")
    windows = {  # of 6 bases; the middle one of REF is the fourth
        "chr1:7:A": "TGCATT",
        "chr1:7:A>G": "TGCGTT",
        "chr1:7:A>AC": "TGCACT",
        "chr1:12:GC": "TACGCA",
        "chr1:12:GC>G": "TACGAA",
    }
    (tmp_path / "windows.fa").write_text("".join(f">{name}\n{dna}\n" for name, dna in windows.items()))
    options = ["--pictures", "0", "--target", "1", SMALL_CHUNKS]
    genome = ["--genome", str(tmp_path / "genome.fa"), "--window", "6"]
    status, shown = explain(text, tmp_path / "calls.vcf", tmp_path / "alleles", *genome, *options)
    assert status == 0 and "skipped: 1 with a symbolic allele" in shown, shown
    assert "log odds of class b" in shown, "the class of number 1"
    assert explain(text, tmp_path / "windows.fa", tmp_path / "windows", *options)[0] == 0
    tables = [pq.read_table(tmp_path / name / "effects.parquet") for name in ("alleles", "windows")]
    assert tables[0].drop(["effect"]).equals(tables[1].drop(["effect"]))
    effects = [table["effect"].to_numpy() for table in tables]
    assert np.abs(effects[1]).max() > 0.01 and np.allclose(*effects, atol=1e-5)
    limited = [*genome, *options, "--limit", "4"]
    assert explain(text, tmp_path / "calls.vcf", tmp_path / "first", *limited)[0] == 0
    first = pq.read_table(tmp_path / "first/effects.parquet")
    assert set(first["id"].to_pylist()) == set(list(windows)[:4])
    assert np.allclose(first["effect"], effects[0][: len(first)], atol=1e-5)


@pytest.mark.parametrize("both", [False, True])
def test_integrated_gradients_sum_to_the_difference(bases, fasta, tmp_path, both):
    options = ["--method", "integrated-gradients", "--pictures", "0", *(["--both-strands"] if both else [])]
    status, shown = explain(bases, fasta, tmp_path / "out", *options)
    assert status == 0 and "raise --steps" not in shown, shown
    table = pq.read_table(tmp_path / "out/attributions.parquet").to_pandas()
    sums = table.groupby("id", sort=False)["attribution"].sum()
    for name, dna in SEQUENCES.items():
        pairs = [[dna, "N" * len(dna)]] + ([[reverse_complement(dna), "N" * len(dna)]] if both else [])
        scores = [log_odds(bases, pair, 1) for pair in pairs]
        difference = np.mean([own - baseline for own, baseline in scores])
        assert sums[name] == pytest.approx(difference, rel=0.01, abs=1e-3)
        assert abs(difference) > 0.02
    at_n = table[(table["id"] == "first") & (table["reference"] == "N")]
    assert at_n["attribution"].tolist() == [0.0]


def test_requests_that_cannot_be_met_are_refused(text, bases, fasta, tmp_path, monkeypatch):
    def refused(adapter: Path, *more: str, source: Path = fasta) -> str:
        status, shown = explain(adapter, source, tmp_path / "out", *more)
        assert status == 2, shown
        return shown

    assert "--target: 'nothing': is needed: the adapter has 3 classes: name one of a, b, c" in refused(text)
    assert "--target: 'd': is none of the adapter's 3 classes" in refused(text, "--target", "d")
    gradients = ["--method", "integrated-gradients", "--target", "a"]
    assert "no gradient of a base: use saturation mutagenesis (--method ism)" in refused(text, *gradients)
    assert "cannot be read as MEME" in refused(bases, "--database", str(tmp_path / "none.meme"))
    monkeypatch.setitem(sys.modules, "logomaker", None)  # as where it is not installed
    assert "pip install 'lingo_ds[explain]'" in refused(bases)
