"""The motifs that the quickstart's data hold are found in its adapter."""

import contextlib
import csv
import io
from pathlib import Path

import numpy as np
import pytest
from memelite.io import write_meme

from lingo_ds.commands.cli import main
from lingo_ds.data.synthetic_promoters import _INITIATOR_COUNTS, _TATA_COUNTS, write_promoters


def matrix(counts: tuple) -> np.ndarray:
    table = np.array(counts, float) + 0.1
    return table / table.sum(0)


@pytest.mark.slow
def test_the_quickstart_knows_the_tata_box_and_the_initiator(tmp_path):
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", "--config", "quickstart", f"output_dir={tmp_path / 'run'}"]) == 0
    draw = np.random.default_rng(1)
    known = {f"random {k}": draw.dirichlet([0.5] * 4, size=10).T for k in range(40)}
    known |= {"TATA box": matrix(_TATA_COUNTS), "initiator": matrix(_INITIATOR_COUNTS)}
    write_meme(str(tmp_path / "known.meme"), known)
    rows = first_motifs(tmp_path, adapter=tmp_path / "run")
    assert {row["match"] for row in rows} == {"TATA box", "initiator"}
    assert all(float(row["p_value"]) < 1e-3 and float(row["effect"]) > 1 for row in rows)


def first_motifs(folder: Path, *, adapter: Path) -> list[dict[str, str]]:
    """The two strongest motifs in 60 promoters."""
    write_promoters(folder / "promoters")
    with (folder / "promoters/test.csv").open() as file:
        chosen = [row["sequence"] for row in csv.DictReader(file) if row["label"] == "1"][:60]
    (folder / "new.csv").write_text("\n".join(["sequence", *chosen]) + "\n")
    files = ["--adapter", str(adapter), "--input", str(folder / "new.csv"), "--output", str(folder / "out")]
    assert main(["explain", *files, "--pictures", "0", "--database", str(folder / "known.meme")]) == 0
    with (folder / "out/motifs.csv").open() as file:
        return list(csv.DictReader(file))[:2]
