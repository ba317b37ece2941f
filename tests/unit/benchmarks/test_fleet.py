"""The benchmark of fleets: its recipes are the runs that it says, its rates and ratios are right."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import _fleet_jobs, _fleet_search, fleet
from benchmarks._common import Kept
from benchmarks._fleet_jobs import ONE_BY_ONE, RIVAL, Sharding, Suite
from benchmarks._fleet_search import Search
from benchmarks._fleet_steps import StepTimes, compare_steps
from benchmarks._training_runs import our_config
from benchmarks._workloads import COOLDOWN, WARMUP, Work, make_backbone, prepare
from lingo_ds.config import suite_config
from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.fleet import plan_fleet
from lingo_ds.planning.plan import make_plan
from lingo_ds.training import search
from tests.unit.planning.facts import PACKED

WHOLE = Sharding(1, 0)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    folder = tmp_path_factory.mktemp("work")
    backbone = make_backbone("tiny", folder / "tiny")
    return prepare(fleet.WORKLOAD, backbone, folder, batch=4, steps=2, learning_rate=1e-3)


def loaded(recipe: dict, folder: Path) -> suite_config.Suite:
    (folder / "suite.yaml").write_text(yaml.safe_dump(recipe))
    return suite_config.load_runs(folder / "suite.yaml")


@pytest.mark.parametrize(("way", "concurrent"), [("auto", "auto"), (ONE_BY_ONE, 1), ("4", 4)])
def test_a_suite_is_the_run_of_the_rival_with_each_seed(work, tmp_path, way, concurrent):
    recipe = _fleet_jobs.recipe_of(Suite(work, 3, WHOLE, way), tmp_path)
    suite = loaded(recipe, tmp_path)
    assert suite.config.concurrent == concurrent
    alone = our_config(work, tmp_path, dtype="fp32", stage=0, adapter={})
    assert [member.seed for member in suite.members] == [0, 1, 2]
    for member in suite.members:
        own = {"seed": member.seed, "output_dir": member.config.output_dir}
        assert member.config == alone.model_copy(update=own)


def stamps(start: float, seconds: float) -> list[float]:
    """Ends of the steps of a run of 5 timed steps, each so long, whose other steps take 10 seconds."""
    pauses = [10.0] * WARMUP + [seconds] * 5 + [10.0] * COOLDOWN
    return [start + sum(pauses[: k + 1]) for k in range(len(pauses))]


def test_steps_count_while_any_run_takes_timed_ones():
    one = stamps(0, 2)
    assert _fleet_jobs.steps_per_second([one]) == pytest.approx(1 / 2)
    assert _fleet_jobs.steps_per_second([one, stamps(100, 2)]) == pytest.approx(1 / 2), "one after the other"
    assert _fleet_jobs.steps_per_second([one, stamps(0.1, 2)]) == pytest.approx(10 / 10.1), "together"
    queue = [stamps(100, 1), one, stamps(0, 2)]
    assert _fleet_jobs.steps_per_second(queue) == pytest.approx(15 / 15), "two together, then one"


def test_together_is_compared_with_one_by_one_and_the_rival_of_the_same_setting(work):
    def found(rate: float, seconds: float, together: int = 1) -> list[dict]:
        return [{"examples_per_second": rate, "seconds": seconds, "together": together}]

    suite, sharded = Suite(work, 8, WHOLE, "auto"), Sharding(2, 3)
    given = {
        suite: found(30.0, 10.0, 8),
        suite._replace(way=ONE_BY_ONE): found(10.0, 20.0),
        suite._replace(way=RIVAL): found(5.0, 80.0),
        suite._replace(sharding=sharded): found(8.0, 40.0, 8),
        suite._replace(sharding=sharded, way=ONE_BY_ONE): found(4.0, 60.0),
        suite._replace(runs=4): found(1.0, 1.0),
    }
    whole, shards = _fleet_jobs.compare_speed(given)
    assert (whole["together"], whole["ratio"], whole[f"over {RIVAL}"]) == (8, 3, 6)
    assert (shards["weights"], shards["ratio"], shards[RIVAL]) == ("sharded", 2, None)
    whole, shards = _fleet_jobs.compare_seconds(given)
    assert (whole["ratio"], whole[f"over {RIVAL}"], shards["ratio"]) == (2, 8, 1.5)


def test_memory_is_planned_as_the_suite_plans_it(tmp_path):
    sections = {"backbone": {"path": "b"}, "data": {"path": "d"}, "train": {"global_batch_size": 8}}
    plan = make_plan(RunConfig.model_validate({"name": "small", **sections}), PACKED)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    for concurrent in ("auto", "3"):
        expected = plan_fleet([plan], concurrent=concurrent, runs=8, device="cpu")
        assert _fleet_jobs.planned_fleet(tmp_path, concurrent, 8) == expected


def test_halving_takes_a_quarter_of_the_work_and_dev_is_known_when_it_decides(tmp_path):
    halving = Search("builtin:tiny", "builtin:promoters", seeds=3, steps=60, at=(0.1, 0.3))
    suite = loaded(halving.recipe(tmp_path), tmp_path)
    assert len(suite.members) == 27
    assert search.Search(suite.members, suite.config.search).work() < 27 / 4
    train = suite.members[0].config.train
    assert all(round(at * train.max_steps) % train.eval_steps == 0 for at in halving.at)
    every = loaded(halving._replace(at=()).recipe(tmp_path), tmp_path)
    assert every.members == suite.members and every.config.search.method == "all"


def test_another_choice_is_as_far_behind_as_its_own_training_to_the_end():
    what = Search("b", "d", seeds=3, steps=60, at=(0.1,))
    halving = {"chosen": "x", "trainings": 6.6, "seconds": 10.0, "dev": {"x": 71.0}}
    whole = {"chosen": "y", "trainings": 27.0, "seconds": 30.0, "dev": {"x": 70.0, "y": 74.0}}
    row = _fleet_search.compare_choices(what, halving, whole)
    assert not row["same choice"] and row["100 x dev behind"] == 4
    trainings, seconds = _fleet_search.compare_work(what, halving, whole)
    assert (trainings["ratio"], seconds["ratio"]) == (pytest.approx(27 / 6.6), 3)


def test_steps_of_runs_are_computed_together_and_move_every_bank(work, tmp_path):
    times = StepTimes(work, tmp_path, tokens=20)
    found = times.measure(3, repeats=1)
    assert found["tokens"] == 3 * (1 + 4 * 19), "the first token, which all examples share, and 19 of each"
    steps = [step for runs in times._runs for step in runs._steps]
    assert [step.optimizer_step.steps_taken for step in steps] == [3] * 4
    what = {"backbone": "tiny", "batch": 4, "tokens": 20, "runs": 3}
    row = compare_steps(what, 100, {"alone": 0.2, "together": 0.3, "tokens": 231})
    assert (row["rival"], row["ours"], row["ratio"]) == pytest.approx((20, 40, 2))


def test_what_is_kept_is_not_measured_again_and_nothing_begins_late(tmp_path):
    kept = Kept(tmp_path)
    assert kept.get({"a": 1}, lambda: {"found": 2}) == {"found": 2}
    late = Kept(tmp_path, minutes=-1)
    assert late.get({"a": 1}, lambda: {"found": 3}) == {"found": 2}
    assert late.get({"a": 2}, lambda: {"found": 3}) is None


def test_arguments(monkeypatch, capsys):
    def arguments(*given: str):
        monkeypatch.setattr(sys, "argv", ["fleet", *given])
        return fleet._arguments()

    quick, full = arguments("--quick"), arguments()
    assert (quick.parts, len(quick.backbones)) == (["steps"], 1)
    assert (full.parts, len(full.backbones)) == (list(fleet.PARTS), 3)
    with pytest.raises(SystemExit) as ended:
        arguments("--backbones", "nowhere")
    assert ended.value.code == 2 and "nowhere" in capsys.readouterr().err
