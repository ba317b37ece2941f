"""Small genomes and VCFs that tests write."""

from pathlib import Path

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
