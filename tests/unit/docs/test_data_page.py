"""docs/data.md: every example there is read as it stands, and its three commands train and predict."""

import csv
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lingo_ds.commands.cli import main
from lingo_ds.config.data_config import DataConfig
from lingo_ds.data.sources.open import SOURCE_SUFFIXES
from tests.unit.reading import Read, read
from tests.unit.running import report_of

TEXT = (Path(__file__).parents[3] / "docs/data.md").read_text()
BLOCK = re.compile(r"(?:((?:`[^`\n]+`,?\s)*`[^`\n]+`):\n)?```(\w*)\n(.*?)```", re.DOTALL)


def blocks(heading: str) -> list[tuple[list[str], str, str]]:
    """Names of the files, language and content of each block of a section and those below it."""
    level = heading.split()[0]
    section = TEXT.split(f"\n{heading}\n")[1]
    section = re.split(rf"\n#{{1,{len(level)}}} ", section)[0]
    return [(re.findall("`([^`]+)`", names), kind, body) for names, kind, body in BLOCK.findall(section)]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_files(heading: str) -> list[dict]:
    """Writes the files of a section where it says; returns its `data` sections."""
    sections = []
    for names, kind, body in blocks(heading):
        if kind == "yaml":
            sections.append(yaml.safe_load(body)["data"])
        else:
            for name in names:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_text(body)
    return sections


def read_as(data: dict, here: Path, *, kind: str = "multiclass") -> Read:
    """Converts what a `data` section names."""
    settings = {name: value for name, value in data.items() if name != "path"}
    return read(Path(data["path"]), here / "cache", kind=kind, **settings)


@pytest.mark.parametrize(
    "heading, rows",
    [
        ("## Tables", [{"train": 2, "dev": 2, "test": 2}] * 2),
        ("## FASTA", [{"train": 4, "dev": 1, "test": 5}, {"train": 4, "dev": 4, "test": 4}]),
        ("## A folder per class", [{"train": 2, "dev": 2, "test": 2}]),
    ],
)
def test_examples_of_files_are_read(here, heading, rows):
    found = [read_as(data, here) for data in write_files(heading)]
    assert [one.examples.rows for one in found] == rows


def test_example_of_a_pair_is_what_the_page_says(here):
    _, data = write_files("## Tables")
    found = read_as(data, here)
    assert found.pairs["train"] == ["GGGCGGGGCC", "ATATATTTAA"]


def test_example_of_bed_is_read(here, shared):
    os.symlink(shared / "data/yeast_chrI_ref/chrI.fa", "chrI.fa")
    data, _ = write_files("## Intervals of a genome")
    found = read_as(data, here)
    assert found.examples.rows == {"train": 2, "dev": 1, "test": 1} and found.examples.bases == 100


def test_example_of_arrays_is_read(here):
    data = yaml.safe_load(blocks("## One-hot arrays")[1][2])["data"]
    Path(data["path"]).mkdir(parents=True)
    one_hot = np.eye(4)[np.random.default_rng(0).integers(0, 4, (10, 30))]
    np.savez(Path(data["path"]) / "train.npz", x=one_hot, y=np.ones((10, 5)))
    found = read_as(data, here, kind="multilabel")
    assert found.examples.rows == {"train": 8, "dev": 1, "test": 1} and found.examples.classes == 5


def test_example_of_a_hub_dataset_is_one():
    ((_, _, body),) = blocks("## The `datasets` library")
    assert DataConfig.model_validate(yaml.safe_load(body)["data"]).format == "dataset"


def test_all_endings_are_in_the_page():
    table = TEXT.partition("\n\nFor all of them")[0].lower()
    assert all(f"`{ending}`" in table for endings in SOURCE_SUFFIXES.values() for ending in endings)


def test_three_commands_lead_from_peaks_to_an_adapter(here, shared):
    for name in ("chrI.fa", "transcripts_tss.bed", "tata_boxes.bed"):
        shutil.copy(shared / "data/yeast_chrI_ref" / name, name)
    (_, _, recipe), (_, _, commands) = blocks("### From peaks and a genome to a trained adapter")
    Path("peaks.yaml").write_text(recipe)
    lines = commands.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    report = report_of(Path("runs/peaks"))
    assert sum(report["data"]["rows"].values()) == 2 * 114
    with open("new.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)][:2] == ["YAL027W", "YAL044C"]
