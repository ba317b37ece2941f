"""Known tasks: entries are whole, folders are found in every layout, a recipe gets what it leaves open."""

from pathlib import Path

import pytest

from lingo_ds.config.known_tasks import (
    REGISTRY_FILE,
    layered,
    lookup,
    parse_registry,
    registry,
    with_registry,
)
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import load_runs
from lingo_ds.config.task_config import SelectionConfig
from lingo_ds.config.templates import fill_template
from lingo_ds.utils.errors import UserError

TASKS = list(registry().tasks.values())
FACTORS = [f"{species}_{k}" for species in ("tf", "mouse") for k in range(5)]
MARKS = ["H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac", "H4", "H4ac"]
PROMOTERS = [f"prom_{size}_{box}" for size in ("300", "core") for box in ("all", "notata", "tata")]
GUE = {
    **{f"EMP_{mark}": f"EMP/{mark}" for mark in MARKS},
    **{name: f"prom/{name}" for name in PROMOTERS},
    **{name: name.replace("_", "/") for name in FACTORS},
    "splice_reconstructed": "splice/reconstructed",
    "virus_covid": "virus/covid",
}
"""Where GUE's archive has its 28 data sets."""

HYPER = "data.hyperparameters"
RECIPE = """\
name: known
backbone: {{path: builtin:tiny}}
data: {{task: {task}, root: {root}}}
"""


@pytest.fixture
def load(tmp_path):
    """A recipe that names a task below a root, with overrides."""

    def load(task: str = "prom_core_tata", *overrides: str, root: Path | str = "gue") -> RunConfig:
        path = tmp_path / "known.yaml"
        path.write_text(RECIPE.format(task=task, root=root))
        return load_runs(path, list(overrides))

    return load


@pytest.fixture
def refused(load):
    def refused(*arguments: str, **settings):
        with pytest.raises(UserError) as caught:
            load(*arguments, **settings)
        return caught.value.mistakes

    return refused


# -- the file


def test_every_data_set_of_gue_is_known_and_the_104_histone_labels():
    assert {task.name for task in TASKS} == {*GUE, "human_histone_104"}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_an_entry_is_whole(task):
    assert task.classes == 2 if task.kind == "binary" else task.classes > 2
    assert 50 < task.bp < 2000
    SelectionConfig(metric=task.metric)
    texts = [*task.folders, *task.texts.values(), task.domain]
    assert all(text and "{" not in text and text.isascii() and text == text.strip() for text in texts)
    assert set(task.scores) <= set(registry().models)
    assert all(0 < score < 100 for score in task.scores.values())
    assert set(task.hyperparameters) <= set(registry().hyperparameters)


@pytest.mark.parametrize("name", [*(f"EMP_{mark}" for mark in MARKS), *PROMOTERS])
def test_the_sets_of_the_published_table_have_its_three_models(name):
    assert {"DNABERT 3-mer", "NT-2500M-multi", "DNABERT-2"} <= set(lookup(name).scores)


def test_published_numbers_are_those_of_the_table():
    assert lookup("EMP_H3").scores["DNABERT-2"] == 78.27
    assert lookup("EMP_H4ac").scores["DNABERT 3-mer"] == 38.60
    assert lookup("prom_core_tata").scores["NT-2500M-multi"] == 72.97
    assert lookup("prom_300_notata").scores["DNABERT-2"] == 94.27


def test_a_registry_with_something_unknown_or_of_another_type_is_refused():
    text = REGISTRY_FILE.read_text()
    for good, bad in [("bp: 500", "bp: many"), ("bp: 500", "bases: 500"), ("kind: binary", "kind: other")]:
        with pytest.raises(ValueError):
            parse_registry(text.replace(good, bad, 1))


def test_data_here_has_the_bases_that_the_registry_says(shared):
    root, seen = shared / "data/gue", 0
    for task in TASKS:
        folder = task.folder(root)
        if folder.is_dir():
            rows = (folder / "dev.csv").read_text().splitlines()[1:]
            lengths, labels = zip(
                *((len(s), int(y)) for s, y in (row.split(",") for row in rows)), strict=True
            )
            # a few sequences of GUE are a base shorter
            assert sorted(lengths)[len(lengths) // 2] == task.bp and set(labels) == set(range(task.classes))
            seen += 1
    assert seen == 7


# -- folders


@pytest.mark.parametrize("name", GUE)
def test_gues_own_layout_is_found(load, tmp_path, name):
    (tmp_path / GUE[name]).mkdir(parents=True)
    assert load(name, root=tmp_path).data.path == str(tmp_path / GUE[name])


@pytest.mark.parametrize("name", [*GUE, "human_histone_104"])
def test_a_flat_folder_of_the_name_is_found(load, tmp_path, name):
    (tmp_path / name).mkdir()
    assert load(name, root=tmp_path).data.path == str(tmp_path / name)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_pattern_is_tried_in_order(tmp_path, task):
    assert task.folder(tmp_path) == tmp_path / task.folders[0]
    for folder in reversed(task.folders):
        (tmp_path / folder).mkdir(parents=True)
        assert task.folder(tmp_path) == tmp_path / folder


# -- what a recipe gets


def test_a_task_fills_what_the_recipe_leaves_open(load):
    config = load("virus_covid")
    assert (config.data.domain, config.selection.metric) == ("SARS-CoV-2 variants", "macro_f1")
    assert config.data.path == "gue/virus/covid" and config.data.prefix is None


@pytest.mark.parametrize(
    "override, found",
    [
        ("data.path=elsewhere", lambda config: config.data.path == "elsewhere"),
        ("data.domain=null", lambda config: config.data.domain is None),
        ("data.root=/data/GUE", lambda config: config.data.path == "/data/GUE/virus/covid"),
        ("selection.metric=mcc", lambda config: config.selection.metric == "mcc"),
    ],
)
def test_what_the_recipe_says_wins(load, override, found):
    assert found(load("virus_covid", override))


def test_a_written_config_reads_back_equal(load, tmp_path):
    config = load("EMP_H3", "data.prefix=rich", "data.hyperparameters=lingo")
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_runs(tmp_path / "again.yaml") == config


def test_published_settings_are_those_of_the_task(load):
    lingo = load("prom_300_tata", "data.hyperparameters=lingo")
    assert (lingo.train.num_epochs, lingo.train.learning_rate, lingo.adapter.alpha) == (10, 3e-5, 32)
    assert load("prom_300_all", "data.hyperparameters=lingo").train.num_epochs == 4
    mine = load("prom_300_tata", "data.hyperparameters=lingo", "train.learning_rate=0.001")
    assert (mine.train.learning_rate, mine.train.weight_decay) == (1e-3, 5e-3)
    other = load("mouse_0", "data.hyperparameters=dnabert2")
    assert (other.train.max_steps, other.train.global_batch_size, other.train.warmup) == (1000, 32, 30)


@pytest.mark.parametrize(
    "arguments, where, fix",
    [
        (("prom_core_tatta",), "data.task (known.yaml:3)", "did you mean prom_core_tata?"),
        (("prom_core_tata", "data.task=zzz"), "data.task (command line)", "known: EMP_H3, "),
        (("EMP_H3", "data.root=null"), "data.root (command line)", "set data.root"),
        (("EMP_H3", HYPER + "=ling"), HYPER + " (command line)", "did you mean lingo"),
        (("tf_0", HYPER + "=lingo"), HYPER + " (command line)", "known for tf_0: dnabert2"),
    ],
)
def test_mistakes_are_told_in_words(refused, arguments, where, fix):
    (mistake,) = refused(*arguments)
    assert mistake.where == where and mistake.fix.startswith(fix)


def test_a_recipe_without_a_task_stays_as_it_is():
    values = {"name": "x", "data": {"path": "here", "prefix": "{sequence}"}, 5: "odd"}
    assert with_registry(values) == values
    assert with_registry({"data": 5}) == {"data": 5}


def test_layers_and_words():
    assert layered({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": None}, "d": {"e": 4}}) == {
        "a": {"b": None, "c": 2},
        "d": {"e": 4},
    }
    assert fill_template("{a} {b} {sequence} {a}", {"a": "{b}", "b": "2"}) == "{b} 2 {sequence} {b}"
