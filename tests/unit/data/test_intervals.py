"""Intervals to predict, against a genome that is written out, and the BED files that they come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingo_ds.data.readers.bed import WindowRule
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.readers.intervals import merge_intervals, overlap_groups
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.utils.errors import UserError


def everything(regions: Regions) -> list:
    return list(regions.chunks(most=1000, most_bases=10**9))


def named(genome: Genome, path, text: str, **how) -> dict[str, str]:
    """Sequences by their ids, of a BED file with this text."""
    path.write_text(text)
    (chunk,) = everything(Regions(path, genome=genome, **how))
    return dict(zip(chunk.ids, chunk.sequences, strict=True))


def test_intervals_are_read_on_their_strand(genome, tmp_path):
    rows = [
        "track name=x",
        "# words",
        "c1\t0\t4",
        "c1\t8\t12\tcgt\t0\t+",
        "c1\t0\t4\tminus\t0\t-",
        "c1 4 8 spaces 0 .",
        "",
        "c1\t16\t20\t.\t0\t-",
    ]
    (tmp_path / "r.bed").write_text("\n".join(rows))
    (chunk,) = everything(Regions(tmp_path / "r.bed", genome=genome))
    assert dict(zip(chunk.ids, chunk.sequences, strict=True)) == {
        "c1:0-4": "AACC",
        "cgt": "ACGT",
        "minus": "GGTT",
        "spaces": "GGTT",
        "c1:16-20": "CCAA",
    }


def test_a_window_lies_around_an_intervals_middle(genome, tmp_path):
    (tmp_path / "r.bed").write_text("c1\t8\t9\ta\nc1\t0\t2\tb\nc1\t8\t9\tc\t0\t-\n")
    (chunk,) = everything(Regions(tmp_path / "r.bed", genome=genome, windows=WindowRule(5)))
    assert chunk.sequences == ["TTACG", "NAACC", "CGTAA"]


def test_intervals_beyond_the_genome_are_counted_or_refused(genome, tmp_path):
    (tmp_path / "r.bed").write_text("c1\t0\t2\nc1\t18\t21\nc9\t0\t1\n")
    regions = Regions(tmp_path / "r.bed", genome=genome)
    assert [chunk.ids for chunk in everything(regions)] == [["c1:0-2"]]
    assert (
        str(regions.skipped) == "1 beyond the end of their contig, 1 on contigs that the genome lacks (c9: 1)"
    )
    with pytest.raises(UserError) as caught:
        everything(Regions(tmp_path / "r.bed", genome=genome, strict=True))
    assert [mistake.where[-2:] for mistake in caught.value.mistakes] == [":2", ":3"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("c1\t4\t8\t+\n", r"r.bed:1: '\+': is a strand in column 4, .* belongs into column 6: move it"),
        ("c1\t4\t8\tx\t-\n", "r.bed:1: '-': is a strand in column 5"),
        ("c1\t4\t8\tx\t-\t.\n", "r.bed:1: '-': is a strand in column 5"),
        ("c1\t4\t8\tx\nc1\t4", "r.bed:2: '2 of 4 columns': is a line without an end: the file was cut short"),
        ("c1\t4\t8\tx\t0\t+\nc1\t4\t8\tx", "r.bed:2: '4 of 6 columns': is a line without an end"),
        ("chrom\tstart\tend\tx\nc1\t4\t8", "r.bed:2: '3 of 4 columns': is a line without an end"),
        ("c1\t4\n", "r.bed:1: '2 fields': some are missing"),
        ("c1\t4\t4", "r.bed:1: '4 4': is no interval"),
        ("c1\t-1\t4", "r.bed:1: '-1 4': is no interval"),
        ("c1\t1\t4\tx\t0\tforward", "r.bed:1: 'forward': is no strand"),
    ],
)
def test_a_mistake_in_a_bed_is_named(genome, tmp_path, row, words):
    (tmp_path / "r.bed").write_text(row)
    with pytest.raises(UserError, match=words):
        everything(Regions(tmp_path / "r.bed", genome=genome))


def test_a_strand_in_its_column_or_a_named_one_is_right(genome, tmp_path):
    right = "c1\t0\t4\t+\t-\t-\nc1\t8\t12\t-\t+\t+\nc1\t8\t12\tx\n"
    assert named(genome, tmp_path / "r.bed", right) == {"+": "GGTT", "-": "ACGT", "x": "ACGT"}
    header = "chrom\tstart\tend\tstrand\tname\nc1\t0\t4\t-\ta\nc1\t8\t12\t.\tb"
    assert named(genome, tmp_path / "r.bed", header) == {"a": "GGTT", "b": "ACGT"}


SUMMITS = WindowRule(4, center="summit")


def test_a_window_lies_around_a_summit(genome, tmp_path):
    peaks = "c1\t3\t11\ta\t0\t.\t5\t3\t2\t1\nc1\t3\t11\tb\t0\t-\t5\t3\t2\t7\n"
    cut = {"a": "CCGG", "b": "ACGT"}
    assert named(genome, tmp_path / "r.narrowPeak", peaks, windows=SUMMITS) == cut
    header = "chrom\tstart\tend\tpeak\tname\tstrand\nc1\t3\t11\t1\ta\t.\nc1\t3\t11\t7\tb\t-\n"
    assert named(genome, tmp_path / "r.bed", header, windows=SUMMITS) == cut


@pytest.mark.parametrize(
    "text, words",
    [
        (
            "c1\t0\t4\ta\t0\t.\t5\t3\t2\t1\nc1\t0\t4\ta\t0\t.\t5\t3\t2\t-1\n",
            "r.bed:2: '-1': is no summit: column 10",
        ),
        ("c1\t0\t4\ta\t0\t.\t5\t3\t2\n", "r.bed:1: 'nothing': is no summit"),
        ("c1\t0\t4\ta\t0\t.\t5\t3\t2\t4\n", "r.bed:1: '4': is no summit"),
        ("chrom\tstart\tend\nc1\t0\t4\n", "r.bed:1: 'chrom start end': has no column 'summit'"),
    ],
)
def test_a_summit_that_is_none_is_named(genome, tmp_path, text, words):
    (tmp_path / "r.bed").write_text(text)
    with pytest.raises(UserError, match=words):
        everything(Regions(tmp_path / "r.bed", genome=genome, windows=SUMMITS))


HEADERS = {
    "R": "#Chr\tstart\tstop\tname\tS1\tstrand",
    "UCSC": "#chrom\tchromStart\tchromEnd\tname\tscore\tstrand",
    "BEND": "chromosome\tstart\tend\tname\tlabel\tstrand",
    "short": "chr\tstart\tstop\tname\tx\tstrand",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_is_no_interval(genome, tmp_path, header):
    text = f"# made by hand\n{header}\nc1\t0\t4\ta\t0\t-\nc1\t8\t12\t.\t0\t+\n"
    assert named(genome, tmp_path / "r.bed", text) == {"a": "GGTT", "c1:8-12": "ACGT"}


def test_a_header_names_columns_in_any_order(genome, tmp_path):
    text = "chrom\tsplit\tstrand\tend\tstart\tname\nc1\ttest\t-\t4\t0\ta\nc1\tany\t+\t12\t8\tb\n"
    assert named(genome, tmp_path / "r.bed", text) == {"a": "GGTT", "b": "ACGT"}


def test_without_a_column_strand_or_name_there_is_none(genome, tmp_path):
    text = "chrom\tstart\tend\tgene\tscore\tsign\nc1\t0\t4\ta\t0\t-\n"
    assert named(genome, tmp_path / "r.bed", text) == {"c1:0-4": "AACC"}


def test_a_comment_is_no_header(genome, tmp_path):
    text = "#chr and place of each\nc1\t0\t4\ta\t0\t-\n"
    assert named(genome, tmp_path / "r.bed", text) == {"a": "GGTT"}


@pytest.mark.parametrize(
    ("name", "columns"), [("r.narrowPeak", "5.1\t3\t2.5\t1"), ("r.broadPeak", "5.1\t3\t2.5")]
)
def test_peaks_are_read_as_intervals(genome, tmp_path, name, columns):
    text = f"c1\t0\t4\tpeak_1\t900\t.\t{columns}\nc1\t8\t12\tpeak_2\t30\t-\t{columns}\n"
    assert named(genome, tmp_path / name, text) == {"peak_1": "AACC", "peak_2": "ACGT"}
    assert named(genome, tmp_path / name, text, windows=WindowRule(2)) == {"peak_1": "AC", "peak_2": "CG"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chrom\tbegin\tend\nc1\t0\t4\n", "r.bed:1: 'chrom begin end': has no column 'start'"),
        ("#chrom\tbegin\tend\nc1\t0\t4\n", "r.bed:1: 'chrom begin end': has no column 'start'"),
        ("#chrom\tstart\tend\tstrand\nc1\t0\t4\n", "r.bed:2: '3 fields': some are missing"),
        ("chrom\tstart\tend\nc1\t0\t4\nchrom\tstart\tend\n", "r.bed:3: 'start end': is no interval"),
    ],
)
def test_a_mistake_below_or_in_a_header_is_named(genome, tmp_path, text, words):
    (tmp_path / "r.bed").write_text(text)
    with pytest.raises(UserError, match=words):
        everything(Regions(tmp_path / "r.bed", genome=genome))


def test_yeast_genes_begin_and_end_as_genes_do(shared, tmp_path):
    folder = shared / "data/yeast_chrI_ref"
    regions = Regions(folder / "orfs.bed", genome=Genome(folder / "chrI.fa", cache=tmp_path))
    genes = [one for chunk in everything(regions) for one in chunk.sequences]
    assert len(genes) == 92
    assert all(one.startswith("ATG") and one[-3:] in ("TAA", "TAG", "TGA") for one in genes)


# -- which intervals overlap


def test_merged_intervals_by_hand():
    starts, ends = merge_intervals(np.array([5, 0, 3, 20, 12]), np.array([9, 2, 6, 21, 20]))
    assert (starts.tolist(), ends.tolist()) == ([0, 3, 12], [2, 9, 21])


def test_groups_of_overlapping_intervals_by_hand():
    groups = overlap_groups(np.array([5, 0, 3, 20, 12, 8]), np.array([9, 3, 6, 21, 20, 10]))
    assert groups.tolist() == [1, 0, 1, 3, 2, 1], "3 to 6 and 8 to 10 meet in 5 to 9; who touch are apart"


intervals = st.lists(st.tuples(st.integers(-5, 40), st.integers(1, 9)), min_size=1, max_size=12)


@given(one=intervals, other=intervals)
def test_overlaps_are_those_of_a_loop_over_all_pairs(one, other):
    (starts, ends), (starts2, ends2) = (
        np.array([(start, start + width) for start, width in rows]).T for rows in (one, other)
    )
    expected = [
        any(a < d and c < b for a, b in zip(starts, ends, strict=True))
        for c, d in zip(starts2, ends2, strict=True)
    ]
    assert merge_intervals(starts, ends).overlap(starts2, ends2).tolist() == expected
