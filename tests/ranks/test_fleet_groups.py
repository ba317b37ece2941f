"""Groups of processes share out the runs of a suite: each is trained once, and is the run it is alone."""

import contextlib
import csv
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lingo_ds.commands.group_queue import GroupQueue
from lingo_ds.distributed import process_group, watchdog
from lingo_ds.distributed.process_group import free_port
from lingo_ds.utils.errors import LoneError, Mistake
from lingo_ds.utils.files import exclusive_lock
from tests.first_rows import first_rows
from tests.ranks.launching import BIN, CHECKOUT, starting
from tests.ranks.spawn import run_ranks
from tests.ranks.test_killed import ends, ranks_of, when_trained
from tests.unit.running import at_step, command, contents, ctrl_c, once, report_of

RECIPE = """\
name: shared-out
seeds: [0, 1, 2]
backbone: {{path: {shared}/backbones/stories260k}}
data: {{path: {data}, prefix: none, cache_dir: {root}/cache}}
adapter: {{rank: 4, dropout: 0.1}}
rank_sampling: {{target_rank: 2, interval: 2, t_init: 1, t_final: 3}}
train: {{global_batch_size: 8, max_steps: {steps}, eval_steps: 4}}
zero: {{stage: {stage}}}
checkpoint: {{every: 2}}
"""
SEEDS = (0, 1, 2)


Disturb = Callable[[int], AbstractContextManager[None]]
"""What happens to the process of a rank while it trains."""


class Ended(NamedTuple):
    """What a command left: exit status and stderr of each process."""

    statuses: list[int]
    shown: list[str]


@pytest.fixture(scope="module")
def recipes(shared, tmp_path_factory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("recipes")
    data = first_rows(shared / "data/gue/prom_core_tata", root / "data", {"train": 64, "dev": 40, "test": 40})

    def recipe(*, stage: int = 0, steps: int = 8, more: str = "") -> Path:
        path = root / f"stage-{stage}-{steps}-{len(more)}.yaml"
        path.write_text(RECIPE.format(shared=shared, data=data, root=root, stage=stage, steps=steps) + more)
        return path

    return recipe


def train_here(
    rank: int, world_size: int, lines: list[tuple[int, list[Any]]], disturb: Disturb
) -> list[tuple[int, str]]:
    """One command after the other; the processes of each meet at a port of its own."""
    ended = []
    for port, line in lines:
        os.environ["MASTER_PORT"] = str(port)
        with disturb(rank):
            ended.append(command("train", *line))
    return ended


@contextlib.contextmanager
def undisturbed(rank: int) -> Iterator[None]:
    yield


def train(recipe: Path, out: Path, processes: int, *settings: str, disturb: Disturb = undisturbed) -> Ended:
    line = free_port(), [recipe, out, "placement=groups", *settings]
    each = [one for (one,) in run_ranks(train_here, processes, [line], disturb, timeout=300)]
    return Ended([status for status, _ in each], [shown for _, shown in each])


def alone(recipe: Path, folder: Path, processes: int) -> dict[int, Path]:
    """The runs of the recipe, each by itself on so many processes, one after the other."""
    single = folder / "single.yaml"
    single.write_text("".join(line for line in recipe.open() if not line.startswith("seeds")))
    outs = {seed: folder / f"alone-{seed}" for seed in SEEDS}
    lines = [(free_port(), [single, out, f"seed={seed}"]) for seed, out in outs.items()]
    for ended in run_ranks(train_here, processes, lines, undisturbed, timeout=300):
        assert [status for status, _ in ended] == [0] * len(SEEDS), ended
    return outs


def require_same(suite: Path, runs: dict[int, Path]) -> None:
    """Checks that each run of a suite left what it leaves alone: adapter, metrics and predictions."""
    for seed, folder in runs.items():
        ours = suite / f"seed-{seed}"
        assert contents(ours / "adapter") == contents(folder / "adapter"), seed
        assert report_of(ours)["metrics"] == report_of(folder)["metrics"], seed
        assert report_of(ours)["world_size"] == report_of(folder)["world_size"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def started(ended: Ended) -> list[list[int]]:
    """The seeds that each process says it trains."""
    return [[seed for seed in SEEDS if f"run {seed + 1} of " in shown] for shown in ended.shown]


def traffic(out: Path) -> set[tuple[str, int]]:
    """What the steps of all runs sent, and among how many processes."""
    reports = [report_of(out / f"seed-{seed}") for seed in SEEDS]
    return {(kind["what"], kind["group"]) for one in reports for kind in one["traffic"]["collectives"]}


@pytest.fixture(scope="module")
def by_one(recipes, tmp_path_factory) -> dict[int, Path]:
    return alone(recipes(), tmp_path_factory.mktemp("by-one"), 1)


# -- every run once, and as it is alone


def test_two_groups_of_one_share_out_the_runs(recipes, by_one, tmp_path):
    out = tmp_path / "out"
    ended = train(recipes(), out, 2, "concurrent=1")
    assert ended.statuses == [0, 0], ended.shown
    require_same(out, by_one)
    first, second = started(ended)
    assert sorted(first + second) == list(SEEDS) and first and second, ended.shown
    for shown, own in zip(ended.shown, (first, second), strict=True):
        assert all(f"seed {seed}: finished: dev mcc" in shown for seed in own), shown
    assert "groups     2 of 1 process, each trains runs of its own" in ended.shown[0]
    assert rows_of(out / "results.csv")[0]["runs"] == "3/3"
    assert traffic(out) == set(), "no byte travels between groups"


def test_two_groups_of_two_each_share_a_backbone(recipes, tmp_path):
    runs = alone(recipes(stage=3), tmp_path, 2)
    ended = train(recipes(stage=3), tmp_path / "out", 4, "concurrent=1", "zero.shard_group=2")
    assert ended.statuses == [0] * 4, ended.shown
    require_same(tmp_path / "out", runs)
    first, silent, second, _ = started(ended)
    assert sorted(first + second) == list(SEEDS) and first and second and not silent, ended.shown
    assert "groups     2 of 2 processes" in ended.shown[0]
    assert {group for _, group in traffic(tmp_path / "out")} == {2}
    assert {"weights", "bank"} <= {what for what, _ in traffic(tmp_path / "out")}


def test_more_groups_than_runs_end_well(recipes, by_one, tmp_path):
    ended = train(recipes(), tmp_path / "out", 4)
    assert ended.statuses == [0] * 4, ended.shown
    require_same(tmp_path / "out", by_one)
    assert sorted(started(ended)) == [[], [0], [1], [2]]
    assert "groups     4 of 1 process" in ended.shown[0] and "idle       1 groups: " in ended.shown[0]


# -- a search


def test_halving_over_groups_chooses_as_one_process_does(recipes, tmp_path):
    grid = "grid: {train.learning_rate: [0.0001, 0.003, 0.1, 0.3]}\n"
    recipe = recipes(more=f"{grid}search: {{method: halving, at: [0.25, 0.5]}}\n")
    outs = tmp_path / "one", tmp_path / "three"
    for out, processes in zip(outs, (1, 3), strict=True):
        ended = train(recipe, out, processes, "seeds=[0]")
        assert ended.statuses == [0] * processes, ended.shown
    assert rows_of(outs[1] / "settings.csv") == rows_of(outs[0] / "settings.csv")
    assert rows_of(outs[1] / "results.csv") == rows_of(outs[0] / "results.csv")
    steps = [sorted(report_of(file.parent)["steps"] for file in out.rglob("report.json")) for out in outs]
    assert steps[0] == steps[1] == [2, 2, 4, 8]
    tests = [[file.parent.name for file in out.rglob("predictions/test.parquet")] for out in outs]
    assert len(tests[0]) == len(tests[1]) == 1


# -- what goes wrong


def test_a_killed_group_ends_the_job_and_another_number_of_groups_goes_on(recipes, by_one, tmp_path):
    out = tmp_path / "out"
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    script = [str(CHECKOUT / "launchers/train.py"), "--config", str(recipes()), f"output_dir={out}"]
    with starting() as start:
        job = start([*launcher, *script, "placement=groups"], tmp_path)
        when_trained(job, out / "seed-0", 2)
        when_trained(job, out / "seed-1", 2)
        ranks_of(job)[1].kill()
        ended = ends(job)
    assert ended.status != 0 and "error: process 1 of 2: " in ended.output, ended.output
    again = train(recipes(), out, 3)
    assert again.statuses == [0] * 3, again.shown
    assert "resumed from" in "".join(again.shown), again.shown
    require_same(out, by_one)


@contextlib.contextmanager
def asked_while_it_trains(rank: int) -> Iterator[None]:
    """The second group gets a signal in its third step."""
    with at_step(3, once(ctrl_c)) if rank == 1 else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def asked_while_it_waits(rank: int) -> Iterator[None]:
    """A group without a run gets a signal."""
    wait, signal_once = GroupQueue.wait, once(ctrl_c)

    def waits(self: GroupQueue, stop: bool) -> bool:
        signal_once()
        return wait(self, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GroupQueue, "wait", waits)
        yield


@pytest.mark.parametrize(
    "seeds, disturb", [("[0,1,2]", asked_while_it_trains), ("[0]", asked_while_it_waits)]
)
def test_a_signal_to_one_process_stops_all_groups(recipes, tmp_path, seeds, disturb):
    out = tmp_path / "out"
    ended = train(recipes(), out, 2, "train.max_steps=100000", f"seeds={seeds}", disturb=disturb)
    assert ended.statuses == [0, 0], ended.shown
    words = "interrupted; run the same command again to resume the suite"
    assert [shown.count(words) for shown in ended.shown] == [1, 0]
    reports = [report_of(file.parent) for file in out.rglob("report.json")]
    assert {report["outcome"] for report in reports} == {"interrupted"}
    assert len(reports) == sum(map(len, started(ended)))


@contextlib.contextmanager
def without_memory(rank: int) -> Iterator[None]:
    """The second group has too little, in its third step."""

    def fail() -> None:
        raise LoneError(Mistake("concurrent", 2, "out of memory", "set 1"))

    with at_step(3, fail) if rank == 1 else contextlib.nullcontext():
        yield


def test_a_mistake_that_ends_one_group_ends_all_as_a_mistake(recipes, tmp_path):
    with pytest.raises(AssertionError) as caught:
        train(recipes(), tmp_path / "out", 2, "train.max_steps=100000", disturb=without_memory)
    assert "rank 0 of 2 ended with exit status 2" in str(caught.value), "the second alone says why"


def test_a_run_that_cannot_start_is_told_at_the_end_and_the_others_are_trained(recipes, by_one, tmp_path):
    (tmp_path / "seed-1").mkdir()
    with exclusive_lock(tmp_path / "seed-1", setting="output_dir"):
        ended = train(recipes(), tmp_path, 2)
    assert ended.statuses == [2, 2], ended.shown
    assert [shown.count("error: output_dir (shared-out, seed 1): ") for shown in ended.shown] == [1, 0]
    require_same(tmp_path, {seed: by_one[seed] for seed in (0, 2)})


def test_groups_that_do_not_divide_the_processes_are_refused(recipes, tmp_path):
    ended = train(recipes(), tmp_path / "out", 3, "zero.shard_group=2")
    assert ended.statuses == [2] * 3 and not (tmp_path / "out").exists(), ended.shown
    assert "error: zero.shard_group: '2': does not divide the 3 processes into groups" in ended.shown[0]


def stand_still(rank: int, world_size: int) -> None:
    """Two groups of one process: the first goes on, the second hangs."""
    env = process_group.detect()
    with watchdog.watching(env), process_group.divided(1, env):
        watchdog.join_group(rank)
        with watchdog.judging(2):
            for _ in range(100):
                time.sleep(0.2)
                if rank == 0:
                    watchdog.beat()


def test_a_group_that_hangs_is_named_while_others_go_on():
    with pytest.raises(AssertionError) as caught:
        run_ranks(stand_still, 2)
    assert re.search("error: process 1 of 2: .*has made no progress for 2 s", str(caught.value))
