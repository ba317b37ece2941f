"""Windows around variants and intervals, against a genome that is written out here."""

import gzip
import logging
import random
from pathlib import Path

import pytest
from Bio import bgzf

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.streams.intervals import Regions
from lingo_ds.data.streams.variants import Variants
from lingo_ds.utils.errors import UserError

C1 = "AACCGGTTACGTACGTTTGG"
"""Bases 1 to 20: 9 is the A before CGT, 13 the A after it."""
C2 = "acgtRYNNacgt"
HEAD = "##fileformat=VCFv4.2\n##contig=<ID=c1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def write_fasta(path: Path, contigs: dict[str, str], *, width: int = 7) -> Path:
    lines = []
    for name, bases in contigs.items():
        lines += [f">{name} some words", *(bases[k : k + width] for k in range(0, len(bases), width))]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_vcf(path: Path, *rows: str) -> Path:
    path.write_text(HEAD + "".join("\t".join(row.split()) + "\t.\t.\t.\n" for row in rows))
    return path


@pytest.fixture
def genome(tmp_path) -> Genome:
    return Genome(write_fasta(tmp_path / "g.fa", {"c1": C1, "c2": C2}), cache=tmp_path / "cache")


def everything(source: Variants | Regions, *, most: int = 1000, skip: int = 0) -> list:
    return list(source.chunks(most=most, most_bases=10**9, skip=skip))


def pairs(variants: Variants, **how) -> list[tuple[str, str, str]]:
    """(the variant, its window with REF, its window with ALT) of a whole file."""
    return [
        (" ".join(map(str, variant)), chunk.sequences[ref], chunk.sequences[alt])
        for chunk in everything(variants, **how)
        for variant, (ref, alt) in zip(chunk.variants, chunk.places, strict=True)
    ]


# -- windows

WINDOWS = {
    "SNV": (5, "c1 9 . A G", [("TTACG", "TTGCG")]),
    "SNV, even": (6, "c1 9 . A G", [("GTTACG", "GTTGCG")]),
    "one base alone": (1, "c1 9 . A G", [("A", "G")]),
    "MNV": (6, "c1 9 . AC GT", [("GTTACG", "GTTGTG")]),
    "insertion": (7, "c1 9 . A ATT", [("GTTACGT", "GTTATTC")]),
    "insertion up to the end": (5, "c1 9 . A ATT", [("TTACG", "TTATT")]),
    "deletion": (7, "c1 9 . ACGT A", [("TTACGTA", "TTAACGT")]),
    "begin of the contig": (5, "c1 1 . A C", [("NNAAC", "NNCAC")]),
    "end of the contig": (5, "c1 20 . G A", [("TGGNN", "TGANN")]),
    "deletion at the end": (5, "c1 19 . GG G", [("TTGGN", "TTGNN")]),
    "window beyond both ends": (24, "c2 6 . Y C", [
        ("NNNNNNNACGTRYNNACGTNNNNN", "NNNNNNNACGTRCNNACGTNNNNN")]),
    "several alleles": (5, "c1 9 . A G,AT,C", [("TTACG", "TTGCG"), ("TTACG", "TTATC"), ("TTACG", "TTCCG")]),
    "several lengths": (7, "c1 9 . ACGT A,ACGTT", [("TTACGTA", "TTAACGT"), ("TTACGTA", "TTACGTT")]),
    "lower case": (5, "c1 9 . a g", [("TTACG", "TTGCG")]),
}  # fmt: skip


@pytest.mark.parametrize("what", WINDOWS)
def test_windows_are_those_written_out(genome, tmp_path, what):
    window, row, expected = WINDOWS[what]
    variants = Variants(write_vcf(tmp_path / "v.vcf", row), genome=genome, window=window)
    found = pairs(variants)
    assert [(ref, alt) for _, ref, alt in found] == expected
    chrom, pos, name, ref, alleles = row.split()
    assert [variant for variant, _, _ in found] == [
        f"{chrom} {pos} {name} {ref} {alt}" for alt in alleles.split(",")
    ], "as the file has them"
    assert not variants.skipped.counts


def test_windows_are_cut_from_the_changed_chromosome(tmp_path):
    """The oracle changes a whole chromosome, and cuts afterwards."""
    draw = random.Random(0)
    bases = "".join(draw.choices("ACGT", k=500))
    genome = Genome(write_fasta(tmp_path / "g.fa", {"c": bases}, width=60), cache=tmp_path)
    rows, expected, window = [], [], 31
    for _ in range(300):
        begin, length = draw.randrange(500), draw.randint(1, 8)
        ref = bases[begin : begin + length]
        alt = "".join(draw.choices("ACGT", k=draw.randint(1, 8)))
        rows.append(f"c {begin + 1} . {ref} {alt}")
        start = 100 + begin + (len(ref) - 1) // 2 - window // 2
        cut = slice(start, start + window)
        changed = bases[:begin] + alt + bases[begin + len(ref) :]
        expected.append((f"{'N' * 100}{bases}{'N' * 100}"[cut], f"{'N' * 100}{changed}{'N' * 100}"[cut]))
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=window)
    assert [(ref, alt) for _, ref, alt in pairs(variants)] == expected


def test_rows_of_one_line_share_the_window_with_ref(genome, tmp_path):
    variants = Variants(write_vcf(tmp_path / "v.vcf", "c1 9 . A G,C", "c1 10 . C T"), genome=genome, window=5)
    (chunk,) = everything(variants)
    assert chunk.sequences == ["TTACG", "TTGCG", "TTCCG", "TACGT", "TATGT"]
    assert chunk.places == [(0, 1), (0, 2), (3, 4)]
    assert chunk.ids == ["c1:9"] * 3 + ["c1:10"] * 2


def test_chunks_and_skipping_give_the_same_rows(genome, tmp_path):
    rows = [f"c1 {k + 1} v{k} {base} {'T' if base != 'T' else 'G'},AA" for k, base in enumerate(C1)]
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5)
    whole = pairs(variants)
    assert len(whole) == 40
    assert pairs(variants, most=7) == whole
    begins = [chunk.begin for chunk in everything(variants, most=7)]
    assert begins == [0, 6, 12, 18, 24, 30, 36], "three windows a line, lines stay whole"
    assert pairs(variants, skip=12) == whole[12:]


# -- reading a VCF


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("v.vcf", lambda text: text.encode("utf-8-sig")),
        ("v.vcf", lambda text: text.replace("\n", "\r\n").encode()),
        ("v.vcf.gz", lambda text: gzip.compress(text.encode())),
        ("v.vcf.gz", lambda text: b"".join(gzip.compress(line) for line in text.encode().splitlines(True))),
        ("v.vcf", lambda text: text.rstrip("\n").encode()),
        ("v.vcf", lambda text: (text + "\n\n").encode()),
    ],
)
def test_a_vcf_may_be_written_in_other_ways(genome, tmp_path, name, change):
    plain = write_vcf(tmp_path / "plain.vcf", "c1 9 rs1 A G", "c1 10 . C T")
    (tmp_path / name).write_bytes(change(plain.read_text()))
    expected = [("c1 9 rs1 A G", "TTACG", "TTGCG"), ("c1 10 . C T", "TACGT", "TATGT")]
    assert pairs(Variants(tmp_path / name, genome=genome, window=5)) == expected


def test_only_the_first_five_columns_count(genome, tmp_path):
    head = HEAD.replace("\tQUAL\tFILTER\tINFO", "")
    (tmp_path / "v.vcf").write_text(f"{head}c1\t9\t.\tA\tG\n")
    assert len(pairs(Variants(tmp_path / "v.vcf", genome=genome, window=5))) == 1


MISTAKES = {
    "no header": ("c1\t9\t.\tA\tG\n", "v.vcf:1: .*is not the line #CHROM POS ID REF ALT"),
    "nothing": ("", "v.vcf:1: '': is not the line #CHROM"),
    "header with spaces": (HEAD.replace("\t", " "), "v.vcf:3: .*with tabs"),
    "spaces": (f"{HEAD}c1 9 . A G\n", "v.vcf:4: '1 columns': .*with tabs between"),
    "place": (f"{HEAD}c1\t9.5\t.\tA\tG\n", "v.vcf:4: '9.5': POS is no whole number"),
    "REF": (f"{HEAD}c1\t9\t.\t-\tG\n", "v.vcf:4: '-': REF is no sequence of bases"),
    "ALT": (f"{HEAD}c1\t9\t.\tA\tG,,C\n", "v.vcf:4: '': ALT is no sequence of bases"),
    "ALT of words": (f"{HEAD}c1\t9\t.\tA\tG\nc1\t9\t.\tA\tdel5\n", "v.vcf:5: 'del5': ALT is no"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_vcf_is_named(genome, tmp_path, what):
    text, words = MISTAKES[what]
    (tmp_path / "v.vcf").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        everything(Variants(tmp_path / "v.vcf", genome=genome, window=5))
    assert len(caught.value.mistakes) == 1


# -- what is left out


def test_alleles_that_are_no_sequence_are_left_out_and_counted(genome, tmp_path):
    rows = [
        "c1 9 . A *,G", "c1 9 . A <DEL>", "c1 9 . A <NON_REF>,C", "c1 9 . A A[c2:3[", "c1 9 . A ]c2:3]A",
        "c1 9 . A A.", "c1 9 . A .A", "c1 9 . A .", "c1 9 . A ATTTT", "c1 7 . TTACGT T",
    ]  # fmt: skip
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5, strict=True)
    assert [variant for variant, _, _ in pairs(variants)] == ["c1 9 . A G", "c1 9 . A C"]
    assert str(variants.skipped) == (
        "7 with a symbolic allele (*, <..>, a breakend), 1 without an alternative allele, "
        "2 longer than their window"
    )


WRONG = [
    "c1 9 . A G",
    "c1 10 . A G,T",
    "chr2 3 . G C",
    "chr2 4 . T C",
    "c9 1 . A C",
    "c1 20 . GG G",
    "c1 0 . A C",
]


def test_what_does_not_fit_the_genome_is_left_out_named_and_counted(genome, tmp_path, caplog):
    genome = Genome(write_fasta(tmp_path / "g.fa", {"c1": C1, "2": C2}), cache=tmp_path)
    variants = Variants(write_vcf(tmp_path / "v.vcf", *WRONG), genome=genome, window=5)
    with caplog.at_level(logging.WARNING):
        assert [variant for variant, _, _ in pairs(variants)] == ["c1 9 . A G"]
    assert str(variants.skipped) == (
        "2 with a REF that differs from the genome, "
        "3 on contigs that the genome lacks (chr2: 2, c9: 1), 2 beyond the end of their contig"
    )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 5, "each contig once"
    assert f"{tmp_path}/v.vcf:5: 'A': is REF, but the genome has 'C' at c1:10" in said[0]
    assert "v.vcf:6: 'chr2': is no contig of g.fa: it has '2': rename" in said[1]
    assert "v.vcf:8: 'c9': is no contig of g.fa: give the genome" in said[2]
    assert "v.vcf:9: '20': is beyond c1, which has 20 bases" in said[3]


def test_strict_refuses_what_does_not_fit_the_genome(genome, tmp_path):
    variants = Variants(write_vcf(tmp_path / "v.vcf", *WRONG), genome=genome, window=5, strict=True)
    with pytest.raises(UserError) as caught:
        everything(variants)
    lines = [mistake.where.rpartition(":")[2] for mistake in caught.value.mistakes]
    assert lines == ["5", "6", "8", "9", "10"], "a contig once"


def test_only_the_first_of_many_are_named(genome, tmp_path, caplog):
    rows = ["c1 9 . A G", *["c1 9 . C G"] * 1000]
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5)
    with caplog.at_level(logging.WARNING):
        assert len(pairs(variants)) == 1
    assert variants.skipped.counts.total() == 1000
    assert len(caplog.records) == 5


@pytest.mark.parametrize("rows", [["c7 9 . A G"], ["c1 9 . C G"], ["c1 9 . A <DEL>"]])
def test_a_file_of_which_nothing_is_left_is_refused(genome, tmp_path, rows):
    with pytest.raises(UserError, match=r"v.vcf: 'every row': was skipped: 1 "):
        everything(Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5))


def test_a_file_without_variants_is_none_of_them(genome, tmp_path):
    assert everything(Variants(write_vcf(tmp_path / "v.vcf"), genome=genome, window=5)) == []


@pytest.mark.parametrize(
    ("name", "other"), [("chr2", "2"), ("3", "chr3"), ("chrM", "MT"), ("MT", None), ("c1", None)]
)
def test_the_genomes_own_name_for_a_contig(tmp_path, name, other):
    contigs = {"2": "A", "chr3": "A", **({"MT": "A"} if other else {})}
    assert Genome(write_fasta(tmp_path / "g.fa", contigs), cache=tmp_path).other_name(name) == other


# -- intervals


def test_intervals_are_read_on_their_strand(genome, tmp_path):
    rows = ["track name=x", "# words", "c1\t0\t4", "c1\t8\t12\tcgt\t0\t+", "c1\t0\t4\tminus\t0\t-",
            "c1 4 8 spaces 0 .", "", "c1\t16\t20\t.\t0\t-"]  # fmt: skip
    (tmp_path / "r.bed").write_text("\n".join(rows))
    (chunk,) = everything(Regions(tmp_path / "r.bed", genome=genome))
    assert dict(zip(chunk.ids, chunk.sequences, strict=True)) == {
        "c1:0-4": "AACC", "cgt": "ACGT", "minus": "GGTT", "spaces": "GGTT", "c1:16-20": "CCAA",
    }  # fmt: skip


def test_a_window_lies_around_an_intervals_middle(genome, tmp_path):
    (tmp_path / "r.bed").write_text("c1\t8\t9\ta\nc1\t0\t2\tb\nc1\t8\t9\tc\t0\t-\n")
    (chunk,) = everything(Regions(tmp_path / "r.bed", genome=genome, window=5))
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
        ("c1\t4", "r.bed:1: '2 columns'"),
        ("c1\t4\t4", "r.bed:1: '4 4': the end"),
        ("c1\t-1\t4", "r.bed:1: '-1 4': begin and end are no whole numbers"),
        ("c1\t1\t4\tx\t0\tforward", "r.bed:1: 'forward': is no strand"),
    ],
)
def test_a_mistake_in_a_bed_is_named(genome, tmp_path, row, words):
    (tmp_path / "r.bed").write_text(row)
    with pytest.raises(UserError, match=words):
        everything(Regions(tmp_path / "r.bed", genome=genome))


@pytest.mark.parametrize("sequence", ["ACGT", "GAATTC", "RSY", "KWNWM", ""])
def test_palindromes_are_their_own_reverse_complement(sequence):
    assert reverse_complement(sequence) == sequence


def test_every_letter_has_its_complement():
    sets = {"A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT",
            "M": "AC", "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"}  # fmt: skip
    of = {"A": "T", "C": "G", "G": "C", "T": "A"}
    for letter, bases in sets.items():
        other = {of[base] for base in bases}
        assert set(sets[reverse_complement(letter)]) == other, letter
    assert reverse_complement("AACGU") == "ACGTT"


# -- the genome


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


# -- real files


@pytest.mark.parametrize("name", ["q.vcf", "q.giab.vcf"])
def test_every_ref_of_the_real_files_matches(shared, tmp_path, name):
    folder = shared / "data/tiny_fasta_bed_vcf"
    genome = Genome(folder / "q.fa", cache=tmp_path)
    variants = Variants(folder / name, genome=genome, window=100, strict=True)
    lines = [line for line in (folder / name).read_text().splitlines() if not line.startswith("#")]
    assert len(pairs(variants)) == len(lines) and not variants.skipped.counts
    for (variant, ref, alt), line in zip(pairs(variants), lines, strict=True):
        fields = line.split("\t")
        assert variant.split() == fields[:5] and len(ref) == len(alt) == 100
        begin = 50 - (len(fields[3]) - 1) // 2
        assert ref[begin:].startswith(fields[3]) and alt[begin:].startswith(fields[4])
        assert ref[:begin] == alt[:begin]


def test_a_vcf_of_another_genome_is_refused(shared, tmp_path):
    folder = shared / "data/tiny_fasta_bed_vcf"
    genome = Genome(folder / "tangermeme_test.fa", cache=tmp_path)
    with pytest.raises(UserError, match=r"every row': was skipped: 6 on contigs that the genome lacks \(20"):
        everything(Variants(folder / "tangermeme_test.vcf", genome=genome, window=20))


def test_yeast_genes_begin_and_end_as_genes_do(shared, tmp_path):
    folder = shared / "data/yeast_chrI_ref"
    regions = Regions(folder / "orfs.bed", genome=Genome(folder / "chrI.fa", cache=tmp_path))
    genes = [one for chunk in everything(regions) for one in chunk.sequences]
    assert len(genes) == 92
    assert all(one.startswith("ATG") and one[-3:] in ("TAA", "TAG", "TGA") for one in genes)
