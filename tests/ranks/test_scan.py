"""Two processes with a sharded backbone make the track and the peaks that one does."""

from pathlib import Path

import pytest
import torch

from lingo_ds.commands.scan import ScanRequest
from lingo_ds.commands.scan import scan as run_scan
from lingo_ds.config.run_config import PredictConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.utils.errors import UserError
from tests.ranks.spawn import run_ranks
from tests.unit.commands.test_predict import make_adapter
from tests.unit.commands.test_scan import GENOME, STEP, WINDOW, read_bed, scan, values_of
from tests.unit.genomes import write_fasta


def scan_genome(rank: int, world_size: int, adapter: Path, genome: Path, folder: Path) -> tuple[bool, str]:
    """Whether the whole genome was scanned, and what is said of a contig that has no window."""
    config = PredictConfig(zero={"stage": 3}, batch_tokens=64)
    env = DistEnv(rank, rank, world_size, world_size, torch.device("cpu"))
    how = {"adapter": adapter, "genome": genome, "step": STEP, "window": WINDOW, "target": "1"}
    request = ScanRequest(**how, output=folder / "t.bg", peaks=folder / "p.bed", strand="max")
    done = run_scan(request, config, env)
    try:
        run_scan(ScanRequest(**how, output=folder / "none.bg", contigs=("short",)), config, env)
    except UserError as error:
        return done, str(error)
    return done, ""


def test_two_processes_scan_as_one_does(tmp_path):
    adapter = make_adapter(tmp_path, template=None)
    genome = write_fasta(tmp_path / "g.fa", GENOME, width=60)
    (tmp_path / "two").mkdir()
    found = run_ranks(scan_genome, 2, adapter, genome, tmp_path / "two")
    assert [done for done, _ in found] == [True] * 2
    assert all("has no window of 60 bases without more than 10% N" in said for _, said in found)
    more = ("--strand", "max", "--peaks", tmp_path / "p.bed")
    assert scan(adapter, genome, tmp_path / "t.bg", *more)[0] == 0
    expected = values_of(tmp_path / "t.bg")
    assert values_of(tmp_path / "two/t.bg") == pytest.approx(expected, abs=1e-5)
    peaks = [[row[:3] for row in read_bed(folder / "p.bed")] for folder in (tmp_path / "two", tmp_path)]
    assert peaks[0] == peaks[1] and len(peaks[0]) > 1
