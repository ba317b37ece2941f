"""Several processes predict what one does: whole copies and shards, few sequences, a job begun by another."""

import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import lingo_ds
from lingo_ds.commands.predict import PredictRequest
from lingo_ds.commands.predict import predict as run_predict
from lingo_ds.config.run_config import PredictConfig
from lingo_ds.distributed.process_group import DistEnv, free_port
from tests.ranks.launching import BIN, starting
from tests.ranks.spawn import run_ranks
from tests.unit.commands.test_predict import (
    SMALL_CHUNKS,
    at_part,
    make_adapter,
    predict,
    probabilities,
    random_sequences,
    read,
    write_csv,
)

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


def predict_file(
    rank: int, world_size: int, adapter: Path, source: Path, target: Path, stage: int, in_8_bits: bool = False
) -> bool:
    config = PredictConfig(zero={"stage": stage, "quantized_weights": in_8_bits}, batch_tokens=128)
    env = DistEnv(rank, rank, world_size, world_size, torch.device("cpu"))
    return run_predict(PredictRequest(adapter=adapter, source=source, target=target), config, env)


@pytest.mark.parametrize(("processes", "stage"), [(2, 3), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_many_processes_predict_what_one_does(adapter, tmp_path, processes, stage):
    """128 sequences are a chunk of two processes, 192 one of three: the last chunk has one for all."""
    draw = np.random.default_rng(0)
    sequences = ["".join(draw.choice(list("ACGT"), (32, 96)[k % 2])) for k in range(385)]
    source, target = write_csv(tmp_path / "in.csv", sequences), tmp_path / "out.csv"
    assert all(run_ranks(predict_file, processes, adapter, source, target, stage))
    found = read(target)
    assert found["id"] == [f"s{k}" for k in range(len(sequences))]
    expected = lingo_ds.load(adapter).predict(sequences).probabilities
    assert probabilities(found) == pytest.approx(expected, abs=1e-5)


def embed_file(rank: int, world_size: int, adapter: Path, source: Path, target: Path, layer: int) -> bool:
    config = PredictConfig(zero={"stage": 3}, batch_tokens=128)
    env = DistEnv(rank, rank, world_size, world_size, torch.device("cpu"))
    request = PredictRequest(adapter=adapter, source=source, target=target, embeddings=True, layer=layer)
    return run_predict(request, config, env)


@pytest.mark.parametrize("layer", [1, 3])
def test_embeddings_of_shards_on_two_processes_are_those_of_a_whole_copy(adapter, tmp_path, layer):
    """65 sequences: the last chunk has one for both."""
    sequences = random_sequences(65)
    source, target = write_csv(tmp_path / "in.csv", sequences), tmp_path / "out.parquet"
    assert all(run_ranks(embed_file, 2, adapter, source, target, layer))
    table = pq.read_table(target)
    assert table["id"].to_pylist() == [f"s{k}" for k in range(65)]
    expected = lingo_ds.load(adapter).embed(sequences, layer)
    assert np.stack(table["embedding"].to_numpy()) == pytest.approx(expected, abs=1e-5)


def test_maps_in_8_bits_answer_alike_on_one_process_and_two(adapter, tmp_path):
    sequences = random_sequences(300)
    source, found = write_csv(tmp_path / "in.csv", sequences), []
    for processes in (1, 2):
        target = tmp_path / f"{processes}.csv"
        assert all(run_ranks(predict_file, processes, adapter, source, target, 3, True))
        found.append(probabilities(read(target)))
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    whole = lingo_ds.load(adapter).predict(sequences).probabilities
    assert found[1] != pytest.approx(whole, abs=1e-5)
    assert found[1] == pytest.approx(whole, abs=0.1)


def test_a_job_that_one_process_began_goes_on_with_two(adapter, tmp_path):
    sequences = random_sequences(300)
    source = write_csv(tmp_path / "in.csv", sequences)
    with at_part(2, lambda: signal.raise_signal(signal.SIGINT)) as begun:
        assert predict(adapter, source, tmp_path / "out.csv", SMALL_CHUNKS)[0] == 1
    before = sorted((tmp_path / ".out.csv.parts").glob("0*"))
    assert len(begun) == len(before) == 2
    output = start_two(adapter, source, tmp_path, SMALL_CHUNKS, "zero.stage=3")
    assert f"resuming after {int(before[-1].name.split('-')[1])} finished sequences" in output
    assert not (tmp_path / ".out.csv.parts").exists()
    found = read(tmp_path / "out.csv")
    assert found["id"] == [f"s{k}" for k in range(300)]
    expected = lingo_ds.load(adapter).predict(sequences).probabilities
    assert probabilities(found) == pytest.approx(expected, abs=1e-5)


SCRIPT = """
import sys
import lingo_ds
predictor = lingo_ds.load(sys.argv[1], "zero.stage=3")
sys.stdout.write(f"first {predictor.predict(sys.argv[2:]).probabilities[0]}\\n")
"""


def test_a_script_of_the_users_own_ends_well(adapter, tmp_path):
    """It says nothing at its end, where a process that is still in its group could be aborted."""
    sequences = random_sequences(8)
    (tmp_path / "mine.py").write_text(SCRIPT)
    command = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port()), "mine.py"]
    with starting() as start:
        ended = start([*command, str(adapter), *sequences], tmp_path).wait(240)
    assert ended.status == 0, ended.output
    assert ended.output.count("first [") == 2 and "terminate" not in ended.output, ended.output


def start_two(adapter: Path, source: Path, folder: Path, *settings: str, status: int = 0) -> str:
    """`deepspeed --num_accelerators 2 launchers/predict.py`; gives what it said."""
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    files = ["--adapter", adapter, "--input", source, "--output", folder / "out.csv"]
    command = [*launcher, str(CHECKOUT / "launchers" / "predict.py"), *map(str, files), *settings]
    with starting() as start:
        ended = start(command, folder).wait(240)
    assert ended.status == status, ended.output
    assert not ended.orphans and "Traceback" not in ended.output, ended.output
    return ended.output


@pytest.mark.slow
def test_a_mistake_in_the_file_is_told_once(adapter, tmp_path):
    source = write_csv(tmp_path / "in.csv", [*random_sequences(200), "ACJT"])
    output = start_two(adapter, source, tmp_path, SMALL_CHUNKS, "zero.stage=0", status=2)
    assert output.count("error: ") == 1, output
    assert "in.csv:202: 'J': position 3 is no IUPAC nucleotide" in output
