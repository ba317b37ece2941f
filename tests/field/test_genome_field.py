"""Genomes, VCF and BED as people reported them of programs like this one, from ../shared/field."""

import logging
import shutil
from pathlib import Path

import pytest

from lingo_ds.data.readers.genome import Genome
from lingo_ds.utils.errors import UserError
from tests.unit.commands.test_predict import make_adapter, predict
from tests.unit.reading import read as read_training

FIELD = Path(__file__).parents[3] / "shared" / "field"
pytestmark = pytest.mark.skipif(
    not FIELD.is_dir(), reason="the inputs after reports (../shared/field) are not here"
)

GENOMES = FIELD / "genome"
NAMES = ["chr1", "chr2", "chrM", "HLA-DRB1*04:03:01"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), template=None)


def bases_of(path: Path) -> dict[str, str]:
    """Contigs of a plain FASTA as a reader of the whole file has them."""
    entries = [entry.split("\n", 1) for entry in path.read_text().split(">") if entry.strip()]
    return {header.split()[0]: "".join(lines.split()) for header, lines in entries}


def whole(genome: Genome) -> dict[str, str]:
    return {name: genome.fetch(name, 0, length) for name, length in genome.lengths.items()}


# -- genomes


@pytest.mark.parametrize("name", ["g.fa", "blank1.fa", "blank2.fa", "plain_named.fa.gz", "gz_named.fa"])
def test_a_genome_is_read_whatever_its_name_and_blank_lines_between_contigs(tmp_path, name):
    found = whole(Genome(GENOMES / name, cache=tmp_path))
    assert list(found) == NAMES and found == bases_of(GENOMES / "g.fa")


def test_an_index_of_an_earlier_genome_is_made_anew_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            genome = Genome(GENOMES / "stale2.fa", cache=tmp_path)
    assert whole(genome) == bases_of(GENOMES / "stale2.fa")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "stale2.fa.fai does not fit stale2.fa: contig 'chr1': the file does not have its header" in said


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "blank_inside.fa",
            r"blank_inside.fa:13: 'a blank line': stands inside of 'chr1', which goes on in line 14",
        ),
        ("dup.fa", r"dup.fa:97: 'chr2': is the name of the contig in line 52, too"),
        ("g.2bit", r"--genome: 'g.2bit': is a 2bit: convert it: twoBitToFa g.2bit g.fa"),
    ],
)
def test_what_is_wrong_with_a_genome_is_named(tmp_path, name, words):
    with pytest.raises(UserError, match=words) as caught:
        Genome(GENOMES / name, cache=tmp_path)
    assert len(caught.value.mistakes) == 1


# -- inputs of predict


def run(
    adapter: Path, source: Path, tmp_path: Path, *options: str, genome: str = "g.fa"
) -> tuple[int, str, str]:
    """Exit status, what is said, and the table that is written."""
    target = tmp_path / f"{source.name}.csv"
    status, shown = predict(adapter, source, target, "--genome", str(GENOMES / genome), *options)
    return status, shown, target.read_text() if target.exists() else ""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["good_bgzf.vcf.gz", "good.vcf.bgz"])
def test_a_packed_vcf_gives_what_the_plain_one_gives(adapter, tmp_path, name):
    status, shown, expected = run(adapter, FIELD / "vcf/good.vcf", tmp_path, "--window", "50")
    assert status == 0 and expected.count("\n") == 1 + (FIELD / "vcf/good.vcf").read_text().count("\nchr1"), (
        shown
    )
    assert run(adapter, FIELD / "vcf" / name, tmp_path, "--window", "50")[::2] == (0, expected)


@pytest.mark.parametrize("name", ["trunc_no_eof.vcf.gz", "trunc_infield.vcf.gz"])
def test_a_vcf_that_was_cut_short_is_refused(adapter, tmp_path, name):
    status, shown, table = run(adapter, FIELD / "vcf" / name, tmp_path, "--window", "50")
    assert (status, table) == (2, "") and f"{name}: '{name}': was cut short: it lacks the end block" in shown


@pytest.mark.parametrize(
    "name, words",
    [
        ("vcf/good.bcf", "'good.bcf': is a BCF: convert it: bcftools view"),
        ("bed/genes.gtf", "is a GTF or GFF: convert it: gtf2bed"),
    ],
)
def test_other_formats_are_named_with_the_way_out(adapter, tmp_path, name, words):
    status, shown = predict(adapter, FIELD / name, tmp_path / "out.csv")
    assert status == 2 and "error: --input: " in shown and words in shown and "--genome" not in shown


BEDS = {
    "good.bed": "p0",
    "track.bed": "p0",
    "ragged.bed": "p0",
    "header_plain.bed": "p0",
    "header_r.bed": "chr1:250-330",
    "peaks.narrowPeak": "p0",
}


@pytest.mark.parametrize("name", BEDS)
def test_every_way_of_writing_intervals_is_read(adapter, tmp_path, name):
    status, shown, table = run(adapter, FIELD / "bed" / name, tmp_path)
    assert status == 0 and table.splitlines()[1].startswith(f"{BEDS[name]},"), shown


def test_windows_lie_around_summits(adapter, tmp_path):
    """The peaks have their summit at base 10 and so on of 80, not in the middle."""
    source = FIELD / "bed/peaks.narrowPeak"
    moved = tmp_path / "moved.bed"
    rows = [line.split("\t") for line in source.read_text().splitlines()]
    places = [(row[0], int(row[1]) + int(row[9]), row[3]) for row in rows]
    moved.write_text("".join(f"{name}\t{at - 20}\t{at + 20}\t{peak}\n" for name, at, peak in places))
    options = ("--window", "40", "--center", "summit")
    status, shown, table = run(adapter, source, tmp_path, *options)
    assert status == 0 and table == run(adapter, moved, tmp_path)[2], shown
    assert table != run(adapter, source, tmp_path, "--window", "40", "--overwrite")[2]


@pytest.mark.parametrize("name", ["header_plain.bed", "header_r.bed", "peaks.narrowPeak"])
def test_the_same_intervals_train(tmp_path, name):
    shutil.copy(FIELD / "bed" / name, tmp_path / name)
    settings = {"genome": str(GENOMES / "g.fa"), "window": 40, "negatives": 1}
    if name.endswith("narrowPeak"):
        settings["center"] = "summit"
    found = read_training(tmp_path / name, tmp_path / "cache", intervals=settings)
    first = {"peaks.narrowPeak": 250 + 10 - 20}.get(name, 250 + 40 - 20)
    bases = bases_of(GENOMES / "g.fa")["chr1"]
    assert bases[first : first + 40] in [one for split in found.sequences.values() for one in split]
