"""The genome reader: any stretch of a FASTA, through its index, plain or packed."""

import gzip
import random

import pytest
from Bio import bgzf

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


GENOMES = {
    "absent": (None, "No such file"),
    "empty": ("", "does not contain a valid sequence"),
    "no header": ("ACGT\n", "before the first sequence"),
    "ragged": (">a\nACGT\nAC\nACGT\n", "not consistent"),
    "a name twice": (">a\nAC\n>a\nAC\n", "Duplicate key"),
}


@pytest.mark.parametrize("what", GENOMES)
def test_a_file_that_is_no_genome_is_refused(tmp_path, what):
    text, words = GENOMES[what]
    if text is not None:
        (tmp_path / "g.fa").write_text(text)
    with pytest.raises(UserError, match=f"--genome: .*g.fa': cannot be read as a FASTA .*{words}"):
        Genome(tmp_path / "g.fa", cache=tmp_path)


def test_a_genome_packed_with_gzip_is_unpacked_into_the_cache_once(genome, tmp_path):
    packed = tmp_path / "g.fa.gz"
    packed.write_bytes(gzip.compress(genome.path.read_bytes()))
    for _ in range(2):
        assert Genome(packed, cache=tmp_path / "cache").fetch("c1", 3, 9) == genome.fetch("c1", 3, 9)
    (copy,) = (tmp_path / "cache").rglob("genome.fa")
    assert copy.read_bytes() == genome.path.read_bytes()
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"g.fa.gz.*cannot be read as a FASTA"):
        Genome(packed, cache=tmp_path / "other")


def test_letters_that_are_no_bases_are_named_where_they_are_read(tmp_path):
    genome = Genome(write_fasta(tmp_path / "g.fa", {"c": "ACGTXACGT"}), cache=tmp_path)
    assert genome.fetch("c", 5, 9) == "ACGT"
    with pytest.raises(UserError, match=r"g.fa, c:3-7: 'X': position 3 is no IUPAC"):
        genome.fetch("c", 2, 7)


def test_an_index_of_another_genome_is_noticed(tmp_path):
    path = write_fasta(tmp_path / "g.fa", {"c": "ACGT"})
    (tmp_path / "g.fa.fai").write_text("c\t400\t3\t60\t61\n")
    with pytest.raises(UserError, match="index beside the file is wrong"):
        Genome(path, cache=tmp_path).fetch("c", 0, 200)


@pytest.mark.parametrize(
    ("name", "other"), [("chr2", "2"), ("3", "chr3"), ("chrM", "MT"), ("MT", None), ("c1", None)]
)
def test_the_genomes_own_name_for_a_contig(tmp_path, name, other):
    contigs = {"2": "A", "chr3": "A", **({"MT": "A"} if other else {})}
    assert Genome(write_fasta(tmp_path / "g.fa", contigs), cache=tmp_path).other_name(name) == other
