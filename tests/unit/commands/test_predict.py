"""`lingo-ds predict` and `lingo_ds.load`, against stock PEFT that reads one sequence at a time."""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lingo_ds
from lingo_ds.commands.cli import main
from lingo_ds.data.task import make_task
from lingo_ds.evaluation.prediction_file import PredictionFile
from lingo_ds.export.adapter_card import BackboneCard, Card, SavedAdapter
from lingo_ds.export.adapter_folder import save_adapter
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone import builtin
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.weight_files import weights_fingerprint
from lingo_ds.utils.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[3]
CLASSES, MAX_LENGTH = 3, 150
DOMAIN, TEMPLATE = "core promoters", "Domain: {domain}\nSequence: {sequence}\nAnnotation:"
SMALL_CHUNKS = "batch_tokens=128"
"""A setting under which some 70 sequences are a chunk."""


def make_adapter(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """An adapter with random values, not small, and its backbone beside it."""
    builtin.write_backbone(folder / "backbone")
    spec = read_spec(folder / "backbone")
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    layout = uniform_layout(sites, rank=2, head_shape=(CLASSES, spec.output_size))
    values = torch.randn(layout.size, generator=torch.Generator().manual_seed(0)) * 0.3
    task = make_task("random", classes=CLASSES, template=template, domain=DOMAIN, max_length=MAX_LENGTH)
    card = Card(
        task=task,
        pooling="last",
        backbone=BackboneCard(path=str(spec.folder), fingerprint=weights_fingerprint(spec.folder)),
        step=1,
        at_budget=True,
        dev={},
    )
    saved = SavedAdapter(layout, values, 4.0, 2, card)
    settings = {"target_r": 2, "tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": 2}
    save_adapter(folder / "adapter", saved, spec=spec, backbone_path=str(spec.folder), settings=settings)
    return folder / "adapter"


def random_sequences(count: int, *, seed: int = 0, longest: int = 90) -> list[str]:
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list("ACGTN"), draw.integers(5, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return random_sequences(100)


@pytest.fixture(scope="module")
def expected(adapter, sequences) -> np.ndarray:
    """(n, classes) of stock PEFT."""
    backbone = adapter.parent / "backbone"
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    plain = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=CLASSES)
    model = PeftModel.from_pretrained(plain, adapter).eval()
    before, after = TEMPLATE.replace("{domain}", DOMAIN).split("{sequence}")
    with torch.no_grad():
        logits = [model(**tokenizer(before + one + after, return_tensors="pt")).logits for one in sequences]
    return torch.cat(logits).softmax(1).numpy()


@pytest.fixture(scope="module")
def predictor(adapter):
    return lingo_ds.load(adapter)


def predict(adapter: Path, source: Path, target: Path, *more: str) -> tuple[int, str]:
    """Exit status and what `lingo-ds predict` says, in this process."""
    shown = io.StringIO()
    files = ["--adapter", str(adapter), "--input", str(source), "--output", str(target)]
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        status = main(["predict", *files, *more])
    return status, shown.getvalue()


def write_csv(path: Path, sequences: list[str], *, ids: bool = True) -> Path:
    rows = [f"s{k},{one}" if ids else one for k, one in enumerate(sequences)]
    path.write_text("\n".join(["id,sequence" if ids else "sequence", *rows]) + "\n")
    return path


def read(path: Path) -> dict[str, list]:
    """Columns of an output; ids and labels as text."""
    if path.name.endswith(".parquet"):
        columns = pq.read_table(path).to_pydict()
    else:
        raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        lines = raw.decode().splitlines()
        header, *rows = csv.reader(lines, delimiter="\t" if ".tsv" in path.name else ",")
        columns = {name: [row[k] for row in rows] for k, name in enumerate(header)}
    return {
        name: [str(v) if name in ("id", "label") else float(v) for v in column]
        for name, column in columns.items()
    }


def probabilities(columns: dict[str, list]) -> np.ndarray:
    return np.array([columns[f"probability_{c}"] for c in range(CLASSES)]).T


# -- from Python


def test_predictions_are_those_of_stock_peft(predictor, sequences, expected):
    found = predictor.predict([one.lower() for one in sequences])
    assert found.probabilities == pytest.approx(expected, abs=1e-5)
    assert found.probabilities.dtype == np.float32
    assert found.labels.tolist() == expected.argmax(1).tolist()
    assert np.ptp(expected, axis=0).max() > 0.1, "the oracle tells sequences apart"


@pytest.mark.parametrize("settings", [("packing=off",), (SMALL_CHUNKS,), ("packing=off", SMALL_CHUNKS)])
def test_how_sequences_share_a_forward_changes_nothing(adapter, sequences, expected, settings):
    found = lingo_ds.load(adapter, *settings).predict(sequences)
    assert found.probabilities == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("many", [1, 8, 64])
def test_a_sequence_alone_is_as_among_others(predictor, sequences, expected, many):
    parts = [predictor.predict(sequences[k : k + many]).probabilities for k in range(0, 64, many)]
    assert np.concatenate(parts) == pytest.approx(expected[:64], abs=1e-5)


def test_no_sequences_no_predictions(predictor):
    labels, values = predictor.predict([])
    assert labels.shape == (0,) and values.shape == (0, CLASSES)


def test_a_bad_sequence_in_a_list_is_named(predictor):
    with pytest.raises(UserError, match=r"sequences\[1\]: 'J': position 3 is no IUPAC"):
        predictor.predict(["ACGT", "ACJT"])


def test_an_overlong_sequence_loses_its_end(predictor, expected):
    long = random_sequences(1, seed=5, longest=80)[0] * 10
    first = predictor.predict([long]).probabilities
    room = MAX_LENGTH - len("<") - len(TEMPLATE.replace("{domain}", DOMAIN).replace("{sequence}", ""))
    assert predictor.predict([long[:room]]).probabilities == pytest.approx(first, abs=1e-6)
    assert predictor.predict([long[: room - 1]]).probabilities != pytest.approx(first, abs=1e-6)


def test_importing_the_package_is_cheap():
    code = "import sys, lingo_ds; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT).returncode == 0


# -- from file to file


def as_fasta(path: Path, sequences: list[str]) -> Path:
    """Lines of 20 bases, blank lines, both cases, Windows' line ends."""
    text = []
    for k, one in enumerate(sequences):
        text += [f">s{k} some words", *(one[i : i + 20].lower() for i in range(0, len(one), 20)), ""]
    path.write_bytes("\r\n".join(text).encode())
    return path


def as_parquet(path: Path, sequences: list[str]) -> Path:
    table = pa.table(
        {"other": sequences, "id": [f"s{k}" for k in range(len(sequences))], "sequence": sequences}
    )
    pq.write_table(table, path, row_group_size=31)
    return path


def as_tsv(path: Path, sequences: list[str]) -> Path:
    path.write_text("sequence\tid\n" + "".join(f"{one}\ts{k}\n" for k, one in enumerate(sequences)))
    return path


def as_json(path: Path, sequences: list[str]) -> Path:
    rows = [{"id": f"s{k}", "sequence": one} for k, one in enumerate(sequences)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gzipped(write: Callable[[Path, list[str]], Path]) -> Callable[[Path, list[str]], Path]:
    def zipped(path: Path, sequences: list[str]) -> Path:
        write(path, sequences)
        path.write_bytes(gzip.compress(path.read_bytes()))
        return path

    return zipped


FORMATS = {
    "in.csv": (write_csv, "out.csv"),
    "in.tsv": (as_tsv, "out.tsv"),
    "in.fa": (as_fasta, "out.parquet"),
    "in.fna.gz": (gzipped(as_fasta), "out.csv.gz"),
    "in.CSV.GZ": (gzipped(write_csv), "out.tsv.gz"),
    "in.parquet": (as_parquet, "out.parquet"),
    "parquet.csv": (as_parquet, "out.csv"),
    "fasta.txt": (as_fasta, "out.csv"),
    "plain.csv.gz": (write_csv, "out.csv"),
    "in.jsonl": (as_json, "out.csv"),
    "json.data": (gzipped(as_json), "out.csv"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_in_the_same_order(adapter, sequences, expected, tmp_path, name):
    write, out = FORMATS[name]
    status, shown = predict(adapter, write(tmp_path / name, sequences), tmp_path / out, SMALL_CHUNKS)
    assert status == 0, shown
    columns = read(tmp_path / out)
    assert list(columns) == ["id", "label", *(f"probability_{c}" for c in range(CLASSES))]
    assert columns["id"] == [f"s{k}" for k in range(len(sequences))]
    assert probabilities(columns) == pytest.approx(expected, abs=1e-5)
    assert columns["label"] == [str(label) for label in expected.argmax(1)]
    assert f"{len(sequences)} sequences" in shown and str(tmp_path / out) in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, out]), "nothing else is left"


def test_rows_without_an_id_are_numbered(adapter, sequences, tmp_path):
    source = write_csv(tmp_path / "in.csv", sequences[:5], ids=False)
    assert predict(adapter, source, tmp_path / "out.parquet")[0] == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == list(range(5))
    assert table.schema.field("probability_0").type == pa.float32()


def test_columns_may_have_other_names(adapter, tmp_path):
    (tmp_path / "in.csv").write_text('name,dna\n"a, b",ACGT\nc,GGGT\n')
    names = ("--sequence-column", "dna", "--id-column", "name")
    assert predict(adapter, tmp_path / "in.csv", tmp_path / "out.csv", *names)[0] == 0
    assert read(tmp_path / "out.csv")["id"] == ["a, b", "c"]


@pytest.mark.parametrize(("name", "text"), [("in.csv", "id,sequence\n"), ("in.fa", "")])
@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
def test_no_rows_give_no_rows(adapter, tmp_path, name, text, out):
    (tmp_path / name).write_text(text)
    status, shown = predict(adapter, tmp_path / name, tmp_path / out)
    assert status == 0, shown
    assert read(tmp_path / out) == {"id": [], "label": [], **{f"probability_{c}": [] for c in range(CLASSES)}}


def test_cut_sequences_are_counted(adapter, tmp_path):
    source = write_csv(tmp_path / "in.csv", ["A" * 300, "ACGT", "C" * 200])
    status, shown = predict(adapter, source, tmp_path / "out.csv")
    assert status == 0 and f"2 sequences were truncated to the adapter's {MAX_LENGTH} tokens" in shown


def test_the_template_may_be_absent(tmp_path):
    bare = make_adapter(tmp_path, template=None)
    labels, values = lingo_ds.load(bare, SMALL_CHUNKS).predict(random_sequences(40))
    assert len(labels) == 40 and np.isfinite(values).all()


# -- mistakes


MISTAKES = {
    "bad letter in a table": ("in.csv", "id,sequence\na,ACGT\nb,ACJT\n", "in.csv:3: 'J': position 3 is no"),
    "bad letter in FASTA": ("in.fa", ">a\nACGT\n>b\nACGT\n\nAC*T\n", "in.fa:6: '*': position 3 is no"),
    "no sequence in FASTA": ("in.fa", ">a\n>b\nACGT\n", "in.fa:1: '': sequence is missing"),
    "no header in FASTA": ("in.fa", "ACGT\n", "in.fa:1: 'ACGT': comes before the first header"),
    "no name in FASTA": ("in.fa", ">a\nACGT\n> \nACGT\n", "in.fa:3: '>': the header has no name"),
    "no such column": ("in.csv", "id,dna\na,ACGT\n", "in.csv:1: 'id,dna': has no column 'sequence'"),
    "short row": ("in.csv", "id,sequence\na\n", "in.csv:2: '1 fields': the header has 2"),
    "unknown ending": ("in.txt", "ACGT\n", "in.txt': the ending is none of .csv"),
    "no Parquet": ("in.parquet", "ACGT\n", "is no readable Parquet file"),
    "GTF": ("in.gtf", "c1\tx\tgene\t1\t9\t.\t+\t.\tid\n", "--input: 'in.gtf': is a GTF or GFF: convert it"),
    "web page": ("in.csv", "<!DOCTYPE html>", "--input: 'in.csv': is a web page, not data: download"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistake_in_the_input_is_named(adapter, tmp_path, what):
    name, text, words = MISTAKES[what]
    (tmp_path / name).write_text(text)
    status, shown = predict(adapter, tmp_path / name, tmp_path / "out.csv")
    assert status == 2, shown
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert words in line
    assert len(re.split(r": ", line)) >= 5, "where, value, rule, fix"
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [("out.xlsx", "the ending is none of"), ("taken.csv", "exists already"), ("in.csv", "is the input")],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(adapter, tmp_path, out, words):
    source = write_csv(tmp_path / "in.csv", ["ACGT"])
    (tmp_path / "taken.csv").write_text("mine")
    status, shown = predict(adapter, source, tmp_path / out)
    assert status == 2 and "error: --output: " in shown and words in shown
    assert (tmp_path / "taken.csv").read_text() == "mine"
    assert source.read_text() == "id,sequence\ns0,ACGT\n"


def test_an_output_is_replaced_where_that_is_asked_for(adapter, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    source = write_csv(tmp_path / "in.csv", ["ACGT"])
    assert predict(adapter, source, tmp_path / "out.csv", "--overwrite")[0] == 0
    assert read(tmp_path / "out.csv")["id"] == ["s0"]


def test_another_backbone_is_refused(adapter, tmp_path):
    builtin.write_backbone(tmp_path / "other", seed=1)
    source = write_csv(tmp_path / "in.csv", ["ACGT"])
    status, shown = predict(adapter, source, tmp_path / "out.csv", "--backbone", str(tmp_path / "other"))
    assert status == 2 and "error: backbone.path: " in shown and "is not the backbone that" in shown


def test_a_backbone_that_moved_is_taken_from_its_new_place(adapter, sequences, expected, tmp_path):
    shutil.copytree(adapter.parent, tmp_path / "moved")
    card = json.loads((tmp_path / "moved/adapter/task.json").read_text())
    card["backbone"]["path"] = "/not/there"
    (tmp_path / "moved/adapter/task.json").write_text(json.dumps(card))
    source = write_csv(tmp_path / "in.csv", sequences[:5])
    status, shown = predict(tmp_path / "moved/adapter", source, tmp_path / "out.csv")
    assert status == 2 and "error: backbone.path: '/not/there': is not a folder" in shown
    moved = ("--backbone", str(tmp_path / "moved/backbone"))
    assert predict(tmp_path / "moved/adapter", source, tmp_path / "out.csv", *moved)[0] == 0
    assert probabilities(read(tmp_path / "out.csv")) == pytest.approx(expected[:5], abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("backbone.dtipe=bf16", "did you mean backbone.dtype?"),
        ("train.max_steps=3", "train (command line): "),
        ("batch_tokens=0", "error: batch_tokens (command line): 0"),
    ],
)
def test_a_wrong_setting_is_named(adapter, tmp_path, setting, words):
    status, shown = predict(adapter, tmp_path / "in.csv", tmp_path / "out.csv", setting)
    assert status == 2 and words.replace(": 0", ": '0'") in shown, shown


# -- stopped, killed, resumed


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An adapter whose forwards are short: it has no template."""
    return make_adapter(tmp_path_factory.mktemp("bare"), template=None)


@pytest.fixture(scope="module")
def many(tmp_path_factory, bare) -> tuple[Path, dict[str, bytes]]:
    """A file of four chunks, and what is to come out of it."""
    folder = tmp_path_factory.mktemp("many")
    source = write_csv(folder / "in.csv", random_sequences(280, seed=2))
    for out in ("out.csv", "out.parquet"):
        assert predict(bare, source, folder / out, SMALL_CHUNKS)[0] == 0
    return source, {out: (folder / out).read_bytes() for out in ("out.csv", "out.parquet")}


@contextlib.contextmanager
def at_part(number: int, action: Callable[[], None]) -> Iterator[list[int]]:
    """Inside, something happens after the part of that number; gives where each part began."""
    original, begun = PredictionFile.write_part, []

    def write_part(self: PredictionFile, begin: int, table: pa.Table, *, truncated: int) -> None:
        original(self, begin, table, truncated=truncated)
        begun.append(begin)
        if len(begun) == number:
            action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictionFile, "write_part", write_part)
        yield begun


@pytest.mark.parametrize(("number", "out"), [(signal.SIGINT, "out.csv"), (signal.SIGTERM, "out.parquet")])
def test_a_stopped_job_resumes(bare, many, tmp_path, number, out):
    source, whole = many
    with at_part(2, lambda: signal.raise_signal(number)) as first:
        status, shown = predict(bare, source, tmp_path / out, SMALL_CHUNKS)
    assert status == 1 and "run the same command again to resume" in shown
    assert len(first) == 2 and not (tmp_path / out).exists()
    with at_part(0, lambda: None) as second:
        status, shown = predict(bare, source, tmp_path / out, SMALL_CHUNKS)
    assert status == 0 and "resuming after" in shown
    assert second[0] > first[-1], "nothing is computed twice"
    assert (tmp_path / out).read_bytes() == whole[out]
    assert [path.name for path in tmp_path.iterdir()] == [out]


def kill_in_the_middle(adapter: Path, source: Path, out: Path, *more: str) -> None:
    """Kills a job after a part: a fork of this process, which has imported the libraries already."""
    job = os.fork()
    if job == 0:
        try:
            with at_part(2, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                predict(adapter, source, out, *more)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]) == -signal.SIGKILL
    assert not out.exists()


def test_a_killed_job_resumes(bare, many, tmp_path):
    source, whole = many
    out = tmp_path / "out.csv"
    kill_in_the_middle(bare, source, out, SMALL_CHUNKS)
    with at_part(0, lambda: None) as begun:
        status, shown = predict(bare, source, out, SMALL_CHUNKS)
    assert status == 0, shown
    assert begun[0] > 0
    assert out.read_bytes() == whole["out.csv"]


def test_parts_of_another_input_are_not_used(bare, many, tmp_path):
    source, whole = many
    other = write_csv(tmp_path / "in.csv", random_sequences(180, seed=3))
    with at_part(2, lambda: signal.raise_signal(signal.SIGINT)):
        assert predict(bare, other, tmp_path / "out.csv", SMALL_CHUNKS)[0] == 1
    status, shown = predict(bare, source, tmp_path / "out.csv", SMALL_CHUNKS)
    assert status == 0 and "starts from the beginning" in " ".join(shown.split())
    assert (tmp_path / "out.csv").read_bytes() == whole["out.csv"]


def test_a_second_job_on_the_same_output_is_refused(bare, many, tmp_path):
    source, whole = many
    seconds = []

    def another() -> None:
        seconds.append(predict(bare, source, tmp_path / "out.csv", SMALL_CHUNKS))

    with at_part(1, another):
        assert predict(bare, source, tmp_path / "out.csv", SMALL_CHUNKS)[0] == 0
    ((status, shown),) = seconds
    assert status == 2 and "another run is writing there" in shown
    assert (tmp_path / "out.csv").read_bytes() == whole["out.csv"]


def test_a_mistake_far_down_keeps_what_was_done_before(bare, tmp_path):
    sequences = random_sequences(150, seed=4)
    source = write_csv(tmp_path / "in.csv", [*sequences, "ACGTJ"])
    status, shown = predict(bare, source, tmp_path / "out.csv", SMALL_CHUNKS)
    assert status == 2 and f"in.csv:{len(sequences) + 2}: 'J'" in shown
    assert list(tmp_path.glob(".out.csv.parts/0*"))


# -- memory


def test_memory_does_not_grow_with_the_number_of_sequences(bare, tmp_path):
    """Ids of 30 kB, 10 MB to a chunk: two chunks and six, 40 MB apart if all of them were held at once.

    Counted is what Python allocates: the process's own peak holds what earlier tests of it left.
    """
    peaks = []
    for rows in (1, 680, 2_040):  # the first imports, too
        with (tmp_path / "in.csv").open("w") as file:
            file.write("id,sequence\n")
            file.writelines(f"{row:030000},ACGTAC\n" for row in range(rows))
        tracemalloc.start()
        try:
            assert predict(bare, tmp_path / "in.csv", tmp_path / f"{rows}.csv", "batch_tokens=64")[0] == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] > 10e6, "the ids are not counted"
    assert peaks[2] - peaks[1] < 15 * 2**20, peaks
