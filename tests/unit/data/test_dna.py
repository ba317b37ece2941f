"""The reverse complement of IUPAC letters."""

import pytest

from lingo_ds.data.dna import reverse_complement


@pytest.mark.parametrize("sequence", ["ACGT", "GAATTC", "RSY", "KWNWM", ""])
def test_palindromes_are_their_own_reverse_complement(sequence):
    assert reverse_complement(sequence) == sequence


def test_every_letter_has_its_complement():
    sets = {
        "A": "A",
        "C": "C",
        "G": "G",
        "T": "T",
        "R": "AG",
        "Y": "CT",
        "S": "CG",
        "W": "AT",
        "K": "GT",
        "M": "AC",
        "B": "CGT",
        "D": "AGT",
        "H": "ACT",
        "V": "ACG",
        "N": "ACGT",
    }
    of = {"A": "T", "C": "G", "G": "C", "T": "A"}
    for letter, bases in sets.items():
        other = {of[base] for base in bases}
        assert set(sets[reverse_complement(letter)]) == other, letter
    assert reverse_complement("AACGU") == "ACGTT"
