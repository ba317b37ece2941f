"""Many runs over one backbone: each is what it is alone, a stopped suite resumes, the table is right."""

import csv
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from lingo_ds.commands.cli import main
from lingo_ds.config.suite_config import Suite, load_runs
from lingo_ds.distributed import process_group
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.ops.frozen_map import FrozenMap
from lingo_ds.monitor.baselines import ModelResult, write_baselines
from lingo_ds.monitor.suite_table import TaskResult, result_rows, write_results
from lingo_ds.training.setup import prepare
from lingo_ds.training.shared_backbone import SharedBackbone
from lingo_ds.utils.errors import Mistake, UserError
from tests.first_rows import first_rows
from tests.unit.running import at_step, command, contents, crash, ctrl_c, once, report_of
from tests.unit.training.test_page import words_of

TASKS, SEEDS = ("prom_core_tata", "mouse_0"), (0, 1)
RUNS = [(task, seed) for task in TASKS for seed in SEEDS]
RECIPE = """\
name: small
tasks: [prom_core_tata, mouse_0]
seeds: [0, 1]
backbone: {{path: {backbone}}}
data: {{root: {root}, prefix: published, cache_dir: {cache}}}
adapter: {{rank: 4, dropout: 0.1}}
rank_sampling: {{target_rank: 2, interval: 2, t_init: 1, t_final: 3}}
train: {{global_batch_size: 8, max_steps: 8, eval_steps: 4}}
zero: {{stage: 0}}
checkpoint: {{every: 2}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, shared) -> Path:
    """A suite over the first rows of two of GUE's sets, one in GUE's own layout."""
    folder = tmp_path_factory.mktemp("recipe")
    for task, place in zip(TASKS, ("prom_core_tata", "mouse/0"), strict=True):
        first_rows(shared / "data/gue" / task, folder / place, {"train": 64, "dev": 40, "test": 40})
    text = RECIPE.format(backbone=shared / "backbones/stories260k", root=folder, cache=folder / "cache")
    (folder / "suite.yaml").write_text(text)
    (folder / "single.yaml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith(("tasks", "seeds")))
    )
    return folder / "suite.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> tuple[Path, str]:
    """Folder and log of a suite that ran to its end."""
    out = tmp_path_factory.mktemp("suite") / "finished"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    return out, shown


def folder_of(out: Path, task: str, seed: int) -> Path:
    return out / task / f"seed-{seed}"


def decided(folder: Path) -> dict:
    """All that a run's training decides: its adapter, its report without times, its predictions."""
    report = report_of(folder)
    parts = {k: v for k, v in report.items() if k not in ("throughput", "traffic", "memory", "checkpoints")}
    return {**contents(folder / "adapter"), "report": json.dumps(parts)}


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(newline="") as opened:
        return {row["task"]: row for row in csv.DictReader(opened)}


# -- the runs


@pytest.mark.parametrize("task, seed", [("prom_core_tata", 1), ("mouse_0", 0)])
def test_a_run_within_a_suite_is_the_same_run_alone(finished, recipe, tmp_path, task, seed):
    """One that follows another seed, and one that follows another task."""
    own = (f"data.task={task}", f"seed={seed}", f"name={task}")
    status, shown = command("train", recipe.with_name("single.yaml"), tmp_path / "alone", *own)
    assert status == 0, shown
    inside = folder_of(finished[0], task, seed)
    assert decided(inside) == decided(tmp_path / "alone")
    left = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*")}
    names = {path for path in left if not path.name.startswith("events.out")}
    assert names <= {path.relative_to(inside) for path in inside.rglob("*")}


def test_seeds_and_tasks_make_different_runs(finished):
    adapters = {decided(folder_of(finished[0], *run))["adapter_model.safetensors"] for run in RUNS}
    assert len(adapters) == len(RUNS)


def test_the_backbone_is_loaded_once(finished):
    _, shown = finished
    assert shown.count("backbone loaded") == 1
    assert shown.count("run 4 of 4: mouse_0, seed 1") == 1


def test_a_backbone_that_must_be_loaded_otherwise_is(finished, recipe, tmp_path):
    suite, env = load_runs(recipe), process_group.detect()
    shared = SharedBackbone()
    models = [shared.build(prepare(suite.members[k].config, env)) for k in (0, 2)]
    assert models[0].backbone is models[1].backbone
    for model in models:
        model.detach()
    padded = load_runs(recipe, ["data.packing=off"]).members[0].config
    assert shared.build(prepare(padded, env)).backbone is not models[0].backbone


def test_a_run_takes_its_own_adapters_off_the_backbone(recipe):
    suite, env, shared = load_runs(recipe), process_group.detect(), SharedBackbone()
    setup = prepare(suite.members[0].config, env)

    def forwards(model: AdaptedModel) -> list[object]:
        return [vars(model.backbone.module.get_submodule(site.name))["forward"] for site in setup.sites]

    first, second = (shared.build(setup) for _ in range(2))
    assert first.backbone is second.backbone
    first.detach()
    assert not any(isinstance(forward, FrozenMap) for forward in forwards(second))
    second.detach()
    assert all(isinstance(forward, FrozenMap) for forward in forwards(second))


# -- stopping and resuming


def test_a_killed_suite_resumes_where_it_was(finished, recipe, tmp_path):
    out = tmp_path / "killed"
    calls = iter([lambda: None, lambda: None, crash])  # in the third run, beside the fourth
    with at_step(6, lambda: next(calls)()), pytest.raises(RuntimeError, match="on fire"):
        command("train", recipe, out, "concurrent=2")
    assert rows_of(out)["prom_core_tata"]["runs"] == "2/2" and rows_of(out)["mouse_0"]["runs"] == "0/2"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    assert "run 1 of 4: prom_core_tata, seed 0: already finished" in shown
    assert "continuing with step 5" in " ".join(shown.split())
    assert [decided(folder_of(out, *run)) for run in RUNS] == [
        decided(folder_of(finished[0], *run)) for run in RUNS
    ]
    assert rows_of(out) == rows_of(finished[0])


def test_ctrl_c_ends_the_suite_and_all_its_runs(recipe, tmp_path):
    out = tmp_path / "stopped"
    with at_step(3, once(ctrl_c)):
        status, shown = command("train", recipe, out, "concurrent=3")
    assert status == 0, shown
    assert "interrupted; run the same command again" in shown
    assert {report_of(folder_of(out, *run))["outcome"] for run in RUNS[:3]} == {"interrupted"}
    assert not folder_of(out, *RUNS[3]).exists()
    assert rows_of(out)["prom_core_tata"]["runs"] == "0/2"


def test_what_is_finished_is_not_made_again_unless_it_is_another_run(finished, recipe, tmp_path):
    out, chosen = tmp_path / "twice", ("tasks=[prom_core_tata]", "seeds=[0]")
    for settings, said in [((), False), ((), True), (("train.learning_rate=0.001",), False)]:
        status, shown = command("train", recipe, out, *chosen, *settings)
        assert status == 0, shown
        assert ("already finished" in shown) == said
    assert (folder_of(out, "prom_core_tata", 0) / "earlier/1/report.json").is_file()


def test_missing_data_is_all_named_before_anything_is_trained(recipe, tmp_path):
    tasks = "tasks=[EMP_H3,prom_core_tata,tf_1]"
    status, shown = command("train", recipe, tmp_path / "out", tasks)
    assert status == 2 and not (tmp_path / "out").exists()
    lines = [line for line in shown.splitlines() if line.startswith("error: data.root: ")]
    assert [line.split("has no folder of ")[1].split(":")[0] for line in lines] == [
        "EMP_H3 (EMP/H3 or EMP_H3 or H3)",
        "tf_1 (tf/1 or tf_1)",
    ]
    assert all(line.endswith("choose with tasks=[prom_core_tata]") for line in lines)


def test_mistakes_in_the_data_or_plan_of_any_task_are_told_before_anything_is_trained(recipe, tmp_path):
    shutil.copytree(recipe.parent / "prom_core_tata", tmp_path / "prom_core_tata")
    shutil.copytree(recipe.parent / "prom_core_tata", tmp_path / "prom_300_tata")
    shutil.copytree(recipe.parent / "prom_core_tata", tmp_path / "tf_0")
    (tmp_path / "prom_300_tata/test.csv").write_text("sequence,label\nACXT,0\n")
    (tmp_path / "tf_0/dev.csv").write_text("sequence,label\nACGT,x\n")
    tasks = "tasks=[prom_core_tata,prom_300_tata,tf_0]"
    status, shown = command("train", recipe, tmp_path / "out", tasks, f"data.root={tmp_path}")
    assert status == 2 and not (tmp_path / "out").exists()
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1].removeprefix(str(tmp_path)) for line in errors] == [
        "/prom_300_tata/test.csv:2",
        "/tf_0/dev.csv:2",
    ]


def test_a_report_that_is_none_is_told(recipe, tmp_path):
    folder = folder_of(tmp_path, "prom_core_tata", 0)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("[]")
    status, _ = command("train", recipe, tmp_path)
    assert status == 2


# -- the other verbs


def test_plan_prints_every_task_once_and_trains_nothing(recipe, tmp_path, capsys):
    status, shown = command("plan", recipe, tmp_path / "out")
    assert status == 0, shown
    said = capsys.readouterr().out
    assert [said.count(f"{task}, 2 runs") for task in TASKS] == [1, 1]
    assert said.count("run        8 steps") == 2
    assert not (tmp_path / "out").exists()


def test_evaluate_gives_every_runs_numbers_again(finished, recipe):
    status, shown = command("evaluate", recipe, finished[0])
    assert status == 0, shown
    assert shown.count("backbone loaded") == 1
    for run in RUNS:
        folder = folder_of(finished[0], *run)
        again = json.loads((folder / "evaluation.json").read_text())["metrics"]["test"]
        assert again == report_of(folder)["metrics"]["test"]


# -- a grid

GRID = ("--grid", "train.learning_rate=1e-5,1e-2", "--grid", "head.pooling=[mean]")
LABELS = ["learning_rate=1e-05,pooling=mean", "learning_rate=0.01,pooling=mean"]


def single(recipe: Path) -> Path:
    """The recipe of one run, without tasks and seeds."""
    return recipe.with_name("single.yaml")


def test_a_grid_over_one_run_is_trained_and_its_best_on_dev_chosen(recipe, tmp_path, capsys):
    out, task = tmp_path / "tried", ("data.task=prom_core_tata", "name=tata")
    status, shown = command("evaluate", single(recipe), out, *GRID, *task)
    assert status == 2 and "grid: " in shown and "has no chosen setting yet" in shown
    status, shown = command("train", single(recipe), out, *GRID, *task)
    assert status == 0, shown
    assert f"run 2 of 2: prom_core_tata, {LABELS[1]}, seed 0" in shown
    reports = {label: report_of(out / label / "seed-0") for label in LABELS}
    dev = {label: report["metrics"]["dev"]["mcc"] for label, report in reports.items()}
    best = max(dev, key=dev.__getitem__)
    assert len({*dev.values()}) > 1, "the settings must differ for the choice to mean something"
    (row,) = rows_of(out).values()
    assert (row["setting"], row["runs"]) == (best, "1/1")
    assert row["test"] == f"{100 * reports[best]['metrics']['test']['mcc']:.2f}"
    with (out / "settings.csv").open(newline="") as opened:
        tried = list(csv.DictReader(opened))
    assert [(one["setting"], one["dev at 1"]) for one in tried] == [
        (label, f"{100 * value:.2f}") for label, value in dev.items()
    ]
    assert [one["setting"] for one in tried if one["outcome"] == "chosen"] == [best]
    capsys.readouterr()
    status, shown = command("evaluate", single(recipe), out, *GRID, *task)
    assert status == 0, shown
    assert f"prom_core_tata, {best}, seed 0" in capsys.readouterr().out
    assert [label for label in LABELS if (out / label / "seed-0/evaluation.json").exists()] == [best]


def test_each_setting_of_a_grid_has_a_plan(recipe, tmp_path, capsys):
    status, shown = command("plan", recipe, tmp_path / "out", "--grid", "train.max_steps=8,9")
    assert status == 0, shown
    said = capsys.readouterr().out
    for task in TASKS:
        assert said.count(f"{task}, max_steps=8, 2 runs") == said.count(f"{task}, max_steps=9, 2 runs") == 1
    assert said.count("run        8 steps") == said.count("run        9 steps") == 2


def test_a_grid_without_values_is_refused(recipe, tmp_path):
    with pytest.raises(SystemExit) as ended:
        command("train", recipe, tmp_path / "out", "--grid", "train.max_steps")
    assert ended.value.code == 2


# -- the table


def test_the_table_has_mean_and_spread_over_seeds_beside_what_was_published(finished):
    out, _ = finished
    rows = rows_of(out)
    assert list(rows) == list(TASKS)
    for task, row in rows.items():
        reports = [report_of(folder_of(out, task, seed)) for seed in SEEDS]
        for split in ("dev", "test"):
            values = [100 * report["metrics"][split]["mcc"] for report in reports]
            assert row[split] == f"{statistics.mean(values):.2f}"
            assert row[f"{split} sd"] == f"{statistics.stdev(values):.2f}"
        assert (row["metric"], row["runs"]) == ("mcc", "2/2")
    assert rows["prom_core_tata"]["DNABERT-2"] == "74.17" and rows["mouse_0"]["DNABERT-2"] == ""
    text = (out / "results.md").read_text()
    assert text.splitlines()[0].startswith("| task | metric | runs | dev | dev sd |")
    assert "arXiv 2306.15006, Table 4" in text


def test_its_page_links_every_run_and_is_made_anew(finished, tmp_path, capsys):
    out = Path(shutil.copytree(finished[0], tmp_path / "suite"))
    before = words_of(out / "report.html")
    scores = {run: 100 * report_of(out / run[0] / f"seed-{run[1]}")["metrics"]["test"]["mcc"] for run in RUNS}
    for (task, seed), score in scores.items():
        link = f'<a href="{task}/seed-{seed}/report.html">{score:.2f}</a>'
        assert (
            link in (out / "report.html").read_text() and (out / task / f"seed-{seed}/report.html").exists()
        )
    of_task = [scores["prom_core_tata", seed] for seed in SEEDS]
    mean, spread = statistics.mean(of_task), statistics.stdev(of_task)
    assert f"prom_core_tata MCC 2/2 {mean:.2f} \N{PLUS-MINUS SIGN} {spread:.2f}" in before
    assert "74.17" in before and "4 of 4" in before, "DNABERT-2's published score"
    for page in out.rglob("report.html"):
        page.unlink()
    (out / "mouse_0/seed-1/report.json").unlink()
    baseline = ModelResult(title="", parameters=1, seconds=1, metrics={"test": {"mcc": 0.12345}})
    write_baselines(out / "prom_core_tata/seed-0", {"cnn": baseline})
    assert main(["report", str(out)]) == 0 and str(out / "report.html") in capsys.readouterr().out
    after = words_of(out / "report.html")
    assert "1 of 4 runs have not ended" in after and "not ended" in after and "12.35" in after
    assert len([*out.rglob("report.html")]) == 5, "of the run that has not ended, too"
    (out / "results.json").write_text("{")
    assert main(["report", str(out)]) == 2 and "results.json" in capsys.readouterr().err


def test_the_table_says_what_is_missing_and_what_is_not_defined(tmp_path):
    results = [
        TaskResult("a", "mcc", 3, [0.5], [0.25], {"M": 70.0}),
        TaskResult("b", "auroc", 2, [], [], {}),
        TaskResult("c", "mcc", 2, [0.1, 0.3], [None, 0.2], {"N": 1.0}),
    ]
    cells = [list(row.values()) for row in result_rows(results)]
    assert cells == [
        ["a", "mcc", "1/3", "50.00", "", "25.00", "", "70.00", ""],
        ["b", "auroc", "0/2", "", "", "", "", "", ""],
        ["c", "mcc", "2/2", "20.00", "14.14", "20.00", "", "", "1.00"],
    ]
    write_results(tmp_path, results, notes=["M: somewhere"])
    assert (tmp_path / "results.md").read_text().endswith("\n\n- M: somewhere\n")


# -- the recipe


@pytest.fixture
def refused(tmp_path) -> Callable[..., list[Mistake]]:
    def refused(text: str, *overrides: str) -> list[Mistake]:
        (tmp_path / "suite.yaml").write_text("name: s\nbackbone: {path: builtin:tiny}\n" + text)
        with pytest.raises(UserError) as caught:
            load_runs(tmp_path / "suite.yaml", list(overrides))
        return caught.value.mistakes

    return refused


@pytest.mark.parametrize(
    "text, where, words",
    [
        ("tasks: [H3]\n", "tasks (suite.yaml:3)", "did you mean EMP_H3?"),
        ("tasks: [tf_0, tf_0]\ndata: {root: r}\n", "tasks (suite.yaml:3)", "repeat an item"),
        ("tasks: tf_0\ndata: {root: r}\n", "tasks (suite.yaml:3)", "is not a list: write [tf_0]"),
        ("seeds: 5\n", "seeds (suite.yaml:3)", "is not a list: write [5]"),
        ("tasks: []\n", "tasks (suite.yaml:3)", "must not be empty"),
        ("seeds: [0, -1]\n", "seeds (suite.yaml:3)", "greater than or equal to 0"),
        ("tasks: [tf_0]\ndata: {path: here}\n", "data.path", "cannot be combined with tasks"),
        ("tasks: [tf_0]\ndata: {task: tf_1, root: r}\n", "data.task", "cannot be combined with tasks"),
        ("seeds: [0]\nseed: 1\ndata: {path: here}\n", "seed", "cannot be combined with seeds"),
        ("tasks: [tf_0]\n", "data.root (suite.yaml)", "is needed to find data.task tf_0"),
        ("tasks: [tf_0, tf_1]\ndata: {root: r}\ntrian: {}\n", "trian (suite.yaml:5)", "did you mean train?"),
    ],
)
def test_mistakes_in_a_suite_are_told_once_and_in_words(refused, text, where, words):
    mistake = refused(text)[0]
    assert mistake.where == where
    assert words in f"{mistake.rule}: {mistake.fix}"


def test_seeds_alone_make_runs_of_the_recipes_own_data(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "name: s\nseeds: [3, 5]\nbackbone: {path: builtin:tiny}\ndata: {path: builtin:promoters}\n"
    )
    suite = load_runs(tmp_path / "s.yaml")
    assert isinstance(suite, Suite)
    assert [(one.seed, one.config.seed, str(one.config.run_dir)) for one in suite.members] == [
        (3, 3, "runs/s/seed-3"),
        (5, 5, "runs/s/seed-5"),
    ]


# -- recipes over recipes


@pytest.fixture
def write(tmp_path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


BASE = (
    "name: base\nbackbone: {path: builtin:tiny}\ndata: {path: here}\ntrain: {max_steps: 7, num_epochs: 2}\n"
)


def test_a_recipe_extends_another_section_by_section(write):
    write("base.yaml", BASE)
    write("middle.yaml", "extends: base.yaml\ntrain: {max_steps: 9}\n")
    config = load_runs(write("top.yaml", "extends: middle.yaml\nname: top\n"), ["data.path=there"])
    assert (config.name, config.train.max_steps, config.train.num_epochs) == ("top", 9, 2)
    assert (config.backbone.path, config.data.path) == ("builtin:tiny", "there")


def test_a_mistake_in_the_recipe_below_is_told_where_it_stands(write):
    write("base.yaml", BASE + "seed: -1\n")
    with pytest.raises(UserError) as caught:
        load_runs(write("top.yaml", "extends: base.yaml\nhed: {}\n"))
    assert [one.where for one in caught.value.mistakes] == ["seed (base.yaml:5)", "hed (top.yaml:2)"]


@pytest.mark.parametrize(
    "extends, rule",
    [
        ("top.yaml", "leads back"),
        ("nowhere.yaml", "is not a file"),
        ("5", "is not a file name"),
        ("round.yaml", "leads"),
        ("x" * 300, "is not a file"),
        ('"a\\0b"', "is not a file"),
    ],
)
def test_what_cannot_be_extended_is_told(write, extends, rule):
    write("round.yaml", "extends: top.yaml\n")
    with pytest.raises(UserError) as caught:
        load_runs(write("top.yaml", f"extends: {extends}\n"))
    (mistake,) = caught.value.mistakes
    assert mistake.where.startswith("extends (") and rule in mistake.rule
