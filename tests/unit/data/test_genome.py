"""The genome reader: any stretch of a FASTA, through its index, plain or packed."""

import gzip
import logging
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from Bio import bgzf
from pyfaidx import Faidx

from lingo_ds.data.readers.genome import Genome
from lingo_ds.utils.errors import UserError
from tests.unit.genomes import C1, write_fasta


def test_any_order_of_places_gives_the_same_bases(tmp_path):
    draw = random.Random(1)
    bases = "".join(draw.choices("ACGTacgtN", k=200_000))
    path = write_fasta(tmp_path / "g.fa", {"a": "AC", "b": bases, "c": "GT"}, width=61)
    genome = Genome(path, cache=tmp_path)
    for _ in range(200):
        begin = draw.randrange(-50, 200_050)
        end = begin + draw.choice([1, 50, 5000, 70_000])
        padded = "N" * 100 + bases.upper() + "N" * 100_000
        assert genome.fetch("b", begin, end) == padded[100 + begin : 100 + end]
    assert genome.lengths == {"a": 2, "b": 200_000, "c": 2}


def test_a_genome_packed_with_bgzip_is_the_same(genome, tmp_path):
    with bgzf.open(str(tmp_path / "packed.fa.gz"), "wb") as file:
        file.write(genome.path.read_bytes())
    packed = Genome(tmp_path / "packed.fa.gz", cache=tmp_path)
    assert packed.lengths == genome.lengths
    for begin in range(-3, 22):
        assert packed.fetch("c1", begin, begin + 6) == genome.fetch("c1", begin, begin + 6)


def test_the_genomes_folder_stays_as_it_was(tmp_path):
    (tmp_path / "genome").mkdir()
    path = write_fasta(tmp_path / "genome" / "g.fa", {"c1": C1})
    (tmp_path / "genome").chmod(0o500)
    Genome(path, cache=tmp_path / "cache")
    assert [one.name for one in path.parent.iterdir()] == ["g.fa"]
    (tmp_path / "genome").chmod(0o700)


def test_a_genome_that_changed_is_indexed_anew(tmp_path):
    path = write_fasta(tmp_path / "g.fa", {"c1": C1})
    Genome(path, cache=tmp_path / "cache")
    write_fasta(path, {"other": "ACGTACGTACGT"}, width=5)
    again = Genome(path, cache=tmp_path / "cache")
    assert again.lengths == {"other": 12} and again.fetch("other", 3, 9) == "TACGTA"


REFUSED = {
    "absent": (None, r"--genome: '.*g.fa': cannot be read \(No such file"),
    "empty": ("", r"--genome: '.*g.fa': is empty"),
    "no header": ("ACGT\n", r"g.fa:1: 'ACGT': comes before the first header"),
    "text before the header": ("\n; a comment\nACGT\n>a\nAC\n", r"g.fa:3: 'ACGT': comes before the first"),
    "only comments": ("; a comment\n\n", r"g.fa: 'g.fa': has no header"),
    "a header without a name": (">a\nAC\n> \nAC\n", r"g.fa:3: '>': the header has no name"),
    "a name twice": (">a\nAC\n>b\nAC\n>a x\nAC\n", r"g.fa:5: 'a': is the name of the contig in line 1"),
    "a short line": (">a\nACGT\nAC\nACGT\n", r"g.fa:3: 'a line': is not as long as the first of 'a' \(4"),
    "a long line": (">a\nACGT\nACGTA\n", r"g.fa:3: 'a line': is not as long as the first of 'a'"),
    "another line end": (">a\nACGT\r\nACGT\nACGT\r\n", r"g.fa:3: 'a line': .* or ends otherwise"),
    "a blank line inside": (">a\nACGT\n\nACGT\n>b\nA\n", r"g.fa:3: 'a blank line': stands inside of 'a'"),
    "a blank line before the bases": (">a\n\nACGT\n", r"g.fa:2: 'a blank line': stands inside of 'a'"),
    "no line feeds": (">a\rACGT\r", r"g.fa:1: '>a': is followed by line ends of .r alone"),
    "no UTF-8": (b">a\xff\nACGT\n", r"g.fa:1: .*is not UTF-8"),
    "2bit": (bytes.fromhex("4327411a") + bytes(12), r"--genome: 'g.fa': is a 2bit: convert it: twoBitToFa"),
    "GFF": ("##gff-version 3\n", r"--genome: 'g.fa': is a GFF"),
    "FASTQ": ("@r\nACGT\n+\nIIII\n", r"--genome: 'g.fa': is a FASTQ"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\n", r"--genome: .*git lfs pull"),
    "a web page": ("<!DOCTYPE html>\n<html>", r"--genome: 'g.fa': is a web page"),
    "gzip cut short": (gzip.compress(b">a\nACGT\n" * 9)[:-12], r"g.fa:\d+: 'line': cannot be read further"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_no_genome_is_refused(tmp_path, what):
    content, words = REFUSED[what]
    if content is not None:
        (tmp_path / "g.fa").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=words) as caught:
        Genome(tmp_path / "g.fa", cache=tmp_path)
    assert len(caught.value.mistakes) == 1


def test_mistakes_in_a_packed_genome_name_their_line_too(tmp_path):
    for name, pack in (("g.fa", gzip.compress), ("g.fa.gz", as_bgzip)):
        (tmp_path / name).write_bytes(pack(b">a\nACGT\nAC\nACGT\n"))
        with pytest.raises(UserError, match=f"{name}:3: 'a line': is not as long"):
            Genome(tmp_path / name, cache=tmp_path / "cache")


@pytest.mark.parametrize("blank", ["\n", "\n\n\n", "  \n"])
def test_blank_lines_between_contigs_and_at_the_end_are_no_mistake(tmp_path, blank):
    path = tmp_path / "g.fa"
    path.write_text(f"{blank}>a\nACGT\nAC\n{blank}>b\nGGTT\nGGTT\n{blank}>empty\n{blank}>c\nTT\n{blank}")
    genome = Genome(path, cache=tmp_path)
    assert genome.lengths == {"a": 6, "b": 8, "empty": 0, "c": 2}
    assert genome.fetch("a", 2, 7) == "GTACN" and genome.fetch("b", 3, 8) == "TGGTT"
    assert genome.fetch("c", -1, 3) == "NTTN" and genome.fetch("empty", 0, 2) == "NN"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_a_byte_order_mark_are_no_bases(tmp_path, end, last):
    text = end.join([">a", "ACGT", "ACGT", ">b", "GG"]) + end * last
    (tmp_path / "g.fa").write_bytes(("\ufeff" + text).encode())
    genome = Genome(tmp_path / "g.fa", cache=tmp_path)
    assert genome.fetch("a", 2, 7) == "GTACG" and genome.fetch("b", 0, 2) == "GG"


def as_bgzip(content: bytes, *, block: int = 1 << 16) -> bytes:
    """The content in blocks of so many bytes, as biopython packs it."""
    with tempfile.NamedTemporaryFile() as file:
        with bgzf.BgzfWriter(file.name) as writer:
            for begin in range(0, len(content), block):
                writer.write(content[begin : begin + block])
                writer.flush()
        return Path(file.name).read_bytes()


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz", "g.fas", "genome", "g.fa.bgz", "g.zip"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, as_bgzip])
def test_what_a_genome_is_its_first_bytes_say(genome, tmp_path, name, pack):
    path = tmp_path / "other" / name
    path.parent.mkdir()
    path.write_bytes(pack(genome.path.read_bytes()))
    found = Genome(path, cache=tmp_path / "cache")
    assert found.lengths == genome.lengths and found.fetch("c1", 3, 9) == genome.fetch("c1", 3, 9)


def test_bgzip_without_its_end_is_refused(genome, tmp_path):
    path = tmp_path / "packed.fa"
    path.write_bytes(as_bgzip(genome.path.read_bytes(), block=20)[:-28])
    with pytest.raises(UserError, match=r"packed.fa: .*was cut short: it lacks the end block"):
        Genome(path, cache=tmp_path / "other")


def test_a_damaged_block_is_named_where_it_is_read(genome, tmp_path):
    path = tmp_path / "packed.fa.gz"
    path.write_bytes(as_bgzip(genome.path.read_bytes(), block=20))
    Genome(path, cache=tmp_path / "cache")  # indexed while it was whole
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(UserError, match=r"packed.fa.gz, c1:1-20: 'bases': cannot be read"):
        Genome(path, cache=tmp_path / "cache").fetch("c1", 0, 9)
    with pytest.raises(UserError, match=r"packed.fa.gz:\d+: 'line': cannot be read further"):
        Genome(path, cache=tmp_path / "new")


def test_a_home_folder_is_expanded(genome, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Genome(Path("~/g.fa"), cache=tmp_path / "cache").path == genome.path


def test_a_genome_packed_with_gzip_is_unpacked_into_the_cache_once(genome, tmp_path):
    packed = tmp_path / "g.fa.gz"
    packed.write_bytes(gzip.compress(genome.path.read_bytes()))
    for _ in range(2):
        assert Genome(packed, cache=tmp_path / "cache").fetch("c1", 3, 9) == genome.fetch("c1", 3, 9)
    (copy,) = (tmp_path / "cache").rglob("genome.fa")
    assert copy.read_bytes() == genome.path.read_bytes()
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"g.fa.gz:\d+: 'line': cannot be read further"):
        Genome(packed, cache=tmp_path / "other")


def test_letters_that_are_no_bases_are_named_where_they_are_read(tmp_path):
    genome = Genome(write_fasta(tmp_path / "g.fa", {"c": "ACGTXACGT"}), cache=tmp_path)
    assert genome.fetch("c", 5, 9) == "ACGT"
    with pytest.raises(UserError, match=r"g.fa, c:3-7: 'X': position 3 is no IUPAC"):
        genome.fetch("c", 2, 7)


# -- the index beside the file

WIDE = {"a": "ACGTACGTAC" * 3, "b": "GGGTTT" * 4, "c": "TTACA"}
RIGHT = "a\t30\t14\t7\t8\nb\t24\t63\t7\t8\nc\t5\t105\t5\t6\n"
MISFITS = {
    "another name": (RIGHT.replace("b\t", "x\t"), "contig 'x': the file does not have its header"),
    "another begin": (RIGHT.replace("\t63\t", "\t64\t"), "contig 'b': the file does not have its header"),
    "beyond the end": (RIGHT.replace("\t105\t", "\t9000\t"), "contig 'c': the file does not have its header"),
    "longer lines": (RIGHT.replace("30\t14\t7\t8", "30\t14\t8\t9"), "contig 'a': its lines do not have 8"),
    "other line ends": (RIGHT.replace("30\t14\t7\t8", "30\t14\t7\t9"), "contig 'a': its lines do not have 7"),
    "one long line": (RIGHT.replace("30\t14\t7\t8", "30\t14\t30\t31"), "contig 'a': it does not have 30"),
    "too long": (RIGHT.replace("b\t24", "b\t25"), "contig 'b': it does not have 25 bases"),
    "too short": (RIGHT.replace("b\t24", "b\t23"), "contig 'b': it goes on behind its 23 bases"),
    "a contig too few": (RIGHT[: RIGHT.index("c\t")], "it lacks the contig behind 'b'"),
    "the first contig too few": (RIGHT[RIGHT.index("b\t") :], "it lacks the first contig"),
    "a line twice": (RIGHT + RIGHT, "its line 4 has 'a' a second time"),
    "no numbers": ("a\tx\t14\t7\t8\n", "its line 1 is not name, length, offset"),
    "no length of lines": (RIGHT.replace("\t7\t8", "\t0\t0"), "its line 1 has no possible length"),
    "huge numbers": (f"a\t{'9' * 18}\t14\t{'9' * 17}\t{'9' * 18}\n", "contig 'a': its lines do not have"),
    "nothing": ("", "its line 1 is not name, length, offset"),
}


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("pack", [bytes, as_bgzip])
def test_an_index_that_does_not_fit_is_made_anew_once(tmp_path, caplog, what, pack):
    text, reason = MISFITS[what]
    path = write_fasta(tmp_path / "g.fa", WIDE)
    path.write_bytes(pack(path.read_bytes()))
    index = tmp_path / "g.fa.fai"
    index.write_text(text)
    for _ in range(2):
        genome = Genome(path, cache=tmp_path / "cache")
        assert {name: genome.fetch(name, 0, len(WIDE[name])) for name in genome.lengths} == WIDE
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith(f"index {index} does not fit g.fa: {reason}") and "made anew" in said
    assert index.read_text() == text, "nothing is written beside the genome"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [bytes, as_bgzip])
def test_an_index_that_fits_is_used(tmp_path, caplog, monkeypatch, pack, end):
    path = write_fasta(tmp_path / "g.fa", WIDE)
    path.write_bytes(path.read_bytes().replace(b"\n", end.encode()))
    shutil.copy(fitting(path), tmp_path / "kept.fai")
    path.write_bytes(pack(path.read_bytes()))
    shutil.copy(tmp_path / "kept.fai", tmp_path / "g.fa.fai")
    monkeypatch.setattr("lingo_ds.data.readers.genome.index_fasta", None)  # it would have to be read whole
    caplog.set_level(logging.INFO)
    genome = Genome(path, cache=tmp_path / "cache")
    assert {name: genome.fetch(name, 0, len(WIDE[name])) for name in genome.lengths} == WIDE
    assert not caplog.records


def fitting(path: Path) -> Path:
    """The index of a plain genome by pyfaidx."""
    Faidx(str(path)).close()
    return path.with_name(path.name + ".fai")


def test_an_index_that_is_older_than_its_genome_is_made_anew(tmp_path, caplog):
    path = write_fasta(tmp_path / "g.fa", WIDE)
    os.utime(fitting(path), ns=(0, 0))
    caplog.set_level(logging.INFO)
    assert Genome(path, cache=tmp_path / "cache").fetch("b", 2, 8) == "GTTTGG"
    assert "is older than its file: it is made anew" in caplog.text


def test_blocks_that_do_not_fit_are_found_anew(tmp_path, caplog):
    """The `.gzi` beside a genome packed with bgzip."""
    path = write_fasta(tmp_path / "g.fa", WIDE)
    plain = path.read_bytes()
    path.write_bytes(as_bgzip(plain, block=30))
    index = tmp_path / "g.fa.gzi"
    index.write_bytes((1).to_bytes(8, "little") + (40).to_bytes(8, "little") + (30).to_bytes(8, "little"))
    genome = Genome(path, cache=tmp_path / "cache")
    assert {name: genome.fetch(name, 0, len(WIDE[name])) for name in genome.lengths} == WIDE
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == f"index {index} does not fit g.fa: it has other blocks; it is made anew in the cache"


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = write_fasta(tmp_path / "g.fa", WIDE)
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(UserError, match=r"error: cache: .*cannot hold the genome's index .*LINGO_DS_CACHE"):
        Genome(path, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "other"), [("chr2", "2"), ("3", "chr3"), ("chrM", "MT"), ("MT", None), ("c1", None)]
)
def test_the_genomes_own_name_for_a_contig(tmp_path, name, other):
    contigs = {"2": "A", "chr3": "A", **({"MT": "A"} if other else {})}
    assert Genome(write_fasta(tmp_path / "g.fa", contigs), cache=tmp_path).other_name(name) == other
