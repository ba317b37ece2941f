"""The genome that readers and streams are tested on."""

import pytest

from lingo_ds.data.readers.genome import Genome
from tests.unit.genomes import C1, C2, write_fasta


@pytest.fixture
def genome(tmp_path) -> Genome:
    return Genome(write_fasta(tmp_path / "g.fa", {"c1": C1, "c2": C2}), cache=tmp_path / "cache")
