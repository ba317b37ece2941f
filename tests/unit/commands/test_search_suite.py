"""A suite with a grid: settings pause, are dropped or go on, and the chosen one alone sees test."""

import csv
import json
from pathlib import Path

import pytest

from tests.first_rows import first_rows
from tests.unit.running import at_step, command, contents, ctrl_c, once, report_of

RECIPE = """\
name: search
seeds: [0, 1]
grid: {{train.learning_rate: [0.001, 0.01, 0.1], adapter.rank: [4, 8]}}
search: {{method: halving, keep: 0.4, at: [0.25, 0.5]}}
backbone: {{path: {backbone}}}
data: {{path: {data}, cache_dir: {cache}}}
rank_sampling: {{target_rank: 2}}
train: {{global_batch_size: 8, max_steps: 12, eval_steps: 100}}
zero: {{stage: 0}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shared) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = {"train": 64, "dev": 40, "test": 40}
    data = first_rows(shared / "data/gue/prom_core_tata", folder / "data", rows)
    text = RECIPE.format(backbone=shared / "backbones/stories260k", data=data, cache=folder / "cache")
    (folder / "search.yaml").write_text(text)
    return folder / "search.yaml"


@pytest.fixture(scope="module")
def searched(tmp_path_factory, recipe) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("search") / "out"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    return out, shown


def reports(out: Path) -> dict[str, dict]:
    return {str(path.parent.relative_to(out)): report_of(path.parent) for path in out.rglob("report.json")}


def settings_of(out: Path) -> list[dict[str, str]]:
    with (out / "settings.csv").open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_six_settings_become_three_then_two_then_one(searched):
    out, _ = searched
    outcomes = sorted(row["outcome"] for row in settings_of(out))
    assert outcomes == [
        "chosen",
        "dropped at 0.25",
        "dropped at 0.25",
        "dropped at 0.25",
        *["dropped at 0.5"] * 1,
        "not chosen",
    ]


def test_runs_are_trained_as_far_as_their_setting_went(searched):
    out, _ = searched
    assert sorted(report["steps"] for report in reports(out).values()) == [3] * 6 + [6] * 2 + [12] * 4


def test_the_chosen_setting_alone_sees_test(searched):
    out, _ = searched
    (chosen,) = [row["setting"] for row in settings_of(out) if row["outcome"] == "chosen"]
    tested = [name for name, report in reports(out).items() if report["metrics"]["test"]]
    assert sorted(tested) == [f"{chosen}/seed-{seed}" for seed in (0, 1)]
    assert (out / tested[0] / "predictions/test.parquet").exists()


def test_an_interrupted_search_goes_on_to_the_same_choice(searched, recipe, tmp_path):
    """Stopped in the second stretch; each run resumes from where it paused or was stopped."""
    out = tmp_path / "out"
    with at_step(5, once(ctrl_c)):
        status, shown = command("train", recipe, out)
    assert status == 0 and "interrupted; run the same command again" in shown, shown
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    assert settings_of(out) == settings_of(searched[0])
    for name, report in reports(searched[0]).items():
        assert report_of(out / name)["metrics"] == report["metrics"], name
        if report["metrics"]["test"]:
            assert contents(out / name / "adapter") == contents(searched[0] / name / "adapter")


def test_a_finished_search_is_not_made_again(searched, recipe):
    out, _ = searched
    before = json.dumps(reports(out), sort_keys=True)
    status, shown = command("train", recipe, out)
    assert status == 0 and "to its steps" not in shown and "run " not in shown, shown
    assert json.dumps(reports(out), sort_keys=True) == before


def test_the_chosen_runs_alone_are_evaluated_again(searched, recipe):
    out, _ = searched
    status, shown = command("evaluate", recipe, out)
    assert status == 0, shown
    tested = [name for name, report in reports(out).items() if report["metrics"]["test"]]
    evaluated = {str(path.parent.relative_to(out)) for path in out.rglob("evaluation.json")}
    assert evaluated == set(tested)


OVERFLOWS = ("adapter.rank=4", "train.max_skipped=3")


def test_a_run_that_diverges_ends_in_its_own_words_and_no_other(recipe, tmp_path):
    """A rate at which gradients overflow; the other setting is chosen, and no mistake of the suite's."""
    grid = ["grid={train.learning_rate: [0.01, 1.0e+30]}", "search={method: all}", *OVERFLOWS]
    status, shown = command("train", recipe, tmp_path / "out", *grid)
    assert status == 0, shown
    assert "seed 1: train.max_skipped: '3': the gradient was not finite in 3 steps in a row" in shown
    chosen, failed = settings_of(tmp_path / "out")
    assert chosen["outcome"] == "chosen" and failed["outcome"].endswith("runs failed: 2")
    for seed in (0, 1):
        report = report_of(tmp_path / f"out/learning_rate=0.01/seed-{seed}")
        assert report["outcome"] == "finished" and report["metrics"]["test"]


def test_mistakes_of_runs_without_a_grid_are_the_suites(recipe, tmp_path):
    settings = ["grid={}", "search={method: all}", "train.learning_rate=1e30", *OVERFLOWS]
    status, shown = command("train", recipe, tmp_path / "out", *settings)
    assert status == 2
    for seed in (0, 1):
        assert f"error: train.max_skipped (search, seed {seed}): '3': the gradient was not finite" in shown
