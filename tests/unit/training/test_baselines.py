"""One-hot baselines of a run: what they read, that they learn every kind of task, and what they leave."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.task_config import METRICS
from lingo_ds.data.one_hot import one_hot
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.data.task import make_task
from lingo_ds.training.baselines import choose, rows
from lingo_ds.training.baselines.choose import compute_baseline
from lingo_ds.training.baselines.fitting import OneHotSplit, Point, Problem
from lingo_ds.training.baselines.linear import fit_linear
from lingo_ds.training.baselines.rows import find_rows, other_strand
from tests.unit.kinds_of_task import TASKS, config_of, write_data


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs: what is tested here learns soon."""
    monkeypatch.setattr(choose, "MOST_EPOCHS", 8)


def config_for(data: Path, out: Path, /, **sections: dict) -> RunConfig:
    settings = {
        "name": "small",
        "output_dir": str(out),
        "backbone": {"path": "no/backbone"},
        "data": {"path": str(data), "cache_dir": str(out.parent / "cache")} | sections.pop("data", {}),
    }
    return RunConfig.model_validate(settings | sections)


def write_rows(folder: Path, header: str, rows: list[str]) -> Path:
    """The same rows in every split."""
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


# -- what is read


def test_positions_are_means_of_bases_and_what_is_none_is_zero():
    bases = one_hot(["ACguNA", "TT", "ACGTACGT"], width=6, bin=2)
    a, c, g, t, n = *np.eye(4), np.zeros(4)
    expected = [[a + c, g + t, n + a], [t + t, n, n], [a + c, g + t, a + c]]
    np.testing.assert_allclose(bases.mT.numpy(), np.array(expected) / 2)
    assert one_hot(["ACguNA"], width=6).mT[0].tolist() == np.array([a, c, g, t, n, a]).tolist()
    assert other_strand("acgNu") == "ANCGT"


def test_pairs_lie_side_by_side_and_unequal_lengths_are_padded_at_the_right(tmp_path):
    lines = ["ACG,T,0", "A,GG,1"]
    config = config_for(write_rows(tmp_path / "data", "sequence1,sequence2,label", lines), tmp_path / "out")
    data = find_rows(config, cache=tmp_path / "cache")
    read = data.read("test", bin=1)
    expected = torch.cat([one_hot(["ACG", "A"], width=3), one_hot(["T", "GG"], width=2)], dim=2)
    assert data.widths == (3, 2) and read.bases.equal(expected) and read.reverse is None
    assert read.labels.tolist() == [0, 1]


@pytest.mark.parametrize(("strands", "train", "reverse"), [("augment", 4, False), ("average", 2, True)])
def test_both_strands_are_read_where_the_run_reads_them(tmp_path, strands, train, reverse):
    folder = write_rows(tmp_path / "data", "sequence,label", ["AACG,0", "TG,1"])
    config = config_for(folder, tmp_path / "out", data={"reverse_complement": strands})
    data = find_rows(config, cache=tmp_path / "cache")
    other = one_hot(["CGTT", "CA"], width=4)
    given, test = data.read_train(bin=1), data.read("test", bin=1)
    assert len(given.bases) == len(given.labels) == train
    assert reverse or given.bases[2:].equal(other)
    assert (test.reverse is not None and test.reverse.equal(other)) == reverse


def test_of_many_rows_some_are_drawn_by_the_seed_and_long_ones_are_binned(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    letters = ["A", "C", "G", "T"] * 3
    lines = [f"{letter * (k + 1)},{k % 2}" for k, letter in enumerate(letters)]
    folder = write_rows(tmp_path / "data", "sequence,label", lines)
    drawn = {}
    for seed in (0, 0, 1):
        data = find_rows(config_for(folder, tmp_path / "out", seed=seed), cache=tmp_path / "cache")
        picked = data.rows["train"]
        assert len(picked) == 3 and data.labels["train"].tolist() == (picked % 2).tolist()
        longest = int(picked.max()) + 1
        assert data.widths == (longest,) and data.bin(4) == -(-longest // 4)
        same = one_hot([lines[k].split(",")[0] for k in picked], width=longest)
        assert data.read_train(bin=1).bases.equal(same)
        assert drawn.setdefault(seed, picked.tolist()) == picked.tolist()
    assert drawn[0] != drawn[1]


def test_a_class_that_the_drawn_rows_lack_is_just_unlikely():
    split = OneHotSplit(one_hot(["AAAA", "CCCC"], width=4), np.array([0, 2]))
    task = make_task("t", classes=3, template=None, domain=None, max_length=4)
    logits = fit_linear(Problem(task, "mcc", split, split), Point(1)).logits(split.bases)
    assert logits.shape == (2, 3) and np.isfinite(logits).all() and logits.argmax(1).tolist() == [0, 2]


# -- what is learned


@pytest.mark.parametrize("kind", TASKS)
def test_both_learn_every_kind_of_task(tmp_path, kind):
    config = config_of(kind, write_data(tmp_path / "data", kind), tmp_path / "out")
    data = find_rows(config, cache=tmp_path / "cache")
    for name in ("logistic", "cnn"):
        found = compute_baseline(name, data)
        assert set(found.metrics) == {"dev", "test"} and found.rows == {"train": 320, "dev": 80, "test": 80}
        value = found.metric("test", METRICS[config.task.family][0])
        assert value is not None and value > 0.35, (name, found.metrics)
        assert found.title == {"cnn": "CNN"}.get(
            name, "ridge regression" if kind == "regression" else "logistic regression"
        )


def test_a_seed_decides_and_torchs_own_generator_stays(tmp_path, monkeypatch):
    """Of a CNN that may read so little that it trains on half of the rows."""
    monkeypatch.setattr(choose, "MOST_READ", 50 * 70 * choose.LEAST_EPOCHS * len(choose.CNN_GRID))
    write_promoters(tmp_path / "data", train=100, dev=40, test=40)
    metrics = []
    for seed in (0, 0, 1):
        data = find_rows(config_for(tmp_path / "data", tmp_path / "out", seed=seed), cache=tmp_path / "cache")
        before = torch.get_rng_state()
        found = compute_baseline("cnn", data)
        metrics.append(found.metrics)
        assert found.rows == {"train": 50, "dev": 40, "test": 40}
        assert torch.get_rng_state().equal(before)
    assert metrics[0] == metrics[1] != metrics[2]
