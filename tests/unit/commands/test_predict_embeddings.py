"""`lingo-ds predict --embeddings` and `Predictor.embed`: pooled hidden states beside the answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lingo_ds
from lingo_ds.data.dna import reverse_complement
from tests.unit.commands.test_predict import (
    SMALL_CHUNKS,
    at_part,
    make_adapter,
    predict,
    random_sequences,
    write_csv,
)
from tests.unit.genomes import C1, C2, write_fasta, write_vcf

SIZE, LAYERS = 64, 3
"""Hidden size and layers of the built-in backbone."""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def predictor(adapter):
    return lingo_ds.load(adapter)


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return random_sequences(60)


def embeddings_of(path: Path, column: str = "embedding") -> np.ndarray:
    return np.stack(pq.read_table(path)[column].to_numpy())


def test_embeddings_are_what_the_head_reads(adapter, predictor, sequences):
    """The head times them gives the logits behind the probabilities."""
    from safetensors.numpy import load_file

    found = predictor.embed(sequences)
    assert found.shape == (60, SIZE) and found.dtype == np.float32
    tensors = load_file(adapter / "adapter_model.safetensors")
    (head,) = (value for name, value in tensors.items() if "score" in name)
    odds = np.exp(found @ head.T)
    probabilities = odds / odds.sum(1, keepdims=True)
    assert probabilities == pytest.approx(predictor.predict(sequences).probabilities, abs=1e-5)


@pytest.mark.parametrize("layer", [0, 2, None])
def test_how_sequences_share_a_forward_changes_nothing(adapter, predictor, sequences, layer):
    expected = predictor.embed(sequences, layer)
    assert np.ptp(expected, axis=0).max() > 0.1 or layer == 0
    for settings in (("packing=off",), (SMALL_CHUNKS,)):
        found = lingo_ds.load(adapter, *settings).embed(sequences, layer)
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_file_has_them_beside_the_answers(adapter, predictor, sequences, tmp_path):
    """The same after a job that was stopped, and the answers as without them."""
    source, out = write_csv(tmp_path / "in.csv", sequences), tmp_path / "out.parquet"
    assert predict(adapter, source, tmp_path / "plain.parquet")[0] == 0
    with at_part(1, lambda: (_ for _ in ()).throw(KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
        predict(adapter, source, out, "--embeddings", "--layer", "1", SMALL_CHUNKS)
    assert list((tmp_path / ".out.parquet.parts").glob("0*"))
    status, shown = predict(adapter, source, out, "--embeddings", "--layer", "1", SMALL_CHUNKS)
    assert status == 0 and "resuming after" in shown, shown
    schema = pq.read_schema(out)
    assert schema.names[-1] == "embedding" and schema.field("embedding").type == pa.list_(pa.float32(), SIZE)
    assert embeddings_of(out) == pytest.approx(predictor.embed(sequences, 1), abs=1e-5)
    plain, table = pq.read_table(tmp_path / "plain.parquet"), pq.read_table(out)
    assert table["id"] == plain["id"] and table["label"] == plain["label"]
    assert table["probability_1"].to_numpy() == pytest.approx(plain["probability_1"].to_numpy(), abs=1e-5)


def test_parts_of_another_layer_are_not_used(adapter, predictor, sequences, tmp_path):
    source, out = write_csv(tmp_path / "in.csv", sequences), tmp_path / "out.parquet"
    with at_part(1, lambda: (_ for _ in ()).throw(KeyboardInterrupt)), pytest.raises(KeyboardInterrupt):
        predict(adapter, source, out, "--embeddings", "--layer", "1", SMALL_CHUNKS)
    status, shown = predict(adapter, source, out, "--embeddings", "--layer", "last", SMALL_CHUNKS)
    assert status == 0 and "holds parts of another job" in shown
    assert embeddings_of(out) == pytest.approx(predictor.embed(sequences, LAYERS), abs=1e-5)


def test_both_strands_are_averaged_where_the_adapter_does_so(adapter, sequences, tmp_path):
    shutil.copytree(adapter.parent, tmp_path / "both")
    path = tmp_path / "both/adapter/task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"average_strands": True}))
    one, both = lingo_ds.load(adapter), lingo_ds.load(tmp_path / "both")
    forward, reverse = (one.embed(some) for some in (sequences, list(map(reverse_complement, sequences))))
    assert np.abs(forward - reverse).max() > 0.1
    assert both.embed(sequences) == pytest.approx((forward + reverse) / 2, abs=1e-5)


def test_alleles_of_a_variant_have_one_each(adapter, predictor, tmp_path):
    genome = write_fasta(tmp_path / "g.fa", {"c1": C1, "c2": C2})
    vcf = write_vcf(tmp_path / "v.vcf", "c1 9 rs1 A G", "c2 1 . A T")
    more = ("--genome", str(genome), "--window", "5", "--embeddings")
    assert predict(adapter, vcf, tmp_path / "out.parquet", *more)[0] == 0
    for of, windows in (("ref", ["TTACG", "NNACG"]), ("alt", ["TTGCG", "NNTCG"])):
        found = embeddings_of(tmp_path / "out.parquet", f"embedding_{of}")
        assert found == pytest.approx(predictor.embed(windows), abs=1e-5)


def test_no_sequences_no_embeddings(predictor):
    assert predictor.embed([]).shape == (0, SIZE)


@pytest.mark.parametrize(
    ("out", "more", "words"),
    [
        ("out.csv", ("--embeddings",), "out.csv': is a table of text, which cannot hold embeddings: name a"),
        ("o.parquet", ("--layer", "1"), "error: --layer: '1': has no effect without --embeddings: add it"),
        ("o.parquet", ("--embeddings", "--layer", "4"), "--layer: '4': is no layer: 0 is the input"),
    ],
)
def test_mistakes(adapter, tmp_path, out, more, words):
    status, shown = predict(adapter, write_csv(tmp_path / "in.csv", ["ACGT"]), tmp_path / out, *more)
    assert status == 2 and words in shown, shown
    with pytest.raises(lingo_ds.UserError, match="--layer: '-1': is no layer"):
        lingo_ds.load(adapter).embed(["ACGT"], -1)
