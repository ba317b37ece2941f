"""A recipe with a grid is a suite of all its combinations; every mistake in them is told, once."""

from pathlib import Path

import pytest

from lingo_ds.config.grid import MAX_COMBINATIONS
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Suite
from tests.unit.config.recipes import MINIMAL, where

GRID = """\
grid:
  train.learning_rate: [1e-4, 3e-4]
  adapter.rank: [4, 8]
"""


def plain(suite: Suite) -> list[tuple]:
    return [
        (one.label, one.seed, one.config.train.learning_rate, one.config.adapter.rank)
        for one in suite.members
    ]


def test_a_grid_is_a_suite_of_its_combinations_and_seeds(load):
    suite = load(MINIMAL + "seeds: [5, 7]\n" + GRID)
    assert plain(suite) == [
        (f"learning_rate={rate},rank={rank}", seed, rate, rank)
        for rate in (1e-4, 3e-4)
        for rank in (4, 8)
        for seed in (5, 7)
    ]
    last = suite.members[-1]
    assert last.setting == {"train.learning_rate": 3e-4, "adapter.rank": 8}
    assert last.config.run_dir == Path("runs/tata/learning_rate=0.0003,rank=8/seed-7")
    assert (last.task, last.title) == ("tata", "tata, learning_rate=0.0003,rank=8")
    defaults = suite.config
    assert (defaults.concurrent, defaults.placement, defaults.search.method) == ("auto", "replicated", "all")


def test_each_task_is_tried_with_each_setting(load):
    text = "name: s\nbackbone: {path: builtin:tiny}\ndata: {root: r}\ntasks: [tf_0, mouse_0]\n"
    suite = load(text + "grid: {data.prefix: [none, published]}\n")
    assert [(one.task, one.label, str(one.config.run_dir)) for one in suite.members] == [
        (task, f"prefix={prefix}", f"runs/s/{task}/prefix={prefix}/seed-0")
        for task in ("tf_0", "mouse_0")
        for prefix in ("none", "published")
    ]
    assert [one.config.data.prefix is None for one in suite.members] == [True, False] * 2


def test_without_a_grid_runs_and_folders_are_as_ever(load):
    (one,) = load(MINIMAL + "seeds: [3]\nconcurrent: 2\nplacement: groups\n").members
    assert (one.setting, one.label, one.title) == ({}, "", "tata")
    assert one.config.run_dir == Path("runs/tata/seed-3")
    assert isinstance(load(MINIMAL), RunConfig)


def test_a_grid_lies_over_the_recipes_own_value_and_keeps_its_seed(load):
    suite = load(
        MINIMAL + "seed: 9\ntrain: {learning_rate: 0.5, max_steps: 7}\n", "grid.train.learning_rate=[1e-4]"
    )
    (one,) = suite.members
    assert (one.seed, one.config.train.learning_rate, one.config.train.max_steps) == (9, 1e-4, 7)


@pytest.mark.parametrize(
    "override",
    [
        "grid.train.learning_rate=[0.1]",
        "grid={train.learning_rate: [0.1], adapter.rank: [4, 8]}",
        "grid={train: {learning_rate: [0.1]}, adapter: {rank: [4, 8]}}",
    ],
)
def test_an_override_of_the_grid_wins_over_the_file(load, override):
    suite = load(MINIMAL + GRID, override)
    assert [row[2:] for row in plain(suite)] == [(0.1, 4), (0.1, 8)]


def test_an_empty_grid_on_the_command_line_turns_that_of_the_file_off(load):
    (one,) = load(MINIMAL + GRID, "grid={}").members
    assert one.label == ""


def test_search_is_read_as_it_is_written(load):
    search = load(
        MINIMAL + GRID + "search: {method: halving, keep: 0.5}\n", "search.at=[0.1,0.3]"
    ).config.search
    assert (search.method, search.keep, search.at) == ("halving", 0.5, (0.1, 0.3))


@pytest.mark.parametrize(
    "text, place, words",
    [
        (
            "grid: {train.learning_rat: [1]}",
            "grid.train.learning_rat (run.yaml:6)",
            "mean train.learning_rate?",
        ),
        ("grid: {trian.x: [1]}", "grid.trian.x (run.yaml:6)", "did you mean train?"),
        (
            "grid: {train.max_steps.x: [1]}",
            "grid.train.max_steps.x (run.yaml:6)",
            "max_steps is a setting itself",
        ),
        (
            "grid: {data.intervals: [1]}",
            "grid.data.intervals (run.yaml:6)",
            "write e.g. data.intervals.genome",
        ),
        ("grid:\n  train.warmup: [1]\n  seed: [1, 2]", "grid.seed (run.yaml:8)", "set e.g. seeds=[0,1,2]"),
        ("grid: {name: [a]}", "grid.name (run.yaml:6)", "folder that is named after its setting"),
        ("grid: {output_dir: [a]}", "grid.output_dir (run.yaml:6)", "folder that is named after its setting"),
        ("grid: {backbone.path: [a]}", "grid.backbone.path (run.yaml:6)", "with extends: all runs share one"),
        ("grid: {zero.stage: [0, 3]}", "grid.zero.stage (run.yaml:6)", "all runs share one backbone"),
        ("grid: {checkpoint.every: [5]}", "grid.checkpoint.every (run.yaml:6)", "outside of the grid"),
        ("grid: {data.task: [tf_0]}", "grid.data.task (run.yaml:6)", "set tasks"),
        ("grid: {data.split_seed: [0, 1]}", "grid.data.split_seed (run.yaml:6)", "same dev rows"),
        ("grid: {selection.metric: [mcc]}", "grid.selection.metric (run.yaml:6)", "compared by it"),
        ("grid: {adapter.rank: 8}", "grid.adapter.rank (run.yaml:6)", "is not a list: write [8]"),
        ("grid: {adapter: {rank: [8, 8]}}", "grid.adapter.rank (run.yaml:6)", "repeat an item"),
        ("grid: {adapter.rank: []}", "grid.adapter.rank (run.yaml:6)", "must not be empty"),
        ("grid: 5", "grid (run.yaml:6)", "valid dictionary"),
        ("seeds: [0]\nconcurrent: 0", "concurrent (run.yaml:7)", "greater than or equal to 1"),
        ("seeds: [0]\nplacement: half", "placement (run.yaml:7)", "replicated"),
        ("seeds: [0]\nsearch: {keep: 0.5}", "search.keep (run.yaml:7)", "set search.method=halving"),
        ("seeds: [0]\nsearch: {method: halving, keep: 1}", "search.keep (run.yaml:7)", "less than 1"),
        ("seeds: [0]\nsearch: {method: halving, at: [0.5, 0.2]}", "search.at (run.yaml:7)", "increasing"),
        ("seeds: [0]\nsearch: {method: halving, at: []}", "search.at (run.yaml:7)", "increasing"),
        (
            "search: {method: halving}",
            "search (run.yaml:6)",
            "no effect on a single run: set tasks, seeds or grid",
        ),
        ("concurrent: 2", "concurrent (run.yaml:6)", "no effect on a single run: set tasks, seeds or grid"),
        ("seed: x\ngrid: {adapter.rank: [8]}", "seeds (run.yaml:6)", "valid integer"),
    ],
)
def test_a_mistake_in_grid_or_search_has_its_place_and_a_way_out(refused, text, place, words):
    (mistake,) = refused(MINIMAL + text + "\n")
    assert mistake.where == place
    assert words in f"{mistake.rule}: {mistake.fix}"


def test_mistakes_of_all_combinations_are_told_at_once_each_once(refused):
    text = """\
seeds: [0, 1]
grid:
  train.learning_rate: [-1, 1e-4, fast]
  adapter.rank: [2, 8]
"""
    mistakes = refused(MINIMAL + text)
    assert [(mistake.where, str(mistake.value)) for mistake in mistakes] == [
        ("train.learning_rate (run.yaml:8)", "-1"),
        ("rank_sampling.target_rank (run.yaml)", "4"),
        ("train.learning_rate (run.yaml:8)", "fast"),
    ]
    assert mistakes[0].rule.endswith("(with learning_rate=-1,rank=2 and 1 more)")
    assert mistakes[1].rule.endswith("(with learning_rate=0.0001,rank=2)")
    (mistake,) = refused(MINIMAL + "hed: {}\n" + GRID)
    assert (mistake.where, mistake.rule) == ("hed (run.yaml:6)", "is not a known setting")


def test_a_grid_of_too_many_combinations_is_refused_before_any_is_made(refused):
    values = ",".join(map(str, range(1, 12)))
    names = ("train.max_steps", "train.eval_steps", "adapter.rank")
    (mistake,) = refused(MINIMAL + f"grid: {{{', '.join(f'{name}: [{values}]' for name in names)}}}\n")
    assert mistake.where == "grid (run.yaml:6)"
    assert mistake.rule == f"has 1,331 combinations, more than {MAX_COMBINATIONS:,}"


def test_a_setting_of_the_command_line_is_not_silently_lost_to_the_grid(refused):
    mistakes = refused(MINIMAL + GRID, "adapter.rank=6", "data.root=r")
    assert where(mistakes) == ["grid.adapter.rank"]
    assert "cannot be combined with adapter.rank on the command line" in mistakes[0].rule
