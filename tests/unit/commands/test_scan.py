"""`lingo-ds scan`, against `predict` on a BED of the same tiles, and tracks read back by pyBigWig."""

import contextlib
import io
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyBigWig
import pytest

from lingo_ds.commands.cli import main
from lingo_ds.data.streams import tiles
from tests.unit.commands.test_predict import at_part, make_adapter, predict, read
from tests.unit.genomes import write_fasta

STEP, WINDOW = 20, 60
SMALL_CHUNKS = "batch_tokens=64"
"""A setting under which 34 windows are a chunk."""
DRAW = np.random.default_rng(3)
LONG = "".join(DRAW.choice(list("ACGT"), 1615))
GENOME = {
    "c1": LONG[:300] + "N" * 150 + LONG[300:],
    "short": LONG[:40],
    "c2": LONG[700:1105].lower(),
}
"""A run of N, a contig that is shorter than a window, and last tiles of 5 bases."""
LENGTHS = {name: len(bases) for name, bases in GENOME.items()}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), template=None)


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    return write_fasta(tmp_path_factory.mktemp("genome") / "g.fa", GENOME, width=60)


def scan(adapter: Path, genome: Path, output: Path, *more: str, target: str = "1") -> tuple[int, str]:
    """Exit status and what `lingo-ds scan` says, in this process."""
    shown = io.StringIO()
    words = ["--adapter", adapter, "--genome", genome, "--output", output, "--step", STEP]
    words += ["--window", WINDOW, "--target", target, *more]
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        status = main(["scan", *map(str, words)])
    return status, shown.getvalue()


def read_bed(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def values_of(path: Path) -> dict[tuple[str, int, int], float]:
    """Of a bedGraph, by tile."""
    return {(name, int(start), int(end)): float(v) for name, start, end, v in read_bed(path)}


def tiles_of(contig: str) -> list[tuple[str, int, int]]:
    length = LENGTHS[contig]
    return [(contig, k, min(k + STEP, length)) for k in range(0, length, STEP)]


def share_of_n(contig: str, start: int, end: int) -> float:
    begin = (start + end) // 2 - WINDOW // 2
    window = [GENOME[contig][k] if 0 <= k < LENGTHS[contig] else "N" for k in range(begin, begin + WINDOW)]
    return window.count("N") / WINDOW


@pytest.fixture(scope="module")
def predicted(adapter, genome, tmp_path_factory) -> dict[str, dict[tuple[str, int, int], float]]:
    """What `predict` says of every tile, as interval of a BED, on each strand."""
    folder, found = tmp_path_factory.mktemp("predicted"), {}
    every = [tile for contig in GENOME for tile in tiles_of(contig)]
    for strand in "+-":
        lines = ("\t".join([*map(str, tile), ".", "0", strand]) for tile in every)
        (folder / "tiles.bed").write_text("\n".join(lines) + "\n")
        out = folder / f"{strand}.csv"
        more = ("--genome", str(genome), "--window", str(WINDOW))
        assert predict(adapter, folder / "tiles.bed", out, *more)[0] == 0
        found[strand] = dict(zip(every, read(out)["probability_1"], strict=True))
    return found


@pytest.fixture(scope="module")
def whole(adapter, genome, tmp_path_factory) -> Path:
    """The bedGraph of the whole genome, in chunks."""
    out = tmp_path_factory.mktemp("whole") / "t.bedgraph"
    status, shown = scan(adapter, genome, out, SMALL_CHUNKS)
    assert status == 0, shown
    assert "probability of class 1 of windows of 60 bases" in shown and "2,210 bases, " in shown, shown
    assert "nothing is left of 1 contigs, e.g. short" in shown
    return out


def test_values_are_those_of_predict_and_gaps_are_where_n_is(whole, predicted):
    found = values_of(whole)
    kept = [tile for tile in predicted["+"] if share_of_n(*tile) <= 0.1]
    assert list(found) == kept, "in the order of the genome, and of nothing else"
    assert 0 < len(kept) < len(predicted["+"])
    assert (("c2", 400, 405) in predicted["+"]) and ("c1", 20, 40) in found
    assert list(found.values()) == pytest.approx([predicted["+"][tile] for tile in kept], abs=1e-6)
    assert np.ptp(list(found.values())) > 0.1, "the oracle tells tiles apart"


def test_every_window_counts_where_n_may_be_all_of_it(adapter, genome, predicted, tmp_path):
    """Also that of the last tile of 5 bases, and of a contig that is shorter than a window."""
    assert scan(adapter, genome, tmp_path / "t.bg", "--max-n", "1")[0] == 0
    assert values_of(tmp_path / "t.bg") == pytest.approx(predicted["+"], abs=1e-6)


def test_chunks_of_gaps_alone_are_passed_over(adapter, genome, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "MAX_TILES", 3)
    assert scan(adapter, genome, tmp_path / "t.bg", "--contig", "c1")[0] == 0
    found, expected = values_of(tmp_path / "t.bg"), values_of(whole)
    assert found == pytest.approx({tile: v for tile, v in expected.items() if tile[0] == "c1"}, abs=1e-6)
    assert max(b[1] - a[2] for a, b in pairwise(found)) > 2 * 3 * STEP, "some chunk had nothing"


def test_two_kilobases_of_yeast(adapter, shared, tmp_path):
    """A real genome with an index beside it: its first windows lie beyond the end, and all others count."""
    chromosome = shared / "data/yeast_chrI_ref/chrI.fa"
    (tmp_path / "r.bed").write_text("chrI\t0\t2000\n")
    assert scan(adapter, chromosome, tmp_path / "t.bw", "--regions", tmp_path / "r.bed")[0] == 0
    with pyBigWig.open(str(tmp_path / "t.bw")) as track:
        assert track.chroms() == {"chrI": 230218}
        starts = [start for start, _, _ in track.intervals("chrI")]
        assert starts == list(range(STEP, 2000, STEP))
        value = track.values("chrI", 1000, 1001)[0]
    (tmp_path / "one.bed").write_text("chrI\t1000\t1020\n")
    more = ("--genome", str(chromosome), "--window", str(WINDOW))
    assert predict(adapter, tmp_path / "one.bed", tmp_path / "one.csv", *more)[0] == 0
    assert read(tmp_path / "one.csv")["probability_1"] == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize("strand", ["reverse", "max", "mean"])
def test_strands(adapter, genome, predicted, tmp_path, strand):
    status, shown = scan(
        adapter, genome, tmp_path / "t.bed", "--strand", strand, "--contig", "c2", SMALL_CHUNKS
    )
    assert status == 0, shown
    rows = read_bed(tmp_path / "t.bed")
    assert rows
    for contig, start, end, _, score, sign, value in rows:
        both = [predicted[one][contig, int(start), int(end)] for one in "+-"]
        expected = {"reverse": both[1], "max": max(both), "mean": sum(both) / 2}[strand]
        assert float(value) == pytest.approx(expected, abs=1e-6)
        assert int(score) == round(1000 * float(value))
        assert sign == {"reverse": "-", "mean": ".", "max": "+-"[both[1] > both[0]]}[strand]
    if strand == "max":
        assert {row[5] for row in rows} == {"+", "-"}


def test_a_bigwig_holds_what_the_bedgraph_does(adapter, genome, whole, tmp_path):
    assert scan(adapter, genome, tmp_path / "t.bw")[0] == 0
    with pyBigWig.open(str(tmp_path / "t.bw")) as track:
        assert track.chroms() == LENGTHS
        found = {
            (contig, start, end): value
            for contig in track.chroms()
            for start, end, value in track.intervals(contig) or ()
        }
    expected = {tile: np.float32(value) for tile, value in values_of(whole).items()}
    assert found == pytest.approx(expected, abs=1e-6)


def test_regions_are_scanned_on_the_tiles_of_their_contig(adapter, genome, whole, tmp_path):
    """Those that overlap, or come in another order, are scanned once."""
    (tmp_path / "r.bed").write_text("c2\t105\t125\nc1\t55\t61\nc2\t100\t118\nc1\t81\t90\n")
    assert scan(adapter, genome, tmp_path / "t.bdg", "--regions", tmp_path / "r.bed")[0] == 0
    overlapping = [("c1", 40, 60), ("c1", 60, 80), ("c1", 80, 100), ("c2", 100, 120), ("c2", 120, 140)]
    found, expected = values_of(tmp_path / "t.bdg"), values_of(whole)
    assert list(found) == overlapping
    assert found == pytest.approx({tile: expected[tile] for tile in overlapping}, abs=1e-6)


def test_peaks_are_runs_above_the_threshold(adapter, genome, whole, tmp_path):
    """Across the ends of chunks, too, and never across a gap."""
    values = values_of(whole)
    threshold = float(np.median(list(values.values())))
    more = ("--peaks", tmp_path / "p.narrowPeak", "--threshold", threshold, SMALL_CHUNKS)
    status, shown = scan(adapter, genome, tmp_path / "t.bg", *more)
    assert status == 0, shown
    expected: list[list] = []
    for (contig, start, end), value in values.items():
        if value <= threshold:
            continue
        if expected and expected[-1][0] == contig and expected[-1][2] == start:
            expected[-1][2] = end
            expected[-1][3].append((value, (start + end) // 2))
        else:
            expected.append([contig, start, end, [(value, (start + end) // 2)]])
    assert f"{len(expected)} peaks with a probability of class 1 above" in shown
    rows = read_bed(tmp_path / "p.narrowPeak")
    assert len(rows) == len(expected) and max(len(peak[3]) for peak in expected) > 2
    for number, (row, (contig, start, end, tops)) in enumerate(zip(rows, expected, strict=True), 1):
        value, middle = max(tops, key=lambda top: top[0])
        assert row[:6] == [contig, str(start), str(end), f"peak_{number}", str(round(1000 * value)), "+"]
        assert float(row[6]) == pytest.approx(value, abs=1e-6)
        assert row[7:] == ["-1", "-1", str(middle - start)]


@pytest.mark.parametrize("name", ["t.bw", "t.bedgraph.gz"])
def test_a_killed_scan_resumes_to_the_same_bytes(adapter, genome, tmp_path, name):
    assert scan(adapter, genome, tmp_path / f"whole.{name}", SMALL_CHUNKS)[0] == 0
    child = os.fork()
    if not child:  # this process has imported the libraries already
        with at_part(2, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            scan(adapter, genome, tmp_path / name, SMALL_CHUNKS)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not (tmp_path / name).exists()
    with at_part(0, lambda: None) as begun:
        status, shown = scan(adapter, genome, tmp_path / name, SMALL_CHUNKS)
    assert status == 0 and "resuming after" in shown and "finished bases" in shown, shown
    assert begun and begun[0] > 0, "nothing is computed twice"
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"whole.{name}"])


MISTAKES = {
    "unknown contig": (
        ("--contig", "chr1"),
        "--contig: 'chr1': is no contig of g.fa: give one of its contigs, ",
    ),
    "near names": (("--contig", "shor"), "e.g. short (it has 3 contigs)"),
    "both": (("--contig", "c1", "--regions", "r.bed"), "--regions: 'r.bed': cannot be combined with"),
    "no step": (("--step", "0"), "--step: '0': must be 1 or more"),
    "no share": (("--max-n", "7"), "--max-n: '7.0': is no share"),
    "no such output": (
        ("--target", "TATA"),
        "--target: 'TATA': is none of the adapter's 3 classes: name one",
    ),
    "no peaks": (("--threshold", "0.5"), "--threshold: '0.5': has no effect without --peaks"),
    "nothing left": (("--contig", "short"), "without more than 10% N"),
    "another ending": (("--output", "t.wig"), "the ending is none of .bw, .bigwig, .bedgraph"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(adapter, genome, tmp_path, what):
    more, words = MISTAKES[what]
    status, shown = scan(adapter, genome, tmp_path / "t.bedgraph", *more)
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert status == 2 and words in line, shown
    assert not (tmp_path / "t.bedgraph").exists()


def test_regions_off_the_genome_are_named_by_line(adapter, genome, tmp_path):
    (tmp_path / "r.bed").write_text("c1\t0\t10\nc9\t0\t10\nc2\t0\t9999\n")
    status, shown = scan(adapter, genome, tmp_path / "t.bg", "--regions", tmp_path / "r.bed")
    assert status == 2 and "r.bed:2: 'c9': is no contig of g.fa" in shown
    assert "r.bed:3: '9999': is beyond c2, which has 405 bases" in shown


def test_without_pybigwig_the_extra_and_the_way_without_are_named(adapter, genome, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    status, shown = scan(adapter, genome, tmp_path / "t.bw")
    assert status == 2 and "error: --output: 'pyBigWig': needs pyBigWig" in shown
    assert "pip install 'lingo_ds[explain]', or write a .bedgraph" in shown
    assert scan(adapter, genome, tmp_path / "t.bedgraph", "--contig", "c2")[0] == 0
