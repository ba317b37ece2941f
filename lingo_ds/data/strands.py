"""The other strand of DNA."""

_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


def reverse_complement(sequence: str) -> str:
    """The other strand, read in its own direction; `sequence` is upper-case IUPAC, U counts as T."""
    return sequence.translate(_COMPLEMENT)[::-1]
