"""Windows around variants, against a genome that is written out."""

import gzip
import logging
import random

import pytest

from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.streams.variants import Variants
from lingo_ds.utils.errors import UserError
from tests.unit.genomes import C1, C2, HEAD, write_fasta, write_vcf


def everything(source: Variants, *, most: int = 1000, skip: int = 0) -> list:
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
    "window beyond both ends": (24, "c2 6 . C T", [("NNNNNNNACGTRCNNACGTNNNNN", "NNNNNNNACGTRTNNACGTNNNNN")]),
    "codes of several bases": (6, "c2 4 . TAC A", [("CGTACN", "CGANNA")]),
    "several alleles": (5, "c1 9 . A G,AT,C", [("TTACG", "TTGCG"), ("TTACG", "TTATC"), ("TTACG", "TTCCG")]),
    "several lengths": (7, "c1 9 . ACGT A,ACGTT", [("TTACGTA", "TTAACGT"), ("TTACGTA", "TTACGTT")]),
    "lower case": (5, "c1 9 . a g", [("TTACG", "TTGCG")]),
}


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
    "header with spaces": (HEAD.replace("\t", " "), "v.vcf:3: .*replace them by tabs"),
    "spaces": (f"{HEAD}c1 9 . A G\n", "v.vcf:4: '1 columns': .*with tabs between"),
    "place": (f"{HEAD}c1\t9.5\t.\tA\tG\n", "v.vcf:4: '9.5': POS is no whole number"),
    "REF": (f"{HEAD}c1\t9\t.\t-\tG\n", "v.vcf:4: '-': REF is no sequence of bases"),
    "ALT": (f"{HEAD}c1\t9\t.\tA\tG,-,C\n", "v.vcf:4: '-': ALT is no sequence of bases"),
    "a last line cut short": (
        f"{HEAD}c1\t9\t.\tA\tG\n" + "c1\t10\t.\tC\tTTT\t.",
        "v.vcf:5: '6 of 8 columns'.*cut short",
    ),
    "a last line cut in its alleles": (f"{HEAD}c1\t10\t.\tC\tT", "v.vcf:4: '5 of 8 columns': .*cut short"),
    "ALT of words": (f"{HEAD}c1\t9\t.\tA\tG\nc1\t9\t.\tA\tdel5\n", "v.vcf:5: 'del5': ALT is no"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_a_vcf_is_named(genome, tmp_path, what):
    text, words = MISTAKES[what]
    (tmp_path / "v.vcf").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        everything(Variants(tmp_path / "v.vcf", genome=genome, window=5))
    assert len(caught.value.mistakes) == 1


# -- what is left out


def test_alleles_that_are_no_definite_sequence_are_left_out_named_and_counted(genome, tmp_path, caplog):
    rows = [
        "c1 9 . A *,G",
        "c1 9 . A <DEL>",
        "c1 9 . A <NON_REF>,C",
        "c1 9 . A A[c2:3[",
        "c1 9 . A ]c2:3]A",
        "c1 9 . A A.",
        "c1 9 . A .A",
        "c1 9 . A .",
        "c1 9 . . A",
        "c1 9 . A T,,C",
        "c1 9 . A N",
        "c1 9 . A cRc,T",
        "c1 9 . aN A,C",
        "c2 7 . N A",
        "c1 9 . <X> A",
        "c1 9 . A ATTTT",
        "c1 7 . TTACGT T",
    ]
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5, strict=True)
    assert [variant.split()[-1] for variant, _, _ in pairs(variants)] == ["G", "C", "T", "C", "T"]
    assert str(variants.skipped) == (
        "8 with a symbolic allele (*, <..>, a breakend), 3 with a missing allele (. or none), "
        "5 with an allele of other letters than A, C, G and T, 2 longer than their window"
    )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 5 + 3 + 5 + 2, "the first five of each reason"
    assert f"skipped: {tmp_path}/v.vcf:14: 'A>N': is among the variants with an allele of other" in "\n".join(
        said
    )


@pytest.mark.parametrize("code, base", zip("RYMKSWBDHVacgt", "ACAGCACAAAACGT", strict=True))
def test_codes_of_the_genome_are_compared_by_their_first_base(tmp_path, code, base):
    genome = Genome(write_fasta(tmp_path / "g.fa", {"c": f"TT{code}GG"}), cache=tmp_path)
    rows = [f"c 3 . {ref} {'A' if ref != 'A' else 'C'}" for ref in "ACGT"]
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5)
    alt = "C" if base == "A" else "A"
    assert pairs(variants) == [(f"c 3 . {base} {alt}", f"TT{base}GG", f"TT{alt}GG")]
    assert str(variants.skipped) == "3 with a REF that differs from the genome"


def test_an_unknown_base_of_the_genome_is_no_ref(tmp_path):
    genome = Genome(write_fasta(tmp_path / "g.fa", {"c": "TTNGG"}), cache=tmp_path)
    rows = ["c 4 . G C", *(f"c 3 . {ref} {ref}T" for ref in "ACGT")]
    variants = Variants(write_vcf(tmp_path / "v.vcf", *rows), genome=genome, window=5)
    assert len(pairs(variants)) == 1 and variants.skipped.counts.total() == 4


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
    assert lines == ["5", "6", "9"], "a contig once"
    assert "(2 lines: 6, 8)" in caught.value.mistakes[1].rule


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
