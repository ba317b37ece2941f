"""Checkpoints: what is in them, what damage and a full disk do, and how far a run may change."""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lingo_ds.config.yaml import parse_yaml
from lingo_ds.training import checkpoint as checkpoints
from lingo_ds.training import losses, session
from lingo_ds.training.checkpoint import BANK, STATE, SUMS, read_checkpoint
from lingo_ds.training.losses import Loss
from lingo_ds.utils.errors import UserError
from tests.unit.running import at_step, command, contents, crash, report_of

STEPS = 16
RECIPE = """\
name: kept
backbone: {{path: builtin:tiny}}
data: {{path: builtin:promoters, cache_dir: {cache}}}
adapter: {{rank: 4}}
rank_sampling: {{target_rank: 2, interval: 2, t_init: 2, t_final: 4}}
train: {{global_batch_size: 8, max_steps: 16, eval_steps: 8, learning_rate: 3.0e-3}}
zero: {{stage: 0}}
checkpoint: {{every: 4, keep_last: 3, keep_best: false}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "kept.yaml").write_text(RECIPE.format(cache=folder / "cache"))
    return folder / "kept.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    out = tmp_path_factory.mktemp("run") / "finished"
    status, shown = command("train", recipe, out)
    assert status == 0, shown
    return out


@pytest.fixture
def crashed(tmp_path, recipe, finished) -> Path:
    """A run that ended after step 10: checkpoints of 4 and 8."""
    out = tmp_path / "crashed"
    with at_step(11, crash), pytest.raises(RuntimeError, match="on fire"):
        command("train", recipe, out)
    return out


def checkpoint(out: Path, step: int) -> Path:
    return out / f"checkpoints/step-{step:08d}"


def bank(out: Path, step: int = STEPS) -> bytes:
    return (checkpoint(out, step) / BANK).read_bytes()


# -- what is in one


def test_a_checkpoint_is_json_and_safetensors_of_six_times_what_is_trained(finished):
    trained = 4 * report_of(finished)["parameters"]["trainable"]
    for step in (8, STEPS):
        folder = checkpoint(finished, step)
        assert sorted(os.listdir(folder)) == [SUMS, BANK, STATE]
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 6 * trained + 2**20


def test_its_sums_are_those_that_sha256sum_checks(finished):
    folder = checkpoint(finished, STEPS)
    lines = [line.split("  ") for line in (folder / SUMS).read_text().splitlines()]
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for _, name in lines} == {
        name: digest for digest, name in lines
    }


def test_its_state_tells_where_the_run_stands(finished):
    state = json.loads((checkpoint(finished, 8) / STATE).read_text())
    assert (state["step"], state["examples"], state["total_steps"]) == (8, 64, STEPS)
    assert state["config"]["train"]["learning_rate"] == 3e-3
    assert state["versions"]["torch"] == metadata.version("torch")
    assert state["schedule"]["total"] == STEPS


def test_the_newest_stay(finished):
    assert sorted(os.listdir(finished / "checkpoints")) == [f"step-{step:08d}" for step in (8, 12, 16)]


def test_the_best_stays_too(recipe, tmp_path):
    out = tmp_path / "out"
    settings = ("checkpoint.keep_best=true", "checkpoint.keep_last=1", "checkpoint.every=16")
    settings += ("train.eval_steps=2", "train.learning_rate=1e-7", "selection.after_final_mask=false")
    assert command("train", recipe, out, *settings)[0] == 0
    best = report_of(out)["selected_step"]
    assert sorted(os.listdir(out / "checkpoints")) == sorted({f"step-{best:08d}", "step-00000016"})


def test_report_counts_them_and_the_time_they_took(finished):
    kept = report_of(finished)["checkpoints"]
    assert (kept["written"], kept["failed"], kept["last"]) == (4, 0, STEPS)
    assert 0 < kept["stall_fraction"] < 1


def test_the_loop_does_not_wait_for_a_slow_disk(recipe, tmp_path, monkeypatch):
    """Writing takes half a second; the loop waits for the copy, and at the end for the last one."""
    write = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", lambda *args: (time.sleep(0.5), write(*args)))
    assert command("train", recipe, tmp_path / "out", "checkpoint.every=12")[0] == 0
    kept = report_of(tmp_path / "out")["checkpoints"]
    assert kept["written"] == 2
    assert kept["stall_seconds"] < 0.9, "one of two writes, at the end"


# -- damaged


def tear(folder: Path) -> None:
    data = (folder / BANK).read_bytes()
    (folder / BANK).write_bytes(data[: len(data) // 2])


def flip(folder: Path) -> None:
    data = bytearray((folder / BANK).read_bytes())
    data[-5] ^= 4
    (folder / BANK).write_bytes(data)


def tear_state(folder: Path) -> None:
    (folder / STATE).write_text((folder / STATE).read_text()[:-20])


def lose(folder: Path) -> None:
    (folder / BANK).unlink()


def lose_sums(folder: Path) -> None:
    (folder / SUMS).unlink()


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")


DAMAGES = (tear, flip, tear_state, lose, lose_sums, empty)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_an_older_one_is_taken_where_the_last_is_damaged(crashed, finished, recipe, damage):
    damage(checkpoint(crashed, 8))
    status, shown = command("train", recipe, crashed)
    assert status == 0, shown
    assert "trying an older checkpoint" in " ".join(shown.split()) and "continuing with step 5" in shown
    assert bank(crashed) == bank(finished)


def test_what_a_killed_run_was_writing_is_removed(crashed, finished, recipe):
    half = crashed / "checkpoints/.step-00000012.0123abcd.new"
    half.mkdir()
    (half / BANK).write_bytes(b"half")
    assert command("train", recipe, crashed)[0] == 0
    assert not half.exists()
    assert bank(crashed) == bank(finished)


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """A stranger's checkpoint: altered, with sums that fit."""
    state = json.loads((folder / STATE).read_text())
    change(state)
    (folder / STATE).write_text(json.dumps(state))
    seal(folder)


def seal(folder: Path) -> None:
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in (BANK, STATE)]
    (folder / SUMS).write_text("\n".join(sums) + "\n")


HOSTILE = {
    "huge ranks": lambda s: s.update(ranks=[2**40] * len(s["ranks"])),
    "higher ranks": lambda s: s.update(ranks=[5] * len(s["ranks"])),
    "fewer maps": lambda s: s.update(ranks=s["ranks"][1:]),
    "negative rank": lambda s: s["ranks"].__setitem__(0, -1),
    "no parts": lambda s: s.pop("parts"),
    "format of the future": lambda s: s.update(format=99),
    "format before this one": lambda s: s.update(format=2),
    "unknown field": lambda s: s.update(code="import os"),
    "unknown part": lambda s: s["parts"].update(code={"value": "import os"}),
    "missing part": lambda s: s["parts"].pop("audit"),
    "part of another type": lambda s: s["parts"].update(audit=[1, 0, 0]),
    "unknown key of a part": lambda s: s["parts"]["audit"].update(code="import os"),
    "missing key of a part": lambda s: s["parts"]["optimizer"].pop("good_steps"),
    "words for numbers": lambda s: s["parts"]["optimizer"].update(steps_taken="a"),
    "a number beyond floats": lambda s: s["parts"]["optimizer"].update(steps_taken=10**400),
    "loss scale of another precision": lambda s: s["parts"]["optimizer"].update(loss_scale=2.0**15),
    "loss scale without bound": lambda s: s["parts"]["optimizer"].update(loss_scale=float("inf")),
    "true for a number": lambda s: s["parts"]["audit"].update(audits=True),
    "short masks": lambda s: s["parts"]["sampler"].update(kept="01"),
    "odd masks": lambda s: s["parts"]["sampler"].update(kept="x" * len(s["parts"]["sampler"]["kept"])),
    "short event": lambda s: s["parts"]["sampler"]["events"][0].pop("final"),
    "few bins": lambda s: s["parts"]["scores"]["histogram"]["kept"].pop(),
    "odd best": lambda s: s["parts"]["selection"].update(step="last"),
    "step beyond the run": lambda s: s.update(step=10**6),
    "no schedule": lambda s: s.update(schedule=None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_altered_checkpoint_is_refused_in_one_line(finished, recipe, tmp_path, name):
    folder = shutil.copytree(checkpoint(finished, 8), tmp_path / "step-00000008")
    rewrite(folder, HOSTILE[name])
    status, shown = command("train", recipe, tmp_path / "out", f"checkpoint.resume={folder}")
    assert status == 2, shown
    assert "Traceback" not in shown and shown.count("error: ") == 1, shown


def test_the_sums_are_checked_without_assertions_too(finished, tmp_path):
    """`python -O` leaves `assert` out."""
    folder = shutil.copytree(checkpoint(finished, 8), tmp_path / "step-00000008")
    flip(folder)
    code = (
        "import sys, pathlib, lingo_ds.training.checkpoint as c; c.read_checkpoint(pathlib.Path(sys.argv[1]))"
    )
    ended = subprocess.run([sys.executable, "-O", "-c", code, folder], capture_output=True, text=True)
    assert "bank.safetensors does not fit SHA256SUMS" in ended.stderr


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["master"] = torch.zeros(3)


def other_dtype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["master"] = tensors["master"].double()


def one_less(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["exp_avg"]


@pytest.mark.parametrize("change", [other_shape, other_dtype, one_less], ids=lambda change: change.__name__)
def test_other_tensors_are_refused_in_one_line(finished, recipe, tmp_path, change):
    folder = shutil.copytree(checkpoint(finished, 8), tmp_path / "step-00000008")
    tensors = load_file(folder / BANK)
    change(tensors)
    save_file(tensors, folder / BANK)
    seal(folder)
    status, shown = command("train", recipe, tmp_path / "out", f"checkpoint.resume={folder}")
    assert status == 2 and shown.count("error: checkpoint.resume") == 1, shown


def test_a_checkpoint_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="is incomplete or damaged"):
        read_checkpoint(tmp_path)


# -- going on with other settings


def test_a_finished_run_goes_on_for_more_steps_with_its_final_mask(finished, recipe, tmp_path):
    out = shutil.copytree(finished, tmp_path / "longer")
    status, shown = command("train", recipe, out, "train.max_steps=24")
    assert status == 0, shown
    said = " ".join(shown.split())
    assert "24 instead of 16 steps: the final mask stays at step 12" in said
    assert "continuing with step 17" in said
    report = report_of(out)
    assert report["steps"] == 24 and report["rank_sampling"]["mask_events"] == 5
    assert report["rank_sampling"]["kept_triplets"] == report["rank_sampling"]["target_triplets"]


def test_a_run_in_its_middle_goes_on_longer_with_the_masks_it_would_have_had(crashed, finished, recipe):
    assert command("train", recipe, crashed, "train.max_steps=20")[0] == 0
    ours, theirs = (report_of(out)["rank_sampling"]["history"] for out in (crashed, finished))
    assert [event["step"] for event in ours] == [event["step"] for event in theirs]


def test_a_longer_run_keeps_the_numbers_that_auto_stood_for(recipe, tmp_path):
    """Of 12 steps a mask after every one; in a run of 40 it would be every other one."""
    auto = ("rank_sampling.interval=auto", "train.learning_rate=auto", "train.eval_steps=null")
    kept = {"train": {"learning_rate": 2.8e-3}, "adapter": {"alpha": 8}, "rank_sampling": {"interval": 1}}
    events = {}
    for steps in (12, 40):
        status, shown = command("train", recipe, tmp_path / "out", *auto, f"train.max_steps={steps}")
        assert status == 0, shown
        written = parse_yaml((tmp_path / "out/config.yaml").read_text())
        assert {name: {key: written[name][key] for key in part} for name, part in kept.items()} == kept
        events[steps] = [event["step"] for event in report_of(tmp_path / "out")["rank_sampling"]["history"]]
    assert events[12] == events[40] == list(range(3, 9))
    assert "continuing with step 13" in shown
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["deltaT"] == 1
    status, shown = command("train", recipe, tmp_path / "out", *auto[1:], "train.max_steps=50")
    assert status == 2 and "has another schedule" in shown  # the recipe's interval is 2


def test_a_shorter_run_is_refused(crashed, recipe):
    status, shown = command("train", recipe, crashed, "train.max_steps=12")
    assert status == 2
    assert "error: train.max_steps: '12': is shorter than the run of 16 steps" in " ".join(shown.split())


@pytest.mark.parametrize(
    "setting",
    [
        "train.eval_steps=4",
        "train.micro_batch_size=2",
        "checkpoint.every=3",
        "checkpoint.keep_best=true",
        "name=other",
    ],
)
def test_settings_that_mean_nothing_may_change(crashed, finished, recipe, setting):
    status, shown = command("train", recipe, crashed, setting)
    assert status == 0 and "continuing with step 9" in shown
    ours, theirs = (load_file(checkpoint(out, STEPS) / BANK) for out in (crashed, finished))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "setting", ["seed=1", "adapter.alpha=3", "rank_sampling.rho=0.2", "data.max_length=60"]
)
def test_settings_that_mean_something_may_not(crashed, recipe, setting):
    before = contents(crashed)
    status, shown = command("train", recipe, crashed, setting)
    field = setting.partition("=")[0]
    assert status == 2 and f"error: {field}" in shown, shown
    after = contents(crashed)
    assert {name: after[name] for name in before if name != "train.log"} == {
        name: value for name, value in before.items() if name != "train.log"
    }


# -- a machine that can hold no more


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full, as the operating system has it: no file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def full_from_step_7() -> Iterator[Callable[[], None]]:
    held = files_of_at_most(60_000)
    entered = []

    def fill() -> None:
        held.__enter__()
        entered.append(True)

    yield fill
    if entered:
        held.__exit__(None, None, None)


def test_training_goes_on_where_a_checkpoint_finds_no_room(recipe, tmp_path, finished, full_from_step_7):
    out = tmp_path / "out"
    with at_step(7, full_from_step_7):
        status, shown = command("train", recipe, out, "train.eval_steps=16")
    said = " ".join(shown.split())
    assert "checkpoint of step 8: not written (" in said and "the last one is of step 4" in said
    assert "Traceback" not in shown
    assert status in (0, 2), "the adapter at the end may fit, or not"
    assert read_checkpoint(checkpoint(out, 4)).state.step == 4
    assert not list((out / "checkpoints").glob(".*"))


def test_no_room_for_the_adapter_ends_the_run_with_words_and_it_can_go_on(recipe, tmp_path, finished):
    out = tmp_path / "out"
    held = files_of_at_most(2_000)
    with at_step(7, held.__enter__):
        status, shown = command("train", recipe, out)
    held.__exit__(None, None, None)
    assert status == 2, shown
    assert "File too large" in shown and "resume from the last checkpoint" in " ".join(shown.split())
    assert "Traceback" not in shown
    status, shown = command("train", recipe, out)
    assert status == 0 and "continuing with step 5" in shown
    assert bank(out) == bank(finished)


def test_a_checkpoint_that_may_open_no_file_is_a_warning(recipe, tmp_path, monkeypatch):
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(checkpoints, "save_file", none_left)
    status, shown = command("train", recipe, tmp_path / "out")
    assert status == 0
    assert "Too many open files" in shown and "there is none yet" in " ".join(shown.split())
    assert report_of(tmp_path / "out")["checkpoints"]["failed"] == 4


def test_a_clock_that_goes_backwards_changes_nothing(recipe, tmp_path, finished, monkeypatch):
    now = iter(np.linspace(2e9, 1e9, 10**6))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    assert command("train", recipe, tmp_path / "out")[0] == 0
    monkeypatch.undo()
    assert bank(tmp_path / "out") == bank(finished)
    assert report_of(tmp_path / "out")["throughput"]["seconds"] > 0


def test_curves_that_are_removed_do_not_end_a_run(recipe, tmp_path, finished):
    out = tmp_path / "out"
    # at one stroke: the writer's thread might put a file into a folder that is being emptied
    with at_step(7, lambda: (out / "tensorboard").rename(tmp_path / "elsewhere")):
        status, shown = command("train", recipe, out)
    assert status == 0 and "training goes on" in " ".join(shown.split())
    assert bank(out) == bank(finished)


# -- a gradient that stays not finite


@pytest.fixture
def factors(monkeypatch) -> list[float]:
    """What the loss of the next batches is multiplied by; afterwards by 1."""
    factors: list[float] = []

    def make_loss(*args: object) -> Loss:
        loss = losses.make_loss(*args)
        return lambda *batch: loss(*batch) * (factors.pop() if factors else 1.0)

    monkeypatch.setattr(session, "make_loss", make_loss)
    return factors


def test_steps_that_stay_not_finite_end_the_run(recipe, tmp_path, factors):
    settings = ("train.max_skipped=3", "train.eval_steps=16")
    with at_step(6, lambda: factors.extend([math.nan] * 100)):
        status, shown = command("train", recipe, tmp_path / "out", *settings)
    said = " ".join(shown.split())
    assert status == 2, shown
    assert (
        "error: train.max_skipped: '3': the gradient was not finite in 3 steps in a row, the last one 8"
        in said
    )
    with safe_open(checkpoint(tmp_path / "out", 4) / BANK, "pt") as opened:
        assert opened.get_tensor("master").isfinite().all()


def test_single_steps_that_are_not_finite_are_counted_and_passed(recipe, tmp_path, factors):
    with at_step(6, lambda: factors.append(math.nan)), at_step(9, lambda: factors.append(math.inf)):
        status, shown = command("train", recipe, tmp_path / "out", "train.max_skipped=2")
    assert status == 0, shown
    assert report_of(tmp_path / "out")["skipped_steps"] == 2
