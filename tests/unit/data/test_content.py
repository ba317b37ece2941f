"""Files judged by their first bytes: what is read under any name, and what is not is named for what it is."""

import gzip
from pathlib import Path

import pytest
from Bio import bgzf

from lingo_ds.data.readers.content import BGZIP_END
from lingo_ds.data.readers.lines import lines_of
from lingo_ds.utils.errors import Mistake, UserError

TEXT = "".join(f"line {number}\n" for number in range(20_000))


def refused(path: Path) -> Mistake:
    with pytest.raises(UserError) as caught:
        list(lines_of(path))
    (mistake,) = caught.value.mistakes
    assert mistake.where.startswith(str(path))
    return mistake


def as_bgzip(path: Path, text: str = TEXT) -> Path:
    with bgzf.BgzfWriter(str(path), "wb") as out:
        out.write(text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.bgz", "a"])
def test_packing_is_what_the_bytes_say(tmp_path, name):
    path = tmp_path / name
    for content in (TEXT.encode(), gzip.compress(TEXT.encode()), as_bgzip(tmp_path / "b").read_bytes()):
        path.write_bytes(content)
        assert "".join(lines_of(path)) == TEXT


def test_bgzip_that_was_cut_between_two_blocks_is_refused(tmp_path):
    """Each of its blocks is whole, so that it would read as a shorter file."""
    path = as_bgzip(tmp_path / "a.vcf.gz")
    whole = path.read_bytes()
    assert whole.endswith(BGZIP_END)
    path.write_bytes(whole.removesuffix(BGZIP_END))
    assert gzip.decompress(path.read_bytes()) == TEXT.encode(), "a gzip reader sees nothing wrong"
    assert "lacks the end block that bgzip writes" in refused(path).rule


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_gzip_that_was_cut_is_refused_at_the_line_where_it_ends(tmp_path, share):
    path, packed = tmp_path / "a.csv.gz", gzip.compress(TEXT.encode())
    path.write_bytes(packed[: int(len(packed) * share)])
    assert "cannot be read further" in refused(path).rule


FOREIGN = {
    "BCF": (b"BCF\2\2" + bytes(40), "is a BCF"),
    "packed BCF": (gzip.compress(b"BCF\2\2" + bytes(40)), "is a BCF"),
    "BAM": (gzip.compress(b"BAM\1" + bytes(40)), "is a BAM"),
    "2bit": (b"\x43\x27\x41\x1a" + bytes(40), "is a 2bit"),
    "FASTQ": (b"@read1\nACGT\n+\nIIII\n", "is a FASTQ"),
    "GTF": (b"#!genome-build X\nchr1\thavana\tgene\t251\t330\t.\t+\t.\tgene_id\n", "is a GTF or GFF"),
    "GFF": (b"##gff-version 3\n", "is a GFF"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of git-lfs"),
    "web page": (b"\n<!DOCTYPE html>\n<html>", "is a web page"),
    "zip": (b"PK\3\4" + bytes(40), "is a ZIP archive"),
    "xz": (b"\xfd7zXZ\0" + bytes(40), "is packed by xz"),
    "pickle": (b"\x80\x04\x95" + bytes(40), "is a pickle"),
    "GenBank": (b"LOCUS       SCU49845     5028 bp    DNA\n", "is a GenBank file"),
    "tar": (bytes(257) + b"ustar" + bytes(40), "is a TAR archive"),
}


@pytest.mark.parametrize("content, says", FOREIGN.values(), ids=FOREIGN)
def test_foreign_formats_are_named_with_the_way_out(tmp_path, content, says):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    mistake = refused(path)
    assert says in mistake.rule and mistake.fix and "FILE" not in mistake.fix


@pytest.mark.parametrize("text", ["sequence,label\n", "@id,sequence\n", "LOCUS,x\n", "chr1\t1\t2\n", ""])
def test_text_that_is_none_of_these_is_read(tmp_path, text):
    path = tmp_path / "train.csv"
    path.write_text(text)
    assert "".join(lines_of(path)) == text
