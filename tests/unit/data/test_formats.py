"""The format of a file: what it begins with decides, then its name."""

import gzip
import re

import pytest

from lingo_ds.data.readers.formats import format_of, unread_mistake

FASTA, CSV = b">a\nACGT\n", b"sequence,label\nACGT,0\n"
VCF = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n"
GTF = b'#!genome-build X\nc1\thavana\tgene\t1\t9\t.\t+\t.\tgene_id "G0";\n'
KNOWN = {
    "FASTA": ("x.fa", FASTA, "fasta"),
    "FASTA with comments": ("x", b"\xef\xbb\xbf\n; one\n;two\n>a\nACGT\n", "fasta"),
    "FASTA called a table": ("x.csv", FASTA, "fasta"),
    "FASTA by its ending": ("x.mpfa", b"ACGT\n", "fasta"),
    "table": ("x.csv", CSV, "table"),
    "TSV": ("x.tsv.gz", CSV, "table"),
    "Parquet": ("x.data", b"PAR1\x15\x04", "table"),
    "JSON lines": ("x.json", b'{"sequence": "ACGT", "label": 0}\n', "table"),
    "BED": ("x.bed.gz", b"c1\t0\t9\n", "bed"),
    "narrowPeak": ("x.narrowPeak", b"c1\t0\t9\n", "bed"),
    "BED with a header": ("x.bed", b"#Chr\tstart\tend\n", "bed"),
    "VCF": ("x.vcf.bgz", VCF, "vcf"),
    "VCF called text": ("x.txt", VCF, "vcf"),
    "VCF by its columns": ("x", b"##source=me\n#CHROM\tPOS\tID\tREF\tALT\n", "vcf"),
    "VCF by its ending": ("x.vcf", b"c1\t3\t.\tA\tC\n", "vcf"),
    "empty": ("x.fasta", b"", "fasta"),
}


@pytest.mark.parametrize("what", KNOWN)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_is_read(tmp_path, what, pack):
    name, content, format = KNOWN[what]
    (tmp_path / name).write_bytes(pack(content))
    assert format_of(tmp_path / name) == format


UNREAD = {
    "unknown": ("x.txt", b"ACGT\n", "'.*x.txt': the ending is none of .csv, .*.vcf"),
    "BCF": (
        "x.vcf.gz",
        b"BCF\2\2",
        "'x.vcf.gz': is a BCF: convert it: bcftools view -O z -o x.vcf.gz x.vcf.gz",
    ),
    "BAM": ("x.bed", b"BAM\1", "is a BAM: convert it: samtools fasta"),
    "2bit": ("x.fa", bytes.fromhex("4327411a"), "is a 2bit: convert it: twoBitToFa"),
    "GTF": ("x.bed", GTF, "is a GTF or GFF: convert it: gtf2bed"),
    "FASTQ": ("x.fa", b"@r\nACGT\n+\nIIII\n", "is a FASTQ: convert it: seqtk"),
    "web page": ("x.csv", b"<!doctype html>", "is a web page, not data"),
    "pointer": ("x.vcf", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
}


@pytest.mark.parametrize("what", UNREAD)
def test_what_is_not_read_is_named(tmp_path, what):
    name, content, words = UNREAD[what]
    for pack in (bytes, gzip.compress):
        (tmp_path / name).write_bytes(pack(content))
        assert format_of(tmp_path / name) is None
        said = str(unread_mistake(tmp_path / name, where="--input"))
        assert said.startswith("--input: ") and re.search(words, said), said
