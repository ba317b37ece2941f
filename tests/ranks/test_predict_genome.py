"""Two processes say of variants, read on both strands, what one does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lingo_ds.commands.predict import PredictRequest
from lingo_ds.commands.predict import predict as run_predict
from lingo_ds.config.run_config import PredictConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_folder import read_card
from tests.ranks.spawn import run_ranks
from tests.unit.commands.test_predict import CLASSES, make_adapter, predict
from tests.unit.commands.test_predict_genome import COLUMNS, read_variants
from tests.unit.data.test_variants import write_fasta, write_vcf


def predict_variants(
    rank: int, world_size: int, adapter: Path, source: Path, genome: Path, target: Path, stage: int
) -> bool:
    config = PredictConfig(zero={"stage": stage}, batch_tokens=128)
    env = DistEnv(rank, rank, world_size, world_size, torch.device("cpu"))
    request = PredictRequest(adapter=adapter, source=source, target=target, genome=genome, window=31)
    return run_predict(request, config, env)


@pytest.mark.parametrize(("processes", "stage"), [(2, 3), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_many_processes_predict_what_one_does(tmp_path, processes, stage):
    adapter = make_adapter(tmp_path, template=None)
    card = read_card(adapter).model_copy(update={"average_strands": True})
    (adapter / "task.json").write_text(card.model_dump_json())
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 3000))
    genome = write_fasta(tmp_path / "g.fa", {"c": bases}, width=50)
    others = {"A": "C,T", "C": "G", "G": "<DEL>,A", "T": "TGG"}
    rows = [f"c {place} . {bases[place - 1]} {others[bases[place - 1]]}" for place in range(1, 3000, 11)]
    vcf = write_vcf(tmp_path / "v.vcf", *rows)
    assert all(run_ranks(predict_variants, processes, adapter, vcf, genome, tmp_path / "out.csv", stage))
    more = ("--genome", str(genome), "--window", "31")
    assert predict(adapter, vcf, tmp_path / "one.csv", *more)[0] == 0
    found, expected = read_variants(tmp_path / "out.csv"), read_variants(tmp_path / "one.csv")
    assert len(expected["pos"]) > 273
    for name in COLUMNS:
        assert found[name] == expected[name]
    for name in (f"probability_{c}_{of}" for c in range(CLASSES) for of in ("ref", "alt", "delta")):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
