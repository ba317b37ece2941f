"""Collapses: which losses are one, and what a run does that has one."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lingo_ds.config.task_config import TaskConfig
from lingo_ds.data.task import make_task
from lingo_ds.training.collapse import WINDOW, CollapseWatch
from lingo_ds.training.losses import constant_loss, make_loss
from tests.unit.running import at_step, command, contents, ctrl_c, report_of

CHANCE = math.log(2)


def watch(steps: int = 1000) -> CollapseWatch:
    return CollapseWatch(CHANCE, steps=steps, learning_rate=2e-3)


def losses(*levels: float, steps: int = 100, spread: float = 0.08, seed: int = 0) -> list[float]:
    """Losses as noisy as those of 16 examples, so many steps at each level in turn."""
    noise = np.random.default_rng(seed).normal(0, spread, steps * len(levels))
    return (np.repeat(levels, steps) + noise).tolist()


def noticed(one: CollapseWatch, values: list[float], *, first: int = 1) -> list[int]:
    """Steps at which a collapse is noticed."""
    each = enumerate(values, first)
    return [step for step, loss in each if one.follow(step, SimpleNamespace(loss=loss, skipped=False))]


def test_a_loss_that_comes_back_to_chance_is_noticed_once_it_has_stayed_there():
    one = watch()
    first = noticed(one, losses(CHANCE, 0.55, CHANCE))[0]
    assert 200 + WINDOW // 2 < first <= 200 + WINDOW
    assert 100 < one.sound_step < 200
    told = one.told(first)
    assert f"step {first}: the loss is back at chance: 0.6" in told and "constant answer has 0.693" in told


@pytest.mark.parametrize(
    "levels",
    [(CHANCE,) * 20, (0.9, CHANCE, CHANCE), (0.68, CHANCE, CHANCE), (0.55, 0.64, 0.55, 0.64)],
    ids=["never left chance", "came from above", "hardly left it", "lost a half"],
)
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_collapse(levels, seed):
    assert not noticed(watch(), losses(*levels, seed=seed))


def test_a_single_bad_step_and_steps_without_a_gradient_are_no_collapse():
    one = watch()
    assert not noticed(one, [*losses(0.5), 30.0, *losses(0.5)])
    assert not one.follow(300, SimpleNamespace(loss=math.nan, skipped=True))


def test_a_short_run_has_a_short_memory():
    assert noticed(watch(steps=60), losses(CHANCE, 0.4, CHANCE, steps=20, spread=0.02))


def test_after_a_restart_the_rate_is_half_and_what_was_gained_before_counts_no_more():
    one = watch()
    noticed(one, losses(0.5, CHANCE))
    assert one.note(200, restarted_from=80).learning_rate == 1e-3
    assert (one.restarts, one.rate_factor) == (1, 0.5)
    assert not noticed(one, losses(CHANCE, CHANCE))
    assert noticed(one, losses(0.5, CHANCE))
    assert one.note(400, restarted_from=80).learning_rate == 5e-4


def test_a_run_that_goes_on_after_a_collapse_is_told_of_it_once():
    one = watch()
    noticed(one, losses(0.5, CHANCE))
    one.note(200, restarted_from=None)
    assert one.rate_factor == 1
    assert not noticed(one, losses(0.5, CHANCE))


def test_a_resumed_watch_notices_at_the_same_step():
    values = losses(CHANCE, 0.5, CHANCE)
    whole, before, after = watch(), watch(), watch()
    expected = noticed(whole, values)
    assert not noticed(before, values[:215])
    after.load_state_dict(before.state_dict())
    assert noticed(after, values[215:], first=216) == expected
    with pytest.raises(ValueError, match="gain"):
        after.load_state_dict(before.state_dict() | {"gain": "much"})


@pytest.mark.parametrize(
    ("kind", "labels", "setting", "expected"),
    [
        ("binary", [0, 1, 1, 1], {}, -0.75 * math.log(0.75) - 0.25 * math.log(0.25)),
        ("multiclass", [0, 1, 2, 2], {}, 1.5 * math.log(2)),
        ("binary", [0, 1, 1, 1], {"class_weights": [3.0, 1.0]}, 1.5 * math.log(2)),
        ("binary", [0, 1], {"focal_gamma": 2.0}, math.log(2) / 4),
        ("multilabel", [[0.0, 1.0], [1.0, math.nan]], {}, (math.log(3) / 2 + math.log(1.5)) / 2),
        ("regression", [[1.0], [5.0], [9.0]], {}, 1.0),
    ],
    ids=["shares", "three classes", "weights", "focal", "labels", "values"],
)
def test_chance_is_the_loss_of_the_best_constant_answer(kind, labels, setting, expected):
    rows = np.array(labels)
    classes = rows.shape[1] if rows.ndim == 2 else int(rows.max()) + 1
    task = make_task("t", classes=classes, template=None, domain=None, max_length=8)
    scale = {"mean": (5.0,), "scale": (math.sqrt(32 / 3),)} if kind == "regression" else {}
    task = SimpleNamespace(**{**vars(task), "kind": kind, **scale})
    cpu = torch.device("cpu")
    loss = make_loss(task, TaskConfig(**setting), rows, cpu)
    assert constant_loss(loss, rows, outputs=classes, device=cpu) == pytest.approx(expected, abs=1e-4)


RATE, STEPS = 0.1, 100
RECIPE = """\
name: easy
backbone: {{path: builtin:tiny}}
data: {{path: {folder}, cache_dir: {folder}/cache}}
adapter: {{rank: 4}}
rank_sampling: {{target_rank: 2, interval: 2, t_init: 2, t_final: 80}}
train: {{global_batch_size: 16, max_steps: {steps}, eval_steps: 5, learning_rate: {rate}, warmup: 90}}
zero: {{stage: 0}}
"""
"""Learned in ten steps at a rate that then goes on rising until all is lost."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A task that is learned at once: sequences of mostly A and T, or mostly C and G."""
    folder = tmp_path_factory.mktemp("easy")
    generator = np.random.default_rng(0)
    for split, rows in {"train": 256, "dev": 64, "test": 32}.items():
        shares = ([0.1, 0.4, 0.4, 0.1], [0.4, 0.1, 0.1, 0.4])
        drawn = ["".join(generator.choice(list("ACGT"), 12, p=shares[row % 2])) for row in range(rows)]
        lines = ["sequence,label", *(f"{sequence},{row % 2}" for row, sequence in enumerate(drawn))]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (folder / "easy.yaml").write_text(RECIPE.format(folder=folder, rate=RATE, steps=STEPS))
    return folder / "easy.yaml"


@pytest.fixture(scope="module")
def restarted(tmp_path_factory, recipe) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("restarted") / "run"
    status, shown = command("train", recipe, out, "train.on_collapse=restart")
    assert status == 0, shown
    return out, shown


def test_a_run_that_collapses_says_so_once_and_goes_on(recipe, tmp_path):
    status, shown = command("train", recipe, tmp_path / "run")
    report = report_of(tmp_path / "run")
    assert status == 0 and report["steps"] == STEPS
    (found,) = report["collapses"]
    assert (found["restarted_from"], found["learning_rate"]) == (None, RATE)
    assert shown.count("the loss is back at chance") == 1
    assert f"step {found['step']}: " in shown
    assert "set train.on_collapse=restart, or lower train.learning_rate, which is 0.1" in " ".join(
        shown.split()
    )


def test_a_restarted_run_goes_back_to_its_best_step_at_half_the_rate(restarted):
    out, shown = restarted
    report = report_of(out)
    first = report["collapses"][0]
    assert 0 < first["restarted_from"] < first["step"] <= STEPS
    assert first["learning_rate"] == RATE / 2
    assert report["steps"] == STEPS and report["outcome"] == "finished"
    back = f"training goes back to step {first['restarted_from']} at learning rate 0.05"
    assert back in " ".join(shown.split())


def test_a_resumed_run_restarts_as_one_that_went_through(restarted, recipe, tmp_path):
    out, once = tmp_path / "run", [ctrl_c]
    step = report_of(restarted[0])["collapses"][0]["restarted_from"] + 2

    def interrupt() -> None:
        """Once the run is there for the second time."""
        once.append(ctrl_c) if len(once) == 1 else once.pop()()

    with at_step(step, interrupt):
        command("train", recipe, out, "train.on_collapse=restart")
    assert report_of(out)["outcome"] == "interrupted"
    status, shown = command("train", recipe, out, "train.on_collapse=restart")
    assert status == 0 and "resumed from" in shown
    assert contents(out / "adapter") == contents(restarted[0] / "adapter")
    assert report_of(out)["collapses"] == report_of(restarted[0])["collapses"]


def test_a_run_of_a_suite_restarts_as_one_alone_and_leaves_the_others(restarted, recipe, tmp_path):
    out = tmp_path / "suite"
    status, shown = command("train", recipe, out, "seeds=[0,1]", "concurrent=2", "train.on_collapse=restart")
    assert status == 0, shown
    first, second = (report_of(out / f"seed-{seed}") for seed in (0, 1))
    assert first["collapses"] == report_of(restarted[0])["collapses"] != second["collapses"]
    assert contents(out / "seed-0" / "adapter") == contents(restarted[0] / "adapter")
