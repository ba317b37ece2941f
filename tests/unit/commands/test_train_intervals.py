"""Training on intervals: the adapter's card holds how their windows were cut, and prediction cuts them so."""

import json
import random
from pathlib import Path

import pytest

from lingo_ds.export.adapter_folder import read_card
from tests.unit.commands.test_predict import make_adapter, predict
from tests.unit.genomes import write_fasta
from tests.unit.running import command

RECIPE = """
name: peaks
backbone: {path: builtin:tiny}
data:
  path: %s
  cache_dir: %s
  intervals: {genome: %s, negatives: 1, %s}
adapter: {rank: 2}
rank_sampling: {target_rank: 1, interval: 1}
train: {global_batch_size: 4, max_steps: 4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A genome, and peaks with their summit at base 3."""
    folder, draw = tmp_path_factory.mktemp("peaks"), random.Random(0)
    write_fasta(
        folder / "g.fa", {name: "".join(draw.choices("ACGT", k=3000)) for name in ("1", "2", "3")}, width=60
    )
    rows = [
        f"{name}\t{k}\t{k + 20}\tp{k}\t0\t.\t5\t3\t2\t3\n" for name in "123" for k in range(100, 2500, 200)
    ]
    (folder / "peaks.narrowPeak").write_text("".join(rows))
    return folder


@pytest.mark.parametrize(
    "windows, card, same, other",
    [
        (
            "window: 10, center: summit, dev_chromosomes: [2], test_chromosomes: [3]",
            {"window": 10, "flank": 0, "center": "summit"},
            ["--window", "10", "--center", "summit"],
            ["--center", "middle"],
        ),
        ("flank: 7", {"window": None, "flank": 7, "center": "middle"}, ["--flank", "7"], ["--flank", "0"]),
    ],
)
def test_prediction_cuts_windows_as_training_did(folder, tmp_path, windows, card, same, other):
    source, genome = folder / "peaks.narrowPeak", folder / "g.fa"
    (tmp_path / "run.yaml").write_text(RECIPE % (source, tmp_path / "cache", genome, windows))
    status, shown = command("train", tmp_path / "run.yaml", tmp_path / "run")
    assert status == 0, shown
    adapter = tmp_path / "run/adapter"
    saved = json.loads((adapter / "task.json").read_text())
    assert saved["format"] == 3 and saved["data"]["windows"] == card
    tables = []
    for name, options in (("plain", []), ("same", same), ("other", other)):
        status, shown = predict(adapter, source, tmp_path / f"{name}.csv", "--genome", str(genome), *options)
        assert status == 0, shown
        assert ("but in training it was" in " ".join(shown.split())) == (name == "other"), shown
        tables.append((tmp_path / f"{name}.csv").read_text())
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize("format", [1, 2])
def test_cards_without_windows_are_still_read(folder, tmp_path, format):
    adapter = make_adapter(tmp_path)
    card = json.loads((adapter / "task.json").read_text())
    card["data"] = {"name": "toys", "fingerprint": "ab", "rows": {"train": 5}, "bases": 5}
    (adapter / "task.json").write_text(json.dumps(card | {"format": format}))
    assert read_card(adapter).data.windows is None
