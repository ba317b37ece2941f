"""`lingo-ds baseline`: what it writes and prints, beside a run and in a suite's table."""

import json
from pathlib import Path

import pytest

from lingo_ds.commands.cli import main
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.monitor.baselines import read_baselines


def baseline(recipe: Path, *words: str) -> int:
    return main(["baseline", "--config", str(recipe), *words])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose backbone does not exist."""
    write_promoters(tmp_path / "data", train=200, dev=100, test=100)
    text = f"""\
name: small
output_dir: {tmp_path / "out"}
backbone: {{path: no/backbone}}
data: {{path: {tmp_path / "data"}, cache_dir: {tmp_path / "cache"}}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def test_the_verb_needs_no_backbone_and_repeats_nothing(recipe, tmp_path, capsys):
    assert baseline(recipe, "--models", "logistic") == 0
    first = (tmp_path / "out" / "baselines.json").read_text()
    (name, entry), *others = json.loads(first).items()
    assert name == "logistic" and not others
    assert {"parameters", "seconds", "metrics"} < set(entry) and entry["parameters"] == 4 * 70 + 1
    assert (
        f"{entry['metrics']['test']['mcc']:.4f} / {entry['metrics']['dev']['mcc']:.4f}"
        in capsys.readouterr().out
    )
    assert baseline(recipe, "--models", "logistic") == 0
    assert (tmp_path / "out" / "baselines.json").read_text() == first, "its seconds would differ"
    assert baseline(recipe, "--models", "logistic", "seed=1") == 0, "settings may follow the last option"
    assert read_baselines(tmp_path / "out")["logistic"].made_from != entry["made_from"]


def test_the_run_stands_beside_its_baselines(recipe, tmp_path, capsys):
    words = ("backbone.path=builtin:tiny", "train.max_steps=2", "train.global_batch_size=8", "zero.stage=0")
    assert main(["train", "--config", str(recipe), *words]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    capsys.readouterr()
    assert baseline(tmp_path / "out" / "config.yaml", "--models", "logistic") == 0
    shown = capsys.readouterr().out
    assert "this run" in shown and f"{report['metrics']['test']['auroc']:.4f} /" in shown
    assert f"{report['parameters']['trainable']:,}" in shown
    assert baseline(recipe, "--models", "logistic") == 0, "another config than the run's"
    assert "this run" not in capsys.readouterr().out


def test_a_suites_tasks_have_columns_of_baselines(recipe, tmp_path):
    words = ("backbone.path=builtin:tiny", "train.max_steps=1", "train.global_batch_size=8", "zero.stage=0")
    assert main(["train", "--config", str(recipe), *words, "seeds=[0,1]", "baselines=[logistic]"]) == 0
    first, second = (read_baselines(tmp_path / "out" / f"seed-{seed}")["logistic"] for seed in (0, 1))
    header, row = ((tmp_path / "out" / "results.csv").read_text().splitlines())[:2]
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    rival = first.metric("test", "mcc")
    assert first == second and cells["logistic test"] == f"{100 * rival:.2f}"
    assert float(cells["above baselines"]) == pytest.approx(float(cells["test"]) - 100 * rival, abs=0.011)
    assert (
        "logistic test: logistic regression of one-hot bases" in (tmp_path / "out" / "results.md").read_text()
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--models", "forest"], "error: --models: 'forest': is no baseline"),
        (["baselines=[logistic]"], "has no effect on a single run"),
        (["data.path=nowhere"], "error: "),
        (["seeds=[0]", "baselines=[logistic,logistic]"], "baselines"),
    ],
)
def test_mistakes_are_told(recipe, words, says, capsys):
    assert baseline(recipe, *words) == 2
    assert says in capsys.readouterr().err


def test_a_file_of_something_else_is_refused_before_it_is_replaced(recipe, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "baselines.json").write_text("[1]")
    assert baseline(recipe, "--models", "logistic") == 2
    assert "does not hold baselines" in capsys.readouterr().err
    assert (tmp_path / "out" / "baselines.json").read_text() == "[1]"
